"""What a run says about one decision: the numbers whose recovery is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError, did_you_mean

METRICS = ("logit_difference", "probability", "kl")
"""`logit_difference`: the target's logit minus its foil's. `probability`: of the target. `kl`: −KL(clean ‖ this run), in
nats, negative so that in each of them more is closer to the clean run."""

FLOORS = {"logit_difference": 0.05, "probability": 0.005, "kl": 0.001}
"""Gap between the clean and the corrupted run below which a pair says nothing: there is no decision to be recovered."""


@dataclass(frozen=True, eq=False)
class Decision:
    """What is asked of a run, for each of its rows.

    Attributes:
        target, foil: (n,) classes.
        clean: (n, classes) log-probabilities of the clean run.
    """

    target: Tensor
    foil: Tensor
    clean: Tensor

    def at(self, which: Tensor) -> Decision:
        """The decisions of some rows, in their order."""
        return Decision(self.target[which], self.foil[which], self.clean[which])

    def measure(self, metric: str, logits: Tensor) -> Tensor:
        """(n,) float64 value of the metric. Raises `WeightsmithError` for an unknown one."""
        check_metric(metric)
        if metric == "logit_difference":
            rows = torch.arange(len(logits), device=logits.device)
            return (logits[rows, self.target] - logits[rows, self.foil]).double()
        said = logits.log_softmax(-1)
        if metric == "probability":
            return said.gather(1, self.target[:, None])[:, 0].exp().double()
        return -(self.clean.exp() * (self.clean - said)).sum(-1).double()


def check_metric(metric: str, flag: str = "--metric") -> None:
    """Raise `WeightsmithError` naming `flag` for an unknown metric."""
    if metric not in METRICS:
        raise WeightsmithError(f"{flag} {metric} is not known: {did_you_mean(metric, METRICS)}")
