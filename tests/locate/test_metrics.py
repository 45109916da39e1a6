"""Each number that a run is reduced to, against its formula in plain floating point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.locate.metrics import FLOORS, METRICS, Decision, check_metric

TARGET, FOIL = (2, 0, 5), (4, 1, 2)


def drawn(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))


def decision(clean: Tensor) -> Decision:
    return Decision(torch.tensor(TARGET), torch.tensor(FOIL), clean.log_softmax(-1))


def shares(logits: Tensor) -> np.ndarray:
    powers = np.exp(logits.double().numpy())
    return powers / powers.sum(1, keepdims=True)


def by_hand(metric: str, clean: Tensor, logits: Tensor) -> np.ndarray:
    rows = np.arange(3)
    if metric == "logit_difference":
        values = logits.double().numpy()
        return values[rows, list(TARGET)] - values[rows, list(FOIL)]
    if metric == "probability":
        return shares(logits)[rows, list(TARGET)]
    p, q = shares(clean), shares(logits)
    return -(p * np.log(p / q)).sum(1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_a_metric_is_its_formula(metric: str, seed: int) -> None:
    clean, logits = drawn(seed), drawn(seed + 10)
    found = decision(clean).measure(metric, logits)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, by_hand(metric, clean, logits), rtol=1e-5, atol=1e-6)


def test_more_is_closer_to_the_clean_run() -> None:
    """All metrics point the same way: the divergence is negative, and 0 where nothing diverges."""
    clean = drawn(1)
    asked = decision(clean)
    assert (asked.measure("kl", clean) == 0).all()
    assert (asked.measure("kl", clean + 7.0).abs() < 1e-6).all()  # the same distribution
    other = drawn(2)
    path = torch.stack([asked.measure("kl", other + share * (clean - other)) for share in (0.0, 0.3, 0.6, 0.9)])
    assert (path < 0).all()
    assert (path.diff(dim=0) > 0).all()
    raised = clean.clone()
    raised[torch.arange(3), list(TARGET)] += 1
    for metric in ("logit_difference", "probability"):
        assert (asked.measure(metric, raised) > asked.measure(metric, clean)).all()


def test_logits_of_any_size_stay_finite() -> None:
    clean = torch.tensor([[1e4, 0.0, -1e4]] * 3)
    asked = Decision(torch.tensor([0, 1, 2]), torch.tensor([1, 0, 1]), clean.log_softmax(-1))
    for metric in METRICS:
        assert asked.measure(metric, clean).isfinite().all()
        assert asked.measure(metric, -clean).isfinite().all()


def test_decisions_of_some_rows() -> None:
    clean, logits = drawn(3), drawn(4)
    which = torch.tensor([2, 2, 0])
    some = decision(clean).at(which)
    for metric in METRICS:
        whole = decision(clean).measure(metric, logits)
        assert torch.equal(some.measure(metric, logits[which]), whole[which])
        assert not torch.equal(some.measure(metric, logits), whole), metric


def test_each_metric_has_a_floor_that_is_above_rounding() -> None:
    assert FLOORS.keys() == set(METRICS)
    assert all(1e-4 < floor < 0.1 for floor in FLOORS.values())


def test_an_unknown_metric_is_told_by_its_flag() -> None:
    with pytest.raises(WeightsmithError, match=r"--metric probabilty is not known: did you mean 'probability'\?"):
        decision(drawn(0)).measure("probabilty", drawn(1))
    with pytest.raises(WeightsmithError, match="--trace-metric nll is not known"):
        check_metric("nll", "--trace-metric")
    for metric in METRICS:
        check_metric(metric)
