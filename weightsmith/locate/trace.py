"""Causal tracing: corrupt the input, restore one clean activation, see how much of the decision comes back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightsmith.data.views import EmbeddingNoise
from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.models import Model, Recording, count_blocks, patch, record
from weightsmith.progress import progress
from weightsmith.request import Request, stack_images
from weightsmith.site import Site

METRICS = ("probability", "logit_difference")
TARGETS = ("predicted", "label")


@torch.no_grad()
def causal_trace(
    model: Model,
    requests: Sequence[Request],
    corruption: EmbeddingNoise | None = None,
    *,
    kind: str = "resid.out",
    tokens: str | None = "cls",
    target: str = "predicted",
    metric: str = "probability",
) -> Effects:
    """Effect of restoring the clean activation of each layer in a corrupted run (Meng et al., ROME, 2022, §2.1).

    effect(layer) = mean over noise samples of metric(restored at layer) − metric(corrupted).

    The corrupted run of each image is made once; every site restarts behind its own layer from what that run left, so a
    sweep over L layers costs L(L−1)/2 block forwards a noise sample instead of L². `info` has both counts.

    Args:
        requests: images the model gets wrong; each is traced by itself.
        corruption: noise on the patch embeddings; σ is measured over all requests.
        kind: the site restored in each layer: "resid.out", the output of the block, or one part of it, "mlp.out" or
            "attn.out".
        tokens: where in the image, "cls", "patches" or None for all. The output of a block restored at all tokens would
            bring everything back whatever the block; at CLS it tells how much of the decision has arrived there.
        target: the class whose recovery is measured: "predicted", the wrong class that the model gives, so that the
            effect says which layers carry the error; or "label", the wanted class.
        metric: "probability" of the target, or "logit_difference": its logit minus that of the other of the two.

    Raises:
        WeightsmithError: no requests, an unknown metric, target or site, or a model without patch tokens.
    """
    corruption = corruption or EmbeddingNoise()
    if not requests:
        raise WeightsmithError("there are no misclassified images to trace: the model makes no errors on this part")
    if metric not in METRICS:
        raise WeightsmithError(f"--trace-metric {metric} is not known: {did_you_mean(metric, METRICS)}")
    if target not in TARGETS:
        raise WeightsmithError(f"--trace-target {target} is not known: {did_you_mean(target, TARGETS)}")
    if not model.family.has_tokens:
        raise WeightsmithError(
            f"{model.name} has no patch tokens: in a plain MLP restoring a whole layer restores everything; "
            "give --edit-layers"
        )
    beyond = [r.name for r in requests if not 0 <= max(r.target, r.predicted) < model.n_classes]
    if beyond:
        raise WeightsmithError(f"request {beyond[0]} names a class beyond the {model.n_classes} of {model.name}")
    sites = tuple(Site(kind, layer, tokens=tokens) for layer in range(model.n_layers))
    for site in sites:
        model.bind(site)
    first = Site("resid.in", 0)
    patches = slice(model.family.special, None)
    effects: list[Tensor] = []
    with count_blocks(model) as count, progress("tracing", len(requests)) as advance:
        clean = _clean_runs(model, stack_images(requests), (first, *sites))
        sigma = float(clean[first][:, patches].std())
        ends: dict[str, list[float]] = {"clean": [], "corrupted": []}
        for index, request in enumerate(requests):
            pair = (request.predicted, request.target)
            pair = pair if target == "predicted" else pair[::-1]
            embedded = clean[first][index]
            hidden = embedded.repeat(corruption.samples, 1, 1)
            hidden[:, patches] += corruption.draw(embedded[patches], sigma, index)
            corrupted = record(model, hidden, _needed(model, sites), start=0)
            base = _metric(corrupted.logits, pair, metric)
            restored = [_restored(model, site, corrupted, clean[site][index]) for site in sites]
            effects.append(torch.stack([_metric(logits, pair, metric) for logits in restored]) - base)
            ends["clean"].append(float(_metric(clean.logits[index : index + 1], pair, metric)))
            ends["corrupted"].append(float(base))
            advance()
        done = count()
    naive = len(requests) * model.n_layers * (1 + corruption.samples * (1 + model.n_layers))
    info = {
        "corruption": {"noise": corruption.scale, "samples": corruption.samples, "seed": corruption.seed},
        "sigma": sigma,
        "target": target,
        "target_classes": [r.predicted if target == "predicted" else r.target for r in requests],
        "block_forwards": done,
        "naive_block_forwards": naive,
        **ends,
    }
    return Effects(sites, torch.stack(effects).double().cpu(), tuple(r.name for r in requests), metric, info)


def _clean_runs(model: Model, pixels: Tensor, sites: Sequence[Site], batch: int = 64) -> Recording:
    runs = [record(model, model.preprocess(piece, model.device), sites) for piece in torch.split(pixels, batch)]
    joined = {site: torch.cat([run[site] for run in runs]) for site in sites}
    return Recording(torch.cat([run.logits for run in runs]), joined)


def _needed(model: Model, sites: Sequence[Site]) -> list[Site]:
    """What a corrupted run must leave behind, so that every site can be restored without running it again."""
    found: list[Site] = []
    for site in sites:
        if site.kind == "resid.out":
            found.append(Site("resid.out", site.layer))
        elif _adds_to_residual(model, site):
            found += [Site("resid.out", site.layer), Site("resid.mid", site.layer)]
        else:
            found.append(Site("resid.in", site.layer))
    return found


def _adds_to_residual(model: Model, site: Site) -> bool:
    return site.kind == "mlp.out" and "resid.mid" in model.family.sites


def _restored(model: Model, site: Site, corrupted: Recording, value: Tensor) -> Tensor:
    """Logits (samples, classes) of the corrupted run with the clean `value` (tokens, width) at the site.

    The residual stream behind block l is what the MLP adds plus the stream before it, so restoring either needs no pass
    through block l: the run starts again at l + 1. Any other site starts again at its own block.
    """
    assert site.layer is not None
    value = value.expand(len(corrupted.logits), *value.shape)
    if site.kind == "resid.out" or _adds_to_residual(model, site):
        stream = model.bind(Site("resid.out", site.layer, tokens=site.tokens))
        if site.kind == "mlp.out":
            value = value + stream.read(corrupted[Site("resid.mid", site.layer)])
        return model.run_from(site.layer + 1, stream.write(corrupted[Site("resid.out", site.layer)], value))
    with patch(model, {site: value}):
        return model.run_from(site.layer, corrupted[Site("resid.in", site.layer)])


def _metric(logits: Tensor, pair: tuple[int, ...], metric: str) -> Tensor:
    """The metric of the first class of the pair, mean over noise samples; the second is what it is compared with."""
    if metric == "probability":
        return logits.softmax(-1)[:, pair[0]].mean()
    return (logits[:, pair[0]] - logits[:, pair[1]]).mean()
