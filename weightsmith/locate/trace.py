"""Causal tracing: corrupt the input, restore one clean activation, see how much of the decision comes back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.locate.cases import ImageCases
from weightsmith.locate.grids import layers
from weightsmith.locate.metrics import METRICS
from weightsmith.locate.sweep import sweep
from weightsmith.models import Model
from weightsmith.request import ImageRequest, stack_images, targets

TARGETS = ("predicted", "label")


def causal_trace(
    model: Model,
    requests: Sequence[ImageRequest],
    corruption: EmbeddingNoise | None = None,
    *,
    kind: str = "resid.out",
    tokens: str | None = "cls",
    target: str = "predicted",
    metric: str = "probability",
) -> Effects:
    """Effect of restoring the clean activation of each layer in a corrupted run (Meng et al., ROME, 2022, §2.1).

    effect(layer) = mean over noise samples of metric(restored at layer) − metric(corrupted). `sweep` does the same for
    any sites, corruptions and metrics. `info` has the block forwards that it took, and those of full passes.

    | paper | here |
    |---|---|
    | noise ε ~ N(0, ν) on the subject's embeddings, ν = 3σ | `corruption`, on the patches' embeddings |
    | restored state h_i^(l) | output of block l at `tokens` |
    | indirect effect P*,clean h − P* | effect, in `metric` |

    Args:
        requests: images the model gets wrong; each is traced by itself.
        corruption: noise on the patch embeddings; σ is measured over all requests.
        kind: the site restored in each layer: "resid.out", the output of the block, or one part of it, "mlp.out" or
            "attn.out".
        tokens: where in the image, "cls", "patches" or None for all. The output of a block restored at all tokens would
            bring everything back whatever the block; at CLS it tells how much of the decision has arrived there.
        target: the class whose recovery is measured: "predicted", the wrong class that the model gives, so that the
            effect says which layers carry the error; or "label", the wanted class.
        metric: "probability" of the target, "logit_difference" to the other of the two classes, or "kl".

    Raises:
        WeightsmithError: no requests, an unknown metric, target or site, or a model without patch tokens.
    """
    if not requests:
        raise WeightsmithError(
            "there are no misclassified images to trace: the model makes no errors on this part, give "
            "--edit-layers or harder data"
        )
    if metric not in METRICS:
        raise WeightsmithError(f"--trace-metric {metric} is not known: {did_you_mean(metric, METRICS)}")
    if not model.family.has_tokens:
        raise WeightsmithError(
            f"{model.name} has no patch tokens: in a plain MLP restoring a whole layer restores everything; "
            "give --edit-layers"
        )
    cases = error_cases(model, requests, corruption or EmbeddingNoise(), target)
    found = sweep(model, cases, layers(model, kind, tokens), metrics=[metric], min_gap=0.0, title="tracing")
    return found.effects(metric)


def error_cases(
    model: Model, requests: Sequence[ImageRequest], noise: EmbeddingNoise, target: str = "predicted"
) -> ImageCases:
    """Misclassified images with noise on their embeddings; the decision is between the given and the wanted class.

    Raises:
        WeightsmithError: an unknown target, a class beyond the model's.
    """
    if target not in TARGETS:
        raise WeightsmithError(f"--trace-target {target} is not known: {did_you_mean(target, TARGETS)}")
    given, wanted = torch.tensor([request.predicted for request in requests]), targets(requests)
    pair = (given, wanted) if target == "predicted" else (wanted, given)
    names = tuple(request.name for request in requests)
    return ImageCases(model, names, stack_images(requests), noise, *pair, describes=target)
