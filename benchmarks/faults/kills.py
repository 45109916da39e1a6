"""Every command killed at random moments and gone on with: does it come to the files of a run that nobody disturbed?

    python benchmarks/faults/kills.py --kills 200

Each command is run twice without a disturbance; the files that are the same then, byte by byte, are what a killed run has
to come to. The others hold times, and are listed; their tables have to have the same rows, numbers left aside. Then the command
is killed (SIGKILL) at a random moment of its course, up to eight times, each time started again as the documentation says
(--resume, --overwrite, `edits replay`), and let go to its end. Children are forked from a process that has everything
imported, so that moments fall into the work rather than into imports.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from commands import Case, begun, chosen, compared, ended, started, undisturbed
from rich.console import Console
from rich.table import Table

from benchmarks.shared import keep

AGAIN = 8
"""Kills of one run, before it is let go to its end."""


@dataclass
class Row:
    """What became of one command's trials.

    Attributes:
        command: its name; seconds: of an undisturbed run.
        files: that were the same in both undisturbed runs, byte by byte; unstable: those that were not.
        alike: of the unstable ones, tables that had the same rows both times, numbers left aside.
        trials: runs that were killed; kills: of all of them.
        differing: runs that came to something else; failed: that did not come to an end.
    """

    command: str
    seconds: float = 0.0
    files: int = 0
    alike: int = 0
    unstable: list[str] = field(default_factory=list)
    trials: int = 0
    kills: int = 0
    differing: int = 0
    failed: int = 0


def trial(case: Case, place: Path, seconds: float, chance: random.Random) -> tuple[int, int | None]:
    """(kills, the last exit status) of one run that is killed up to `AGAIN` times."""
    begun(case, place)
    words = list(case.words)
    for kills in range(AGAIN):
        status = ended(started(words, place), chance.uniform(0, seconds))
        if status is not None:
            return kills, status
        words = case.typed(place / "runs")
    return AGAIN, ended(started(words, place))


def tried(case: Case, work: Path, kills: int, seed: int, console: Console, fresh: bool) -> Row:
    """Kill a command until it was killed so many times; what became of it."""
    whole = undisturbed(case, work, fresh)
    row = Row(case.name, whole.seconds, len(whole.stable), len(whole.alike), sorted(whole.names - set(whole.stable)))
    while row.kills < kills:
        chance = random.Random(f"{case.name}/{seed}/{row.trials}")
        killed, status = trial(case, work / "trial", row.seconds, chance)
        row.trials, row.kills = row.trials + 1, row.kills + killed
        wrong, left = compared(whole, work / "trial")
        if status != 0 or wrong or left:
            row.failed += status != 0
            row.differing += status == 0
            told = f"status {status}, differs {wrong[:5]}, left over {left[:5]}"
            console.print(f"[red]{case.name}[/] trial {row.trials - 1}: {told}")
            kept = work / f"kept-{case.name.replace(' ', '-')}-{row.trials - 1}"
            shutil.copytree(work / "trial", kept, dirs_exist_ok=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all, spread over the commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--fresh", action="store_true", help="the second undisturbed run in a new Python, whose hashes differ"
    )
    parser.add_argument("--commands", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-kills")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kills.csv")
    given = parser.parse_args()
    work, console = given.work.absolute(), Console()
    cases = chosen(work, given.commands)
    rows: list[Row] = []
    for case in cases:
        row = tried(case, work, math.ceil(given.kills / len(cases)), given.seed, console, given.fresh)
        rows.append(row)
        told = f"{row.kills} kills in {row.trials} runs of {row.seconds} s, {row.differing} differ, {row.failed} failed"
        console.print(f"{case.name}: {told}")
        keep(
            [vars(one) | {"unstable": json.dumps(one.unstable)} for one in rows],
            given.out.parent,
            given.out.stem,
            ("command",),
        )
    shown = ("command", "seconds", "files", "alike", "trials", "kills", "differing", "failed")
    table = Table(*shown, box=None)
    for row in rows:
        table.add_row(*(str(getattr(row, name)) for name in shown))
    console.print(table)
    console.print(
        f"{sum(row.kills for row in rows)} kills, {sum(row.differing for row in rows)} differ, "
        f"{sum(row.failed for row in rows)} failed"
    )


if __name__ == "__main__":
    main()
