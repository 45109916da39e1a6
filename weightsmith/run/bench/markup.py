"""The bench's page as pieces of HTML, in plain words. Whatever comes from data is text in it, never markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from weightsmith.report import as_data_uri
from weightsmith.report.pictures import image_uri, is_small
from weightsmith.run.bench.session import Session
from weightsmith.run.bench.values import Line, Made, Moved, Picture, Preview, Summary
from weightsmith.run.bench.why import Map, Neighbour, Reasons

MOST_CARDS = 12
"""Repaired or broken images that a preview shows."""

_TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`@"})
"""Signs that Gradio's page would take for a template: a class may be called `${alert(1)}`."""

_PARTS = {"val": "validation", "train": "training", "new site": "new site's"}
_TRUST = {
    "efficacy": "edited images that get their class",
    "locality": "images that judge the edits and stay as they were",
    "retention": "earlier edits that hold",
    "drift": "steadiness of the judges' probabilities",
    "norm": "steadiness of the weights (counts little)",
}


@cache
def _templates() -> Any:
    made = Environment(
        loader=PackageLoader("weightsmith.run.bench", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_text,
    )
    return made.get_template("parts.html.j2").module


def _as_text(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(str(escape(value)).translate(_TEMPLATE_SIGNS))  # noqa: S704


def heading(title: str, summary: Summary) -> str:
    """The top of the page: how things stand."""
    part = _PARTS[summary.part]
    looked = f"{summary.looked:,} {part} images"
    if summary.looked < summary.of_part:
        looked += f", drawn at random from {summary.of_part:,}"
    change = ""
    if summary.edits:
        edits = "1 edit is" if summary.edits == 1 else f"{summary.edits} edits are"
        change = f" Before the first edit it was {summary.wrong_first}; {edits} in force."
    said = f"Of {looked} the model gets {summary.wrong_now} wrong.{change}"
    kept = "Held-out images are never shown here: the command weightsmith evaluate measures on them."
    return str(_templates().heading(title, [said, kept]))


def grid(session: Session, indices: Sequence[int], chosen: int | None, empty: str, told: str) -> str:
    """Cards to choose from."""
    cards = []
    for index in indices:
        seen = session.picture(index)
        cards.append(_card(session, seen) | {"chosen": index == chosen})
    return str(_templates().grid(cards, empty, told))


def image(session: Session, index: int | None, wanted: int | None = None) -> str:
    """The chosen image, and what the model says of it."""
    if index is None:
        return str(_templates().image(None))
    seen, names = session.picture(index), session.class_names
    target = seen.wanted if wanted is None else wanted
    likely = session.likely(index)
    if target not in [label for label, _ in likely]:
        likely = [*likely, *((label, p) for label, p in session.likely(index, len(names)) if label == target)]
    rows = [
        {"name": names[label], "percent": _percent(p), "width": round(100 * p, 1), "wanted": label == target}
        for label, p in likely
    ]
    given = f"The model says {names[seen.now]} ({_percent(seen.sure)})."
    if seen.edit is not None:
        given += f" Edit {seen.edit} names it {names[seen.wanted]}; the data set says {names[seen.label]}."
    else:
        given += f" The data set says {names[seen.label]}."
    if seen.edit is None and seen.first != seen.now:
        given += f" Before the first edit the model said {names[seen.first]}."
    return str(
        _templates().image(
            _picture(session, index)
            | {"name": seen.name, "verdict": given, "likely": rows, "locked": seen.locked, "alt": f"Image {seen.name}"}
        )
    )


def basket(session: Session, asked: Mapping[int, int]) -> str:
    """Images that are to be edited together with the chosen one."""
    cards = [_card(session, session.picture(i)) | {"says": f"to be {session.class_names[c]}"} for i, c in asked.items()]
    return str(_templates().basket(cards))


def preview(session: Session, seen: Preview | None) -> str:
    """What an edit would do."""
    if seen is None:
        return str(_templates().preview(None))
    verdict = seen.verdict
    made = [_made(session, row) for row in seen.made]
    slipped = ", ".join(str(number) for number in seen.slipped)
    said = f": {verdict.said}" if verdict.said else ", enough to be kept without a warning"
    told = {
        "refused": seen.refused,
        "trust": f"{100 * verdict.score:.0f}",
        "trusted": said + ".",
        "parts": [_part(name, value) for name, value in verdict.parts.items() if name in _TRUST],
        "made": made,
        "balance": (
            f"Of {seen.counted:,} other images, {seen.wrong_before} are wrong now and {seen.wrong_after} would be wrong."
        ),
        "groups": [
            _group(session, "Repaired", seen.repaired, good=True),
            _group(session, "Broken", seen.broken, good=False),
        ],
        "slipped": f"Earlier edits that would no longer hold: {slipped}." if slipped else "",
    }
    return str(_templates().preview(told))


def history(session: Session, lines: Sequence[Line], total: int) -> str:
    """The edits in force, with a button each."""
    if not total:
        told = "None yet."
    else:
        told = "The latest first. Undoing an earlier one makes it as if it had never been made: later ones are solved again."
        told += f" {len(lines)} of {total} are shown." if len(lines) < total else ""
    return str(_templates().history([_line(session, line) for line in lines], told))


def trace(found: Map) -> str:
    """The map of what carries the decision."""
    return _figure(found, "Map over the image of what carries the decision.")


def attention(found: Map) -> str:
    """The map of where the model looks."""
    return _figure(found, "Map over the image of where the model looks.")


def nearest(session: Session, reasons: Reasons, index: int, wanted: int, found: Sequence[Neighbour]) -> str:
    """The training images that are most alike, and how many of them have the wanted class, and the one that it gives."""
    names, now = session.class_names, session.picture(index).now
    cards = []
    for near in found:
        pixels = reasons.training.pixels([near.position])[0].numpy()
        says = names[near.label]
        note = f"likeness {near.likeness:.2f}"
        alt = f"Training image labelled {says}"
        cards.append({"uri": image_uri(pixels), "small": is_small(pixels), "says": says, "note": note, "alt": alt})
    told = [
        f"{sum(near.label == label for near in found)} have the label {names[label]}"
        for label in dict.fromkeys((now, wanted))
    ]
    words = f"Of the {len(found)} training images that the model reads most alike, {' and '.join(told)}."
    return str(_templates().neighbours(cards, words))


def status(text: str, *, bad: bool = False) -> str:
    """One sentence on what happened last."""
    return str(_templates().status(text, bad))


def _figure(found: Map, alt: str) -> str:
    return str(_templates().picture(as_data_uri(found.figure), f"{alt} {found.words}", found.words))


def _picture(session: Session, index: int) -> dict[str, Any]:
    pixels = session.pixels(index).numpy()
    return {"uri": image_uri(pixels), "small": is_small(pixels)}


def _card(session: Session, seen: Picture) -> dict[str, Any]:
    names = session.class_names
    note = f"edit {seen.edit}" if seen.edit is not None else f"label {names[seen.label]}"
    return _picture(session, seen.index) | {
        "index": seen.index,
        "name": seen.name,
        "right": seen.right,
        "says": names[seen.now],
        "note": note,
        "alt": f"Image {seen.name}",
    }


def _made(session: Session, row: Made) -> dict[str, Any]:
    names = session.class_names
    return {
        "name": session.picture(row.index).name,
        "before": names[row.before],
        "after": names[row.after],
        "right": row.after == row.wanted,
        "chances": f"{_percent(row.wanted_before)} to {_percent(row.wanted_after)}",
    }


def _group(session: Session, title: str, moved: Sequence[Moved], *, good: bool) -> dict[str, Any]:
    count, names = len(moved), session.class_names
    cards = [
        _picture(session, each.index)
        | {
            "says": f"{names[each.before]} → {names[each.after]}",
            "note": "now right" if good else f"should be {names[each.wanted]}",
            "alt": f"Image {session.picture(each.index).name}",
        }
        for each in moved[:MOST_CARDS]
    ]
    told = f"{title}: {count or 'none'}" + (f" other image{'s' * (count > 1)}" if count else "")
    return {"title": told, "cards": cards, "more": max(0, count - MOST_CARDS), "good": good}


def _part(name: str, value: float) -> str:
    return f"{_percent(value)}: {_TRUST[name]}"


def _line(session: Session, line: Line) -> dict[str, Any]:
    names = session.class_names
    notes = ["holds" if line.holds else "does not hold any more"]
    if line.overruled is not None:
        notes = [f"overruled by edit {line.overruled}"]
    if line.trust is not None:
        notes.append(f"trust {100 * line.trust:.0f}")
    pictured = _picture(session, line.index) if line.index is not None else {"uri": "", "small": False}
    return pictured | {
        "number": line.number,
        "what": f"{line.name}: {names[line.was]} became {names[line.wanted]}",
        "note": ", ".join(notes),
        "alt": f"Image {line.name}",
    }


def _percent(share: float) -> str:
    """A share in percent, never rounded to all or nothing unless it is."""
    text = f"{100 * share:.1f}"
    if text == "100.0":
        return "100%" if share > 0.99999 else "over 99.9%"
    return "under 0.1%" if text == "0.0" and share > 0 else f"{text}%"
