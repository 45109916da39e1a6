"""The values that edits aim at: the smallest change at the lookup token that makes the wanted class win by a margin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.models import Model, patch
from weightsmith.site import Site


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """How target values are found.

    Attributes:
        margin: by how much the wanted class's logit should lead.
        steps: of Adam at most; lr: step relative to ‖init‖/√width, so that it means the same on any model.
        clamp: ‖δ‖ stays below clamp · ‖init‖.
        weight_decay: weight of ‖δ‖²/‖init‖².
    """

    margin: float = 0.3
    steps: int = 100
    lr: float = 0.05
    clamp: float = 4.0
    weight_decay: float = 1e-3


@dataclass(frozen=True, eq=False)
class TargetValues:
    """Z (E, width), the wanted values, and for each whether its margin is met there (E,)."""

    values: Tensor
    reached: Tensor


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """(E,) logit of the target − largest other logit."""
    target = logits.gather(1, targets[:, None])[:, 0]
    return target - logits.scatter(1, targets[:, None], float("-inf")).amax(1)


def target_values(model: Model, hidden: Tensor, site: Site, targets: Tensor, options: TargetOptions) -> TargetValues:
    """Optimise δ at the lookup token of `site`, so that the pass from there gives the target class.

    Adam minimises NLL(target) + weight_decay · ‖δ‖²/‖init‖² (Meng et al., ROME, 2022, eq. 4; the published code's form
    of the decay) with ‖δ‖ ≤ clamp · ‖init‖ after each step. A sample stops at its margin, and its δ is then shortened
    to the smallest multiple that still meets it: values beyond the margin break neighbours.

    Args:
        hidden: activation at the site (all tokens): (E, tokens, width), or (E, width) where there are no tokens.
        site: "resid.out", from behind which the pass is restarted, or in a network without a residual stream
            "mlp.value".
    """
    assert site.layer is not None
    layer, lookup = site.layer, model.family.cls

    def logits_at(delta: Tensor) -> Tensor:
        if site.kind != "resid.out":
            # What enters the block does not matter: its linear map's output is replaced.
            blank = torch.zeros(len(hidden), _width_in(model, site), device=hidden.device, dtype=hidden.dtype)
            with patch(model, {site: hidden + delta}):
                return model.run_from(layer, blank)
        if lookup is None:
            return model.run_from(layer + 1, hidden + delta)
        moved = hidden.clone()
        moved[:, lookup] = moved[:, lookup] + delta
        return model.run_from(layer + 1, moved)

    init = (hidden if lookup is None else hidden[:, lookup]).detach()
    norms = init.norm(dim=1, keepdim=True)
    unit = norms / init.shape[1] ** 0.5
    scaled = torch.zeros_like(init, requires_grad=True)  # δ / unit: Adam's step is then relative to each sample
    optimizer = torch.optim.Adam([scaled], lr=options.lr)
    moving = torch.ones(len(init), dtype=torch.bool, device=init.device)
    for _ in range(options.steps):
        with torch.enable_grad():
            logits = logits_at(scaled * unit)
            moving &= margins(logits.detach(), targets) < options.margin
            if not bool(moving.any()):
                break
            nll = F.cross_entropy(logits, targets, reduction="none")
            decay = options.weight_decay * ((scaled * unit) ** 2).sum(1) / norms[:, 0] ** 2
            (scaled.grad,) = torch.autograd.grad((nll + decay)[moving].sum(), scaled)
        before = scaled.detach().clone()
        optimizer.step()
        with torch.no_grad():
            length = (scaled * unit).norm(dim=1, keepdim=True)
            scaled.mul_((options.clamp * norms / length.clamp(min=1e-12)).clamp(max=1.0))
            scaled[~moving] = before[~moving]  # Adam's momentum would carry finished samples on
    with torch.no_grad():
        delta = scaled.detach() * unit
        met = margins(logits_at(delta), targets) >= options.margin
        low, high = torch.zeros_like(norms), torch.ones_like(norms)
        for _ in range(12):  # to 2⁻¹² of a δ that is itself small beside ‖init‖
            middle = (low + high) / 2
            enough = (margins(logits_at(middle * delta), targets) >= options.margin)[:, None]
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return TargetValues(init + torch.where(met[:, None], high, torch.ones_like(high)) * delta, met)


def logits_to_reach(logits: Tensor, targets: Tensor, margin: float) -> Tensor:
    """The nearest logits (E, classes), in the Euclidean norm, in which each target leads by the margin.

    The target rises by a and the others that are too high fall by b_j with a = Σ b_j: with gaps
    g_j = z_j + margin − z_t in falling order, the s largest are active where g_s > Σ_{i≤s} g_i / (1 + s).
    """
    at_target = torch.zeros_like(logits, dtype=torch.bool).scatter(1, targets[:, None], True)
    gaps = logits + margin - logits.gather(1, targets[:, None])
    gaps = gaps.masked_fill(at_target, float("-inf"))
    ordered = gaps.sort(1, descending=True).values.clamp(min=-1e30)
    counts = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    rise_if = ordered.cumsum(1) / (1 + counts)
    active = (ordered > rise_if).sum(1, keepdim=True)
    rise = rise_if.gather(1, (active - 1).clamp(min=0)).masked_fill(active == 0, 0.0)
    fall = (gaps - rise).clamp(min=0).masked_fill(active == 0, 0.0)
    return torch.where(at_target, logits + rise, logits - fall)


def _width_in(model: Model, site: Site) -> int:
    name, transposed, _ = model.linear(site.kind, site.layer)
    shape = model.module.get_parameter(name).shape
    return int(shape[0] if transposed else shape[1])
