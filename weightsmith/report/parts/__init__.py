"""What a page is put together from: maps, curves, images, tables and tabs that say their values to pointer, keyboard and ear.

A block is a value; the template of its name beside it turns it into HTML. Values stand in the markup itself, as text, so a
page is complete without its script, which only adds tabs, tooltips and arrow keys. Nothing here needs torch.
"""

from weightsmith.report.parts.blocks import Block, Picture, TableBlock, Tabs, Words
from weightsmith.report.parts.cards import Cards, Shot
from weightsmith.report.parts.chart import Chart, Level, Line, Point
from weightsmith.report.parts.confusion import confusion_tabs
from weightsmith.report.parts.heatmap import Cell, HeatMap
from weightsmith.report.parts.patches import Patches, PatchMap, PatchRow

__all__ = [
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
