"""The coefficient of a merge, chosen on validation data of each model's task and told on their sealed test data."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from weightsmith import __version__
from weightsmith.data.split import sample
from weightsmith.errors import WeightsmithError
from weightsmith.files import default_cache_dir, user_path
from weightsmith.measure import Interval
from weightsmith.measure.kept import keep_json, kept_json
from weightsmith.merge import Checkpoint, Method, merge
from weightsmith.merge.goal import Goal, Point
from weightsmith.models import Model, load
from weightsmith.progress import progress
from weightsmith.run.cells import key_of
from weightsmith.run.judges import (
    Cut,
    Judge,
    classifier,
    columns,
    judge_of,
    named_apart,
    on_test,
    on_validation,
    with_backbone,
)
from weightsmith.run.options.merge import MergeOptions

_log = logging.getLogger(__name__)

COEFFICIENTS = tuple(round(0.1 * step, 1) for step in range(11))
"""0, 0.1, ..., 1."""
_CELLS = "merge-search"
"""Where in the cache folder accuracies are kept, so that a search that was stopped goes on."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What a merge is judged by.

    Attributes:
        base: the base's network, on the device.
        tasks: a judge for each model, whose network is that model; control: one whose network is the base.
        notes: what a reader must know of their data.
    """

    base: Model
    tasks: tuple[Judge, ...]
    control: Judge | None
    notes: tuple[str, ...]

    @property
    def judges(self) -> tuple[Judge, ...]:
        """All of them, the control last."""
        return self.tasks if self.control is None else (*self.tasks, self.control)

    @classmethod
    def of(
        cls,
        cut: Cut,
        base: str,
        models: Sequence[str],
        data: Sequence[str],
        control: str | None,
        most: int | None,
        device: str,
        *,
        blank: bool = False,
    ) -> Bench:
        """Read the networks and their data sets.

        Args:
            data: one a model; control: of the base, None for none.
            most: validation images a data set that choose; None takes all.
            blank: see `open_data`.

        Raises:
            WeightsmithError: naming the flag: not one data set a model, no classifier, other classes than the data.
        """
        if len(data) != len(models):
            raise WeightsmithError(
                f"--data-path names {len(data)} data sets for {len(models)} models: give the data set of each model, in their "
                "order"
            )
        notes: list[str] = []
        own = classifier(base, "--base", device)
        judges = [
            judge_of(cut, classifier(path, "--models", device), path, spec, "--data-path", notes, blank=blank)
            for path, spec in zip(models, data, strict=True)
        ]
        marks = [Path(path).name for path in models]
        if control is not None:
            judges.append(judge_of(cut, own, base, control, "--control-data-path", notes, blank=blank))
            marks.append("control")
        if most is not None:
            judges = [replace(one, val=sample(one.val, most, cut.seed)) for one in judges]
        judges = named_apart(judges, marks)
        tasks = judges[: len(models)]
        return cls(own, tuple(tasks), judges[-1] if control is not None else None, tuple(notes))


@dataclass(frozen=True, eq=False)
class Judged:
    """What every coefficient came to on validation images.

    Attributes:
        goal: what was wanted; points: what each coefficient came to.
        rows: a row for each coefficient and data set: accuracies with intervals.
    """

    goal: Goal
    points: tuple[Point, ...]
    rows: tuple[dict[str, object], ...]

    def best(self) -> Point:
        """The point to choose. Raises as `Goal.best`."""
        return self.goal.best(self.points)


@dataclass(frozen=True, eq=False)
class Found:
    """What a search came to.

    Attributes:
        method: the method with the chosen coefficient.
        judged: what the choice was made from; best: the chosen point.
        test: a row for each data set and backbone (base, own, merged): sealed test accuracies.
        bench: who judged.
    """

    method: Method
    judged: Judged
    best: Point
    test: tuple[dict[str, object], ...]
    bench: Bench

    @property
    def rows(self) -> list[dict[str, object]]:
        """The rows of `search.csv`."""
        return [row | {"chosen": row["coefficient"] == self.best.coefficient} for row in self.judged.rows]

    def record(self) -> dict[str, Any]:
        """What `merge_report.json` holds of it."""
        goal = self.judged.goal
        return {
            "coefficient": self.best.coefficient,
            "score": round(goal.score(self.best), 6),
            "control_keep": goal.keep if goal.control is not None else None,
            "coefficients": [point.coefficient for point in self.judged.points],
            "test": list(self.test),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Search:
    """One search.

    Attributes:
        method: how; its `scale` is what is searched.
        base, models, weights, dtype: as `weightsmith.merge.merge` takes them.
        head: the policy of the merged model. With "merge" it is judged as it is; else every data set has its own model's head,
            whatever the backbone under it, since heads of different classes are no matter of arithmetic.
        bench: the judges.
        keep: share of its accuracy that the base must keep on the control.
        cache: folder in which accuracies are kept by content.
    """

    method: Method
    base: str
    models: tuple[str, ...]
    weights: tuple[float, ...]
    head: str
    bench: Bench
    coefficients: tuple[float, ...] = COEFFICIENTS
    keep: float
    cache: Path
    dtype: str | None = None

    @classmethod
    def of(cls, options: MergeOptions, method: Method, bench: Bench) -> Search:
        """The search that the command's options ask for."""
        assert options.base is not None
        return cls(
            method=method,
            base=options.base,
            models=options.models,
            weights=options.weights or method.default_weights(len(options.models)),
            head=options.head,
            bench=bench,
            coefficients=options.coefficients or COEFFICIENTS,
            keep=options.control_keep,
            cache=user_path(options.cache_dir) if options.cache_dir else default_cache_dir(),
            dtype=options.dtype,
        )

    def judged(self) -> Judged:
        """Judge every coefficient on validation images.

        Raises:
            WeightsmithError: as `merge`; models that have other networks than the base; data that a model knows nothing of.
        """
        tasks, control = self.bench.tasks, self.bench.control
        prints = self._fingerprints()
        alone = [self._cell(one, _own(one), partial(_itself, one)) for one in tasks]
        for one, reference in zip(tasks, alone, strict=True):
            if reference.value == 0:
                raise WeightsmithError(
                    f"{one.model.name} has no validation image of {one.name} right: give --data-path the data set that it was "
                    "trained on"
                )
        stays = None if control is None else self._cell(control, _own(control), partial(_itself, control))
        goal = Goal(
            references=tuple(reference.value for reference in alone),
            wanted=tuple(weight >= 0 for weight in self.weights),
            control=None if stays is None else stays.value,
            keep=self.keep,
        )
        rows: list[dict[str, object]] = []
        points = []
        with progress("coefficients", len(self.coefficients)) as advance:
            for coefficient in self.coefficients:
                seen = self._measured(coefficient, prints)
                point = Point(
                    coefficient=coefficient,
                    tasks=tuple(accuracy.value for accuracy in seen[: len(tasks)]),
                    control=None if control is None else seen[-1].value,
                )
                points.append(point)
                rows += self._rows(point, seen, goal)
                advance(1, f"{coefficient:g}: {goal.score(point):.3f}")
        return Judged(goal, tuple(points), tuple(rows))

    def done(self) -> Found:
        """Judge every coefficient, choose, and test the choice once. Raises as `judged` and `Goal.best`."""
        judged = self.judged()
        best = judged.best()
        method = replace(self.method, scale=best.coefficient)
        return Found(method, judged, best, tuple(self._tested(method, self._fingerprints())), self.bench)

    def _fingerprints(self) -> list[str]:
        found = []
        for source in (self.base, *self.models):
            with Checkpoint.open(source) as checkpoint:
                found.append(checkpoint.fingerprint())
        return found

    def _measured(self, coefficient: float, prints: list[str]) -> list[Interval]:
        """Validation accuracy of every judge at a coefficient; the merge is made only where one is not known."""
        method = replace(self.method, scale=coefficient)
        made: list[Model] = []

        def judge(one: Judge) -> Judge:
            if not made:
                made.append(self._merged(method))
            return self._under(one, made[0])

        return [self._cell(one, self._key(method, prints, one), partial(judge, one)) for one in self.bench.judges]

    def _tested(self, method: Method, prints: list[str]) -> list[dict[str, object]]:
        """Test accuracy of the base, of each task's own model, and of the merged one; the only look at sealed images."""
        merged = self._merged(method)
        rows: list[dict[str, object]] = []
        for one in self.bench.judges:
            control = one is self.bench.control
            ways: dict[str, Callable[[], Judge]] = {
                "base": partial(with_backbone, one, self.bench.base),
                "own": partial(_itself, one),
                "merged": partial(self._under, one, merged),
            }
            if control:
                del ways["own"]  # its own network is the base
            for name, made in ways.items():
                keys: dict[str, dict[str, object]] = {
                    "base": {"under": one.model.fingerprint(), "backbone": prints[0]},
                    "own": _own(one),
                    "merged": self._key(method, prints, one),
                }
                found = self._cell(one, keys[name], made, test=True)
                rows.append(
                    {
                        "data": one.name,
                        "role": "control" if control else "task",
                        "backbone": name,
                        **columns("test", found),
                    }
                )
        return rows

    def _merged(self, method: Method) -> Model:
        """The merged network, through the files that a merge writes."""
        head = self.head if self.head == "merge" else "take:0"
        with tempfile.TemporaryDirectory(prefix="weightsmith-merge-") as place:
            folder = Path(place) / "merged"
            quiet = logging.getLogger("weightsmith.merge")
            level = quiet.level
            quiet.setLevel(logging.ERROR)  # its notes are told once, of the merge that stays
            try:
                merge(method, self.base, self.models, folder, weights=self.weights, head=head, dtype=self.dtype)
            finally:
                quiet.setLevel(level)
            return load(folder, device=str(self.bench.base.device))

    def _under(self, one: Judge, merged: Model) -> Judge:
        if self.head != "merge":
            return with_backbone(one, merged)
        if merged.n_classes != one.model.n_classes:
            raise WeightsmithError(
                f"{one.name} has {one.model.n_classes} classes and the merged head {merged.n_classes}: give --head base or "
                "take:I, and every data set is judged under its own model's head"
            )
        return replace(one, model=merged)

    def _key(self, method: Method, prints: list[str], one: Judge) -> dict[str, object]:
        return {
            "method": method.name, "parameters": asdict(method), "sources": prints, "weights": self.weights,
            "head": self.head if self.head == "merge" else one.model.fingerprint(), "dtype": self.dtype,
        }  # fmt: skip

    def _cell(
        self, one: Judge, what: Mapping[str, object], made: Callable[[], Judge], *, test: bool = False
    ) -> Interval:
        """An accuracy, from the cache where it was measured before."""
        data = (one.test if test else one.val).digest()
        key = key_of({"version": __version__, "data": data, "part": "test" if test else "val", **what})
        place = self.cache / _CELLS / f"{key}.json"
        kept = kept_json(place)
        if kept is not None:
            return Interval(**kept)
        judge = made()
        found = on_test(judge) if test else on_validation(judge)
        keep_json(place, asdict(found))
        return found

    def _rows(self, point: Point, seen: Sequence[Interval], goal: Goal) -> list[dict[str, object]]:
        shares = [
            *goal.normalised(point),
            *([] if goal.control is None else [cast(float, point.control) / (goal.control or 1)]),
        ]
        references = [*goal.references, *([] if goal.control is None else [goal.control])]
        rows: list[dict[str, object]] = []
        for one, found, share, reference in zip(self.bench.judges, seen, shares, references, strict=True):
            rows.append(
                {
                    "coefficient": point.coefficient,
                    "data": one.name,
                    "role": "control" if one is self.bench.control else "task",
                    **columns("val", found),
                    "reference": round(reference, 6),
                    "normalised": round(share, 6),
                    "score": round(goal.score(point), 6),
                    "allowed": goal.allows(point),
                }
            )
        return rows


def _own(one: Judge) -> dict[str, object]:
    """What an accuracy of a judge's own network depends on."""
    return {"alone": one.model.fingerprint()}


def _itself(one: Judge) -> Judge:
    return one
