"""How sure a classifier is, and whether it may be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from weightsmith.measure import Interval, Predictions
from weightsmith.measure.intervals import means, proportion

BINS = 15
"""Bins of equal width of the calibration error."""


@dataclass(frozen=True)
class Confidence:
    """What a classifier's largest probabilities are worth; intervals by bootstrap over samples.

    Attributes:
        mean: of the probability of the class that it gives.
        when_right, when_wrong: the same where that class is right, and where it is not; NaN where there is no such sample.
        gap: when right − when wrong.
        entropy: of the probabilities of all classes, mean, in nats.
        calibration_error: `calibration_error` over 15 bins; it has no interval, for resampling biases it upwards.
        overconfidence: mean confidence − accuracy.
    """

    mean: Interval
    when_right: Interval
    when_wrong: Interval
    gap: Interval
    entropy: Interval
    calibration_error: float
    overconfidence: Interval

    @classmethod
    def of(cls, predictions: Predictions) -> Confidence:
        """Measure the confidence of predictions."""
        logs = predictions.logits.double().log_softmax(-1)
        sure = logs.exp().max(-1).values.numpy()
        entropy = -torch.xlogy(logs.exp(), logs.exp()).sum(-1).numpy()
        right = predictions.right.numpy()
        columns = [sure, np.where(right, sure, np.nan), np.where(right, np.nan, sure), entropy, sure - right]
        mean, when_right, when_wrong, surprise, over, gap = means(
            np.stack(columns, 1), lambda found: found[..., 1] - found[..., 2]
        )
        return cls(mean, when_right, when_wrong, gap, surprise, calibration_error(sure, right), over)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3): Σ_b n_b/n · |accuracy_b − mean confidence_b|.

    Bins are of equal width over [0, 1] and closed above, as in the paper; a confidence of 0 belongs to the first.

    Args:
        confidence: (n,) probability of the class that is given; right: (n,) bool.
    """
    if len(confidence) == 0:
        return float("nan")
    places = _places(confidence, bins)
    excess = np.bincount(places, weights=confidence - right, minlength=bins)
    return float(np.abs(excess).sum() / len(confidence))


@dataclass(frozen=True)
class ConfidenceBin:
    """Samples whose confidence is above `low` and at most `high`: its mean, and the share that is right, with Wilson's
    interval.
    """

    low: float
    high: float
    confidence: float
    accuracy: Interval


def confidence_bins(predictions: Predictions, bins: int = BINS) -> tuple[ConfidenceBin, ...]:
    """The bins of `calibration_error` that hold a sample: a reliability diagram (Guo et al. 2017, section 2)."""
    sure = predictions.logits.double().softmax(-1).max(-1).values.numpy()
    right, places = predictions.right.numpy(), _places(sure, bins)
    return tuple(
        ConfidenceBin(
            place / bins, (place + 1) / bins, float(sure[there].mean()), proportion(right[there].sum(), there.sum())
        )
        for place in np.unique(places).tolist()
        for there in [places == place]
    )


def _places(confidence: np.ndarray, bins: int) -> np.ndarray:
    places: np.ndarray = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return places
