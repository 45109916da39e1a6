from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.circuit import UNIT_KINDS, Kept, Shape, Unit
from weightsmith.errors import WeightsmithError

SHAPE = Shape(tokens=5, width=16, head_width=8, patch=48, classes=4, heads=(2, 0, 3), neurons=(24, 9, 0))

members = st.lists(st.integers(0, 40), max_size=12).map(tuple)


@given(st.sampled_from(UNIT_KINDS), st.integers(0, 99), st.sets(st.integers(0, 300), min_size=1, max_size=9))
def test_a_unit_prints_as_what_parses(kind: str, layer: int, several: set[int]) -> None:
    own = {"head": (min(several),), "neurons": tuple(several)}.get(kind, ())
    unit = Unit(kind, layer, own)
    assert Unit.parse(str(unit)) == unit


@pytest.mark.parametrize(
    ("kind", "layer", "own"),
    [("heads", 0, (1,)), ("head", 0, ()), ("head", 0, (1, 2)), ("neurons", 1, ()), ("attn", 0, (1,)), ("block", -1, ()),
     ("neurons", 0, (-1, 2))],
)  # fmt: skip
def test_what_is_no_unit_is_told(kind: str, layer: int, own: tuple[int, ...]) -> None:
    with pytest.raises(WeightsmithError):
        Unit(kind, layer, own)


@pytest.mark.parametrize("text", ["head", "head[1]", "attn[0,1]", "neurons[0,a]", "neurons[1,2--3]", "block[-1]", ""])
def test_text_that_names_no_unit_is_told(text: str) -> None:
    with pytest.raises(WeightsmithError):
        Unit.parse(text)


def test_every_unit_of_a_shape() -> None:
    assert [str(unit) for unit in SHAPE.units("head")] == [
        "head[0,0]", "head[0,1]", "head[2,0]", "head[2,1]", "head[2,2]",
    ]  # fmt: skip
    assert [str(unit) for unit in SHAPE.units("neurons", 10)] == [
        "neurons[0,0-9]", "neurons[0,10-19]", "neurons[0,20-23]", "neurons[1,0-8]",
    ]  # fmt: skip
    assert [len(SHAPE.units(kind)) for kind in ("block", "attn", "mlp")] == [3, 2, 2]
    for kind, group in (("haed", 1), ("neurons", 0)):
        with pytest.raises(WeightsmithError, match="there are no"):
            SHAPE.units(kind, group)


def test_removing_units() -> None:
    whole = Kept.everything(SHAPE)
    assert whole.shape(SHAPE) == SHAPE
    assert whole.without() == whole
    kept = whole.without(Unit("head", 0, (1,)), Unit("neurons", 0, tuple(range(4, 24))), Unit("attn", 2))
    assert kept.heads == ((0,), (), ())
    assert kept.neurons == ((0, 1, 2, 3), tuple(range(9)), ())
    assert kept.blocks == (0, 1)
    assert kept.without(Unit("attn", 2), Unit("head", 0, (1,))) == kept, "what is gone may be named again"
    assert (kept.shape(SHAPE).heads, kept.shape(SHAPE).neurons) == ((1, 0), (4, 9))
    assert kept.without(Unit("mlp", 1)) == kept.without(Unit("block", 1))
    every = [unit for kind in ("head", "neurons") for unit in SHAPE.units(kind)]
    assert whole.without(*every) == whole.without(*SHAPE.units("block")) == Kept(((),) * 3, ((),) * 3)
    with pytest.raises(WeightsmithError, match=r"block\[3\].* blocks 0 to 2"):
        whole.without(Unit("block", 3))


def test_heads_and_neurons_that_are_not_there_are_told() -> None:
    for kept in (Kept(((2,), (), ()), ((), (), ())), Kept(((), (), ()), ((), (9,), ())), Kept(((0,),), ((),))):
        with pytest.raises(WeightsmithError):
            kept.shape(SHAPE)
    with pytest.raises(WeightsmithError, match="heads of 1 blocks and neurons of 2"):
        Kept(((),), ((), ()))


@given(st.lists(st.tuples(members, members), max_size=4))
def test_what_is_kept_goes_through_json(layers: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    kept = Kept(tuple(heads for heads, _ in layers), tuple(neurons for _, neurons in layers))
    assert Kept.from_json(json.loads(json.dumps(kept.to_json()))) == kept


@pytest.mark.parametrize(
    "value", [{}, {"heads": ["0-3"]}, {"heads": ["0;1"], "neurons": [""]}, {"heads": 3, "neurons": 4}]
)
def test_json_of_something_else_is_told(value: dict[str, object]) -> None:
    with pytest.raises(WeightsmithError):
        Kept.from_json(value)


@given(st.sets(st.integers(0, 24)), st.lists(st.floats(0, 1), min_size=25, max_size=25), st.integers(1, 30))
def test_rounding_keeps_the_best_scored(kept: set[int], scores: list[float], multiple: int) -> None:
    one = Kept(((),), (tuple(kept),))
    more = set(one.rounded([scores], multiple).neurons[0])
    fewer = set(one.rounded([scores], multiple, "fewer").neurons[0])
    for chosen in (more, fewer):
        assert len(chosen) % multiple == 0 or len(chosen) == 25
        assert bool(chosen) == bool(kept)
    assert kept <= more
    assert len(more) - len(kept) < multiple
    back, out = more - kept, set(range(25)) - more
    assert not back or not out or min(scores[i] for i in back) >= max(scores[i] for i in out)
    if len(kept) >= multiple:
        assert fewer <= kept
        assert len(kept) - len(fewer) < multiple
        gone = kept - fewer
        assert not gone or min(scores[i] for i in fewer) >= max(scores[i] for i in gone)


def test_rounding_needs_a_score_for_every_neuron() -> None:
    kept = Kept(((), ()), ((0, 5), ()))
    for scores, multiple in (([[1.0] * 6], 4), ([[1.0] * 5, []], 4), ([[1.0] * 6, []], 0)):
        with pytest.raises(WeightsmithError):
            kept.rounded(scores, multiple)


def test_cost_by_hand() -> None:
    """One block of one head, counted with pencil and paper."""
    one = Shape(tokens=3, width=4, head_width=2, patch=6, classes=5, heads=(1,), neurons=(7,))
    projections, scores, mlp = 4 * 3 * 4 * 2, 2 * 3 * 3 * 2, 2 * 3 * 4 * 7
    assert one.macs() == 2 * 6 * 4 + projections + scores + mlp + 4 * 5
    keys_and_values, one_row = 2 * 3 * 4 * 2, 2 * 4 * 2 + 2 * 3 * 2 + 2 * 4 * 7
    assert one.macs(cls_only=True) == 2 * 6 * 4 + keys_and_values + one_row + 4 * 5
