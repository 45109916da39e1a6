"""Recovery by distillation: what it minimises, that it never harms on validation images, and that it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from weightsmith.data.images import ImageSet
from weightsmith.delta import weights_hash
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.measure import predict
from weightsmith.models import Model
from weightsmith.train import DistillOptions, distill, loop
from weightsmith.train.loop import Training

OPTIONS = DistillOptions(epochs=3, batch_size=16, lr=3e-3)


@pytest.fixture
def parts(random_set: Callable[..., ImageSet]) -> tuple[ImageSet, ImageSet]:
    images = random_set(96)
    return images.subset(range(64)), images.subset(range(64, 96))


@pytest.fixture
def pair(tiny_model: Callable[..., Model]) -> Callable[[], tuple[Model, Model]]:
    """A teacher, and a model that is near it."""

    def make() -> tuple[Model, Model]:
        teacher, student = tiny_model("vit"), tiny_model("vit")
        with torch.no_grad():
            generator = torch.Generator().manual_seed(5)
            for parameter in student.module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return teacher, student

    return make


def divergence(teacher: Model, student: Model, images: ImageSet, temperature: float = 1.0) -> float:
    p, q = (predict(one, images).logits.double() / temperature for one in (teacher, student))
    return float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean())


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.0), (2.0, 0.0), (1.5, 0.3)])
def test_the_first_loss_is_what_one_computes_by_hand(
    pair: Callable[[], tuple[Model, Model]],
    parts: tuple[ImageSet, ImageSet],
    tmp_path: Path,
    temperature: float,
    share: float,
) -> None:
    teacher, student = pair()
    wanted = (1 - share) * temperature**2 * divergence(teacher, student, parts[0], temperature)
    seen = predict(student, parts[0])
    wanted += share * float(F.cross_entropy(seen.logits, seen.labels))
    options = DistillOptions(epochs=1, batch_size=64, lr=1e-8, temperature=temperature, label_weight=share)
    history = distill(student, teacher, *parts, options, tmp_path / "one.pt")
    assert history.rows[1]["train_loss"] == pytest.approx(wanted, rel=1e-5)


def test_the_model_comes_nearer_to_its_teacher_and_the_teacher_stays(
    pair: Callable[[], tuple[Model, Model]], parts: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    teacher, student = pair()
    before, fingerprint = divergence(teacher, student, parts[1]), weights_hash(teacher)
    history = distill(student, teacher, *parts, replace(OPTIONS, epochs=6), tmp_path / "c.pt")
    assert [row["epoch"] for row in history.rows] == list(range(7))
    assert history.rows[0]["val_kl"] == pytest.approx(before)
    assert math.isnan(history.rows[0]["train_loss"])
    assert history.rows[-1]["train_loss"] < 0.7 * history.rows[1]["train_loss"]
    assert weights_hash(teacher) == fingerprint
    assert not teacher.module.training
    assert divergence(teacher, student, parts[1]) == pytest.approx(history.rows[history.best_epoch]["val_kl"])


def test_the_model_as_given_stays_where_every_epoch_is_worse(
    tiny_model: Callable[..., Model], parts: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    """It is right on the validation images by their labels, and its teacher is another network."""
    student, teacher = tiny_model("vit"), tiny_model("vit", seed=1)
    seen = predict(student, parts[1])
    labels = parts[1].all_labels.copy()
    labels[parts[1].positions] = seen.classes.numpy()
    val = replace(parts[1], all_labels=labels)
    before = weights_hash(student)
    history = distill(student, teacher, parts[0], val, replace(OPTIONS, lr=0.05), tmp_path / "c.pt")
    assert history.rows[0]["val_accuracy"] == 1
    assert max(row["val_accuracy"] for row in history.rows[1:]) < 1
    assert history.best_epoch == 0
    assert weights_hash(student) == before


@pytest.mark.parametrize("stop_at", [2, 4, 7])
def test_a_stopped_recovery_goes_on_to_the_same_weights(
    pair: Callable[[], tuple[Model, Model]],
    parts: tuple[ImageSet, ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)
    options = replace(OPTIONS, augment="light")
    teacher, straight = pair()
    history = distill(straight, teacher, *parts, options, tmp_path / "straight.pt")
    steps, real = 0, Training._step

    def dying(self: Training, epoch: int, step: int) -> None:
        nonlocal steps
        if steps == stop_at:
            raise KeyboardInterrupt
        steps += 1
        real(self, epoch, step)

    _, stopped = pair()
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            distill(stopped, teacher, *parts, options, tmp_path / "c.pt")
    _, again = pair()
    with pytest.raises(WeightsmithError, match="--resume"):
        distill(pair()[1], teacher, *parts, options, tmp_path / "c.pt")
    after = distill(again, teacher, *parts, options, tmp_path / "c.pt", resume=True)
    assert weights_hash(again) == weights_hash(straight)
    assert [row["val_kl"] for row in after.rows] == [row["val_kl"] for row in history.rows]


def test_what_is_refused(
    pair: Callable[[], tuple[Model, Model]],
    tiny_model: Callable[..., Model],
    parts: tuple[ImageSet, ImageSet],
    tmp_path: Path,
) -> None:
    teacher, student = pair()
    distill(student, teacher, *parts, replace(OPTIONS, epochs=1), tmp_path / "c.pt")
    with pytest.raises(WeightsmithError, match="another model to learn from"):
        distill(pair()[1], tiny_model("vit", seed=3), *parts, replace(OPTIONS, epochs=1), tmp_path / "c.pt")
    with pytest.raises(WeightsmithError, match=r"has 4 classes and its teacher .* 3"):
        distill(student, tiny_model("vit", classes=3), *parts, OPTIONS, tmp_path / "d.pt")
    with pytest.raises(HeldOutError):
        distill(pair()[1], teacher, parts[0], parts[1].seal(), OPTIONS, tmp_path / "e.pt")
    for wrong in ({"temperature": 0.0}, {"temperature": math.inf}, {"label_weight": 1.5}, {"label_weight": math.nan}):
        with pytest.raises(WeightsmithError, match="distillation"):
            DistillOptions(**wrong)


def test_a_rate_that_is_too_high_is_named_as_the_user_gave_it(
    pair: Callable[[], tuple[Model, Model]], parts: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    teacher, student = pair()
    with pytest.raises(WeightsmithError, match="--recover-lr"):
        distill(student, teacher, *parts, replace(OPTIONS, lr=1e30), tmp_path / "c.pt")
