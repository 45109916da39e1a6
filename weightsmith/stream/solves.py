"""How editors solve one batch after another: what each measures once, and what it keeps of earlier edits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsmith.delta import Delta
from weightsmith.edit import FTM, Editor, Patcher
from weightsmith.edit.closed_form import ClosedForm
from weightsmith.edit.corrections import Corrections, Goal
from weightsmith.edit.ftm import Anchor
from weightsmith.edit.last_map import Asked
from weightsmith.edit.preserved import Preserved
from weightsmith.edit.reading import Contexts, corrections_of
from weightsmith.edit.spread import Place, mean_pull
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.request import Request
from weightsmith.stream.guards import GuardedKeys, Guards
from weightsmith.stream.replay import ReplayBuffer, ReplayOptions, subject_of
from weightsmith.stream.weights import Weights

_ALL = 1e6
"""A rate at which everything that is remembered is replayed."""

_EXACT = 1e-3
"""Ridge of a guarded key whose editor has none, relative to the keys' mean pull: if each were guarded exactly, the
thousandth would find no room."""


class Solves:
    """An editor on a model in service.

    Statistics, and what is held, are those of the weights before the first edit. A closed form guards keys of earlier edits
    in its metric; `FTM` replays earlier requests in each of its steps; any other editor is given some of them beside the
    new ones.
    """

    def __init__(
        self,
        model: Model,
        editor: Editor,
        preserve: Preserved,
        replay: ReplayOptions,
        weights: Weights,
        cache_dir: Path | None,
    ) -> None:
        self.model, self.editor, self.preserve = model, editor, preserve
        self.replay, self.cache_dir = replay, cache_dir
        self._weights = weights
        self._places: list[Place] | None = None
        self._anchor: Anchor | None = None
        self._rows: dict[str, Asked] = {}
        self._hashed = ""

    def change(
        self,
        wanted: Sequence[Request],
        again: Sequence[Request],
        guards: Guards,
        *,
        edited: Sequence[Request],
        buffer: ReplayBuffer,
        batch: int,
    ) -> Delta:
        """What the editor would add to the weights that are there; `info` has a row a request.

        Args:
            wanted: new requests; again: earlier ones that are replayed beside them.
            edited: all earlier ones in force.
            buffer: what an editor draws from that replays others in each step; batch: number of this one.
        """
        editor = self.editor
        if isinstance(editor, FTM):
            return self._tuned(editor, wanted, edited, buffer, batch)
        requests = [*wanted, *again]
        if not isinstance(editor, ClosedForm):
            return editor.solve(self.model, requests, self.preserve, self.cache_dir)
        weights = {request.name: self.replay.weight for request in again}
        return editor.solve_at(self.model, self.read(requests), guards.over(self._metrics(editor)), weights)

    def keys(self, wanted: dict[int, Request]) -> dict[str, GuardedKeys]:
        """By layer, the keys that later batches guard, as the model that wears this batch has them."""
        editor = self.editor
        if not isinstance(editor, ClosedForm):
            return {}
        corrections = self.read(list(wanted.values()))
        number_of = {request.name: number for number, request in wanted.items()}
        found: dict[str, GuardedKeys] = {}
        for place in self._metrics(editor):
            measured = corrections.measure(self.model, place.kind, place.layer, Goal(place.kind, place.layer))
            keys = measured.keys.double().mT.cpu()
            owners = tuple(number_of[name] for name in corrections.columns(place.layer))
            found[str(place.layer)] = GuardedKeys(keys, self._slack(editor, place, keys), owners)
        return found

    def hold(self, requests: Sequence[Request]) -> list[bool]:
        """Which of them get the wanted answer now."""
        return [bool(answer["success"]) for answer in self.read(requests).answers(self.model)] if requests else []

    def read(self, requests: Sequence[Request]) -> Corrections:
        """Requests as the editor reads them."""
        if isinstance(self.editor, ClosedForm):
            return self.editor.read(self.model, requests, self.cache_dir)
        return corrections_of(self.model, requests, Contexts(lookup="last"), self.cache_dir)

    def statistics_hash(self) -> str:
        """SHA-256 of what is preserved, and of the second moments that a closed form made of it."""
        if not self._hashed:
            digest = hashlib.sha256(self.preserve.digest().encode())
            for place in self._places or ():
                digest.update(place.moment.double().cpu().numpy().tobytes())
            self._hashed = digest.hexdigest()
        return self._hashed

    def _tuned(
        self, editor: FTM, requests: Sequence[Request], edited: Sequence[Request], buffer: ReplayBuffer, batch: int
    ) -> Delta:
        """What an editor adds that replays others in each step."""
        if self._anchor is None:
            with self._weights.lifted():
                self._anchor = editor.anchor(self.model, self.preserve)
        if len(self._rows) > self.replay.buffer_size + len(requests):
            held = {_told(request) for request in buffer.requests()}
            self._rows = {told: rows for told, rows in self._rows.items() if told in held}
        return editor.solve_at(
            self.model,
            requests,
            self._anchor,
            self._rows_of,
            edited=edited,
            replay=(lambda step: buffer.draw(requests, batch, step)) if self.replay.requests else None,
            weight=self.replay.weight,
        )

    def _rows_of(self, request: Request) -> Asked:
        """A request's rows, read once, and of the weights before the first edit: the same bits whenever they are read."""
        assert isinstance(self.editor, FTM)
        told = _told(request)
        if told not in self._rows:
            with self._weights.lifted():
                self._rows[told] = self.editor.read(self.model, request, self.cache_dir)
        return self._rows[told]

    def _metrics(self, editor: ClosedForm) -> list[Place]:
        """Places with their metrics, measured once on the weights before the first edit."""
        if self._places is None:
            with self._weights.lifted():
                self._places = editor.places(self.model, self.preserve, (), self.cache_dir)
        return self._places

    def _slack(self, editor: ClosedForm, place: Place, keys: Tensor) -> Tensor:
        rho = editor.rho()
        ridge = rho.absolute or (rho.relative or _EXACT) * mean_pull(place.metric, keys)
        return torch.full((keys.shape[1],), ridge / self.replay.weight, dtype=torch.float64)


def replay_for(editor: Editor, options: ReplayOptions) -> ReplayOptions:
    """What is replayed where nobody says: keys with an editor that has some, else requests.

    Half as many as new ones; `FTM` ten a new one in each step; the patcher, which takes neurons that nothing needs, all.

    Raises:
        WeightsmithError: keys to replay with an editor that has none.
    """
    if options.keys and not isinstance(editor, ClosedForm):
        told: Any = editor
        raise WeightsmithError(
            f"{told.name} solves for no keys that could be replayed: give --replay requests, or none"
        )
    rate = 10.0 if isinstance(editor, FTM) else _ALL if isinstance(editor, Patcher) else 0.5
    return options.or_else("keys" if isinstance(editor, ClosedForm) else "requests", rate)


def _told(request: Request) -> str:
    """What rows are kept by."""
    return f"{subject_of(request)}\n{request.target}"
