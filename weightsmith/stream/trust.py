"""Trust: what a batch of edits did to samples that no editor saw decides whether it stays, is shrunk, or is taken back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.data.images import ImageSet
from weightsmith.data.texts import TextSet
from weightsmith.delta import Delta
from weightsmith.edit.reading import Contexts, corrections_of
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import agreement
from weightsmith.models import Model
from weightsmith.request import ImageRequest, Request, TextRequest

_log = logging.getLogger(__name__)

PARTS = ("efficacy", "locality", "retention", "drift", "norm")
WEIGHTS = (0.4, 0.3, 0.2, 0.05, 0.05)
_DRIFT, _NORM = 0.1, 1.0
"""Nats of drift, and update norm relative to the weights', at which these parts of the score are a half."""

_FACTORS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_HALVINGS = 4


@dataclass(frozen=True, kw_only=True)
class TrustOptions:
    """When a batch is trusted, and what becomes of one that is not.

    Attributes:
        threshold: least score, 0 to 1.
        action: "rollback" takes the batch back, "scale" shrinks it to the largest factor that is trusted (and takes it
            back where none is), "warn" keeps it and says so.
        heldout_samples: images, or windows of text, of those kept aside that are looked at.
        retained: earlier edits that are asked again, drawn at random.
        weights: of efficacy, locality, retention, drift and norm.
        seed: of the draws.

    Raises:
        WeightsmithError: a threshold or weights out of range.
    """

    threshold: float = 0.8
    action: Literal["rollback", "scale", "warn"] = "rollback"
    heldout_samples: int = 64
    retained: int = 50
    weights: tuple[float, ...] = WEIGHTS
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise WeightsmithError(f"--trust-threshold must be from 0 to 1, not {self.threshold:g}: give 0.8 say")
        if len(self.weights) != len(PARTS) or min(self.weights) < 0 or sum(self.weights) == 0:
            raise WeightsmithError(
                f"--trust-weights needs {len(PARTS)} numbers from 0, for {', '.join(PARTS)}, not all of them 0: "
                "leave it out for the usual ones"
            )
        if self.heldout_samples < 1:
            raise WeightsmithError(
                f"--trust-heldout-samples must be at least 1, not {self.heldout_samples}: give 64 say"
            )


@dataclass(frozen=True)
class Verdict:
    """What was decided of a batch.

    Attributes:
        score: weighted mean of the parts, 0 to 1.
        parts: efficacy (edits that hold), locality (predictions that stay on samples kept aside), retention (earlier edits
            that hold), drift 1/(1 + KL/0.1) and norm 1/(1 + ‖ΔW‖/‖W‖), each 0 to 1; a part that nothing tells of is absent.
        factor: by which the change was multiplied: 1, less after "scale", 0 after a rollback.
        kept: whether anything of it stays.
        said: what happened in a sentence, "" when it was trusted.
    """

    score: float
    parts: dict[str, float] = field(default_factory=dict)
    factor: float = 1.0
    kept: bool = True
    said: str = ""


class Trust:
    """Scores batches on samples kept aside.

    Raises:
        WeightsmithError: no samples, or samples of another kind than the model reads.
    """

    def __init__(self, options: TrustOptions, aside: ImageSet | TextSet) -> None:
        if len(aside) == 0:
            raise WeightsmithError(
                "nothing is kept aside to judge trust on: give more data or text, or --no-trust-enable"
            )
        generator = torch.Generator().manual_seed(options.seed)
        chosen = torch.randperm(len(aside), generator=generator)[: options.heldout_samples].sort().values
        self.options, self._all = options, aside.subset(chosen.numpy())
        self.aside = self._all

    def check_apart(self, model: Model, requests: Sequence[Request]) -> None:
        """Samples that judge edits must not be about them.

        Windows of text that hold a prompt of these requests do not judge them, and the log says how many those are: what they
        say is to change.

        Raises:
            WeightsmithError: an edited image is among the samples, or every window of text is about the requests.
        """
        if isinstance(self._all, TextSet):
            self.aside = self._apart(self._all, model, requests)
            return
        names = set(self._all.names())
        for request in requests:
            if isinstance(request, ImageRequest) and request.source == self._all.source and request.name in names:
                raise WeightsmithError(
                    f"{request.name} is to be edited and is among the samples that judge the edits: keep others aside"
                )

    def _apart(self, windows: TextSet, model: Model, requests: Sequence[Request]) -> TextSet:
        """The windows that say nothing of what these requests change."""
        tokenizer = model.tokenize.tokenizer
        prompts = [request.prompt.strip() for request in requests if isinstance(request, TextRequest)]
        if tokenizer is None or not prompts:
            return windows
        said = [str(tokenizer.decode(ids.tolist())) for batch in windows.batches(1) for ids in batch]
        apart = [place for place, text in enumerate(said) if not any(prompt in text for prompt in prompts)]
        if not apart:
            raise WeightsmithError(
                f"each of the {len(said)} windows of text that judge the edits says what is to be edited: keep other text "
                "aside, or more of it"
            )
        if len(apart) < len(said):
            _log.warning(
                "%d of %d windows say what is to be edited, and judge nothing", len(said) - len(apart), len(said)
            )
        return windows.subset(apart)

    def judge(self, model: Model, delta: Delta, requests: Sequence[Request], earlier: Sequence[Request]) -> Verdict:
        """What is to become of a batch; the model has the weights before it, and has them afterwards.

        Args:
            earlier: requests of the edits in force before this batch.
        """
        options = self.options
        earlier = self._drawn(earlier)
        score, parts = self.score(model, delta, requests, earlier)
        if score >= options.threshold:
            return Verdict(score, parts)
        short = f"trust {score:.3f} is below {options.threshold:g} ({_worst(parts)})"
        if options.action == "warn":
            return self._told(Verdict(score, parts, said=f"{short}: kept all the same, as asked"))
        if options.action == "scale":
            factor = largest(lambda f: self.score(model, f * delta, requests, earlier)[0] >= options.threshold)
            if factor > 0:
                score, parts = self.score(model, factor * delta, requests, earlier)
                return self._told(
                    Verdict(score, parts, factor, said=f"{short}: scaled by {factor:.3g}, trust {score:.3f}")
                )
            short += ", and so is every smaller one"
        return self._told(Verdict(score, parts, 0.0, False, f"{short}: taken back"))

    def score(
        self, model: Model, delta: Delta, requests: Sequence[Request], earlier: Sequence[Request]
    ) -> tuple[float, dict[str, float]]:
        """(weighted score, its parts) of a delta for the weights that the model has."""
        locality, drift = self._moved(model, delta)
        parts = {
            "locality": locality,
            "drift": 1 / (1 + drift / _DRIFT),
            "norm": 1 / (1 + _relative(model, delta) / _NORM),
        }
        with delta.on(model, check=False):
            parts["efficacy"] = _holding(model, requests)
            if earlier:
                parts["retention"] = _holding(model, earlier)
        weights = dict(zip(PARTS, self.options.weights, strict=True))
        known = {name: parts[name] for name in PARTS if name in parts and weights[name] > 0}
        total = sum(weights[name] for name in known)
        score = sum(weights[name] * value for name, value in known.items()) / total if total else 0.0
        return score, known

    def _moved(self, model: Model, delta: Delta) -> tuple[float, float]:
        if isinstance(self.aside, TextSet):
            return agreement(model, self.aside.batches(8), Delta(delta.changes))

        @torch.no_grad()
        def compared(pixels: Tensor, _labels: Tensor) -> tuple[int, float]:
            inputs = model.preprocess(pixels, model.device)
            before = model.logits(inputs).double()
            with delta.on(model, check=False):
                after = model.logits(inputs).double()
            moved = F.kl_div(after.log_softmax(1), before.log_softmax(1), reduction="sum", log_target=True)
            return int((before.argmax(1) == after.argmax(1)).sum()), float(moved)

        found = list(Fitting("images that judge are asked").each(compared, self.aside.batches(256)))
        return sum(same for same, _ in found) / len(self.aside), sum(moved for _, moved in found) / len(self.aside)

    def _drawn(self, earlier: Sequence[Request]) -> list[Request]:
        generator = torch.Generator().manual_seed(self.options.seed + len(earlier))
        which = torch.randperm(len(earlier), generator=generator)[: self.options.retained].tolist()
        return [earlier[position] for position in sorted(which)]

    def _told(self, verdict: Verdict) -> Verdict:
        _log.warning("%s", verdict.said)
        return verdict


def largest(trusted: Callable[[float], bool]) -> float:
    """The largest factor below 1 that is trusted, within a hundredth: a grid from above, then halvings; 0 if none is."""
    above = 1.0
    for factor in _FACTORS:
        if trusted(factor):
            below = factor
            for _ in range(_HALVINGS):
                middle = (below + above) / 2
                below, above = (middle, above) if trusted(middle) else (below, middle)
            return below
        above = factor
    return 0.0


def _holding(model: Model, requests: Sequence[Request]) -> float:
    """Share of the requests that get the wanted answer now."""
    answers = corrections_of(model, requests, Contexts(lookup="last")).answers(model)
    return sum(bool(answer["success"]) for answer in answers) / len(answers)


def _relative(model: Model, delta: Delta) -> float:
    """Norm of the change relative to that of the weights it changes."""
    there = sum(float(model.module.get_parameter(name).detach().double().square().sum()) for name in delta.changes)
    return delta.norm() / max(there, 1e-30) ** 0.5 if delta.changes else 0.0


def _worst(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {parts[name]:.3f}" for name in sorted(parts, key=lambda name: parts[name])[:3])
