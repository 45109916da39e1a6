"""What the bench knows of images, edits and previews, as values that the page shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from weightsmith.stream import Proposal, Verdict

Which = Literal["wrong", "broken", "repaired", "corrected", "all"]
"""Images that can be listed: wrong now; wrong now and right at first; the other way round; edited; every one."""

Tell = Callable[[str], None]
"""Told what is being done while it takes its time."""


@dataclass(frozen=True)
class Picture:
    """What there is to know of an image.

    Attributes:
        index: its number on the bench; name: `part/position`; part: "val", "train" or "new site".
        label: the class that the data set has for it; wanted: the class that an edit in force names, else the label.
        first, now: the class that the model gave before the first edit, and gives now.
        sure: probability of that class now.
        edit: number of the edit in force on it, None without one.
        locked: why it cannot be edited, "" where it can.
    """

    index: int
    name: str
    part: str
    label: int
    wanted: int
    first: int
    now: int
    sure: float
    edit: int | None
    locked: str

    @property
    def right(self) -> bool:
        return self.now == self.wanted


@dataclass(frozen=True)
class Made:
    """What an edit makes of one image that it edits: the wanted class, and the class and the wanted one's probability
    before and after.
    """

    index: int
    wanted: int
    before: int
    after: int
    wanted_before: float
    wanted_after: float


@dataclass(frozen=True)
class Moved:
    """An image that an edit does not name and moves: the class that it should get, and what the model says before and after."""

    index: int
    wanted: int
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class Preview:
    """An edit that was solved, judged and measured, and is not in force.

    Attributes:
        proposal: what would be kept.
        verdict: what trust says of it.
        made: the edited images.
        repaired, broken: other images that it makes right, and wrong; none of them is edited.
        slipped: numbers of earlier edits that would no longer hold.
        wrong_before, wrong_after: of the images that no edit names, how many are wrong, of `counted`.
        refused: why it cannot be kept, "" where it can.
    """

    proposal: Proposal
    verdict: Verdict
    made: tuple[Made, ...] = ()
    repaired: tuple[Moved, ...] = ()
    broken: tuple[Moved, ...] = ()
    slipped: tuple[int, ...] = ()
    wrong_before: int = 0
    wrong_after: int = 0
    counted: int = 0
    refused: str = ""


@dataclass(frozen=True)
class Line:
    """An edit in force, as the history tells it.

    Attributes:
        number, batch: of the edit and of its batch.
        name: of its image; index: its number on the bench, None where it is not shown here.
        was, wanted: classes.
        holds: whether the model gives the wanted class now.
        overruled: number of a later edit that names another class for the image, None without one.
        trust: score of its batch, None where none was given.
    """

    number: int
    batch: int
    name: str
    index: int | None
    was: int
    wanted: int
    holds: bool
    overruled: int | None
    trust: float | None


@dataclass(frozen=True)
class Summary:
    """How things stand.

    Attributes:
        looked: images that are looked at; of_part: how many the part has; part: what it is called.
        wrong_first, wrong_now: of them, before the first edit and now; an edited image counts by the class that was named.
        edits: in force; saved: whether the corrected classifier on disk is the one of now.
    """

    looked: int
    of_part: int
    part: str
    wrong_first: int
    wrong_now: int
    edits: int
    saved: bool
