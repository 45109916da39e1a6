"""What a smaller model writes into its stream is fitted to the whole model's, sublayer after sublayer, without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightsmith.batches import Fitting
from weightsmith.circuit import Kept
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError, WrongWeightsError
from weightsmith.models import Model
from weightsmith.models.hooks import record
from weightsmith.progress import progress
from weightsmith.prune.removal import computes_cls_only, shape_of
from weightsmith.prune.sublayers import ATTENTION, MLP, POSITIONS, Sublayer, last_attention
from weightsmith.site import Site

_BATCH_TOKENS = 2048
"""In a pass, so that activations stay in memory that is at hand."""

MEMORY = 2**31
"""Bytes of streams that are held by default; fewer images are fitted to where they would take more."""


@dataclass(frozen=True, eq=False)
class Streams:
    """The residual stream of a whole model over images.

    Attributes:
        entering: (n, tokens, width) of the first block.
        behind: (n, tokens, width) behind each attention and each MLP, in the order of the network: 2 a block; where a block
            has no such sublayer the one before stands there again.
        positions: (1, tokens, width) the model's position embeddings.
        fingerprint: of the model.
    """

    entering: Tensor
    behind: tuple[Tensor, ...]
    positions: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.entering)


def images_that_fit(model: Model, images: int, memory: int = MEMORY) -> int:
    """Of how many images the streams take at most so many bytes, one at least."""
    each = (2 * model.n_layers + 2) * model.n_tokens * shape_of(model).width * 4
    return max(1, min(images, memory // each))


@torch.no_grad()
def streams(model: Model, images: ImageSet) -> Streams:
    """The whole model's residual stream over images, in one pass; `images_that_fit` says for how many it can be held.

    Raises:
        HeldOutError: the set is sealed.
        WeightsmithError: no images, or a model that computes CLS alone in its last block.
    """
    images.check_open()
    if len(images) == 0:
        raise WeightsmithError("there are no calibration images to fit to: give at least one")
    if computes_cls_only(model):
        raise WeightsmithError(
            f"{model.name} computes CLS alone in its last block: fit with all tokens, cls_only(model, only=False)"
        )
    dtype = next(model.module.parameters()).dtype
    sites = [
        Site(kind, layer)
        for layer in range(model.n_layers)
        for kind in ("attn.out", "resid.out")
        if kind == "resid.out" or model.has(kind, layer)
    ]

    def read(pixels: Tensor, _labels: Tensor) -> list[Tensor]:
        entering = model.embed(model.preprocess(pixels, model.device).to(dtype))
        seen = record(model, entering, sites, start=0)
        places = [entering]
        for layer in range(model.n_layers):
            added = seen.activations.get(Site("attn.out", layer))
            places.append(places[-1] if added is None else places[-1] + added)
            places.append(seen[Site("resid.out", layer)])
        advance(len(entering))
        return places

    size = max(1, _BATCH_TOKENS // model.n_tokens)
    with progress("reading the residual stream", len(images)) as advance:
        pieces = list(Fitting("the residual stream is read").each(read, images.batches(size)))
    whole = [torch.cat([places[i] for places in pieces]) for i in range(len(pieces[0]))]
    positions = model.module.get_parameter(POSITIONS).detach().clone()
    return Streams(whole[0], tuple(whole[1:]), positions, model.fingerprint())


@torch.no_grad()
def refit(
    narrow: Model, kept: Kept, whole: Streams, *, fingerprint: str, ridge: float = 1e-3, cls_weight: float = 0.5
) -> None:
    """Fit, in place, the map behind the keys of every sublayer that stays, first to last, to the whole model's stream.

    With keys k of the smaller network over the images, computed behind what was fitted before, and the stream x that enters
    the sublayer there, W and b minimise

        Σ w ‖x + W k + b − x*‖² + λ Σw ‖W − W₀‖²,    λ = ridge · mean diag Cov(k),

    where x* is the whole model's stream just before the next sublayer that stays, so that what was removed in between, and
    what has gone wrong so far, is made good as far as these keys can. W₀ is the map as it comes, folded by `removed`.
    Ridge regression one layer after another, as reconstruction in He et al. (2017, section 3.2) and in SparseGPT (2023).

    Args:
        narrow: what `removed` gave, all tokens computed in its last block; its weights change.
        kept: of the whole model, what `narrow` keeps.
        whole: the whole model's streams. fingerprint: of the whole model.
        ridge, cls_weight: as for `removed`; from the last attention on CLS alone is fitted.

    Raises:
        WrongWeightsError: streams of another model.
        WeightsmithError: a ridge that is not positive, keys that are no finite numbers.
    """
    if whole.fingerprint != fingerprint:
        raise WrongWeightsError("these streams are of other weights: read those of the model that is narrowed")
    if not 0 < ridge < float("inf"):
        raise WeightsmithError(f"ridge={ridge} cannot fit: give a positive number, 1e-3 say")
    read_until = last_attention(kept)
    stays = [(layer, half) for layer in kept.blocks for half in (0, 1) if (kept.heads, kept.neurons)[half][layer]]
    # The position embeddings may hold constants of sublayers that went.
    stream = whole.entering + (narrow.module.get_parameter(POSITIONS) - whole.positions)
    for place, (layer, half) in enumerate(stays):
        upto = stays[place + 1] if place + 1 < len(stays) else (len(kept.heads), 0)
        wanted = whole.behind[2 * upto[0] + upto[1] - 1]
        block = narrow.blocks[kept.blocks.index(layer)]
        weight_of_cls = cls_weight if layer < read_until else 1.0
        stream = _fit(block, (ATTENTION, MLP)[half], stream, wanted, weight_of_cls, ridge)


def _fit(block: nn.Module, sublayer: Sublayer, stream: Tensor, wanted: Tensor, cls: float, ridge: float) -> Tensor:
    """Fit one map and return the stream behind its sublayer, which it is given before it."""
    target = block.get_submodule(sublayer.columns)
    assert isinstance(target, nn.Linear)
    tokens = stream.shape[1]
    rows = 1 if cls == 1 else tokens
    share = torch.full((tokens,), (1 - cls) / tokens, dtype=stream.dtype, device=stream.device)
    share[0] += cls
    root = share[:rows, None].sqrt()
    pieces = torch.split(stream, max(1, _BATCH_TOKENS // tokens))
    keys = [_keys(block, sublayer, piece) for piece in pieces]
    width = target.in_features
    total = torch.zeros(width + 1, width + 1 + stream.shape[2], dtype=torch.float64)
    for some, before, after in zip(keys, pieces, torch.split(wanted, len(pieces[0])), strict=True):
        one = torch.cat([some[:, :rows], torch.ones_like(some[:, :rows, :1])], -1) * root
        both = torch.cat([one, (after - before)[:, :rows] * root], -1)
        total += (one.flatten(0, 1).mT @ both.flatten(0, 1)).cpu().double()
    if not bool(total.isfinite().all()):
        raise WeightsmithError(
            f"the keys at {sublayer.columns} hold NaN or infinity: check the model's weights, and load it in float32"
        )
    weight, bias = _solved(total / float(len(stream)), target.weight.detach().cpu().double(), ridge)
    target.weight.copy_(weight)
    target.bias.copy_(bias)
    return torch.cat([piece + target(some) for piece, some in zip(pieces, keys, strict=True)])


def _solved(moment: Tensor, first: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """(o, d) W and (o,) b from the weighted mean (d + 1, d + 1 + o) of (k, 1) (k, 1, t)ᵀ, near the first W."""
    width = len(moment) - 1
    mean_key, mean_wanted = moment[width, :width], moment[width, width + 1 :]
    covariance = moment[:width, :width] - torch.outer(mean_key, mean_key)
    cross = moment[:width, width + 1 :] - torch.outer(mean_key, mean_wanted)
    scale = float(covariance.diagonal().mean())
    if not scale > 0:  # keys that never vary explain nothing
        return first, mean_wanted - first @ mean_key
    penalty = ridge * scale
    regular = covariance + penalty * torch.eye(width, dtype=covariance.dtype)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if int(failed):
        raise WeightsmithError(
            f"the kept keys depend on one another and ridge={ridge:g} does not part them: give a larger ridge, 1e-3 say, "
            "or more calibration images"
        )
    weight = torch.cholesky_solve(cross + penalty * first.mT, factor).mT
    return weight, mean_wanted - weight @ mean_key


def _keys(block: nn.Module, sublayer: Sublayer, stream: Tensor) -> Tensor:
    """(n, tokens, d) what the map of the sublayer reads."""
    kept: list[Tensor] = []
    handle = block.get_submodule(sublayer.columns).register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    try:
        block.get_submodule(sublayer.columns.partition(".")[0])(block.get_submodule(sublayer.norm)(stream))
    finally:
        handle.remove()
    return kept[0]
