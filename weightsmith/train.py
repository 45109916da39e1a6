"""Train a classifier so that a killed training goes on to the same result."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.data.images import ImageSet
from weightsmith.data.views import view
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.files import atomic_path
from weightsmith.measure import predict
from weightsmith.models import Model
from weightsmith.progress import progress

_log = logging.getLogger(__name__)
_SAVE_SECONDS = 300.0
"""A checkpoint is written after every epoch, and within a long epoch about this often."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Hyper-parameters: AdamW, linear warm-up then cosine decay, gradient norm clipped to 1.

    Attributes:
        epochs, batch_size, lr, weight_decay: as usual.
        warmup: share of all steps over which the learning rate rises.
        augment: random views of the training images, "none", "light", "natural" or "dihedral".
        seed: of the order of the images and the views.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    augment: str = "none"
    seed: int = 42

    def __post_init__(self) -> None:
        for flag, value in (("--epochs", self.epochs), ("--batch-size", self.batch_size)):
            if value < 1:
                raise WeightsmithError(f"{flag} must be at least 1, not {value}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise WeightsmithError(f"--lr must be positive, not {self.lr:g}")
        view(self.augment, "--augment")


@dataclass(frozen=True)
class History:
    """One row an epoch: epoch, train_loss, train_accuracy, val_loss, val_accuracy, lr, seconds."""

    rows: tuple[dict[str, float], ...]
    best_epoch: int
    skipped: bool = False


@dataclass
class _State:
    """Where a training stands: everything that a checkpoint holds beside the tensors."""

    epoch: int = 0
    step: int = 0  # within the epoch
    loss: float = 0.0
    hits: int = 0
    seen: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_epoch: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: Model,
    train: ImageSet,
    val: ImageSet,
    options: TrainOptions,
    checkpoint: Path,
    *,
    resume: bool = False,
    pin_memory: bool = True,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
) -> History:
    """Train `model` in place and leave it with the weights of the epoch of best validation accuracy.

    The checkpoint holds weights, optimizer, scheduler, gradient scaler, random state and history. One that matches
    (same data, initial weights and hyper-parameters, by hash) and is finished is loaded instead of training; one that
    matches and is not finished is continued with `resume`, and the result is that of an undisturbed run at the same
    thread count.

    Args:
        pin_memory: page-locked batches, for CUDA only.
        on_epoch: called with the rows so far after every epoch.

    Raises:
        WeightsmithError: a checkpoint of other data, model or hyper-parameters, a damaged one, an unfinished one
            without `resume`, or a loss that is no number.
        HeldOutError: a sealed part.
    """
    run = _Run(model, train, val, options, checkpoint, pin_memory, on_epoch or (lambda _: None))
    return run.go(resume)


class _Run:
    """One training. Kept apart from `fit` because a checkpoint needs all of it at once."""

    def __init__(
        self,
        model: Model,
        train: ImageSet,
        val: ImageSet,
        options: TrainOptions,
        checkpoint: Path,
        pin_memory: bool,
        on_epoch: Callable[[list[dict[str, float]]], None],
    ) -> None:
        self.model, self.train, self.val, self.options = model, train, val, options
        self.checkpoint, self.on_epoch = checkpoint, on_epoch
        self.device = model.device
        self.pin_memory = pin_memory and self.device.type == "cuda"
        self.steps = math.ceil(len(train) / options.batch_size)
        self.match = {
            "train": train.digest(),
            "val": val.digest(),
            "initial_weights": weights_hash(model),
            "options": asdict(options),
        }
        self.optimizer = torch.optim.AdamW(model.module.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        # bfloat16 needs no scaling of gradients; older CUDA cards have float16 only, which does.
        self.half = None
        if self.device.type == "cuda":
            self.half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half == torch.float16)
        self.state = _State()
        self.best_weights: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()

    def go(self, resume: bool) -> History:
        skipped = False
        if self.checkpoint.exists():
            self._restore(resume)
            skipped = self.state.epoch >= self.options.epochs
            if skipped:
                _log.info("training skipped: %s matches and is finished", self.checkpoint)
        torch.manual_seed(self.options.seed) if self.state.epoch == self.state.step == 0 else None
        total = self.options.epochs * self.steps
        done = self.state.epoch * self.steps + self.state.step
        try:
            with progress("training", total, done) as advance:
                for epoch in range(self.state.epoch, self.options.epochs):
                    self._epoch(epoch, lambda: advance(1, self._note()))
        finally:
            self.model.module.eval()
        self.model.module.load_state_dict(self.best_weights)
        return History(tuple(self.state.rows), self.state.best_epoch, skipped)

    def _note(self) -> str:
        seen = max(self.state.seen, 1)
        return f"epoch {self.state.epoch + 1} loss {self.state.loss / seen:.3f}"

    def _rate(self, step: int) -> float:
        total = self.options.epochs * self.steps
        warm = max(1, round(self.options.warmup * total))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    def _epoch(self, epoch: int, advance: Callable[[], None]) -> None:
        started = time.monotonic() - self.state.seconds
        # The order depends on seed and epoch alone, so that a resumed epoch goes on where it stopped.
        order = np.random.default_rng([self.options.seed, epoch]).permutation(len(self.train))
        augment = view(self.options.augment)
        labels = torch.from_numpy(self.train.labels)
        self.model.module.train()
        for step in range(self.state.step, self.steps):
            which = order[step * self.options.batch_size : (step + 1) * self.options.batch_size]
            pixels, wanted = self.train.pixels(which), labels[which]
            if self.options.augment != "none":
                generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch * self.steps + step)
                pixels = augment(pixels.float(), generator).round().to(torch.uint8)
            if self.pin_memory:
                pixels, wanted = pixels.pin_memory(), wanted.pin_memory()
            self._step(pixels, wanted.to(self.device, non_blocking=True))
            self.state.step = step + 1
            advance()
            if time.monotonic() - self.saved_at > _SAVE_SECONDS:
                self.state.seconds = time.monotonic() - started
                self._save()
        self.model.module.eval()
        self._finish_epoch(epoch, time.monotonic() - started)

    def _step(self, pixels: Tensor, wanted: Tensor) -> None:
        images = self.model.preprocess(pixels, self.device)
        with torch.autocast(self.device.type, dtype=self.half) if self.half else nullcontext():
            logits = self.model.logits(images)
            loss = F.cross_entropy(logits, wanted)
        if not bool(torch.isfinite(loss)):
            raise WeightsmithError(
                f"the training loss became {loss.item()} in epoch {self.state.epoch + 1}: "
                f"give a smaller --lr than {self.options.lr:g}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.module.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.state.loss += float(loss.detach()) * len(wanted)
        self.state.hits += int((logits.argmax(-1) == wanted).sum())
        self.state.seen += len(wanted)

    def _finish_epoch(self, epoch: int, seconds: float) -> None:
        state = self.state
        seen = predict(self.model, self.val, title="validation")
        state.rows.append(
            {
                "epoch": epoch + 1,
                "train_loss": state.loss / state.seen,
                "train_accuracy": state.hits / state.seen,
                "val_loss": float(F.cross_entropy(seen.logits, seen.labels)),
                "val_accuracy": seen.accuracy,
                "lr": self.optimizer.param_groups[0]["lr"],
                "seconds": round(seconds, 2),
            }
        )
        if seen.accuracy >= state.best:
            state.best, state.best_epoch = seen.accuracy, epoch + 1
            self.best_weights = {n: t.detach().cpu().clone() for n, t in self.model.module.state_dict().items()}
        state.epoch, state.step, state.loss, state.hits, state.seen, state.seconds = epoch + 1, 0, 0.0, 0, 0, 0.0
        self._save()
        self.on_epoch(state.rows)
        _log.info("epoch %d: val accuracy %.4f", epoch + 1, seen.accuracy)

    def _save(self) -> None:
        content = {
            "match": json.dumps(self.match),
            "state": asdict(self.state),
            "model": self.model.module.state_dict(),
            "best": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        with atomic_path(self.checkpoint) as temporary:
            torch.save(content, temporary)
        self.saved_at = time.monotonic()

    def _restore(self, resume: bool) -> None:
        try:
            content: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            match = json.loads(content["match"])
        except Exception as error:  # torch raises many types for a damaged file
            raise WeightsmithError(
                f"the checkpoint {self.checkpoint} is damaged and cannot be read: delete it to train again"
            ) from error
        if match != self.match:
            raise WeightsmithError(
                f"the checkpoint {self.checkpoint} was made with {_difference(match, self.match)}: "
                "give another --run-name, or --overwrite to train again"
            )
        state = _State(**content["state"])
        if state.epoch < self.options.epochs and not resume:
            raise WeightsmithError(
                f"{self.checkpoint} holds a training that stopped in epoch {state.epoch + 1} of {self.options.epochs}: "
                "give --resume to go on with it, or --overwrite to train again"
            )
        self.state = state
        self.model.module.load_state_dict(content["model"])
        self.best_weights = content["best"]
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["rng"])
        if self.device.type == "cuda" and content["cuda_rng"]:
            torch.cuda.set_rng_state_all(content["cuda_rng"])


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two match records, in words."""
    words = {"train": "other training images", "val": "other validation images", "initial_weights": "another model"}
    found = [words[key] for key in words if old.get(key) != new[key]]
    before, now = old.get("options", {}), new["options"]
    found += [f"{name} {before.get(name)} instead of {now[name]}" for name in now if before.get(name) != now[name]]
    return ", ".join(found) or "other hyper-parameters"


def find_device() -> str:
    """The best device of this machine: CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
