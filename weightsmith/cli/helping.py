"""Help that lists commands. It is written here, because the parser that shows a command's flags takes half a second."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping

from weightsmith.cli.commands import GROUPS, first_words, ways
from weightsmith.cli.exits import EXITS

_WIDEST = 110
_FLAGS = {
    "-h, --help": "Show this message.",
    "-V, --version": "Show the version.",
    "--completion SHELL": "Write a script that completes commands and flags: bash, zsh, tcsh or fish.",
}
_EVERYWHERE = {
    "--json": "Write one JSON object to stdout when it is done; of an error too.",
    "--dry-run": "Of commands that take long: say what would be done and what it costs, and write nothing.",
}


def general_help() -> str:
    """What `weightsmith --help` shows."""
    return _page(
        "usage: weightsmith COMMAND [FLAGS]",
        "Correct a trained model without retraining it, and prove what changed.",
        ("commands", first_words()),
        ("flags", _FLAGS),
        ("flags of commands, beside their own, which `weightsmith COMMAND --help` shows", _EVERYWHERE),
        ("exit status", {str(one.status): one.when for one in EXITS}),
    )


def group_help(group: str) -> str:
    """What `weightsmith locate --help` shows, and the like."""
    return _page(
        f"usage: weightsmith {group} COMMAND [FLAGS]",
        GROUPS[group],
        ("commands", ways(group)),
        ("flags", {"-h, --help": _FLAGS["-h, --help"]}),
        (f"flags of commands, beside their own, which `weightsmith {group} COMMAND --help` shows", _EVERYWHERE),
    )


def _page(usage: str, about: str, *tables: tuple[str, Mapping[str, str]]) -> str:
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    column = max(len(name) for _, table in tables for name in table) + 4
    lines = [usage, "", about]
    for title, table in tables:
        lines += ["", f"{title}:"]
        for name, what in table.items():
            first, *more = textwrap.wrap(what, max(width - column, 20)) or [""]
            lines.append(f"  {name}".ljust(column) + first)
            lines += [" " * column + line for line in more]
    return "\n".join(lines) + "\n"
