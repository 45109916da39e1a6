"""What `weightsmith edit` and `compare` read of a language model: the model, its facts, and the text that it keeps."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from weightsmith.data.facts import read_facts
from weightsmith.data.factworld import FactWorld
from weightsmith.data.texts import Knowledge, TextSet
from weightsmith.delta import Delta
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import drift, perplexity
from weightsmith.evaluate.rows import report_row
from weightsmith.files import user_path
from weightsmith.measure import Interval
from weightsmith.models import Model, load
from weightsmith.request import TextRequest
from weightsmith.run.job import check_device
from weightsmith.run.knowledge.fact_run import FACTS
from weightsmith.run.knowledge.facts import world_of

_log = logging.getLogger(__name__)

_WINDOW = 128
_ASIDE, _SHARE = 32, 10
"""Windows of the text that are kept aside to measure on: at most so many, and one in so many."""
_AT_ONCE = 8
_NEIGHBOURS = 3
"""A fact of the fact world can be edited where at least so many others have its object."""


def of_name(name: str, device: str) -> tuple[Model, FactWorld | None]:
    """A model by hub name or folder, and the fact world that it was trained on, where it was."""
    return load(name, device=check_device(device, stored=True)), world_of(user_path(name))


def facts_of(
    data_path: str, world: FactWorld | None, limit: int, seed: int, *, usable: bool = False
) -> list[TextRequest]:
    """Facts to edit: up to `limit`, drawn at random, of which fewer of the same seed are the first.

    Args:
        usable: leave out, and log, what cannot be edited, and what has the prompt of an earlier one; else that is an
            error where it is among those that are drawn.

    Raises:
        WeightsmithError: no such file, facts that cannot be edited, or the fact world for a model of something else.
    """
    if data_path == FACTS:
        if world is None:
            raise WeightsmithError(
                "--data-path facts is of the fact world, which this model was not trained on: give a JSON file of facts, or "
                "--model auto"
            )
        alike = Counter((fact.relation, fact.object) for fact in world.facts)
        there = sum(count for count in alike.values() if count > _NEIGHBOURS)
        return world.requests(min(limit, there), seed)
    if not usable:
        return read_facts(data_path, limit, seed)
    first: dict[str, TextRequest] = {}
    for request in read_facts(data_path, seed=seed, skip_unusable=True):
        if len(first) == limit:
            break
        earlier = first.setdefault(request.prompt.strip(), request)
        if earlier is not request:
            _log.warning("%s: %s has the prompt of %s and is left out", data_path, request.name, earlier.name)
    return list(first.values())


@dataclass(frozen=True, eq=False)
class Kept:
    """The text that a model should go on with as before.

    Attributes:
        preserve: for the statistics of editors; of the fact world also the prompts that its text was made from.
        aside: never given to an editor, to measure what an edit does to ordinary text; None where there is too little.
        told: where it comes from.
    """

    preserve: TextSet | Knowledge
    aside: TextSet | None
    told: str

    @classmethod
    def of(cls, model: Model, files: Sequence[str], world: FactWorld | None) -> Kept:
        """The text of files, or of the fact world, in windows; some of them, always the same, are kept aside.

        Raises:
            WeightsmithError: neither files nor a fact world; a file that is missing, empty or not UTF-8.
        """
        length = min(_WINDOW, model.n_tokens)
        if files:
            text = TextSet.read(list(files), model.tokenize, length)
            told = ", ".join(Path(file).name for file in files)
        elif world is not None:
            text = TextSet.of(world.texts(), model.tokenize, length)
            told = "the fact world's own text"
        else:
            raise WeightsmithError(
                "nothing says what the model must go on doing: give --preserve with one or more UTF-8 text files of the kind "
                "that it was trained on; some hundred kilobytes are enough for a small model"
            )
        whole = len(text.ids) // text.length
        count = min(_ASIDE, whole // _SHARE)
        order = np.random.RandomState(0).permutation(whole)
        kept = np.setdiff1d(np.arange(len(text)), order[:count])
        aside = text.subset(np.sort(order[:count])) if count else None
        if files or world is None:
            return cls(text.subset(kept), aside, told)
        prompts = tuple(dict.fromkeys(probe.prompt for _, probe in world.probes(kept_aside=False)))
        return cls(Knowledge(text.subset(kept), prompts), aside, told)

    def without(self, requests: Sequence[TextRequest]) -> TextSet | Knowledge:
        """What editors preserve when these are edited: none of the prompts by which the edit will be judged."""
        if not isinstance(self.preserve, Knowledge):
            return self.preserve
        judged = {probe.prompt for request in requests for probe in request.neighbours}
        return replace(self.preserve, prompts=tuple(p for p in self.preserve.prompts if p not in judged))

    def perplexity(self, model: Model) -> float:
        """Of the model as it is, on the windows kept aside; NaN without any."""
        return perplexity(model, self.aside.batches(_AT_ONCE)) if self.aside is not None else float("nan")

    def drift(self, model: Model, delta: Delta) -> float:
        """Mean KL(before ‖ after) in nats a token, on the windows kept aside; NaN without any."""
        return drift(model, self.aside.batches(_AT_ONCE), delta) if self.aside is not None else float("nan")

    def rows(self, model: Model, delta: Delta) -> list[dict[str, object]]:
        """Rows of a report: the perplexity before and after, and the drift."""
        if self.aside is None:
            return []
        before = self.perplexity(model)
        with delta.on(model):
            after = self.perplexity(model)
        rows = [
            report_row("perplexity", "", self._bare(before), self._bare(after)),
            report_row("drift", "", None, self._bare(self.drift(model, delta))),
        ]
        return [{name: "" if value != value else value for name, value in row.items()} for row in rows]

    def _bare(self, value: float) -> Interval:
        """A value of all tokens together, without an interval; n counts the windows."""
        return Interval(value, float("nan"), float("nan"), len(self.aside) if self.aside is not None else 0)
