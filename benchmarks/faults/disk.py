"""Every command on a disk that is full at one write after another: is each told, and does it come to the same files at last?

    sudo python benchmarks/faults/disk.py            # mounts a tmpfs, which root alone may do

Each command is run twice where there is room. Then it is called on a disk (tmpfs) that has next to no room, which grows by a
random amount whenever the command has found it full, until the command comes to its end. Each time it has to end with status 1
and one sentence that says so, and to leave no temporary file; at the end its files have to be those of the undisturbed runs.
Results, cache and temporary folder lie on that disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from commands import Case, chosen, compared, ended, started, undisturbed
from rich.console import Console
from rich.table import Table

from benchmarks.shared import keep

BLOCK = 4096
"""Bytes by which a tmpfs counts."""

LEAST = 16 * BLOCK
"""Of the disk at the start."""


@dataclass
class Row:
    """What became of one command.

    Attributes:
        command: its name; kilobytes: of all that it writes; files: that were the same in both undisturbed runs.
        full: how often it found the disk full; untold: without a sentence that says so; places: files that were named.
        left: temporary files left; differing: files that came out other than undisturbed; failed: it did not come to its end.
    """

    command: str
    kilobytes: int = 0
    files: int = 0
    full: int = 0
    untold: int = 0
    places: list[str] = field(default_factory=list)
    left: int = 0
    differing: int = 0
    failed: int = 0


@contextmanager
def disk(place: Path, room: int) -> Iterator[Path]:
    """A disk of its own at `place`, with room for so many bytes."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "weightsmith", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def used(place: Path) -> int:
    """Bytes that lie on a disk."""
    stands = os.statvfs(place)
    return (stands.f_blocks - stands.f_bfree) * stands.f_frsize


def grown(place: Path, bytes_: int) -> None:
    """Give a disk room for so many bytes beside what it holds."""
    size = used(place) + bytes_ // BLOCK * BLOCK + BLOCK
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


def written(place: Path) -> int:
    """Bytes of all that lies in a folder, whole blocks."""
    return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in place.rglob("*") if path.is_file())


def tried(case: Case, work: Path, stops: int, seed: int, console: Console) -> Row:
    """Call a command on a disk that grows until it ends."""
    row, whole = Row(case.name), undisturbed(case, work)
    row.files, total = len(whole.stable), written(work / "whole-0")
    row.kilobytes = total // 1024
    chance, words = random.Random(f"{case.name}/{seed}"), list(case.words)
    said = work / "said.txt"
    room, held = 0, 0
    with disk(work / "disk", min(LEAST, total // 2 // BLOCK * BLOCK)) as place:
        if case.begins is not None:
            grown(place, written(case.begins) + 64 * BLOCK)
            shutil.copytree(case.begins, place / "runs")
            grown(place, 0)
        for call in range(20 * stops):
            said.unlink(missing_ok=True)
            status = ended(started(words, place, said))
            if status == 0:
                break
            told = said.read_text(errors="replace")
            row.full += 1
            sentences = [line for line in told.splitlines() if line.startswith("error:")]
            good = status == 1 and len(sentences) == 1 and "full" in sentences[0] and "free some" in sentences[0]
            if not good or "Traceback" in told:
                row.untold += 1
                console.print(f"[red]{case.name}[/] call {call}: status {status}", told[-3000:], markup=False)
            row.places += [Path(name).name for name in re.findall(r"\S+/\S+", " ".join(sentences))]
            left = [path for path in place.rglob("*") if path.name.endswith((".tmp", ".old"))]
            left += list((place / "tmp").rglob("*"))
            if left:
                row.left += len(left)
                console.print(f"[red]{case.name}[/] call {call}: leaves", *map(str, left[:5]))
                for path in left:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            words = case.typed(place / "runs")
            # Where nothing was finished, the same room and more: a file larger than one draw would never fit.
            room = (room if used(place) <= held else 0) + chance.randrange(2 * total // stops)
            held = max(held, used(place))
            grown(place, room)
        else:
            row.failed += 1
        wrong, left_over = compared(whole, place)
        if wrong or left_over:
            row.differing += len(wrong) + len(left_over)
            console.print(f"[red]{case.name}[/]: differs {wrong[:5]}, left over {left_over[:5]}")
            shutil.copytree(place, work / f"kept-{case.name.replace(' ', '-')}", dirs_exist_ok=True)
    row.places = sorted(set(row.places))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=16, help="of each command, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-disk")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "disk.csv")
    given = parser.parse_args()
    work, console = given.work.absolute(), Console()
    rows = []
    for case in chosen(work, given.commands):
        row = tried(case, work, given.stops, given.seed, console)
        rows.append(row)
        console.print(
            f"{case.name}: full {row.full} times, {row.untold} untold, {row.left} left, {row.differing} differ"
        )
        keep(
            [vars(one) | {"places": json.dumps(one.places)} for one in rows],
            given.out.parent,
            given.out.stem,
            ("command",),
        )
    shown = ("command", "kilobytes", "files", "full", "untold", "left", "differing", "failed")
    table = Table(*shown, box=None)
    for row in rows:
        table.add_row(*(str(getattr(row, name)) for name in shown))
    console.print(table)


if __name__ == "__main__":
    main()
