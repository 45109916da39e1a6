"""Tables for the terminal, as rich renderables: whoever calls decides where they are printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from weightsmith.effects import Effects
from weightsmith.measure import Interval
from weightsmith.report.headline import Measure, blocks
from weightsmith.report.plots import effects_title
from weightsmith.report.words import Row, bounds, layer_labels, part_title, percent

_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Bar:
    """A bar of block characters on an axis that leaves room to the left for negative values.

    Attributes:
        value: its length; NaN draws nothing.
        low, high: ends of the axis; zero is always on it.
        width: characters from end to end; fewer are used where the terminal is narrow.
    """

    value: float
    low: float
    high: float
    width: int = 28

    def text(self, ascii_only: bool = False) -> str:
        """The bar in exactly `width` characters; with "#" for a terminal that knows ASCII only."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if not (math.isfinite(self.value) and high > low):
            return " " * self.width
        left = round(self.width * -low / (high - low))
        if self.value < 0:
            halves = round(2 * left * self.value / low)
            full = halves // 2
            drawn = "#" * full if ascii_only else ("▐" if halves % 2 else "") + "█" * full
            return drawn.rjust(left) + " " * (self.width - left)
        right = self.width - left
        eighths = round(8 * right * self.value / high) if high > 0 else 0
        full, rest = divmod(eighths, 8)
        drawn = "#" * full if ascii_only else "█" * full + (_EIGHTHS[rest] if rest else "")
        return " " * left + drawn.ljust(right)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitted = replace(self, width=min(self.width, options.max_width))
        yield Text(fitted.text(options.ascii_only), style="cyan" if self.value >= 0 else "yellow", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, self.width)


def layer_bars(effects: Effects) -> Table:
    """Mean effect of each layer, its 95% interval, a bar and its rank."""
    rows = effects.table()
    return _bars(effects, "layer", rows, layer_labels([row["layer"] for row in rows], [row["site"] for row in rows]))


def site_table(effects: Effects, most: int = 15) -> Table:
    """The `most` sites of largest mean effect, largest first: 95% interval, a bar and rank; told of how many.

    Raises:
        WeightsmithError: no sites, or a `most` below 1.
    """
    rows = effects.at(effects.top(min(most, len(effects.sites)))).table()
    table = _bars(effects, "site", rows, [row["site"] for row in rows])
    if len(rows) < len(effects.sites):
        table.caption = f"the largest {len(rows)} of {len(effects.sites):,} sites"
    return table


def _bars(effects: Effects, heading: str, rows: Sequence[Row], labels: Sequence[str]) -> Table:
    means = [row["mean"] for row in rows if math.isfinite(row["mean"])]
    low, high = min(means, default=0.0), max(means, default=0.0)
    table = Table(title=Text(effects_title(effects)), box=box.SIMPLE_HEAD)
    table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("effect", justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("")  # the one column that may shrink
    table.add_column("rank", justify="right", no_wrap=True)
    for label, row in zip(labels, rows, strict=True):
        table.add_row(
            Text(label),
            f"{row['mean']:+.4f}",
            Text(f"[{row['low']:+.4f}, {row['high']:+.4f}]"),
            Bar(row["mean"], low, high),
            str(row["rank"]),
        )
    return table


def evaluation_table(rows: Sequence[Row]) -> Table:
    """The headline measures of `evaluation_report.csv`: a column a method, a block a part."""
    found = blocks(rows)
    table = Table(title="What the edits did, with 95% intervals", box=box.SIMPLE_HEAD)
    table.add_column("measure", no_wrap=True)
    for method in found[0].methods if found else ():
        table.add_column(Text(method), justify="right")
    for block in found:
        table.add_section()
        table.add_row(Text(part_title(block.part), style="bold"))
        lines = list(block.lines)
        for measure, cells in lines:
            if measure.name == "accuracy" and measure.column == "before":
                continue  # told together with the accuracy after
            if measure.name == "accuracy":
                befores = next((row for known, row in lines if known.column == "before"), cells)
                pairs = zip(befores, cells, strict=True)
                table.add_row("  accuracy", *(_pair(before, after) for before, after in pairs))
                continue
            table.add_row(f"  {measure.label}", *(_cell(cell, measure) for cell in cells))
    return table


def _pair(before: Interval | None, after: Interval | None) -> Text:
    if before is None or after is None:
        return Text("-")
    return Text(f"{percent(before.value)} [{bounds(before)}]\n-> {percent(after.value)} [{bounds(after)}]")


def _cell(value: Interval | None, measure: Measure) -> Text:
    if value is None:
        return Text("-")
    if math.isnan(value.value):
        return Text("n/a")
    style = ""
    if measure.is_change:
        style = "green" if value.low > 0 else "red" if value.high < 0 else ""
    shown = f"{percent(value.value, signed=measure.is_change)} [{bounds(value, signed=measure.is_change)}]"
    return Text(shown, style=style)
