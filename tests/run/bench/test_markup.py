"""The page's pieces: whatever comes from data is text in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from weightsmith.run.bench import markup
from weightsmith.run.bench.session import Session
from weightsmith.run.bench.why import Reasons

Bench = Callable[..., Session]

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "${alert(1)}",
    "{{value}}",
    "a & b",
    "`x`",
    "@children",
)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.events: list[str] = []
        self.text = ""
        self.without_alt = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.events += [name for name, _ in attributes if name.startswith("on")]
        self.without_alt += tag == "img" and not dict(attributes).get("alt")

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> _Tags:
    found = _Tags()
    found.feed(html)
    return found


@pytest.fixture
def evil(bench: Bench) -> Session:
    """A session whose classes have names that would be markup, or templates."""
    session = bench()
    session.class_names = tuple(EVIL[label % len(EVIL)] + f" {label}" for label in range(10))
    return session


def test_class_names_are_text_everywhere(evil: Session) -> None:
    index = next(i for i in evil.listed("wrong") if not evil.picture(i).locked)
    seen = evil.preview({index: int(evil.labels[index])})
    reasons = Reasons(evil)
    pieces = {
        "grid": markup.grid(evil, evil.listed("all"), index, "none", "told"),
        "image": markup.image(evil, index),
        "preview": markup.preview(evil, seen),
        "nearest": markup.nearest(evil, reasons, index, 0, reasons.nearest(index)),
        "trace": markup.trace(reasons.trace(index, int(evil.labels[index]))),
        "heading": markup.heading("<b>run</b>", evil.summary()),
        "basket": markup.basket(evil, {index: 3}),
        "status": markup.status("<i>told</i>"),
    }
    evil.keep(seen)
    pieces["history"] = markup.history(evil, evil.history(), 1)
    for name, html in pieces.items():
        found = parsed(html)
        assert not {"script", "b", "i"} & set(found.tags), name
        assert not found.events, name
        assert not found.without_alt, name
        assert not re.search(r"[{}$`@]", html), name  # Gradio renders the pieces as templates
    for told in EVIL:
        assert told in parsed(pieces["grid"]).text


def test_a_preview_says_what_it_breaks(bench: Bench) -> None:
    session = bench(reach="alike", trust_threshold=1.0)
    open_ones = [i for i in session.listed("wrong") if not session.picture(i).locked][:6]
    seen = session.preview({i: int(session.labels[i]) for i in open_ones})
    text = parsed(markup.preview(session, seen)).text
    assert "below 1" in text  # it is not trusted, and may be kept all the same
    assert "kept all the same" in text
    assert f"Repaired: {len(seen.repaired) or 'none'}" in text
    assert f"Broken: {len(seen.broken) or 'none'}" in text
    assert f"{seen.wrong_before} are wrong now and {seen.wrong_after} would be wrong" in text
    assert len(seen.repaired) > 0


def test_nothing_is_left(bench: Bench) -> None:
    session = bench()
    assert "No errors are left" in markup.grid(session, [], None, "No errors are left", "told")
    assert "None yet" in markup.history(session, [], 0)
    assert "Choose an image" in markup.image(session, None)
    assert markup.preview(session, None).strip() == ""


@pytest.mark.parametrize(
    ("share", "words"), [(1.0, "100%"), (0.9996, "over 99.9%"), (0.0, "0.0%"), (1e-9, "under 0.1%"), (0.25, "25.0%")]
)
def test_shares_are_never_rounded_to_all_or_nothing(share: float, words: str) -> None:
    assert markup._percent(share) == words
