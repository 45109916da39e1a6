from __future__ import annotations

import base64
import html.parser
import io
import itertools
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from weightsmith.errors import WeightsmithError
from weightsmith.report import ChangedImages, EditedBatch, ReportInputs, build
from weightsmith.report.headline import blocks, verdicts
from weightsmith.report.pictures import MOST_SIDE, image_uri

VOID = {"meta", "link", "img", "br"}
SECTIONS = ["summary", "notes", "split", "training", "layers", "edits", "changed", "confusion", "classes", "provenance"]


class Page(html.parser.HTMLParser):
    """Reads a page and refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def words(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def edited(method="alphaedit", layers=(1, 2), n=3, side=8, channels=3):
    rows = [
        {
            "sample": f"val/{i}",
            "class_before": "0",
            "target": 1,
            "class_after": 1 if i else 0,
            "residual_norm": "1.5",
            "update_norm": "0.25",
            "layers": "1 2",
            "success": str(i > 0),
        }
        for i in range(n)
    ]
    images = np.random.default_rng(0).integers(0, 256, (n, channels, side, side), dtype=np.uint8)
    return EditedBatch(method, layers, rows, images)


def changed(kind="repaired", n=2, side=8, total=5):
    random = np.random.default_rng(1)
    return ChangedImages(
        "alphaedit",
        "held_out",
        kind,
        total,
        [f"train/{i}" for i in range(n)],
        np.array([0, 1] * n)[:n],
        random.integers(0, 256, (n, 3, side, side), dtype=np.uint8),
        np.array([[0.4, 0.6], [0.9, 0.1]] * n)[:n],
        np.array([[0.7, 0.3], [0.2, 0.8]] * n)[:n],
    )


def everything(effects, training_rows, evaluation_rows, confusion):
    names = ("cat", "dog")
    split = [
        {"part": part, "class": label, "name": name, "count": "10", "share": share}
        for part in ("train", "held_out")
        for label, name, share in (("0", "cat", "0.4"), ("1", "dog", "0.6"), ("all", "", "1.0"))
    ]
    manifest = {
        part: {"source": "f" * 64, "part": "train", "size": 20, "sha256": "a" * 64, "overlap_with_held_out": 0}
        for part in ("train", "held_out")
    }
    return {
        "title": "digits",
        "notes": ("Corrections come from the validation part.",),
        "config": {"edit": {"layers": [1, 2], "l2": None}},
        "env": {"commit": "abc"},
        "split_rows": split,
        "manifest": manifest,
        "training_rows": training_rows,
        "effects": effects,
        "effects_note": "Two layers were edited.",
        "edits": [edited(), edited("head", ())],
        "changed": [changed(), changed("broken", 0, total=0)],
        "evaluation_rows": evaluation_rows(names),
        "confusions": {"held_out": confusion(2)},
        "class_names": names,
    }


@pytest.fixture
def full(effects, training_rows, evaluation_rows, confusion):
    return everything(effects, training_rows, evaluation_rows, confusion)


@pytest.fixture(scope="module")
def text(effects, training_rows, evaluation_rows, confusion):
    """The page with every section, built once."""
    return build(ReportInputs(**everything(effects, training_rows, evaluation_rows, confusion)))


def test_a_full_page_has_every_section_in_order_with_a_link_to_each(text):
    page = Page(text)
    assert [found["id"] for found in page.all("section")] == SECTIONS
    links = [found["href"] for found in page.all("a")]
    assert links == ["#content", *(f"#{name}" for name in SECTIONS)]
    words = page.words()
    for sentence in (
        "Two layers were edited.",
        "90.0% 88.0 to 92.0, n = 500",
        "accuracy changed by +4.0 points (+2.0 to +6.0), an improvement that chance does not explain",
        "was reached in epoch 2",
        "alphaedit: 2 of 3 corrected",
        "Changed layers, counted from 0: 1, 2.",
        "Changed the classifier only.",
        "▲ +10.0",
    ):
        assert sentence in words
    assert '<th scope="row">edit.layers</th><td>1, 2</td>' in text
    assert '<th scope="row">edit.l2</th><td>not set</td>' in text


@pytest.mark.parametrize(
    ("given", "sections"),
    [
        ({"evaluation_rows"}, ["summary", "classes"]),
        ({"notes"}, ["notes"]),
        ({"split_rows"}, ["split"]),
        ({"manifest"}, ["split"]),
        ({"training_rows"}, ["training"]),
        ({"effects"}, ["layers"]),
        ({"edits"}, ["edits"]),
        ({"changed"}, ["changed"]),
        ({"confusions"}, ["confusion"]),
        ({"config"}, ["provenance"]),
        ({"env"}, ["provenance"]),
        ({"class_names", "effects_note"}, []),
    ],
)
@pytest.mark.usefixtures("blank_figures")
def test_a_section_is_there_exactly_when_its_input_is(full, given, sections):
    page = Page(build(ReportInputs(**{name: full[name] for name in ("title", *given)})))
    assert [found["id"] for found in page.all("section")] == sections


def test_a_title_alone_makes_a_page():
    assert Page(build(ReportInputs("nothing yet"))).all("section") == []


@pytest.mark.usefixtures("blank_figures")
def test_text_from_data_is_escaped_everywhere(full, confusion):
    bad = '<script>alert("x")</script>'
    full |= {
        "title": bad,
        "notes": (bad,),
        "config": {bad: bad},
        "class_names": (bad, "dog"),
        "effects_note": bad,
        "edits": [EditedBatch(bad, (1,), [{**edited().rows[0], "sample": f"{bad}'\" onerror=x"}], edited().images[:1])],
        "split_rows": [{**row, "name": bad} for row in full["split_rows"]],
        "evaluation_rows": [{**row, "class": row["class"] and bad, "method": bad} for row in full["evaluation_rows"]],
        "confusions": {bad: confusion(2)},
        "manifest": {"train": {**full["manifest"]["train"], "source": bad, "part": bad}},
    }
    text = build(ReportInputs(**full))
    page = Page(text)
    assert page.all("script") == [{}]  # the page's own
    assert "&lt;script&gt;" in text
    assert bad in page.words()
    assert not any("onerror" in attributes for _, attributes in page.tags)


def test_the_page_asks_nothing_of_the_network(text):
    page = Page(text)
    sources = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href")]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"url\(|@import|https?:", text)


def test_the_page_can_be_read_without_seeing_it(text):
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en"
    assert all(found["alt"] for found in page.all("img"))
    assert all(found.get("scope") for found in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    identifiers = Counter(found["id"] for _, found in page.tags if "id" in found)
    assert max(identifiers.values()) == 1
    named = [found["aria-labelledby"] for _, found in page.tags if "aria-labelledby" in found]
    assert set(named) <= set(identifiers)
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert "✓ corrected" in page.words()
    assert "✗ not corrected" in page.words()


def test_a_page_of_large_images_stays_small(text):
    edits = [edited("alphaedit", n=30, side=224), edited("head", (), n=30, side=224)]  # noise: the worst case
    cards = build(ReportInputs("x", edits=edits))
    assert len(cards) + len(text) < 4_000_000, "with all that a page may have"
    left_out = sum(int(count) for count in re.findall(r"(\d+) more edited images are left out", cards))
    assert cards.count("<li>\n<img") == 60 - left_out
    assert cards.count("<li>\n<img") >= 30


def test_small_images_are_lossless_and_large_ones_shrunk():
    def decoded(pixels: np.ndarray) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(image_uri(pixels).split(",")[1])))

    small = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert np.array_equal(np.asarray(decoded(small)), small[0])
    colour = np.random.default_rng(0).integers(0, 256, (3, 8, 6), dtype=np.uint8)
    assert np.array_equal(np.asarray(decoded(colour)), colour.transpose(1, 2, 0))
    assert decoded(np.zeros((3, 300, 150), np.uint8)).size == (MOST_SIDE // 2, MOST_SIDE)
    assert decoded(np.zeros((4, 8, 8), np.uint8)).mode == "RGB"
    assert decoded(np.zeros((2, 8, 8), np.uint8)).mode == "L"


def test_images_must_match_their_rows():
    with pytest.raises(WeightsmithError, match="2 for 3 rows"):
        EditedBatch("head", (), edited().rows, edited().images[:2])


@pytest.mark.usefixtures("blank_figures")
def test_overlap_with_held_out_images_is_shown(full):
    full["manifest"]["train"]["overlap_with_held_out"] = 17
    for manifest in (full["manifest"], {"seed": 42, "parts": full["manifest"]}):
        assert "17" in re.findall(r'<td class="n">(\d+)</td>', build(ReportInputs("x", manifest=manifest)))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.05, "an improvement"), (-0.05, -0.01, "a loss"), (-0.01, 0.03, "no clear change"), (0, 0, "no clear")],
)
def test_verdicts_claim_only_what_the_interval_allows(evaluation_rows, low, high, words):
    rows = evaluation_rows()
    for row in rows:
        if row["measure"] == "net_accuracy_change":
            row.update({"after": (low + high) / 2, "after_low": low, "after_high": high})
    sentences = verdicts(blocks(rows)[0])
    assert len(sentences) == 2
    assert all(words in sentence for sentence in sentences)
