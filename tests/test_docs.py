"""The documentation has a page for every method and every public name, and its navigation has every page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import weightsmith as ws
from weightsmith.edit import editors
from weightsmith.merge import METHODS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ROOMS = ("data", "edit", "evaluate", "locate", "measure", "merge", "models", "prune", "ranks", "report", "stream")


def entries(nav: Any) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(entry)


NAV = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))


def described(page: Path) -> list[str]:
    """The objects whose docstrings a page shows, by their full names; members of a module are listed."""
    found = []
    text = page.read_text(encoding="utf-8")
    for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", text + "\n", re.MULTILINE):
        found.append(name)
        listed = re.search(r"members: \[(.*)\]", options)
        found += [f"{name}.{member.strip()}" for member in listed[1].split(",")] if listed else []
    return found


def resolved(name: str) -> Any:
    """The object of a full name; a module where a function of a package has its name is only on the way."""
    home, _, own = name.rpartition(".")
    try:
        around = import_module(home)
    except ModuleNotFoundError:
        around = resolved(home)
    return getattr(around, own) if hasattr(around, own) else import_module(name)


def test_the_navigation_has_every_page_once() -> None:
    assert sorted(NAV) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("name", sorted(editors()))
def test_every_editor_has_a_page(name: str) -> None:
    page = f"methods/editors/{name}.md"
    assert page in NAV
    assert editors()[name] in [resolved(one) for one in described(DOCS / page)]
    assert f"`--edit-method {name}`" in (DOCS / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_way_to_merge_has_a_page_with_its_paper(name: str) -> None:
    page = f"methods/merging/{name}.md"
    assert page in NAV
    assert METHODS[name] in [resolved(one) for one in described(DOCS / page)]
    text = (DOCS / page).read_text(encoding="utf-8")
    assert METHODS[name].paper.split(", ")[0] in text
    assert METHODS[name].paper.split(":")[-1] in text


@cache
def all_described() -> tuple[Any, ...]:
    """Every object whose docstring some page shows."""
    return tuple(resolved(name) for page in DOCS.rglob("*.md") for name in described(page))


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_public_name_is_described(room: str) -> None:
    module = import_module(f"weightsmith.{room}" if room else "weightsmith")
    shown = all_described()
    missing = [name for name in module.__all__ if not any(getattr(module, name) is one for one in shown)]
    rooms = [name for name in missing if name in ROOMS] if room == "" else []
    assert [name for name in missing if name not in rooms] == []


def test_nothing_is_fetched_when_a_page_is_read() -> None:
    """No fonts, scripts or styles from elsewhere."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert not {"extra_javascript", "repo_url", "edit_uri"} & set(config)
    assert all("//" not in sheet for sheet in config["extra_css"])


def test_links_between_pages_are_relative_so_that_a_code_host_follows_them_too() -> None:
    for path in DOCS.rglob("*.md"):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith(("https://", "#")):
                assert (path.parent / link.partition("#")[0]).exists(), f"{path.relative_to(ROOT)}: {link}"
    assert ws.__all__
