"""Every command killed at random moments and gone on with: does it come to the files of a run that nobody disturbed?

    python benchmarks/faults/kills.py --kills 200

Each command is run twice without a disturbance; the files that are the same then, byte by byte, are what a killed run has
to come to. The others hold times, and are listed. Then the command is killed (SIGKILL) at a random moment of its course, up
to four times, each time started again with --resume, and let go to its end. Children are forked from a process that has
everything imported, so that moments fall into the work rather than into imports.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers.models.gpt2.modeling_gpt2
import transformers.models.vit.modeling_vit  # noqa: F401
from rich.console import Console
from rich.table import Table

from tests.run.conftest import tiny_flags, write_talker
from weightsmith import cli
from weightsmith.files import write_csv

AGAIN = 4
"""Kills of one run, before it is let go to its end."""


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        name: of its row; words: what is typed; resumes: whether it takes --resume.
    """

    name: str
    words: tuple[str, ...]
    resumes: bool = True

    def typed(self) -> list[str]:
        """What is typed each time; --resume from the first on, since it is recorded among the options."""
        return [*self.words, *(["--resume"] if self.resumes else [])]


@dataclass
class Row:
    """What became of one command's trials."""

    command: str
    seconds: float = 0.0
    files: int = 0
    unstable: list[str] = field(default_factory=list)
    trials: int = 0
    kills: int = 0
    differing: int = 0
    failed: int = 0


def cases(base: Path, talker: Path) -> list[Case]:
    """Every command that works for longer than a moment."""
    tiny = tuple(tiny_flags(base, Path("runs")))
    small = str(base / "tiny.json")
    named = ("--runs-dir", "runs", "--run-name", "x", "--device", "cpu")
    model = ("--model", str(base / "runs" / "base"))
    quick = ("--data-path", "digits", "--max-samples", "8", "--no-heads")
    spoken = ("--model", str(talker / "model"), "--data-path", str(talker / "facts.json"))
    spoken += ("--preserve", str(talker / "text.txt"), "--hparams", str(talker / "memit.yaml"))
    memit = (*spoken, "--edit-method", "memit")
    return [
        Case("run", ("run", *tiny, "--run-name", "x", "--edit-method", "head", "--closed-form")),
        Case("baseline", ("baseline", "--data-path", "digits", "--model", small, "--epochs", "3", *named)),
        Case(
            "compress",
            ("compress", "--data-path", "digits", "--model", small, "--epochs", "2", "--batch-size", "64", "--rounds", "6",
             "--analysis-batches", "2", "--round-widths", "4", "--acdc-thresholds", "0.05", "--eap-keep-ratios", "0.6",
             "--study-images", "24", *named),
        ),
        Case("locate trace", ("locate", "trace", *model, *quick, *named)),
        Case("locate patch", ("locate", "patch", *model, *quick, "--corruption", "blur", *named)),
        Case("edit", ("edit", *memit, "--max-edits", "4", "--batch-size", "2", *named)),
        Case("compare", ("compare", *spoken, "--methods", "memit", "--batch-sizes", "1", "2", "--seeds", "0", "1", *named)),
        Case("ablate lora", ("ablate", "lora", *memit, "--ranks", "1", "4", "--fit-steps", "0", "--max-edits", "3", *named)),
        Case("artificial", ("artificial", "--coefficients", "0", "0.5", "1", "--epochs", "4", *named)),
        Case(
            "merge",
            ("merge", "--base", str(base / "runs" / "base" / "model"), "--models", str(base / "runs" / "base" / "edited"),
             "--out", "runs/x"),
            resumes=False,
        ),
        Case("export", ("export", "merged", str(base / "runs" / "base"), "--out", "runs/x"), resumes=False),
    ]  # fmt: skip


def started(words: list[str], place: Path) -> int:
    """The command in a child of its own in a folder of its own; its process."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.chdir(place)
        os.environ["WEIGHTSMITH_CACHE"] = str(place / "cache")
        with (place / "said.txt").open("a") as said, contextlib.redirect_stdout(said):
            os.dup2(said.fileno(), 2)
            try:
                cli.main(words)
                status = 0
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
    finally:
        os._exit(status)


def ended(child: int, within: float | None = None) -> int | None:
    """Its exit status; None where it was killed after `within` seconds."""
    if within is not None:
        until = time.monotonic() + within
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def digests(place: Path) -> dict[str, str]:
    """SHA-256 of every file that the command left."""
    top = place / "runs"
    return {
        str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


def emptied(place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def trial(case: Case, place: Path, seconds: float, chance: random.Random) -> tuple[int, int | None]:
    """(kills, the last exit status) of one run that is killed up to `AGAIN` times."""
    emptied(place)
    kills = 0
    for _ in range(AGAIN):
        status = ended(started(case.typed(), place), chance.uniform(0, seconds))
        if status is not None:
            return kills, status
        kills += 1
    return kills, ended(started(case.typed(), place))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all, spread over the commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-kills")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kills.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    work, console = emptied(given.work.absolute()), Console()
    base = emptied(work / "base")
    talker = write_talker(emptied(work / "talker"))
    made = ended(
        started(
            ["run", *tiny_flags(base, Path("runs")), "--run-name", "base", "--edit-method", "head", "--closed-form"],
            base,
        )
    )
    assert made == 0, (base / "said.txt").read_text()
    chosen = [case for case in cases(base, talker) if not given.commands or case.name in given.commands]
    rows = []
    for case in chosen:
        row = Row(case.name)
        found = []
        for number in range(2):
            place, began = emptied(work / f"whole-{number}"), time.monotonic()
            status = ended(started(case.typed(), place))
            assert status == 0, f"{case.name}: {(place / 'said.txt').read_text()[-2000:]}"
            row.seconds = round(time.monotonic() - began, 2)
            found.append(digests(place))
        stable = {name: mark for name, mark in found[0].items() if found[1].get(name) == mark}
        row.files, row.unstable = len(stable), sorted(set(found[0]) - set(stable))
        while row.kills < given.kills / len(chosen):
            chance = random.Random(f"{case.name}/{given.seed}/{row.trials}")
            kills, status = trial(case, work / "trial", row.seconds, chance)
            row.trials, row.kills = row.trials + 1, row.kills + kills
            after = digests(work / "trial")
            wrong = [name for name, mark in stable.items() if after.get(name) != mark]
            left = sorted(set(after) - set(found[0]))
            if status != 0 or wrong or left:
                row.failed += status != 0
                row.differing += status == 0
                console.print(
                    f"[red]{case.name}[/] trial {row.trials - 1}: status {status}, differs {wrong[:5]}, left over {left[:5]}"
                )
                shutil.copytree(
                    work / "trial", work / f"kept-{case.name.replace(' ', '-')}-{row.trials - 1}", dirs_exist_ok=True
                )
        rows.append(row)
        console.print(
            f"{case.name}: {row.kills} kills in {row.trials} runs, {row.differing} differ, {row.failed} failed"
        )
    table = Table("command", "seconds", "files", "runs", "kills", "differing", "failed", box=None)
    for row in rows:
        table.add_row(
            *map(str, (row.command, row.seconds, row.files, row.trials, row.kills, row.differing, row.failed))
        )
    console.print(table)
    if not given.commands:
        told = [{**vars(row), "unstable": json.dumps(row.unstable)} for row in rows]
        write_csv(given.out, told)


if __name__ == "__main__":
    main()
