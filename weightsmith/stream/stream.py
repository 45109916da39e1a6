"""Edits that arrive one batch after another, each solved on the model that the ones before it left."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from weightsmith.delta import Delta, weights_hash
from weightsmith.edit import Editor
from weightsmith.edit.closed_form import ClosedForm
from weightsmith.edit.corrections import Corrections, Goal
from weightsmith.edit.preserved import Preserved
from weightsmith.edit.reading import Contexts, corrections_of, without_repeats
from weightsmith.edit.spread import Place, mean_pull
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.request import Request, question_of
from weightsmith.stream.guards import GuardedKeys, Guards
from weightsmith.stream.journal import Batch, Edit, Journal
from weightsmith.stream.replay import ReplayBuffer, ReplayOptions
from weightsmith.stream.trust import Trust, Verdict
from weightsmith.stream.weights import Weights

_log = logging.getLogger(__name__)

_EXACT = 1e-3
"""Ridge of a guarded key whose editor has none, relative to the keys' mean pull: if each were guarded exactly, the
thousandth would find no room."""


class Stream:
    """A model in service, its editor and its journal.

    Statistics are those of the weights before the first edit, as the papers have them. The model's weights are those
    weights plus the changes of the batches in force, see `Weights`.

    Args:
        model: with the weights before the first edit; it wears the journal's edits from now on, until `close`.
        preserve: what every batch preserves.
        journal: where batches are written; None keeps them in memory only.
        replay: how earlier edits are replayed; keys only where the editor has some.
        trust: decides whether a batch stays; None keeps every one.

    Raises:
        WeightsmithError: a journal of other weights, or of another editor or other hyper-parameters.
    """

    def __init__(
        self,
        model: Model,
        editor: Editor,
        preserve: Preserved,
        *,
        journal: Journal | None = None,
        replay: ReplayOptions | None = None,
        trust: Trust | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self.model, self.editor, self.preserve, self.trust = model, editor, preserve, trust
        self.replay, self.cache_dir = replay or ReplayOptions(), cache_dir
        self.settings = settings_of(model, editor, self.replay)
        self.journal = journal
        if journal is not None:
            self._check_same(journal)
        self._weights = Weights(model)
        self._places: list[Place] | None = None
        self._next_edit, self._next_batch = 1, 1
        self._reset(journal.batches if journal is not None else [])

    @property
    def batches(self) -> list[Batch]:
        """The batches in force, in order."""
        return list(self._batches)

    def edits(self) -> list[Edit]:
        """The edits in force, in order; one that a later edit of the same question overrules is not among them."""
        there = [edit for batch in self._batches for edit in batch.edits]
        overruled = {edit.replaces for edit in there}
        return [edit for edit in there if edit.number not in overruled]

    def add(self, requests: Sequence[Request]) -> Batch | None:
        """Solve a batch, judge it, and keep it: in the journal first, then in the weights.

        A request that an edit in force has asked already, and that holds, is left out; one that contradicts an edit in
        force replaces it, and the log says which.

        Returns:
            The batch; None where nothing was left to do, or trust took it back.

        Raises:
            WeightsmithError: as the editor; or an edited sample is among those that judge the edits.
        """
        numbers = range(self._next_edit, self._next_edit + len(requests))
        solved = self._solved(self._next_batch, dict(zip(numbers, requests, strict=True)))
        if isinstance(solved, Verdict) and self.journal is not None:
            self.journal.reject(requests, {"trust": asdict(solved)})
        if not isinstance(solved, Batch):
            return None
        if self.journal is not None:
            self.journal.append([solved])
        self._take(solved)
        return solved

    def undo(self, count: int = 1) -> list[Batch]:
        """Take the last batches back; the weights are bit by bit those before them.

        Raises:
            WeightsmithError: there are fewer.
        """
        if not 1 <= count <= len(self._batches):
            raise WeightsmithError(f"{count} batches cannot be taken back: {len(self._batches)} are in force")
        gone = self._batches[-count:]
        if self.journal is not None:
            self.journal.undo([batch.number for batch in reversed(gone)])
        self._reset(self._batches[:-count])
        return gone

    def remove(self, number: int) -> Edit:
        """Make it as if one edit had never been made: its batch without it, and every later batch, are solved again.

        Raises:
            WeightsmithError: no such edit in force.
        """
        first = next((i for i, b in enumerate(self._batches) if any(e.number == number for e in b.edits)), None)
        if first is None:
            raise WeightsmithError(f"edit {number} is not in force, so it cannot be removed")
        gone = next(edit for edit in self._batches[first].edits if edit.number == number)
        before, after = self._batches[:first], self._batches[first:]
        again: list[Batch] = []
        untrusted: list[str] = []
        try:
            self._reset(before)
            for old in after:
                wanted = {edit.number: edit.request for edit in old.edits if edit.number != number}
                solved = self._solved(old.number, wanted)
                if isinstance(solved, Batch):
                    again.append(solved)
                    self._take(solved)
                    continue
                again.append(Batch(old.number, (), Delta({}), info=old.info))
                untrusted += [request.name for request in wanted.values()] if isinstance(solved, Verdict) else []
            if self.journal is not None:
                self.journal.append(again, "remove", {"removed": number, "dismissed": [gone.request.name, *untrusted]})
        except BaseException:
            self._reset([*before, *after])
            raise
        return gone

    def delta(self) -> Delta:
        """What all batches in force add to the weights before the first edit."""
        changes = Delta({}, self.settings["base"])
        for batch in self._batches:
            changes = changes.then(batch.delta)
        return Delta(changes.compressed().changes, self.settings["base"])

    def close(self) -> None:
        """Give the model back the weights before the first edit, bit by bit; the journal stays as it is."""
        self._reset([])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reset(self, batches: Sequence[Batch]) -> None:
        """The state that these batches leave."""
        self._weights.set([])
        self._batches: list[Batch] = []
        self._guards = Guards()
        self._buffer = ReplayBuffer(self.replay)
        for batch in batches:
            self._take(batch)

    def _take(self, batch: Batch) -> None:
        """Put a batch in force."""
        self._weights.add(batch.delta)
        for edit in batch.edits:
            if edit.replaces is not None:
                self._guards = self._guards.without({edit.replaces})
        self._guards = self._guards.joined(batch.keys)
        self._buffer.replayed(batch.info.get("replayed", {}), batch.number)
        self._buffer.add([edit.request for edit in batch.edits], batch.number)
        self._batches.append(batch)
        self._next_batch = max(self._next_batch, batch.number + 1)
        self._next_edit = max([self._next_edit, *(edit.number + 1 for edit in batch.edits)])

    def _solved(self, number: int, asked: dict[int, Request]) -> Batch | Verdict | None:
        """A batch on the weights that are there, judged; it changes nothing, neither weights nor journal.

        Args:
            asked: the number that an edit will have → its request.

        Returns:
            The batch; the verdict on it where it is not trusted; None where nothing is left to do.
        """
        if self.trust is not None:
            self.trust.check_apart(list(asked.values()))
        started = time.process_time()
        wanted, replaces = self._new_ones(asked)
        if not wanted:
            return None
        guards = self._guards.without(set(replaces.values()))
        again = self._buffer.sample(list(wanted.values()), number) if self.replay.requests else []
        held = dict(zip((r.name for r in again), self._hold(again), strict=True))
        delta = self._change([*wanted.values(), *again], {request.name for request in again}, guards)
        verdict = self._judged(delta, list(wanted.values()))
        if not verdict.kept:
            return verdict
        delta = delta if verdict.factor == 1 else verdict.factor * delta
        with delta.on(self.model, check=False):
            edits = self._as_they_stand(wanted, replaces)
            keys = self._keys(wanted) if self.replay.keys else {}
        info: dict[str, Any] = {
            "replayed": held,
            "update_norm": delta.norm(),
            "trust": asdict(verdict) if self.trust is not None else None,
            "cpu_seconds": round(time.process_time() - started, 3),
        }
        return Batch(number, edits, delta, keys, info)

    def _new_ones(self, asked: dict[int, Request]) -> tuple[dict[int, Request], dict[int, int]]:
        """Requests that are not in force yet by their numbers, and which edit they overrule where they do."""
        kept, _ = without_repeats(list(asked.values()))
        alive = {id(request) for request in kept}
        there = {question_of(edit.request)[0]: edit for edit in self.edits()}
        wanted: dict[int, Request] = {}
        replaces: dict[int, int] = {}
        for number, request in asked.items():
            earlier = there.get(question_of(request)[0])
            if id(request) not in alive:
                continue
            if earlier is not None:
                if question_of(earlier.request) == question_of(request) and self._hold([request]) == [True]:
                    _log.warning("%s is edit %d already, which holds: left out", request.name, earlier.number)
                    continue
                _log.warning("%s replaces edit %d, %s", request.name, earlier.number, earlier.request.name)
                replaces[number] = earlier.number
            wanted[number] = request
        return wanted, replaces

    def _change(self, requests: Sequence[Request], replayed: set[str], guards: Guards) -> Delta:
        """What the editor would add to the weights that are there."""
        editor = self.editor
        if not isinstance(editor, ClosedForm):
            return Delta(editor.solve(self.model, requests, self.preserve, self.cache_dir).changes)
        weights = dict.fromkeys(replayed, self.replay.weight)
        delta = editor.solve_at(self.model, self._read(requests), guards.over(self._metrics(editor)), weights)
        return Delta(delta.changes)

    def _metrics(self, editor: ClosedForm) -> list[Place]:
        """Places with their metrics, measured once on the weights before the first edit."""
        if self._places is None:
            with self._weights.lifted():
                self._places = editor.places(self.model, self.preserve, (), self.cache_dir)
        return self._places

    def _judged(self, delta: Delta, wanted: Sequence[Request]) -> Verdict:
        if self.trust is None:
            return Verdict(1.0)
        return self.trust.judge(self.model, delta, wanted, [edit.request for edit in self.edits()])

    def _as_they_stand(self, wanted: dict[int, Request], replaces: dict[int, int]) -> tuple[Edit, ...]:
        answers = self._read(list(wanted.values())).answers(self.model)
        return tuple(
            Edit(number, request, bool(answer["success"]), float(answer["margin"]), replaces.get(number))
            for (number, request), answer in zip(wanted.items(), answers, strict=True)
        )

    def _keys(self, wanted: dict[int, Request]) -> dict[str, GuardedKeys]:
        """By layer, the keys that later batches guard, as the model that wears this batch has them."""
        editor = self.editor
        if not isinstance(editor, ClosedForm):
            return {}
        corrections = self._read(list(wanted.values()))
        number_of = {request.name: number for number, request in wanted.items()}
        found: dict[str, GuardedKeys] = {}
        for place in self._metrics(editor):
            measured = corrections.measure(self.model, place.kind, place.layer, Goal(place.kind, place.layer))
            keys = measured.keys.double().mT.cpu()
            owners = tuple(number_of[name] for name in corrections.columns(place.layer))
            found[str(place.layer)] = GuardedKeys(keys, self._slack(editor, place, keys), owners)
        return found

    def _slack(self, editor: ClosedForm, place: Place, keys: Tensor) -> Tensor:
        rho = editor.rho()
        ridge = rho.absolute or (rho.relative or _EXACT) * mean_pull(place.metric, keys)
        return torch.full((keys.shape[1],), ridge / self.replay.weight, dtype=torch.float64)

    def _hold(self, requests: Sequence[Request]) -> list[bool]:
        """Which of them get the wanted answer now."""
        return [bool(answer["success"]) for answer in self._read(requests).answers(self.model)] if requests else []

    def _read(self, requests: Sequence[Request]) -> Corrections:
        if isinstance(self.editor, ClosedForm):
            return self.editor.read(self.model, requests, self.cache_dir)
        return corrections_of(self.model, requests, Contexts(lookup="last"), self.cache_dir)

    def _check_same(self, journal: Journal) -> None:
        if journal.settings["base"] != self.settings["base"]:
            raise WeightsmithError(
                f"the journal in {journal.folder} is of other weights than the model has: give the model as it was before "
                "the first edit"
            )
        other = [name for name in self.settings if journal.settings.get(name) != self.settings[name]]
        if other:
            raise WeightsmithError(
                f"the journal in {journal.folder} was written with other {' and '.join(other)}: go on with the same, or begin "
                "a new one"
            )


def settings_of(model: Model, editor: Editor, replay: ReplayOptions) -> dict[str, Any]:
    """What a journal is bound to: weights before the first edit, editor with its hyper-parameters, and replay."""
    options: Any = editor
    told = {"base": weights_hash(model), "method": options.name, "options": asdict(options), "replay": asdict(replay)}
    settings: dict[str, Any] = json.loads(json.dumps(told))
    return settings
