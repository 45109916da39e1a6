"""An append-only journal of edits: what was asked, how it was solved, and what was taken back.

`journal.jsonl` has one line an edit, and one for what was taken back; each carries its own checksum. What a line cannot
hold, the change of weights and the keys, lies in `batch-*.safetensors` beside it, which is whole before its lines are
written. The lines of one operation are written together and say how many they are, so that an operation is there
entirely or not at all: lines that a crash cut off are dropped when the journal is opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsmith.delta import Delta
from weightsmith.errors import WeightsmithError, closest
from weightsmith.files import atomic_path, explained, read_tensors, understood, write_tensors
from weightsmith.request import ImageRequest, Probe, Request, TextRequest
from weightsmith.stream.guards import GuardedKeys

_FORMAT = "weightsmith-journal-1"
_BATCH_FORMAT = "weightsmith-batch-1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Edit:
    """One edit of a journal.

    Attributes:
        number: counts from 1 and is never given again.
        request: what was asked.
        success, margin: whether the model gave the wanted answer when its batch was done, and by how much it led.
        replaces: number of an earlier edit of the same question, which this one overrules; None without one.
    """

    number: int
    request: Request
    success: bool
    margin: float
    replaces: int | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Edits that were solved together.

    Attributes:
        number: counts from 1 in the order in which batches were asked for.
        edits: of this batch, replayed ones not among them.
        delta: what it added to the weights that the batch before left.
        keys: "layer" → the keys of the edits on the model that the batch left; empty where none are guarded.
        info: score of trust, factor, statistics' hash, hash of the weights that it left, cost; JSON values only.
    """

    number: int
    edits: tuple[Edit, ...]
    delta: Delta
    keys: Mapping[str, GuardedKeys] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The journal in a folder.

    Attributes:
        folder: where it lies.
        settings: what every batch was solved with: editor, hyper-parameters, hash of the weights before the first edit.
        batches: what is in force, in order.
        dismissed: names of requests that are not to be asked again: their batches were not trusted, or they were removed.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], batches: list[Batch], edits: int, operations: int
    ) -> None:
        self.folder, self.settings, self.batches = folder, settings, batches
        self.dismissed: list[str] = []
        self._edits, self._operations = edits, operations
        self._size = 0

    @classmethod
    def create(cls, folder: Path | str, settings: Mapping[str, Any]) -> Journal:
        """A new journal in an empty folder, or one that is not there yet.

        Raises:
            WeightsmithError: the folder has a journal, or cannot be written.
        """
        folder = Path(folder)
        path = folder / "journal.jsonl"
        if path.exists():
            raise WeightsmithError(f"{folder} has a journal already: open it, or give another folder")
        header = {"format": _FORMAT, "settings": dict(settings)}
        with atomic_path(path) as temporary:
            temporary.write_text(_line(header), encoding="utf-8")
        journal = cls(folder, dict(settings), [], 0, 0)
        journal._size = path.stat().st_size
        return journal

    @classmethod
    def open(cls, folder: Path | str, *, mend: bool = True) -> Journal:
        """The journal of a folder, as the last whole operation left it.

        Args:
            mend: cut off what a kill left half-written; without it nothing is written.

        Raises:
            WeightsmithError: no journal, a line that is damaged though others follow, or a batch that is missing or is
                not the one that was journalled.
        """
        folder = Path(folder)
        path = folder / "journal.jsonl"
        if not path.is_file():
            raise WeightsmithError(f"{folder} holds no journal of edits: give the folder of a model edited with one")
        lines, end = _read(path)
        if not lines or lines[0].get("format") != _FORMAT:
            raise WeightsmithError(f"{path} is no {_FORMAT} file: check the path")
        with understood(path, "restore it from a copy"):
            journal = cls(folder, lines[0]["settings"], [], 0, 0)
            operations, whole = _operations(lines[1:])
            for operation in operations:
                journal._take(operation)
        if whole < len(lines) - 1 or end < path.stat().st_size:
            _log.warning("%s: an operation was cut off and is dropped; what came before it holds", path)
            if mend:
                journal._cut(path, 1 + whole)
        journal._size = path.stat().st_size
        return journal

    def moved_on(self) -> bool:
        """Whether another process has written into the journal since it was opened; it only ever grows."""
        path = self.folder / "journal.jsonl"
        return not path.is_file() or path.stat().st_size != self._size

    @property
    def blank(self) -> bool:
        """Whether nothing has ever been written into it."""
        return self._operations == 0

    def next_edit(self) -> int:
        """The number of the next edit."""
        return self._edits + 1

    def append(self, batches: Sequence[Batch], kind: str = "edit", note: Mapping[str, Any] | None = None) -> None:
        """Write batches; one that has the number of another takes its place. All of them are there, or none.

        Args:
            kind: "edit", or "remove" when batches are solved again without an edit.
            note: what else is to be said of the operation.
        """
        lines = []
        for batch in batches:
            name = f"batch-{batch.number:06d}-{self._operations + 1:06d}.safetensors"
            digest = _write_batch(self.folder / name, batch)
            shared = {"batch": batch.number, "file": name, "sha256": digest, "info": batch.info}
            lines += [{"kind": kind, **shared, **_edit_json(edit)} for edit in batch.edits]
            if not batch.edits:
                lines.append({"kind": kind, **shared, "edit": None})
        self._write(lines or [{"kind": kind, "batch": None}], note)
        self.dismissed += (note or {}).get("dismissed", [])
        for batch in batches:
            self._put(batch)

    def undo(self, batches: Sequence[int], note: Mapping[str, Any] | None = None) -> None:
        """Take batches back, by their numbers; their records stay. Raises `WeightsmithError` for one not in force."""
        there = {batch.number for batch in self.batches}
        for number in batches:
            if number not in there:
                raise WeightsmithError(f"batch {number} is not in force: {_in_force(there)}")
        self._write([{"kind": "undo", "batch": number} for number in batches], note)
        self.batches = [batch for batch in self.batches if batch.number not in set(batches)]

    def reject(self, requests: Sequence[Request], note: Mapping[str, Any]) -> None:
        """Write that a batch was not trusted: nothing of it stays but this record."""
        names = [request.name for request in requests]
        self._write([{"kind": "rejected", "batch": None, "requests": names}], note)
        self.dismissed += names

    def edits(self) -> list[tuple[Batch, Edit]]:
        """Every edit in force with its batch, in order."""
        return [(batch, edit) for batch in self.batches for edit in batch.edits]

    def find(self, which: str) -> tuple[Batch, Edit]:
        """The edit of a number, or of a request's name. Raises `WeightsmithError` where none, or several, are meant."""
        found = [(b, e) for b, e in self.edits() if which in (str(e.number), e.request.name)]
        if len(found) == 1:
            return found[0]
        if not found:
            numbers = [edit.number for _, edit in self.edits()]
            held = f"edits {numbers[0]} to {numbers[-1]} are" if numbers else "none is"
            near = closest(which, [edit.request.name for _, edit in self.edits()])
            held += f", did you mean {near!r}" if near else ""
            raise WeightsmithError(f"edit {which} is not in force: {held}; `weightsmith edits list` names them")
        raise WeightsmithError(f"{which} names several edits: give one of the numbers {[e.number for _, e in found]}")

    def _take(self, operation: Sequence[Mapping[str, Any]]) -> None:
        """What an operation that was read did."""
        self._operations = max(self._operations, operation[0]["operation"])
        self.dismissed += operation[0].get("note", {}).get("dismissed", [])
        groups: dict[int, list[Mapping[str, Any]]] = {}
        for line in operation:
            if line["kind"] == "undo":
                self.batches = [batch for batch in self.batches if batch.number != line["batch"]]
            elif line["kind"] == "rejected":
                self.dismissed += line["requests"]
            elif line["batch"] is not None:
                groups.setdefault(line["batch"], []).append(line)
        for number, lines in groups.items():
            batch = _read_batch(self.folder, number, lines)
            self._put(batch)

    def _put(self, batch: Batch) -> None:
        self._edits = max([self._edits, *(edit.number for edit in batch.edits)])
        others = [other for other in self.batches if other.number != batch.number]
        self.batches = sorted([*others, *([batch] if batch.edits else [])], key=lambda b: b.number)

    def _write(self, lines: Sequence[Mapping[str, Any]], note: Mapping[str, Any] | None) -> None:
        number = self._operations + 1
        shared = {"operation": number, "of": len(lines)} | ({"note": dict(note)} if note else {})
        text = "".join(_line({**shared, **line}) for line in lines)
        path = self.folder / "journal.jsonl"
        size = path.stat().st_size
        with explained(path):
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                os.truncate(path, size)  # a full disk must not leave half a line before the next one
                raise
        self._operations, self._size = number, path.stat().st_size

    def _cut(self, path: Path, lines: int) -> None:
        """Keep the first lines only."""
        kept = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[:lines]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _line(record: Mapping[str, Any]) -> str:
    body = json.dumps(record, ensure_ascii=False, sort_keys=True)
    return (
        json.dumps({"sum": hashlib.sha256(body.encode()).hexdigest()[:16], "record": record}, ensure_ascii=False) + "\n"
    )


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a journal, and where the last of them ends; only what is at the end may be torn."""
    content = path.read_bytes()
    found: list[dict[str, Any]] = []
    position = 0
    for number, raw in enumerate(content.splitlines(keepends=True), 1):
        record = _checked(raw)
        if record is None:
            if position + len(raw) < len(content):
                raise WeightsmithError(
                    f"line {number} of {path} is damaged and others follow it: restore the file from a copy, or cut it "
                    f"off before that line to go on without the edits from there"
                )
            break
        position += len(raw)
        found.append(record)
    return found, position


def _checked(raw: bytes) -> dict[str, Any] | None:
    """A line's record, None where its checksum does not fit."""
    try:
        outer = json.loads(raw.decode("utf-8")) if raw.endswith(b"\n") else None
        record: dict[str, Any] = outer["record"] if isinstance(outer, dict) else {}
        return (
            record if isinstance(record, dict) and outer is not None and _line(record) == raw.decode("utf-8") else None
        )
    except (UnicodeDecodeError, ValueError, KeyError):
        return None


def _operations(lines: Sequence[dict[str, Any]]) -> tuple[list[list[dict[str, Any]]], int]:
    """Whole operations, and how many lines they have; the last may lack some of its lines."""
    found: list[list[dict[str, Any]]] = []
    first = 0
    while first < len(lines) and first + lines[first]["of"] <= len(lines):
        if lines[first]["of"] < 1:
            raise ValueError("an operation has no lines")
        found.append(list(lines[first : first + lines[first]["of"]]))
        first += lines[first]["of"]
    return found, first


def _edit_json(edit: Edit) -> dict[str, Any]:
    told = asdict(edit.request) if isinstance(edit.request, TextRequest) else _image_json(edit.request)
    return {
        "edit": edit.number,
        "request": told,
        "success": edit.success,
        "margin": edit.margin,
        "replaces": edit.replaces,
    }


def _image_json(request: ImageRequest) -> dict[str, Any]:
    named = ("name", "target", "predicted", "source")
    return {name: getattr(request, name) for name in named}


def _write_batch(path: Path, batch: Batch) -> str:
    """The batch's file, and the SHA-256 of its bytes."""
    tensors = {f"delta:{name}": tensor for name, tensor in batch.delta.tensors().items()}
    for layer, guarded in batch.keys.items():
        tensors[f"keys:{layer}"] = guarded.keys.contiguous()
        tensors[f"slack:{layer}"] = guarded.slack.contiguous()
        tensors[f"owners:{layer}"] = torch.tensor(guarded.owners)
    for position, edit in enumerate(batch.edits):
        if isinstance(edit.request, ImageRequest):
            tensors[f"image:{position}"] = edit.request.image.contiguous()
    header = {"format": _BATCH_FORMAT, "base": batch.delta.base, "info": batch.delta.info}
    tensors = tensors or {"empty": torch.zeros(1)}
    write_tensors(path, tensors, header)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_batch(folder: Path, number: int, lines: Sequence[Mapping[str, Any]]) -> Batch:
    path = folder / lines[0]["file"]
    if Path(lines[0]["file"]).name != lines[0]["file"]:
        raise WeightsmithError(
            f"the journal of {folder} names a file outside it: it is damaged, restore it from a copy"
        )
    header, tensors = read_tensors(path, _BATCH_FORMAT)
    if hashlib.sha256(path.read_bytes()).hexdigest() != lines[0]["sha256"]:
        raise WeightsmithError(f"{path} is not the file that was journalled: restore it from a copy")
    with understood(path, "restore it from a copy"):
        return _batch_of(number, lines, header, tensors)


def _batch_of(
    number: int, lines: Sequence[Mapping[str, Any]], header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Batch:
    kinds = ("delta", "keys", "slack", "owners", "image", "empty")
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(":")
        parts[kind][rest] = tensor
    edits = tuple(
        Edit(
            line["edit"],
            _request(line["request"], parts["image"], at),
            line["success"],
            line["margin"],
            line["replaces"],
        )
        for at, line in enumerate(lines)
        if line["edit"] is not None
    )
    delta = Delta.of_tensors(parts["delta"], header["base"], header["info"])
    keys = {
        layer: GuardedKeys(tensor, parts["slack"][layer], tuple(parts["owners"][layer].tolist()))
        for layer, tensor in parts["keys"].items()
    }
    return Batch(number, edits, delta, keys, lines[0]["info"])


def _request(told: Mapping[str, Any], images: Mapping[str, Tensor], position: int) -> Request:
    if "prompt" not in told:
        return ImageRequest(image=images[str(position)], **told)
    probes = tuple(Probe(**probe) for probe in told["neighbours"])
    known = TextRequest(**{**told, "paraphrases": tuple(told["paraphrases"]), "neighbours": ()})
    return replace(known, neighbours=probes)


def _in_force(numbers: set[int]) -> str:
    return f"batches {min(numbers)} to {max(numbers)} are, some perhaps taken back" if numbers else "none is"
