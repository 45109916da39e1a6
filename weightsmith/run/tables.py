"""The tables of a run folder: what is in each file, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsmith.delta import Delta
from weightsmith.evaluate import EditReport
from weightsmith.measure import Predictions

EDIT_COLUMNS = (
    "sample", "class_before", "target", "class_after", "residual_norm", "update_norm", "layers", "margin", "success",
)  # fmt: skip


MANY = 100
"""Classes beyond which pairs of them that do not occur have no row: ten thousand would have a hundred million."""
MOST_COLUMNS = 1000
"""Classes beyond which not each has a column of probabilities."""

ANSWER_COLUMNS = tuple(name.replace("class_", "answer_") for name in EDIT_COLUMNS)
"""The same for a language model, whose answers are words."""


def edit_log_name(method: str) -> str:
    """`edit_log.csv` for AlphaEdit, `head_edit_log.csv` for the head, and so on."""
    return "edit_log.csv" if method == "alphaedit" else f"{method}_edit_log.csv"


def delta_name(methods: tuple[str, ...], method: str) -> str:
    """The first method's delta is the run's, `delta.safetensors`."""
    return "delta.safetensors" if method == methods[0] else f"delta_{method}.safetensors"


def edit_rows(delta: Delta, called: str = "class") -> list[dict[str, object]]:
    """Rows of a delta's edit log; `called` is what the model gives: a class, or an answer."""
    layers = " ".join(str(layer) for layer in delta.info.get("layers", []))
    renamed = {"before": f"{called}_before", "after": f"{called}_after"}
    return [
        {renamed.get(name, name): value for name, value in row.items()} | {"layers": layers}
        for row in delta.info["requests"]
    ]


def confusion_rows(part: str, reports: dict[str, EditReport]) -> list[dict[str, object]]:
    """Rows of `confusion_matrix.csv`: part, state ("before" or a method), true class, predicted class, count.

    Of more than `MANY` classes only the pairs that occur have a row.
    """
    tables = {"before": next(iter(reports.values())).scores_before.confusion}
    return count_rows(part, tables | {method: result.scores_after.confusion for method, result in reports.items()})


def count_rows(part: str, tables: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
    """Rows of `confusion_matrix.csv` from the counts of each state. See `confusion_rows`."""
    return [
        {
            "part": part,
            "state": state,
            "true": int(true),
            "predicted": int(predicted),
            "count": int(table[true, predicted]),
        }
        for state, table in tables.items()
        for true, predicted in (np.argwhere(table) if len(table) > MANY else np.ndindex(*table.shape))
    ]


def confusion_tables(rows: list[dict[str, Any]], part: str, classes: int) -> dict[str, np.ndarray]:
    """State → (classes, classes) counts, from the rows of `confusion_matrix.csv`."""
    tables: dict[str, np.ndarray] = {}
    for row in rows:
        if row["part"] == part:
            state = str(row["state"])
            if state not in tables:
                tables[state] = np.zeros((classes, classes), dtype=np.int64 if classes <= MOST_COLUMNS else np.int32)
            table = tables[state]
            table[int(row["true"]), int(row["predicted"])] = int(row["count"])
    return tables


def prediction_rows(part: str, reports: dict[str, EditReport], class_names: tuple[str, ...]) -> list[dict[str, object]]:
    """Rows of `predictions.csv`: sample, label, and for each state the class and every class's probability.

    Of more than `MOST_COLUMNS` classes only the probabilities of the class that is given and of the right one, as `…_p` and
    `…_p_label`.
    """
    states = {"before": next(iter(reports.values())).before} | {m: r.after for m, r in reports.items()}
    labels = states["before"].labels.tolist()
    classes = {state: seen.classes.tolist() for state, seen in states.items()}
    every = len(class_names) <= MOST_COLUMNS
    probabilities = {state: _told(seen.probabilities, seen, every) for state, seen in states.items()}
    columns = [f"p_{name}" for name in class_names] if every else ["p", "p_label"]
    rows: list[dict[str, object]] = []
    for i, name in enumerate(states["before"].names):
        row: dict[str, object] = {"part": part, "sample": name, "label": labels[i]}
        for state in states:
            row[f"{state}_class"] = classes[state][i]
            row |= {f"{state}_{c}": round(probabilities[state][i][k], 6) for k, c in enumerate(columns)}
        rows.append(row)
    return rows


def _told(probabilities: Tensor, seen: Predictions, every: bool) -> list[list[float]]:
    """(n, columns) the probabilities that a table has."""
    if every:
        return probabilities.tolist()
    wanted = torch.stack([seen.classes, seen.labels], 1)
    return probabilities.gather(1, wanted).tolist()


def numbers(row: Mapping[str, str]) -> dict[str, object]:
    """The row of a CSV file with its numbers as numbers, and None for empty fields."""
    return {name: _number(text) for name, text in row.items()}


def _number(text: str) -> object:
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)
