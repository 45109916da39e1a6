"""Ten thousand classes, and classes with any name: tables, figures and cards stay of a size, and text stays text."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from PIL import Image

from weightsmith import report
from weightsmith.data.split import from_arrays, info
from weightsmith.evaluate import Classification, EditReport
from weightsmith.files import read_csv, write_csv
from weightsmith.measure import Predictions
from weightsmith.report import plots
from weightsmith.report.classes import telling_classes
from weightsmith.run.tables import confusion_rows, confusion_tables, prediction_rows

MANY = 10_000
ODD = (
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "a/b\\c",
    "two\nlines",
    "semi;colon, comma \"quote\" 'apostrophe'",
    "| pipe | `code` | [link](http://x)",
    "---",
    "Ärztliches Gutachten 良性 🙂",
    "x" * 5000,
)


def seen(classes: int, n: int, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += 4.0
    return Predictions(logits, labels, tuple(f"test/{i}" for i in range(n)))


def report_of(before: Predictions, after: Predictions) -> EditReport:
    """What an evaluation gives, of which the tables read the predictions and their scores."""
    made = object.__new__(EditReport)
    scores = {"scores_before": Classification.of(before), "scores_after": Classification.of(after)}
    for name, value in {"before": before, "after": after, **scores}.items():
        object.__setattr__(made, name, value)
    return made


def test_intervals_of_cells_that_occur_are_those_of_the_whole_table() -> None:
    """A slow reference: the table itself, resampled whole."""
    from weightsmith.measure import bootstrap

    predictions = seen(6, 200)
    found = Classification.of(predictions)

    def recalls(tables: np.ndarray) -> np.ndarray:
        return np.diagonal(tables, axis1=1, axis2=2) / tables.sum(2)

    wanted = bootstrap(found.confusion, recalls)
    assert [one.value for one in found.recall] == pytest.approx([one.value for one in wanted])
    assert [one.low for one in found.recall] == pytest.approx([one.low for one in wanted], abs=0.02)
    assert [one.high for one in found.recall] == pytest.approx([one.high for one in wanted], abs=0.02)


def test_ten_thousand_classes_are_scored_and_written_in_seconds(tmp_path: Path) -> None:
    started = time.process_time()
    n, classes = 400, MANY
    result = report_of(seen(classes, n), seen(classes, n, seed=1))
    cells = confusion_rows("held_out", {"patcher": result})
    assert len(cells) <= 2 * n
    assert sum(int(str(cell["count"])) for cell in cells) == 2 * n
    write_csv(tmp_path / "confusion_matrix.csv", cells)
    tables = confusion_tables(read_csv(tmp_path / "confusion_matrix.csv"), "held_out", classes)
    assert np.array_equal(tables["before"], result.scores_before.confusion)
    names = tuple(f"class {i}" for i in range(classes))
    rows = prediction_rows("held_out", {"patcher": result}, names)
    write_csv(tmp_path / "predictions.csv", rows)
    told = [f"{state}_{what}" for state in ("before", "patcher") for what in ("class", "p", "p_label")]
    assert list(rows[0]) == ["part", "sample", "label", *told]
    first = torch.softmax(result.before.logits[0], -1)
    assert rows[0]["before_p"] == pytest.approx(float(first.max()), abs=1e-5)
    assert rows[0]["before_p_label"] == pytest.approx(float(first[0]), abs=1e-5)
    figure = plots.confusion_matrices(tables["before"], {"patcher": tables["patcher"]}, names)
    assert "the 60 of 10,000 classes" in figure.get_suptitle()
    plots.save(figure, tmp_path / "confusion_matrix.png")
    card = report.model_card(title="many", class_names=names)
    assert "class 99 and 9900 more, which config.json has." in card
    assert len(card) < 10_000
    assert all(path.stat().st_size < 2_000_000 for path in tmp_path.iterdir())
    assert time.process_time() - started < 60


def test_the_classes_that_are_shown_are_those_with_changes_and_errors() -> None:
    before = np.eye(8, dtype=np.int64) * 5
    before[2, 6] = 3
    after = before.copy()
    after[7, 7], after[7, 1] = 3, 2
    assert telling_classes(before, [after], 4) == [1, 2, 6, 7]


@pytest.mark.parametrize("classes", [4, 120])
def test_few_classes_keep_every_cell_and_column(classes: int) -> None:
    result = report_of(seen(classes, 40), seen(classes, 40, seed=1))
    cells = confusion_rows("held_out", {"head": result})
    zeros = sum(cell["count"] == 0 for cell in cells)
    assert (len(cells) == 2 * classes**2) == (classes == 4) == (zeros > 0)
    assert len(prediction_rows("held_out", {"head": result}, tuple(map(str, range(classes))))[0]) == 3 + 2 * (
        classes + 1
    )


def test_odd_names_come_back_from_tables_and_do_no_harm_in_cards(tmp_path: Path) -> None:
    images = np.zeros((2 * len(ODD), 8, 8, 3), np.uint8)
    part = from_arrays(images, np.arange(len(images)) % len(ODD), ODD, "odd", "train")
    write_csv(tmp_path / "split.csv", info({"train": part}))
    assert [row["name"] for row in read_csv(tmp_path / "split.csv")][:-1] == list(ODD)
    result = report_of(seen(len(ODD), 20), seen(len(ODD), 20, seed=1))
    write_csv(tmp_path / "predictions.csv", prediction_rows("held_out", {"head": result}, ODD))
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file))
    assert [f"before_p_{name}" for name in ODD] == header[4 : 4 + len(ODD)]
    asked = [{"sample": name, "before": 0, "target": 3, "after": 1} for name in ODD]
    edits = [report.edit_entry({"method": "head", "requests": asked}, 1.0, ODD)]
    card = report.model_card(title=ODD[0], data=ODD[3], class_names=ODD, edits=edits, licence="mit")
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert ModelCardData(**metadata_load(tmp_path / "README.md")).license == "mit"
    body = card.split("---\n", 2)[2]
    assert "<script>" not in body.replace(r"\<script\>", "")
    assert max(map(len, body.splitlines())) < 5000
    assert "\nlines" not in body
    table = [line for line in body.splitlines() if line.startswith("| ") and "lines" in line]
    assert table
    assert all(line.replace(r"\|", "").count("|") in (5, 6) for line in table)


def test_a_figure_takes_any_name(drawn: None, tmp_path: Path) -> None:
    result = report_of(seen(len(ODD), 40), seen(len(ODD), 40, seed=1))
    before, after = result.scores_before.confusion, result.scores_after.confusion
    plots.save(plots.confusion_matrices(before, {"head": after}, ODD), tmp_path / "odd.png")
    with Image.open(tmp_path / "odd.png") as image:
        assert max(image.size) < 3000
