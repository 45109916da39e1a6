"""Correct what errors have in common by a shared shift, and what is left by one neuron an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from weightsmith.data.images import ImageSet
from weightsmith.delta import Change, Delta, Dense, weights_hash
from weightsmith.edit.cls_tail import State, Tail, has_tail
from weightsmith.edit.image_corrections import ImageCorrections
from weightsmith.edit.neurons import remember
from weightsmith.edit.preserved import Preserved, right_ones
from weightsmith.edit.reading import Contexts, corrections_of, without_repeats
from weightsmith.edit.registry import editor
from weightsmith.edit.spread import finished
from weightsmith.edit.targets import margins
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.request import Request

SHIFT = {False: (1.0, 1e-2, 1e-3), True: (3.0, 1e-4, 5e-3)}
"""Whether the requests come from a new site → budget, floor and step of the shift; chosen on other patients than they are
judged on, see docs/edit.md."""


@editor("patcher")
@dataclass(frozen=True, kw_only=True)
class Patcher:
    """Two stages in the last block of a vision transformer, at CLS.

    **Shift.** Errors of a new site have a cause in common. A few steps of Adam on NLL(requests and their views) +
    β · KL(before ‖ after) on preserved images, in whitened coordinates ΔW = A S, S = (ε (C/c̄ + ε)⁻¹)^½ with C the second
    moment of the map's keys on preserved images and c̄ its mean eigenvalue, so that a step costs where preserved keys lie.
    They stop when more than `budget` per cent of preserved images that no step saw have changed class.

    **Memory.** What is still wrong gets one neuron each of the last MLP ("one mistake, one neuron": Huang et al.,
    Transformer-Patcher, ICLR 2023). No neuron is added: the least used ones are folded into the others by ridge
    regression and taken. A detector w = Σ⁻¹(x − μ), Σ the covariance of the MLP's input on preserved images, opens for
    its image alone, because it stays below zero on every preserved image; its value is the least change of the residual
    stream that makes the wanted class lead by the margin.

    Attributes:
        new_site: the requests come from where no preserved image does (another scanner, another hospital), so that what
            they have in common is worth more of the budget.
        budget: per cent of preserved images kept aside that the shift may change; 0 leaves the shift out.
        epsilon: floor of the whitening; lr: Adam's step in whitened coordinates; None takes `SHIFT` for all three.
        beta: weight of the KL term; steps: of Adam.
        batch: preserved images a step.
        memory_epsilon: floor of the detectors' covariance, relative to its mean diagonal.
        others: share of the other requests in that covariance, so that one detector does not open for another's image.
        quiet, loud: a detector's input is −quiet at the loudest preserved image and `loud` at its own.
        margin: by how much the wanted class's logit leads.
        fold: ridge with which taken neurons are folded into the others, relative.
        views, view: augmented views of each request that the shift learns beside it, how many and of which kind.
        open_for_views: whether a detector opens for its views too.
        preserved: right images that are used at most.
        seed: of views, of what is kept aside and of the batches.
    """

    new_site: bool = False
    budget: float | None = None
    epsilon: float | None = None
    lr: float | None = None
    beta: float = 3.0
    steps: int = 45
    batch: int = 256
    memory_epsilon: float = 1e-5
    others: float = 0.3
    quiet: float = 3.0
    loud: float = 3.0
    margin: float = 0.05
    fold: float = 1e-3
    views: int = 7
    view: str = "light"
    open_for_views: bool = False
    preserved: int = 4500
    seed: int = 0

    name: ClassVar[str] = "patcher"

    @staticmethod
    def suits(model: Model) -> bool:
        """Whether the model has what this editor edits: a vision transformer's last block behind CLS."""
        return has_tail(model)

    def solve(
        self,
        model: Model,
        requests: Sequence[Request],
        preserve: Preserved,
        cache_dir: Path | None = None,
    ) -> Delta:
        """One batch of edits as a delta on the last block and the classifier; `info` has a row a request.

        Raises:
            WeightsmithError: no requests, requests that contradict each other, more requests than neurons, nothing
                preserved, or a model that is no vision transformer.
            HeldOutError: `preserve` is sealed.
        """
        tail = Tail(model)
        kept, repeated = without_repeats(requests)
        corrections = corrections_of(model, kept, Contexts(views=self.views, view=self.view, seed=self.seed), cache_dir)
        if not isinstance(preserve, ImageSet):
            raise WeightsmithError(f"{model.name} reads images: give images to preserve")
        assert isinstance(corrections, ImageCorrections)
        right = right_ones(model, preserve)
        if len(right) > self.preserved:
            right = right.subset(np.sort(np.random.default_rng(self.seed).permutation(len(right))[: self.preserved]))
        held = State.of(model, (pixels for pixels, _ in right.batches(256)))
        asked = State.of(model, iter(corrections.images))  # (views + 1) · E rows, the images themselves first
        targets = corrections.targets.to(model.device)
        start = {name: parameter.clone() for name, parameter in tail.named_parameters()}
        log: dict[str, Any] = {"shift_steps": 0, "lost_aside": 0.0, "memories": 0}
        with torch.no_grad():
            own = asked[torch.arange(len(corrections), device=targets.device)]
            holding = margins(tail(own), targets) > 0
        if self._chosen()[0] > 0:
            self._shift(tail, asked, targets, held, log)
        remember(tail, asked, targets, held, self, log, holding)
        residuals = self._moved(model, tail, asked, len(corrections))
        changes: dict[str, Change] = {}
        for inner, outer in tail.names.items():
            for part in ("weight", "bias"):
                name = f"{inner}.{part}"
                if name in start and not torch.equal(now := tail.get_parameter(name), start[name]):
                    changes[f"{outer}.{part}"] = Dense((now - start[name]).cpu())
        layers = [model.n_layers - 1]
        info = {"method": self.name, "options": asdict(self), "layers": layers, "repeated": repeated, **log}
        return finished(model, corrections, Delta(changes, weights_hash(model)), residuals, info)

    def _shift(self, tail: Tail, asked: State, targets: Tensor, held: State, log: dict[str, Any]) -> None:
        """The shared shift, written into the tail."""
        budget, epsilon, lr = self._chosen()
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(held), generator=generator).to(targets.device)
        cut = 2 * len(held) // 5
        if cut == 0:
            return
        aside, learned = held[order[:cut]], held[order[cut:]]
        wanted = targets.repeat(len(asked) // len(targets))
        names = [f"{name}.weight" for name in tail.names]
        base = {name: tail.get_parameter(name).clone() for name in names}
        with torch.no_grad(), tail.inputs(*tail.names) as seen:
            before = tail(learned).log_softmax(-1)
        whitening = {f"{name}.weight": _whitening(keys, epsilon) for name, keys in seen.items()}
        with torch.no_grad():
            classes = tail(aside).argmax(1)
        factors = {name: torch.zeros_like(weight, requires_grad=True) for name, weight in base.items()}
        optimizer = torch.optim.Adam(factors.values(), lr=lr)
        for step in range(self.steps):
            weights = {name: base[name] + factors[name] @ whitening[name] for name in names}
            chosen = torch.randint(len(learned), (self.batch,), generator=generator).to(targets.device)
            logits = functional_call(tail, weights, (State.joined(asked, learned[chosen]),))
            answers, kept = logits[: len(wanted)], logits[len(wanted) :]
            held_back = F.kl_div(kept.log_softmax(-1), before[chosen], log_target=True, reduction="batchmean")
            loss = F.cross_entropy(answers, wanted) + self.beta * held_back
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                moved = {name: base[name] + factors[name] @ whitening[name] for name in names}
                lost = 100 * float((functional_call(tail, moved, (aside,)).argmax(1) != classes).float().mean())
                if lost > budget:
                    break
                for name, weight in moved.items():
                    tail.get_parameter(name).copy_(weight)
            log |= {"shift_steps": step + 1, "lost_aside": lost}

    def _chosen(self) -> tuple[float, float, float]:
        """(budget, epsilon, lr): what was given, else what `SHIFT` has."""
        given = (self.budget, self.epsilon, self.lr)
        budget, epsilon, lr = (a if a is not None else b for a, b in zip(given, SHIFT[self.new_site], strict=True))
        return budget, epsilon, lr

    @torch.no_grad()
    def _moved(self, model: Model, tail: Tail, asked: State, count: int) -> Tensor:
        """(E,) by how much each request's logits have moved."""
        own = asked[torch.arange(count, device=asked.stream.device)]
        moved: Tensor = (tail(own) - Tail(model)(own)).norm(dim=1).cpu()
        return moved


def _whitening(keys: Tensor, epsilon: float) -> Tensor:
    """S (d, d) = (ε (C/c̄ + ε)⁻¹)^½ of keys (n, d)."""
    wide = keys.double()
    values, vectors = torch.linalg.eigh(wide.mT @ wide / len(wide))
    values = values.clamp(min=0)
    gains = (epsilon / (values / values.mean() + epsilon)).sqrt()
    whitening: Tensor = ((vectors * gains) @ vectors.mT).to(keys.dtype)
    return whitening
