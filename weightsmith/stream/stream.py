"""Edits that arrive one batch after another, each solved on the model that the ones before it left."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from weightsmith.delta import Delta, weights_hash
from weightsmith.edit import Editor
from weightsmith.edit.preserved import Preserved
from weightsmith.edit.reading import without_repeats
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.request import Request, question_of
from weightsmith.stream.guards import Guards
from weightsmith.stream.journal import Batch, Edit, Journal
from weightsmith.stream.replay import ReplayBuffer, ReplayOptions
from weightsmith.stream.solves import Solves, replay_for
from weightsmith.stream.trust import Trust, Verdict
from weightsmith.stream.weights import Weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Proposal:
    """A batch that was solved and judged, and not put in force.

    Attributes:
        requests: what was asked.
        batch: what would be kept; None where it may not stay, or where nothing is left to do.
        verdict: what trust says; None without trust, or where nothing is left to do.
        behind: the batches in force when it was solved: it fits no others.
    """

    requests: tuple[Request, ...]
    batch: Batch | None
    verdict: Verdict | None
    behind: tuple[Batch, ...]


class Stream:
    """A model in service, its editor and its journal.

    Statistics are those of the weights before the first edit, as the papers have them. The model's weights are those
    weights plus the changes of the batches in force, see `Weights`.

    Args:
        model: with the weights before the first edit; it wears the journal's edits from now on, until `close`.
        preserve: what every batch preserves.
        journal: where batches are written; None keeps them in memory only.
        replay: how earlier edits are replayed, see `solves.replay_for`.
        trust: decides whether a batch stays; None keeps every one.

    Raises:
        WeightsmithError: a journal of other weights, or of another editor or other hyper-parameters; keys to replay with an
            editor that has none.
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
        self.replay, self.cache_dir = replay_for(editor, replay or ReplayOptions()), cache_dir
        self.settings = settings_of(model, editor, self.replay)
        self.journal = journal
        if journal is not None:
            self._check_same(journal)
        self._weights = Weights(model)
        self._solves = Solves(model, editor, preserve, self.replay, self._weights, cache_dir)
        self._next_edit, self._next_batch = journal.next_edit() if journal is not None else 1, 1
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

    def add(self, requests: Sequence[Request], importance: Mapping[str, float] | None = None) -> Batch | None:
        """Solve a batch, judge it, and keep it: in the journal first, then in the weights.

        A request that an edit in force has asked already, and that holds, is left out; one that contradicts an edit in
        force replaces it, and the log says which.

        Args:
            importance: name of a request → how much it matters where requests are replayed by priority; 1 where it is not.

        Returns:
            The batch; None where nothing was left to do, or trust took it back.

        Raises:
            WeightsmithError: as the editor; an edited sample is among those that judge the edits; an importance that is no
                positive number.
        """
        proposal = self.propose(requests, importance)
        if proposal.batch is None:
            if proposal.verdict is not None:
                self.reject(proposal)
            return None
        return self.keep(proposal)

    def propose(self, requests: Sequence[Request], importance: Mapping[str, float] | None = None) -> Proposal:
        """Solve and judge a batch as `add` does, without keeping it: neither the weights nor the journal change.

        Raises:
            WeightsmithError: as `add`.
        """
        if any(not 0 < value < math.inf for value in (importance or {}).values()):
            raise WeightsmithError("the importance of a request must be a positive number: leave it out for 1")
        numbers = range(self._next_edit, self._next_edit + len(requests))
        solved = self._solved(self._next_batch, dict(zip(numbers, requests, strict=True)), importance)
        batch = solved if isinstance(solved, Batch) else None
        verdict = solved if isinstance(solved, Verdict) else None
        if batch is not None and batch.info["trust"] is not None:
            verdict = Verdict(**batch.info["trust"])
        return Proposal(tuple(requests), batch, verdict, tuple(self._batches))

    def keep(self, proposal: Proposal) -> Batch:
        """Put a proposal in force: in the journal first, then in the weights.

        Raises:
            WeightsmithError: it may not stay, or other batches are in force than when it was solved.
        """
        if proposal.batch is None:
            said = proposal.verdict.said if proposal.verdict is not None else "nothing is left to do"
            raise WeightsmithError(f"this edit cannot be kept: {said}")
        numbers = [edit.number for edit in proposal.batch.edits]
        used = proposal.batch.number < self._next_batch or min(numbers, default=self._next_edit) < self._next_edit
        if used or proposal.behind != tuple(self._batches):  # batches are compared by identity
            raise WeightsmithError("another edit was kept or taken back since this one was solved: solve it again")
        if self.journal is not None:
            self.journal.append([proposal.batch])
        self._take(proposal.batch)
        return proposal.batch

    def reject(self, proposal: Proposal, **why: Any) -> None:
        """Journal that a proposal does not stay; nothing else changes.

        Args:
            why: what is to be said of it beside what trust said; JSON values only.
        """
        if self.journal is not None:
            trust = asdict(proposal.verdict) if proposal.verdict is not None else None
            self.journal.reject(proposal.requests, {"trust": trust, **why})

    def follow(self) -> bool:
        """Take over what another process has written into the journal since; whether there was anything.

        Raises:
            WeightsmithError: as `Journal.open`; the stream stays as it was.
        """
        if self.journal is None or not self.journal.moved_on():
            return False
        journal = Journal.open(self.journal.folder)
        self._check_same(journal)
        self.journal, self._next_edit = journal, max(self._next_edit, journal.next_edit())
        self._reset(journal.batches)
        return True

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The weights before the first edit, while the block runs."""
        with self._weights.lifted():
            yield

    def undo(self, count: int = 1) -> list[Batch]:
        """Take the last batches back; the weights are bit by bit those before them.

        Raises:
            WeightsmithError: there are fewer.
        """
        if not 1 <= count <= len(self._batches):
            raise WeightsmithError(
                f"{count} batches cannot be taken back: {len(self._batches)} are in force, ask for at most so "
                "many or for all"
            )
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
            raise WeightsmithError(
                f"edit {number} is not in force, so it cannot be removed: `weightsmith edits list` names those that are"
            )
        gone = next(edit for edit in self._batches[first].edits if edit.number == number)
        before, after = self._batches[:first], self._batches[first:]
        again: list[Batch] = []
        untrusted: list[str] = []
        try:
            self._reset(before)
            for old in after:
                wanted = {edit.number: edit.request for edit in old.edits if edit.number != number}
                solved = self._solved(old.number, wanted, old.info.get("importance"))
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
        failed = [edit.request.name for edit in batch.edits if not edit.success]
        asked = [edit.request for edit in batch.edits]
        self._buffer.add(asked, batch.number, batch.info.get("importance"), failed)
        self._batches.append(batch)
        self._next_batch = max(self._next_batch, batch.number + 1)
        self._next_edit = max([self._next_edit, *(edit.number + 1 for edit in batch.edits)])

    def _solved(
        self, number: int, asked: dict[int, Request], importance: Mapping[str, float] | None = None
    ) -> Batch | Verdict | None:
        """A batch on the weights that are there, judged; it changes nothing, neither weights nor journal.

        Args:
            asked: the number that an edit will have → its request.

        Returns:
            The batch; the verdict on it where it is not trusted; None where nothing is left to do.
        """
        if self.trust is not None:
            self.trust.check_apart(self.model, list(asked.values()))
        started = time.process_time()
        wanted, replaces = self._new_ones(asked)
        if not wanted:
            return None
        guards = self._guards.without(set(replaces.values()))
        again = self._buffer.sample(list(wanted.values()), number) if self.replay.requests else []
        held = dict(zip((r.name for r in again), self._solves.hold(again), strict=True))
        edited = [edit.request for edit in self.edits()]
        delta = self._solves.change(
            list(wanted.values()), again, guards, edited=edited, buffer=self._buffer, batch=number
        )
        verdict = self._judged(delta, list(wanted.values()))
        if not verdict.kept:
            return verdict
        solved, named = delta.info["requests"], {request.name for request in wanted.values()}
        delta = Delta(delta.changes) if verdict.factor == 1 else verdict.factor * Delta(delta.changes)
        with delta.on(self.model, check=False):
            edits = self._as_they_stand(wanted, replaces)
            keys = self._solves.keys(wanted) if self.replay.keys else {}
        info: dict[str, Any] = {
            "replayed": held,
            "importance": {name: value for name, value in (importance or {}).items() if name in named},
            "residuals": {row["sample"]: row["residual_norm"] for row in solved if row["sample"] in named},
            "statistics": self._solves.statistics_hash(),
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
                if question_of(earlier.request) == question_of(request) and self._solves.hold([request]) == [True]:
                    _log.warning("%s is edit %d already, which holds: left out", request.name, earlier.number)
                    continue
                _log.warning("%s replaces edit %d, %s", request.name, earlier.number, earlier.request.name)
                replaces[number] = earlier.number
            wanted[number] = request
        return wanted, replaces

    def _judged(self, delta: Delta, wanted: Sequence[Request]) -> Verdict:
        if self.trust is None:
            return Verdict(1.0)
        return self.trust.judge(self.model, delta, wanted, [edit.request for edit in self.edits()])

    def _as_they_stand(self, wanted: dict[int, Request], replaces: dict[int, int]) -> tuple[Edit, ...]:
        answers = self._solves.read(list(wanted.values())).answers(self.model)
        return tuple(
            Edit(number, request, bool(answer["success"]), float(answer["margin"]), replaces.get(number))
            for (number, request), answer in zip(wanted.items(), answers, strict=True)
        )

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
    replay = replay_for(editor, replay)
    told = {"base": weights_hash(model), "method": options.name, "options": asdict(options), "replay": asdict(replay)}
    settings: dict[str, Any] = json.loads(json.dumps(told))
    return settings
