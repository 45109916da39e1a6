"""Training that is stopped anywhere goes on to the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from weightsmith.data.images import ImageSet
from weightsmith.delta import weights_hash
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.measure import predict
from weightsmith.models import Model, create
from weightsmith.train import TrainOptions, fit, loop
from weightsmith.train.loop import History, Training

OPTIONS = TrainOptions(epochs=3, batch_size=16, lr=1e-2, augment="light")


@pytest.fixture
def parts(random_set: Callable[..., ImageSet]) -> tuple[ImageSet, ImageSet]:
    images = random_set(96)
    return images.subset(range(70)), images.subset(range(70, 96))


def fresh(dropout: float = 0.2) -> Model:
    """A small ViT with dropout, so that the random state matters."""
    model = create("digits", ("a", "b", "c", "d"), seed=0)
    for module in model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model


PHOTOGRAPHS = replace(OPTIONS, augment="natural-colour", label_smoothing=0.1)


@pytest.fixture(scope="module")
def straight(
    random_set: Callable[..., ImageSet], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[TrainOptions], tuple[str, History]]:
    """`straight(options)`: the weights of a training that nothing stops, and its history; each is done once."""
    done: dict[TrainOptions, tuple[str, History]] = {}

    def train(options: TrainOptions) -> tuple[str, History]:
        if options not in done:
            model, images = fresh(), random_set(96)
            path = tmp_path_factory.mktemp("straight") / "straight.pt"
            history = fit(model, images.subset(range(70)), images.subset(range(70, 96)), options, path)
            done[options] = weights_hash(model), history
        return done[options]

    return train


@pytest.mark.parametrize(
    ("stop_at", "options"), [*((step, OPTIONS) for step in (1, 4, 5, 7, 13)), (3, PHOTOGRAPHS), (8, PHOTOGRAPHS)]
)
def test_a_training_stopped_at_any_step_resumes_to_the_same_weights(
    parts: tuple[ImageSet, ImageSet],
    straight: Callable[[TrainOptions], tuple[str, History]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    options: TrainOptions,
) -> None:
    """Five steps an epoch; a checkpoint after every step, as in a long epoch."""
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)
    weights, history = straight(options)
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
            fit(fresh(), *parts, options, tmp_path / "stopped.pt")
    torch.manual_seed(999)  # another process has another random state
    resumed = fresh()
    again = fit(resumed, *parts, options, tmp_path / "stopped.pt", resume=True)
    assert weights_hash(resumed) == weights
    keys = ("epoch", "train_loss", "train_accuracy", "val_accuracy")
    assert [[row[k] for k in keys] for row in again.rows] == [[row[k] for k in keys] for row in history.rows]


def test_the_best_epoch_is_kept(parts: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
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
        ((create("digits", ("a", "b", "c", "d"), seed=1), *parts, OPTIONS), "another model"),
    ):
        with pytest.raises(WeightsmithError, match=told):
            fit(*other, tmp_path / "c.pt")


def test_a_checkpoint_that_matches_and_holds_something_else_is_told(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    train, val, options = random_set(12), random_set(8), TrainOptions(epochs=1, batch_size=6)
    path = tmp_path / "c.pt"
    fit(tiny_model("vit"), train, val, options, path)
    whole = torch.load(path, weights_only=True)
    missing = dict(list(whole["best"].items())[1:])
    used = whole.keys() - {"cuda_rng", "scaler"}  # a GPU's
    damaged = [{name: value} for name in used for value in (None, 3, {"a": 1}, torch.zeros(2))]
    damaged += [{"best": {}}, {"best": missing}, {"model": missing}]
    state: dict[str, Any] = whole["state"]
    damaged += [{"state": state | {name: value}} for name in state for value in (None, "x")]
    damaged += [{"state": state | {"epoch": -1}}, {"state": state | {"rows": [3]}}]
    for change in damaged:
        torch.save(whole | change, path)
        model = tiny_model("vit")
        before = weights_hash(model)
        with pytest.raises(WeightsmithError, match=r"c\.pt is damaged and cannot be read: delete it to train again"):
            fit(model, train, val, options, path, resume=True)
        assert weights_hash(model) == before
    torch.save(whole, path)
    assert fit(tiny_model("vit"), train, val, options, path).skipped


def test_an_option_that_an_older_checkpoint_does_not_name_counts_as_its_default(
    parts: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    fit(fresh(), *parts, OPTIONS, tmp_path / "c.pt")
    content: dict[str, Any] = torch.load(tmp_path / "c.pt", weights_only=True)
    match = json.loads(content["match"])
    del match["options"]["label_smoothing"]
    torch.save(content | {"match": json.dumps(match)}, tmp_path / "c.pt")
    assert fit(fresh(), *parts, OPTIONS, tmp_path / "c.pt").skipped
    with pytest.raises(WeightsmithError, match=r"label_smoothing 0\.0 instead of 0\.1"):
        fit(fresh(), *parts, replace(OPTIONS, label_smoothing=0.1), tmp_path / "c.pt")


def test_label_smoothing_mixes_the_label_with_all_classes(parts: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    """The loss of the first and only step against its definition; the validation loss is the plain one."""
    train, val = parts
    share, model = 0.2, fresh(dropout=0.0)
    with torch.no_grad():
        model.module.classifier.weight.mul_(50)  # where all classes are as likely, smoothing changes next to nothing
        logits = model.logits(model.preprocess(train.pixels()))
    log_p, labels = logits.log_softmax(-1), torch.from_numpy(train.labels)
    wanted = torch.full_like(log_p, share / 4)
    wanted[torch.arange(len(train)), labels] += 1 - share
    options = TrainOptions(epochs=1, batch_size=len(train), lr=1e-12, label_smoothing=share)
    row = fit(model, train, val, options, tmp_path / "c.pt").rows[0]
    assert row["train_loss"] == pytest.approx(float(-(wanted * log_p).sum(-1).mean()), rel=1e-5)
    assert row["train_loss"] != pytest.approx(float(-log_p[torch.arange(len(train)), labels].mean()), rel=1e-3)
    plain = predict(model, val)
    right = plain.logits.log_softmax(-1)[torch.arange(len(val)), plain.labels]
    assert row["val_loss"] == pytest.approx(float(-right.mean()), rel=1e-5)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_told(share: float) -> None:
    with pytest.raises(WeightsmithError, match="--label-smoothing must be at least 0 and less than 1"):
        TrainOptions(label_smoothing=share)


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
