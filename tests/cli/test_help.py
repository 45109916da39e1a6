"""Help answers at once and is complete, and the table of commands, the docs and the help say the same."""

from __future__ import annotations

import inspect
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from weightsmith.cli.commands import COMMANDS, GROUPS, find, first_words
from weightsmith.cli.exits import EXITS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("numpy", "rich", "torch", "transformers", "tyro", "yaml")


@pytest.mark.parametrize("words", [["--help"], ["locate", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys; from weightsmith.cli import main; main({words}); "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stderr.strip() == "[]"
    assert answer.stdout


def test_help_takes_less_than_half_a_second() -> None:
    """Of processor time, the least of three: what else runs on the machine does not count."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "weightsmith", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5


def test_help_lists_every_command_and_status(weightsmith) -> None:
    out = weightsmith("--help").out
    for name, about in first_words().items():
        assert f"  {name} " in out
        assert about.split()[0] in out
    for one in EXITS:
        assert f"  {one.status} " in out
    for group in GROUPS:
        shown = weightsmith(group, "--help").out
        for command in COMMANDS:
            if command.name.startswith(f"{group} "):
                assert f"  {command.name.partition(' ')[2]} " in shown


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_row_is_true(command) -> None:
    """What the table says without importing anything is what is there."""
    assert " ".join(inspect.getdoc(command.kind()).split()) == command.about
    assert callable(command.function())
    if command.plans:
        assert callable(command.planner())


@pytest.mark.parametrize("name", ["run", "locate patch", "edits show", "merge", "doctor"])
def test_each_command_has_help(weightsmith, name: str) -> None:
    seen = weightsmith(*name.split(), "--help")
    assert seen.status == 0
    assert "--json" in seen.out
    assert ("--dry-run" in seen.out) == bool(find(name).plans)


def test_the_docs_have_the_exit_statuses() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for one in EXITS:
        assert f"| {one.status} | {one.when} |" in text
