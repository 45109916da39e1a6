from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import divergence
from weightsmith.measure import Predictions


def answers(n: int = 40, classes: int = 5, seed: int = 0) -> Predictions:
    logits = 2 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))
    return Predictions(logits, torch.zeros(n, dtype=torch.long), tuple(f"test/{i}" for i in range(n)))


def test_it_is_the_mean_of_the_sums_by_hand() -> None:
    whole, other = answers(), answers(seed=1)
    p, q = whole.probabilities.double().numpy(), other.probabilities.double().numpy()
    values = [sum(p[i, c] * np.log(p[i, c] / q[i, c]) for c in range(5)) for i in range(40)]
    found = divergence(whole, other)
    assert found.value == pytest.approx(np.mean(values), rel=1e-5)
    assert found.n == 40
    spread = np.std(values) / np.sqrt(40)
    assert found.high - found.low == pytest.approx(4 * spread, rel=0.3)
    assert divergence(other, whole).value != pytest.approx(found.value, rel=1e-3)


def test_of_the_same_answers_it_is_nought() -> None:
    found = divergence(answers(), answers())
    assert found.value == found.low == found.high == 0.0


def test_other_images_are_refused() -> None:
    whole = answers()
    for other in (answers(n=39), answers(classes=4), replace(whole, names=whole.names[::-1])):
        with pytest.raises(WeightsmithError, match="different images or classes"):
            divergence(whole, other)
