"""Paths of smaller and smaller models, against sorting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.circuit import Kept, Shape
from weightsmith.errors import WeightsmithError
from weightsmith.prune.search.path import Marks, first_true

SHAPE = Shape(tokens=5, width=8, head_width=4, patch=12, classes=3, heads=(2, 2), neurons=(12, 12))


def marks(multiple: int = 1, cls_only: bool = False, seed: int = 0) -> Marks:
    random = np.random.default_rng(seed)
    heads, neurons = (tuple(random.random(n) for n in counts) for counts in (SHAPE.heads, SHAPE.neurons))
    return Marks(SHAPE, heads, neurons, cls_only, multiple)


def test_the_cheapest_for_what_it_costs_goes_first() -> None:
    given = marks()
    path = given.path(Kept.everything(SHAPE))
    head = 4 * SHAPE.tokens * SHAPE.width * SHAPE.head_width + 2 * SHAPE.tokens**2 * SHAPE.head_width
    neuron = 2 * SHAPE.tokens * SHAPE.width
    worth = [(given.heads[layer] / head, given.neurons[layer] / neuron)[half][one] for half, layer, one in path.order]
    assert worth == sorted(worth)
    assert len(path) == 2 * 2 + 2 * 12


def test_each_model_lies_in_the_one_before_and_one_head_stays() -> None:
    path = marks().path(Kept.everything(SHAPE))
    before = path.after(0)
    assert before == Kept.everything(SHAPE)
    for count in range(1, len(path) + 1):
        after = path.after(count)
        for mine, theirs in zip(after.heads + after.neurons, before.heads + before.neurons, strict=True):
            assert set(mine) <= set(theirs)
        assert sum(map(len, after.heads)) >= 1
        before = after


@pytest.mark.parametrize("cls_only", [False, True])
@pytest.mark.parametrize("multiple", [1, 4])
def test_the_largest_within_the_multiplications(multiple: int, cls_only: bool) -> None:
    given = marks(multiple, cls_only)
    path = given.path(Kept.everything(SHAPE))
    every = [given.macs(path.after(count)) for count in range(len(path) + 1)]
    assert every == sorted(every, reverse=True)
    for macs in np.linspace(min(every), max(every), 23):
        assert given.macs(path.at(macs)) == max(one for one in every if one <= macs)


def test_widths_are_multiples_and_what_is_nearly_gone_goes() -> None:
    path = marks(multiple=4).path(Kept.everything(SHAPE))
    for count in range(len(path) + 1):
        kept = path.after(count)
        for layer, neurons in enumerate(kept.neurons):
            left = 12 - sum(half == 1 and where == layer for half, where, _ in path.order[:count])
            assert len(neurons) == (0 if left < 2 else -(-left // 4) * 4)


def test_what_an_earlier_search_took_does_not_come_back() -> None:
    given = marks(multiple=4)
    start = Kept(((0,), (0, 1)), (tuple(range(8)), (4, 5, 6, 7)))
    path = given.path(start)
    for count in range(len(path) + 1):
        kept = path.after(count)
        for mine, theirs in zip(kept.heads + kept.neurons, start.heads + start.neurons, strict=True):
            assert set(mine) <= set(theirs)


def test_nothing_is_smaller_than_one_head() -> None:
    given = marks()
    path = given.path(Kept.everything(SHAPE))
    assert given.macs(path.at(given.smallest)) == given.smallest
    with pytest.raises(WeightsmithError, match="one head alone"):
        path.at(given.smallest - 1)


def test_the_first_of_which_it_holds() -> None:
    for least in range(8):
        assert first_true(lambda n, least=least: n >= least, 7) == least  # type: ignore[misc]
    assert first_true(lambda n: False, 7) is None
