"""The network with some of its heads and neurons only, the others held at their mean on the way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.circuit import Kept
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError, WrongWeightsError
from weightsmith.models import Model, patch
from weightsmith.models.hooks import Patch
from weightsmith.prune.removal import shape_of
from weightsmith.prune.statistics import KeyStatistics
from weightsmith.site import Site

_BATCH = 64


@torch.no_grad()
def run_units(model: Model, images: ImageSet, kept: Kept, mean: KeyStatistics | None) -> Tensor:
    """(n, classes) logits with the keys of the heads and neurons that are not kept replaced by their mean.

    The mean is over all tokens, and from the last attention that is kept on over CLS, as in `removed` with `fold="mean"` and
    `cls_weight=0`, whose smaller model gives the same logits. Unlike there nothing at all may be kept.

    Args:
        mean: of the model's keys over calibration images; None where everything is kept.

    Raises:
        HeldOutError: the set is sealed.
        WrongWeightsError: statistics of another model.
        WeightsmithError: no ViT, no images, heads or neurons that the model does not have, or no mean where one is needed.
    """
    whole = shape_of(model)
    kept.shape(whole)
    if len(images) == 0:
        raise WeightsmithError(f"the {images.part} set holds no images: a circuit is run on at least one")
    if mean is None and kept != Kept.everything(whole):
        raise WeightsmithError(
            "what is not kept is held at its mean: give key_statistics of the model over some images"
        )
    if mean is not None and mean.fingerprint != model.fingerprint():
        raise WrongWeightsError(
            f"these key statistics are of other weights than {model.name}'s: take them of the model that is run"
        )
    patches: dict[Site, Patch] = {}
    last = max((layer for layer, heads in enumerate(kept.heads) if heads), default=-1)
    for layer in range(model.n_layers):
        width = whole.head_width
        entries = [entry for head in kept.heads[layer] for entry in range(head * width, (head + 1) * width)]
        for site, stay, there in (
            (Site("attn.z", layer), entries, whole.heads[layer] * width),
            (Site("mlp.key", layer), list(kept.neurons[layer]), whole.neurons[layer]),
        ):
            if len(stay) < there:
                assert mean is not None
                at = site if layer < last else site.at("cls")
                patches[site] = _held(mean.by_site[at].mean, stay)
    dtype = next(model.module.parameters()).dtype

    def answered(pixels: Tensor, _labels: Tensor) -> Tensor:
        return model.logits(model.preprocess(pixels, model.device).to(dtype))

    with patch(model, patches):
        return torch.cat(list(Fitting("a smaller model is asked").each(answered, images.batches(_BATCH))))


def _held(mean: Tensor, stay: list[int]) -> Callable[[Tensor], Tensor]:
    """Keys of which only these entries are their own."""

    def held(keys: Tensor) -> Tensor:
        new = mean.to(keys).expand_as(keys).clone()
        new[..., stay] = keys[..., stay]
        return new

    return held
