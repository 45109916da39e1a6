"""Corrections of images: read at CLS (or the pooled position), alone or averaged over augmented views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.data.views import random_view
from weightsmith.edit.corrections import Goal, Measured
from weightsmith.edit.targets import TargetOptions, TargetValues, descend, logits_to_reach, margins
from weightsmith.models import Model, patch, record
from weightsmith.request import ImageRequest, stack_images, targets
from weightsmith.site import Site


@dataclass(frozen=True, eq=False)
class ImageCorrections:
    """Images and the classes that they should get.

    Attributes:
        requests: E of them.
        views: how many augmented views stand beside each image; keys are averaged over all of them.
        view: which kind of view, see `weightsmith.data.views`.
        seed: of the views.
        read: (views + 1, E, …) what stands for the images where a model does not begin at its images; None is `images`
            themselves.
    """

    requests: Sequence[ImageRequest]
    views: int = 0
    view: str = "light"
    seed: int = 0
    read: Tensor | None = None

    def __len__(self) -> int:
        return len(self.requests)

    def part(self, first: int, end: int) -> ImageCorrections:
        """The requests from `first` up to `end`."""
        return replace(
            self, requests=self.requests[first:end], read=None if self.read is None else self.read[:, first:end]
        )

    @cached_property
    def images(self) -> Tensor:
        """(views + 1, E, channels, height, width) uint8, the images themselves first; or what stands for them."""
        if self.read is not None:
            return self.read
        own = stack_images(self.requests)
        return torch.stack([own, *(random_view(own, self.view, self.seed * 1009 + k) for k in range(self.views))])

    @cached_property
    def targets(self) -> Tensor:
        """(E,) wanted classes."""
        return targets(self.requests)

    @torch.no_grad()
    def leads(self, model: Model) -> Tensor:
        return margins(self._logits(model), self.targets)

    @torch.no_grad()
    def measure(self, model: Model, kind: str, layer: int | None, goal: Goal) -> Measured:
        keys, present = self._at_lookup(model, Site(model.key_of(kind), layer), Site(goal.kind, goal.layer))
        return Measured(keys.mean(0), keys[0], present.mean(0))

    @torch.no_grad()
    def in_contexts(self, model: Model, key: Site, value: Site) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self._at_lookup(model, key, value)
        return keys.flatten(0, 1), values.flatten(0, 1), self.targets.repeat(len(keys))

    def _at_lookup(self, model: Model, key: Site, value: Site) -> tuple[Tensor, Tensor]:
        """(views + 1, E, d) keys and (views + 1, E, width) values."""
        found = self._recorded(model, [model.lookup(site.kind, site.layer) for site in (key, value)])
        keys, values = (torch.stack([view.flatten(1) for view in views]) for views in found)
        return keys, values

    @torch.no_grad()
    def _recorded(self, model: Model, sites: Sequence[Site]) -> list[tuple[Tensor, ...]]:
        """What is at each site, (E, …) for the images themselves and for each view of them."""

        def read(images: Tensor) -> list[Tensor]:
            seen = record(model, model.preprocess(images, model.device), sites)
            return [seen[site] for site in sites]

        fitting = self._fitting("images to correct are read")
        views = [
            [one[0] if len(one) == 1 else torch.cat(one) for one in zip(*fitting.each(read, [(images,)]), strict=True)]
            for images in self.images
        ]
        return list(zip(*views, strict=True))

    def columns(self, layer: int | None) -> list[str]:  # noqa: ARG002  (an image has one row everywhere)
        return [request.name for request in self.requests]

    def wanted(self, model: Model, goal: Goal, options: TargetOptions) -> TargetValues:
        if goal.layer is None:
            wanted = self.targets.to(model.device)
            logits = torch.stack([self._logits(model, k) for k in range(len(self.images))]).mean(0).to(model.device)
            return TargetValues(
                logits_to_reach(logits, wanted, options.margin), torch.ones(len(self), dtype=torch.bool)
            )
        fitting = self._fitting("values are descended")
        # No request's value depends on another's, so fewer at a time come to the same.
        parts = fitting.parts(lambda which: self._only(which)._descended(model, goal, options), len(self))
        return TargetValues.joined(parts)

    def _only(self, which: slice) -> ImageCorrections:
        """Some of the requests, with the views that they have among all."""
        return replace(self, requests=self.requests[which], read=self.images[:, which])

    def _descended(self, model: Model, goal: Goal, options: TargetOptions) -> TargetValues:
        wanted = self.targets.to(model.device)
        start = Site("resid.out" if goal.kind == "resid.out" else "resid.in", goal.layer)
        entering, present = self._recorded(model, [start, model.lookup(goal.kind, goal.layer)])

        def evaluate(delta: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            losses, leads = [], []
            for hidden in entering:
                logits = logits_with(model, goal, hidden[which], delta.to(hidden.dtype)).float()
                losses.append(F.cross_entropy(logits, wanted[which], reduction="none"))
                leads.append(margins(logits, wanted[which]))
            return torch.stack(losses).mean(0), torch.stack(leads).amin(0)

        return descend(torch.stack([view.flatten(1) for view in present]).mean(0), evaluate, options)

    def at_head(self, model: Model) -> tuple[Tensor, Tensor]:
        (features,) = self._recorded(model, [model.lookup("classifier.key")])
        return torch.cat(features).flatten(1), self.targets.to(model.device).repeat(len(self.images))

    def loss(self, model: Model, which: Tensor) -> Tensor:
        losses = []
        for images in self.images:
            logits = model.logits(model.preprocess(images[which], model.device)).float()
            losses.append(F.cross_entropy(logits, self.targets[which].to(logits.device), reduction="none"))
        return torch.stack(losses).mean(0)

    def answers(self, model: Model) -> list[dict[str, Any]]:
        logits = self._logits(model)
        found = zip(
            logits.argmax(1).tolist(), margins(logits, self.targets).tolist(), self.targets.tolist(), strict=True
        )
        return [{"answer": answer, "margin": lead, "success": answer == target} for answer, lead, target in found]

    def rows(self) -> list[dict[str, Any]]:
        return [{"sample": request.name, "target": request.target} for request in self.requests]

    @torch.no_grad()
    def _logits(self, model: Model, view: int = 0) -> Tensor:
        def answered(images: Tensor) -> Tensor:
            return model.logits(model.preprocess(images, model.device)).float().cpu()

        asked = self._fitting("images to correct are asked").each(answered, [(self.images[view],)])
        return torch.cat(list(asked))

    def _fitting(self, what: str) -> Fitting:
        """How many at a time memory holds, which is found once for all passes over these requests."""
        return self._fits.setdefault(what, Fitting(what))

    @cached_property
    def _fits(self) -> dict[str, Fitting]:
        return {}


def logits_with(model: Model, goal: Goal, hidden: Tensor, delta: Tensor) -> Tensor:
    """Logits when δ (E, width) is added at the lookup token of the goal.

    Args:
        hidden: what leaves the goal's block where the goal is "resid.out", else what enters it.
    """
    assert goal.layer is not None

    def moved(activation: Tensor) -> Tensor:
        at = model.family.cls
        if at is None:
            return activation + delta
        added = activation.clone()
        added[:, at] = added[:, at] + delta
        return added

    if goal.kind == "resid.out":
        return model.run_from(goal.layer + 1, moved(hidden))
    with patch(model, {Site(goal.kind, goal.layer): moved}):
        return model.run_from(goal.layer, hidden)
