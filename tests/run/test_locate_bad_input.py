"""Bad input to `weightsmith locate` ends with one sentence that names the flag or file, status 1, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weightsmith.errors import WeightsmithError
from weightsmith.models import create, save
from weightsmith.models.mlp import MLPConfig, MLPForImageClassification
from weightsmith.models.store import wrap
from weightsmith.run.locate import check_options
from weightsmith.run.options.locate import TraceOptions

BLUR = ("--data-path", "digits", "--corruption", "blur", "--window", "1")

Refused = Callable[..., str]


@pytest.fixture
def refused(weightsmith, finished: Path, tmp_path: Path) -> Refused:
    """`refused("trace", *flags)`: the sentence with which the command ended, on the finished run's model or another."""

    def run(command: str, *flags: object, model: object = finished, words: tuple[str, ...] = ()) -> str:
        runs = tmp_path / "runs"
        given = ["--model", model, "--runs-dir", runs, "--max-samples", 3, "--device", "cpu", *flags]
        outcome = weightsmith("locate", command, *given)
        lines = outcome.err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error:")]
        assert outcome.status == 1, outcome
        assert len(errors) == 1, lines
        assert lines[-1] == errors[0]
        assert "Traceback" not in outcome.err
        assert not outcome.out
        assert not runs.is_dir() or not list(runs.iterdir()), "something was left behind"
        for word in words:
            assert word in errors[0], errors[0]
        return str(errors[0])

    return run


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("patch", ["--sites", "resid.uot"], ["--sites resid.uot", "resid.out"]),
        ("patch", ["--sites", "classifier.key"], ["--sites classifier.key"]),
        ("patch", ["--sites", "resid.mid"], ["resid.mid", "resid.out"]),
        ("patch", ["--sites"], ["--sites"]),
        ("patch", ["--tokens", "9999"], ["--tokens 9999", "0 to 4"]),
        ("patch", ["--tokens", "foo"], ["--tokens foo", "0,17,4:8"]),
        ("patch", ["--tokens", "0,2,"], ["--tokens 0,2,"]),
        ("patch", ["--tokens", "4:2"], ["--tokens 4:2"]),
        ("patch", ["--tokens", "subject_last"], ["--tokens subject_last", "prompts"]),
        ("patch", ["--window", "0"], ["--window 0", "4 layers"]),
        ("patch", ["--window", "5"], ["--window 5", "4 layers"]),
        ("patch", ["--map-samples", "-1"], ["--map-samples", "-1"]),
        ("patch", ["--map-site", "nowhere"], ["--map-site nowhere"]),
        ("patch", ["--map-site", "resid.mid"], ["--map-site resid.mid"]),
        ("patch", ["--token-block", "0"], ["--token-block"]),
        ("patch", ["--sever", "mlp.uot"], ["--sever mlp.uot", "mlp.out"]),
        ("patch", ["--min-gap", "1e9"], ["--min-gap", "largest gap"]),
        ("patch", ["--min-gap", "-1"], ["--min-gap"]),
        ("patch", ["--min-gap", "nan"], ["--min-gap"]),
        ("patch", ["--max-samples", "0"], ["--max-samples"]),
        ("patch", ["--batch-memory", "0"], ["--batch-memory"]),
        ("patch", ["--seed", "-1"], ["--seed"]),
        ("patch", ["--seed", str(2**64)], ["--seed"]),
        ("patch", ["--part", "tset"], ["--part tset", "train or val"]),
        ("patch", ["--part", "held_out"], ["--part held_out", "holds out", "train or val"]),
        ("patch", ["--corruption", "greyscale"], ["--corruption greyscale", "grey"]),
        ("patch", ["--strength", "0"], ["sigma", "0.1"]),
        ("patch", ["--corruption", "patch_shuffle", "--strength", "1"], ["--strength", "patch_shuffle"]),
        ("patch", ["--corruption", "noise", "--strength", "1"], ["--strength", "noise"]),
        ("patch", ["--corruption", "noise", "--corrupted-from", "digits"], ["--corrupted-from", "--corruption noise"]),
        ("patch", ["--corrupted-from", "digits", "--strength", "1"], ["--strength", "--corrupted-from"]),
        ("patch", ["--corrupted-from", "absent.npz"], ["--corrupted-from absent.npz"]),
        ("patch", ["--data-path", "digist"], ["--data-path", "digist", "digits"]),
        ("patch", ["--model", "nowhere"], ["nowhere"]),
        ("patch", ["--model", "auto", "--data-path", "scans.npz"], ["--model", "digits"]),
        ("patch", ["--model", "auto", "--part", "test"], ["--part test", "val"]),
        ("patch", ["--device", "abacus"], ["--device abacus"]),
        ("patch", ["--run-name", "a/b"], ["--run-name", "a/b"]),
        ("patch", ["--config", "absent.yaml"], ["--config absent.yaml"]),
        ("patch", ["--resume"], ["--resume", "--run-name"]),
        ("trace", ["--num-ablations", "0"], ["--num-ablations"]),
        ("trace", ["--noise", "0"], ["--noise"]),
        ("trace", ["--noise", "-1"], ["--noise"]),
        ("trace", ["--noise", "inf"], ["--noise"]),
        ("attribution", ["--steps", "0", "--method", "integrated"], ["--steps"]),
        ("attribution", ["--verify", "0"], ["--verify"]),
        ("attribution", ["--audit", "0"], ["--audit"]),
        ("astra", ["--masks", "1"], ["--masks"]),
        ("astra", ["--keep", "1"], ["--keep"]),
        ("astra", ["--alpha", "0"], ["--alpha"]),
        ("astra", ["--top", "0"], ["--top"]),
        ("astra", ["--strengths", "-1"], ["--strengths"]),
        ("astra", ["--strengths"], ["--strengths"]),
    ],
)
def test_bad_flags(refused: Refused, command: str, flags: list[str], words: list[str]) -> None:
    given = {"patch": BLUR, "attribution": BLUR[:-2]}.get(command, ())  # a screen has no windows
    refused(command, *given, *flags, words=tuple(words))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["patch", "--corruption", "blurr"], ["--corruption", "blurr", "blur"]),
        (["patch", "--metric", "klo"], ["--metric", "klo", "kl"]),
        (["patch", "--select", "wrong"], ["--select", "errors"]),
        (["trace", "--target", "both"], ["--target", "label"]),
        (["attribution", "--method", "magic"], ["--method", "integrated"]),
        (["trace", "--max-smaples", "3"], ["--max-smaples", "--max-samples"]),
        (["trac"], ["trace", "patch", "attribution", "astra"]),
        ([], ["trace", "patch", "attribution", "astra"]),
    ],
)
def test_what_is_no_choice_lists_the_choices(weightsmith, arguments: list[str], words: list[str]) -> None:
    outcome = weightsmith("locate", *arguments)
    assert outcome.status == 2
    assert all(word in outcome.err + outcome.out for word in words)
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metric: klo", ["kl"]),
        ("corruption: blurr", ["blur"]),
        ("sites: 3", ["sites"]),
        ("epochs: 3", ["epochs"]),
        ("max_samples: few", ["max_samples"]),
    ],
)
def test_bad_config(refused: Refused, tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "asked.yaml").write_text(text)
    refused("patch", "--config", tmp_path / "asked.yaml", words=("asked.yaml", *words))


# --- pairs ----------------------------------------------------------------------------------------------------------


def pairs(path: Path, seed: int = 0, n: int = 40, side: int = 8, channels: int = 1) -> Path:
    random, shape = np.random.default_rng(seed), (n, side, side, channels)
    images, labels = random.integers(0, 256, shape, dtype=np.uint8), (np.arange(n) % 10)[:, None].astype(np.uint8)
    images = images[..., 0] if channels == 1 else images
    np.savez(
        path,
        **{f"{part}_{what}": x for part in ("train", "val") for what, x in (("images", images), ("labels", labels))},
    )
    return path


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"side": 16}, ["one size", "(1, 8, 8)", "(1, 16, 16)"]),
        ({"channels": 3}, ["one size", "(3, 8, 8)"]),
        ({"n": 39}, ["--corrupted-from", "39", "40"]),
    ],
)
def test_pairs_of_different_size(refused: Refused, tmp_path: Path, other: dict[str, int], words: list[str]) -> None:
    first, second = pairs(tmp_path / "a.npz"), pairs(tmp_path / "b.npz", 1, **other)
    refused("patch", "--data-path", first, "--corrupted-from", second, "--select", "all", words=tuple(words))


def test_pairs_that_do_not_differ(refused: Refused, tmp_path: Path) -> None:
    first, second = pairs(tmp_path / "a.npz"), pairs(tmp_path / "b.npz")
    refused("patch", "--data-path", first, "--corrupted-from", second, "--select", "all", words=("--min-gap",))


def test_a_second_data_set_without_the_part(refused: Refused, tmp_path: Path) -> None:
    first = pairs(tmp_path / "a.npz")
    words = ("--corrupted-from digits", "'val'")
    refused("patch", "--data-path", first, "--corrupted-from", "digits", "--select", "all", words=words)


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"sites": ("resid.uot",)}, {"tokens": ("clss",)}, {"sites": ()}])
def test_a_place_that_no_model_has_is_refused_before_one_is_trained(asked: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(WeightsmithError, match=r"--sites|--tokens"):
        check_options(TraceOptions(data_path="digits", model="auto", **asked))


def test_a_network_without_tokens(refused: Refused, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    save(tiny_model("mlp", classes=10), tmp_path / "mlp")
    mlp = tmp_path / "mlp"
    refused("trace", model=mlp, words=("no patch tokens", "corrupt the pixels"))
    refused("astra", model=mlp, words=("no patch tokens",))
    every = (*BLUR, "--select", "all")
    refused("patch", *every, model=mlp, words=("--sites attn.out", "resid.out"))
    refused("patch", *every, "--sites", "resid.out", "--tokens", "cls", model=mlp, words=("--tokens cls",))
    refused("patch", *every, "--sites", "resid.out", "--sever", "mlp.out", model=mlp, words=("--sever mlp.out",))


def test_other_classes_than_the_data(refused: Refused, tmp_path: Path) -> None:
    save(create("digits", ("a", "b", "c"), 0, channels=1), tmp_path / "three")
    for command in ("trace", "astra"):
        refused(command, model=tmp_path / "three", words=("3 classes", "10"))


def test_a_model_without_errors(refused: Refused, tmp_path: Path) -> None:
    """Black images are class 0, white ones class 1."""
    module = MLPForImageClassification(MLPConfig(image_size=8, num_channels=1, hidden_sizes=(4,), num_labels=2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.blocks[0].linear.weight[0] = 1.0
        module.classifier.weight[1, 0] = 1.0
        module.classifier.bias[0] = 1.0
    save(wrap(module.eval(), None, {}, "perfect"), tmp_path / "perfect")
    labels = np.arange(20, dtype=np.uint8) % 2
    images = np.where(labels[:, None, None] == 1, 255, 0).astype(np.uint8) * np.ones((20, 8, 8), np.uint8)
    np.savez(tmp_path / "easy.npz", train_images=images, train_labels=labels[:, None])
    flags = ("--data-path", tmp_path / "easy.npz", "--sites", "resid.out", "--window", "1", "--corruption", "blur")
    refused("patch", *flags, "--select", "errors", model=tmp_path / "perfect", words=("no errors", "--select all"))


def cut_short(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])


def of_another_depth(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": cut_short,
    "no weights": lambda model: (model / "model.safetensors").unlink(),
    "no config": lambda model: (model / "config.json").unlink(),
    "config is no JSON": lambda model: (model / "config.json").write_text("{"),
    "another depth": of_another_depth,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_model(refused: Refused, finished: Path, tmp_path: Path, kind: str) -> None:
    model = Path(shutil.copytree(finished / "model", tmp_path / "broken"))
    DAMAGE[kind](model)
    refused("trace", model=model, words=(str(model),))


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any]) -> Path:
    """A folder with a Llama of 29 tokens that reads 16 of them, without a tokenizer."""
    folder = tmp_path_factory.mktemp("texts")
    save(tiny_model("llama"), folder / "llama")
    (folder / "ids.json").write_text(json.dumps([{"ids": [1, 5, 9, 2, 7], "subject": [1, 3]}]))
    return folder


BAD_PROMPTS: dict[str, tuple[object, list[str]]] = {
    "no JSON": ("{", ["no JSON file", '"subject": [first, end]']),
    "no list": ({"prompt": "a"}, ["no list of prompts"]),
    "none": ([], ["no list of prompts"]),
    "no record": (["a"], ["record 0"]),
    "no subject": ([{"prompt": "Ada was born in"}], ["record 0", '"subject"']),
    "subject is no text": ([{"prompt": "Ada was born in", "subject": 3}], ["record 0"]),
    "absent subject": ([{"prompt": "Ada was born in", "subject": "Bob"}], ["'Bob'", "'Ada was born in'", "record 0"]),
    "text without a tokenizer": ([{"prompt": "Ada was born in", "subject": "Ada"}], ["tokenizer", "ids"]),
    "no ids": ([{"ids": [], "subject": [0, 1]}], ["record 0", '"ids"']),
    "fractions": ([{"ids": [1.5, 2], "subject": [0, 1]}], ["record 0", "whole numbers"]),
    "digits in a text": ([{"ids": "123", "subject": [0, 1]}], ["record 0", "whole numbers"]),
    "ids without subject": ([{"ids": [1, 2]}], ["record 0", '"subject": [first, end]']),
    "negative id": ([{"ids": [1, -2], "subject": [0, 1]}], ["record 0", "from 0"]),
    "negative target": ([{"ids": [1, 2], "subject": [0, 1], "target": -2}], ["record 0", '"target"']),
    "beyond the vocabulary": ([{"ids": [1, 29], "subject": [0, 1]}], ["29"]),
    "target beyond it": ([{"ids": [1, 2], "subject": [0, 1], "target": 29}], ["29"]),
    "subject outside": ([{"ids": [1, 2], "subject": [0, 3]}], ["0 to 3 of 2"]),
    "empty subject": ([{"ids": [1, 2], "subject": [1, 1]}], ["1 to 1 of 2"]),
    "too long": ([{"ids": [1] * 17, "subject": [0, 1]}], ["17 tokens", "16"]),
}


@pytest.mark.parametrize("kind", BAD_PROMPTS)
def test_bad_prompts(refused: Refused, texts: Path, tmp_path: Path, kind: str) -> None:
    content, words = BAD_PROMPTS[kind]
    path = tmp_path / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    refused("trace", "--data-path", path, model=texts / "llama", words=tuple(words))


def test_images_and_texts_are_told_apart(refused: Refused, texts: Path, tmp_path: Path) -> None:
    llama, ids = texts / "llama", texts / "ids.json"
    refused("patch", "--data-path", ids, model=llama, words=("pairs of images", "locate trace"))
    refused("astra", "--data-path", ids, model=llama, words=("reads no images",))
    refused("trace", model=llama, words=("--data-path digits", "JSON"))
    refused("trace", "--data-path", pairs(tmp_path / "a.npz"), model=llama, words=("a.npz", "JSON"))
    refused("trace", "--data-path", tmp_path / "absent.json", model=llama, words=("absent.json",))
    refused("trace", "--data-path", ids, words=("--data-path", "ids.json"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tokens", "cls"], ["--tokens cls", "no CLS", "last"]),
        (["--tokens", "patches"], ["--tokens patches", "no CLS"]),
        (["--tokens", "each"], ["--tokens each", "images"]),
        (["--tokens", "0,9"], ["token 9", "0 to 4"]),
        (["--window", "4"], ["--window 4", "3 layers"]),
        (["--map-site", "nowhere"], ["--map-site nowhere"]),
        (["--sever", "attn.z"], ["--sever attn.z"]),
        (["--noise", "1e-9"], ["--min-gap"]),
    ],
)
def test_bad_flags_for_prompts(refused: Refused, texts: Path, flags: list[str], words: list[str]) -> None:
    given = ("--data-path", texts / "ids.json", "--num-ablations", 2)
    refused("trace", *given, *flags, model=texts / "llama", words=tuple(words))


# --- places that cannot be written ----------------------------------------------------------------------------------


def test_a_file_where_a_folder_should_be(weightsmith, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    given = ["--model", finished, "--max-samples", 3, *BLUR, "--no-heads", "--map-samples", 0]
    for flags in (
        ["--runs-dir", tmp_path / "taken"],
        ["--runs-dir", tmp_path / "r", "--checkpoint-dir", tmp_path / "taken"],
    ):
        outcome = weightsmith("locate", "patch", *given, *flags)
        assert outcome.status == 1
        assert "taken" in outcome.err
        assert "Traceback" not in outcome.err
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_folder_that_cannot_be_written(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights do not stop an administrator, so the refusal itself is made."""
    real = os.mkdir

    def read_only(path: Any, *more: Any) -> None:
        if str(path).startswith(str(tmp_path / "runs")):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        real(path, *more)

    monkeypatch.setattr(os, "mkdir", read_only)
    refused("patch", *BLUR, words=(str(tmp_path / "runs"), "choose another folder"))


def test_markup_in_a_message_is_told_as_it_is(refused: Refused, tmp_path: Path) -> None:
    refused("patch", "--data-path", tmp_path / "[bold]scans[/].npz", words=("[bold]scans[/].npz",))
