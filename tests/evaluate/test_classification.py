"""Top-k, per-class accuracy, paired differences and confidence, against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.evaluate import (
    Classification,
    Confidence,
    accuracy_change,
    answers_of,
    calibration_error,
    confidence_bins,
    top,
)
from weightsmith.measure import Predictions, predict, proportion


def predictions(n: int = 300, classes: int = 8, seed: int = 0, skill: float = 1.5) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    logits = 2 * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += skill
    return Predictions(logits, labels, tuple(f"test/{i}" for i in range(n)))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_is_what_a_sort_says(k: int) -> None:
    seen = predictions()
    hits = sum(
        int(label) in np.argsort(row)[::-1][:k] for row, label in zip(seen.logits.numpy(), seen.labels, strict=True)
    )
    assert top(seen, k) == proportion(hits, 300)
    assert Classification.of(seen).top5 == top(seen, 5)


def test_top_five_of_five_classes_says_nothing() -> None:
    assert math.isnan(Classification.of(predictions(classes=5)).top5.value)


def test_accuracy_of_a_class_is_that_of_its_samples() -> None:
    seen = predictions()
    for label, share in enumerate(Classification.of(seen).class_accuracy):
        mine = seen.labels == label
        assert share == proportion(int(seen.right[mine].sum()), int(mine.sum()))


def test_a_difference_is_paired() -> None:
    """Two models that are wrong on the same images differ by less than their own intervals tell."""
    before = predictions(n=1000)
    logits = before.logits.clone()
    wrong = torch.nonzero(~before.right).flatten()[:10]
    logits[wrong, before.labels[wrong]] = 100.0
    after = Predictions(logits, before.labels, before.names)
    change = accuracy_change(before, after)
    assert change.value == pytest.approx(0.01)
    assert 0 < change.low < change.value < change.high < 0.02
    assert accuracy_change(after, before).value == pytest.approx(-0.01)
    with pytest.raises(WeightsmithError, match="different images"):
        accuracy_change(before, predictions(n=500))


def slow_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, bin by bin as it is written."""
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [i for i, one in enumerate(confidence) if (low < one <= high) or (number == 0 and one == 0)]
        if inside:
            total += len(inside) / len(confidence) * abs(np.mean(right[inside]) - np.mean(confidence[inside]))
    return total


def test_calibration_error() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0, 1, 500)
    right = random.uniform(0, 1, 500) < confidence**2
    assert calibration_error(confidence, right) == pytest.approx(slow_error(confidence, right), abs=1e-12)
    assert calibration_error(np.array([0.0, 1.0, 1.0]), np.array([False, True, True])) == 0
    assert calibration_error(np.full(10, 0.9), np.arange(10) < 5) == pytest.approx(0.4)
    assert math.isnan(calibration_error(np.array([]), np.array([], bool)))


def test_the_bins_of_confidence_hold_every_sample_and_give_the_calibration_error() -> None:
    seen = predictions()
    found = confidence_bins(seen, 5)
    sure, right = seen.logits.double().softmax(-1).max(1).values.numpy(), seen.right.numpy()
    for one in found:
        inside = (sure > one.low) & (sure <= one.high)
        assert one.accuracy.n == inside.sum() > 0
        assert one.confidence == pytest.approx(sure[inside].mean())
        assert one.accuracy == proportion(int(right[inside].sum()), int(inside.sum()))
    assert sum(one.accuracy.n for one in found) == len(right)
    error = sum(one.accuracy.n * abs(one.accuracy.value - one.confidence) for one in found) / len(right)
    assert error == pytest.approx(calibration_error(sure, right, 5))
    nothing = Predictions(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), ())
    assert confidence_bins(nothing) == ()


def test_confidence() -> None:
    seen = predictions()
    found = Confidence.of(seen)
    table = seen.logits.double().softmax(-1).numpy()
    sure, right = table.max(1), seen.right.numpy()
    assert found.mean.value == pytest.approx(sure.mean())
    assert found.when_right.value == pytest.approx(sure[right].mean())
    assert found.when_wrong.value == pytest.approx(sure[~right].mean())
    assert found.gap.value == pytest.approx(sure[right].mean() - sure[~right].mean())
    assert found.entropy.value == pytest.approx(entropy(table, axis=1).mean())
    assert found.overconfidence.value == pytest.approx(sure.mean() - right.mean())
    assert found.calibration_error == pytest.approx(slow_error(sure, right), abs=1e-9)
    for one in (found.mean, found.when_right, found.when_wrong, found.gap, found.entropy):
        assert one.low < one.value < one.high


def test_a_model_that_is_always_right_has_no_confidence_in_errors() -> None:
    seen = predictions(skill=60.0)
    found = Confidence.of(seen)
    assert bool(seen.right.all())
    assert math.isnan(found.when_wrong.value)
    assert math.isnan(found.gap.value)
    assert found.entropy.value >= 0


def test_sealed_images_are_read_here_only(tiny_model, random_set) -> None:
    model, images = tiny_model("vit"), random_set(12).seal()
    with pytest.raises(HeldOutError):
        predict(model, images)
    whole, pieces = answers_of(model, images), answers_of(model, images, batch_size=5)
    assert torch.allclose(whole.logits, pieces.logits, atol=1e-5)
    with pytest.raises(HeldOutError):
        predict(model, images)
