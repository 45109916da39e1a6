"""What a `weightsmith locate` command found, before it is written, and the layers that others take from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from rich.console import RenderableType

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.files import user_path
from weightsmith.report.parts import Block

EFFECTS = "effects.safetensors"
"""The effects of layers, which `--layers-from` reads."""


@dataclass
class Findings:
    """What a command found, before it is written.

    Attributes:
        effects: file stem → effects to save.
        tables: file name → rows.
        figures: file stem → (caption, figure).
        blocks: file stem → what the page shows instead of the figure: the same with its values.
        shown: what the page shows of the tables: (title, file name).
        summary: sentences for the top of the page and the terminal.
        refused: (sample, why).
        notes: what a reader must know.
        terminal: what is printed.
    """

    effects: dict[str, Effects] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    figures: dict[str, tuple[str, Figure]] = field(default_factory=dict)
    blocks: dict[str, Sequence[Block]] = field(default_factory=dict)
    shown: list[tuple[str, str]] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    terminal: list[RenderableType] = field(default_factory=list)

    def headline(self) -> dict[str, object]:
        """The numbers that stand for the whole: each place's mean effect with its interval, else the first table."""
        if "effects" in self.effects:
            return {"effects": self.effects["effects"].table()}
        return {name: self.tables[name] for _, name in self.shown[:1]}

    def table(self, name: str, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a table that the page shows."""
        if rows:
            self.tables[name] = [dict(row) for row in rows]
            self.shown.append((title, name))

    def figure(
        self,
        stem: str,
        caption: str,
        figure: Figure,
        rows: Sequence[Mapping[str, Any]],
        blocks: Sequence[Block] | None = None,
    ) -> None:
        """Add a figure and, as CSV of the same name, what it draws; `blocks` say the same on the page, with every value."""
        self.figures[stem] = (caption, figure)
        self.tables[f"{stem}.csv"] = [dict(row) for row in rows]
        if blocks:
            self.blocks[stem] = blocks

    def shown_figures(self) -> list[tuple[str, Figure | Sequence[Block]]]:
        """Captions and what the page shows under each, in order."""
        return [(caption, self.blocks.get(stem, figure)) for stem, (caption, figure) in self.figures.items()]


def layers_of(path: str, count: int, n_layers: int) -> tuple[int, ...]:
    """The layers of largest effect in a locate run folder or an effects file, for `--layers-from`.

    Windows and heads do not count, only single layers do; nor does the residual stream at all tokens, which restores
    everything in whatever layer.

    Raises:
        WeightsmithError: nothing there, effects of a deeper model, fewer layers than asked for.
    """
    place = user_path(path)
    try:
        effects = Effects.load(place / EFFECTS if place.is_dir() else place)
    except WeightsmithError as error:
        raise WeightsmithError(f"--layers-from {path} gives no effects: {error}") from error
    single = [site for site in effects.sites if site.layer is not None and site.span == 1 and site.head is None]
    single = [site for site in single if site.tokens is not None or not site.kind.startswith("resid.")]
    if not single:
        raise WeightsmithError(
            f"--layers-from {path} holds no effects of single layers: give a run of locate trace or patch"
        )
    beyond = [site.layer for site in single if site.layer is not None and site.layer >= n_layers]
    if beyond:
        raise WeightsmithError(
            f"--layers-from {path} has effects of layer {beyond[0]} and the model has {n_layers}: give effects of this model"
        )
    measured = len({site.layer for site in single})
    if not 1 <= count <= measured:
        raise WeightsmithError(
            f"--num-edit-layers {count}: --layers-from {path} has effects of {measured} layers, give 1 to that many"
        )
    return effects.at(single).top_layers(count)
