"""Numbers, names and settings the way people read them; page, terminal and card share them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightsmith.measure import Interval

Row = Mapping[str, Any]
"""A row of a CSV file, its values numbers or text."""

_PARTS = {
    "train": "training part",
    "val": "validation part",
    "test": "test part",
    "held_out": "held-out part",
    "new_site": "new site, held-out part",
}
_METRICS = {"kl": "negative KL divergence"}
TOKENS = {
    "cls": "CLS",
    "patches": "patches",
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "after_first": "first token after subject",
    "after_middle": "further tokens",
    "last": "last token",
}
"""Tokens that have a name, in the order of a text."""


def number(value: object) -> float:
    """A value of a CSV row as a number; NaN for an empty field or words."""
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


def percent(share: float, *, signed: bool = False) -> str:
    """A share as a percentage with one decimal; a difference of shares, `signed`, as percentage points.

    >>> percent(0.9123), percent(-0.004, signed=True), percent(float("nan"))
    ('91.2%', '-0.4 points', 'n/a')
    """
    if math.isnan(share):
        return "n/a"
    value = round(100 * share, 1) + 0.0  # adding zero turns -0.0 into 0.0
    return f"{value:+.1f} points" if signed else f"{value:.1f}%"


def bounds(measured: Interval, *, signed: bool = False) -> str:
    """The 95% interval in percent, without the unit, which stands beside the value: "90.1 to 92.3"."""
    if math.isnan(measured.low) or math.isnan(measured.high):
        return "no interval"
    style = "+.1f" if signed else ".1f"
    return " to ".join(format(round(100 * end, 1) + 0.0, style) for end in (measured.low, measured.high))


def part_title(part: str) -> str:
    """What people call a part: "held_out" is the held-out part."""
    return _PARTS.get(part, part.replace("_", " "))


def metric_title(metric: str) -> str:
    """What people call a metric: "kl" is the negative KL divergence, "logit_difference" the logit difference."""
    return _METRICS.get(metric, metric.replace("_", " "))


def where(tokens: str | tuple[int, ...] | None) -> str:
    """Where the tokens of a site are: "at CLS", "at tokens 3 to 5"."""
    if tokens is None:
        return "at all tokens"
    if isinstance(tokens, tuple):
        return f"at token{'s' * (len(tokens) > 1)} {_positions(tokens)}"
    return "at " + "the " * (tokens != "cls") + TOKENS.get(tokens, tokens)


def token_label(tokens: str | tuple[int, ...], texts: Sequence[str] | None) -> str:
    """The tokens' texts, their name, or their positions; without texts position 0 is CLS, as in an image."""
    if not isinstance(tokens, tuple):
        return TOKENS.get(tokens, tokens)
    if texts is None:
        return "CLS" if tokens == (0,) else _positions(tokens)
    return " ".join(_legible(texts[token]) for token in tokens)


def _positions(tokens: tuple[int, ...]) -> str:
    if len(tokens) > 1 and tokens[-1] - tokens[0] == len(tokens) - 1:
        return f"{tokens[0]} to {tokens[-1]}"
    return ", ".join(str(token) for token in tokens)


def _legible(text: str) -> str:
    """A token's text with its control characters written out; only blanks are one visible sign."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text.strip(" ")) or "␣"


def layer_labels(layers: Sequence[int | None], sites: Sequence[str]) -> list[str]:
    """The block's number where that tells the sites apart, the whole site where it does not."""
    numbers = [str(layer) for layer in layers if layer is not None]
    return numbers if len(set(numbers)) == len(sites) else list(sites)


def class_name(value: object, class_names: Sequence[str]) -> str:
    """The name of a class given by label, as a number or as text; anything else stays as it is."""
    text = str(value)
    return class_names[int(text)] if text.isdecimal() and int(text) < len(class_names) else text


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines: {"edit": {"ridge": 0.1}} is the line edit.ridge, 0.1."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            lines.append((f"{prefix}{key}", ", ".join(str(item) for item in value) or "none"))
        else:
            lines.append((f"{prefix}{key}", "not set" if value is None else str(value)))
    return lines
