"""Images with what a classifier said of them before and after: class probabilities side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from weightsmith.report.parts.blocks import Block

BUDGET = 1_500_000
"""Characters of the cards of a page; what does not fit is counted instead of shown."""

_CARD = 1_500
"""About the characters of a card's own text."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One image.

    Attributes:
        name: identifies it; uri: the image, None where there is none; small: enlarged pixel by pixel.
        verdict: what became of it, in a word or two; good: whether that is what was wanted.
        facts: pairs of words, such as ("wanted", "cat").
        classes: name, probability before and after (None where unknown), and whether it is the right class.
        more: what stands below, small.
    """

    name: str
    uri: str | None
    small: bool
    verdict: str
    good: bool
    facts: Sequence[tuple[str, str]] = ()
    classes: Sequence[tuple[str, float | None, float | None, bool]] = ()
    more: Sequence[str] = ()

    @property
    def weight(self) -> int:
        """Characters that it takes in a page."""
        return len(self.uri or "") + _CARD


@dataclass(frozen=True, eq=False, kw_only=True)
class Cards(Block):
    """Images beside each other.

    Attributes:
        title: above them; "" where a heading says it already.
        shots: those that are shown; total: how many there are.
        file: what has the others.
        called: what one of them is called: "edited image"; of: what the probabilities are of.
    """

    kind: ClassVar[str] = "cards"

    title: str = ""
    shots: Sequence[Shot]
    total: int
    file: str = ""
    called: str = "image"
    of: str = "class"

    @property
    def left_out(self) -> int:
        return self.total - len(self.shots)


def fitting(shots: Sequence[Shot], budget: int) -> list[Shot]:
    """The first ones that fit into so many characters."""
    found = []
    for shot in shots:
        budget -= shot.weight
        if budget < 0:
            break
        found.append(shot)
    return found


def telling(
    names: Sequence[str], before: Sequence[float], after: Sequence[float], right: int, most: int = 4
) -> list[tuple[str, float | None, float | None, bool]]:
    """The classes that matter of an image: the right one, the ones given, and the next most probable.

    Args:
        names: by label; before, after: probabilities by label; right: the label that it should have.
    """
    order = [right, _best(before), _best(after)]
    order += sorted(range(len(names)), key=lambda label: -max(before[label], after[label]))[:most]
    chosen = list(dict.fromkeys(order))[:most]
    chosen.sort(key=lambda label: -after[label])
    return [(names[label], float(before[label]), float(after[label]), label == right) for label in chosen]


def _best(probabilities: Sequence[float]) -> int:
    return max(range(len(probabilities)), key=lambda label: probabilities[label])
