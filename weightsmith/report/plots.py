"""The figures. Each function takes plain values and returns a `Figure`; nothing here touches pyplot or lasting settings.

Colours are those of Okabe and Ito, which people with any common colour blindness can tell apart. Figures have a white
ground of their own, so they read the same on a light page, a dark page and paper.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from weightsmith.effects import Effects
from weightsmith.files import atomic_path
from weightsmith.report.classes import telling_classes
from weightsmith.report.words import Row, layer_labels, metric_title, number

BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#5A6472"
MOST_CELLS_WITH_TEXT = 15
"""Classes up to which a confusion matrix shows its counts as text."""
MOST_CLASSES, MOST_DRAWN = 250, 60
"""Classes up to which a confusion matrix shows all of them, and how many it shows beyond."""

_DPI = 150
_SHADES = LinearSegmentedColormap.from_list("weightsmith_blues", ["#FFFFFF", "#9CC9E8", "#2F7FBC", "#0A3E70"])
_SETTINGS: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so figures do not depend on the machine's fonts
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11,
    "axes.grid": False,
    "grid.color": "#DDE2E8",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.parse_math": False,  # a class name such as "$5 to $10" is no formula
}
_DRAWN: WeakKeyDictionary[Figure, bytes] = WeakKeyDictionary()
"""What `_png` made of figures that are still there."""
_TARGETS = {"predicted": "the class that the model gives", "label": "the wanted class"}


@contextmanager
def style() -> Iterator[None]:
    """Our settings while the block runs. A class name in a script that the font lacks is drawn as boxes, silently."""
    with rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def training_curve(rows: Sequence[Row]) -> Figure:
    """Loss and accuracy by epoch, with the epoch of best validation accuracy marked.

    Args:
        rows: epoch, train_loss, train_accuracy, val_loss, val_accuracy; numbers or numeric text.
    """
    epochs = [number(row["epoch"]) for row in rows]
    best = best_epoch(rows)
    with style():
        figure = Figure(figsize=(9.5, 3.6), layout="constrained")
        for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for part, label, colour, line in (("train", "training", BLUE, "-"), ("val", "validation", VERMILION, "--")):
                values = [number(row.get(f"{part}_{measure}", "")) for row in rows]
                axes.plot(epochs, values, line, color=colour, marker="o", markersize=4, label=label)
                if part == "val" and best is not None:
                    axes.plot(
                        [epochs[best]],
                        [values[best]],
                        linestyle="none",
                        marker="D",
                        markersize=10,
                        markerfacecolor="none",
                        markeredgecolor="black",
                        markeredgewidth=1.5,
                        label=f"best validation accuracy (epoch {epochs[best]:g})",
                    )
            axes.set_title(measure)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
            axes.grid(axis="y")
            if measure == "accuracy":
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(frameon=False, fontsize=9)
    return figure


def best_epoch(rows: Sequence[Row]) -> int | None:
    """Position of the first row of best validation accuracy, the one that training keeps; None without any."""
    scores = [number(row.get("val_accuracy", "")) for row in rows]
    known = [score for score in scores if math.isfinite(score)]
    return scores.index(max(known)) if known else None


def layer_importance(effects: Effects) -> Figure:
    """Mean effect of each layer with its 95% interval."""
    table = effects.table()
    labels = layer_labels([row["layer"] for row in table], [row["site"] for row in table])
    by_number = all(label.isdigit() for label in labels)
    means = np.array([row["mean"] for row in table])
    spread = np.array([[row["mean"] - row["low"], row["high"] - row["mean"]] for row in table]).T
    with style():
        figure = Figure(figsize=(min(max(5.5, 0.5 * len(table) + 1.5), 16), 3.8), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(table))
        colours = [BLUE if mean >= 0 else ORANGE for mean in means]
        axes.bar(places, means, color=colours, width=0.72)
        axes.errorbar(places, means, yerr=spread, fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xticks(places, labels, rotation=0 if by_number else 45, ha="center" if by_number else "right")
        axes.set_xlabel("layer, counted from 0" if by_number else "place in the network")
        axes.set_ylabel(f"mean effect ({metric_title(effects.metric)})")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_title(effects_title(effects))
    return figure


def effects_title(effects: Effects) -> str:
    """Metric, target and number of samples of a measurement, in words."""
    target = str(effects.info.get("target", ""))
    meant = f" of {_TARGETS.get(target, target)}" if target else ""
    count = len(effects.samples)
    return f"Effect on the {metric_title(effects.metric)}{meant}, {count} sample{'' if count == 1 else 's'}"


def confusion_matrices(before: np.ndarray, after: Mapping[str, np.ndarray], class_names: Sequence[str]) -> Figure:
    """Confusion matrices side by side: before, then one after each method; cells that changed have an outline.

    Colours are shares of the true class, so that a rare class is as visible as a common one. Counts, and how they
    changed, stand in the cells as long as there is room for them.

    Args:
        before: (classes, classes) counts, rows are the true classes.
        after: method → counts of the edited model.

    Of more than `MOST_CLASSES` classes those `MOST_DRAWN` are drawn that changed most, then those with most errors.
    """
    of_all = ""
    if len(class_names) > MOST_CLASSES:
        kept = telling_classes(before, tuple(after.values()), MOST_DRAWN)
        of_all = f"the {len(kept)} of {len(class_names):,} classes with most changes and errors"
        before, class_names = before[np.ix_(kept, kept)], [class_names[i] for i in kept]
        after = {name: counts[np.ix_(kept, kept)] for name, counts in after.items()}
    count = len(class_names)
    crowded = count > MOST_CELLS_WITH_TEXT
    panels = [("before", before, None), *((f"after {name}", counts, before) for name, counts in after.items())]
    columns = min(len(panels), 2 if crowded else 3)
    lines = -(-len(panels) // columns)  # rounded up
    side = max(2.6, count * (0.165 if crowded else 0.42))
    names = [short(name, 16 if crowded else 24) for name in class_names]
    letters = max((len(name) for name in names), default=0)
    label_room = 0.3 + letters * (0.05 if crowded else 0.066)  # inches; labels under a panel stand upright or slant
    with style():
        size = (
            columns * (side + 0.25) + label_room + 1.0,
            lines * (side + label_room * (1 if crowded else 0.72) + 0.8) + 0.45,
        )
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_axis_off()
                continue
            title, counts, reference = panels[place]
            _matrix(axes, counts, reference)
            axes.set_title(f"{title}\n{_right(counts)}", fontsize=10)
            _name_classes(axes, names, with_true=place % columns == 0)
        scale = figure.colorbar(
            grid[0, 0].images[0], ax=grid, shrink=0.6 / lines, aspect=25, pad=0.01, format=PercentFormatter(1.0)
        )
        scale.set_label("share of the true class", fontsize=9)
        scale.set_ticks([0, 0.05, 0.2, 0.5, 1])
        scale.ax.tick_params(labelsize=8)
        if of_all:
            figure.suptitle(of_all, fontsize=10)
        if after:
            mark = Line2D([], [], color=VERMILION, marker="s", markerfacecolor="none", markersize=9, linestyle="none")
            figure.legend([mark], ["count differs from before"], loc="outside lower center", frameon=False, fontsize=9)
    return figure


def _matrix(axes: Axes, counts: np.ndarray, reference: np.ndarray | None) -> None:
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap=_SHADES, norm=PowerNorm(0.5, 0, 1))  # a linear scale would show no errors
    classes = len(counts)
    if classes <= MOST_CELLS_WITH_TEXT:
        size = 8.0 if counts.max(initial=0) < 10_000 else 6.5
        for row, column in np.ndindex(*counts.shape):
            change = 0 if reference is None else int(counts[row, column] - reference[row, column])
            if counts[row, column] == 0 and change == 0:
                continue  # noughts would hide the counts that matter
            text = f"{counts[row, column]}" + (f"\n{change:+d}" if change else "")
            colour = "white" if shares[row, column] > 0.3 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour, linespacing=1.0)
    if reference is not None:
        changed = np.argwhere(counts != reference)
        inset = 0.45
        corners = np.array([[-inset, -inset], [inset, -inset], [inset, inset], [-inset, inset], [-inset, -inset]])
        width = 1.4 if classes <= MOST_CELLS_WITH_TEXT else 0.8
        axes.add_collection(
            LineCollection([corners + cell[::-1] for cell in changed], colors=VERMILION, linewidths=width)
        )
    for spine in axes.spines.values():
        spine.set_visible(True)


def _name_classes(axes: Axes, names: Sequence[str], *, with_true: bool) -> None:
    crowded = len(names) > MOST_CELLS_WITH_TEXT
    size = 6 if crowded else 8
    upright = all(len(name) <= 2 for name in names)
    turned: dict[str, Any] = (
        {} if upright else {"rotation": 90 if crowded else 45, "ha": "center" if crowded else "right"}
    )
    if not upright:
        turned["rotation_mode"] = "default" if crowded else "anchor"
    axes.set_xticks(range(len(names)), names, fontsize=size, **turned)
    axes.set_yticks(range(len(names)), names if with_true else [""] * len(names), fontsize=size)
    axes.tick_params(length=2)
    axes.tick_params(axis="y", length=2 if with_true else 0)
    axes.set_xlabel("class given", fontsize=9)
    if with_true:
        axes.set_ylabel("true class", fontsize=9)


def _right(counts: np.ndarray) -> str:
    total = int(counts.sum())
    return f"{100 * counts.trace() / total:.1f}% of {total} right" if total else "no images"


def short(name: str, length: int) -> str:
    """A name on one line, cut to at most `length` characters, the last of them then an ellipsis."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def save(figure: Figure, path: Path | str) -> None:
    """Write a PNG file atomically; equal data gives equal bytes, for nothing about time or software goes in."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(_png(figure))


def as_data_uri(figure: Figure) -> str:
    """The PNG as text that a page can hold in itself."""
    return "data:image/png;base64," + base64.b64encode(_png(figure)).decode("ascii")


def embedded(figure: Figure, alt: str, pixels_per_inch: int = 80) -> dict[str, object]:
    """A figure with the width below which its text could not be read, so that it scrolls, and the one above which it is
    coarse.
    """
    return {
        "uri": as_data_uri(figure),
        "alt": alt,
        "least_width": round(figure.get_size_inches()[0] * pixels_per_inch),
        "most_width": round(figure.get_size_inches()[0] * 105),
    }


def _png(figure: Figure) -> bytes:
    """A figure is drawn once, though a file and a page take it, unless something in it was changed in between."""
    drawn = _DRAWN.get(figure)
    if drawn is not None and not figure.stale:
        return drawn
    buffer = io.BytesIO()
    with style():
        figure.savefig(
            buffer, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None}
        )
    figure.stale = False  # from now on every change of the figure, or of what is in it, sets it again
    _DRAWN[figure] = drawn = buffer.getvalue()
    return drawn
