"""Markdown of model cards: a header that the hub reads, tables and lists, and text from data made harmless."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from weightsmith.report.words import flat

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MARKUP = re.compile(r"([\\`*{}\[\]<>|#$~]|(?<!\w)_|_(?!\w))")
_LONGEST = 200
"""Signs of a name or an answer that a card shows."""


def front_matter(
    pipeline_tag: str, base_model: str = "", licence: str = "", edited: bool = False, library: str = "transformers"
) -> str:
    """The YAML header, with which the hub finds and sorts a model.

    Args:
        base_model: what it was made from; left out where that is a path, which the hub would refuse.
        licence: identifier of the hub's list, "apache-2.0"; left out when empty.
    """
    entries: dict[str, object] = {
        "library_name": library,
        "pipeline_tag": pipeline_tag,
        "tags": ["weightsmith", "model-editing"] if edited else ["weightsmith"],
    }
    if licence:
        entries["license"] = licence
    if is_hub_name(base_model):
        entries["base_model"] = base_model
    return f"---\n{yaml.safe_dump(entries, sort_keys=False)}---"


def is_hub_name(name: str) -> bool:
    """Whether this is OWNER/NAME on the hub and no folder here."""
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def bullets(title: str, sentences: Sequence[str]) -> str:
    """A section of sentences, empty without any."""
    return f"## {title}\n\n" + "\n".join(f"- {plain(sentence)}" for sentence in sentences) if sentences else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells must be plain already."""
    lines = [[plain(name) for name in header], ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def provenance(values: Mapping[str, object]) -> str:
    """The section of hashes, versions and seeds; name → value, nested or not."""
    if not values:
        return ""
    rows = [[plain(name), plain(value)] for name, value in flat(values)]
    return "## Provenance\n\n" + table(["name", "value"], rows)


def plain(text: str) -> str:
    """Text from data on one line, with what Markdown or HTML would act on escaped."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def short(text: str) -> str:
    """`plain`, cut where it is very long."""
    line = " ".join(text.split())
    return plain(line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…")
