"""`weightsmith ablate lora`: one edit as LoRA adapters of several ranks, begun and fitted in several ways."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from weightsmith.adapters import transposed_weights
from weightsmith.delta import Delta, LowRank, factored
from weightsmith.edit.lora_native import LoRAOptions, adapted
from weightsmith.errors import WeightsmithError
from weightsmith.measure import Interval
from weightsmith.measure.intervals import proportion
from weightsmith.models import Model
from weightsmith.report.ablation import lora_rank_vs_metrics
from weightsmith.request import ImageRequest, Request, TextRequest
from weightsmith.run.ablate.ablation import Ablated, Ablation, Rows, terminal_table
from weightsmith.run.ablate.trials import Setting, Trial
from weightsmith.run.options.ablate import AblateLoraOptions

_log = logging.getLogger(__name__)

ROWS = "lora_native_ablation.csv"

_ANY = math.nextafter(1.0, 0.0)
"""Tolerance at which an adapter is measured as it is, however little of the change it holds: nothing is to fall back."""
_NUMBERS = ("reconstruction_error", "change_rank", "parameters", "bytes", "largest_logit_difference", "seconds")
_AGREEMENT = "same_answers"
_AT_ONCE = 16
"""Prompts in one pass."""


@dataclass(eq=False)
class LoraAblation(Ablation):
    """The raw edit is solved once a seed; every adapter is made of it, written, and measured as it is read back."""

    options: AblateLoraOptions
    _raw_edits: dict[int, Delta | WeightsmithError] = field(default_factory=dict)
    _raw_logits: dict[int, list[Tensor]] = field(default_factory=dict)

    def beside(self) -> dict[str, Any]:
        return {"alpha": self.options.lora_alpha}

    def settings(self) -> list[Setting]:
        steps = self.options.fit_steps
        # A fit of no steps from LoRA's start leaves B at zero, which is no adapter.
        starts = [("svd", count) for count in steps] + [("lora", count) for count in steps if count > 0]
        found: list[Setting] = []
        for seed in self.options.seeds:
            found.append({"start": "raw", "rank": "", "fit_steps": "", "seed": seed})
            found += [
                {"start": start, "rank": rank, "fit_steps": count, "seed": seed}
                for start, count in starts
                for rank in sorted(self.options.ranks)
            ]
        return found

    def measure(self, setting: Setting) -> Trial:
        seed = int(setting["seed"])
        raw = self._raw(seed)
        delta, numbers = raw, self._of_raw(raw)
        if setting["start"] != "raw":
            delta, numbers = self._adapter(raw, setting)
        measures = self.bench.measure(seed, self.options.max_edits, delta)
        agreement, largest = self._agreement(seed, raw, delta)
        return Trial(
            setting,
            measures=measures | {_AGREEMENT: agreement},
            numbers=numbers | {"largest_logit_difference": largest},
        )

    def ablated(self, trials: Sequence[Trial]) -> Ablated:
        rows = [trial.row((*self.bench.names, _AGREEMENT), _NUMBERS) for trial in trials]
        words = {"start": "start", "rank": "rank", "fit_steps": "steps", "seed": "seed"}
        shares = {"reconstruction_error": "error", "efficacy": "efficacy", "paraphrase": "paraphrase"}
        shares |= {"neighbourhood": "neighbourhood", _AGREEMENT: "same"}
        return Ablated(
            {ROWS: rows},
            {"lora_rank_vs_metrics": lora_rank_vs_metrics(rows)},
            self._told(rows),
            terminal_table("The edit as LoRA adapters, %", rows, words, shares),
        )

    def _told(self, rows: Rows) -> list[str]:
        """What is the same by construction, so that nobody takes it for a finding."""
        told = []
        if any(steps > 0 for steps in self.options.fit_steps):
            told.append(
                "The truncated SVD is the best adapter of its rank already, so fit steps from it change nothing but rounding; "
                "from LoRA's start they approach it."
            )
        own = [row["change_rank"] for row in rows if row["start"] == "raw" and not row["error"]]
        whole = max((int(str(rank)) for rank in own), default=0)
        held = [rank for rank in sorted(self.options.ranks) if whole and rank >= whole]
        if held:
            ranks = f"{'Ranks' if len(held) > 1 else 'Rank'} {', '.join(map(str, held))}"
            told.append(
                f"{ranks} hold{'s' * (len(held) == 1)} the whole edit, whose rank is {whole}: from the SVD it is the raw edit."
            )
        return told

    def _raw(self, seed: int) -> Delta:
        """The edit itself, kept beside the trials: solved once, also by a run that is gone on with."""
        if seed not in self._raw_edits:
            self._raw_edits[seed] = self._read_or_solved(seed)
        found = self._raw_edits[seed]
        if isinstance(found, WeightsmithError):
            raise found
        return found

    def _read_or_solved(self, seed: int) -> Delta | WeightsmithError:
        key = self.depends({"start": "raw", "seed": seed})
        path = self.place / f"raw-{seed}.safetensors"
        if path.is_file():
            try:
                found = Delta.load(path)
                if found.info.get("trial") == key:
                    return found
            except WeightsmithError as error:
                _log.warning("%s is damaged and solved again: %s", path, error)
        try:
            editor = self.bench.editor(self.method)
            solved = editor.solve(self.bench.model, self.requests(seed), self.keeping(seed), self.cache_dir)
        except WeightsmithError as error:
            return error  # every trial of this draw ends with it
        solved = replace(solved, info={"trial": key})
        solved.save(path)
        return solved

    def _of_raw(self, raw: Delta) -> dict[str, float]:
        """What there is to say of the edit itself: it is stored as all elements of the weights that it changes."""
        weights = [self.bench.model.module.get_parameter(name) for name in raw.changes]
        return {
            "reconstruction_error": 0.0,
            "change_rank": max(ranks_of(raw), default=0),
            "parameters": sum(weight.numel() for weight in weights),
            "bytes": sum(weight.numel() * weight.element_size() for weight in weights),
        }

    def _adapter(self, raw: Delta, setting: Setting) -> tuple[Delta, dict[str, float]]:
        """The edit as an adapter, as plain PEFT would read it, and what there is to say of that."""
        started = time.perf_counter()
        options = LoRAOptions(
            rank=int(setting["rank"]),
            alpha=self.options.lora_alpha,
            use_svd=setting["start"] == "svd",
            fit_steps=int(setting["fit_steps"]),
            tolerance=_ANY,
            allow_fallback=False,
        )
        made, rows = adapted(raw, options, transposed=self._turned, seed=int(setting["seed"]))
        seconds = time.perf_counter() - started
        with TemporaryDirectory() as folder:
            place = Path(folder) / "adapter"
            replace(made, info={}).to_lora(place, self.bench.model, alpha=self.options.lora_alpha)
            size = (place / "adapter_model.safetensors").stat().st_size
            read = Delta.of_lora(place)
        return read, {
            "reconstruction_error": whole_error(raw, rows),
            "change_rank": max(int(row["rank"]) for row in rows),
            "parameters": sum(_parameters(change) for change in made.changes.values()),
            "bytes": size,
            "seconds": seconds,
        }

    @cached_property
    def _turned(self) -> frozenset[str]:
        return transposed_weights(self.bench.model.module)

    def _agreement(self, seed: int, raw: Delta, delta: Delta) -> tuple[Interval, float]:
        """(share of the requests with the raw edit's answer, largest difference of their logits from the raw edit's)."""
        model, requests = self.bench.model, self.requests(seed)
        if seed not in self._raw_logits:
            with raw.on(model):
                self._raw_logits[seed] = answer_logits(model, requests)
        theirs = self._raw_logits[seed]
        with delta.on(model):
            mine = answer_logits(model, requests)
        same = sum(bool((a.argmax(1) == b.argmax(1)).all()) for a, b in zip(mine, theirs, strict=True))
        largest = max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True))
        return proportion(same, len(requests)), largest


@torch.no_grad()
def answer_logits(model: Model, requests: Sequence[Request]) -> list[Tensor]:
    """What a model says to each request: logits (tokens of the wanted answer, vocabulary), of an image (1, classes).

    Of a text, the answer's tokens are each given those before it. float32, on the CPU.
    """
    images = [request for request in requests if isinstance(request, ImageRequest)]
    if images:
        pixels = model.preprocess(torch.stack([request.image for request in images]), model.device)
        return list(model.logits(pixels).float().cpu().unsqueeze(1))
    texts = [request for request in requests if isinstance(request, TextRequest)]
    asked = [model.tokenize.continued(request.prompt, request.target) for request in texts]
    found: list[Tensor] = []
    for first in range(0, len(asked), _AT_ONCE):
        chunk = asked[first : first + _AT_ONCE]
        longest = max(len(ids) for ids, _ in chunk)
        padded = [[*ids, *[0] * (longest - len(ids))] for ids, _ in chunk]  # attention is causal: the right is not seen
        logits = model.token_logits(torch.tensor(padded, device=model.device))
        found += [
            row[len(ids) - count - 1 : len(ids) - 1].float().cpu()
            for row, (ids, count) in zip(logits, chunk, strict=True)
        ]
    return found


def whole_error(raw: Delta, rows: Sequence[dict[str, Any]]) -> float:
    """‖B A − ΔW‖ / ‖ΔW‖ over all weights together, from the rows of `adapted`."""
    missed = sum((row["error"] * raw.changes[row["parameter"]].norm()) ** 2 for row in rows)
    return math.sqrt(missed) / raw.norm() if missed else 0.0


def ranks_of(delta: Delta) -> list[int]:
    """The rank of each matrix's change."""
    matrices = [change for change in delta.changes.values() if len(change.shape) == 2]
    return [factored(change).compressed().left.shape[1] for change in matrices]


def _parameters(change: Any) -> int:
    if isinstance(change, LowRank):
        return change.left.numel() + change.right.numel()
    return int(change.dense().numel())
