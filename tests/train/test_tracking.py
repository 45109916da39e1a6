"""What trackers are told of a training: TensorBoard's files are read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.train import TrainOptions, fit, tracking
from weightsmith.train.tracking import log_epoch, tracked

NEEDED = "needs accelerate and tensorboard: pip install 'weightsmith[trackers]'"


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Curve -> (step, value), from the event files below a folder."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=NEEDED)
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        events = reader.EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return found


@pytest.fixture
def trained(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet], tmp_path: Path
) -> Callable[..., list[dict[str, float]]]:
    """`trained(checkpoint, epochs=3)`: the rows of a short training."""

    def go(checkpoint: str = "checkpoint.pt", epochs: int = 3) -> list[dict[str, float]]:
        options = TrainOptions(epochs=epochs, batch_size=16, lr=1e-3)
        train, val = random_set(32), random_set(16, seed=1, part="val")
        return list(fit(tiny_model("mlp"), train, val, options, tmp_path / checkpoint, resume=True).rows)

    return go


def test_tensorboard_gets_every_epoch(trained: Callable[..., list[dict[str, float]]], tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason=NEEDED)
    with tracked(("tensorboard",), tmp_path / "run", {"lr": 1e-3, "edit_layers": (1, 2), "config": None}):
        rows, other = trained(), trained("finetuned.pt", epochs=1)
    told = curves(tmp_path / "run" / "trackers")
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
        assert [step for step, _ in told[name]] == [1, 2, 3]
        assert [value for _, value in told[name]] == pytest.approx([row[name] for row in rows], rel=1e-5)
    assert told["finetuned/train_loss"] == [(1, pytest.approx(other[0]["train_loss"], rel=1e-5))]
    assert list((tmp_path / "run" / "trackers").rglob("hparams.yml"))


def test_a_training_that_is_there_is_told_whole(trained: Callable[..., list[dict[str, float]]], tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason=NEEDED)
    rows = trained()
    with tracked(("tensorboard",), tmp_path / "run", {}):
        trained()
    told = curves(tmp_path / "run" / "trackers")
    assert [value for _, value in told["train_loss"]] == pytest.approx([row["train_loss"] for row in rows], rel=1e-5)


def test_nothing_is_told_outside(tmp_path: Path) -> None:
    with tracked((), tmp_path, {}):
        log_epoch({"epoch": 1, "train_loss": 0.5}, tmp_path / "checkpoint.pt")
    assert not list(tmp_path.iterdir())
    pytest.importorskip("accelerate", reason=NEEDED)
    with pytest.raises(ArithmeticError), tracked(("tensorboard",), tmp_path / "run", {}):
        raise ArithmeticError
    before = curves(tmp_path / "run")
    log_epoch({"epoch": 1, "train_loss": 0.5}, tmp_path / "checkpoint.pt")
    assert curves(tmp_path / "run") == before


def test_trackers_that_are_not_there_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason=NEEDED)
    for names, told in (
        (("tensorbord",), r"--tracker tensorbord is no tracker .*did you mean 'tensorboard'"),
        (("comet_ml",), r"--tracker comet_ml needs a package that is missing: pip install comet_ml"),
        (("tensorboard", "tensorboard"), r"--tracker names one twice"),
    ):
        with pytest.raises(WeightsmithError, match=told), tracked(names, tmp_path, {}):
            pass
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(WeightsmithError, match=r"pip install 'weightsmith\[trackers\]'"):
        tracking.check_trackers(("tensorboard",))
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: Any = pytest.importorskip("accelerate.tracking", reason=NEEDED)

    class Locked(known.GeneralTracker):
        name, requires_logging_directory, tracker = "tensorboard", False, None

        def __init__(self, run_name: str) -> None:
            super().__init__()
            raise PermissionError("no login")

    monkeypatch.setitem(known.LOGGER_TYPE_TO_CLASS, "tensorboard", Locked)
    told = pytest.raises(WeightsmithError, match=r"--tracker tensorboard cannot be opened \(no login\): log in")
    with told, tracked(("tensorboard",), tmp_path, {}):
        pass
