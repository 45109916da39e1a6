"""The page in a real browser: three images are corrected by clicking, one is undone, and after a reload all is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from tests.browser import browser, why_not
from weightsmith import cli
from weightsmith.run.bench.guard import Guard
from weightsmith.run.bench.server import address_of, listening
from weightsmith.run.bench.session import Session
from weightsmith.stream import Journal

PATIENCE = 120_000
"""Milliseconds for what takes a second on an idle machine."""

EVIL = "<img src=x onerror=alert(1)> ${alert(2)} {{value}}"


@contextmanager
def served(run: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command as a user starts it: its address and its process, which is killed afterwards."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    asked = [sys.executable, "-W", "ignore", "-m", "weightsmith", "bench", str(run), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(asked, stderr=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stderr is not None
            said = list(iter_until(process.stderr, "is open"))
            assert "is open" in said[-1], said
            yield next(word for word in said[-1].split() if word.startswith("http")), process
        finally:
            process.send_signal(signal.SIGKILL)


def iter_until(lines: Iterable[str], words: str) -> Iterator[str]:
    """The lines up to the one that has the words, or to the end."""
    for line in lines:
        yield line
        if words in line:
            return


@pytest.fixture
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    if why_not():
        pytest.skip(why_not())
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def named_run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained classifier on digits whose classes have names of markup and templates, of one of which there is no end."""
    from weightsmith.data.sources import digits
    from weightsmith.models import load, save

    folder, source = tmp_path_factory.mktemp("named"), digits().part("train")
    names = [f"{EVIL} {label}" for label in range(10)]
    from PIL import Image

    for label, pixels in zip(source.labels.tolist(), source.pixels().numpy(), strict=True):
        place = folder / "data" / names[label].replace("/", "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels[0])).save(place / f"{len(list(place.iterdir())):04d}.png")
    model = load(finished / "model")
    model.module.config.id2label = dict(enumerate(names))
    save(model, folder / "model")
    flags = ("--data-path", folder / "data", "--model", "digits", "--checkpoint", folder / "model", "--device", "cpu")
    for stage in ("data", "train"):
        asked = ["run", "--stage", stage, *flags, "--runs-dir", folder / "runs", "--run-name", "named"]
        cli.main([str(word) for word in asked])
    return folder / "runs" / "named"


def test_three_images_corrected_one_undone_and_all_there_after_a_reload(chromium: Any, named_run: Path) -> None:
    said: list[str] = []
    reached: list[str] = []
    with served(named_run) as (address, process):
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: reached.append(request.url))
        page.goto(address)
        undo = page.get_by_role("button", name="Undo edit")
        for number in (1, 2, 3):
            page.locator("#ws-grid button:not([aria-pressed=true])").first.click()
            page.locator("#ws-grid button[aria-pressed=true]").wait_for()
            page.locator("#ws-alike li").first.wait_for()
            page.get_by_role("button", name="Preview the edit").click()
            page.get_by_role("heading", name="What this edit would do").wait_for()
            assert "Trust" in page.locator("#ws-preview").inner_text()
            page.get_by_role("button", name="Keep this edit").click()
            page.get_by_role("button", name=f"Undo edit {number}").wait_for()
            page.get_by_text(f"Edit {number} is kept and in the journal.").wait_for()
        assert len(Journal.open(named_run / "edits").edits()) == 3
        page.get_by_role("button", name="Undo edit 2").focus()
        page.keyboard.press("Enter")  # no mouse is needed
        page.get_by_text("Edit 2 is undone.").wait_for()
        page.get_by_role("button", name="Undo edit 2").wait_for(state="detached")
        standing = page.locator(
            "#ws-heading .ws-heading, #ws-history section"
        )  # not Gradio's clock, which lies over them
        before = standing.all_inner_texts()
        assert said == []
        page.reload()
        page.locator("#ws-history button").first.wait_for()
        said.clear()  # leaving a page breaks off the streams that it listens to, and some versions of Gradio say so
        assert standing.all_inner_texts() == before
        assert undo.count() == 2
        assert len(before) == 2
        assert "2 edits are in force" in before[0]

        assert EVIL in page.locator("#ws-grid").inner_text()
        page.locator("#ws-grid button").first.click()
        page.locator("#ws-image").get_by_text(f"The model says {EVIL}").wait_for()
        page.get_by_label("Right class").click()
        page.get_by_label("Right class").fill("value}} 7")
        page.get_by_role("option", name=f"{EVIL} 7", exact=True).click()
        assert page.get_by_label("Right class").input_value() == f"{EVIL} 7"
        page.get_by_role("tab", name="What decides").click()
        trace = page.locator("#ws-trace img")
        trace.wait_for()
        assert "speak for" in trace.get_attribute("alt")
        page.get_by_role("tab", name="Where it looks").click()
        page.locator("#ws-attention img").wait_for()

        pictures = page.locator("img")
        assert all(pictures.nth(place).get_attribute("alt") for place in range(pictures.count()))
        assert said == []
        outside = [url for url in reached if not url.startswith((address, "data:", "blob:"))]
        assert outside == []

        with pytest.raises(HTTPError, match="403"):
            urlopen(Request(f"{address}config", headers={"Origin": "https://evil.example"}))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [edit.number for _, edit in Journal.open(named_run / "edits").edits()] == [1, 3]


@contextmanager
def in_this_process(session: Session) -> Iterator[str]:
    """The page of a session, served by a thread."""
    import uvicorn

    from weightsmith.run.bench.page import app

    with listening("127.0.0.1", 0) as bound:
        made = Guard(app(session, "many", "127.0.0.1", bound.getsockname()[1]), "127.0.0.1")
        server = uvicorn.Server(uvicorn.Config(made, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            yield address_of(bound)
        finally:
            server.should_exit = True
            thread.join(60)


def typed(chooser: Any, words: str) -> None:
    """Type over what stands there, key by key: the list is searched at each key, and not when text is put in at once."""
    chooser.press("Control+A")
    chooser.press_sequentially(words)


def test_ten_thousand_classes_are_searched_by_typing(chromium: Any, bench: Callable[..., Session]) -> None:
    session = bench()
    session.class_names = (*(f"species {label}" for label in range(9_998)), "twin 9876", "twin 9876")
    with in_this_process(session) as address:
        page = chromium.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator("#ws-grid button").first.click()
        page.locator("#ws-image table").wait_for()
        chooser = page.get_by_label("Right class")
        chooser.click()
        assert page.get_by_role("option").count() <= 100
        assert page.get_by_role("option", name="species 9876", exact=True).count() == 0
        typed(chooser, "9876")  # a part of the name does, and each key costs a search among ten thousand
        for name in ("species 9876", "twin 9876 (class 9999)"):
            page.get_by_role("option", name=name, exact=True).wait_for()
        page.get_by_role("option", name="twin 9876 (class 9998)", exact=True).click()
        assert chooser.input_value() == "twin 9876 (class 9998)"
        page.get_by_role("button", name="Preview the edit").click()
        page.get_by_text("has classes 0 to 9").wait_for()  # the classifier has ten: one sentence, no more


def test_the_browser_is_told_when_a_preview_is_behind(chromium: Any, bench: Callable[..., Session]) -> None:
    """Two people at one bench: what one keeps appears on the other's page, whose preview is refused then."""
    session = bench()
    with in_this_process(session) as address:
        pages = [chromium.new_page() for _ in range(2)]
        for number, page in enumerate(pages):
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            page.locator("#ws-grid button").nth(number).click()
            page.locator("#ws-image table").wait_for()
            page.get_by_role("button", name="Preview the edit").click()
            page.get_by_role("button", name="Keep this edit").wait_for()
        mine, theirs = pages
        theirs.get_by_role("button", name="Keep this edit").click()
        theirs.get_by_role("button", name="Undo edit 1").wait_for()
        mine.get_by_role("button", name="Undo edit 1").wait_for()
        mine.get_by_role("button", name="Keep this edit").click()
        mine.get_by_text("another edit was kept or taken back since this one was solved").wait_for()
        assert len(session.history()) == 1
