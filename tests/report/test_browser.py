"""The pages in a real browser: nothing goes wrong, nothing is asked of the network, everything can be reached and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import browser, why_not
from tests.report.pages import PAGES
from weightsmith.report import plots
from weightsmith.report.parts import Cell

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a browser")

Open = Callable[..., Any]
MOST_BYTES = 4_000_000
CIRCUITS, SCREEN = (
    f".chart-block:has-text('{title}')" for title in ("Faithfulness over the share", "Recall of the top")
)
DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)

CONTRAST = """() => {
  const parse = (text) => {
    const found = text.match(/rgba?\\(([^)]*)\\)/);
    if (!found) return [0, 0, 0, 0];
    const numbers = found[1].split(/[ ,/]+/).map(Number);
    return [numbers[0], numbers[1], numbers[2], numbers.length > 3 ? numbers[3] : 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const ground = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      const style = getComputedStyle(one), image = style.backgroundImage;
      if (image.startsWith("linear-gradient") && !one.matches(".ramp")) layers.push(parse(image));
      const colour = parse(style.backgroundColor);
      layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = (colour) => {
    const parts = colour.slice(0, 3).map((value) => value / 255);
    const [r, g, b] = parts.map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest("script, style, title, .unseen, .skip")) continue;
    if (!element.checkVisibility()) continue;
    seen += 1;
    const style = getComputedStyle(element), below = ground(element);
    const colour = over(parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color), below);
    const [high, low] = [light(colour), light(below)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const said = walker.currentNode.textContent.trim().slice(0, 30);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${element.tagName}.${element.getAttribute("class")} ${said}`);
  }
  return { seen, bad };
}"""
"""Contrast of every text that is seen with what lies under it: WCAG 2.2, 1.4.3."""

RULES = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const wrong = [];
  for (const image of all("img")) if (!image.getAttribute("alt")) wrong.push("an img without alt");
  for (const image of all("svg:not([aria-hidden]), [role=group], [role=region], [role=tablist], nav")) {
    const label = image.getAttribute("aria-label") || image.getAttribute("aria-labelledby");
    if (!label) wrong.push(`${image.tagName} ${image.getAttribute("class")} without a name`);
  }
  for (const control of all("a, button, summary, [tabindex='0']")) {
    const named = control.textContent.trim() || control.getAttribute("aria-label") || control.getAttribute("aria-labelledby")
      || control.querySelector("img[alt]") || control.matches("td, main");
    if (!named) wrong.push(`${control.tagName} ${control.getAttribute("class")} without a name`);
  }
  for (const one of all("[aria-labelledby], [aria-controls]")) {
    for (const id of [one.getAttribute("aria-labelledby"), one.getAttribute("aria-controls")]) {
      if (id && !document.getElementById(id)) wrong.push(`nothing has the id ${id}`);
    }
  }
  const ids = all("[id]").map((one) => one.id);
  if (new Set(ids).size !== ids.length) wrong.push(`an id twice: ${ids.filter((id, place) => ids.indexOf(id) !== place)}`);
  const levels = all("h1, h2, h3, h4, h5, h6").map((one) => Number(one.tagName[1]));
  if (levels[0] !== 1) wrong.push("the first heading is no h1");
  levels.slice(1).forEach((level, place) => {
    if (level > levels[place] + 1) wrong.push(`h${levels[place]} is followed by h${level}`);
  });
  for (const cell of all("th")) if (!cell.getAttribute("scope")) wrong.push("a th without scope");
  for (const table of all("table")) if (!table.caption) wrong.push("a table without caption");
  if (document.documentElement.lang !== "en" || !document.title) wrong.push("no language or no title");
  return wrong;
}"""


@pytest.fixture(scope="module")  # Playwright's loop of a longer one would be in the way of another file's
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a page, made once."""
    folder = tmp_path_factory.mktemp("pages")

    def write(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(plots, "as_data_uri", lambda figure: DOT)  # drawing takes longer than all the rest
                path.write_text(PAGES[name](), encoding="utf-8")
        return path

    return write


@pytest.fixture
def opened(chromium: Any, written: Callable[[str], Path]) -> Iterator[Open]:
    """`opened("run", color_scheme="dark")`: the page in a window of its own; at the end nothing may have gone wrong."""
    contexts, wrong = [], []

    def open_page(name: str, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": 1100, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # of a machine that does other things as well
        address = written(name).as_uri()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda asked: asked.url in (address,) or asked.url.startswith("data:") or wrong.append(asked.url)
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_alone_in_light_and_dark_at_every_width_and_on_paper(
    opened: Open, written: Callable[[str], Path], name: str
) -> None:
    page = opened(name)
    # What data say stays text.
    assert page.evaluate("window.broken") is None
    assert page.locator("script").count() == 1
    assert page.locator("[onload], [onerror], img[src='x']").count() == 0
    assert "<script>" in page.locator("body").inner_text()
    assert written(name).stat().st_size < MOST_BYTES
    # Rules of access.
    assert page.evaluate(RULES) == []
    # Every text stands out from its ground.
    seen_in(page, "rgb(245, 246, 248)")
    page.emulate_media(color_scheme="dark")
    seen_in(page, "rgb(17, 21, 27)")
    # A telephone scrolls no page sideways.
    for width in (1100, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Paper has all of it.
    page.reload()
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 720, "height": 1000})  # A4 within its margins
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("nav:visible, .tablist:visible").count() == 0
    assert page.locator(".panel").count() == page.locator(".panel:visible").count()
    assert page.locator(".panel-title").count() == page.locator(".panel-title:visible").count()
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#provenance table").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


@pytest.mark.parametrize("name", ["run", "locate", "edit", "ablate"])
def test_a_page_without_its_script_shows_everything(opened: Open, name: str) -> None:
    page = opened(name, java_script_enabled=False)
    assert page.locator("[role=tab]").count() == 0
    assert page.locator(".panel").count() == page.locator(".panel:visible").count()
    assert page.locator(".panel-title:visible").count() == page.locator(".panel").count()


def seen_in(page: Any, ground: str) -> None:
    """Every text stands out from its ground, whatever is folded away."""
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    page.evaluate("""() => {
      document.querySelectorAll("details").forEach((part) => { part.open = true; });
      document.querySelectorAll(".panel[hidden]").forEach((panel) => { panel.hidden = false; });
    }""")
    found = page.evaluate(CONTRAST)
    assert found["bad"] == []
    assert found["seen"] > 30


def test_cells_stand_out_at_every_strength_in_both_schemes(opened: Open) -> None:
    page = opened("merge")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        cells = [Cell("x", sign * place / 50, "12") for sign in (-1, 1) for place in range(51)]
        line = "".join(f'<td class="{c.classes}" style="--a:{c.alpha}">{c.text}</td>' for c in cells)
        page.evaluate(
            "(line) => { document.querySelector('main').innerHTML = '<section><table class=cells><tbody><tr>' + line; }",
            line,
        )
        found = page.evaluate(CONTRAST)
        assert found["bad"] == []
        assert found["seen"] > 100


def test_tabs_show_one_panel_and_go_on_by_click_and_keys(opened: Open) -> None:
    page = opened("run")
    tabs = page.locator("#confusion [role=tab]")
    assert tabs.all_inner_texts() == ["before", "after alphaedit", 'after <script>window.broken = "yes"</script>']
    panels = page.locator("#confusion [role=tabpanel]")
    assert [panels.nth(place).is_visible() for place in range(3)] == [True, False, False]
    tabs.nth(1).click()
    assert [panels.nth(place).is_visible() for place in range(3)] == [False, True, False]
    page.keyboard.press("ArrowRight")
    assert tabs.nth(2).get_attribute("aria-selected") == "true"
    assert [panels.nth(place).is_visible() for place in range(3)] == [False, False, True]
    page.keyboard.press("ArrowRight")
    assert panels.nth(0).is_visible()
    page.keyboard.press("End")
    assert panels.nth(2).is_visible()
    assert page.evaluate("document.activeElement.textContent").startswith("after <script>")
    assert [tab.get_attribute("tabindex") for tab in tabs.all()] == ["-1", "-1", "0"]  # one stop for all of them


def test_a_changed_cell_of_a_confusion_says_its_counts(opened: Open) -> None:
    page = opened("run")
    page.locator("#confusion [role=tab]").nth(1).click()
    cell = page.locator("#confusion [role=tabpanel]:visible td.m").first
    cell.hover()
    tip = page.locator("[role=tooltip]")
    told = tip.inner_text()
    assert told.startswith('true class <script>window.broken = "yes"</script>, class given <script>')
    assert "before (+2)" in told
    assert cell.get_attribute("title") is None  # or the browser would say it once more
    page.keyboard.press("Escape")
    assert not tip.is_visible()


@pytest.mark.parametrize(
    ("name", "field", "key", "words"),
    [
        ("locate", "#figures table.cells", "ArrowRight", "layer 0, head 1: "),
        ("locate", "#figures svg.patches[data-columns]", "ArrowDown", "patch in row 1, column 0: "),
        ("locate", "#figures svg.chart", "ArrowRight", "at layer, counted from 0 1"),
        ("evaluate", "#figures svg.chart", "ArrowDown", 'script>window.broken = "yes"</script>'),
        ("artificial", "#sweep svg.chart", "ArrowRight", "chosen on validation data"),
        ("ablate", "#figures svg.chart", "End", "edits that hold"),
        ("edit", "#stream svg.chart", "ArrowRight", "edits that hold at the end"),
        ("run", "#training svg.chart", "ArrowDown", "validation: loss"),
        ("run", "#layers svg.chart", "ArrowDown", "layer 1, rank "),
        ("compare", "#figures svg.chart", "ArrowRight", "16 edits in a batch: efficacy "),
        ("compare", "#figures svg.chart", "ArrowDown", "AlphaEdit, 1 edit in a batch: efficacy "),
        ("baseline", "#classes svg.chart", "ArrowDown", "10 images: accuracy 60.0%"),
        ("baseline", "#confusion table.cells", "ArrowRight", "images"),
        ("compress", "#figures table.cells", "ArrowRight", "block 1: 0 of 2 heads stay"),
        ("compress", "#figures [role=tabpanel] table.cells", "ArrowRight", "head 1: removed"),
        (
            "compress",
            f"#figures {CIRCUITS} svg.chart",
            "ArrowRight",
            "faithfulness 0.6 (0.5 to 0.7) at share that is kept 1.0%",
        ),
        (
            "evaluate",
            "#figures .chart-block:has-text('by images in a batch') svg.chart",
            "End",
            "at images in a batch 64",
        ),
        (
            "evaluate",
            "#figures .chart-block:has-text('Calibration error') svg.chart",
            "ArrowDown",
            "calibration error 4.1%",
        ),
        ("locate", f"#figures {SCREEN} svg.chart", "ArrowDown", "exact effect (probability)"),
        ("edit", "#measures svg.chart", "ArrowRight", "efficacy, after: share of facts 90.0% (80.0% to 100.0%)"),
    ],
)
def test_values_are_told_to_the_keyboard(opened: Open, name: str, field: str, key: str, words: str) -> None:
    page = opened(name)
    found = page.locator(field).locator("visible=true").first
    if name == "compress":
        found = page.locator(field).first
    stops = found.locator("[tabindex='0']")
    assert stops.count() == 1
    stops.focus()
    first = page.locator("[role=tooltip]").inner_text()
    page.keyboard.press(key)
    told = page.locator("[role=tooltip]").inner_text()
    assert words in told
    assert told != first
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == told
    assert found.locator("[tabindex='0']").count() == 1


@pytest.mark.parametrize(
    ("name", "spot", "words"),
    [
        ("locate", "#figures svg.patches rect", "patch in row 0, column 0: "),
        ("locate", "#figures svg.chart .spot", "mean effect (probability)"),
        ("evaluate", "#figures svg.chart .spot", "accuracy"),
        ("compress", "#figures svg.chart .spot", "recommended"),
        ("artificial", "#sweep svg.chart .spot", "test accuracy"),
        ("run", "#training svg.chart .c1 .spot", "best validation accuracy, kept"),
        ("run", "#layers svg.chart .spot", "mean effect (probability)"),
        ("compare", "#figures svg.chart .spot", "; single draws "),
        ("ablate", "#figures svg.chart .spot", "at requests replayed a new one 0.5"),
        ("baseline", "#classes svg.chart .spot", "accuracy 50.0%"),
        ("compress", f"#figures {CIRCUITS} .spot", "faithfulness −3 (−3.1 to −2.9)"),
        (
            "compress",
            "#figures .chart-block:has-text('budget of the search') .spot",
            "budget of the search: KL, nats 0.05",
        ),
        ("evaluate", "#figures .chart-block:has-text('Accuracy by confidence') .spot", ", 40 images: accuracy 75.0% ("),
        ("locate", f"#figures {SCREEN} .spot", "screened rank "),
    ],
)
def test_values_are_told_to_the_pointer(opened: Open, name: str, spot: str, words: str) -> None:
    page = opened(name)
    assert not page.locator("[role=tooltip]").is_visible()
    spots = page.locator(spot).locator("visible=true")
    for place in range(min(spots.count(), 12)):
        spots.nth(place).hover(force=True)  # of points on each other the last is told
        if words in page.locator("[role=tooltip]").inner_text():
            return
    raise AssertionError(f"no point says {words}")


def test_tabs_of_a_comparison_show_each_measure_with_its_names(opened: Open) -> None:
    page = opened("compare")
    tabs = page.locator("#figures [role=tab]")
    assert tabs.all_inner_texts() == ["efficacy", "paraphrase", "neighbourhood", "composite"]
    tabs.nth(3).click()
    assert page.locator("#figures .panel:visible svg.chart").count() == 2
    # Names and values of a bar chart stand within its drawing.
    for text in page.locator("#figures .panel:visible svg.chart text").all():
        box, frame = text.bounding_box(), text.locator("xpath=ancestor::*[name()='svg']").bounding_box()
        assert box["x"] >= frame["x"] - 1
        assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1


@pytest.mark.parametrize("name", ["compress", "compare", "edit", "baseline"])
def test_names_and_values_of_charts_stand_within_their_drawings_on_a_telephone(opened: Open, name: str) -> None:
    page = opened(name)
    page.set_viewport_size({"width": 390, "height": 900})
    assert page.evaluate("document.querySelectorAll('svg.chart text').length") > 20
    assert (
        page.evaluate("""() => [...document.querySelectorAll("svg.chart text")].filter((text) => {
      const box = text.getBoundingClientRect(), frame = text.closest("svg").getBoundingClientRect();
      return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1);
    }).map((text) => text.textContent)""")
        == []
    )


def test_without_the_script_cells_and_points_still_have_their_values(opened: Open) -> None:
    page = opened("locate", java_script_enabled=False)
    cell = page.locator("#figures table.cells td[title]").first
    assert cell.get_attribute("title").startswith(("+", "−"))
    assert page.locator("svg.chart .spot title").first.text_content().startswith("resid.out")


def test_links_lead_to_their_sections(opened: Open) -> None:
    page = opened("run", reduced_motion="reduce")  # or it would scroll for a while
    page.get_by_role("link", name="Confusion").click()
    assert page.evaluate("location.hash") == "#confusion"
    box = page.locator("#confusion").bounding_box()
    assert 0 <= box["y"] < 900
