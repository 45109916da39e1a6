"""The report of `weightsmith ablate`: one choice varied, with the forgetting curves of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from weightsmith.report.ablation import by_age, of_first_batch
from weightsmith.report.parts import Block, Chart, Line, Point, Tabs
from weightsmith.report.render import PageInputs, figures_section, page_of, tables_section
from weightsmith.report.words import Row, number

_ABOUT = {
    "lora": "An edit as a LoRA adapter: what its rank and the steps of its fit cost, beside the raw edit.",
    "replay": "A stream of edits that replays earlier ones: what it forgets, by rate, buffer and strategy.",
}
_CAPTIONS = {
    "lora_rank_vs_metrics": "Each measure over the rank of the adapter; the dashed line is the raw edit.",
    "replay_ablation": "Edits that hold at the end, and neighbours kept, over how many requests are replayed a new one.",
    "forgetting_curve": "On the left, edits of all batches of an age count together; on the right, those of the first batch.",
}
_REFERENCES = {"none": "no replay", "keys": "keys guarded"}


@dataclass(frozen=True, eq=False, kw_only=True)
class AblationInputs:
    """What a page is made of. Whatever is empty leaves its section out.

    Attributes:
        title: heading of the page; way: "lora" or "replay".
        summary: sentences at the top; notes: what a reader must know.
        figures: name and figure; curve: rows of `forgetting_curve.csv`.
        tables: file → rows; failed: trials that could not be measured, and why.
        config, env: the resolved configuration, and versions, device and hashes.
    """

    title: str
    way: str
    summary: Sequence[str] = ()
    notes: Sequence[str] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    curve: Sequence[Row] = ()
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    failed: Sequence[tuple[str, str]] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def build_ablation(inputs: AblationInputs) -> str:
    """The page as text."""
    figures: list[tuple[str, Figure | Sequence[Block]]] = [
        (
            _CAPTIONS.get(name, name.replace("_", " ")),
            forgetting_blocks(inputs.curve) if name == "forgetting_curve" else drawn,
        )
        for name, drawn in inputs.figures.items()
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


def forgetting_blocks(rows: Sequence[Row]) -> list[Block]:
    """`forgetting_curves` with its values: a tab a size of the buffer, over age and of the first batch in each."""
    replayed = [row for row in rows if row["kind"] == "requests"]
    buffers = sorted({number(row["buffer_size"]) for row in replayed}) or [float("nan")]
    panels = []
    for buffer in buffers:
        mine = [row for row in replayed if number(row["buffer_size"]) == buffer]
        named = f", buffer of {buffer:g}" if mine else ""
        charts: list[Block] = [
            Chart(
                title=title + named,
                x_title=x_title,
                y_title="edits that hold",
                lines=_lines(rows, mine, summed),
                y_percent=True,
                y_range=(-0.02, 1.02),
            )
            for title, x_title, summed in (
                ("Edits that hold, by age", "batches since the edit", by_age),
                ("Edits of the first batch that hold", "batches edited so far", of_first_batch),
            )
        ]
        panels.append((f"Buffer of {buffer:g}" if mine else "No replay of requests", charts))
    return panels[0][1] if len(panels) == 1 else [Tabs(label="Sizes of the buffer", panels=panels)]


def _lines(rows: Sequence[Row], mine: Sequence[Row], summed: Any) -> list[Line]:
    strategies, rates = list(dict.fromkeys(str(r["strategy"]) for r in mine)), sorted({number(r["rate"]) for r in mine})
    lines = []
    for (look, strategy), (dash, rate) in product(enumerate(strategies), enumerate(rates)):
        chosen = [row for row in mine if row["strategy"] == strategy and number(row["rate"]) == rate]
        lines.append(_line(f"{strategy}, rate {rate:g}", summed(chosen), look, dash))
    for place, (kind, name) in enumerate(_REFERENCES.items()):
        lines.append(_line(name, summed([row for row in rows if row["kind"] == kind]), 5 + place, place + 1))
    return [line for line in lines if line.points]


def _line(name: str, points: Sequence[tuple[int, float]], look: int, dash: int) -> Line:
    return Line(name, [Point(float(age), share) for age, share in points], look=look, dash=dash)


def _titled(file: str) -> str:
    return file.removesuffix(".csv").replace("_", " ").capitalize()
