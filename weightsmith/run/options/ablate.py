"""The options of `ablate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightsmith.run.options.knowledge import BenchOptions


@dataclass(frozen=True, kw_only=True)
class AblateOptions(BenchOptions):
    """What both ablations have: one editor, and the requests that it edits."""

    edit_method: tuple[str, ...] = ("alphaedit",)
    """One of alphaedit, memit, emmet, rome, head, finetune, lora, ftm, and for images patcher."""
    max_edits: int = 30
    """Requests to edit, drawn at random."""
    seeds: tuple[int, ...] = (0,)
    """Of the draws of requests; every setting is measured on each."""


@dataclass(frozen=True, kw_only=True)
class AblateLoraOptions(AblateOptions):
    """One edit as LoRA adapters: what rank, fit steps and the start of the fit cost of it."""

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Largest rank of an adapter."""
    fit_steps: tuple[int, ...] = (0, 5, 20)
    """Steps of alternating least squares, from the truncated SVD and, where there are any, from LoRA's random start."""
    lora_alpha: float | None = None
    """alpha of the adapters [the rank]; the change is the same but for rounding."""


@dataclass(frozen=True, kw_only=True)
class AblateReplayOptions(AblateOptions):
    """A stream of edits with several ways to replay earlier ones: what is forgotten, and what the rest costs."""

    max_edits: int = 100
    """Requests to edit, drawn at random."""
    batch_size: int = 10
    """Edits in a batch, each on the model that the one before left."""
    rates: tuple[float, ...] = (0.5, 2.0)
    """Requests replayed a new one, more while they are found to have slipped; of ftm, in each step."""
    buffers: tuple[int, ...] = (20, 500)
    """Requests that are remembered; the oldest is forgotten first."""
    strategies: tuple[Literal["random", "priority", "recent"], ...] = ("random", "priority", "recent")
    """Which of them are replayed."""
