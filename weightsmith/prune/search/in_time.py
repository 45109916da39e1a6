"""A circuit that is so much faster on this machine: widths chosen from a measured table, and the result timed."""

from __future__ import annotations

import logging

import numpy as np

from weightsmith.circuit import Kept
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.measure.intervals import Interval
from weightsmith.measure.latency import latencies
from weightsmith.models import Model
from weightsmith.prune.removal import cls_only
from weightsmith.prune.search.knapsack import Choice, allocate
from weightsmith.prune.search.path import Marks
from weightsmith.prune.search.timing import TimeTable, time_table
from weightsmith.prune.search.within import ROUNDS, Circuit, Search, Ways

_log = logging.getLogger(__name__)

_CORRECTIONS = 3
"""Times that the target is set lower where the model, timed whole, takes longer than its parts promised."""
_TIMED = 30


def within_time(
    model: Model,
    images: ImageSet,
    ratio: float,
    ways: Ways | None = None,
    *,
    judging: ImageSet | None = None,
    batch_size: int = 8,
    rounds: int = ROUNDS,
    table: TimeTable | None = None,
) -> Circuit:
    """A model that takes at most this share of the time of the one that is given, at one batch size, on this machine.

    Each round scores the units, gives each sublayer the curve of what its cheapest units are worth together, and chooses
    one width for each by a knapsack over the measured times. The result is timed beside the whole model; where it is
    slower than asked, the target is set lower and the last round done again.

    Args:
        table: of `time_table`; None measures it.

    Raises:
        HeldOutError: sealed images.
        WeightsmithError: a ratio outside (0, 1], or one that no model reaches, no ViT, or too few images.
    """
    if not 0 < ratio <= 1:
        raise WeightsmithError(f"{ratio} is no share of the time to take: give one above 0 and at most 1")
    ways = ways or Ways()
    search = Search.of(model, images, judging, ways)
    table = table or time_table(model, batch_size, ways.multiple, seed=ways.seed)
    least = table.rest + min(table.attention[1, True], table.attention[1, False])
    if ratio * table.whole < least:
        raise WeightsmithError(
            f"no model takes {ratio:g} of the time at {batch_size} images: embedding, classifier and one head take "
            f"{least / table.whole:.3f}, give more"
        )
    start = 1.0
    for number in range(1, rounds + 1):
        goal = start + (ratio - start) * number / rounds
        search.score()
        before, model_before = search.kept, search.model
        kept = _chosen(search.marks, before, table, goal * table.whole)
        search.take(kept, round=number, milliseconds=table.of(kept, ways.cls_only))
        _log.info("round %d of %d: %.3f of the time, by the table", number, rounds, goal)
    timed = _timed(search, batch_size)
    for _ in range(_CORRECTIONS):
        if timed.value <= ratio:
            break
        goal *= ratio / timed.value * 0.99
        _log.info("timed whole it takes %.3f of the time: aiming at %.3f", timed.value, goal)
        search.kept, search.model = before, model_before
        try:
            kept = _chosen(search.marks, before, table, goal * table.whole)
        except WeightsmithError:
            break
        search.take(kept, round=rounds, milliseconds=table.of(kept, ways.cls_only))
        timed = _timed(search, batch_size)
    if timed.value > ratio:
        _log.warning("the smaller model takes %.3f of the time, more than the %.3f asked for", timed.value, ratio)
    return search.done(
        goal="time",
        ratio=ratio,
        batch_size=batch_size,
        rounds=rounds,
        time_ratio=timed.value,
        time_ratio_low=timed.low,
        time_ratio_high=timed.high,
    )


def _chosen(marks: Marks, kept: Kept, table: TimeTable, budget: float) -> Kept:
    """The best widths within so many milliseconds, of what is kept."""
    last = max(layer for layer, heads in enumerate(kept.heads) if heads)
    groups: list[list[Choice]] = []
    counts: list[list[int]] = []
    orders: list[list[int]] = []
    for layer in range(len(kept.heads)):
        alone = marks.cls_only and layer >= last
        for members, scores, times, sizes in (
            (kept.heads[layer], marks.heads[layer], table.attention, range(len(kept.heads[layer]) + 1)),
            (kept.neurons[layer], marks.neurons[layer], table.mlp, table.widths(len(kept.neurons[layer]))),
        ):
            order = sorted(members, key=lambda one, scores=scores: (-scores[one], one))  # type: ignore[misc]
            worth = np.concatenate([[0.0], np.cumsum([scores[one] for one in order])])
            # The last attention stays: behind it only CLS is computed, and without any no patch is seen.
            able = [n for n in sizes if n > 0 or layer != last or times is not table.attention]
            groups.append([Choice(float(worth[-1] - worth[n]), times[n, alone]) for n in able])
            counts.append(able)
            orders.append(order)
    places = allocate(groups, budget - table.rest)
    if places is None:
        raise WeightsmithError(f"no widths take {budget:.3g} ms together: ask for less of a reduction")
    stay = [tuple(sorted(order[: able[place]])) for order, able, place in zip(orders, counts, places, strict=True)]
    return Kept(tuple(stay[0::2]), tuple(stay[1::2]))


def _timed(search: Search, batch_size: int) -> Interval:
    """Time of the smaller model divided by that of the whole one, round by round."""
    mine = cls_only(search.model) if search.ways.cls_only else search.model
    both = latencies({"whole": search.ground.given, "smaller": mine}, [batch_size], _TIMED, seed=search.ways.seed)
    return both["smaller"][batch_size].against(both["whole"][batch_size])
