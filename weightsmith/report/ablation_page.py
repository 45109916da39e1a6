"""The report of `weightsmith ablate`: one choice varied, with the forgetting curves of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.report.ablated import forgetting_blocks, lora_blocks, replay_blocks
from weightsmith.report.ablation import draws
from weightsmith.report.render import PageInputs, figures_section, page_of, tables_section
from weightsmith.report.words import Row

_ABOUT = {
    "lora": "An edit as a LoRA adapter: what its rank and the steps of its fit cost, beside the raw edit.",
    "replay": "A stream of edits that replays earlier ones: what it forgets, by rate, buffer and strategy.",
}
_FIGURES = {
    "lora_native_ablation.csv": (
        "Each measure over the rank of the adapter, seen against the raw edit, which is no adapter.",
        lora_blocks,
    ),
    "replay_ablation.csv": (
        "Edits that hold at the end, and neighbours kept, over how many requests are replayed a new one.",
        replay_blocks,
    ),
    "forgetting_curve.csv": (
        "First, edits of all batches of an age count together; then those of the first batch.",
        forgetting_blocks,
    ),
}
"""File → caption, and what draws its rows."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AblationInputs:
    """What a page is made of. Whatever is empty leaves its section out.

    Attributes:
        title: heading of the page; way: "lora" or "replay".
        summary: sentences at the top; notes: what a reader must know.
        tables: file → rows, which the page draws; failed: trials that could not be measured, and why.
        config, env: the resolved configuration, and versions, device and hashes.
    """

    title: str
    way: str
    summary: Sequence[str] = ()
    notes: Sequence[str] = ()
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    failed: Sequence[tuple[str, str]] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def build_ablation(inputs: AblationInputs) -> str:
    """The page as text."""
    figures = [
        (f"{caption} Each point: {draws(inputs.tables[file])}.", blocks)
        for file, (caption, drawn) in _FIGURES.items()
        if file in inputs.tables and (blocks := drawn(inputs.tables[file]))
    ]
    return page_of(
        PageInputs(
            title=inputs.title,
            about=_ABOUT[inputs.way],
            summary=inputs.summary,
            notes=inputs.notes,
            sections=[
                figures_section(figures),
                tables_section([(_titled(file), rows, file) for file, rows in inputs.tables.items()]),
            ],
            refused=inputs.failed,
            refused_called="trial",
            config=inputs.config,
            env=inputs.env,
        )
    )


def _titled(file: str) -> str:
    return file.removesuffix(".csv").replace("_", " ").capitalize()
