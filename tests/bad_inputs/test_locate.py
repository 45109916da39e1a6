"""`weightsmith locate` on pairs, models and folders that do not fit: one sentence, and nothing left behind."""

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

from tests.bad_inputs.conftest import perfect
from weightsmith.errors import WeightsmithError
from weightsmith.models import create, save
from weightsmith.run.locate.command import check_options
from weightsmith.run.options.locate import TraceOptions

BLUR = ("--data-path", "digits", "--corruption", "blur", "--window", "1")

Refused = Callable[..., str]


@pytest.fixture
def assert_refused(weightsmith, finished: Path, tmp_path: Path) -> Refused:
    """`assert_refused("trace", *flags)`: the sentence with which the command ended, on the finished run's model or another."""

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
def test_pairs_of_different_size(
    assert_refused: Refused, tmp_path: Path, other: dict[str, int], words: list[str]
) -> None:
    first, second = pairs(tmp_path / "a.npz"), pairs(tmp_path / "b.npz", 1, **other)
    assert_refused("patch", "--data-path", first, "--corrupted-from", second, "--select", "all", words=tuple(words))


def test_pairs_that_do_not_differ(assert_refused: Refused, tmp_path: Path) -> None:
    first, second = pairs(tmp_path / "a.npz"), pairs(tmp_path / "b.npz")
    assert_refused("patch", "--data-path", first, "--corrupted-from", second, "--select", "all", words=("--min-gap",))


def test_a_second_data_set_without_the_part(assert_refused: Refused, tmp_path: Path) -> None:
    first = pairs(tmp_path / "a.npz")
    words = ("--corrupted-from digits", "'val'")
    assert_refused("patch", "--data-path", first, "--corrupted-from", "digits", "--select", "all", words=words)


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"sites": ("resid.uot",)}, {"tokens": ("clss",)}, {"sites": ()}])
def test_a_place_that_no_model_has_is_refused_before_one_is_trained(asked: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(WeightsmithError, match=r"--sites|--tokens"):
        check_options(TraceOptions(data_path="digits", model="auto", **asked))


def test_a_network_without_tokens(assert_refused: Refused, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    save(tiny_model("mlp", classes=10), tmp_path / "mlp")
    mlp = tmp_path / "mlp"
    assert_refused("trace", model=mlp, words=("no patch tokens", "corrupt the pixels"))
    assert_refused("astra", model=mlp, words=("no patch tokens",))
    every = (*BLUR, "--select", "all")
    assert_refused("patch", *every, model=mlp, words=("--sites attn.out", "resid.out"))
    assert_refused("patch", *every, "--sites", "resid.out", "--tokens", "cls", model=mlp, words=("--tokens cls",))
    assert_refused("patch", *every, "--sites", "resid.out", "--sever", "mlp.out", model=mlp, words=("--sever mlp.out",))


def test_other_classes_than_the_data(assert_refused: Refused, tmp_path: Path) -> None:
    save(create("digits", ("a", "b", "c"), 0, channels=1), tmp_path / "three")
    for command in ("trace", "astra"):
        assert_refused(command, model=tmp_path / "three", words=("3 classes", "10"))


def test_a_model_without_errors(assert_refused: Refused, tmp_path: Path) -> None:
    perfect(tmp_path / "perfect")
    labels = np.arange(20, dtype=np.uint8) % 2
    images = np.where(labels[:, None, None] == 1, 255, 0).astype(np.uint8) * np.ones((20, 8, 8), np.uint8)
    np.savez(tmp_path / "easy.npz", train_images=images, train_labels=labels[:, None])
    flags = ("--data-path", tmp_path / "easy.npz", "--sites", "resid.out", "--window", "1", "--corruption", "blur")
    assert_refused(
        "patch", *flags, "--select", "errors", model=tmp_path / "perfect", words=("no errors", "--select all")
    )


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
def test_a_damaged_model(assert_refused: Refused, finished: Path, tmp_path: Path, kind: str) -> None:
    model = Path(shutil.copytree(finished / "model", tmp_path / "broken"))
    DAMAGE[kind](model)
    assert_refused("trace", model=model, words=(str(model),))


# --- prompts --------------------------------------------------------------------------------------------------------


def test_images_and_texts_are_told_apart(assert_refused: Refused, texts: Path, tmp_path: Path) -> None:
    llama, ids = texts / "llama", texts / "ids.json"
    assert_refused("patch", "--data-path", ids, model=llama, words=("pairs of images", "locate trace"))
    assert_refused("astra", "--data-path", ids, model=llama, words=("reads no images",))
    assert_refused("trace", model=llama, words=("--data-path digits", "JSON"))
    assert_refused("trace", "--data-path", pairs(tmp_path / "a.npz"), model=llama, words=("a.npz", "JSON"))
    assert_refused("trace", "--data-path", tmp_path / "absent.json", model=llama, words=("absent.json",))
    assert_refused("trace", "--data-path", ids, words=("--data-path", "ids.json"))


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


def test_a_folder_that_cannot_be_written(
    assert_refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rights do not stop an administrator, so the refusal itself is made."""
    real = os.mkdir

    def read_only(path: Any, *more: Any) -> None:
        if str(path).startswith(str(tmp_path / "runs")):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        real(path, *more)

    monkeypatch.setattr(os, "mkdir", read_only)
    assert_refused("patch", *BLUR, words=(str(tmp_path / "runs"), "choose another folder"))


def test_markup_in_a_message_is_told_as_it_is(assert_refused: Refused, tmp_path: Path) -> None:
    assert_refused("patch", "--data-path", tmp_path / "[bold]scans[/].npz", words=("[bold]scans[/].npz",))
