"""What a page is put together from: maps, curves, images, tables and tabs that say their values to pointer, keyboard and ear.

A block is a value; the template of its name beside it turns it into HTML. Values stand in the markup itself, as text, so a
page is complete without its script, which only adds tabs, tooltips and arrow keys. Nothing here needs torch. Names are loaded
when first used: the page of a merge has no chart and does not wait for any.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightsmith.report.parts.bars import Bars
    from weightsmith.report.parts.blocks import Block, Picture, TableBlock, Tabs, Words
    from weightsmith.report.parts.cards import Cards, Shot
    from weightsmith.report.parts.chart import Chart, Level, Line, Point
    from weightsmith.report.parts.confusion import confusion_tabs
    from weightsmith.report.parts.heatmap import Cell, HeatMap
    from weightsmith.report.parts.patches import Patches, PatchMap, PatchRow

_HOMES = {
    "bars": ("Bars",),
    "blocks": ("Block", "Picture", "TableBlock", "Tabs", "Words"),
    "cards": ("Cards", "Shot"),
    "chart": ("Chart", "Level", "Line", "Point"),
    "confusion": ("confusion_tabs",),
    "heatmap": ("Cell", "HeatMap"),
    "patches": ("PatchMap", "PatchRow", "Patches"),
}

__all__ = [
    "Bars",
    "Block",
    "Cards",
    "Cell",
    "Chart",
    "HeatMap",
    "Level",
    "Line",
    "PatchMap",
    "PatchRow",
    "Patches",
    "Picture",
    "Point",
    "Shot",
    "TableBlock",
    "Tabs",
    "Words",
    "confusion_tabs",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"weightsmith.report.parts.{home}"), name)
    raise AttributeError(f"module 'weightsmith.report.parts' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
