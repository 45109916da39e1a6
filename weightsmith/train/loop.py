"""What every training shares: AdamW under a schedule, a checkpoint that holds all of it, and a row an epoch."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightsmith import ranks
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.files import atomic_path
from weightsmith.models import Model
from weightsmith.progress import progress
from weightsmith.train.halving import Halving
from weightsmith.train.sharing import Batch, Share, replicas, steps_of_replica
from weightsmith.train.tracking import log_epoch

_log = logging.getLogger(__name__)
_SAVE_SECONDS = 300.0
"""A checkpoint is written after every epoch, and within a long epoch about this often."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Hyper-parameters: AdamW, linear warm-up then cosine decay, gradient norm clipped to 1.

    Attributes:
        epochs, batch_size, lr, weight_decay: as usual.
        warmup: share of all steps over which the learning rate rises.
        seed: of the order of the samples and of whatever else is drawn.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    seed: int = 42

    def __post_init__(self) -> None:
        for flag, value in (("--epochs", self.epochs), ("--batch-size", self.batch_size)):
            if value < 1:
                raise WeightsmithError(f"{flag} must be at least 1, not {value}: give 1 or more")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise WeightsmithError(f"--lr must be positive, not {self.lr:g}: give 1e-4 say")


@dataclass(frozen=True)
class History:
    """One row an epoch: epoch, train_loss, train_accuracy, what was measured on other data if any, lr, seconds."""

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

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> _State:
        """That of a checkpoint. Raises `TypeError` or `ValueError` for one that no training wrote."""
        state = cls(**entries)
        for name, default in vars(cls()).items():
            value = getattr(state, name)
            wanted = (int, float) if isinstance(default, float) else type(default)  # a score may be a count
            if not isinstance(value, wanted) or (isinstance(default, int) and value < 0):
                raise ValueError(f"{name} is {value!r}")
        state.rows = [dict(row) for row in state.rows]
        return state


class Training(ABC):
    """One training. What a batch is, and which epoch is the best, its kinds say."""

    data_words: ClassVar[Mapping[str, str]]
    """Entry of the match record → what a refusal says when it differs."""
    rate_flag: ClassVar[str] = "--lr"
    """How a user says the learning rate."""

    def __init__(
        self,
        model: Model,
        options: FitOptions,
        steps: Sequence[int],
        data: Mapping[str, str],
        checkpoint: Path,
        on_epoch: Callable[[list[dict[str, float]]], None] | None,
    ) -> None:
        """Set up a training of `steps[e]` steps in epoch e, on data with these hashes."""
        self.model, self.options, self.steps, self.checkpoint = model, options, steps, checkpoint
        self.on_epoch = on_epoch or (lambda _: None)
        self.device = model.device
        self.match = {**data, "initial_weights": weights_hash(model), "options": asdict(options)}
        self.share = Share()
        self.met: Exception | None = None  # behind the last step; told to the other parts in the next one
        self._prepare()
        self.state = _State()
        self.best_weights: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()

    def _prepare(self) -> None:
        """What steps are taken with, at the start of a training."""
        options = self.options
        self.optimizer = torch.optim.AdamW(
            self.model.module.parameters(), options.lr, weight_decay=options.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        # bfloat16 needs no scaling of gradients; older CUDA cards have float16 only, which does.
        self.half = None
        if self.device.type == "cuda":
            self.half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self.halving = Halving(self)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half == torch.float16)

    def __getstate__(self) -> dict[str, Any]:
        """What a replica in another process needs: it takes the same steps, and keeps and tells nothing."""
        left = (
            "optimizer",
            "scheduler",
            "scaler",
            "halving",
            "half",
            "on_epoch",
            "best_weights",
            "checkpoint",
            "device",
        )
        stands = {name: getattr(self, name).state_dict() for name in ("optimizer", "scheduler", "scaler")}
        return {name: value for name, value in vars(self).items() if name not in left} | {"stands": stands}

    def __setstate__(self, state: dict[str, Any]) -> None:
        stands = state.pop("stands")
        vars(self).update(state)
        self.model = copy.deepcopy(self.model)  # the one that was sent is known by the weights that it has
        self.device = self.model.device
        self._prepare()
        for name, stand in stands.items():
            getattr(self, name).load_state_dict(stand)

    @abstractmethod
    def _forward(self, epoch: int, step: int) -> Batch | None:
        """Loss of this process's share of the samples of one step, which depend on seed, epoch and step alone; None where
        it has none.
        """

    @abstractmethod
    def _measure(self) -> dict[str, float]:
        """What is measured on other data after an epoch, for its row."""

    @abstractmethod
    def _score(self, row: dict[str, float]) -> float:
        """How good an epoch was; the weights of the best one, and of several the last, are kept."""

    def go(self, resume: bool) -> History:
        """Train to the end, or load what a finished training left; see `fit` for what is refused."""
        skipped = False
        if self.checkpoint.exists():
            self._restore(resume)
            skipped = self.state.epoch >= self.options.epochs
            if skipped:
                _log.info("training skipped: %s matches and is finished", self.checkpoint)
        torch.manual_seed(self.options.seed) if self.state.epoch == self.state.step == 0 else None
        done = sum(self.steps[: self.state.epoch]) + self.state.step
        try:
            with progress("training", sum(self.steps), done) as advance, replicas(self):
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
        total = sum(self.steps)
        warm = max(1, round(self.options.warmup * total))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    def _epoch(self, epoch: int, advance: Callable[[], None]) -> None:
        started = time.monotonic() - self.state.seconds

        def kept() -> None:
            advance()
            if time.monotonic() - self.saved_at > _SAVE_SECONDS:
                self.state.seconds = time.monotonic() - started
                self._save()

        if self.share.size == 1:
            self.run_steps(epoch, self.state.step, kept)
        else:
            told = [(epoch, self.state.step)] * self.share.size
            ranks.everywhere(steps_of_replica, told, lambda: self.run_steps(epoch, self.state.step, kept))
        self._finish_epoch(epoch, time.monotonic() - started)

    def run_steps(self, epoch: int, first: int, after: Callable[[], None] = lambda: None) -> None:
        """The steps of an epoch from the `first` on; `after` is called behind each."""
        self.model.module.train()
        for step in range(first, self.steps[epoch]):
            self._step(epoch, step)
            self.state.step = step + 1
            _, self.met = self.share.tried(after)
        self.model.module.eval()
        if self.met is not None:
            raise self.met

    def _step(self, epoch: int, step: int) -> None:
        batch, failed = self.share.tried(lambda: self.halving.forward(epoch, step))
        loss, hits, seen = self.share.totals(batch, failed or self.met)
        if not math.isfinite(loss):
            raise WeightsmithError(
                f"the training loss became {loss / max(seen, 1)} in epoch {self.state.epoch + 1}: "
                f"give a smaller {self.rate_flag} than {self.options.lr:g}"
            )
        _, failed = self.share.tried(lambda: self.halving.backward(seen))
        self.share.sum_gradients(self.model.module, failed)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.module.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.state.loss += loss
        self.state.hits += hits
        self.state.seen += seen

    def forward(self, epoch: int, step: int) -> Batch | None:
        """`_forward`, in half precision where the device has it."""
        with torch.autocast(self.device.type, dtype=self.half) if self.half else nullcontext():
            return self._forward(epoch, step)

    def _finish_epoch(self, epoch: int, seconds: float) -> None:
        state = self.state
        row = {
            "epoch": epoch + 1,
            "train_loss": state.loss / state.seen,
            "train_accuracy": state.hits / state.seen,
            **self._measure(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": round(seconds, 2),
        }
        state.rows.append(row)
        log_epoch(row, self.checkpoint)
        if self._score(row) >= state.best:
            state.best, state.best_epoch = self._score(row), epoch + 1
            self.best_weights = {n: t.detach().cpu().clone() for n, t in self.model.module.state_dict().items()}
        state.epoch, state.step, state.loss, state.hits, state.seen, state.seconds = epoch + 1, 0, 0.0, 0, 0, 0.0
        self._save()
        self.on_epoch(state.rows)
        _log.info("epoch %d: %s", epoch + 1, self._told(row))

    def _told(self, row: dict[str, float]) -> str:
        """An epoch in words, for the log."""
        return f"train loss {row['train_loss']:.4f}"

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
        with self._damage_told():
            content: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            match = json.loads(content["match"])
            # What an older checkpoint does not name was not there yet: its training went as the default goes.
            defaults = {option.name: option.default for option in fields(self.options)}
            match["options"] = defaults | match["options"]
        if match != self.match:
            raise WeightsmithError(
                f"the checkpoint {self.checkpoint} was made with {self._difference(match)}: "
                "give another --run-name, or --overwrite to train again"
            )
        with self._damage_told():
            state = _State.of(content["state"])
            finished = state.epoch >= self.options.epochs
        if not finished and not resume:
            raise WeightsmithError(
                f"{self.checkpoint} holds a training that stopped in epoch {state.epoch + 1} of {self.options.epochs}: "
                "give --resume to go on with it, or --overwrite to train again"
            )
        with self._damage_told():
            self._take(content, finished)
        self.state = state
        for row in state.rows:  # a tracker shows the whole curve, not what is left of it
            log_epoch(row, self.checkpoint)

    def _take(self, content: dict[str, Any], finished: bool) -> None:
        """Weights and what goes with them from a checkpoint. Raises anything where it is damaged; the network is whole then."""
        own = {name: tensor.shape for name, tensor in self.model.module.state_dict().items()}
        for weights in (content["model"], *([content["best"]] if finished or content["best"] else [])):
            if {name: tensor.shape for name, tensor in weights.items()} != own:
                raise ValueError("its weights are not those of this network")
        if content["scheduler"].keys() != self.scheduler.state_dict().keys():  # torch would take up anything
            raise ValueError("its scheduler is another one")
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["rng"])
        if self.device.type == "cuda" and content["cuda_rng"]:
            torch.cuda.set_rng_state_all(content["cuda_rng"])
        self.best_weights = content["best"]
        self.model.module.load_state_dict(content["model"])

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        """Around what takes the checkpoint apart: torch raises many types for a damaged file."""
        try:
            yield
        except Exception as error:
            raise WeightsmithError(
                f"the checkpoint {self.checkpoint} is damaged and cannot be read: delete it to train again"
            ) from error

    def _difference(self, old: dict[str, Any]) -> str:
        """What differs between an older match record and this one, in words."""
        words = {**self.data_words, "initial_weights": "another model"}
        found = [words[key] for key in words if old.get(key) != self.match[key]]
        before, now = old.get("options", {}), asdict(self.options)
        found += [f"{name} {before.get(name)} instead of {now[name]}" for name in now if before.get(name) != now[name]]
        return ", ".join(found) or "other hyper-parameters"


def find_device() -> str:
    """The best device of this machine: CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
