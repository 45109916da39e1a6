"""The corrections of an image classifier's run: the stream that `weightsmith bench` fills and `weightsmith edits` changes."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from weightsmith.data.images import ImageSet
from weightsmith.data.split import manifest, sample
from weightsmith.delta import weights_hash
from weightsmith.edit import Editor, Patcher, editors, make_editor
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import DAMAGED, read_csv, remove, user_path, write_csv, write_json
from weightsmith.measure import Predictions, predict
from weightsmith.models import save
from weightsmith.run.cards import classifier_card
from weightsmith.run.editing import AUTO, editor_options, layers_for, methods_for
from weightsmith.run.folder import RunFolder, existing_runs
from weightsmith.run.job import Job, check_split, save_indices
from weightsmith.run.knowledge.streaming import as_one
from weightsmith.run.options.correct import RunOptions
from weightsmith.run.options.files import read_yaml
from weightsmith.run.tables import EDIT_COLUMNS, edit_log_name, edit_rows
from weightsmith.stream import Journal, ReplayOptions, Stream, Trust, TrustOptions, settings_of

_log = logging.getLogger(__name__)

PLACE = "bench"
"""Folder in the run's folder for what the edits in force make: the corrected classifier, its delta, its tables."""

_STATE = "state.json"

_ASKED = ("stage", "data_path", "edit_from", "held_out_from")
"""Options that only `weightsmith run` has all of."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a journal of corrections says beside its editor, so that it can be gone on with from its folder alone.

    Attributes:
        edit_from, stream_ratio: where the first errors came from, as `RunOptions` has them.
        max_images: validation images that are looked at; max_preserved: training images that are preserved.
        trust: fields of `TrustOptions`.
    """

    edit_from: str
    stream_ratio: float
    max_images: int
    max_preserved: int
    trust: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Corrections:
    """A run's stream of corrections, open.

    Attributes:
        job: the run; its model wears the edits in force.
        stream: the edits; watched: validation images on which they are judged.
        before: what the unedited model says of the watched images.
    """

    job: Job
    stream: Stream
    watched: ImageSet
    before: Predictions

    @property
    def place(self) -> Path:
        """Folder of what the edits in force make."""
        return self.job.folder.path / PLACE

    def leave(self) -> None:
        """Write the corrected classifier, its delta and its tables; without an edit in force there are none.

        The split's record goes beside them, so that `weightsmith evaluate` knows what the classifier has learned from.
        """
        if not self.stream.edits():
            remove(self.place)
            _log.info("no edit is in force: there is no corrected classifier")
            return
        job, stream, method = self.job, self.stream, str(self.stream.settings["method"])
        self.place.mkdir(parents=True, exist_ok=True)
        parts = job.split.parts()
        if job.new_site is not None:
            parts |= {"stream": job.new_site[0], "new_site_held_out": job.new_site[1]}
        entries = {"seed": job.split.seed, "val_carved_from_train": job.split.val_carved, "parts": manifest(parts)}
        write_json(self.place / "data_split.json", entries)
        save_indices(self.place, parts)
        delta = as_one(stream, self.place)[method]
        write_csv(self.place / edit_log_name(method), edit_rows(delta), EDIT_COLUMNS)
        save(job.trained, self.place / "edited", classifier_card(job.folder, job.options, job.trained, delta))
        delta.save(self.place / "delta.safetensors")
        write_json(self.place / _STATE, {"weights": weights_hash(job.trained)})

    def left(self) -> str:
        """Hash of the weights of the corrected classifier that was written last; "" where there is none."""
        try:
            return str(json.loads((self.place / _STATE).read_text(encoding="utf-8"))["weights"])
        except DAMAGED:
            return ""


def is_image_run(run: Path | str) -> bool:
    """Whether a folder is of `weightsmith run`, whose corrections are of images."""
    return _entries(user_path(run)).keys() >= set(_ASKED)


def image_job(run: str, **given: Any) -> Job:
    """The run of a folder, ready to be corrected.

    Args:
        given: options of the run that are to differ; None leaves the run's own.

    Raises:
        WeightsmithError: no run folder of `weightsmith run`, one of another version, without a trained classifier, or whose
            data are gone or are not those that it recorded.
    """
    path = user_path(run)
    entries = _entries(path)
    if not entries.keys() >= set(_ASKED):
        what = "a run of another command" if entries else "no run folder"
        raise WeightsmithError(f"{path} is {what}: give a folder that `weightsmith run` made ({_runs_beside(path)})")
    known = {field.name for field in dataclasses.fields(RunOptions)}
    if strange := sorted(set(entries) - known):
        raise WeightsmithError(
            f"{path} was made by another version of weightsmith (its config.yaml has {strange[0]!r}): make it anew with "
            "`weightsmith run`, and --checkpoint to keep its classifier"
        )
    chosen = {name: value for name, value in given.items() if value is not None}
    asked = replace(read_yaml(path / "config.yaml", RunOptions()), runs_dir=str(path.absolute().parent), **chosen)
    job = Job(asked, RunFolder.named(asked, path.absolute().name), stage=PLACE)
    again = f"`weightsmith run --stage %s --runs-dir {path.parent} --run-name {path.name}`"
    if not (job.folder.path / "model" / "config.json").is_file():
        raise WeightsmithError(f"{path} has no trained classifier yet: finish {again % 'train'} first")
    if not (job.folder.results / "data_split.json").is_file():
        raise WeightsmithError(
            f"{path} has no record of how its data were split: finish {again % 'data'} and the train stage first"
        )
    try:
        source = job.source
    except WeightsmithError as error:
        raise WeightsmithError(f"the data of {path} cannot be opened: {error}") from error
    if job.trained.n_classes != source.n_classes:
        raise WeightsmithError(
            f"the classifier of {path} has {job.trained.n_classes} classes and its data {source.n_classes}: give --data-path "
            "with the data that it was trained on"
        )
    check_split(job)
    return job


@contextmanager
def corrections(
    job: Job, sources: Sources | None = None, method: str | None = None, reach: str | None = None
) -> Iterator[Corrections]:
    """The corrections of a run, while the block runs; its model wears the edits of the journal meanwhile.

    Args:
        sources: of a journal that is to be begun where there is none; None goes on with one alone.
        method: the editor of a journal that is to be begun; None takes what `--edit-method auto` would.
        reach: of the patcher, "image" for the memories alone, which is the default, or "alike" for its shift as well.

    Raises:
        WeightsmithError: no journal, one of another editor, or nothing that edits can be judged on.
    """
    begins = sources is not None
    with job.folder.in_use("wait until it is done and try again") if begins else nullcontext():
        journal, editor, replay, sources = _journal(job, sources, method, reach)
    watched = sample(job.part("val"), sources.max_images, job.options.seed)
    before = predict(job.trained, watched, title="validation images")
    right = np.flatnonzero(before.right.numpy())
    if len(right) == 0:
        raise WeightsmithError(
            f"the classifier of {job.folder.path} gets no validation image right, so nothing can judge an edit: train it first"
        )
    trust = TrustOptions(**{**sources.trust, "weights": tuple(sources.trust["weights"])})
    trust = replace(trust, heldout_samples=max(1, min(trust.heldout_samples, len(right) // 2)))
    preserve = sample(job.part("train"), sources.max_preserved, job.options.seed)
    judges = Trust(trust, watched.subset(right))
    stream = Stream(
        job.trained, editor, preserve, journal=journal, replay=replay, trust=judges, cache_dir=job.cache_dir
    )
    with stream:
        yield Corrections(job, stream, watched, before)


def begun_with(run: str) -> Sources | None:
    """What the journal of a run says of its sources; None where no edit has been journalled.

    Raises:
        WeightsmithError: a journal that is damaged, or of another version.
    """
    where = user_path(run) / "edits"
    if not (where / "journal.jsonl").exists():
        return None
    journal = Journal.open(where)
    return None if journal.blank else _as_journalled(journal)[2]


def class_names_of(run: Path) -> tuple[str, ...]:
    """The names of the classes of a run's classifier, read without loading it; empty where they are not told."""
    path = run / "data_split_info.csv"
    rows = read_csv(path) if path.is_file() else []
    return tuple(row["name"] for row in rows if row["part"] == "train" and row["class"] != "all")


def _journal(
    job: Job, sources: Sources | None, method: str | None, reach: str | None
) -> tuple[Journal, Editor, ReplayOptions, Sources]:
    """The journal of the run, one that is begun where there is none or nothing in it, and what it is solved with."""
    where = job.folder.path / "edits"
    journal = Journal.open(where) if (where / "journal.jsonl").exists() or sources is None else None
    if journal is not None and not (journal.blank and sources is not None):
        _check_same(journal, method, reach)
        if journal.settings.get("base") != weights_hash(job.trained):
            raise WeightsmithError(
                f"the classifier of {job.folder.path} is another than its edits were made on, trained anew perhaps: move the "
                "folder edits away to begin a new journal"
            )
        return journal, *_as_journalled(journal)
    assert sources is not None
    editor, replay = _new_editor(job, method, reach), ReplayOptions(seed=job.options.seed)
    remove(where / "journal.jsonl")  # nothing is bound to the settings of a blank one
    settings = settings_of(job.trained, editor, replay) | {"sources": asdict(sources)}
    return Journal.create(where, settings), editor, replay, sources


def _new_editor(job: Job, method: str | None, reach: str | None) -> Editor:
    known = (AUTO, *editors())
    if method is not None and method not in known:
        raise WeightsmithError(f"--edit-method {method} is no editor: {did_you_mean(method, known)}")
    job.options = replace(job.options, edit_method=(method or AUTO,))
    (chosen,) = methods_for(job)
    options = editor_options(job.options, chosen, layers_for(job, chosen))
    if chosen == Patcher.name:
        # The shift spends its budget anew in every batch of a stream: docs/correct.md.
        options |= {"budget": 0.0} if reach in (None, "image") else {}
    elif reach is not None:
        raise WeightsmithError(f"--reach is the patcher's, and the editor is {chosen}: leave it out")
    return make_editor(chosen, **options)


def _as_journalled(journal: Journal) -> tuple[Editor, ReplayOptions, Sources]:
    """What the journal's batches were solved with."""
    settings = journal.settings
    try:
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in settings["options"].items()}
        return (
            make_editor(settings["method"], **options),
            ReplayOptions(**settings["replay"]),
            Sources(**settings["sources"]),
        )
    except (KeyError, TypeError) as error:
        raise WeightsmithError(
            f"the journal in {journal.folder} is of another version of weightsmith ({error}): take that one, or move the "
            "folder away to begin a new journal"
        ) from error


def _check_same(journal: Journal, method: str | None, reach: str | None) -> None:
    made = (
        journal.settings.get("method"),
        "image" if journal.settings.get("options", {}).get("budget") == 0 else "alike",
    )
    for flag, given, theirs in (("--edit-method", method, made[0]), ("--reach", reach, made[1])):
        if given not in (None, AUTO, theirs):
            raise WeightsmithError(
                f"the edits of {journal.folder.parent} were made with {flag} {theirs}: leave out {flag} {given}, or move the "
                "folder edits away to begin a new journal"
            )


def _entries(path: Path) -> dict[str, Any]:
    """What a run folder's `config.yaml` has; empty where there is none that can be read."""
    try:
        entries = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _runs_beside(path: Path) -> str:
    runs = existing_runs(str(path.absolute().parent))
    return f"runs there are: {', '.join(runs[:8])}" if runs else "`weightsmith run` makes one"
