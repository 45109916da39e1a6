from __future__ import annotations

from weightsmith.report.parts import Cards, Shot
from weightsmith.report.parts.cards import fitting, telling
from weightsmith.report.render import rendered


def shot(name: str = "val/3", **more: object) -> Shot:
    return Shot(name, "data:,", True, "repaired", True, **more)  # type: ignore[arg-type]


def test_the_right_class_and_those_given_are_among_the_told_whatever_their_probability() -> None:
    before, after = [0.0, 0.6, 0.3, 0.1, 0.0], [0.1, 0.1, 0.2, 0.6, 0.0]
    told = telling("abcde", before, after, right=4, most=3)
    assert {name for name, *_ in told} == {"b", "d", "e"}
    assert [right for *_, right in told].count(True) == 1
    assert told[0] == ("d", 0.1, 0.6, False)  # the most probable now comes first


def test_probabilities_before_and_after_stand_in_a_table_with_a_name() -> None:
    text = rendered(Cards(shots=[shot(classes=[("cat", 0.25, None, True)])], total=1), "x", 3)
    assert "Class probabilities of val/3" in text
    assert "25.0%" in text
    assert "–" in text
    assert "(the right class)" in text


def test_cards_that_do_not_fit_are_counted_and_their_file_is_named() -> None:
    shots = [shot(str(place)) for place in range(10)]
    shown = fitting(shots, 5 * shots[0].weight)
    text = rendered(Cards(shots=shown, total=10_000, file="predictions.csv", called="broken image"), "x", 3)
    assert len(shown) == 5
    assert "9,995 more broken images are left out" in text
    assert "predictions.csv has all of them" in text
