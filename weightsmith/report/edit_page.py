"""The report of `weightsmith edit`: facts of a language model before and after, what else they moved, and what is forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.measure import proportion
from weightsmith.report.parts import Bars, Block, Cards, Chart, Line, Point, Shot, TableBlock, Tabs
from weightsmith.report.parts.cards import BUDGET, fitting
from weightsmith.report.parts.chart import has_numbers
from weightsmith.report.render import PageInputs, PageSection, page_of, tables_section
from weightsmith.report.words import Row, number, percent

_ABOUT = (
    "Facts that a language model was made to answer otherwise by a change of its weights, and what that did to other ways of "
    "asking, to neighbouring facts and to its language."
)
_MEANINGS = {
    "efficacy": "the edited facts whose new answer is more probable than the old one",
    "paraphrase": "the same, asked in other words",
    "neighbourhood": "facts about other subjects whose own answer is still more probable than the new one",
    "score": "harmonic mean of the three",
    "efficacy_accuracy": "edited facts whose new answer is the most probable text",
    "paraphrase_accuracy": "the same, asked in other words",
    "neighbourhood_accuracy": "neighbours whose own answer is the most probable text",
    "fluency": "variety of the text that the model goes on with; a fall says that it repeats itself",
    "perplexity": "of text that has nothing to do with the edits; more is worse",
    "drift": "mean KL divergence of the next token from the unedited model's, on such text",
}
_SHARES = frozenset(name for name in _MEANINGS if name not in ("fluency", "perplexity", "drift"))
_MOST_FACTS = 48
"""Facts of a kind and method that a page shows."""
_FEW_BATCHES = 12
"""Batches up to which an axis has a tick for each."""
_MOST_BINS = 40
"""Points of a curve over batches."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EditInputs:
    """What a page is made of. Whatever is empty leaves its section out.

    Attributes:
        title: heading of the page.
        summary: sentences at the top; notes: what a reader must know.
        rows: of `knowledge_report.csv`; answers: of `answers.csv`, with `method`.
        prompts: name of a fact → what was asked; batches: name → the batch that edited it, from 1.
        stream: rows of `stream.csv`.
        config, env: the resolved configuration, and versions, device and hashes.
    """

    title: str
    summary: Sequence[str] = ()
    notes: Sequence[str] = ()
    rows: Sequence[Row] = ()
    answers: Sequence[Row] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    batches: Mapping[str, int] = field(default_factory=dict)
    stream: Sequence[Row] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def build_edit(inputs: EditInputs) -> str:
    """The page as text."""
    measures: list[Block] = []
    for method, rows in _measures(inputs.rows):
        title = f"Before and after, {method}"
        measures += [*_bars(inputs.rows, method), TableBlock(title=title, rows=rows, file="knowledge_report.csv")]
    return page_of(
        PageInputs(
            title=inputs.title,
            about=_ABOUT,
            summary=inputs.summary,
            notes=inputs.notes,
            sections=[
                PageSection("measures", "What the edits did", measures),
                PageSection("facts", "Each fact before and after", _facts(inputs), (_READING,), "Facts"),
                PageSection("stream", "The stream of edits", _stream(inputs), link="Stream"),
                tables_section([("Every batch", inputs.stream, "stream.csv")]),
            ],
            config=inputs.config,
            env=inputs.env,
        )
    )


_READING = (
    "Probabilities are of the whole answer behind the question, a geometric mean over its tokens. What the model says is what "
    "it writes by itself."
)


def _measures(rows: Sequence[Row]) -> list[tuple[str, list[dict[str, str]]]]:
    """Method and the table of its measures; those that people know first."""
    found = []
    for method in dict.fromkeys(str(row["method"]) for row in rows):
        mine = {str(row["measure"]): row for row in rows if row["method"] == method}
        order = [*(name for name in _MEANINGS if name in mine), *(name for name in mine if name not in _MEANINGS)]
        table = [
            {
                "measure": name.replace("_", " "),
                "before": _valued(name, mine[name], "before"),
                "after": _valued(name, mine[name], "after"),
                "facts": str(mine[name].get("n", "")),
                "what it is": _MEANINGS.get(name, ""),
            }
            for name in order
        ]
        found.append((method, [line for line in table if line["before"] or line["after"]]))
    return found


def _bars(rows: Sequence[Row], method: str) -> list[Block]:
    """The shares of a method before and after, with their intervals; [] where there are none."""
    mine = [row for name in _MEANINGS for row in rows if (row["method"], row["measure"]) == (method, name)]
    mine = [row for row in mine if str(row["measure"]) in _SHARES]
    lines = [
        Line(when, [Point.of({**row, "at": at}, "at", when) for at, row in enumerate(mine)])
        for when in ("before", "after")
    ]
    if not has_numbers(lines):
        return []
    return [
        Bars(
            title=f"Shares before and after, {method}",
            names=[str(row["measure"]).replace("_", " ") for row in mine],
            row_title="measure",
            value_title="share of facts",
            lines=lines,
            percent=True,
            value_range=(0.0, 1.0),
            caption="Lines on points are 95% intervals over facts.",
            has_table=False,
        )
    ]


def _valued(name: str, row: Row, when: str) -> str:
    value, low, high = (number(row.get(f"{when}{end}", "")) for end in ("", "_low", "_high"))
    if math.isnan(value):
        return ""
    share = name in _SHARES or name.endswith("accuracy")
    told = percent(value) if share else f"{value:.4g}"
    if math.isnan(low):
        return told
    return told + (f" ({100 * low:.1f} to {100 * high:.1f})" if share else f" ({low:.4g} to {high:.4g})")


def _facts(inputs: EditInputs) -> list[Block]:
    """A tab for what was taken and one for what was not, of each method."""
    methods = list(dict.fromkeys(str(row["method"]) for row in inputs.answers))
    panels: list[tuple[str, Sequence[Block]]] = []
    budget = BUDGET // max(2 * len(methods), 1)
    for method in methods:
        mine = [row for row in inputs.answers if row["method"] == method]
        for good in (True, False):
            rows = [row for row in mine if _took(row) == good]
            if rows:
                shots = fitting([_shot(row, inputs.prompts, good) for row in rows[:_MOST_FACTS]], budget)
                word = "taken" if good else "not taken"
                cards = Cards(shots=shots, total=len(rows), file="answers.csv", called="fact", of="answer")
                panels.append((f"{method}: {len(rows)} {word}", [cards]))
    return [Tabs(label="Facts by method", panels=panels)] if panels else []


def _took(row: Row) -> bool:
    """Whether the new answer is now what it should be: more probable than the old one, or what the model says."""
    share = number(row.get("es_after", ""))
    if math.isnan(share):
        return str(row.get("answer_after", "")).strip().startswith(str(row["target"]).strip())
    return share > 0.5


def _shot(row: Row, prompts: Mapping[str, str], good: bool) -> Shot:
    name = str(row["name"])
    chances = [
        (str(row[which]), _known(row, f"p_{which}_before"), _known(row, f"p_{which}_after"), which == "target")
        for which in ("target", "truth")
        if row.get(which)
    ]
    facts = [
        ("asked", prompts.get(name, str(row["subject"]))),
        ("wanted", str(row["target"])),
        ("before", str(row.get("answer_before", ""))),
        ("after", str(row.get("answer_after", ""))),
    ]
    more = [
        f"{called}: {percent(value)}"
        for field_name, called in (("ps_after", "paraphrases that hold"), ("ns_after", "neighbours kept"))
        if not math.isnan(value := number(row.get(field_name, "")))
    ]
    return Shot(
        name=name,
        uri=None,
        small=False,
        verdict="taken" if good else "not taken",
        good=good,
        facts=[(words, text) for words, text in facts if text],
        classes=chances,
        more=more,
    )


def _known(row: Row, column: str) -> float | None:
    value = number(row.get(column, ""))
    return None if math.isnan(value) else value


def _stream(inputs: EditInputs) -> list[Block]:
    """What is forgotten at the end by the batch that made it, and how the batches went."""
    found: list[Block] = []
    if inputs.batches and len(set(inputs.batches.values())) > 1:
        rows = [row for row in inputs.answers if str(row["name"]) in inputs.batches]
        held: dict[int, list[bool]] = {}
        for row in rows:
            held.setdefault(inputs.batches[str(row["name"])], []).append(_took(row))
        points = [(batch, sum(ones), len(ones)) for batch, ones in sorted(held.items())]
        found.append(
            Chart(
                title="What holds at the end, by the batch that edited it",
                x_title="batch",
                y_title="edits that hold",
                lines=[Line("edits that hold at the end", _binned(points))],
                y_percent=True,
                y_range=(-0.02, 1.02),
                x_ticks=_ticks(len(held)),
                caption="A curve that is low on the left forgets what was edited first.",
            )
        )
    if len(inputs.stream) > 1:
        counts = {
            "reached when edited": ("reached", "edits"),
            "replayed edits that had slipped": ("slipped", "replayed"),
        }
        lines: list[Line] = []
        for name, (part, whole) in counts.items():
            points = [
                (int(number(row["batch"])), int(number(row[part])), int(number(row[whole])))
                for row in inputs.stream
                if number(row[whole]) > 0
            ]
            if points:
                lines.append(Line(name, _binned(points), dash=len(lines)))
        trust = [Point(number(row["batch"]), number(row["trust"])) for row in inputs.stream]
        if any(not math.isnan(point.y) for point in trust):
            lines.append(Line("trust score", trust, dash=len(lines)))
        if lines:
            found.append(
                Chart(
                    title="How the batches went",
                    x_title="batch",
                    y_title="share",
                    lines=lines,
                    y_percent=True,
                    y_range=(-0.02, 1.02),
                    x_ticks=_ticks(len(inputs.stream)),
                )
            )
    return found


def _ticks(batches: int) -> Sequence[float]:
    """Every batch where they are few: there is none between two."""
    return [float(batch) for batch in range(1, batches + 1)] if batches <= _FEW_BATCHES else ()


def _binned(points: Sequence[tuple[int, int, int]]) -> list[Point]:
    """(batch, part, whole) as shares with 95% intervals; many batches are put together, neighbours with neighbours."""
    step = -(-len(points) // _MOST_BINS)
    found = []
    for first in range(0, len(points), step):
        group = points[first : first + step]
        part, whole = sum(one[1] for one in group), sum(one[2] for one in group)
        told = f"batches {group[0][0]} to {group[-1][0]}, " if len(group) > 1 else ""
        middle, share = sum(one[0] for one in group) / len(group), proportion(part, whole)
        found.append(Point(middle, share.value, share.low, share.high, f"{told}{part} of {whole}"))
    return found
