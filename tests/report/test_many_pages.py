"""The pages of ten thousand classes: small, and each table that is cut says which file has all of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.report.conftest import evaluation
from tests.report.pages import evaluation_inputs
from tests.report.test_page import Page
from weightsmith.measure import Interval
from weightsmith.report import ChangedImages, EditedBatch, ReportInputs, build, plots
from weightsmith.report.baseline_page import BaselineInputs, build_baseline
from weightsmith.report.evaluation_page import Section, build_evaluation, telling

CLASSES = 10_000
NAMES = tuple(f"class {label}" for label in range(CLASSES))
MOST_BYTES = 4_000_000


@pytest.fixture(scope="module")
def counts() -> tuple[np.ndarray, np.ndarray]:
    """Five images a class, one of them wrong in every third; afterwards classes 7 and 9,999 are better."""
    before = np.zeros((CLASSES, CLASSES), np.int32)
    every, third = np.arange(CLASSES), np.arange(0, CLASSES, 3)
    before[every, every] = 5
    before[third, third] = 4
    before[third, (third + 1) % CLASSES] = 1
    after = before.copy()
    for label in (7, 9_999):
        after[label, label] += 3
    return before, after


@pytest.fixture(autouse=True)
def _drawn_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are as large as the largest of them, which is of three hundred kilobytes, and are not drawn."""
    monkeypatch.setattr(plots, "as_data_uri", lambda figure: "data:image/png;base64," + "A" * 300_000)


def noise(n: int) -> np.ndarray:
    """Images that no compression makes small."""
    return np.random.default_rng(0).integers(0, 256, (n, 3, 224, 224), dtype=np.uint8)


def test_a_run(counts: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = counts
    chances = np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.01), 30)
    row = {"class_before": "7", "target": "9999", "class_after": "9999", "success": "True", "update_norm": "1"}
    labels = np.arange(30)
    rows = evaluation("alphaedit", "held_out", NAMES)
    for one in rows:
        if one["class"] in ("class 7", "class 9999"):
            one["after"] = "1.0"
    page = build(
        ReportInputs(
            title="many",
            split_rows=[
                {"part": part, "class": str(label), "name": name, "count": "10", "share": "0.0001"}
                for part in ("train", "held_out")
                for label, name in enumerate(NAMES)
            ],
            edits=[
                EditedBatch("alphaedit", (1,), [row | {"sample": f"{n}"} for n in labels], noise(30), chances, chances)
            ],
            changed=[
                ChangedImages("alphaedit", "held_out", kind, 500, NAMES[:30], labels, noise(30), chances, chances)
                for kind in ("repaired", "broken")
            ],
            evaluation_rows=rows,
            confusions={"held_out": (before, {"alphaedit": after, "head": before})},
            class_names=NAMES,
        )
    )
    assert len(page.encode()) < MOST_BYTES
    words = Page(page).words()
    assert "The first 60 of 10,000 classes; data_split_info.csv has all of them." in words
    assert "The 40 classes whose scores changed most; 9,960 more are in evaluation_report.csv." in words
    assert "50 of 10,000 classes: those of which most images changed class, or are wrong. confusion_matrix.csv" in words
    assert "more repaired images are left out to keep this page small; predictions.csv has all of them." in words
    assert '<th scope="row">class 9999</th>' in page


def by_class() -> list[tuple[str, dict[str, Interval]]]:
    """Two models that differ on two classes, late ones."""
    same, better = Interval(0.6, 0.2, 0.9, 5), Interval(0.8, 0.3, 1.0, 5)
    return [
        (name, {"whole": same, "other": better if name in ("class 5000", "class 9999") else same}) for name in NAMES
    ]


@pytest.mark.parametrize("section", [None, Section("Smaller models.")])
def test_an_evaluation_and_a_compression(counts: tuple[np.ndarray, np.ndarray], section: Section | None) -> None:
    inputs = evaluation_inputs(section)
    before, after = counts
    confusions = dict(zip(inputs.confusions, (before, after, after), strict=True))
    page = build_evaluation(replace(inputs, confusions=confusions, class_names=NAMES, by_class=by_class()))
    assert len(page.encode()) < MOST_BYTES
    words = Page(page).words()
    assert "the 40 of 10,000 classes on which models differ most; class_accuracy.csv has all of them" in words
    assert "50 of 10,000 classes" in words
    assert "evaluation_metrics.json has the others." in words
    assert 'class="w">class 5000</th>' in page


def test_the_classes_that_are_shown_are_those_on_which_models_differ() -> None:
    assert [name for name, _ in telling(by_class(), 2)] == ["class 5000", "class 9999"]
    assert [name for name, _ in telling(by_class()[:3], 3)] == list(NAMES[:3])


def test_a_baseline(counts: tuple[np.ndarray, np.ndarray]) -> None:
    rows = [
        {"part": part, "label": str(label), "class": name, "n": "5"}
        | {f"{score}{end}": "0.8" for score in ("recall", "precision", "f1") for end in ("", "_low", "_high")}
        for part in ("val", "test")
        for label, name in enumerate(NAMES)
    ]
    inputs = BaselineInputs(
        title="many",
        class_rows=rows,
        confusions=dict(zip(("val", "test"), counts, strict=True)),
        class_names=NAMES,
        split_rows=[
            {"part": "train", "class": str(label), "name": name, "count": "9", "share": "0.0001"}
            for label, name in enumerate(NAMES)
        ],
    )
    page = build_baseline(inputs)
    assert len(page.encode()) < MOST_BYTES
    words = Page(page).words()
    assert "The 40 of 10,000 classes with most errors; baseline_class_metrics.csv has all of them." in words
    assert "50 of 10,000 classes" in words
    assert "data_split_info.csv has all of them" in words
