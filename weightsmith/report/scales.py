"""What the figures of `weightsmith locate` share: a colour scale about zero, titles, units."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from weightsmith.effects import Effects
from weightsmith.report.words import metric_title, where
from weightsmith.site import Site

Rows = list[dict[str, Any]]


def symmetric(values: Any) -> Normalize:
    """A scale about zero that reaches the largest number."""
    found = np.asarray(values, float)
    limit = float(np.abs(found[np.isfinite(found)]).max(initial=0.0)) or 1.0
    return Normalize(-limit, limit)


def colour_bar(figure: Figure, drawn: Any, panels: Any, label: str, **layout: Any) -> None:
    """The scale of what is drawn, beside the panels."""
    scale: Any = figure.colorbar(drawn, ax=panels, pad=0.015, **layout)
    scale.set_label(label, fontsize=9)
    scale.formatter.set_powerlimits((-3, 4))
    scale.ax.tick_params(labelsize=8)
    scale.ax.yaxis.get_offset_text().set_fontsize(8)
    scale.outline.set_linewidth(0.5)


def headed(figure: Figure, title: str, inches: float) -> None:
    """A title in as many lines as the width asks for."""
    figure.suptitle(textwrap.fill(title, max(20, int(inches / 0.085))), fontsize=11)


def unit(effects: Effects) -> str:
    """What the effects are counted in."""
    return "share of the corruption's effect" if effects.info.get("normalised") else metric_title(effects.metric)


def panel_title(site: Site, *, with_tokens: bool = False) -> str:
    """Kind and window of what a panel shows: "mlp.out, windows of 3 layers"."""
    place = f" {where(site.tokens)}" if with_tokens and site.tokens is not None else ""
    return site.kind + place + (f", windows of {site.span} layers" if site.span > 1 else "")


def measures_of(effects: Effects, sites: Sequence[Site]) -> list[tuple[Site, dict[str, Any]]]:
    """Of each site what `Effects.table` says: site, mean, low, high, n. Of one sample the interval is none, NaN here."""
    table = effects.at(sites).table() if sites else []
    found = [{name: row[name] for name in ("site", "mean", "low", "high", "n")} for row in table]
    none = {"low": math.nan, "high": math.nan}
    return [(site, row if row["n"] > 1 else row | none) for site, row in zip(sites, found, strict=True)]
