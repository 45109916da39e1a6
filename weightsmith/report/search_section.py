"""A search for the coefficient of a merge, as a section of the merged model's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.report.arithmetic_page import coefficient_chart
from weightsmith.report.parts import Block, TableBlock, Tabs
from weightsmith.report.render import PageSection
from weightsmith.report.words import Row, number

_BACKBONES = {"base": "base", "own": "its own model", "merged": "merged"}


def search_section(rows: Sequence[Row], record: Mapping[str, Any]) -> PageSection:
    """Validation accuracy over the coefficient, a tab a data set, and test accuracies of what was chosen.

    Args:
        rows: of `search.csv`; record: what `merge_report.json` holds of the search.
    """
    panels: list[tuple[str, Sequence[Block]]] = []
    for name in dict.fromkeys(str(row["data"]) for row in rows):
        mine = [row for row in rows if row["data"] == name]
        control = str(mine[0]["role"]) == "control"
        chart = coefficient_chart(
            f"{name}{' (control)' if control else ''}",
            {"merged": mine},
            value="val_accuracy",
            low="val_low",
            high="val_high",
            chosen=float(record["coefficient"]),
            levels={"base" if control else "its own model": number(mine[0]["reference"])},
            y_title="validation accuracy",
        )
        panels.append((name, [chart]))
    told = (
        f"The coefficient {record['coefficient']:g} was chosen on validation data among {len(record['coefficients'])}."
    )
    if record["control_keep"] is not None:
        told += f" The control had to keep {record['control_keep']:.0%} of the base's accuracy."
    tests = [
        {
            "data": row["data"],
            "backbone": _BACKBONES[str(row["backbone"])],
            "test accuracy, %": f"{100 * number(row['test_accuracy']):.1f}",
            "95% interval": f"{100 * number(row['test_low']):.1f} to {100 * number(row['test_high']):.1f}",
            "images": row["test_n"],
        }
        for row in record["test"]
    ]
    blocks: list[Block] = [
        Tabs(label="Data sets", panels=panels),
        TableBlock(title="Test accuracy, told once, of the choice that validation data made", rows=tests),
    ]
    return PageSection("search", "The coefficient that data chose", blocks, (told,), "Search")
