from __future__ import annotations

import html.parser
import io
import itertools
import re
from collections import Counter

import pytest
import torch
from rich.console import Console

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.report import LocateInputs, build_locate, layer_curves, layer_head_map, plots, site_table
from weightsmith.report.locate_page import COMMANDS
from weightsmith.report.parts.blocks import MOST_ROWS
from weightsmith.site import Site

SECTIONS = ["summary", "notes", "figures", "tables", "refused", "provenance"]


class Page(html.parser.HTMLParser):
    """Reads a page and refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, ...]] = []
        self.said = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tuple(self.open))
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.said += data

    def words(self) -> str:
        return re.sub(r"\s+", " ", self.said)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def cells(text: str) -> list[list[str]]:
    """The text of every table row."""
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


@pytest.fixture(scope="module")
def heads() -> Effects:
    sites = tuple(Site("attn.z", layer, head) for layer in range(5) for head in range(4))
    values = torch.linspace(-1, 1, 20, dtype=torch.float64).repeat(3, 1) + 0.1 * torch.eye(3, 20, dtype=torch.float64)
    return Effects(sites, values, ("a", "b", "c"), "probability")


@pytest.fixture(scope="module")
def full(effects, heads):
    return {
        "title": "what the model looks at",
        "command": "trace",
        "summary": ("Block 4 carries the decision.", "Its MLP does most of it."),
        "config": {"sites": ["resid.out", "attn.z"], "corruption": {"noise": 3.0}},
        "env": {"commit": "abc"},
        "figures": [("The longer, the deeper.", layer_curves([effects])), ("One dot a head.", layer_head_map(heads))],
        "tables": [("Sites", effects.table(), "effects.csv"), ("Heads", heads.table() * 3)],
        "refused": [("val/3", "the corruption changes nothing"), ("val/9", "two classes tie")],
        "notes": ("The intervals are over images.",),
    }


@pytest.fixture(scope="module")
def text(full):
    """The page with every section, built once; `test_page` has one with the pixels of its figures."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plots, "as_data_uri", lambda figure: "data:image/png;base64,")
        return build_locate(LocateInputs(**full))


def test_a_full_page_has_every_section_in_order_with_a_link_to_each(text, full):
    page = Page(text)
    assert [found["id"] for found in page.all("section")] == SECTIONS
    assert [found["href"] for found in page.all("a")] == ["#content", *(f"#{name}" for name in SECTIONS)]
    words = page.words()
    assert COMMANDS["trace"] in words
    told = [*full["summary"], *full["notes"], "Figure 1. The longer, the deeper.", "Figure 2. One dot a head.", "val/3"]
    assert [words.index(sentence) for sentence in told] == sorted(words.index(sentence) for sentence in told)
    assert ["val/9", "two classes tie"] in cells(text)
    assert ["corruption.noise", "3.0"] in cells(text)


@pytest.mark.parametrize(
    ("given", "sections"),
    [
        ({"summary"}, ["summary"]),
        ({"notes"}, ["notes"]),
        ({"figures"}, ["figures"]),
        ({"tables"}, ["tables"]),
        ({"refused"}, ["refused"]),
        ({"config"}, ["provenance"]),
        ({"env"}, ["provenance"]),
        (set(), []),
    ],
)
@pytest.mark.usefixtures("blank_figures")
def test_a_section_is_there_exactly_when_its_input_is(full, given, sections):
    for command in COMMANDS:
        page = Page(build_locate(LocateInputs("x", command, **{name: full[name] for name in given})))
        assert [found["id"] for found in page.all("section")] == sections


def test_an_unknown_command_is_told():
    with pytest.raises(WeightsmithError, match="did you mean 'astra'"):
        LocateInputs("x", "astro")


def test_tables_are_cut_with_a_sentence_that_names_the_file(heads, full):
    rows = [{"site": f"site {i}", "mean": i / 7} for i in range(1234)]
    tables = [("all", rows[:MOST_ROWS]), ("named", rows, "effects.csv"), ("nameless", rows), ("none", [])]
    page = build_locate(LocateInputs("x", "patch", tables=tables))
    assert sum("site " in row[0] for row in cells(page)) == 3 * MOST_ROWS
    assert re.findall(r"The first .*? has all of them\.", page) == [
        "The first 40 of 1,234 rows; effects.csv has all of them.",
        "The first 40 of 1,234 rows; the CSV file of this table has all of them.",
    ]
    assert Page(page).words().count("none") == 0


def test_cells_are_short_and_numbers_stand_on_the_right():
    rows = [
        {
            "site": "attn.z[3,5]",
            "mean": 0.123456,
            "n": 7,
            "text": "0.987654",
            "low": float("nan"),
            "top": True,
            "no": "",
        },
        {"site": "1e5", "mean": -0.00004, "n": 12345, "text": "nan", "low": None, "top": False, "more_of": "x"},
    ]
    page = build_locate(LocateInputs("x", "patch", tables=[("t", rows)]))
    assert cells(page) == [
        ["site", "mean", "n", "text", "low", "top", "more of"],
        ["attn.z[3,5]", "0.1235", "7", "0.9877", "n/a", "yes", ""],
        ["1e5", "0.0000", "12345", "n/a", "", "no", "x"],
    ]
    right = re.findall(r'<th scope="col" class="n">(.*?)</th>', page)
    assert right == ["mean", "n", "text", "low"]
    assert page.count('class="n"') == 3 * len(right)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.5, 0.25], ["0.5000", "0.2500"]),
        ([12.3456, -1.0], ["12.35", "-1.00"]),
        ([123456.7, 0.0], ["123457", "0"]),
        ([3e-9, 1.5e-9], ["3.000e-09", "1.500e-09"]),
        ([2e12, 1.0], ["2.000e+12", "1.000e+00"]),
        ([0.0, -0.0], ["0", "0"]),
        ([float("inf"), 0.5], ["inf", "0.5000"]),
    ],
)
def test_a_column_has_one_number_of_decimals(values, texts):
    page = build_locate(LocateInputs("x", "patch", tables=[("t", [{"mean": value} for value in values])]))
    assert cells(page) == [["mean"], *([text] for text in texts)]


def test_many_refused_samples_are_folded_and_all_there(full):
    refused = [(f"val/{i}", "the gap is 0") for i in range(60)]
    for some in (refused[:1], refused[:10], refused):
        text = build_locate(LocateInputs("x", "trace", refused=some))
        assert sum(row[1:] == ["the gap is 0"] for row in cells(text)) == len(some)
        assert ("<details>" in text) == (len(some) > 10)
    assert (
        "1 sample was refused and is in none"
        in Page(build_locate(LocateInputs("x", "trace", refused=refused[:1]))).words()
    )


def test_settings_are_folded(text):
    page = Page(text)
    folded = [
        attributes
        for (tag, attributes), inside in zip(page.tags, page.inside, strict=True)
        if "details" in inside and tag == "caption"
    ]
    assert [found["id"] for found in folded] == ["environment", "settings"]


@pytest.mark.usefixtures("blank_figures")
def test_text_from_data_is_escaped_everywhere(full):
    bad = '<script>alert("x")</script>'
    nothing = full["figures"][0][1]
    text = build_locate(
        LocateInputs(
            bad,
            "astra",
            summary=(bad,),
            config={bad: bad},
            env={bad: [bad]},
            figures=[(f'{bad}" onerror="x', nothing)],
            tables=[(bad, [{bad: bad}] * 50, bad)],
            refused=[(bad, bad)],
            notes=(bad,),
        )
    )
    page = Page(text)
    assert page.all("script") == [{}]  # the page's own
    assert bad in page.words()
    assert not any("onerror" in attributes for _, attributes in page.tags)


@pytest.mark.usefixtures("blank_figures")
def test_figures_say_in_words_what_they_are(full, effects):
    figure = layer_curves([effects])
    images = Page(build_locate(LocateInputs("x", "trace", figures=[('a "caption"', figure)]))).all("img")
    assert [found["alt"] for found in images] == [
        "Effect on the probability of the class that the model gives, 20 samples"
    ]
    figure.suptitle("")
    images = Page(build_locate(LocateInputs("x", "trace", figures=[('a "caption"', figure)]))).all("img")
    assert [found["alt"] for found in images] == ['a "caption"']


def test_the_page_needs_nothing_but_itself(text):
    page = Page(text)
    sources = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "srcset")]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"url\(|@import|https?:", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


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


# --- the same at the terminal


def shown(renderable: object, width: int = 100) -> str:
    target = io.StringIO()
    Console(file=target, width=width, color_system=None).print(renderable)
    return target.getvalue()


@pytest.mark.parametrize("most", [1, 15, 20, 100])
def test_the_site_table_has_the_largest_sites_first(heads, most):
    text = shown(site_table(heads, most))
    lines = [line.split() for line in text.splitlines() if "attn.z[" in line]
    table = sorted(heads.table(), key=lambda row: row["rank"])[:most]
    assert [(line[0], line[1], line[-1]) for line in lines] == [
        (row["site"], f"{row['mean']:+.4f}", str(row["rank"])) for row in table
    ]
    assert all(f"[{row['low']:+.4f}, {row['high']:+.4f}]" in text for row in table)
    assert (f"the largest {most} of 20 sites" in text) == (most < 20)


def test_the_site_table_leaves_sites_without_numbers_to_the_end(heads):
    values = heads.values.clone()
    values[:, 19] = float("nan")
    lines = shown(site_table(Effects(heads.sites, values, heads.samples, "probability"), 2)).splitlines()
    assert [line.split()[0] for line in lines if "attn.z[" in line] == ["attn.z[4,2]", "attn.z[4,1]"]


def test_the_site_table_of_nothing_is_told(heads):
    for effects, most in ((heads, 0), (heads.at([]), 5)):
        with pytest.raises(WeightsmithError, match="asked for the top 0"):
            site_table(effects, most)
