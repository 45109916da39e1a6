"""The charts of the page of `weightsmith evaluate`, of rows of `evaluation_metrics.csv`: what `evaluation_figure` draws, and
every value told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from weightsmith.evaluate import Candidate, ConfidenceBin, pareto_front
from weightsmith.measure import Interval
from weightsmith.report.evaluation import ByClass
from weightsmith.report.parts import Bars, Block, Chart, Line, Point
from weightsmith.report.parts.chart import has_numbers
from weightsmith.report.words import Row, number

BATCH_SIZES = (1, 8, 64)

_MOST_CLASSES = 12
"""Classes up to which a difference shows each of them."""
_FRONT = (
    "A model is on the Pareto front where no other is as accurate and as {good}, and better in one of the two. A ring is "
    "around those that are recommended; the point says what for."
)
_SIZES = {"parameters": "parameters", "macs": "multiplications", "bytes_on_disk": "bytes on disk"}

Drawn = list[tuple[str, Sequence[Block]]]
"""Caption, and what stands above it."""


def front_charts(rows: Sequence[Row], chosen: Sequence[tuple[str, str]] = ()) -> Drawn:
    """Accuracy against the time of a batch of 8 and against the multiplications, with the Pareto fronts and rings around
    the recommended models.

    Args:
        rows: of `evaluation_metrics.csv`; chosen: what for, and the model's name.
    """
    purposes: dict[str, list[str]] = {}
    for purpose, model in chosen:
        purposes.setdefault(model, []).append(purpose)
    by_time = [str(row["model"]) for row in rows if row["pareto"]]
    by_count = pareto_front(
        [Candidate(str(row["model"]), *(_exactly(row, name) for name in ("accuracy", "macs"))) for row in rows]
    )
    return [
        (
            "Lines on points are 95% intervals, of accuracy and of time. " + _FRONT.format(good="fast"),
            [_front(rows, by_time, purposes, "ms_8", "time", "milliseconds a batch of 8")],
        ),
        (
            "Lines on points are 95% intervals. " + _FRONT.format(good="small"),
            [_front(rows, by_count, purposes, "macs", "multiplications", "millions of multiplications an image")],
        ),
    ]


def _front(
    rows: Sequence[Row], front: Sequence[str], purposes: dict[str, list[str]], column: str, against: str, x_title: str
) -> Chart:
    unit = 1e6 if column == "macs" else 1.0
    lines: list[Line] = []
    points: dict[str, Point] = {}
    for row in rows:
        name = str(row["model"])
        shown = {**row, column: number(row[column]) / unit}
        points[name] = Point.of(shown, column, "accuracy", "; ".join(purposes.get(name, ())), name in purposes)
        lines.append(Line(called(row), [points[name]], joined=False))
    steps = sorted((Point(points[name].x, points[name].y) for name in front), key=lambda point: (point.x, point.y))
    if len({(point.x, point.y) for point in steps}) > 1:
        lines.insert(0, Line("Pareto front", steps, steps=True, quiet=True, dash=1))
    return Chart(
        title=f"Accuracy against {against}",
        x_title=x_title,
        y_title="accuracy",
        lines=lines,
        y_percent=True,
        chosen="recommended",
        bounds="95% interval",
    )


def measure_charts(
    rows: Sequence[Row], by_class: ByClass, baseline: str, bins: Mapping[str, Sequence[ConfidenceBin]]
) -> Drawn:
    """Accuracy, its difference to the baseline's, confidence and calibration, times and sizes; those that have numbers.

    Args:
        rows: of `evaluation_metrics.csv`; by_class: class name, and each model's accuracy on its images.
        baseline: the name of the model that the others are set against.
        bins: model → of how sure it is, how often it is right.
    """
    others = [row for row in rows if str(row["model"]) != baseline]
    found = [
        (
            "How many of the held-out images are right, with 95% intervals.",
            _bars(rows, "Accuracy", "accuracy", {"accuracy": "top-1", "top5": "top-5"}, value_range=(0.0, 1.0)),
        ),
        (
            "How many more images are right than of the baseline, image by image, with 95% intervals: where one holds 0, "
            "the difference may be chance." + (" Small circles are single classes." if _few(by_class) else ""),
            _differences(others, by_class, baseline),
        ),
        (
            "Mean probability of the class that is given, where it is right and where it is wrong, with 95% intervals. The "
            "further apart, the better wrong answers can be told by it.",
            _bars(
                rows,
                "Confidence",
                "confidence",
                {"confidence_when_right": "where right", "confidence_when_wrong": "where wrong"},
                value_range=(0.0, 1.0),
                filled=False,
            ),
        ),
        (
            "The expected difference between confidence and accuracy, over 15 bins of equal width. It has no interval, for "
            "resampling biases it upwards.",
            _bars(rows, "Calibration error", "calibration error", {"calibration_error": ""}),
        ),
        (
            "How often a model is right by how sure it is, over the bins of the calibration error, with 95% intervals. Below "
            "the dashed line it is surer than it should be.",
            _reliability(rows, bins),
        ),
        (
            "Median over the rounds that were timed; lines on points are quartiles, what single passes spread over.",
            _times(rows),
        ),
        (
            "Time of a batch divided by the baseline's, with 95% intervals over rounds in which both ran.",
            _bars(
                others,
                "Time, of the baseline's",
                "of the baseline's",
                {f"time_ratio_{size}": f"batch of {size}" for size in BATCH_SIZES},
            ),
        ),
        (
            "What a model has or needs, divided by the baseline's.",
            _sizes(others, next((row for row in rows if str(row["model"]) == baseline), None)),
        ),
    ]
    return [(caption, [block]) for caption, block in found if block is not None]


def _bars(
    rows: Sequence[Row],
    title: str,
    value_title: str,
    measures: dict[str, str],
    value_range: tuple[float, float] | None = None,
    filled: bool = True,
) -> Bars | None:
    """A bar or a mark a model and measure; None without numbers."""
    lines = [
        Line(name, [Point.of({**row, "at": at}, "at", column) for at, row in enumerate(rows)])
        for column, name in measures.items()
        if any(not math.isnan(number(row[column])) for row in rows)
    ]
    return _drawn(rows, title, value_title, lines, value_range=value_range, filled=filled, percent=True)


def _differences(rows: Sequence[Row], by_class: ByClass, baseline: str) -> Bars | None:
    points, shown = [], by_class if _few(by_class) else ()
    for at, row in enumerate(rows):
        value, low, high = (100 * number(row[f"accuracy_change{end}"]) for end in ("", "_low", "_high"))
        name = str(row["model"])
        apart = [100 * (shares[name].value - shares[baseline].value) for _, shares in shown]
        points.append(Point(float(at), value, low, high, each=apart))
    title = "Accuracy − the baseline's"
    return _drawn(rows, title, "percentage points", [Line("", points)], each="single classes")


def _few(by_class: ByClass) -> bool:
    return 0 < len(by_class) <= _MOST_CLASSES


def _sizes(rows: Sequence[Row], base: Row | None) -> Bars | None:
    lines = []
    for column, name in _SIZES.items():
        whole = math.nan if base is None else number(base[column])
        points = [Point(float(at), number(row[column]) / (whole or math.nan)) for at, row in enumerate(rows)]
        if any(not math.isnan(point.y) for point in points):
            lines.append(Line(name, points))
    return _drawn(rows, "Size, of the baseline's", "of the baseline's", lines, filled=True, percent=True)


def _drawn(
    rows: Sequence[Row],
    title: str,
    value_title: str,
    lines: Sequence[Line],
    *,
    value_range: tuple[float, float] | None = None,
    filled: bool = False,
    percent: bool = False,
    each: str = "single values",
) -> Bars | None:
    if not has_numbers(lines):
        return None
    return Bars(
        title=title,
        names=[called(row) for row in rows],
        row_title="model",
        value_title=value_title,
        lines=lines,
        filled=filled,
        percent=percent,
        each=each,
        value_range=value_range,
    )


def _reliability(rows: Sequence[Row], bins: Mapping[str, Sequence[ConfidenceBin]]) -> Chart | None:
    lines: list[Line] = []
    for row in rows:
        found = bins.get(str(row["model"]), ())
        points = [
            Point(
                one.confidence,
                one.accuracy.value,
                one.accuracy.low,
                one.accuracy.high,
                told=f"{one.accuracy.n:,} images",
            )
            for one in found
        ]
        lines.append(Line(called(row), points, dash=len(lines)))
    if not has_numbers(lines):
        return None
    least = min(point.x for line in lines for point in line.points)
    return Chart(
        title="Accuracy by confidence",
        x_title="confidence",
        y_title="accuracy",
        lines=[Line("as sure as it is right", [Point(least, least), Point(1.0, 1.0)], quiet=True, dash=1), *lines],
        x_percent=True,
        y_percent=True,
        y_range=(-0.02, 1.02),
        bounds="95% interval",
    )


def _times(rows: Sequence[Row]) -> Chart | None:
    lines = [
        Line(
            called(row),
            [
                Point(
                    float(size), number(row[f"ms_{size}"]), number(row[f"ms_{size}_q1"]), number(row[f"ms_{size}_q3"])
                )
                for size in BATCH_SIZES
            ],
            dash=place,
        )
        for place, row in enumerate(rows)
    ]
    if not has_numbers(lines):
        return None
    return Chart(
        title="Time by images in a batch",
        x_title="images in a batch",
        y_title="milliseconds a batch",
        lines=lines,
        x_axis="log2",
        y_axis="log10",
        x_ticks=[float(size) for size in BATCH_SIZES],
        bounds="quartiles",
    )


def called(row: Row) -> str:
    """The name of a model, and whether it is the baseline."""
    name = str(row["model"])
    return f"{name} (baseline)" if row["baseline"] and name != "baseline" else name


def _exactly(row: Row, column: str) -> Interval:
    return Interval(number(row[column]), math.nan, math.nan, 0)
