"""The values that edits aim at: δ at the lookup token, descended until the wanted answer wins, and no further."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """How target values are found.

    Attributes:
        margin: by how much the wanted answer's logit should lead, at each of its tokens.
        steps: of Adam; the last one only looks, so there are at most steps − 1 updates.
        lr: step relative to ‖init‖/√width, so that it means the same on any model.
        v_lr: the papers' absolute step; wins over `lr` where it is given.
        clamp: ‖δ‖ stays below clamp · ‖init‖.
        weight_decay: weight of ‖δ‖/‖init‖², the published form.
        kl_factor: weight of KL(now ‖ before) on a neutral prompt about the subject; language models only.
        stop_loss: the papers' rule: stop below this loss instead of at the margin, and do not shorten δ.
    """

    margin: float = 0.3
    steps: int = 100
    lr: float = 0.05
    v_lr: float | None = None
    clamp: float = 4.0
    weight_decay: float = 0.0
    kl_factor: float = 0.0625
    stop_loss: float | None = None


@dataclass(frozen=True, eq=False)
class TargetValues:
    """Z (E, width), the wanted values, and for each whether its margin is met there (E,)."""

    values: Tensor
    reached: Tensor

    @classmethod
    def joined(cls, parts: Iterable[TargetValues]) -> TargetValues:
        """Those of several batches of requests, one after another."""
        values, reached = zip(*((part.values, part.reached) for part in parts), strict=True)
        return cls(torch.cat(values), torch.cat(reached))


Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From δ (n, width) of the requests at `which` (n,) to their losses (n,), and by how much their answers lead (n,)."""


def descend(init: Tensor, evaluate: Evaluate, options: TargetOptions) -> TargetValues:
    """Optimise δ for every request at once (Meng et al., ROME, 2022, eq. 4).

    Adam minimises loss + weight_decay · ‖δ‖/‖init‖² with ‖δ‖ ≤ clamp · ‖init‖ after each step. A request stops at its
    margin, and its δ is then shortened to the smallest multiple that still meets it: values beyond the margin break
    neighbours.

    Args:
        init: (E, width) the present values.
    """
    init = init.detach().float()
    norms = init.norm(dim=1, keepdim=True).clamp(min=1e-12)
    unit = norms / init.shape[1] ** 0.5 if options.v_lr is None else torch.ones_like(norms)
    scaled = torch.zeros_like(init, requires_grad=True)  # δ / unit: Adam's step is then relative to each request
    optimizer = torch.optim.Adam([scaled], lr=options.lr if options.v_lr is None else options.v_lr)
    moving = torch.ones(len(init), dtype=torch.bool, device=init.device)
    met = torch.zeros_like(moving)
    for step in range(options.steps):
        which = torch.nonzero(moving).flatten()  # those that are done cost nothing more
        with torch.enable_grad():
            delta = (scaled * unit)[which]
            loss, lead = evaluate(delta, which)
            if options.weight_decay:
                loss = loss + options.weight_decay * _length(delta) / norms[which, 0] ** 2
            met[which] = lead.detach() >= options.margin
            going = ~met[which] if options.stop_loss is None else loss.detach() >= options.stop_loss
            moving[which] = going
            if not bool(going.any()) or step == options.steps - 1:
                break
            (scaled.grad,) = torch.autograd.grad(loss[going].sum(), scaled)
        before = scaled.detach().clone()
        optimizer.step()
        with torch.no_grad():
            length = (scaled * unit).norm(dim=1, keepdim=True)
            scaled.mul_((options.clamp * norms / length.clamp(min=1e-12)).clamp(max=1.0))
            scaled[~moving] = before[~moving]  # Adam's momentum would carry finished requests on
    with torch.no_grad():
        delta = scaled.detach() * unit
        if options.stop_loss is None and bool(met.any()):
            which = torch.nonzero(met).flatten()
            delta[which] = _shortened(delta[which], which, evaluate, options.margin)
        return TargetValues(init + delta, met)


def _length(delta: Tensor) -> Tensor:
    """(E,) ‖δ‖, with a gradient of zero where δ is zero."""
    squares = (delta**2).sum(1)
    return torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt() * (squares > 0)


def _shortened(delta: Tensor, which: Tensor, evaluate: Evaluate, margin: float) -> Tensor:
    """The smallest multiple of each δ, which meets the margin, that still does, to 2⁻⁸ of it."""
    low, high = torch.zeros_like(delta[:, :1]), torch.ones_like(delta[:, :1])
    for _ in range(8):
        middle = (low + high) / 2
        enough = (evaluate(middle * delta, which)[1] >= margin)[:, None]
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high * delta


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) logit of the target − largest other logit, of logits (n, classes)."""
    target = logits.gather(1, targets[:, None])[:, 0]
    return target - logits.scatter(1, targets[:, None], float("-inf")).amax(1)


def logits_to_reach(logits: Tensor, targets: Tensor, margin: float) -> Tensor:
    """The nearest logits (n, classes), in the Euclidean norm, in which each target leads by the margin.

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
