"""What `kills.py` and `disk.py` try: every command that works for longer than a moment, in a child of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers.models.gpt2.modeling_gpt2
import transformers.models.vit.modeling_vit  # noqa: F401

from tests.run.conftest import TINY_FACTS, tiny_flags, tiny_world, write_talker
from weightsmith import cli
from weightsmith.run.knowledge import fact_run, facts

Words = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        name: of its row; words: what is typed.
        again: what is typed after a kill, by what that left in the folder of runs; without it the words once more.
        begins: a folder of runs that it begins with; None begins with none.
    """

    name: str
    words: Words
    again: Callable[[Path], Words] | None = None
    begins: Path | None = None

    def typed(self, runs: Path) -> list[str]:
        """What is typed after a kill that left these runs."""
        return list(self.words if self.again is None else self.again(runs))


def chosen(work: Path, names: Sequence[str]) -> list[Case]:
    """The cases of these names, all without any; what they begin with is made in `work`, which is emptied before."""
    _set_up()
    shutil.rmtree(work, ignore_errors=True)
    base, talker = work / "base", work / "talker"
    base.mkdir(parents=True)
    talker.mkdir()
    write_talker(talker)
    (talker / "other.txt").write_text("Rain fell on the harbour, and nobody came to the market that day.\n" * 120)
    for number, name in enumerate(("one", "two")):
        rows, draw = ["a,b,c,d,e,f,g,h,label"], random.Random(number)
        for row in range(300):
            entries = [f"{draw.gauss(row % 3 * (column == number), 1):.4f}" for column in range(8)]
            rows.append(",".join([*entries, str(row % 3)]))
        (talker / f"{name}.csv").write_text("\n".join(rows) + "\n")
    _made(
        ["run", *tiny_flags(base, Path("runs")), "--run-name", "base", "--edit-method", "head", "--closed-form"], base
    )
    spoken = ["--model", talker / "model", "--data-path", talker / "facts.json", "--preserve", talker / "text.txt"]
    spoken += ["--hparams", talker / "memit.yaml", "--edit-method", "memit", "--runs-dir", "runs", "--run-name", "x"]
    _made(["edit", *map(str, spoken), "--max-edits", "6", "--batch-size", "2", "--device", "cpu"], talker)
    return [case for case in _cases(base, talker, talker / "runs") if not names or case.name in names]


def _set_up() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    facts.fact_world = fact_run.fact_world = tiny_world  # type: ignore[attr-defined]
    facts.presets = lambda _: {"facts": TINY_FACTS | {"training": TINY_FACTS["training"] | {"epochs": 3}}}  # type: ignore[attr-defined, operator]


def _made(words: list[str], place: Path) -> None:
    assert ended(started(words, place)) == 0, (place / "said.txt").read_text()


def _cases(base: Path, talker: Path, streamed: Path) -> list[Case]:
    """Every command that works for longer than a moment.

    Args:
        base: holds `runs/base`, a corrected classifier; talker: of `write_talker`.
        streamed: holds `x`, a run of `edit --batch-size`.
    """
    tiny = tuple(tiny_flags(base, Path("runs")))
    small = str(base / "tiny.json")
    at = ("--runs-dir", "runs", "--run-name", "x")
    named = (*at, "--device", "cpu", "--resume")  # from the first on, since it is recorded among the options
    run = base / "runs" / "base"
    model = ("--model", str(run))
    quick = ("--data-path", "digits", "--max-samples", "8", "--no-heads")
    spoken = ("--model", str(talker / "model"), "--data-path", str(talker / "facts.json"))
    spoken += ("--preserve", str(talker / "text.txt"), "--hparams", str(talker / "memit.yaml"))
    memit = (*spoken, "--edit-method", "memit")
    judged = (*spoken[:4], "--preserve", str(talker / "other.txt"), *spoken[6:], "--edit-method", "memit")
    merge = (
        "merge",
        "--base",
        str(run / "model"),
        "--models",
        str(run / "edited"),
        "--out",
        "runs/x",
        "--device",
        "cpu",
    )
    search = ("--data-path", "digits", "--coefficients", "0", "0.5", "1", "--judging-images", "60")
    found = [
        Case("run", ("run", *tiny, *named, "--edit-method", "head", "--closed-form")),
        Case("run, two editors", ("run", *tiny, *named, "--edit-method", "patcher", "alphaedit")),
        Case("baseline", ("baseline", "--data-path", "digits", "--model", small, "--epochs", "10", *named)),
        Case(
            "compress",
            ("compress", "--data-path", "digits", "--model", small, "--epochs", "2", "--batch-size", "64", "--rounds", "6",
             "--analysis-batches", "2", "--round-widths", "4", "--acdc-thresholds", "0.05", "--eap-keep-ratios", "0.6",
             "--study-images", "24", *named),
        ),
        Case("locate trace", ("locate", "trace", *model, *quick, *named)),
        Case("locate patch", ("locate", "patch", *model, *quick, "--corruption", "blur", *named)),
        Case(
            "locate attribution",
            ("locate", "attribution", *model, *quick, "--corruption", "blur", "--audit", "4", "--verify", "5", *named),
        ),
        Case("locate astra", ("locate", "astra", *model, *quick[:4], "--masks", "48", *named)),
        Case("edit", ("edit", *memit, "--max-edits", "4", "--batch-size", "2", *named)),
        Case("edit, trust", ("edit", *judged, "--max-edits", "4", "--batch-size", "1", "--trust-enable", *named)),
        Case("edit, two editors", ("edit", *spoken[:6], "--edit-method", "alphaedit", "head", "--max-edits", "4", *named)),
        Case("edit, adapters", ("edit", *memit, "--max-edits", "4", "--edit-mode", "lora_native", "--lora-rank", "2", *named)),
        Case("compare", ("compare", *spoken, "--methods", "memit", "--batch-sizes", "1", "2", "--seeds", "0", "1", *named)),
        Case(
            "compare, images",
            ("compare", *model, "--data-path", "digits", "--methods", "head", "alphaedit", "--batch-sizes", "2", "4",
             "--seeds", "0", *named),
        ),
        Case("ablate lora", ("ablate", "lora", *memit, "--ranks", "1", "4", "--fit-steps", "0", "--max-edits", "3", *named)),
        Case(
            "ablate replay",
            ("ablate", "replay", *memit, "--rates", "0.5", "--buffers", "4", "--strategies", "random", "recent", "--max-edits",
             "4", "--batch-size", "2", *named),
        ),
        Case(
            "artificial",
            ("artificial", "--coefficients", "0", "0.5", "1", "--epochs", "4", "--base-data", str(talker / "one.csv"),
             "--finetune-data", str(talker / "two.csv"), *named),
        ),
        Case("facts", ("facts", *named)),
        Case(
            "evaluate",
            ("evaluate", "--model-paths", str(run), str(run / "edited"), "--data-path", "digits", "--rounds", "6", *named),
        ),
        Case("merge", merge, lambda _: (*merge, "--overwrite")),
        Case("merge, searched", (*merge, *search), lambda _: (*merge, *search, "--overwrite")),
        *(_changing(name, words, streamed) for name, words in (
            ("edits undo", ("edits", "undo", "runs/x", "--batches", "2")),
            ("edits undo, all", ("edits", "undo", "runs/x", "--all")),
            ("edits remove", ("edits", "remove", "runs/x", "2")),
            ("edits replay", ("edits", "replay", "runs/x")),
        )),
    ]  # fmt: skip
    for form, name in (("merged", "x"), ("peft", "x"), ("onnx", "x/model.onnx")):
        words = ("export", form, str(run), "--out", f"runs/{name}", "--device", "cpu")
        found.append(Case(f"export {form}", words, lambda _, words=words: (*words, "--overwrite")))
    return found


def _changing(name: str, words: Words, streamed: Path) -> Case:
    """A command on a journal. What the journal has after a kill is done, and `edits replay` writes the results of it."""
    lines = len((streamed / "x" / "edits" / "journal.jsonl").read_text().splitlines())

    def again(runs: Path) -> Words:
        done = len((runs / "x" / "edits" / "journal.jsonl").read_text().splitlines()) > lines
        return ("edits", "replay", "runs/x") if done else words

    return Case(name, words, again, streamed)


def started(words: list[str], place: Path, said: Path | None = None) -> int:
    """The command in a child of its own in a folder of its own; its process.

    Args:
        said: where what it says goes; None takes `said.txt` in that folder.
    """
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.chdir(place)
        os.environ["WEIGHTSMITH_CACHE"] = str(place / "cache")
        with (said or place / "said.txt").open("a") as file, contextlib.redirect_stdout(file):
            os.dup2(file.fileno(), 2)
            with contextlib.suppress(OSError):
                (place / "tmp").mkdir(exist_ok=True)
            tempfile.tempdir = str(place / "tmp")
            try:
                cli.main(words)
                status = 0
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
                status = 1
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
    return {name: hashlib.sha256(content).hexdigest() for name, content in _contents(place)}


def outlines(place: Path) -> dict[str, str]:
    """SHA-256 of every table that the command left, without numbers, hashes and what follows from times: what rows it has."""
    return {
        name: hashlib.sha256(re.sub(rb"[-+]?[0-9a-f.]*[0-9][-+0-9a-f.]*|True|False", b"#", content)).hexdigest()
        for name, content in _contents(place)
        if name.endswith((".csv", ".jsonl", ".yaml")) and not name.endswith("events.jsonl")
    }


def _contents(place: Path) -> Iterator[tuple[str, bytes]]:
    top = place / "runs"
    yield from ((str(path.relative_to(top)), path.read_bytes()) for path in sorted(top.rglob("*")) if path.is_file())


def begun(case: Case, place: Path) -> Path:
    """A folder of its own to call the command in."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if case.begins is not None:
        shutil.copytree(case.begins, place / "runs")
    return place


def same(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    """What both have."""
    return {name: mark for name, mark in first.items() if second.get(name) == mark}


@dataclass(frozen=True)
class Whole:
    """What a command comes to where nobody disturbs it.

    Attributes:
        seconds: that it takes.
        names: of all its files; stable: those that were the same twice, with their SHA-256.
        alike: of the others, those that have the same outline twice, with its SHA-256.
    """

    seconds: float
    names: frozenset[str]
    stable: dict[str, str]
    alike: dict[str, str]


def undisturbed(case: Case, work: Path, fresh: bool = False) -> Whole:
    """Run a command twice, in `work/whole-0` and `work/whole-1`; the second time, if `fresh`, in a new Python."""
    found, outlined, seconds = [], [], 0.0
    for number in range(2):
        place, began = begun(case, work / f"whole-{number}"), time.monotonic()
        if number and fresh:
            told = json.dumps({"words": case.words, "place": str(place)})
            status = subprocess.run([sys.executable, __file__, told], check=False).returncode
        else:
            status = ended(started(list(case.words), place))
            seconds = max(seconds, round(time.monotonic() - began, 2))
        assert status == 0, f"{case.name}: {(place / 'said.txt').read_text()[-2000:]}"
        found.append(digests(place))
        outlined.append(outlines(place))
    stable = same(*found)
    alike = {name: mark for name, mark in same(*outlined).items() if name not in stable}
    return Whole(seconds, frozenset(found[0]), stable, alike)


def compared(whole: Whole, place: Path) -> tuple[list[str], list[str]]:
    """(files that are other than undisturbed, files that are not there undisturbed)."""
    after, outlined = digests(place), outlines(place)
    wrong = [name for name, mark in whole.stable.items() if after.get(name) != mark]
    wrong += [name for name, mark in whole.alike.items() if outlined.get(name) != mark]
    return wrong, sorted(set(after) - whole.names)


if __name__ == "__main__":  # the second run of `undisturbed`
    _set_up()
    _asked = json.loads(sys.argv[1])
    raise SystemExit(ended(started(_asked["words"], Path(_asked["place"]))))
