"""The table has every width that a search may choose, and adds up to about the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from weightsmith.circuit import Kept
from weightsmith.models import Model
from weightsmith.prune import shape_of, time_table


@pytest.mark.parametrize("family_name", ["vit", "narrow_vit"])
def test_every_width_is_timed(tiny_model: Callable[..., Model], family_name: str) -> None:
    model = tiny_model(family_name)
    shape = shape_of(model)
    table = time_table(model, batch_size=2, multiple=4, rounds=6)
    widths = table.widths(max(shape.neurons))
    assert widths[0] == 0
    assert widths[-1] == max(shape.neurons)
    assert all(width % 4 == 0 for width in widths)
    for times, sizes in ((table.attention, range(max(shape.heads) + 1)), (table.mlp, widths)):
        assert set(times) == {(size, alone) for size in sizes for alone in (False, True)}
        assert all(ms > 0 for (size, _), ms in times.items() if size)
        assert times[0, False] == times[0, True] == 0


def test_the_parts_make_the_whole(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("vit")
    table = time_table(model, batch_size=2, multiple=4, rounds=6)
    said = table.of(Kept.everything(shape_of(model)), cls_only=False)
    assert said == pytest.approx(table.whole)
    assert 0 < table.rest < table.whole
