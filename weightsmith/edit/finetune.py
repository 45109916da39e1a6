"""Plain fine-tuning on the requests: the baseline that every editor has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from weightsmith.data.images import ImageSet
from weightsmith.delta import Delta, Dense, weights_hash
from weightsmith.edit.registry import editor
from weightsmith.edit.spread import finished
from weightsmith.edit.values import margins
from weightsmith.models import Model
from weightsmith.request import ImageRequest, stack_images, targets


@editor("finetune")
@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Adam on every weight, cross-entropy of the requests alone, until each wanted class leads by the margin.

    Attributes:
        lr: Adam's step; steps: at most so many.
        margin: logit margin by which the wanted class should win.
    """

    lr: float = 1e-4
    steps: int = 100
    margin: float = 0.1

    def solve(
        self,
        model: Model,
        requests: Sequence[ImageRequest],
        preserve: ImageSet,  # noqa: ARG002  (plain fine-tuning preserves nothing: that is its point here)
        cache_dir: Path | None = None,  # noqa: ARG002
    ) -> Delta:
        """One dense delta over all weights. Raises `WeightsmithError` when there are no requests."""
        pixels = model.preprocess(stack_images(requests), model.device)
        wanted = targets(requests).to(model.device)
        parameters = {n: p for n, p in model.module.named_parameters() if p.is_floating_point()}
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        asked = {name: parameter.requires_grad for name, parameter in parameters.items()}
        optimizer = torch.optim.Adam(parameters.values(), lr=self.lr)
        base, steps = weights_hash(model), 0
        try:
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            for _ in range(self.steps):
                logits = model.logits(pixels)
                if bool((margins(logits.detach(), wanted) >= self.margin).all()):
                    break
                optimizer.zero_grad()
                F.cross_entropy(logits, wanted).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                steps += 1
            changes = {n: Dense((p.detach() - before[n]).cpu()) for n, p in parameters.items()}
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(before[name])
                    parameter.grad = None
                    parameter.requires_grad_(asked[name])
        info = {"method": "finetune", "options": asdict(self), "layers": [], "steps": steps}
        return finished(model, requests, Delta(changes, base), torch.zeros(len(requests)), info)
