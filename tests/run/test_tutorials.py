"""The tutorials' commands run as they are printed, and what the pages name is there afterwards.

All but the one on facts stand in one folder: the first trains the model that the others use, here a narrower network of half
the depth. `weightsmith facts` takes minutes and is not run; a model of a smaller world stands in its place.
"""

from __future__ import annotations

import re
import shlex
import shutil
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.run.conftest import undrawn
from weightsmith import cli
from weightsmith.models import store

PAGES = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
NOT_RUN = re.compile(r"<!-- not run by the test: (.+?) -->\n+$")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FIRST = "correct"
OTHERS = ("locate", "compress", "merge")


@dataclass(frozen=True)
class Block:
    """A block of a page: commands (`console`) or Python, and the reason why it is not run, if it is not."""

    kind: str
    text: str
    skipped: str | None


def blocks(page: str) -> list[Block]:
    """The blocks of a page that a reader runs, in order."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        if match[1] in ("console", "python"):
            why = NOT_RUN.search(text[: match.start()])
            found.append(Block(match[1], match[2], why[1] if why else None))
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a block, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def follow(page: str) -> None:
    """Do what the page says in the present folder, and check that every file below `runs` that it names is there."""
    for block in blocks(page):
        if block.skipped:
            continue
        if block.kind == "python":
            exec(compile(block.text, f"{page}.md", "exec"), {})
            continue
        for words in commands(block):
            assert words[0] == "weightsmith", words
            cli.main(words[1:])
    for name in named(page):
        assert Path(name).exists(), f"{page}.md names {name}"


def named(page: str) -> set[str]:
    """Files and folders below `runs` that a page's prose names."""
    prose = BLOCK.sub("", (PAGES / f"{page}.md").read_text(encoding="utf-8"))
    return {name for name in re.findall(r"`(runs/[^`\s]+)`", prose) if "*" not in name}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has done the first tutorial."""
    folder, known = tmp_path_factory.mktemp("tutorials"), store.presets()
    narrow = known["digits"] | {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 96}
    with chdir(folder), undrawn(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "presets", lambda *_: known | {"digits": narrow})
        follow(FIRST)
    return folder


def test_the_first_correction(place: Path) -> None:
    assert (place / "runs" / "digits" / "edited" / "model.safetensors").exists()
    assert len(named(FIRST)) >= 3


@pytest.mark.parametrize("page", OTHERS)
def test_a_tutorial_that_stands_on_it(place: Path, page: str) -> None:
    with chdir(place):
        follow(page)
    assert named(page)


def test_facts(knowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(knowing, tmp_path / "runs" / "facts")
    monkeypatch.chdir(tmp_path)
    follow("facts")
    assert named("facts")


def test_what_is_not_run_has_its_reason() -> None:
    """Only the training of the fact model is left out."""
    skipped = [(page, words) for page in (FIRST, *OTHERS, "facts") for block in blocks(page) if block.skipped
               for words in commands(block)]  # fmt: skip
    assert [(page, words[:2]) for page, words in skipped] == [("facts", ["weightsmith", "facts"])]


def test_every_tutorial_is_run() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == {"index", FIRST, "facts", *OTHERS}
    for page in (FIRST, *OTHERS, "facts"):
        assert any(block.kind == "console" and not block.skipped for block in blocks(page)), page


def test_pictures_are_small_and_there() -> None:
    for path in PAGES.glob("*.md"):
        for picture in re.findall(r"!\[.+?\]\((.+?)\)", path.read_text(encoding="utf-8")):
            assert (PAGES / picture).stat().st_size < 150_000, picture
