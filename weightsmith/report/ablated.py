"""The figures of `weightsmith ablate` as a page shows them: every value told. They are drawn from the rows of the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from weightsmith.report.ablation import (
    LORA_PANELS,
    REFERENCES,
    REPLAY_PANELS,
    by_age,
    of_first_batch,
    over_draws,
)
from weightsmith.report.parts import Block, Chart, Level, Line, Point, Tabs
from weightsmith.report.parts.chart import has_numbers
from weightsmith.report.words import Row, number

Summed = Callable[[Sequence[Row]], Sequence[tuple[int, float]]]
_ALL = (-0.02, 1.02)
"""All of 0 to 100%: a part of it would make small differences look large."""


def lora_blocks(rows: Sequence[Row]) -> list[Block]:
    """`lora_rank_vs_metrics` with its values: a chart a measure, seen against the raw edit."""
    adapters = [row for row in rows if row["start"] != "raw"]
    raw = [row for row in rows if row["start"] == "raw"]
    ranks = sorted({number(row["rank"]) for row in adapters})
    ways = list(dict.fromkeys((str(row["start"]), int(number(row["fit_steps"]))) for row in adapters))
    steps = list(dict.fromkeys(count for _, count in ways))
    found: list[Block] = []
    for measure, title in LORA_PANELS.items():
        lines = []
        for start, count in ways:
            mine = [row for row in adapters if (str(row["start"]), int(number(row["fit_steps"]))) == (start, count)]
            points = [_mean([row for row in mine if number(row["rank"]) == rank], measure, rank) for rank in ranks]
            name = f"{'SVD' if start == 'svd' else 'LoRA start'}, {count} fit step{'s' * (count != 1)}"
            lines.append(Line(name, points, look=steps.index(count), dash=int(start != "svd")))
        found += _chart(
            f"{title}",
            "rank of the adapter",
            measure,
            measure.replace("_", " "),
            lines,
            [("raw edit", raw)],
            ranks,
        )
    return found


def replay_blocks(rows: Sequence[Row]) -> list[Block]:
    """`replay_figure` with its values: a tab a size of the buffer, seen against streams that replay nothing."""
    replayed = [row for row in rows if row["kind"] == "requests"]
    rates, buffers = (sorted({number(row[name]) for row in replayed}) for name in ("rate", "buffer_size"))
    strategies = list(dict.fromkeys(str(row["strategy"]) for row in replayed))
    levels = [(name, [row for row in rows if row["kind"] == kind]) for kind, name in REFERENCES.items()]
    panels = []
    for buffer in buffers:
        charts: list[Block] = []
        for measure, title in REPLAY_PANELS.items():
            lines = []
            for place, strategy in enumerate(strategies):
                mine = [r for r in replayed if r["strategy"] == strategy and number(r["buffer_size"]) == buffer]
                points = [_mean([row for row in mine if number(row["rate"]) == rate], measure, rate) for rate in rates]
                lines.append(Line(strategy, points, dash=place))
            named = f"{title}, buffer of {buffer:g}"
            charts += _chart(named, "requests replayed a new one", measure, title.lower(), lines, levels, rates)
        panels.append((f"Buffer of {buffer:g}", charts))
    return _tabbed([(title, charts) for title, charts in panels if charts])


def _chart(
    title: str,
    x_title: str,
    measure: str,
    y_title: str,
    lines: Sequence[Line],
    levels: Sequence[tuple[str, Sequence[Row]]],
    ticks: Sequence[float],
) -> list[Block]:
    """A share over doublings; [] where nothing was measured."""
    if not has_numbers(lines):
        return []
    chart = Chart(
        title=title,
        x_title=x_title,
        y_title=y_title,
        lines=lines,
        levels=[Level(name, over_draws(rows, measure).value) for name, rows in levels if rows],
        each="single draws",
        x_axis="log2",
        x_ticks=ticks,
        y_percent=True,
        y_range=_ALL,
    )
    return [chart]


def _mean(rows: Sequence[Row], measure: str, x: float) -> Point:
    """The mean over draws at a place of the axis, with what it is the mean of."""
    found = over_draws(rows, measure)
    single = [number(row.get(measure, "")) for row in rows] if len(rows) > 1 else ()
    return Point(x, found.value, found.low, found.high, each=single)


def _tabbed(panels: Sequence[tuple[str, Sequence[Block]]]) -> list[Block]:
    """A tab a size of the buffer, where there are several."""
    if len(panels) > 1:
        return [Tabs(label="Sizes of the buffer", panels=panels)]
    return [block for _, blocks in panels for block in blocks]


def forgetting_blocks(rows: Sequence[Row]) -> list[Block]:
    """`forgetting_curves` with its values: a tab a size of the buffer, over age and of the first batch in each."""
    replayed = [row for row in rows if row["kind"] == "requests"]
    buffers = sorted({number(row["buffer_size"]) for row in replayed}) or [float("nan")]
    panels = []
    for buffer in buffers:
        mine = [row for row in replayed if number(row["buffer_size"]) == buffer]
        named = f", buffer of {buffer:g}" if mine else ""
        charts: list[Block] = []
        for title, x_title, summed in (
            ("Edits that hold, by age", "batches since the edit", by_age),
            ("Edits of the first batch that hold", "batches edited so far", of_first_batch),
        ):
            lines = _lines(rows, mine, summed)
            chart = Chart(
                title=title + named,
                x_title=x_title,
                y_title="edits that hold",
                lines=lines,
                x_ticks=sorted({point.x for line in lines for point in line.points}),
                y_percent=True,
                y_range=_ALL,
            )
            charts.append(chart)
        panels.append((f"Buffer of {buffer:g}" if mine else "No replay of requests", charts))
    return _tabbed(panels)


def _lines(rows: Sequence[Row], mine: Sequence[Row], summed: Summed) -> list[Line]:
    strategies, rates = list(dict.fromkeys(str(r["strategy"]) for r in mine)), sorted({number(r["rate"]) for r in mine})
    lines = []
    for (look, strategy), (dash, rate) in product(enumerate(strategies), enumerate(rates)):
        chosen = [row for row in mine if row["strategy"] == strategy and number(row["rate"]) == rate]
        lines.append(_line(f"{strategy}, rate {rate:g}", summed(chosen), look, dash))
    for place, (kind, name) in enumerate(REFERENCES.items()):
        lines.append(_line(name, summed([row for row in rows if row["kind"] == kind]), 6 - place, place + 1))
    return [line for line in lines if line.points]


def _line(name: str, points: Sequence[tuple[int, float]], look: int, dash: int) -> Line:
    return Line(name, [Point(float(age), share) for age, share in points], look=look, dash=dash)
