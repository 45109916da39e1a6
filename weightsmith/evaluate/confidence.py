"""How sure a classifier is, and whether it may be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from weightsmith.measure import Interval, Predictions
from weightsmith.measure.intervals import means

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
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    excess = np.bincount(places, weights=confidence - right, minlength=bins)
    return float(np.abs(excess).sum() / len(confidence))
