"""The exact sweep: every site restored in every case, planned so that nothing is computed that cannot matter."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsmith import ranks
from weightsmith.batches import REMEDY, Fitting, tried
from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.locate.cases import Cases, PromptCases, decided, select
from weightsmith.locate.hook_lanes import HookLanes
from weightsmith.locate.lanes import Batch, Lanes
from weightsmith.locate.metrics import FLOORS, METRICS, Decision, check_metric
from weightsmith.locate.pieces import Piece, Store, together
from weightsmith.locate.plan import Lane, Target, chunked, first_changed, first_token, groups, is_idle, targets
from weightsmith.locate.split_lanes import SplitLanes
from weightsmith.models import Model, Split
from weightsmith.progress import progress
from weightsmith.site import Site

_CPU_LANE_BYTES = 24 * 2**20
"""Working memory of lanes that run together on a CPU: beyond its caches a larger batch is no faster."""

_CPU_RUN_BYTES = 512 * 2**20
"""Memory for the clean and corrupted runs that are kept at a time, unless the user gives another."""

_PIECES = 8
"""Into which the images of a large sweep are cut at least on a CPU: what processes share, and what a kill cannot take."""

_SMALLEST = 2**20


@dataclass(frozen=True, eq=False)
class Sweep:
    """Every site restored in every case.

    Attributes:
        sites: the places, in the order asked for.
        samples: names of the cases measured.
        restored: metric → (samples, sites) float64, mean over noise samples; NaN where a case has no such site.
        clean, corrupted: metric → (samples,) float64 of the unpatched runs.
        targets, foils: (samples,) the classes of the decision.
        refused: (name, gap) of the cases in which the corruption changed less than the floor.
        info: how it was measured; JSON values only.
    """

    sites: tuple[Site, ...]
    samples: tuple[str, ...]
    restored: dict[str, Tensor]
    clean: dict[str, Tensor]
    corrupted: dict[str, Tensor]
    targets: Tensor
    foils: Tensor
    refused: tuple[tuple[str, float], ...]
    info: dict[str, Any]

    def effects(self, metric: str = METRICS[0]) -> Effects:
        """Restored minus corrupted, (samples, sites); `Effects.normalised` divides by what the corruption took.

        Raises:
            WeightsmithError: a metric that was not measured.
        """
        if metric not in self.restored:
            raise WeightsmithError(f"{metric} was not measured: {did_you_mean(metric, self.restored)}")
        info = self.info | {
            "clean": self.clean[metric].tolist(),
            "corrupted": self.corrupted[metric].tolist(),
            "target_classes": self.targets.tolist(),
            "foil_classes": self.foils.tolist(),
            "refused": [list(pair) for pair in self.refused],
        }
        values = self.restored[metric] - self.corrupted[metric][:, None]
        return Effects(self.sites, values, self.samples, metric, info)


@torch.no_grad()
def sweep(
    model: Model,
    cases: Cases,
    sites: Sequence[Site],
    *,
    metrics: Sequence[str] = METRICS,
    min_gap: float | None = None,
    sever: Sequence[str] = (),
    memory: int | None = None,
    checkpoint: Path | None = None,
    title: str = "patching",
) -> Sweep:
    """Restore the clean activation of each site in the corrupted run of each case (Meng et al., ROME, 2022, §2.1).

    Every site is exact: what is saved is only what cannot matter. Sites are grouped by layer and form; a group restarts
    at its own place from what the corrupted run left, batched under a memory budget (see `split_lanes`). Restoring
    what nothing reads gives exactly 0, and restoring the whole residual stream exactly the clean run.

    Args:
        sites: single places, windows of blocks, heads, any tokens; in prompts also the subject's by name.
        metrics: of `METRICS`; the first one decides which cases are refused.
        min_gap: refuse a case whose clean and corrupted runs differ by less in that metric; by default `FLOORS`.
        sever: kinds, `attn.out` or `mlp.out`, held at their corrupted values everywhere behind the restored site.
        memory: bytes for the runs kept at a time; by default 512 MB on a CPU and a quarter of a GPU's.
        checkpoint: a folder in which finished cases are kept, so that a sweep that was killed goes on.

    Raises:
        WeightsmithError: no sites, a site that the model has not, an unknown metric, all cases refused, or a checkpoint
            of another sweep.
    """
    if not sites:
        raise WeightsmithError("there are no sites to restore: name some with --sites")
    for metric in metrics:
        check_metric(metric)
    if not metrics or len(set(metrics)) < len(metrics):
        raise WeightsmithError("--metric needs one or more different metrics: give `logit_difference kl` say")
    floor = FLOORS[metrics[0]] if min_gap is None else min_gap
    run = _Run(model, cases, tuple(sites), tuple(metrics), floor, tuple(sever), memory)
    run.check()
    pieces: dict[int, Piece] = {}
    store = None if checkpoint is None else Store(checkpoint, run.fingerprint())
    with progress(title, len(cases.names)) as advance:
        todo: list[list[int]] = []
        for which in run.chunks():
            piece = store.load(which) if store is not None else None
            if piece is None:
                todo.append(which)
            else:
                pieces[which[0]] = piece
                advance(len(which))
        for which, piece in ranks.dealt(_piece_of, todo, run.share):
            if store is not None:
                store.save(which, piece)
            pieces[which[0]] = piece
            advance(len(which))
    return run.joined([pieces[first] for first in sorted(pieces)])


@dataclass(frozen=True, eq=False)
class _Run:
    """One sweep."""

    model: Model
    cases: Cases
    sites: tuple[Site, ...]
    metrics: tuple[str, ...]
    floor: float
    sever: tuple[str, ...]
    memory: int | None
    together: int | None = None  # noise samples at most, where memory has shown that it holds no more
    fitting: Fitting = field(default_factory=lambda: Fitting("cases are traced"))
    deciding: Fitting = field(default_factory=lambda: Fitting("cases are decided"))
    restoring: Fitting = field(default_factory=lambda: Fitting("places are restored"))

    def check(self) -> None:
        """Every bad site is told before any work is done."""
        for index in {self.cases.tokens(i): i for i in range(len(self.cases.names))}.values():
            self._targets(index)

    def chunks(self) -> Iterator[list[int]]:
        """Cases that run together: of one number of tokens and one plan, as many as the memory holds."""
        if isinstance(self.cases, PromptCases):
            yield from ([i] for i in range(len(self.cases.names)))
            return
        n, size = len(self.cases.names), max(1, self._budget() // (self.cases.samples * self._input_bytes(0)))
        if self.model.device.type == "cpu":
            # Fewer would not fill a batch of lanes, and small sweeps are over before they are shared.
            # A lane is three of what a block keeps of an input, and three places or more are restored together.
            lanes = 9 * self.cases.samples * self._input_bytes(0) / self.model.n_layers
            full = math.ceil(_CPU_LANE_BYTES / lanes)
            size = min(size, max(math.ceil(n / _PIECES), full))
        for start in range(0, n, size):
            yield list(range(start, min(start + size, n)))

    def share(self, which: list[int]) -> tuple[_Run, list[int]]:
        """What another process needs to measure these cases: no others."""
        if ranks.world() == 1:
            return self, which
        return replace(self, cases=select(self.cases, which)), list(range(len(which)))

    def fitted(self, which: list[int]) -> Piece:
        """`piece`; a single case that memory does not hold has fewer of its noise samples at a time."""
        if len(which) > 1:
            return self.piece(which)
        run, together = self, self.cases.samples
        while (done := tried(run.piece, which)) is None:
            self.fitting.tell(1)
            if together == 1:
                raise WeightsmithError(
                    f"memory ran out while a single case was traced: {REMEDY}, or give fewer --sites"
                )
            together //= 2
            run = replace(self, together=together)
        return done[0]

    def piece(self, which: list[int]) -> Piece:
        """Measure some cases."""
        clean, corrupted = self.cases.embedded(which)
        n, samples = len(which), corrupted.shape[1]
        # Somebody's hook may carry what changes to any token: then nothing is taken to be idle.
        fits = Split.fits(self.model)
        first = [first_changed(clean[row], corrupted[row]) if fits else 0 for row in range(n)]
        plan = self._targets(which[0])
        every = [target for each in plan for target in each]
        kinds = {write.kind for target in every for write in target.writes if write.clean}
        held = {write.kind for target in every for write in target.writes if not write.clean}
        # A single case whose noise samples do not fit is measured in slices of them.
        most = max(1, self._budget() // (n * self._input_bytes(which[0])))
        slices = torch.split(torch.arange(samples), min(most, self.together or most))
        decision = None if len(slices) == 1 else self._decision(which, clean, corrupted)
        sums = {name: torch.zeros(n, len(every), dtype=torch.float64) for name in self.metrics}
        ends = {name: torch.zeros(2, n, dtype=torch.float64) for name in self.metrics}
        work = 0.0
        for part in slices:
            lanes = lanes_for(self.model, clean, corrupted[:, part].flatten(0, 1), kinds, held)
            if decision is None:
                decision = decided(self.cases, which, lanes.clean, lanes.corrupted.view(n, samples, -1).mean(1))
            rows = torch.arange(n).repeat_interleave(len(part)).to(lanes.clean.device)
            share = len(part) / samples
            for name in self.metrics:
                corrupt = decision.at(rows).measure(name, lanes.corrupted).view(n, -1).mean(1)
                ends[name] += share * torch.stack([decision.measure(name, lanes.clean), corrupt]).cpu()
            for name, values in self._restored(lanes, decision, every, first, len(part)).items():
                sums[name] += share * values
            work += lanes.work
        assert decision is not None
        gap = ends[self.metrics[0]][0] - ends[self.metrics[0]][1]
        tensors = {
            "kept": (gap.abs() >= self.floor).to(torch.uint8),
            "gap": gap,
            "targets": decision.target.cpu(),
            "foils": decision.foil.cpu(),
            "work": torch.tensor([work], dtype=torch.float64),
            "full_passes": torch.tensor([n * (1 + samples * (1 + len(every)))]),
        }
        for name in self.metrics:
            columns, start = [], 0
            for each in plan:
                # NaN where the case has no such site; what leaves each token's value as it is leaves the mean exactly.
                values = sums[name][:, start : start + len(each)]
                columns.append(values[:, :1].sum(1) + (values - values[:, :1]).mean(1))
                start += len(each)
            tensors |= {f"restored.{name}": torch.stack(columns, 1), f"ends.{name}": ends[name]}
        return Piece(tensors)

    def joined(self, pieces: Sequence[Piece]) -> Sweep:
        joined = together(pieces)
        kept = joined["kept"].bool()
        names = self.cases.names
        gaps = zip(names, joined["gap"].tolist(), kept.tolist(), strict=True)
        refused = tuple((name, gap) for name, gap, stays in gaps if not stays)
        if not bool(kept.any()):
            raise WeightsmithError(
                f"the corruption changes the {self.metrics[0].replace('_', ' ')} of no case by {self.floor:g} or more "
                f"(the largest gap is {float(joined['gap'].abs().max()):.2g}): choose a stronger corruption, or a lower "
                "--min-gap"
            )
        info = self.cases.describe() | {
            "metrics": list(self.metrics),
            "min_gap": self.floor,
            "sever": list(self.sever),
            "block_forwards": round(float(joined["work"].sum()), 2),
            "naive_block_forwards": self.model.n_layers * int(joined["full_passes"].sum()),
            "attention": getattr(self.model.module.config, "_attn_implementation", None),
        }
        return Sweep(
            self.sites,
            tuple(name for name, stays in zip(names, kept.tolist(), strict=True) if stays),
            {name: joined[f"restored.{name}"][kept] for name in self.metrics},
            {name: joined[f"ends.{name}"][0][kept] for name in self.metrics},
            {name: joined[f"ends.{name}"][1][kept] for name in self.metrics},
            joined["targets"][kept],
            joined["foils"][kept],
            refused,
            info,
        )

    def fingerprint(self) -> str:
        """SHA-256 of everything that a piece depends on."""
        said = [
            self.model.fingerprint(),
            self.cases.describe(),
            list(self.cases.names),
            self.cases.targets.tolist(),
            self.cases.foils.tolist(),
            [str(site) for site in self.sites],
            self.metrics,
            self.floor,
            self.sever,
        ]
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()

    def _targets(self, index: int) -> list[list[Target]]:
        """For each site what restoring it writes in this case: several where a name stands for several tokens, each apart."""
        tokens = self.cases.tokens(index)
        found: list[list[Target]] = []
        reduce = Split.fits(self.model)
        for site in self.sites:
            meant = self.cases.meant(index, site) if isinstance(self.cases, PromptCases) else [site]
            found.append(targets(self.model, meant, tokens, sever=self.sever, reduce=reduce))
        return found

    def _restored(
        self, lanes: Lanes, decision: Decision, every: Sequence[Target], first: Sequence[int], samples: int
    ) -> dict[str, Tensor]:
        """Metric → (cases, targets) mean over noise samples."""
        n, device = len(first), lanes.clean.device
        logits_of = torch.arange(n, device=device).repeat_interleave(samples)
        unpatched = {
            name: decision.at(logits_of).measure(name, lanes.corrupted).view(n, -1).mean(1) for name in self.metrics
        }
        clean = {name: decision.measure(name, lanes.clean) for name in self.metrics}
        table = {name: unpatched[name][:, None].repeat(1, len(every)) for name in self.metrics}
        place = {id(target): column for column, target in enumerate(every)}
        causal, tokens = self.model.family.causal, lanes.tokens
        for target in every:
            if target.restores_all:
                for name in self.metrics:
                    table[name][:, place[id(target)]] = clean[name]
        size = max(1, self._lane_budget() // lanes.lane_bytes())
        for group in groups(target for target in every if not target.restores_all):
            todo = [
                (target, case, case * samples + sample)
                for target in group
                for case in range(n)
                if not is_idle(target, first[case], causal)
                for sample in range(samples)
            ]
            starts = [first_token(target, first[row], tokens) if causal else 0 for target, row, _ in todo]
            for begin, chunk in chunked(todo, starts, size, tokens):

                def measured(
                    which: slice, begin: int = begin, chunk: list[Lane] = chunk
                ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                    part = chunk[which]
                    case = torch.tensor([entry[1] for entry in part], device=device)
                    base = torch.tensor([entry[2] for entry in part], device=device)
                    logits = lanes.run(Batch(base, case, [target.writes for target, _, _ in part], begin))
                    column = torch.tensor([place[id(target)] for target, _, _ in part], device=device)
                    asked = decision.at(case)
                    return case, column, {name: asked.measure(name, logits) for name in self.metrics}

                for case, column, values in self.restoring.parts(measured, len(chunk)):
                    for name in self.metrics:
                        change = (values[name] - unpatched[name][case]) / samples
                        table[name].index_put_((case, column), change, accumulate=True)
        return {name: values.cpu() for name, values in table.items()}

    def _decision(self, which: list[int], clean: Tensor, corrupted: Tensor) -> Decision:
        logits = self.model.run_from(0, clean)

        def summed(inputs: Tensor) -> Tensor:
            parts = self.deciding.parts(lambda which: self.model.run_from(0, inputs[which]).sum(0), len(inputs))
            return torch.stack(list(parts)).sum(0)

        runs = [summed(piece) for row in corrupted for piece in row.split(8)]
        each = torch.stack(runs).view(len(corrupted), -1, logits.shape[1]).sum(1) / corrupted.shape[1]
        return decided(self.cases, which, logits, each)

    def _input_bytes(self, index: int) -> int:
        """What one corrupted input of a case leaves behind that is kept."""
        config: Any = self.model.module.config
        width = int(getattr(config, "hidden_size", 0) or 0)
        tokens = max(self.cases.tokens(index), 1)
        return max(8 * self.model.n_layers * tokens * width * 4, 1)

    def _budget(self) -> int:
        if self.memory is not None:
            return max(self.memory, _SMALLEST)
        if self.model.device.type == "cuda":
            # Of all there is, not of what is free: a sweep that goes on must cut the cases into the same pieces.
            return int(torch.cuda.get_device_properties(self.model.device).total_memory // 4)
        return _CPU_RUN_BYTES

    def _lane_budget(self) -> int:
        if self.model.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.model.device)[0] // 2)
        return min(_CPU_LANE_BYTES, max(self._budget(), _SMALLEST))


@torch.no_grad()
def _piece_of(run: _Run, which: list[int]) -> Piece:
    """One process's share of a sweep, in as many passes as memory needs: how it is cut says nothing of where it is kept."""
    return Piece(together(list(run.fitting.parts(lambda part: run.fitted(which[part]), len(which)))))


def lanes_for(model: Model, clean: Tensor, corrupted: Tensor, kinds: set[str], held: set[str]) -> Lanes:
    """The fastest exact way to run lanes on this model.

    Args:
        clean: (cases, tokens, width) what enters the first block in the clean runs.
        corrupted: (inputs, tokens, width) the same of the corrupted ones.
        kinds: of the writes that restore; held: of those that hold corrupted values.
    """
    if Split.fits(model):
        return SplitLanes(model, clean, corrupted, kinds, held)
    return HookLanes(model, clean, corrupted, kinds, held)
