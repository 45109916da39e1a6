"""`weightsmith edit --batch-size`: facts one batch after another, with a journal; and `weightsmith edits` on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith.delta import Delta
from weightsmith.edit import Editor, make_editor
from weightsmith.errors import WeightsmithError, near_path
from weightsmith.files import user_path, write_csv
from weightsmith.models import Model
from weightsmith.report.words import class_name
from weightsmith.request import ImageRequest, TextRequest
from weightsmith.run.knowledge.language import Kept
from weightsmith.run.options.knowledge import EditOptions
from weightsmith.stream import Batch, Journal, ReplayOptions, Stream, Trust, TrustOptions, replay_for, settings_of

_log = logging.getLogger(__name__)

STREAM_COLUMNS = (
    "batch",
    "edits",
    "reached",
    "replaced",
    "replayed",
    "slipped",
    "trust",
    "factor",
    "update_norm",
    "cpu_seconds",
)
"""Of `stream.csv`, a row a batch in force."""


_OF_TRUST = ("trust_threshold", "trust_action", "trust_heldout_samples", "trust_weights")
_OF_STREAMS = (
    "replay", "replay_rate", "replay_buffer_size", "replay_strategy", "replay_eviction", "replay_weight", "trust_enable",
    *_OF_TRUST,
)  # fmt: skip
"""Options that say nothing of a single batch."""


def check(options: EditOptions) -> None:
    """Raise `WeightsmithError` for options of a stream that are out of range, or that ask for several at once."""
    if options.batch_size is None:
        plain = EditOptions()
        for name in _OF_STREAMS:
            if getattr(options, name) != getattr(plain, name):
                flag = name.replace("_", "-")
                raise WeightsmithError(f"--{flag} is for edits in one batch after another: give --batch-size with it")
        return
    if not options.trust_enable:
        plain = EditOptions()
        for name in _OF_TRUST:
            if getattr(options, name) != getattr(plain, name):
                raise WeightsmithError(f"--{name.replace('_', '-')} does nothing alone: give --trust-enable with it")
    if options.batch_size < 1:
        raise WeightsmithError(f"--batch-size must be at least 1, not {options.batch_size}: give 10 say")
    if len(options.edit_method) > 1:
        raise WeightsmithError("--batch-size makes one journal: give a single --edit-method with it")
    replay_for(make_editor(options.edit_method[0]), _replay(options))
    _trust_options(options)


def stream_of(
    options: EditOptions, folder: Path, model: Model, editor: Editor, kept: Kept, asked: Sequence[TextRequest]
) -> Stream:
    """The stream of a run, with the journal in its folder; the model wears what the journal has."""
    replay, where = _replay(options), folder / "edits"
    if (where / "journal.jsonl").exists():
        journal = Journal.open(where)
    else:
        journal = Journal.create(where, settings_of(model, editor, replay))
    trust = None
    if options.trust_enable:
        if kept.aside is None:
            raise WeightsmithError("--trust-enable needs text kept aside to judge on: give more with --preserve")
        trust = Trust(_trust_options(options), kept.aside)
    cache = user_path(options.cache_dir) if options.cache_dir else None
    return Stream(model, editor, kept.without(asked), journal=journal, replay=replay, trust=trust, cache_dir=cache)


def fill(stream: Stream, options: EditOptions, asked: Sequence[TextRequest]) -> None:
    """Edit what the journal does not have yet, batch by batch."""
    assert options.batch_size is not None
    assert stream.journal is not None
    known = {edit.request.name for batch in stream.batches for edit in batch.edits} | set(stream.journal.dismissed)
    chunks = [asked[first : first + options.batch_size] for first in range(0, len(asked), options.batch_size)]
    left = [chunk for chunk in chunks if not all(request.name in known for request in chunk)]
    if len(left) < len(chunks):
        _log.info("%d of %d batches are in the journal", len(chunks) - len(left), len(chunks))
    started, shown = time.monotonic(), time.monotonic()
    for done, chunk in enumerate(left, 1):
        stream.add([request for request in chunk if request.name not in known])
        now = time.monotonic()
        if now - shown > _EVERY or done == len(left):
            rest = (now - started) / done * (len(left) - done)
            _log.info("batch %d of %d, about %.0f min left", done, len(left), rest / 60)
            shown = now


_EVERY = 15.0
"""Seconds between two lines of progress."""


def in_force(stream: Stream) -> list[TextRequest]:
    """What the edits in force asked. Raises `WeightsmithError` when there are none: nothing can be measured then."""
    asked = [edit.request for edit in stream.edits() if isinstance(edit.request, TextRequest)]
    if not asked:
        raise WeightsmithError(
            "no edit is in force: none was trusted, or all were taken back; give a smaller --trust-threshold, other facts, or "
            "another editor"
        )
    return asked


def as_one(stream: Stream, results: Path) -> dict[str, Delta]:
    """Method → all edits in force as one delta for the weights before the first, with a row an edit; and `stream.csv`."""
    write_csv(results / "stream.csv", stream_rows(stream.batches), STREAM_COLUMNS)
    edits = stream.edits()
    delta = stream.delta()
    rows = [
        {
            "sample": edit.request.name,
            "before": edit.request.predicted if isinstance(edit.request, ImageRequest) else "",
            "target": edit.request.target,
            "after": edit.request.target if isinstance(edit.request, ImageRequest) and edit.success else "",
            "residual_norm": "",
            "update_norm": delta.norm(),
            "margin": edit.margin,
            "success": edit.success,
        }
        for edit in edits
    ]
    blocks = stream.model.family.blocks
    layers = [
        layer
        for layer in range(stream.model.n_layers)
        if any(name.startswith(f"{blocks}.{layer}.") for name in delta.changes)
    ]
    method, options = stream.settings["method"], stream.settings["options"]
    info = {"method": method, "options": options, "layers": layers, "requests": rows}
    return {method: Delta(delta.changes, delta.base, info)}


def stream_rows(batches: Sequence[Batch]) -> list[dict[str, object]]:
    """Rows of `stream.csv`."""
    rows: list[dict[str, object]] = []
    for batch in batches:
        replayed = batch.info.get("replayed", {})
        trust = batch.info.get("trust") or {}
        rows.append(
            {
                "batch": batch.number,
                "edits": len(batch.edits),
                "reached": sum(edit.success for edit in batch.edits),
                "replaced": sum(edit.replaces is not None for edit in batch.edits),
                "replayed": len(replayed),
                "slipped": sum(not held for held in replayed.values()),
                "trust": trust.get("score", ""),
                "factor": trust.get("factor", ""),
                "update_norm": batch.info.get("update_norm", ""),
                "cpu_seconds": batch.info.get("cpu_seconds", ""),
            }
        )
    return rows


def edit_entries(journal: Journal, class_names: Sequence[str] = ()) -> list[dict[str, object]]:
    """An entry an edit in force, for programs; classes of images by their names, where those are given."""
    return [
        {
            "edit": edit.number,
            "batch": batch.number,
            "request": edit.request.name,
            "asked": _asked(edit.request, class_names),
            "wanted": edit.request.target
            if isinstance(edit.request, TextRequest)
            else class_name(edit.request.target, class_names),
            "holds": edit.success,
            "replaces": edit.replaces,
        }
        for batch, edit in journal.edits()
    ]


def _asked(request: TextRequest | ImageRequest, class_names: Sequence[str]) -> str:
    if isinstance(request, TextRequest):
        return request.prompt
    return f"image, was {class_name(request.predicted, class_names)}"


def listed(journal: Journal, class_names: Sequence[str] = ()) -> Table:
    """A line an edit in force; classes of images by their names, where those are given."""
    table = Table(title=f"{len(journal.edits())} edits in force", box=box.SIMPLE_HEAD)
    for heading in ("edit", "batch", "request", "asked", "wanted", "holds", "replaces"):
        table.add_column(heading, justify="right" if heading in ("edit", "batch", "replaces") else "left")
    for entry in edit_entries(journal, class_names):
        cells = [str(entry[name]) for name in ("edit", "batch", "request", "asked", "wanted")]
        earlier = "" if entry["replaces"] is None else str(entry["replaces"])
        table.add_row(*map(Text, cells), "yes" if entry["holds"] else "no", earlier)
    return table


def shown(journal: Journal, which: str) -> dict[str, Any]:
    """All that the journal has of an edit, but for tensors their shapes and norms."""
    batch, edit = journal.find(which)
    request = edit.request
    told = {name: value for name, value in asdict(request).items() if name != "image"}
    if isinstance(request, ImageRequest):
        told["shape"] = list(request.image.shape)
    changes = {
        name: {"shape": list(change.shape), "norm": change.norm()} for name, change in batch.delta.changes.items()
    }
    keys = {
        layer: [
            float(guarded.keys[:, column].norm()) for column, owner in enumerate(guarded.owners) if owner == edit.number
        ]
        for layer, guarded in batch.keys.items()
    }
    return {
        "edit": edit.number,
        "batch": batch.number,
        "request": told,
        "success": edit.success,
        "margin": edit.margin,
        "replaces": edit.replaces,
        "key_norms": keys,
        "changes_of_the_batch": changes,
        "batch_info": batch.info,
    }


def journal_of(run: str) -> Journal:
    """The journal of a run's folder, or of its `edits` folder. Raises `WeightsmithError` where there is none."""
    path = user_path(run)
    if not path.exists():
        raise WeightsmithError(f"{path} does not exist: give the run folder of `weightsmith edit`{near_path(path)}")
    return Journal.open(path / "edits" if (path / "edits").is_dir() else path)


def _replay(options: EditOptions) -> ReplayOptions:
    return ReplayOptions(
        kind=options.replay,
        rate=options.replay_rate,
        buffer_size=options.replay_buffer_size,
        strategy=options.replay_strategy,
        eviction=options.replay_eviction,
        weight=options.replay_weight,
        seed=options.seed,
    )


def _trust_options(options: EditOptions) -> TrustOptions:
    return TrustOptions(
        threshold=options.trust_threshold,
        action=options.trust_action,
        heldout_samples=options.trust_heldout_samples,
        weights=options.trust_weights,
        seed=options.seed,
    )
