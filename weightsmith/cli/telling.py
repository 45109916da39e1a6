"""What a command came to, as text for people or as one JSON object for programs: the one place that writes to stdout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from weightsmith.progress import CONSOLE
from weightsmith.run.outcome import Outcome


def tell(outcome: Outcome) -> None:
    """Tables and sentences on stdout."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    for shown in outcome.shown:
        if isinstance(shown, str):
            console.print(shown, soft_wrap=True, highlight=False, markup=False)
        else:
            console.print(shown)
    if outcome.folder is not None:
        console.print(f"[bold]{escape(str(outcome.folder))}[/] {escape(outcome.last_line())}", soft_wrap=True)


def tell_json(outcome: Outcome, written: Sequence[Path]) -> None:
    """One object on stdout.

    Args:
        written: what was written meanwhile, files and folders; what is not there any more is left out.
    """
    entries: dict[str, Any] = {
        "command": outcome.command,
        "status": outcome.status,
        "folder": outcome.folder,
        "page": outcome.page,
        "files": files_of(written),
        "figures": outcome.figures,
        "summary": outcome.summary,
        "notes": outcome.notes,
    }
    write_object(entries)


def tell_error(text: str, status: int, *, as_json: bool, kind: str = "") -> None:
    """Why a command ended: a line on stderr, and for programs an object on stdout as well."""
    from rich.markup import escape

    CONSOLE.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)
    if as_json:
        write_object({"error": text, "status": status, **({"kind": kind} if kind else {})})


def write_object(entries: Mapping[str, Any]) -> None:
    """A JSON object on a line of stdout."""
    sys.stdout.write(json.dumps(plain(entries), ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def files_of(written: Sequence[Path]) -> list[str]:
    """The files among what was written that are there, each once; of a folder all that it holds."""
    found: dict[str, None] = {}
    for path in written:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found |= {str(one): None for one in inside if one.is_file()}
    return list(found)


def plain(value: Any) -> Any:
    """A value of what JSON knows: null for NaN, texts for infinity and paths, a dataclass as its fields."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if value is None or isinstance(value, bool | str):
        return value
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    return value if isinstance(value, int) else str(value)
