"""What is wanted of a coefficient, and which of several comes nearest to it on validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from weightsmith.errors import WeightsmithError

KEEP = 0.95
"""Share of its accuracy on the control that a model keeps when something is taken from it (Ilharco et al. 2023, section 3)."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one coefficient came to.

    Attributes:
        coefficient: λ.
        tasks: accuracy on each model's data set, in [0, 1].
        control: accuracy on the data set that is to stay as it is; None where there is none.
    """

    coefficient: float
    tasks: tuple[float, ...]
    control: float | None = None


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Which coefficient is the best.

    The score is the mean over tasks of ±a/r, with a the merged model's accuracy and r that of the task's own model ("normalised
    accuracy", Ilharco et al. 2023, section 4); − for a task that is taken away. Of the points that keep enough of the control
    the one of largest score is chosen, and of equal ones the coefficient nearest to 0, which changes less.

    Attributes:
        references: r of each task, above 0.
        wanted: for each task whether it is to be learned, or else taken away.
        control: accuracy of the base on the control; None where there is none.
        keep: share of it that must stay.
    """

    references: tuple[float, ...]
    wanted: tuple[bool, ...]
    control: float | None = None
    keep: float = KEEP

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise WeightsmithError(f"--control-keep must be a share from 0 to 1, not {self.keep:g}: give 0.95")
        if not all(self.wanted) and self.control is None:
            raise WeightsmithError(
                "a negative weight takes a task away, and nothing says what must stay, so that the most destructive "
                "coefficient would win: give --control-data-path, the data set of the base"
            )

    def normalised(self, point: Point) -> tuple[float, ...]:
        """a/r of each task."""
        return tuple(a / r for a, r in zip(point.tasks, self.references, strict=True))

    def score(self, point: Point) -> float:
        """The mean of ±a/r."""
        signs = (1 if wanted else -1 for wanted in self.wanted)
        return fmean(sign * share for sign, share in zip(signs, self.normalised(point), strict=True))

    def allows(self, point: Point) -> bool:
        """Whether it keeps enough of the control."""
        return self.control is None or (point.control is not None and point.control >= self.keep * self.control)

    def best(self, points: Sequence[Point]) -> Point:
        """The point to choose.

        Raises:
            WeightsmithError: none keeps enough of the control.
        """
        allowed = [point for point in points if self.allows(point)]
        if not allowed:
            raise WeightsmithError(
                f"no coefficient keeps {self.keep:.0%} of the control's accuracy ({self.control:.1%}): give smaller "
                "--coefficients, 0 among them, or a smaller --control-keep"
            )
        return min(allowed, key=lambda point: (-self.score(point), abs(point.coefficient)))
