"""Training that is stopped anywhere goes on to the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from weightsmith.data.images import ImageSet
from weightsmith.delta import weights_hash
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.models import Model, create
from weightsmith.train import TrainOptions, fit, loop
from weightsmith.train.loop import Training

OPTIONS = TrainOptions(epochs=3, batch_size=16, lr=1e-2, augment="light")


@pytest.fixture
def parts(random_set: Callable[..., ImageSet]) -> tuple[ImageSet, ImageSet]:
    images = random_set(96)
    return images.subset(range(70)), images.subset(range(70, 96))


def fresh(dropout: float = 0.2) -> Model:
    """A small ViT with dropout, so that the random state matters."""
    model = create("small", ("a", "b", "c", "d"), seed=0)
    for module in model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model


@pytest.mark.parametrize("stop_at", [1, 4, 5, 7, 13])
def test_a_training_stopped_at_any_step_resumes_to_the_same_weights(
    parts: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Five steps an epoch; a checkpoint after every step, as in a long epoch."""
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)
    straight = fresh()
    history = fit(straight, *parts, OPTIONS, tmp_path / "straight.pt")
    steps = 0
    real = Training._step

    def dying(self: Training, epoch: int, step: int) -> None:
        nonlocal steps
        if steps == stop_at:
            raise KeyboardInterrupt
        steps += 1
        real(self, epoch, step)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(fresh(), *parts, OPTIONS, tmp_path / "stopped.pt")
    torch.manual_seed(999)  # another process has another random state
    resumed = fresh()
    again = fit(resumed, *parts, OPTIONS, tmp_path / "stopped.pt", resume=True)
    assert weights_hash(resumed) == weights_hash(straight)
    keys = ("epoch", "train_loss", "train_accuracy", "val_accuracy")
    assert [[row[k] for k in keys] for row in again.rows] == [[row[k] for k in keys] for row in history.rows]


def test_the_best_epoch_is_kept(parts: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    from weightsmith.measure import predict

    model = fresh()
    history = fit(model, *parts, OPTIONS, tmp_path / "c.pt")
    best = max(row["val_accuracy"] for row in history.rows)
    assert predict(model, parts[1]).accuracy == best == history.rows[history.best_epoch - 1]["val_accuracy"]
    assert not model.module.training


def test_a_finished_training_is_loaded_and_other_ones_are_refused(
    parts: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    model = fresh()
    fit(model, *parts, OPTIONS, tmp_path / "c.pt")
    again = fresh()
    assert fit(again, *parts, OPTIONS, tmp_path / "c.pt").skipped
    assert weights_hash(again) == weights_hash(model)
    for other, told in (
        (
            (fresh(), parts[0], parts[1], TrainOptions(epochs=3, batch_size=16, lr=2e-2, augment="light")),
            "lr 0.01 instead",
        ),
        ((fresh(), parts[0].subset(range(69)), parts[1], OPTIONS), "other training images"),
        ((create("small", ("a", "b", "c", "d"), seed=1), *parts, OPTIONS), "another model"),
    ):
        with pytest.raises(WeightsmithError, match=told):
            fit(*other, tmp_path / "c.pt")


def test_a_loss_that_is_no_number_is_told(parts: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    model = fresh()
    with torch.no_grad():
        model.module.classifier.weight.fill_(float("inf"))
    with pytest.raises(WeightsmithError, match="--lr"):
        fit(model, *parts, OPTIONS, tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


def test_a_sealed_part_is_no_training_data(parts: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    with pytest.raises(HeldOutError):
        fit(fresh(), parts[0].seal(), parts[1], OPTIONS, tmp_path / "c.pt")


def test_the_schedule_warms_up_and_ends_near_zero(parts: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    history = fit(fresh(), *parts, TrainOptions(epochs=4, batch_size=16, lr=1e-2), tmp_path / "c.pt")
    rates = [row["lr"] for row in history.rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.02 * 1e-2
