"""The table of bad inputs: each row ends in one sentence, and each input that an issue names has a row or a test."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.bad_inputs import combine, compress, correct, doors, language, locate
from tests.bad_inputs.elsewhere import NAMED
from tests.bad_inputs.rows import Group, Row, tried

ROOT = Path(__file__).resolve().parents[2]
GROUPS = tuple(group for craft in (correct, locate, language, compress, combine, doors) for group in craft.GROUPS)
ROWS = [(group, row) for group in GROUPS for row in group.rows]


@pytest.mark.parametrize(("group", "row"), ROWS, ids=[group.title(row) for group, row in ROWS])
def test_one_sentence_and_nothing_left_behind(
    weightsmith,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: Group,
    row: Row,
) -> None:
    monkeypatch.chdir(tmp_path)
    tried(request, weightsmith, tmp_path, group, row)


def test_every_row_stands_once() -> None:
    titles = [group.title(row) for group, row in ROWS]
    assert len(set(titles)) == len(titles)


@cache
def _named_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("issue", NAMED)
def test_what_the_issues_name_is_tried(issue: int) -> None:
    titles = {group.title(row) for group, row in ROWS}
    for what, places in NAMED[issue].items():
        assert places, what
        for place in places:
            file, _, name = place.partition("::")
            assert name in _named_in(file) if name else place in titles, f"{what}: nothing is called {place}"
