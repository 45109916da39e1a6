"""The report of a `weightsmith locate` run as one HTML page, in the look of the report of a correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.report.parts import Block
from weightsmith.report.render import PageInputs, figures_section, page_of, tables_section
from weightsmith.report.words import Row

COMMANDS = {
    "trace": "Causal tracing: the input is corrupted, clean activations are put back at one site, and the effect of the "
    "site is how much of the decision that brings back.",
    "patch": "Activation patching: activations at one site come from the run of another input, and the effect of the "
    "site is how far the decision follows.",
    "attribution": "Attribution patching: gradients estimate for every site at once what patching it would do. An "
    "estimate is no measurement until patching confirms it.",
    "astra": "Image attribution as in ASTRA: patches are masked at random, a linear model is fitted to what becomes of "
    "the output, and its weights say how much each patch contributes.",
}
"""What each command does, in a sentence at the head of its page."""


@dataclass(frozen=True, eq=False)
class LocateInputs:
    """What a page is made of. Whatever is empty leaves its section out.

    Attributes:
        title: heading of the page.
        command: a key of `COMMANDS`.
        summary: sentences at the top.
        config: the resolved configuration, nested.
        env: versions, commit, device, threads, seed, hashes.
        figures: caption, and a figure or the blocks that say the same with their values.
        tables: title and rows, and the name of the CSV file that has them all if the page should give it.
        refused: samples that were left out, and why.
        notes: sentences that a reader must know to judge the numbers.

    Raises:
        WeightsmithError: an unknown command.
    """

    title: str
    command: str
    summary: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    figures: Sequence[tuple[str, Figure | Sequence[Block]]] = ()
    tables: Sequence[tuple[str, Sequence[Row]] | tuple[str, Sequence[Row], str]] = ()
    refused: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.command not in COMMANDS:
            raise WeightsmithError(f"there is no page for {self.command!r}: {did_you_mean(self.command, COMMANDS)}")


def build_locate(inputs: LocateInputs) -> str:
    """The page as text."""
    return page_of(
        PageInputs(
            title=inputs.title,
            about=COMMANDS[inputs.command],
            summary=inputs.summary,
            notes=inputs.notes,
            sections=[figures_section(inputs.figures), tables_section(inputs.tables)],
            refused=inputs.refused,
            config=inputs.config,
            env=inputs.env,
        )
    )
