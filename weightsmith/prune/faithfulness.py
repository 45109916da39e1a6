"""How much of a model its best parts alone give back: faithfulness curves and the areas under and beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import trapezoid
from torch import Tensor

from weightsmith.circuit import Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.measure.intervals import Interval, bootstrap
from weightsmith.models import Model
from weightsmith.progress import progress
from weightsmith.prune.edges.corruption import CorruptedSet
from weightsmith.prune.edges.network import EdgeNetwork
from weightsmith.prune.edges.scores import run_masked
from weightsmith.prune.masked import run_units
from weightsmith.prune.removal import shape_of
from weightsmith.prune.statistics import KeyStatistics

FRACTIONS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Kept, of all that is ranked: those of the MIB benchmark (Mueller et al. 2025), and none."""

CIRCUIT_METRICS = ("kl", "log_probability")
"""−KL(whole model ‖ circuit) in nats, or the log-probability of the right class; more is better."""


@dataclass(frozen=True)
class FaithfulnessCurve:
    """f(C_k) = (m(C_k) − m(∅)) / (m(M) − m(∅)) of the circuits C_k of the k best, ∅ that of none and M the whole.

    Attributes:
        ranked: what was ranked and by what.
        metric: m, one of `CIRCUIT_METRICS` or the caller's own.
        fractions: kept, ascending; counts: how many these are, rounded down.
        values: f at each, with a 95% bootstrap interval over images.
        cpr: area under f ("circuit performance ratio"), larger is better; best where what helps most comes first.
        cmd: area between f and 1 ("circuit-model distance"), smaller is better; 0 where every circuit does what the model does.
    """

    ranked: str
    metric: str
    fractions: tuple[float, ...]
    counts: tuple[int, ...]
    values: tuple[Interval, ...]
    cpr: Interval
    cmd: Interval

    def rows(self) -> list[dict[str, object]]:
        """Rows of a table, one a fraction: ranked, metric, fraction, kept, faithfulness and its interval."""
        return [
            {"ranked": self.ranked, "metric": self.metric, "fraction": fraction, "kept": count}
            | {"faithfulness": value.value, "low": value.low, "high": value.high}
            for fraction, count, value in zip(self.fractions, self.counts, self.values, strict=True)
        ]

    def summary(self) -> dict[str, object]:
        """One row of a table that compares rankings: ranked, metric, images, both areas with their intervals."""
        row: dict[str, object] = {"ranked": self.ranked, "metric": self.metric, "images": self.cpr.n}
        for name, area in (("cpr", self.cpr), ("cmd", self.cmd)):
            row |= {name: area.value, f"{name}_low": area.low, f"{name}_high": area.high}
        return row


def faithfulness(
    measure: Callable[[int], np.ndarray | Tensor],
    count: int,
    *,
    ranked: str,
    metric: str,
    fractions: Sequence[float] = FRACTIONS,
    whole: np.ndarray | Tensor | None = None,
) -> FaithfulnessCurve:
    """The curve of any ranking, by trapezoids over linear fractions as in the MIB benchmark (Mueller et al. 2025, section 3).

    Beside its fractions from 0.001 stands 0, where f is 0, so that the areas are over all of [0, 1]: its own leave out
    [0, 0.001]. Images are resampled together for all fractions, numerator and denominator.

    Args:
        measure: (n,) of the metric, image by image, with the so many best kept and the others not; asked once a count.
        count: of what is ranked.
        fractions: ascending within [0, 1]; where they leave an end out the areas are over what they span.
        whole: (n,) of the whole model, where it is not `measure(count)`.

    Raises:
        WeightsmithError: nothing ranked, fractions that do not ascend in [0, 1], values that are no finite numbers, or a model
            that does as well with nothing kept as with everything.
    """
    shares = tuple(float(share) for share in fractions)
    ascending = all(low < high for low, high in pairwise(shares))
    if len(shares) < 2 or not ascending or not (shares[0] >= 0 and shares[-1] <= 1):
        raise WeightsmithError(f"fractions={list(shares)} make no curve: give two or more from 0 to 1, ascending")
    if count < 1:
        raise WeightsmithError("nothing is ranked: give at least one edge or unit with its score")
    counts = tuple(math.floor(share * count + 1e-9) for share in shares)
    asked = sorted({0, count, *counts} if whole is None else {0, *counts})
    measured: dict[int, np.ndarray] = {}
    with progress(f"faithfulness of {ranked}", len(asked)) as advance:
        for kept in asked:
            measured[kept] = np.asarray(measure(kept), dtype=np.float64)
            advance()
    full = measured[count] if whole is None else np.asarray(whole, dtype=np.float64)
    table = np.stack([*(measured[kept] for kept in counts), measured[0], full], 1)
    images = len(table)
    if not np.isfinite(table).all():
        raise WeightsmithError(
            f"the metric {metric} of {ranked} is not finite on some image: look at these images first"
        )
    apart = float((table[:, -1] - table[:, -2]).mean())
    if apart == 0:
        raise WeightsmithError(
            f"with nothing kept of {ranked} the {metric} is that of the whole model: faithfulness has no scale, rank more"
        )

    def statistic(tables: np.ndarray) -> np.ndarray:
        means = tables @ table / images
        scale = means[:, -1:] - means[:, -2:-1]
        below = means[:, :-2] - means[:, -2:-1]
        f = np.divide(below, scale, out=np.full_like(below, np.nan), where=scale != 0)
        return np.column_stack([f, trapezoid(f, shares, axis=1), trapezoid(np.abs(1 - f), shares, axis=1)])

    found = bootstrap(np.ones(images, dtype=np.int64), statistic)
    if images == 1:  # resampling one image finds no spread, which is not to say that there is none
        found = [Interval(one.value, math.nan, math.nan, 1) for one in found]
    return FaithfulnessCurve(ranked, metric, shares, counts, tuple(found[:-2]), *found[-2:])


def edge_faithfulness(
    model: Model,
    images: ImageSet,
    scores: Sequence[float] | Tensor,
    *,
    ranked: str = "edges",
    metric: str = "kl",
    corruption: str = "mean",
    seed: int = 0,
    calibration: ImageSet | None = None,
    fractions: Sequence[float] = FRACTIONS,
) -> FaithfulnessCurve:
    """The curve of a ranking of all edges, circuits run edge by edge as `run_edges` does.

    Args:
        scores: one an edge in the order of `EdgeGraph.of(model).edges`, larger is kept first; ties in that order.
        ranked: what they are, for people.
        corruption, seed, calibration: as in `edge_scores`.

    Raises:
        HeldOutError: a sealed set.
        WeightsmithError: not one finite score an edge, no ViT, or what `faithfulness` and `edge_scores` refuse.
    """
    clean, labels = _clean(model, images, metric)
    network = EdgeNetwork.of(model)
    edges = network.graph.edges
    order = _order(scores, len(edges), "edge")
    runs = CorruptedSet.of(network, images, corruption, seed, calibration)

    def measure(count: int) -> Tensor:
        mask = network.graph.mask([edges[i] for i in order[:count]])
        return _measured(metric, run_masked(runs, mask), clean, labels)

    return faithfulness(
        measure,
        len(edges),
        ranked=ranked,
        metric=metric,
        fractions=fractions,
        whole=_measured(metric, clean, clean, labels),
    )


def unit_faithfulness(
    model: Model,
    images: ImageSet,
    units: Sequence[Unit],
    scores: Sequence[float] | Tensor,
    statistics: KeyStatistics,
    *,
    ranked: str = "units",
    metric: str = "kl",
    fractions: Sequence[float] = FRACTIONS,
) -> FaithfulnessCurve:
    """The curve of a ranking of heads, neurons, sublayers or blocks, those not kept held at their mean as `run_units` does.

    What is in no unit is always kept, so ∅ is the network without the ranked units only.

    Args:
        units: what is ranked; scores: one a unit, larger is kept first.
        statistics: of the model's keys over calibration images.
        ranked: what they are, for people.

    Raises:
        HeldOutError: a sealed set.
        WrongWeightsError: statistics of another model.
        WeightsmithError: not one finite score a unit, units that the model does not have, or what `faithfulness` refuses.
    """
    clean, labels = _clean(model, images, metric)
    order = _order(scores, len(units), "unit")
    everything = Kept.everything(shape_of(model))

    def measure(count: int) -> Tensor:
        kept = everything.without(*(units[i] for i in order[count:]))
        return _measured(metric, run_units(model, images, kept, statistics), clean, labels)

    return faithfulness(
        measure,
        len(units),
        ranked=ranked,
        metric=metric,
        fractions=fractions,
        whole=_measured(metric, clean, clean, labels),
    )


@torch.no_grad()
def _clean(model: Model, images: ImageSet, metric: str) -> tuple[Tensor, Tensor]:
    """(n, classes) the model's own logits, and (n,) labels, on its device."""
    if metric not in CIRCUIT_METRICS:
        raise WeightsmithError(f"metric={metric!r} measures no circuit: {did_you_mean(metric, CIRCUIT_METRICS)}")
    whole = run_units(model, images, Kept.everything(shape_of(model)), None)
    if metric == "log_probability" and images.n_classes != model.n_classes:
        raise WeightsmithError(
            f"{model.name} has {model.n_classes} classes and the images {images.n_classes}: metric='log_probability' needs the "
            "model's own classes, metric='kl' none"
        )
    return whole, torch.from_numpy(np.array(images.labels)).to(whole.device)


def _measured(metric: str, logits: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """(n,) float64 of the metric, on the CPU."""
    said, wanted = (some.double().log_softmax(-1) for some in (logits, clean))
    if metric == "log_probability":
        return said.gather(1, labels[:, None])[:, 0].cpu()
    return -(wanted.exp() * (wanted - said)).sum(-1).cpu()


def _order(scores: Sequence[float] | Tensor, count: int, what: str) -> list[int]:
    """Numbers of the scored, best first."""
    values = torch.as_tensor(scores, dtype=torch.float64).detach().cpu()
    if values.shape != (count,) or not bool(torch.isfinite(values).all()):
        raise WeightsmithError(
            f"{values.numel()} scores do not rank {count} {what}s, or are not all finite: give one number for each {what}"
        )
    order: list[int] = torch.argsort(values, descending=True, stable=True).tolist()
    return order
