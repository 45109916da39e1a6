"""A screening of `weightsmith locate attribution` against the exact effects.

It draws from rows that the function beside it gives, as in `curves`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.locate.screen import rank_correlation
from weightsmith.report.plots import BLUE, GREY, ORANGE, VERMILION, style
from weightsmith.report.scales import Rows, unit
from weightsmith.report.words import percent

GROUPS = {
    "in neither top": (False, False),
    "only in the screening's top": (True, False),
    "only in the exact top (missed)": (False, True),
    "in both": (True, True),
}
"""What a site is: whether it is in the top of the screening, and of the exact effects."""

_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "#8E99A6", "marker": "o", "s": 12, "alpha": 0.6},
    {"color": ORANGE, "marker": "^", "s": 38},
    {"color": VERMILION, "marker": "X", "s": 44},
    {"color": BLUE, "marker": "D", "s": 30},
)


def screen_rows(screen: Effects, exact: Effects, top: int) -> Rows:
    """The points of `screen_scatter`: site, screened, exact, ranks from 1, whether each counts it among its top.

    Means are over the samples, and points are the sites, that both have. Ranks are by size of the mean, of either sign,
    as recall counts; a mean that is not a number ranks last.

    Raises:
        WeightsmithError: no site or no sample in common, or a `top` below 1.
    """
    sites, samples = set(screen.sites), set(screen.samples)
    common = [site for site in exact.sites if site in sites]
    shared = [name for name in exact.samples if name in samples]
    if not common or not shared or top < 1:
        raise WeightsmithError(
            "a screening is set against exact effects at some of its sites and on some of its samples, and a top of 1 up"
        )
    means: list[list[float]] = []
    for measured in (screen, exact):
        place = {name: i for i, name in enumerate(measured.samples)}
        means.append(measured.at(common).of([place[name] for name in shared]).mean().tolist())
    return [
        {
            "site": str(site),
            "screened": guess,
            "exact": true,
            "screened_rank": guessed,
            "exact_rank": rank,
            "screened_top": guessed <= top,
            "exact_top": rank <= top,
        }
        for site, guess, true, guessed, rank in zip(common, *means, *map(_ranks, means), strict=True)
    ]


def screen_scatter(screen: Effects, exact: Effects, recall: float, top: int) -> Figure:
    """Screened score against exact effect of each site; the top of each is marked, recall and rank correlation told.

    Args:
        screen: the cheap scores.
        exact: the effects measured by intervention, at some or all of the same sites, on some or all of the samples.
        recall: share of the exact top that the screening found.
        top: how many sites are the top.

    Raises:
        WeightsmithError: as `screen_rows`.
    """
    rows = screen_rows(screen, exact, top)
    with style():
        figure = Figure(figsize=(6.2, 4.8), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=GREY, linewidth=0.7)
        axes.axvline(0, color=GREY, linewidth=0.7)
        for label, points, look in zip(GROUPS, grouped(rows).values(), _LOOKS, strict=True):
            if points:
                across, up = ([row[name] for row in points] for name in ("screened", "exact"))
                axes.scatter(across, up, linewidths=0, label=f"{label} ({len(points)})", zorder=3, **look)
        if unit(screen) == unit(exact):
            limits = (axes.get_xlim(), axes.get_ylim())
            axes.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle=":", label="screened = exact")
            axes.set(xlim=limits[0], ylim=limits[1])
        axes.set_xlabel(f"screened score ({unit(screen)})")
        axes.set_ylabel(f"exact effect ({unit(exact)})")
        axes.grid(color="#E9ECF0")
        axes.set_axisbelow(True)
        axes.set_title(screen_title(rows, recall, top))
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def grouped(rows: Rows) -> dict[str, Rows]:
    """The rows of `screen_rows` by `GROUPS`: by whose top each site is in."""
    found: dict[str, Rows] = {name: [] for name in GROUPS}
    for row in rows:
        name = next(name for name, tops in GROUPS.items() if tops == (row["screened_top"], row["exact_top"]))
        found[name].append(row)
    return found


def screen_title(rows: Rows, recall: float, top: int) -> str:
    """What a screening came to, in words."""
    means = torch.tensor([[row["screened"], row["exact"]] for row in rows], dtype=torch.float64)
    correlation = rank_correlation(*means.T)
    told = "rank correlation n/a" if math.isnan(correlation) else f"rank correlation {correlation:.2f}"
    return f"Recall of the top {top}: {percent(recall)}, {told}, {len(rows)} site{'s' * (len(rows) != 1)}"


def _ranks(values: Sequence[float]) -> list[int]:
    """Ranks by size from 1, in order among equals; what is not a number comes last."""
    ranks: list[int] = (np.argsort(np.argsort(-np.abs(values), kind="stable")) + 1).tolist()
    return ranks
