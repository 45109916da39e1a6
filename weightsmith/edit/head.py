"""Edit the classifier alone: gradient steps held back by elastic weight consolidation, or one closed-form solve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.data.images import ImageSet
from weightsmith.data.texts import TextSet
from weightsmith.delta import Delta, Dense, weights_hash
from weightsmith.edit.closed_form import margin_for
from weightsmith.edit.corrections import Corrections
from weightsmith.edit.metric import InverseMoment
from weightsmith.edit.preserved import Preserved, preserved_moments, right_ones, texts_of
from weightsmith.edit.reading import Contexts, corrections_of, without_repeats
from weightsmith.edit.registry import editor
from weightsmith.edit.spread import Place, Ridge, edit_batch, finished, ridged
from weightsmith.edit.targets import TargetOptions, margins
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, record
from weightsmith.request import Request

_VALUE = "classifier.value"


@editor("head")
@dataclass(frozen=True, kw_only=True)
class HeadEdit:
    """Change only the classifier (a language model's unembedding), all requests in one batch.

    Gradient form: Adam minimises the mean cross-entropy of the requests that are below their margin plus
    λ/2 Σ_i F_i (θ_i − θ_i⁰)², F the diagonal Fisher information of the classifier on what is preserved (elastic weight
    consolidation, Kirkpatrick et al. 2017, eq. 3). Closed form: the solver's row M = (λC)⁻¹, ρ = 1 on the classifier's
    input features, with the nearest logits that meet every margin as values.

    | paper | here |
    |---|---|
    | F | diagonal Fisher information of the classifier's weights on the preserved samples, y drawn from the model's answers |
    | θ_A | the classifier before the edit |
    | λ | `ewc_strength` over the mean of F, or `ewc_lambda` |

    An absolute EWC weight means nothing on another model: by default F is divided by its mean and weighted by
    `ewc_strength`; `ewc_lambda` (the reference uses 1000) weighs the plain Fisher information instead.

    Where a language model ties its unembedding to its embedding, both change; what that does to the answers is measured
    with the rest.

    Attributes:
        head_lr: Adam's step; head_steps: at most so many, fewer when every margin is met.
        ewc_strength, ewc_lambda: weight of the penalty, relative or absolute; `ewc_lambda` wins where both are given.
        closed_form: one solve instead of gradient steps.
        closed_weight: λ of the closed form.
        margin: logit margin by which the wanted answer should win; None takes `MARGIN`.
        rounds: solves of the closed form at most.
    """

    head_lr: float = 0.01
    head_steps: int = 50
    ewc_strength: float = 3.0
    ewc_lambda: float | None = None
    closed_form: bool = False
    closed_weight: float = 30.0
    margin: float | None = None
    rounds: int = 10

    name: ClassVar[str] = "head"

    def solve(
        self, model: Model, requests: Sequence[Request], preserve: Preserved, cache_dir: Path | None = None
    ) -> Delta:
        """One batch of edits as a delta on the classifier; `info` has a row a request.

        Raises:
            WeightsmithError: no requests, requests that contradict each other, or nothing preserved.
            HeldOutError: `preserve` is sealed.
        """
        kept, repeated = without_repeats(requests)
        corrections = corrections_of(model, kept, Contexts(), cache_dir)
        margin = margin_for(model, self.margin)
        if self.closed_form:
            ((_, moment),) = preserved_moments(model, _VALUE, [None], preserve, cache_dir=cache_dir)
            place = Place(_VALUE, None, InverseMoment.of(moment, self.closed_weight), moment)
            solution = ridged(Ridge(absolute=1.0))
            delta = edit_batch(model, corrections, [place], solution, TargetOptions(margin=margin), self.rounds)
        else:
            delta = self._descend(model, corrections, texts_of(preserve), margin)
        info = {"method": self.name, "options": asdict(self), "layers": [], "repeated": repeated}
        return Delta(delta.changes, delta.base, info | delta.info)

    def _descend(self, model: Model, corrections: Corrections, preserve: ImageSet | TextSet, margin: float) -> Delta:
        name, _, has_bias = model.linear(_VALUE)
        names = [name, name.removesuffix("weight") + "bias"] if has_bias else [name]
        start = [model.module.get_parameter(n).detach() for n in names]
        kept = preserve if isinstance(preserve, TextSet) else right_ones(model, preserve)
        fisher = _fisher(model, kept, has_bias)
        if self.ewc_lambda is not None:
            strength = self.ewc_lambda
        else:
            mean = torch.cat([f.flatten() for f in fisher]).mean().clamp(min=1e-30)
            fisher, strength = [f / mean for f in fisher], self.ewc_strength
        features, wanted = corrections.at_head(model)
        moved = [tensor.clone().requires_grad_() for tensor in start]
        optimizer = torch.optim.Adam(moved, lr=self.head_lr)
        steps = 0
        for _ in range(self.head_steps):
            logits = F.linear(features, *moved)
            short = margins(logits.detach(), wanted) < margin
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
            change = (F.linear(features, *moved) - F.linear(features, *start)).norm(dim=1).cpu()
        # A text's answer has a row a token; the norm shown of a request is that of its first.
        residuals = change[: len(corrections)] if len(change) >= len(corrections) else change
        return finished(model, corrections, delta, residuals, {"steps": steps})


def _features(model: Model, preserve: ImageSet | TextSet, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(features (n, width), logits (n, classes)) of what is preserved, batch by batch."""
    key, fitting = model.lookup("classifier.key"), Fitting("what is preserved is read")
    if isinstance(preserve, TextSet):
        sites = [key.at(None), model.lookup(_VALUE).at(None)]

        def read(ids: Tensor) -> tuple[Tensor, Tensor]:
            seen = record(model, ids.to(model.device), sites)
            return seen[sites[0]].flatten(0, 1), seen[sites[1]].flatten(0, 1)

        yield from fitting.each(read, ((ids,) for ids in preserve.batches(batch_size)))
        return

    def looked(pixels: Tensor, _labels: Tensor) -> tuple[Tensor, Tensor]:
        seen = record(model, model.preprocess(pixels, model.device), [key])
        return seen[key].flatten(1), seen.logits

    yield from fitting.each(looked, preserve.batches(batch_size))


@torch.no_grad()
def _fisher(model: Model, preserve: ImageSet | TextSet, has_bias: bool) -> list[Tensor]:
    """Diagonal Fisher information of the classifier's weight (classes, width) and bias (classes,).

    Exact, y ~ p(·|x): E_y[(∂ log p_y / ∂W_cj)²] = p_c (1 − p_c) x_j², because ∂ log p_y / ∂z_c = 1[y = c] − p_c.
    """
    total: list[Tensor] = []
    count = 0
    for features, logits in _features(model, preserve, 8 if isinstance(preserve, TextSet) else 256):
        variance = (p := logits.float().softmax(-1)) * (1 - p)
        parts = [variance.mT @ features.float() ** 2] + ([variance.sum(0)] if has_bias else [])
        total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
        count += len(features)
    if not total:
        raise WeightsmithError(
            "there is nothing preserved to take Fisher information from: preserve at least one sample"
        )
    return [part / count for part in total]
