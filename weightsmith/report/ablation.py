"""The figures of `weightsmith ablate`: adapters over their rank, and streams over what they replay.

They draw from rows of `lora_native_ablation.csv`, `replay_ablation.csv` and `forgetting_curve.csv`. A point is the mean over
draws with Student's 95% interval; a single draw has the interval of its own requests. Lines stand a little apart, so that
equal ones do not cover each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from weightsmith.errors import WeightsmithError
from weightsmith.measure import Interval
from weightsmith.report.comparison import over_seeds, share_axis
from weightsmith.report.plots import BLUE, GREY, ORANGE, VERMILION, style
from weightsmith.report.words import Row, number

_COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", ORANGE, "#56B4E9")
_MARKERS = "os^DvP"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_LOOKS: dict[str, dict[str, Any]] = {
    "none": {"color": "black", "linestyle": (0, (5, 3)), "linewidth": 1.1, "zorder": 3},
    "keys": {"color": GREY, "linestyle": (0, (1.5, 1.5)), "linewidth": 1.6, "zorder": 2.9},
}
"""Drawn over the other lines, which show between their dashes where both are equal."""
REFERENCES = {"none": "no replay", "keys": "keys guarded"}
"""What streams with replay are seen against."""
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "handlelength": 3.5}
_STARTS: dict[str, dict[str, Any]] = {
    "svd": {"marker": "o", "linestyle": "-"},
    "lora": {"marker": "s", "linestyle": (0, (1.5, 1.5)), "markerfacecolor": "white"},
}
_APART = 0.05
"""Doublings between neighbouring lines."""

LORA_PANELS = {
    "efficacy": "Efficacy",
    "paraphrase": "Paraphrases (of images: views)",
    "neighbourhood": "Neighbourhood (of images: locality)",
    "reconstruction_error": "Relative error of the adapter, ‖BA − ΔW‖ / ‖ΔW‖",
}
REPLAY_PANELS = {"retention_all": "Edits that hold at the end", "neighbourhood": "Neighbourhood"}


def lora_rank_vs_metrics(rows: Sequence[Row]) -> Figure:
    """Each measure over the rank of the adapter, a line for each start and number of fit steps; the raw edit is dashed.

    Raises:
        WeightsmithError: no adapter among the rows.
    """
    adapters = [row for row in rows if row["start"] != "raw"]
    if not adapters:
        raise WeightsmithError("there is no adapter to draw: give one rank or more")
    raw = [row for row in rows if row["start"] == "raw"]
    ranks = sorted({int(number(row["rank"])) for row in adapters})
    lines = list(dict.fromkeys((str(row["start"]), int(number(row["fit_steps"]))) for row in adapters))
    steps = list(dict.fromkeys(count for _, count in lines))
    with style():
        figure = Figure(figsize=(9.4, 6.6), layout="constrained")
        for axes, (measure, title) in zip(figure.subplots(2, 2).flat, LORA_PANELS.items(), strict=True):
            reference = over_draws(raw, measure)
            axes.axhline(reference.value, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label="raw edit")
            axes.axhspan(reference.low, reference.high, color=GREY, alpha=0.12, linewidth=0)
            for place, (start, count) in enumerate(lines):
                mine = [row for row in adapters if (str(row["start"]), int(number(row["fit_steps"]))) == (start, count)]
                found = [over_draws([row for row in mine if number(row["rank"]) == rank], measure) for rank in ranks]
                spots = [_beside(rank, place, len(lines)) for rank in ranks]
                name = f"{'SVD' if start == 'svd' else 'LoRA start'}, {count} fit step{'s' * (count != 1)}"
                look = _STARTS[start] | {"color": _colour(steps.index(count))}
                _line(axes, spots, found, name, **look)
            _doublings(axes, ranks, len(lines))
            share_axis(axes, "y")
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel("rank of the adapter")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, **_LEGEND)
        figure.suptitle(f"An edit as LoRA adapters ({draws(rows)})", fontsize=11)
    return figure


def replay_figure(rows: Sequence[Row]) -> Figure:
    """Retention and neighbourhood over the rate, a line a strategy, a column a size of the buffer; references are dashed.

    Raises:
        WeightsmithError: no replay of requests among the rows.
    """
    replayed = [row for row in rows if row["kind"] == "requests"]
    if not replayed:
        raise WeightsmithError("there is no replay to draw: give one rate, buffer and strategy or more")
    rates, buffers = (sorted({number(row[name]) for row in replayed}) for name in ("rate", "buffer_size"))
    strategies = list(dict.fromkeys(str(row["strategy"]) for row in replayed))
    with style():
        figure = Figure(figsize=(9.4, 3.0 * len(buffers) + 1.2), layout="constrained")
        grid = figure.subplots(len(buffers), 2, squeeze=False)
        for panels, buffer in zip(grid, buffers, strict=True):
            for axes, (measure, title) in zip(panels, REPLAY_PANELS.items(), strict=True):
                for place, strategy in enumerate(strategies):
                    mine = [r for r in replayed if r["strategy"] == strategy and number(r["buffer_size"]) == buffer]
                    found = [over_draws([r for r in mine if number(r["rate"]) == rate], measure) for rate in rates]
                    spots = [_beside(rate, place, len(strategies)) for rate in rates]
                    _line(axes, spots, found, strategy, color=_colour(place), marker=_marker(place))
                for kind, look in _LOOKS.items():
                    there = [row for row in rows if row["kind"] == kind]
                    if there:
                        axes.axhline(over_draws(there, measure).value, label=REFERENCES[kind], **look)
                _doublings(axes, rates, len(strategies))
                share_axis(axes, "y")
                axes.set_title(f"{title}, buffer of {buffer:g}", loc="left", fontsize=10)
                axes.set_xlabel("requests replayed a new one")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, **_LEGEND)
        figure.suptitle(f"Replay in a stream of edits ({draws(rows)})", fontsize=11)
    return figure


def forgetting_curves(rows: Sequence[Row]) -> Figure:
    """Share of the edits that hold, over the batches since they were made (left) and of the first batch (right).

    A row of panels is a size of the buffer. On the left, edits of all batches of an age count together.

    Raises:
        WeightsmithError: no rows.
    """
    if not rows:
        raise WeightsmithError("there is no forgetting curve to draw: no stream was measured")
    replayed = [row for row in rows if row["kind"] == "requests"]
    buffers = sorted({number(row["buffer_size"]) for row in replayed}) or [float("nan")]
    rates = sorted({number(row["rate"]) for row in replayed})
    strategies = list(dict.fromkeys(str(row["strategy"]) for row in replayed))
    with style():
        figure = Figure(figsize=(9.4, 3.0 * len(buffers) + 1.4), layout="constrained")
        grid = figure.subplots(len(buffers), 2, squeeze=False)
        named: dict[str, Any] = {}
        for panels, buffer in zip(grid, buffers, strict=True):
            lines: list[tuple[str, list[Row], dict[str, Any]]] = []
            for (place, strategy), (dash, rate) in product(enumerate(strategies), enumerate(rates)):
                chosen = [r for r in replayed if _is(r, rate=rate, buffer_size=buffer) and r["strategy"] == strategy]
                look = {"color": _colour(place), "marker": _marker(place), "linestyle": _DASHES[dash % len(_DASHES)]}
                lines.append((f"{strategy}, rate {rate:g}", chosen, look | {"markersize": 3.5, "linewidth": 1.4}))
            for kind, look in _LOOKS.items():
                lines.append((REFERENCES[kind], [row for row in rows if row["kind"] == kind], look))
            for place, (name, chosen, look) in enumerate(lines):
                aside = (
                    0.05 * (place - (len(lines) - 3) / 2) if "marker" in look else 0.0
                )  # equal lines show their markers
                for axes, points in zip(panels, (by_age(chosen), of_first_batch(chosen)), strict=True):
                    if points:
                        (drawn,) = axes.plot([x + aside for x, _ in points], [y for _, y in points], **look)
                        named.setdefault(name, drawn)
            said = "" if buffer != buffer else f", buffer of {buffer:g}"
            for axes, title, label in zip(
                panels,
                (f"All batches{said}", f"The first batch{said}"),
                ("batches since the edit", "batches edited so far"),
                strict=True,
            ):
                share_axis(axes, "y")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
                axes.set_title(title, loc="left", fontsize=10)
                axes.set_xlabel(label)
            panels[0].set_ylabel("edits that hold")
        order = [f"{strategy}, rate {rate:g}" for strategy, rate in product(strategies, rates)]
        there = [name for name in (*order, *REFERENCES.values()) if name in named]
        figure.legend([named[name] for name in there], there, loc="outside lower center", ncols=4, **_LEGEND)
        figure.suptitle(
            "What a stream of edits forgets; settings that replay the same requests share a line", fontsize=11
        )
    return figure


def by_age(rows: Sequence[Row]) -> list[tuple[int, float]]:
    """(age in batches, share of all edits of that age that hold) over the batches and draws of one setting."""
    sums: dict[int, np.ndarray] = {}
    for row in rows:
        age = int(number(row["after_batch"])) - int(number(row["batch"]))
        sums[age] = sums.get(age, np.zeros(2)) + np.array([number(row["held"]), number(row["edits"])])
    return [(age, float(held / edits)) for age, (held, edits) in sorted(sums.items()) if edits]


def of_first_batch(rows: Sequence[Row]) -> list[tuple[int, float]]:
    """(batches so far, share of the first batch's edits that hold) over the draws of one setting."""
    first = [{**row, "batch": 0} for row in rows if int(number(row["batch"])) == 1]
    return by_age(first)


def _line(axes: Axes, spots: Sequence[float], found: Sequence[Interval], name: str, **look: Any) -> None:
    """A line with its intervals."""
    ends = ([one.low for one in found], [one.high for one in found])
    axes.vlines(spots, *ends, color=look["color"], linewidth=0.8, alpha=0.6)
    axes.plot(spots, [one.value for one in found], markersize=4.5, linewidth=1.4, label=name, **look)


def over_draws(rows: Sequence[Row], measure: str) -> Interval:
    """Mean over draws with its interval; of a single draw that of its requests, where there is one."""
    if len(rows) == 1:
        value, low, high = (number(rows[0].get(f"{measure}{end}", "")) for end in ("", "_low", "_high"))
        return Interval(value, low, high, 1)
    return over_seeds(rows, measure)


def draws(rows: Sequence[Row]) -> str:
    count = len({str(row["seed"]) for row in rows})
    return "a single draw of requests" if count == 1 else f"mean of {count} draws of requests"


def _beside(spot: float, place: int, count: int) -> float:
    return float(spot * 2 ** (_APART * (place - (count - 1) / 2)))


def _doublings(axes: Axes, spots: Sequence[float], lines: int) -> None:
    """A scale of doublings with a tick at each spot."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(spots), [f"{spot:g}" for spot in spots])
    axes.xaxis.set_minor_locator(NullLocator())
    room = 2 ** (_APART * lines / 2 + 0.25)
    axes.set_xlim(min(spots) / room, max(spots) * room)


def _is(row: Row, **values: float) -> bool:
    return all(number(row[name]) == value for name, value in values.items())


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _marker(place: int) -> str:
    return _MARKERS[place % len(_MARKERS)]
