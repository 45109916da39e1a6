"""How much each block, attention, MLP, head and group of neurons matters: all units of a network for a few passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightsmith.circuit import Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.models import Model
from weightsmith.progress import progress
from weightsmith.prune.gates import Gates, scores_by_gradient
from weightsmith.prune.removal import shape_of
from weightsmith.prune.statistics import KeyStatistics, key_statistics
from weightsmith.prune.sublayers import ATTENTION, BLOCKS, MLP, check_weights, last_attention
from weightsmith.prune.trials import Trials
from weightsmith.scores import UnitScores

METHODS = ("gauss-newton", "task-loss", "eap", "eap-ig", "exact", "magnitude", "random")
"""Ways to score units, the recommended one first; see `unit_scores`."""


def unit_scores(
    model: Model,
    images: ImageSet,
    units: Sequence[Unit],
    method: str = "gauss-newton",
    *,
    statistics: KeyStatistics | None = None,
    steps: int = 5,
    samples: int = 1,
    seed: int = 0,
    cls_weight: float = 0.5,
) -> UnitScores:
    """What removing each unit alone would do, its keys held at their mean; every method but "exact" guesses.

    A gate m_u scales what a unit's keys z are away from their mean μ, z(m) = μ + m (z − μ): 1 is the model, 0 the unit
    replaced by its mean. For a function f of an image's logits ∂f/∂m_u = Σ_tokens g · (z − μ), with g = ∂f/∂z. Since what
    an attention or an MLP adds is linear in its keys, its gate, and a block's, has the sum of its keys' slopes.

    - "gauss-newton": ½ E_x, y~p(·|x) [(∂ log p_y / ∂m_u)²], nats: the second-order term of KL(model ‖ gated model) in
      m_u, which has no first-order one at the model itself. The mean over y is taken exactly where `samples` is at least
      the number of classes, else estimated from `samples` random mixtures of all classes an image, without bias.
    - "task-loss": mean over images of |∂ loss / ∂m_u|, the loss the cross-entropy with the label (Michel et al., 2019,
      eq. 3; over tokens the slopes are summed). The size is taken image by image: signed slopes of a trained model's loss
      cancel over images, and their mean ranks units little better than chance.
    - "eap": − mean ∂ loss / ∂m_u, the signed linear guess of what the loss gains (attribution patching towards the mean; Syed
      et al., 2023, eq. 2): kept for comparison, for it is the one that cancels.
    - "eap-ig": mean over images of |∫ ∂ KL(model ‖ gated model) / ∂m_u| along a path of all gates together from 1 to 0.8, at
      `steps` midpoints (integrated gradients as in Hanna et al., 2024, eq. 4, with gates in the place of embeddings). Of
      the paths tried on two digit models (gates to 0, ½, 0.8, 0.9; embeddings to their mean; signed or in size) it
      ranked most like exact removal; signed and to 0, the paper's way, least.
    - "exact": mean over images of the KL of the model with the unit removed (`removed(fold="mean")`), nats; each unit is
      run from its own block on.
    - "magnitude": root of Σ ‖column of the map that reads the key‖² · variance of the key. No gradient.
    - "random": standard normal draws.

    Args:
        units: of any kinds; all are scored together.
        statistics: of the model's keys, where they are at hand; else counted over the same images.
        steps: of "eap-ig". samples: of "gauss-newton". seed: of draws.
        cls_weight: how much CLS counts in a key's mean, as for `removed`.

    Returns:
        Scores whose `info` has images, passes (forward-equivalents over them, a backward pass counted as 2), and seed.

    Raises:
        HeldOutError: sealed images.
        WrongWeightsError: statistics of another model.
        WeightsmithError: an unknown method, a model that is no ViT, a unit that it does not have, steps or samples below 1.
    """
    if method not in METHODS:
        raise WeightsmithError(f"there is no way to score units called {method!r}: {did_you_mean(method, METHODS)}")
    for name, value in (("steps", steps), ("samples", samples)):
        if value < 1:
            raise WeightsmithError(f"{name}={value} gives no scores: give 1 or more")
    images.check_open()
    if len(images) == 0:
        raise WeightsmithError("there are no images to score units on: give at least one")
    _check(model, units)
    info: dict[str, Any] = {"images": len(images), "seed": seed, "passes": 0.0}
    if method == "random":
        drawn = torch.randn(len(units), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return UnitScores(tuple(units), drawn, method, info)
    if statistics is None:
        statistics = key_statistics(model, images)
        info["passes"] += 1.0
    check_weights(model, statistics)
    gates = Gates.of(shape_of(model), units, statistics, cls_weight)
    if method == "magnitude":
        values = _magnitudes(model, statistics, gates, cls_weight)
    elif method == "exact":
        trials = Trials(model, statistics, images, fold="mean", cls_weight=cls_weight)
        values = _exact(trials, units)
        info["passes"] += trials.passes
    else:
        values, spent = scores_by_gradient(model, images, gates, method, steps, samples, seed)
        info |= {"passes": info["passes"] + spent} | ({"steps": steps} if method == "eap-ig" else {})
        info |= {"samples": samples} if method == "gauss-newton" else {}
    return UnitScores(tuple(units), values, method, info)


def agreement(
    model: Model,
    images: ImageSet,
    kinds: Sequence[str] = ("block", "attn", "mlp", "head", "neurons"),
    *,
    methods: Sequence[str] = METHODS,
    group: int = 16,
    statistics: KeyStatistics | None = None,
    steps: int = 5,
    samples: int = 1,
    seed: int = 0,
    cls_weight: float = 0.5,
) -> list[dict[str, Any]]:
    """How well each method ranks units as exact removal of each alone does: one row a method and kind of unit.

    Args:
        group: neurons in a unit, neighbours.

    Returns:
        Rows with method, kind, units, images, spearman (NaN where all units are worth the same) and passes (of all kinds
        together: but for exact removal, units cost nothing).

    Raises:
        WeightsmithError: as `unit_scores`; no unit of any of the kinds.
    """
    whole = shape_of(model)
    by_kind = {kind: whole.units(kind, group) for kind in kinds}
    units = [unit for several in by_kind.values() for unit in several]
    if not units:
        raise WeightsmithError(f"{model.name} has no units of the kinds {', '.join(kinds)}: name others")
    if statistics is None:
        statistics = key_statistics(model, images)
    given: dict[str, Any] = {"statistics": statistics, "steps": steps, "samples": samples, "seed": seed}
    given["cls_weight"] = cls_weight
    alone = [unit for unit in units if any(Kept.everything(whole).without(unit).heads)]
    exact = unit_scores(model, images, alone, "exact", **given)
    rows: list[dict[str, Any]] = []
    for method in methods:
        found = exact if method == "exact" else unit_scores(model, images, alone, method, **given)
        for kind, several in by_kind.items():
            same = [unit for unit in several if unit in exact.by_unit()]
            rows.append(
                {
                    "method": method,
                    "kind": kind,
                    "units": len(same),
                    "images": len(images),
                    "spearman": found.of(same).rank_correlation(exact.of(same)),
                    "passes": found.info["passes"],
                }
            )
    return rows


def _check(model: Model, units: Sequence[Unit]) -> None:
    whole = shape_of(model)
    if not units:
        raise WeightsmithError("there are no units to score: name some, Shape.units gives all of a kind")
    for unit in units:
        there = {"head": whole.heads, "attn": whole.heads, "neurons": whole.neurons, "mlp": whole.neurons}
        counts = there.get(unit.kind, tuple(map(sum, zip(whole.heads, whole.neurons, strict=True))))
        if unit.layer >= len(counts) or max(unit.members, default=0) >= counts[unit.layer]:
            raise WeightsmithError(f"{model.name} has no unit {unit}: name one that Shape.units gives")


def _exact(trials: Trials, units: Sequence[Unit]) -> Tensor:
    everything = Kept.everything(trials.whole)
    values: list[Tensor] = []
    with progress("removing each unit", len(units)) as advance:
        for unit in units:
            values.append(trials.kl(everything.without(unit)).mean())
            advance()
    return torch.stack(values)


def _magnitudes(model: Model, statistics: KeyStatistics, gates: Gates, cls_weight: float) -> Tensor:
    """(units,) root of the summed ‖column‖² · variance."""
    state, last = model.module.state_dict(), last_attention(Kept.everything(shape_of(model)))
    entries: list[Tensor] = []
    for site in gates.means:
        assert site.layer is not None
        sublayer = ATTENTION if site.kind == ATTENTION.keys else MLP
        weight = state[f"{BLOCKS}.{site.layer}.{sublayer.columns}.weight"].cpu().double()
        statistic = statistics.at(site.kind, site.layer, cls_weight if site.layer < last else 1.0)
        entries.append(weight.square().sum(0) * statistic.covariance.diagonal())
    return gates.summed(torch.cat(entries)).clamp(min=0.0).sqrt()
