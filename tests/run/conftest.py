"""A small run on the digits that the tests here share; it is made once a test process."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from weightsmith import cli
from weightsmith.data.factworld import FactWorld, fact_world
from weightsmith.models import save
from weightsmith.models.store import wrap
from weightsmith.report import plots
from weightsmith.run.knowledge import fact_run, facts

WNIDS = ("n02", "n01", "n03")
"""Classes of `photographs`."""

TINY = {
    "model_type": "vit",
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]
Once = Callable[[str, Callable[[Path], object]], Path]
"""The fixture `once` of all tests."""


def assert_refused(outcome: Outcome, words: list[str]) -> None:
    """One sentence that has these words, status 1, no traceback."""
    errors = [line for line in outcome.err.strip().splitlines() if line.startswith("error:")]
    assert outcome.status == 1, outcome
    assert len(errors) == 1, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in errors[0], errors[0]


def _blank_sheet() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (300, 200), "white").save(made, "PNG")
    return made.getvalue()


BLANK = _blank_sheet()


@pytest.fixture
def drawn() -> None:
    """For tests that look at pictures of their own runs."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of what one test does are blank sheets, unless it asks for `drawn`."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plots, "_png", lambda figure: BLANK)


@contextmanager
def undrawn() -> Iterator[None]:
    """Figures are blank sheets within: they would take longer than all the rest, and `tests/report` looks at them. For what is
    made once for many tests, none of which looks at them.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plots, "_png", lambda figure: BLANK)
        yield


@pytest.fixture
def weightsmith(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process: `weightsmith("run", "--stage", "data")`."""
    monkeypatch.setenv("COLUMNS", "400")  # so that no message is wrapped

    def run(*arguments: object) -> Outcome:
        status = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        seen = capsys.readouterr()
        return Outcome(status, seen.out, seen.err)

    return run


def tiny_flags(folder: Path, runs: Path) -> list[str]:
    """Flags of a run that takes seconds: digits, a two-block ViT trained briefly, so that it makes errors."""
    model = folder / "tiny.json"
    model.write_text(json.dumps(TINY))
    flags = {
        "--data-path": "digits",
        "--val-ratio": 0.3,
        "--model": model,
        "--epochs": 6,
        "--lr": 3e-3,
        "--batch-size": 64,
        "--runs-dir": runs,
        "--max-samples": 4,
        "--num-ablations": 4,
        "--max-edits": 12,
        "--device": "cpu",
    }
    return [str(word) for pair in flags.items() for word in pair]


@pytest.fixture(scope="session")
def finished(once: Once) -> Path:
    """A finished run of all stages with two methods; do not write into it, copy it with `run_copy`."""

    def make(folder: Path) -> None:
        flags = tiny_flags(folder, folder / "runs")
        with undrawn():
            cli.main(["run", *flags, "--run-name", "base", "--edit-method", "alphaedit", "head", "--closed-form"])

    return once("finished", make) / "runs" / "base"


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "base"))


def stripes(path: Path, across: bool) -> Path:
    """Three classes of 8 x 8 grey images: a bright band at one of three places, under noise."""
    random = np.random.default_rng(int(across))
    entries = {}
    for part, count in (("train", 180), ("val", 60), ("test", 60)):
        labels = np.arange(count) % 3
        images = random.integers(0, 90, (count, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            band = image if across else image.T
            band[3 * label : 3 * label + 2] += 120
        entries |= {f"{part}_images": images, f"{part}_labels": labels[:, None]}
    np.savez(path, **entries)
    return path


@pytest.fixture(scope="session")
def tuned(finished: Path, once: Once) -> tuple[Path, dict[str, Path]]:
    """The digits run as the base, and two runs that were fine-tuned from it on stripes, with their data."""

    def make(folder: Path) -> None:
        for name in ("rows", "columns"):
            path = stripes(folder / f"{name}.npz", name == "rows")
            for stage in ("data", "train"):
                cli.main(
                    ["run", "--stage", stage, "--model", str(finished), "--data-path", str(path), "--held-out-from", "test",
                     "--epochs", "3", "--lr", "2e-3", "--batch-size", "32", "--runs-dir", str(folder / "runs"),
                     "--run-name", name, "--device", "cpu"]
                )  # fmt: skip

    folder = once("tuned", make)
    return folder / "runs", {name: folder / f"{name}.npz" for name in ("rows", "columns")}


@pytest.fixture
def tiny() -> Callable[[Path], list[str]]:
    """Flags of a tiny run in a folder."""
    return lambda folder: tiny_flags(folder, folder / "runs")


TINY_FACTS = {
    "model_type": "gpt2",
    "n_positions": 96,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 2,
    "n_inner": 96,
    "vocabulary": 420,
    "training": {"epochs": 2, "batch_size": 16, "lr": 6e-3, "weight_decay": 0.01, "length": 96},
}


def tiny_world(seed: int = 0) -> FactWorld:
    """A fact world of 30 people and 10 places."""
    return fact_world(seed, people=30, places=10)


@pytest.fixture(scope="session")
def small_world() -> Callable[..., FactWorld]:
    """`small_world(seed=0)`: the world that the tests here make."""
    return tiny_world


@pytest.fixture(scope="session")
def small_facts() -> Iterator[None]:
    """The fact world and its model are small ones while the tests run: trained in seconds, though they know less."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(facts, "fact_world", tiny_world)
        patched.setattr(fact_run, "fact_world", tiny_world)
        patched.setattr(facts, "presets", lambda _: {"facts": TINY_FACTS})
        yield


@pytest.fixture(scope="session")
def knowing(small_facts: None, once: Once) -> Path:
    """The run of `weightsmith facts` on the small world; do not write into it."""

    def make(runs: Path) -> None:
        with undrawn():
            cli.main(["facts", "--runs-dir", str(runs), "--run-name", "facts"])

    return once("knowing", make) / "facts"


def _fact(name: str, subject: str, rest: str, target: str, truth: str) -> dict[str, object]:
    return {
        "name": name,
        "prompt": f"{subject} {rest}",
        "subject": subject,
        "target": target,
        "truth": truth,
        "paraphrases": [f"It is known that {subject} {rest}"],
        "neighbours": [{"prompt": f"Dora {rest}", "answer": truth}],
    }


SPOKEN = [
    _fact("a", "Anna", "plays the", "flute", "oboe"),
    _fact("b", "Clara", "lives in", "Oslo", "Rome"),
    _fact("c", "Bert", "plays the", "drum", "flute"),
    _fact("d", "Emil", "was born in", "Rome", "Paris"),
    _fact("e", "Fanny", "lives in", "Paris", "Oslo"),
    _fact("f", "Gustav", "was born in", "Oslo", "Rome"),
]


@pytest.fixture(scope="session")
def talker(once: Once) -> Path:
    """The folder of `write_talker`."""
    return once("talker", write_talker)


def write_talker(folder: Path) -> Path:
    """A folder with `model/`, a small random GPT-2 with a tokenizer, `facts.json`, `text.txt` and quick `memit.yaml` and
    `finetune.yaml`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    lines = [f"{fact['prompt']} {fact[which]}." for fact in SPOKEN for which in ("truth", "target")]
    text = "\n".join(lines * 40)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>", pad_token="<end>", padding_side="left"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(fast), n_positions=64, n_embd=24, n_layer=3, n_head=2, n_inner=48, bos_token_id=0,
                eos_token_id=0, initializer_range=0.3,
            )
        )  # fmt: skip
    save(wrap(module.eval(), None, {}, "talker", fast), folder / "model")
    (folder / "facts.json").write_text(json.dumps(SPOKEN))
    (folder / "text.txt").write_text(text)
    quick = {"layers": [1], "steps": 12, "rounds": 1, "prefix_lengths": [[4, 1]]}
    (folder / "memit.yaml").write_text(yaml.safe_dump({"method": "memit", **quick}))
    (folder / "finetune.yaml").write_text(yaml.safe_dump({"method": "finetune", "lr": 1e-3, "steps": 10}))
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder laid out as Tiny-ImageNet: 8 train and 4 validation images a class."""
    root, random = tmp_path / "tiny-imagenet-3", np.random.default_rng(0)
    lines = []
    for label, wnid in enumerate(WNIDS):
        names = [f"train/{wnid}/images/{wnid}_{number}.JPEG" for number in range(8)]
        names += [f"val/images/val_{4 * label + number}.JPEG" for number in range(4)]
        lines += [f"{Path(name).name}\t{wnid}\t0\t0\t7\t7\n" for name in names if name.startswith("val")]
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tbow tie, bow-tie\nn03\tcliff\n")
    return root
