"""`weightsmith edits`: what the journal of a run has, and taking edits back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from weightsmith.data.facts import read_facts
from weightsmith.delta import Delta
from weightsmith.errors import WeightsmithError, near_path
from weightsmith.evaluate import answer
from weightsmith.files import remove, user_path
from weightsmith.run.correct.corrections import begun_with, class_names_of, corrections, image_job, is_image_run
from weightsmith.run.folder import RunFolder
from weightsmith.run.knowledge.edit import as_adapters, editor_of, write_results
from weightsmith.run.knowledge.fact_run import of_auto
from weightsmith.run.knowledge.language import Kept, of_name
from weightsmith.run.knowledge.streaming import as_one, edit_entries, in_force, journal_of, listed, shown, stream_of
from weightsmith.run.options.edits import (
    EditsOptions,
    ListEditsOptions,
    RemoveEditOptions,
    ReplayEditsOptions,
    ShowEditOptions,
    UndoEditsOptions,
)
from weightsmith.run.options.files import read_yaml
from weightsmith.run.options.knowledge import EditOptions
from weightsmith.run.outcome import Outcome
from weightsmith.stream import Stream

_log = logging.getLogger(__name__)


def edits(options: EditsOptions) -> Outcome:
    """List, show, undo, remove or replay edits of a run's journal.

    Raises:
        WeightsmithError: no journal, no such edit, or a model that is not the one that was edited.
    """
    if isinstance(options, ListEditsOptions):
        journal, names = journal_of(options.run), class_names_of(user_path(options.run))
        return Outcome(
            command="edits list", figures={"edits": edit_entries(journal, names)}, shown=[listed(journal, names)]
        )
    if isinstance(options, ShowEditOptions):
        told = shown(journal_of(options.run), options.edit)
        # As JSON, which people and programs read.
        return Outcome(
            command="edits show", figures={"edit": told}, shown=[json.dumps(told, indent=2, ensure_ascii=False)]
        )
    if isinstance(options, RemoveEditOptions):
        number = journal_of(options.run).find(options.edit)[1].number
        return _changed(options.run, "edits remove", lambda stream: _removed(stream, number))
    if isinstance(options, UndoEditsOptions):
        return _changed(options.run, "edits undo", lambda stream: _undone(stream, options))
    assert isinstance(options, ReplayEditsOptions)
    return _changed(options.run, "edits replay", _made_anew)


def _undone(stream: Stream, options: UndoEditsOptions) -> str:
    gone = stream.undo(len(stream.batches) if options.all else options.batches)
    count = sum(len(batch.edits) for batch in gone)
    return f"{count} edits of {len(gone)} batches are taken back, {len(stream.edits())} are in force."


def _removed(stream: Stream, number: int) -> str:
    gone = stream.remove(number)
    return f"Edit {number}, {gone.request.name}, is removed, as if it had never been made; {len(stream.edits())} are in force."


def _made_anew(stream: Stream) -> str:
    return f"The edited model is made anew from the journal: {len(stream.edits())} edits in force."


def _changed(run: str, command: str, change: Callable[[Stream], str]) -> Outcome:
    """Change the stream of a run, write the edited model and its measures as they are then, and say what was done."""
    told, left = _carried_out(run, change)
    return Outcome(
        command=command,
        folder=user_path(run),
        figures={"in_force": left},
        summary=[told],
        shown=[told],
        closing="holds what is in force",
    )


def _carried_out(run: str, change: Callable[[Stream], str]) -> tuple[str, int]:
    """(what was done, edits in force then)."""
    path = user_path(run)
    if is_image_run(path):
        return _changed_corrections(run, change)
    stored = path / "config.yaml"
    if not stored.is_file():
        raise WeightsmithError(
            f"{path} is no run folder with edits: give the one that holds config.yaml{near_path(path)}"
        )
    try:
        options = read_yaml(stored, EditOptions())
    except WeightsmithError as error:
        raise WeightsmithError(
            f"{stored} is of another version of weightsmith or of another command: give a run of `weightsmith edit` of this one"
        ) from error
    folder = RunFolder.named(replace(options, runs_dir=str(path.parent)), path.name)
    with folder.in_use(), folder.logged():
        model, world = of_auto(options) if options.model == "auto" else of_name(options.model, options.device)
        asked = read_facts(folder.results / "requests.json")
        kept = Kept.of(model, options.preserve, world)
        journal_of(run)  # says what is wrong with it before anything is solved
        editor = editor_of(options, options.edit_method[0], model)
        with stream_of(options, path, model, editor, kept, asked) as stream:
            told = change(stream)
            left = len(stream.edits())
            deltas: Mapping[str, Delta] = as_one(stream, folder.results)
            requests = in_force(stream) if left else []
        if not left:
            _forget(folder)
            return told, left
        deltas = as_adapters(options, folder, model, deltas)
        before = answer(model, requests, new_tokens=60, seed=options.seed, title="before")
        write_results(options, folder, model, requests, deltas, before, kept, asked)
    return told, left


def _changed_corrections(run: str, change: Callable[[Stream], str]) -> tuple[str, int]:
    """The same as `_carried_out` for a run whose images were corrected on `weightsmith bench`."""
    journal_of(run)
    begun = begun_with(run)
    given = {} if begun is None else {"edit_from": begun.edit_from, "stream_ratio": begun.stream_ratio}
    job = image_job(run, **given)
    with job.folder.in_use(), job.folder.logged(), corrections(job) as held:
        told = change(held.stream)
        held.leave()
        return told, len(held.stream.edits())


def _forget(folder: RunFolder) -> None:
    """Without an edit in force there is no edited model and nothing to report."""
    for name in ("edited", "delta.safetensors", "adapter"):
        remove(folder.path / name)
    for name in ("knowledge_report.csv", "answers.csv", "summary.json"):
        remove(Path(folder.results) / name)
    _log.info("no edit is in force: the edited model and its reports are removed")
