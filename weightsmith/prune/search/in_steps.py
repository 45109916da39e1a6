"""A circuit by ACDC's own rule, folded and fitted like the others."""

from __future__ import annotations

from weightsmith.circuit import Kept
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.prune.search.acdc import acdc
from weightsmith.prune.search.within import Circuit, Search, Ways
from weightsmith.prune.trials import Trials


def by_steps(
    model: Model,
    images: ImageSet,
    threshold: float,
    ways: Ways | None = None,
    *,
    judging: ImageSet | None = None,
    group: int = 16,
) -> Circuit:
    """What `acdc` leaves when each removal may add so many nats of KL; the sum is not bounded (`within_kl` bounds it).

    Args:
        images, judging: as for `within_kl`; removals are tried over those to judge by.
        group: neurons that go together, of like score.

    Raises:
        HeldOutError: sealed images.
        WeightsmithError: a threshold that is not positive, no ViT, or too few images.
    """
    if not 0 < threshold < float("inf"):
        raise WeightsmithError(f"a step of {threshold} nats removes nothing: give a positive number, 0.05 say")
    ways = ways or Ways()
    search = Search.of(model, images, judging, ways)
    search.score()
    ground = search.ground
    trials = Trials(ground.model, ground.statistics, ground.judging, fold=ways.fold, ridge=ways.ridge)
    found = acdc(trials, ground.shape, threshold=threshold, group=group, scores=search.first, cls_only=ways.cls_only)
    ground.passes += trials.passes * len(ground.judging) / (len(ground.fitting) + len(ground.judging))
    search.rows += [{"share": row["macs"] / ground.macs, **row} for row in found.rows]
    search.take(search.marks.rounded(found.kept, Kept.everything(ground.shape)))
    return search.done(goal="steps", threshold=threshold, group=group)
