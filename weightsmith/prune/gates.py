"""Gates on units: one forward and backward pass gives the slope of a function of the logits in every unit's gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.circuit import Kept, Shape, Unit
from weightsmith.data.images import ImageSet
from weightsmith.models import Model, patch
from weightsmith.progress import progress
from weightsmith.prune.statistics import KeyStatistics
from weightsmith.prune.sublayers import ATTENTION, MLP, last_attention
from weightsmith.site import Site

GRADIENT_METHODS = ("gauss-newton", "task-loss", "eap", "eap-ig")

_BATCH_TOKENS = 2048
_FAR = 0.8
"""Where the path of eap-ig ends: far from the model, slopes say little of what one unit does in it."""


@dataclass(frozen=True, eq=False)
class Gates:
    """Units of one network as sums of the entries of its keys.

    Attributes:
        means: for each site of keys the (d,) mean that stands for what is removed; the sites' entries, side by side in this
            order, are what `entry` counts.
        entry, unit: (pairs,) which entry belongs to which unit.
        count: number of units.
    """

    means: Mapping[Site, Tensor]
    entry: Tensor
    unit: Tensor
    count: int

    @classmethod
    def of(cls, whole: Shape, units: Sequence[Unit], statistics: KeyStatistics, cls_weight: float) -> Gates:
        """Gates of these units, with the means that `removed` folds with where nothing else is removed."""
        last = last_attention(Kept.everything(whole))
        means: dict[Site, Tensor] = {}
        first: dict[Site, int] = {}
        for layer in range(len(whole.heads)):
            for sublayer, there in ((ATTENTION, whole.heads[layer]), (MLP, whole.neurons[layer])):
                if there:
                    site = Site(sublayer.keys, layer)
                    first[site] = sum(len(mean) for mean in means.values())
                    means[site] = statistics.at(sublayer.keys, layer, cls_weight if layer < last else 1.0).mean
        entries: list[Tensor] = []
        for unit in units:
            heads, neurons = Site(ATTENTION.keys, unit.layer), Site(MLP.keys, unit.layer)
            if unit.kind == "head":
                begin = first[heads] + unit.members[0] * whole.head_width
                entries.append(torch.arange(begin, begin + whole.head_width))
            elif unit.kind == "neurons":
                entries.append(first[neurons] + torch.tensor(unit.members))
            else:
                sites = {"block": (heads, neurons), "attn": (heads,), "mlp": (neurons,)}[unit.kind]
                there_too = [torch.arange(len(means[site])) + first[site] for site in sites if site in means]
                entries.append(torch.cat(there_too))
        owner = torch.repeat_interleave(torch.arange(len(units)), torch.tensor([len(one) for one in entries]))
        return cls(means, torch.cat(entries), owner, len(units))

    def summed(self, entries: Tensor) -> Tensor:
        """(…, units) sums over each unit's entries of (…, entries) values."""
        given = torch.zeros(*entries.shape[:-1], self.count, dtype=entries.dtype)
        return given.index_add_(-1, self.unit, entries[..., self.entry])

    def slopes(
        self, model: Model, inputs: Tensor, gate: float, functions: Callable[[Tensor], Sequence[Tensor]]
    ) -> list[Tensor]:
        """∂f/∂m_u = Σ_tokens g · (z − μ) for each function f of the logits, with every gate at the same value.

        Args:
            inputs: preprocessed images (n, channels, size, size).
            functions: (n, classes) logits → several (n,), each image's its own.

        Returns:
            (n, units) float64, one a function.
        """
        apart: dict[Site, Tensor] = {}
        gated: dict[Site, Tensor] = {}

        def close(site: Site) -> Callable[[Tensor], Tensor]:
            def gate_at(keys: Tensor) -> Tensor:
                mean = self.means[site].to(keys)
                apart[site] = (keys - mean).detach()
                gated[site] = mean + gate * (keys - mean)
                return gated[site]

            return gate_at

        with torch.enable_grad(), patch(model, {site: close(site) for site in self.means}):
            wanted = list(functions(model.logits(inputs)))
            found: list[Tensor] = []
            for place, values in enumerate(wanted):
                keys = [gated[site] for site in self.means]
                gradients = torch.autograd.grad(values.sum(), keys, retain_graph=place + 1 < len(wanted))
                pairs = zip(gradients, (apart[site] for site in self.means), strict=True)
                entries = torch.cat([(one * other).sum(1).double().cpu() for one, other in pairs], -1)
                found.append(self.summed(entries))
        return found


def scores_by_gradient(
    model: Model, images: ImageSet, gates: Gates, method: str, steps: int, samples: int, seed: int
) -> tuple[Tensor, float]:
    """(units,) scores by one of `GRADIENT_METHODS`, and the passes that they took."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.module.parameters()).dtype
    total = torch.zeros(gates.count, dtype=torch.float64)

    def scored(pixels: Tensor, labels: Tensor) -> Tensor:
        inputs = model.preprocess(pixels, model.device).to(dtype)
        if method == "gauss-newton":
            own = generator.clone_state()
            found = _gauss_newton(model, inputs, gates, samples, own)
            generator.set_state(own.get_state())  # only now: a pass that memory did not hold draws the same signs again
            return found
        if method == "eap-ig":
            return _integrated(model, inputs, gates, steps)
        slope = _loss(model, inputs, labels, gates)
        return slope.abs() if method == "task-loss" else -slope

    batches = images.batches(max(1, _BATCH_TOKENS // model.n_tokens))
    with progress(f"scoring by {method}", len(images)) as advance:
        for each in Fitting("units are scored").each(scored, batches):
            total += each.sum(0)
            advance(len(each))
    drawn = min(samples, model.n_classes)
    spent = {"gauss-newton": 1 + 2 * drawn, "eap-ig": 1 + 3 * steps}.get(method, 3)
    return total / len(images), float(spent)


def _gauss_newton(model: Model, inputs: Tensor, gates: Gates, samples: int, generator: torch.Generator) -> Tensor:
    """(n, units) ½ E_y~p [(∂ log p_y / ∂m_u)²].

    The square of the slope of Σ_y ε_y √p_y log p_y, p held fixed and ε of independent signs, has this mean, and a spread
    of at most √2 of it. With a class drawn from p instead, a model that is sure of itself draws the classes that say
    something once in hundreds of images.
    """
    exact = samples >= model.n_classes

    def functions(logits: Tensor) -> list[Tensor]:
        said = logits.double().log_softmax(-1)
        parts = said.detach().mul(0.5).exp() * said
        if exact:
            return list(parts.unbind(-1))
        bits = torch.randint(0, 2, (samples, *parts.shape), generator=generator, dtype=torch.int8)
        return [(parts * (2 * one - 1).to(parts)).sum(-1) for one in bits]

    squares = torch.stack(gates.slopes(model, inputs, 1.0, functions)).square()
    return 0.5 * (squares.sum(0) if exact else squares.mean(0))


def _loss(model: Model, inputs: Tensor, labels: Tensor, gates: Gates) -> Tensor:
    """(n, units) slopes of the cross-entropy with the labels."""
    wanted = labels.to(inputs.device)
    return gates.slopes(
        model, inputs, 1.0, lambda logits: [F.cross_entropy(logits.double(), wanted, reduction="none")]
    )[0]


def _integrated(model: Model, inputs: Tensor, gates: Gates, steps: int) -> Tensor:
    """(n, units) size of ∂KL/∂m_u integrated over all gates from 1 to `_FAR` and scaled to a path of length 1."""
    with torch.no_grad():
        clean = model.logits(inputs).double().log_softmax(-1)

    def divergence(logits: Tensor) -> list[Tensor]:
        return [(clean.exp() * (clean - logits.double().log_softmax(-1))).sum(-1)]

    points = [1 - (1 - _FAR) * (step + 0.5) / steps for step in range(steps)]
    return torch.stack([gates.slopes(model, inputs, point, divergence)[0] for point in points]).mean(0).abs()
