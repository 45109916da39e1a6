from __future__ import annotations

import re

import numpy as np
import pytest

from weightsmith.report.classes import telling_classes
from weightsmith.report.parts import Cell, HeatMap, Patches, PatchMap, PatchRow, confusion_tabs
from weightsmith.report.parts.confusion import MOST_CLASSES
from weightsmith.report.parts.heatmap import STRONG, decimals_for, signed
from weightsmith.report.parts.patches import MOST_PATCHES
from weightsmith.report.render import rendered


def test_a_cell_has_the_colour_of_its_sign_the_ink_of_its_strength_and_its_mark() -> None:
    assert Cell("x", 0.5).classes == "p"
    assert Cell("x", -STRONG - 0.01, marked=True).classes == "q s m"
    assert Cell("x", -2).alpha == "1.00"
    assert Cell("x", float("nan")).alpha == "0"


@pytest.mark.parametrize(("limit", "decimals"), [(932, 0), (9.3, 2), (0.93, 3), (0.0093, 5), (0, 2)])
def test_the_end_of_a_scale_has_three_digits(limit: float, decimals: int) -> None:
    assert decimals_for(limit) == decimals


def test_numbers_have_a_sign_and_no_minus_nought() -> None:
    assert [signed(value, 1) for value in (0.04, -0.04, -1.25)] == ["+0.0", "+0.0", "−1.2"]


def matrices(classes: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.zeros((classes, classes), np.int64) + np.diag(np.full(classes, 9))
    before[3, 1] = 2
    after = before.copy()
    after[0, 0], after[0, 2] = 8, 1
    return before, after


def test_every_changed_count_is_marked_and_told_and_no_other() -> None:
    before, after = matrices(4)
    tabs = confusion_tabs("c", before, {"after head": after}, ["a", "b", "c", "d"])
    assert [title for title, _ in tabs.panels] == ["before", "after head"]
    first, second = (blocks[0] for _, blocks in tabs.panels)
    assert isinstance(second, HeatMap)
    assert isinstance(first, HeatMap)
    marked = {(y, x) for y, line in enumerate(second.cells) for x, cell in enumerate(line) if cell and cell.marked}
    assert marked == {(0, 0), (0, 2)}
    assert not any(cell and cell.marked for line in first.cells for cell in line)
    assert second.cells[0][0] is not None
    assert second.cells[0][0].told == "8 of 9 images, 9 before (−1)"
    assert second.cells[0][2] is not None
    assert second.cells[0][2].text == "1 +1"
    assert second.cells[1][0] is None
    assert second.title == "after head: 92.1% of 38 images right"
    assert "2 cells differ from before." in second.notes


def test_of_many_classes_those_that_changed_or_are_wrong_are_shown_and_the_rest_is_counted() -> None:
    before, after = matrices(300)
    before[200, 250] = after[200, 250] = 5
    kept = telling_classes(before, [after], 4)
    assert kept == [0, 2, 200, 250]  # changed, then those with most errors
    text = rendered(confusion_tabs("c", before, {"after": after}, [str(place) for place in range(300)]), "x", 3)
    assert f"{MOST_CLASSES} of 300 classes" in text
    assert text.count("<tr>") == 2 * (MOST_CLASSES + 1)


def test_ten_thousand_classes_stay_small() -> None:
    count = 10_000
    before = np.zeros((count, count), np.int16)
    before[np.arange(count), np.arange(count)] = 1
    after = before.copy()
    after[17, 17], after[17, 9_999] = 0, 1
    text = rendered(confusion_tabs("c", before, {"after": after}, [f"class {n}" for n in range(count)]), "x", 3)
    assert len(text) < 400_000
    assert "50 of 10,000 classes" in text
    assert "class 9999" in text


def row(name: str, side: int) -> PatchRow:
    return PatchRow(name, "data:,", True, 1.5, [PatchMap("layer 0", np.full((side, side), -0.5), frozenset({1}))])


def test_patches_tell_their_values_and_too_many_are_left_out_by_the_image() -> None:
    one = Patches(title="t", unit="u", images=[row("a", 2)], outline="top")
    cells = one.cells(one.images[0].maps[0])
    assert cells[1] == (1, 0, "q m", "0.92", "−0.5000")
    side = int(MOST_PATCHES**0.5) - 1
    many = Patches(title="t", unit="u", images=[row("a", side), row("b", side), row("c", side)], file="token_maps.csv")
    text = rendered(many, "x", 3)
    assert "2 more images are left out" in text
    assert "token_maps.csv" in text
    assert text.count("<rect") == side * side


def test_an_effect_that_was_not_measured_says_so() -> None:
    values = np.array([[np.nan, 1.0]])
    one = Patches(title="t", unit="u", images=[PatchRow("a", "data:,", False, 1.0, [PatchMap("m", values)])])
    text = rendered(one, "x", 3)
    assert re.search(r'fill-opacity="0.00"><title>not measured</title>', text)
