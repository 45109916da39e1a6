"""The bench as a page: Gradio's components around what `Session` knows and `markup` writes. Nothing is decided here."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported: nothing is told to anybody

import gradio as gr

from weightsmith.errors import WeightsmithError
from weightsmith.run.bench import markup
from weightsmith.run.bench.session import Session
from weightsmith.run.bench.values import Preview, Which
from weightsmith.run.bench.why import Reasons

_log = logging.getLogger(__name__)

PAGE = 24
"""Cards on one page of images."""

MOST_LINES = 100
"""Edits that the history shows."""

_EVERY = 3.0
"""Seconds after which a page asks whether others have changed something."""

_LISTS: tuple[tuple[str, Which], ...] = (
    ("Wrong now", "wrong"),
    ("Broken by edits", "broken"),
    ("Repaired as well", "repaired"),
    ("Corrected", "corrected"),
    ("All", "all"),
)
_EMPTY = {
    "wrong": "No errors are left here: the model gets all of these images right.",
    "broken": "No edit has broken any of these images.",
    "repaired": "No image beside the edited ones has been repaired.",
    "corrected": "No edit is in force.",
    "all": "There are no such images.",
}
_PROGRESS = gr.Progress()
_UNDECIDED: list[Any] = [None, "", gr.update(visible=False)]
"""No preview, nothing to keep or discard."""

_ANY = -1
"""The entry of the class filter that keeps every class."""

_CLICKS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-%(what)s]');
  if (button && element.contains(button)) { trigger('select', {index: Number(button.dataset.%(what)s)}); }
});
"""
_POLITE = "element.setAttribute('aria-live', 'polite'); element.setAttribute('role', 'status');"
_TO_IMAGE = (
    "() => { if (window.innerWidth < 1000) { document.getElementById('ws-image').scrollIntoView({block: 'start'}); } }"
)


class _Bench:
    """The components and what happens when they are used; one object for all browsers, whose own state is Gradio's."""

    def __init__(self, session: Session, title: str) -> None:
        self.session, self.title, self.reasons = session, title, Reasons(session)

    def build(self) -> gr.Blocks:
        """The page."""
        classes = _choices(self.session.class_names)
        page = gr.Blocks(title=self.title, analytics_enabled=False, fill_width=True)
        with page:
            self.chosen, self.asked, self.seen = gr.State(None), gr.State({}), gr.State(None)
            self.version, self.first, self.tab = gr.State(-1), gr.State(0), gr.State("alike")
            self.heading = gr.HTML(elem_id="ws-heading")
            self.status = gr.HTML(elem_id="ws-status", js_on_load=_POLITE)
            with gr.Row():
                with gr.Column(scale=5, min_width=440):
                    self._left(classes)
                with gr.Column(scale=6, min_width=440):
                    self._right(classes)
            timer = gr.Timer(_EVERY)
            self._wire(page, timer)
        return page

    def _left(self, classes: list[tuple[str, int]]) -> None:
        with gr.Row():
            self.which = gr.Radio(list(_LISTS), value="wrong", label="Show images", elem_id="ws-which", scale=3)
            here = set(self.session.shown_labels())
            self.label = gr.Dropdown(
                [("every class", _ANY), *(choice for choice in classes if choice[1] in here)],
                value=_ANY,
                label="of the class",
                elem_id="ws-label",
                scale=1,
            )
        self.grid = gr.HTML(elem_id="ws-grid", js_on_load=_CLICKS % {"what": "choose"})
        with gr.Row():
            self.back = gr.Button("Previous images", size="sm", elem_id="ws-back", visible=False)
            self.on = gr.Button("Next images", size="sm", elem_id="ws-on", visible=False)
        self.history = gr.HTML(elem_id="ws-history", js_on_load=_CLICKS % {"what": "undo"})
        self.save = gr.Button("Save the corrected classifier", size="sm", elem_id="ws-save", visible=False)

    def _right(self, classes: list[tuple[str, int]]) -> None:
        self.image = gr.HTML(markup.image(self.session, None), elem_id="ws-image")
        with gr.Column(visible=False) as self.correct:
            self.wanted = gr.Dropdown(classes, value=None, label="Right class (type to search)", elem_id="ws-wanted")
            with gr.Row():
                self.look = gr.Button("Preview the edit", variant="primary", elem_id="ws-look")
                self.more = gr.Button("Edit it together with others", elem_id="ws-more")
        self.basket = gr.HTML(elem_id="ws-basket", js_on_load=_CLICKS % {"what": "drop"})
        self.preview = gr.HTML(elem_id="ws-preview", js_on_load=_POLITE)
        with gr.Row(visible=False) as self.decide:
            self.keep = gr.Button("Keep this edit", variant="primary", elem_id="ws-keep")
            self.discard = gr.Button("Discard it", elem_id="ws-discard")
        with gr.Column(visible=False) as self.why:
            gr.HTML("<h2>Why does it say so?</h2>")
            with gr.Tabs():
                with gr.Tab("Most alike in training", id="alike") as self.alike_tab:
                    self.alike = gr.HTML(elem_id="ws-alike")
                with gr.Tab("What decides", id="trace") as self.trace_tab:
                    self.trace = gr.HTML(elem_id="ws-trace")
                with gr.Tab("Where it looks", id="attention") as self.attention_tab:
                    self.attention = gr.HTML(elem_id="ws-attention")

    def _wire(self, page: gr.Blocks, timer: gr.Timer) -> None:
        """What happens when something is used; `board` is what every change may alter."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        slow: dict[str, Any] = {"show_progress": "full", "api_visibility": "private"}
        listed = [self.which, self.label, self.first, self.chosen]
        board = [self.heading, self.grid, self.history, self.save, self.back, self.on, self.first, self.version]
        decided = [self.seen, self.preview, self.decide]
        why = ([self.chosen, self.wanted, self.tab], [self.alike, self.trace, self.attention])
        again = ([self.chosen, self.wanted], [self.image])

        page.load(self._board, listed, board, **quiet)
        for choice in (self.which, self.label):
            choice.input(self._from_the_start, listed, board, **quiet)
        for button, by in ((self.back, -PAGE), (self.on, PAGE)):
            button.click(_turned(self._board, by), listed, board, **quiet)
        timer.tick(self._tick, [self.version, *listed], [*board, self.status], **quiet)

        shown = [self.chosen, self.image, self.wanted, self.correct, self.why, *why[1], *decided, self.status]
        selected = self.grid.select(self._choose, None, shown, **quiet)
        selected.then(self._board, listed, board, **quiet)
        selected.then(None, None, None, js=_TO_IMAGE, **quiet)
        selected.then(self._why, *why, **slow)
        for tab, name in ((self.alike_tab, "alike"), (self.trace_tab, "trace"), (self.attention_tab, "attention")):
            tab.select(lambda name=name: name, None, self.tab, **quiet).then(self._why, *why, **slow)

        self.wanted.input(self._named, again[0], [self.image, *decided], **quiet)
        collected = [self.asked, self.basket, *decided, self.status]
        self.more.click(self._added, [self.asked, self.chosen, self.wanted], collected, **quiet)
        self.basket.select(self._dropped, [self.asked], collected, **quiet)
        self.look.click(self._preview, [self.asked, self.chosen, self.wanted], [*decided, self.status], **slow)
        for button, act in ((self.keep, self._keep), (self.discard, self._discard)):
            done = button.click(act, [self.seen, self.asked], collected, **slow)
            done.then(self._board, listed, board, **quiet).then(self._again, *again, **quiet)
        gone = self.history.select(self._undo, None, [*decided, self.status], **slow)
        gone.then(self._board, listed, board, **quiet).then(self._again, *again, **quiet)
        self.save.click(self._save, None, [self.status], **slow).then(self._board, listed, board, **quiet)

    def _board(self, which: Which, label: int | None, first: int, chosen: int | None) -> list[Any]:
        """The heading, the images, the history and its buttons."""
        session = self.session
        found = session.listed(which, None if label in (None, _ANY) else label)
        first = max(0, min(first, (len(found) - 1) // PAGE * PAGE))
        here = found[first : first + PAGE]
        told = f"{len(found):,} image{'s' * (len(found) != 1)}"
        if len(found) > PAGE:
            told = f"Images {first + 1:,} to {first + len(here):,} of {len(found):,}"
        lines, summary = session.history(), session.summary()
        saved = f"Saved in {session.held.place / 'edited'}" if summary.saved else "Save the corrected classifier"
        return [
            markup.heading(self.title, summary),
            markup.grid(session, here, chosen, _EMPTY[which], f"{told}, those of which the model is surest first."),
            markup.history(session, lines[:MOST_LINES], len(lines)),
            gr.update(value=saved, interactive=not summary.saved, visible=summary.edits > 0),
            gr.update(visible=len(found) > PAGE, interactive=first > 0),
            gr.update(visible=len(found) > PAGE, interactive=first + PAGE < len(found)),
            first,
            session.version,
        ]

    def _from_the_start(self, which: Which, label: int | None, first: int, chosen: int | None) -> list[Any]:  # noqa: ARG002
        return self._board(which, label, 0, chosen)

    def _tick(self, version: int, which: Which, label: int | None, first: int, chosen: int | None) -> list[Any]:
        """What others have changed meanwhile, in another browser or with `weightsmith edits`."""
        session, told = self.session, gr.skip()
        if session.stale():
            try:
                if session.sync():
                    told = markup.status("The edits were changed outside this page; it shows how things stand now.")
            except WeightsmithError as error:
                told = markup.status(str(error), bad=True)
        if session.version == version:
            return [*[gr.skip()] * 8, told]
        return [*self._board(which, label, first, chosen), told]

    def _choose(self, event: gr.EventData) -> list[Any]:
        index = int(event._data["index"])
        seen = self.session.picture(index)
        shown = [index, markup.image(self.session, index), seen.wanted, gr.update(visible=not seen.locked)]
        return [*shown, gr.update(visible=True), "", "", "", *_UNDECIDED, ""]

    def _named(self, chosen: int | None, wanted: int | None) -> list[Any]:
        return [self._again(chosen, wanted), *_UNDECIDED]

    def _again(self, chosen: int | None, wanted: int | None) -> str:
        return markup.image(self.session, chosen, wanted)

    def _why(self, chosen: int | None, wanted: int | None, tab: str, progress: gr.Progress = _PROGRESS) -> list[Any]:
        """The reasons of the tab that is open."""
        if chosen is None:
            return [gr.skip()] * 3
        progress(0.3, desc="Looking for reasons")
        target = self.session.picture(chosen).wanted if wanted is None else wanted
        ways: dict[str, Callable[[], str]] = {
            "alike": lambda: markup.nearest(self.session, self.reasons, chosen, target, self.reasons.nearest(chosen)),
            "trace": lambda: markup.trace(self.reasons.trace(chosen, target)),
            "attention": lambda: markup.attention(self.reasons.attention(chosen)),
        }
        try:
            shown = ways[tab]()
        except WeightsmithError as error:
            shown = markup.status(str(error))
        return [shown if name == tab else gr.skip() for name in ways]

    def _added(self, asked: Mapping[int, int], chosen: int | None, wanted: int | None) -> list[Any]:
        """The chosen image waits to be edited with others."""
        try:
            asked = _with(asked, chosen, wanted)
            for index, target in asked.items():
                self.session.request(index, target)
        except WeightsmithError as error:
            return [*[gr.skip()] * 5, markup.status(str(error), bad=True)]
        told = markup.status("It waits to be edited with others: choose the next image.")
        return [asked, markup.basket(self.session, asked), *_UNDECIDED, told]

    def _dropped(self, asked: Mapping[int, int], event: gr.EventData) -> list[Any]:
        left = {index: target for index, target in asked.items() if index != int(event._data["index"])}
        return [left, markup.basket(self.session, left), *_UNDECIDED, ""]

    def _preview(
        self, asked: Mapping[int, int], chosen: int | None, wanted: int | None, progress: gr.Progress = _PROGRESS
    ) -> list[Any]:
        steps = iter((0.1, 0.7, 0.9))
        try:
            seen = self.session.preview(_with(asked, chosen, wanted), lambda doing: progress(next(steps), desc=doing))
        except WeightsmithError as error:
            return [*_UNDECIDED, markup.status(str(error), bad=True)]
        shown = gr.update(visible=True)
        return [seen, markup.preview(self.session, seen), shown if not seen.refused else gr.update(visible=False), ""]

    def _keep(self, seen: Preview | None, asked: Mapping[int, int]) -> list[Any]:
        if seen is None:
            return [
                asked,
                gr.skip(),
                *_UNDECIDED,
                markup.status("There is no preview to keep: make one first.", bad=True),
            ]
        try:
            batch = self.session.keep(seen)
        except WeightsmithError as error:
            return [asked, gr.skip(), *_UNDECIDED, markup.status(str(error), bad=True)]
        numbers = ", ".join(str(edit.number) for edit in batch.edits)
        told = f"Edit {numbers} is kept and in the journal." if len(batch.edits) == 1 else f"Edits {numbers} are kept."
        return [{}, "", *_UNDECIDED, markup.status(told)]

    def _discard(self, seen: Preview | None, asked: Mapping[int, int]) -> list[Any]:
        told = ""
        if seen is not None:
            told = self._told(lambda: self.session.discard(seen), "The edit is discarded; nothing has changed.")
        return [asked, gr.skip(), *_UNDECIDED, told]

    def _undo(self, event: gr.EventData, progress: gr.Progress = _PROGRESS) -> list[Any]:
        number = int(event._data["index"])
        progress(0.3, desc="Undoing; later edits are solved again")
        try:
            also = self.session.undo(number)
        except WeightsmithError as error:
            return [*_UNDECIDED, markup.status(str(error), bad=True)]
        told = f"Edit {number} is undone."
        if also:
            told += f" Without it, {', '.join(map(str, also))} could not be trusted and went too."
        return [*_UNDECIDED, markup.status(told)]

    def _save(self) -> list[Any]:
        where = self.session.held.place / "edited"
        return [self._told(self.session.save, f"The corrected classifier is saved in {where}.")]

    def _told(self, act: Callable[[], object], done: str) -> Any:
        """Do something, and say that it is done or what is wrong."""
        try:
            act()
        except WeightsmithError as error:
            return markup.status(str(error), bad=True)
        return markup.status(done)


def app(session: Session, title: str, host: str, port: int) -> Any:
    """The page as an ASGI application, unguarded."""
    from fastapi import FastAPI

    css = (resources.files("weightsmith.run.bench") / "page.css").read_text(encoding="utf-8")
    own = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue="blue", font=own, font_mono=["ui-monospace", "monospace"]
    )  # the machine's fonts: none is fetched
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        _Bench(session, title).build(),
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme,
        css=css,
    )


def _turned(board: Callable[..., list[Any]], by: int) -> Callable[..., list[Any]]:
    def turned(which: Which, label: int | None, first: int, chosen: int | None) -> list[Any]:
        return board(which, label, first + by, chosen)

    return turned


def _with(asked: Mapping[int, int], chosen: int | None, wanted: int | None) -> dict[int, int]:
    """What waits, and the chosen image."""
    if chosen is None or wanted is None:
        raise WeightsmithError("no class is named: choose an image and its right class")
    return {**asked, chosen: wanted}


def _choices(names: Sequence[str]) -> list[tuple[str, int]]:
    """The classes as the choosers have them; one of several of the same name with its number."""
    count = Counter(names)
    return [
        (name if name and count[name] == 1 else f"{name or 'class'} (class {label})", label)
        for label, name in enumerate(names)
    ]
