"""The page of every command, read without a browser: tags match, what data say is text, sections are where links lead."""

from __future__ import annotations

import re

import pytest

from tests.report.pages import HANDLER, MERGED, PAGES, SCRIPT
from tests.report.test_page import Page
from weightsmith.report.edit_page import EditInputs, build_edit
from weightsmith.report.merge_page import build_merge
from weightsmith.report.parts import Words
from weightsmith.report.render import PageSection
from weightsmith.report.search_section import search_section


@pytest.fixture(scope="module", autouse=True)
def _blank() -> object:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("weightsmith.report.plots.as_data_uri", lambda figure: "data:image/png;base64,")
        yield


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_what_data_say_is_text(name: str) -> None:
    text = PAGES[name]()
    page = Page(text)
    assert page.all("script") == [{}]
    assert not any(key.startswith("on") for _, found in page.tags for key in found)
    assert SCRIPT in page.words()
    assert HANDLER in page.words()
    sections = [found["id"] for found in page.all("section")]
    assert [found["href"] for found in page.all("a")] == ["#content", *(f"#{name}" for name in sections)]
    assert not re.search(r"url\(|@import|https?:", text)
    assert "provenance" in sections
    assert len(text) < 4_000_000


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("edit", ["summary", "notes", "measures", "facts", "stream", "tables", "provenance"]),
        ("artificial", ["summary", "notes", "sweep", "training", "tables", "provenance"]),
        ("merge", ["summary", "notes", "models", "tensors", "provenance"]),
        ("ablate", ["summary", "notes", "figures", "tables", "refused", "provenance"]),
        ("baseline", ["summary", "notes", "training", "classes", "confusion", "tables", "provenance"]),
        ("compare", ["summary", "notes", "figures", "tables", "refused", "provenance"]),
        ("compress", ["summary", "notes", "figures", "confusion", "tables", "provenance"]),
    ],
)
def test_what_each_page_has(name: str, sections: list[str]) -> None:
    assert [found["id"] for found in Page(PAGES[name]()).all("section")] == sections


def test_a_merge_says_how_far_its_sources_lie_apart_and_what_was_not_merged() -> None:
    search = PageSection("search", "The search", [Words(sentences=["Tried five."])])
    words = Page(build_merge(MERGED, "m", [search])).words()
    for told in (
        "0.1416",
        "inf",
        "Left out:",
        "Taken as they are",
        "1.20% of the merged change",
        "Tried five.",
        "b" * 64,
    ):
        assert told in words


def test_a_search_is_a_section_of_the_merge_with_its_choice_ringed() -> None:
    rows = [
        {
            "coefficient": at,
            "data": data,
            "role": role,
            "val_accuracy": at / 2,
            "val_low": 0,
            "val_high": 1,
            "reference": 0.9,
        }
        for at in (0.0, 0.5, 1.0)
        for data, role in ((SCRIPT, "task"), ("digits", "control"))
    ]
    test = [{"data": SCRIPT, "backbone": "own", "test_accuracy": 0.5, "test_low": 0.4, "test_high": 0.6, "test_n": 90}]
    record = {"coefficient": 0.5, "control_keep": 0.95, "coefficients": [0.0, 0.5, 1.0], "test": test}
    text = build_merge(MERGED, "m", [search_section(rows, record)])
    assert text.count('<circle class="ring" r="9">') == 2
    words = Page(text).words()
    assert "The coefficient 0.5 was chosen on validation data among 3. The control had to keep 95%" in words
    assert "merged: validation accuracy 25.0% (0.0% to 100.0%) at coefficient 0.5; chosen on validation data" in words


def test_a_stream_shows_what_holds_by_batch_and_facts_by_whether_they_were_taken() -> None:
    words = Page(PAGES["edit"]()).words()
    assert "memit: 4 taken" in words
    assert "memit: 2 not taken" in words
    assert "edits that hold at the end, 1 of 2: edits that hold 50.0% (9.5% to 90.5%) at batch 1" in words
    assert "replayed edits that had slipped" in words


def test_a_thousand_facts_are_cut() -> None:
    row = {"method": "m", "subject": "s", "target": "t", "truth": "u", "es_after": 1.0}
    text = build_edit(EditInputs(title="x", answers=[{**row, "name": f"fact {place}"} for place in range(1000)]))
    assert "952 more facts are left out" in text
    assert len(text) < 400_000
