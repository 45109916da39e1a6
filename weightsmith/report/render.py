"""From templates and values to the text of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from weightsmith.report.parts.blocks import Block, Picture, TableBlock, alternative_text
from weightsmith.report.words import Row, bounds, flat, number, part_title, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_REFUSED = 10


@dataclass(frozen=True, eq=False)
class PageSection:
    """A part of a page under a heading of its own.

    Attributes:
        id: its address within the page; title: the heading; link: what the navigation calls it, empty: the title.
        blocks: what it shows; words: sentences above them.
    """

    id: str
    title: str
    blocks: Sequence[Block]
    words: Sequence[str] = ()
    link: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class PageInputs:
    """What a page is made of. Whatever is empty leaves its section out.

    Attributes:
        title: heading of the page; about: a sentence or two on what the command does.
        summary: sentences at the top; notes: what a reader must know to judge the numbers.
        sections: in their order; those without blocks are left out.
        refused: what was left out, and why; `refused_called`: what one of them is called.
        config, env: the resolved configuration, and versions, device and hashes.
    """

    title: str
    about: str
    summary: Sequence[str] = ()
    notes: Sequence[str] = ()
    sections: Sequence[PageSection] = ()
    refused: Sequence[tuple[str, str]] = ()
    refused_called: str = "sample"
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def page_of(inputs: PageInputs) -> str:
    """The page as text."""
    context = {
        "title": inputs.title,
        "about": inputs.about,
        "summary": inputs.summary,
        "notes": inputs.notes,
        "sections": [section for section in inputs.sections if section.blocks],
        "refused": inputs.refused,
        "refused_called": inputs.refused_called,
        "many_refused": len(inputs.refused) > _MOST_REFUSED,
        "config": flat(inputs.config),
        "env": flat(inputs.env),
    }
    return environment().get_template("sections.html.j2").render(context)


def figures_section(
    figures: Sequence[tuple[str, Figure | Sequence[Block]]], title: str = "Figures", address: str = "figures"
) -> PageSection:
    """Figures in their order, each with its number and caption; blocks stand for a figure that the page draws itself."""
    shown: list[Block] = []
    for place, (caption, drawn) in enumerate(figures, 1):
        told = f"Figure {place}. {caption}"
        if isinstance(drawn, Sequence):
            *others, last = drawn
            shown += [*others, captioned(last, told)]
        else:
            shown.append(Picture(figure=drawn, caption=told, alt=alternative_text(caption, drawn)))
    return PageSection(address, title, shown)


def captioned(block: Block, caption: str) -> Block:
    """The block with a caption, behind the one that it has."""
    return replace(block, caption=" ".join(part for part in (caption, block.caption) if part))


def tables_section(
    tables: Sequence[tuple[str, Sequence[Row]] | tuple[str, Sequence[Row], str]],
    title: str = "Tables",
    address: str = "tables",
) -> PageSection:
    """Those of the tables that have rows: title, rows, and the CSV file that has all of them."""
    blocks = [TableBlock(title=one[0], rows=one[1], file=one[2] if len(one) > 2 else "") for one in tables if one[1]]
    return PageSection(address, title, blocks)


@cache
def environment() -> Environment:
    """What renders the templates. Everything from data is escaped: a class or a file may be called `<script>`."""
    loader = PackageLoader("weightsmith.report", "")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(percent=percent, bounds=bounds, part_title=part_title, number=number, short_link=_short_link)
    made.globals.update(rendered=rendered, as_it_is=_as_it_is)
    return made


def rendered(block: Block, identifier: str, level: int) -> Markup:
    """A block as HTML, by the template of its kind.

    Args:
        identifier: its address in the page, by which tables and tabs are labelled.
        level: of headings in it.
    """
    template = environment().get_template(f"parts/{block.kind}.html.j2")
    made = template.render(block=block, id=identifier, level=level)
    return Markup(made)  # noqa: S704  (what the template escaped is not escaped again)


def _as_it_is(name: str) -> Markup:
    """A file of this room: no template, so nothing in it is to be filled in, and no time goes into looking for it."""
    path = Path(__file__).parent / name
    return Markup(path.read_text(encoding="utf-8"))  # noqa: S704  (ours, nothing from data)


def _short_link(section: PageSection) -> tuple[str, str, bool]:
    return section.id, section.link or section.title, True
