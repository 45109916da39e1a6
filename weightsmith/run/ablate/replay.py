"""`weightsmith ablate replay`: a stream of edits with several ways to replay earlier ones, and what it forgets."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil
from typing import Any

from weightsmith.edit import ClosedForm
from weightsmith.edit.reading import Contexts, corrections_of
from weightsmith.measure.intervals import proportion
from weightsmith.report.ablation import forgetting_curves, replay_figure
from weightsmith.request import Request
from weightsmith.run.ablate.ablation import Ablated, Ablation, Rows, terminal_table
from weightsmith.run.ablate.trials import Setting, Trial, titled
from weightsmith.run.cells import columns, failures
from weightsmith.run.options.ablate import AblateReplayOptions
from weightsmith.stream import ReplayOptions, Stream

_log = logging.getLogger(__name__)

ROWS, CURVE = "replay_ablation.csv", "forgetting_curve.csv"

_MEASURES = ("retention_first", "retention_all")
_NUMBERS = ("update_norm", "cpu_seconds")
_EVERY = 15.0
"""Seconds between two lines of progress within a trial."""


@dataclass(eq=False)
class ReplayAblation(Ablation):
    """A stream a setting, each from the unedited model; after every batch, all edits so far are asked."""

    options: AblateReplayOptions
    _warm: set[int] = field(default_factory=set)

    def beside(self) -> dict[str, Any]:
        return {"batch_size": self.options.batch_size}

    def settings(self) -> list[Setting]:
        """The references and the grid, without the settings that are another one by construction."""
        mine = {told(setting) for setting, other in self.grid() if other is None}
        return [
            {**setting, "seed": seed}
            for seed in self.options.seeds
            for setting, _ in self.grid()
            if told(setting) in mine
        ]

    def grid(self) -> list[tuple[Setting, Setting | None]]:
        """Each setting of the grid, and the earlier one that replays the very same requests in every batch, if any."""
        blank: Setting = {"kind": "none", "rate": "", "buffer_size": "", "strategy": ""}
        found: list[tuple[Setting, Setting | None]] = [(blank, None)]
        if isinstance(self.bench.editor(self.method), ClosedForm):
            found.append(({**blank, "kind": "keys"}, None))
        seen: dict[tuple[Any, ...], Setting] = {}
        options = self.options
        for buffer, rate, strategy in product(sorted(options.buffers), sorted(options.rates), options.strategies):
            setting: Setting = {"kind": "requests", "rate": rate, "buffer_size": buffer, "strategy": strategy}
            sizes = [len(chunk) for chunk in self._chunks(options.seeds[0])]
            other = seen.setdefault(replayed_by(rate, buffer, strategy, sizes), setting)
            found.append((setting, other if other is not setting else None))
        return found

    def measure(self, setting: Setting) -> Trial:
        seed = int(setting["seed"])
        self._warm_up(seed)
        held: list[list[tuple[int, int]]] = []
        chunks = self._chunks(seed)
        shown = time.monotonic()
        with self._stream(setting) as stream:
            for done, chunk in enumerate(chunks, 1):
                stream.add(chunk)
                held.append(self._held(stream, chunks[:done]))
                if time.monotonic() - shown > _EVERY and done < len(chunks):
                    _log.info("%s: batch %d of %d", titled(setting), done, len(chunks))
                    shown = time.monotonic()
            delta = stream.delta()
            seconds = sum(float(batch.info["cpu_seconds"]) for batch in stream.batches)
        first, every = held[-1][0], [sum(numbers) for numbers in zip(*held[-1], strict=True)]
        retention = {"retention_first": proportion(first[1], first[0]), "retention_all": proportion(every[1], every[0])}
        return Trial(
            setting,
            measures=self.bench.measure(seed, self.options.max_edits, delta) | retention,
            numbers={"update_norm": delta.norm(), "cpu_seconds": seconds},
            held=held,
        )

    def ablated(self, trials: Sequence[Trial]) -> Ablated:
        names = (*self.bench.names, *_MEASURES)
        measured = {(told(trial.setting), trial.setting["seed"]): trial for trial in trials}
        rows: Rows = []
        for seed, (setting, other) in product(self.options.seeds, self.grid()):
            row = measured[told(other or setting), seed].row(names, _NUMBERS)
            same = "" if other is None else told(other)
            mine = {**setting, "seed": seed, "edits": self.options.max_edits, "same_as": same}
            rows.append(
                {**mine, **{name: value for name, value in row.items() if name not in setting and name != "seed"}}
            )
        curve = [row for trial in trials for row in curve_rows(trial)]
        words = {"kind": "replay", "rate": "rate", "buffer_size": "buffer", "strategy": "strategy", "seed": "seed"}
        shares = {"retention_all": "hold", "retention_first": "of the first", "neighbourhood": "neighbourhood"}
        tables, figures = {ROWS: rows}, {"replay_ablation": replay_figure(rows)}
        if curve:  # else every stream failed
            tables[CURVE], figures["forgetting_curve"] = curve, forgetting_curves(curve)
        return Ablated(
            tables,
            figures,
            self._told(),
            terminal_table("Streams of edits with replay, %", rows, words, shares),
        )

    def _told(self) -> list[str]:
        """What is the same by construction, so that nobody takes it for a finding."""
        same = [f"{told(setting)} is {told(other)}" for setting, other in self.grid() if other is not None]
        if not same:
            return []
        many = f"{len(same)} settings replay" if len(same) > 1 else "One setting replays"
        return [
            f"{many} in every batch the same requests as another, whatever the edits, and {'are' if len(same) > 1 else 'is'} "
            f"measured once (`same_as` in {ROWS}): {'; '.join(same)}."
        ]

    def _chunks(self, seed: int) -> list[Sequence[Request]]:
        requests, size = self.requests(seed), self.options.batch_size
        return [requests[first : first + size] for first in range(0, len(requests), size)]

    def _stream(self, setting: Setting) -> Stream:
        options = ReplayOptions(kind=setting["kind"], seed=int(setting["seed"]))  # type: ignore[arg-type]
        if setting["kind"] == "requests":
            options = ReplayOptions(
                kind="requests",
                rate=float(setting["rate"]),
                buffer_size=int(setting["buffer_size"]),
                strategy=setting["strategy"],  # type: ignore[arg-type]
                seed=int(setting["seed"]),
            )
        seed, editor = int(setting["seed"]), self.bench.editor(self.method)
        return Stream(self.bench.model, editor, self.keeping(seed), replay=options, cache_dir=self.cache_dir)

    def _warm_up(self, seed: int) -> None:
        """Statistics and prefixes are measured once and kept; they shall not count among the seconds of a trial."""
        if seed in self._warm:
            return
        self._warm.add(seed)
        with failures([]), self._stream({"kind": "none", "seed": seed}) as stream:
            stream.add(self.requests(seed)[:1])

    def _held(self, stream: Stream, chunks: Sequence[Sequence[Request]]) -> list[tuple[int, int]]:
        """Of each batch so far: the edits that are in force, and how many of them give the wanted answer now."""
        there = {id(edit.request) for edit in stream.edits()}
        asked = [[request for request in chunk if id(request) in there] for chunk in chunks]
        flat = [request for chunk in asked for request in chunk]
        if not flat:
            return [(0, 0) for _ in chunks]
        answers = iter(corrections_of(self.bench.model, flat, Contexts(lookup="last")).answers(self.bench.model))
        return [(len(chunk), sum(bool(next(answers)["success"]) for _ in chunk)) for chunk in asked]


def replayed_by(rate: float, buffer: int, strategy: str, sizes: Sequence[int]) -> tuple[Any, ...]:
    """What decides which requests a stream replays: settings of which it is the same replay the very same.

    A buffer that is never full is as good as any larger one. Where in every batch as many are to be replayed as are
    remembered, or more, all of them are, whatever the strategy and the rate.

    Args:
        sizes: edits of each batch.
    """
    earlier = [sum(sizes[:place]) for place in range(1, len(sizes))]
    size = min(buffer, earlier[-1])
    if all(ceil(rate * new) >= min(size, there) for new, there in zip(sizes[1:], earlier, strict=True)):
        return size, "all"
    return size, rate, strategy


def curve_rows(trial: Trial) -> Rows:
    """Rows of `forgetting_curve.csv`: of the edits of each batch, those that hold after each batch from then on."""
    return [
        {
            **trial.setting,
            "batch": batch,
            "after_batch": after,
            "edits": edits,
            "held": held,
            **columns(("retention",), {"retention": proportion(held, edits)}),
        }
        for after, pairs in enumerate(trial.held, 1)
        for batch, (edits, held) in enumerate(pairs, 1)
    ]


def told(setting: Setting) -> str:
    """A setting in words, whatever its seed."""
    return titled({name: value for name, value in setting.items() if name != "seed"})
