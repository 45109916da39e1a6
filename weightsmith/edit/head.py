"""Edit the classifier alone: gradient steps held back by elastic weight consolidation, or one closed-form solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.data.images import ImageSet
from weightsmith.delta import Delta, Dense, weights_hash
from weightsmith.edit.preserved import right_ones
from weightsmith.edit.registry import editor
from weightsmith.edit.solver import InverseMoment
from weightsmith.edit.spread import Place, Ridge, edit_batch, finished
from weightsmith.edit.values import TargetOptions, margins
from weightsmith.errors import WeightsmithError
from weightsmith.measure import key_moment
from weightsmith.models import Model, record
from weightsmith.request import ImageRequest, stack_images, targets
from weightsmith.site import Site

_KEY = "classifier.key"


@editor("head")
@dataclass(frozen=True, kw_only=True)
class HeadEdit:
    """Change only the classifier, all requests in one batch.

    Gradient form: Adam minimises the mean cross-entropy of the requests that are below their margin plus
    λ/2 Σ_i F_i (θ_i − θ_i⁰)², F the diagonal Fisher information of the classifier on preserved images (elastic weight
    consolidation, Kirkpatrick et al. 2017, eq. 3). Closed form: the solver's row M = (λC)⁻¹, ρ = 1 on the classifier's
    input features, with the nearest logits that meet every margin as values.

    An absolute EWC weight means nothing on another model: by default F is divided by its mean and weighted by
    `ewc_strength`; `ewc_lambda` (the reference uses 1000) weighs the plain Fisher information instead.

    Attributes:
        head_lr: Adam's step; head_steps: at most so many, fewer when every margin is met.
        ewc_strength, ewc_lambda: weight of the penalty, relative or absolute; `ewc_lambda` wins where both are given.
        closed_form: one solve instead of gradient steps.
        closed_weight: λ of the closed form.
        margin: logit margin by which the wanted class should win.
        rounds: solves of the closed form at most.
    """

    head_lr: float = 0.01
    head_steps: int = 50
    ewc_strength: float = 3.0
    ewc_lambda: float | None = None
    closed_form: bool = False
    closed_weight: float = 30.0
    margin: float = 0.1
    rounds: int = 10

    def solve(
        self, model: Model, requests: Sequence[ImageRequest], preserve: ImageSet, cache_dir: Path | None = None
    ) -> Delta:
        """One batch of edits as a delta on the classifier; `info` has a row a request.

        Raises:
            WeightsmithError: no requests, or nothing preserved.
            HeldOutError: `preserve` is sealed.
        """
        preserved = right_ones(model, preserve)
        if self.closed_form:
            moment = key_moment(model, [Site(_KEY)], preserved, cache_dir)[Site(_KEY)].matrix
            metric = InverseMoment.of(moment, self.closed_weight)
            place = Place("classifier.value", None, metric, moment)
            options = TargetOptions(margin=self.margin)
            delta = edit_batch(model, requests, [place], Ridge(absolute=1.0), options, self.rounds)
        else:
            delta = self._descend(model, requests, preserved)
        info = {"method": "head", "options": asdict(self), "layers": []}
        return Delta(delta.changes, delta.base, info | delta.info)

    def _descend(self, model: Model, requests: Sequence[ImageRequest], preserved: ImageSet) -> Delta:
        name, _, has_bias = model.linear("classifier.value")
        names = [name, name.removesuffix("weight") + "bias"] if has_bias else [name]
        start = [model.module.get_parameter(n).detach() for n in names]
        fisher = _fisher(model, preserved, has_bias)
        if self.ewc_lambda is not None:
            strength = self.ewc_lambda
        else:
            mean = torch.cat([f.flatten() for f in fisher]).mean().clamp(min=1e-30)
            fisher, strength = [f / mean for f in fisher], self.ewc_strength
        features = _features(model, model.preprocess(stack_images(requests), model.device))
        wanted = targets(requests).to(model.device)
        moved = [tensor.clone().requires_grad_() for tensor in start]
        optimizer = torch.optim.Adam(moved, lr=self.head_lr)
        steps = 0
        for _ in range(self.head_steps):
            logits = F.linear(features, *moved)
            short = margins(logits.detach(), wanted) < self.margin
            if not bool(short.any()):
                break
            penalty = sum((f * (now - before) ** 2).sum() for f, now, before in zip(fisher, moved, start, strict=True))
            loss = F.cross_entropy(logits[short], wanted[short]) + 0.5 * strength * penalty
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
        changes = {n: Dense((now.detach() - before).cpu()) for n, now, before in zip(names, moved, start, strict=True)}
        delta = Delta(changes, weights_hash(model))
        with torch.no_grad():
            residuals = (F.linear(features, *moved) - F.linear(features, *start)).norm(dim=1).cpu()
        return finished(model, requests, delta, residuals, {"steps": steps})


@torch.no_grad()
def _features(model: Model, pixels: Tensor) -> Tensor:
    """(n, width) what enters the classifier."""
    return record(model, pixels, [Site(_KEY)])[Site(_KEY)]


@torch.no_grad()
def _fisher(model: Model, images: ImageSet, has_bias: bool, batch_size: int = 256) -> list[Tensor]:
    """Diagonal Fisher information of the classifier's weight (classes, width) and bias (classes,).

    Exact, y ~ p(·|x): E_y[(∂ log p_y / ∂W_cj)²] = p_c (1 − p_c) x_j², because ∂ log p_y / ∂z_c = 1[y = c] − p_c.
    """
    total: list[Tensor] = []
    for pixels, _ in images.batches(batch_size):
        seen = record(model, model.preprocess(pixels, model.device), [Site(_KEY)])
        variance = (p := seen.logits.softmax(-1)) * (1 - p)
        parts = [variance.mT @ seen[Site(_KEY)] ** 2] + ([variance.sum(0)] if has_bias else [])
        total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
    if not total:
        raise WeightsmithError("there are no preserved images to take Fisher information from")
    return [part / len(images) for part in total]
