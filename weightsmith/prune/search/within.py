"""Circuits under a budget: of KL, of multiplications, or of measured time.

All three go in rounds. In a round the units of the model as it stands are scored (`unit_scores`), those that are worth least
for what they cost leave, and the maps behind what stays are folded and fitted to the whole model (`removed`, `refit`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import numpy as np

from weightsmith.circuit import Kept
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.measure import Interval
from weightsmith.models import Model
from weightsmith.prune.removal import cls_only as cls_only_of
from weightsmith.prune.scores import unit_scores
from weightsmith.prune.search.ground import Ground, bound, interval
from weightsmith.prune.search.path import Marks
from weightsmith.scores import UnitScores

_log = logging.getLogger(__name__)

ROUNDS = 3
"""Times that the units are scored: each time on what the last round left."""
_LOOKS, _LAST_LOOKS = 6, 9
"""Sizes tried in a round under a KL budget: the right one is found to 1/64 of what the round may take, at last to 1/512."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """A smaller model, and how it was found.

    Attributes:
        kept: of the model that was given.
        model: physically smaller, folded and fitted.
        kl: mean KL(whole ‖ smaller) in nats over the judging images, with its 95% interval.
        scores: of the heads and neurons of the whole model, from the first round.
        rows: what was tried, in order: round, multiply-adds, KL, what is compared with the budget, whether it was taken.
        info: goal, images, seed, rounds, forward-equivalents (`passes`), seconds, multiply-adds before and after.
    """

    kept: Kept
    model: Model
    kl: Interval
    scores: UnitScores | None
    rows: tuple[dict[str, object], ...]
    info: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How a smaller model is made, whatever its budget.

    Attributes:
        score: a method of `unit_scores`.
        fold, ridge: as for `removed`; after a ridge fold the maps are fitted too (`refit`).
        cls_only: compute CLS alone behind the last attention, which loses nothing.
        multiple: of MLP widths; processors are slower at widths in between.
        seed: of the parting of the calibration images and of what the scores draw.
    """

    score: str = "gauss-newton"
    fold: str = "ridge"
    ridge: float = 1e-3
    cls_only: bool = True
    multiple: int = 16
    seed: int = 0


@dataclass(eq=False)
class Search:
    """A search as it stands: what is kept, the model of it, and its trail."""

    ground: Ground
    ways: Ways
    kept: Kept
    model: Model
    marks: Marks
    first: UnitScores | None = None
    rows: list[dict[str, object]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, model: Model, images: ImageSet, judging: ImageSet | None, ways: Ways) -> Search:
        ground = Ground.of(model, images, judging, fold=ways.fold, ridge=ways.ridge, seed=ways.seed)
        shape = ground.shape
        heads, neurons = (tuple(np.zeros(n) for n in counts) for counts in (shape.heads, shape.neurons))
        marks = Marks(shape, heads, neurons, ways.cls_only, ways.multiple)
        return cls(ground, ways, Kept.everything(shape), ground.model, marks)

    def score(self) -> None:
        """Score every head and neuron that is kept, on the model as it stands."""
        shape = self.kept.shape(self.ground.shape)
        units = [*shape.units("head"), *shape.units("neurons", 1)]
        found = unit_scores(self.model, self.ground.fitting, units, self.ways.score, seed=self.ways.seed)
        self.ground.scored(len(self.ground.fitting), self.kept, float(found.info["passes"]))
        if self.first is None:
            self.first = found
        for unit, value in found.by_unit().items():
            layer = self.kept.blocks[unit.layer]
            whose, members = (
                (self.marks.heads, self.kept.heads) if unit.kind == "head" else (self.marks.neurons, self.kept.neurons)
            )
            whose[layer][members[layer][unit.members[0]]] = max(value, 0.0)

    def take(self, kept: Kept, **columns: object) -> None:
        """Go on with what is kept here, and say so in the trail."""
        if kept != self.kept:
            self.kept, self.model = kept, self.ground.smaller(kept)
        self.tell(kept, **columns)

    def tell(self, kept: Kept, **columns: object) -> None:
        macs = self.marks.macs(kept)
        self.rows.append({"macs": macs, "share": macs / self.ground.macs, **columns})

    def done(self, **goal: object) -> Circuit:
        """The circuit as it stands."""
        ground, ways = self.ground, self.ways
        values = ground.kl(self.model, self.kept)
        model = cls_only_of(self.model) if ways.cls_only else self.model
        info: dict[str, object] = {
            **goal,
            "score": ways.score,
            "fold": ways.fold,
            "ridge": ways.ridge,
            "seed": ways.seed,
            "images": len(ground.fitting) + len(ground.judging),
            "judging_images": len(ground.judging),
            "judging_views": ground.views,
            "kl_bound": bound(values),
            "passes": round(ground.passes, 2),
            "seconds": round(time.perf_counter() - self.started, 2),
            "macs": self.marks.macs(self.kept),
            "macs_whole": ground.macs,
        }
        return Circuit(self.kept, model, interval(values), self.first, tuple(self.rows), info)


def within_kl(
    model: Model,
    images: ImageSet,
    threshold: float,
    ways: Ways | None = None,
    *,
    judging: ImageSet | None = None,
    rounds: int = ROUNDS,
) -> Circuit:
    """The smallest model found whose KL stays under a budget.

    In each of the rounds a larger part of the budget may be spent, the last time all of it: units leave in the order of
    score per multiply-add, and how many may is found by bisection, each attempt folded, fitted and judged. What is
    compared with the budget is a bound of the mean KL over judging images (`bound`), to which nothing was fitted, so that
    it holds for other images of their kind. This is ACDC's question (Conmy et al. 2023: does the output change by less than
    τ?) asked of the whole removal rather than of each step, and of thousands of neurons in a dozen or two of passes.

    Args:
        images: that maps are fitted to and units scored on, of the training part say.
        threshold: nats.
        judging: images that the model was not trained on; None keeps a quarter of `images` aside.

    Raises:
        HeldOutError: sealed images.
        WeightsmithError: a threshold that is not positive, no ViT, or too few images.
    """
    if not 0 < threshold < float("inf"):
        raise WeightsmithError(f"a KL budget of {threshold} removes nothing: give a positive number of nats, 0.05 say")
    search = Search.of(model, images, judging, ways or Ways())
    for number in range(1, rounds + 1):
        budget = threshold * 4.0 ** (number - rounds)
        search.score()
        path = search.marks.path(search.kept)
        best = search.kept
        low, high = float(search.marks.smallest), float(search.marks.macs(search.kept))
        for _ in range(_LOOKS if number < rounds else _LAST_LOOKS):
            middle = (low + high) / 2
            kept = path.at(middle)
            if kept == best:
                break
            attempt = search.ground.smaller(kept)
            values = search.ground.kl(attempt, kept)
            above = bound(values)
            fits = above <= budget
            search.tell(kept, round=number, kl=float(values[0].mean()), kl_bound=above, budget=budget, taken=fits)
            if fits:
                best, high = kept, middle
                search.model, search.kept = attempt, kept
            else:
                low = middle
        _log.info("round %d of %d: %.1f%% of the multiplications stay", number, rounds, 100 * _share(search))
    return search.done(goal="kl", threshold=threshold, rounds=rounds)


def within_macs(
    model: Model,
    images: ImageSet,
    keep: float,
    ways: Ways | None = None,
    *,
    judging: ImageSet | None = None,
    rounds: int = ROUNDS,
) -> Circuit:
    """A model with at most this share of the multiplications of the one that is given.

    Args:
        images, judging: as for `within_kl`; those to judge by only say what the result's KL is.

    Raises:
        HeldOutError: sealed images.
        WeightsmithError: a share outside (0, 1] or below what the smallest model takes, no ViT, or too few images.
    """
    if not 0 < keep <= 1:
        raise WeightsmithError(f"{keep} is no share of the multiplications to keep: give one above 0 and at most 1")
    search = Search.of(model, images, judging, ways or Ways())
    whole = search.ground.macs
    least = search.marks.smallest / whole
    if keep < least:
        raise WeightsmithError(
            f"to keep {keep:g} of the multiplications everything would have to go: embedding, classifier and one head take "
            f"{least:.4f}, give that or more"
        )
    start = search.marks.macs(search.kept) / whole
    for number in range(1, rounds + 1):
        goal = start + (keep - start) * number / rounds
        if number == 1 or goal < _share(search):
            search.score()
        if goal < _share(search):
            search.take(search.marks.path(search.kept).at(goal * whole), round=number)
        _log.info("round %d of %d: %.1f%% of the multiplications stay", number, rounds, 100 * _share(search))
    return search.done(goal="multiply-adds", keep=keep, rounds=rounds)


def _share(search: Search) -> float:
    return search.marks.macs(search.kept) / search.ground.macs
