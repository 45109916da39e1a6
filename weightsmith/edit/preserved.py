"""What editors preserve, and which layers they take when nobody says."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weightsmith.data.images import ImageSet
from weightsmith.data.texts import Knowledge, TextSet
from weightsmith.errors import WeightsmithError
from weightsmith.measure import fit_at_once, key_moment, predict
from weightsmith.models import Model
from weightsmith.site import Site

_known: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
"""Model and images → where in the store the right ones are: editors that are compared ask for the same ones again and again."""

_KNOWN = 16


def right_ones(model: Model, images: ImageSet) -> ImageSet:
    """The images that the model gets right; asked again for the same weights and images, they are not predicted again.

    Raises:
        WeightsmithError: there are none.
        HeldOutError: the images are sealed.
    """
    key = (model.fingerprint(), images.digest())
    if images.sealed or key not in _known:
        _known[key] = images.positions[predict(model, images, title="preserved images").right.numpy()]
        if len(_known) > _KNOWN:
            _known.popitem(last=False)
    right = np.flatnonzero(np.isin(images.positions, _known[key]))
    if len(right) == 0:
        raise WeightsmithError(
            f"the model gets none of the {len(images)} images of the {images.part} part right, so there is nothing to "
            "preserve: train it first"
        )
    return images.subset(right)


Preserved = ImageSet | TextSet | Knowledge
"""What should stay as it is."""

_PROMPTS = 4096
"""Prompts that are read at most, evenly spaced."""


def texts_of(preserve: Preserved) -> ImageSet | TextSet:
    """The images, or the running text, of what is preserved."""
    return preserve.texts if isinstance(preserve, Knowledge) else preserve


def preserved_moments(
    model: Model,
    component: str,
    layers: Sequence[int | None],
    preserve: Preserved,
    patch_weight: float = 0.0,
    prompt_weight: float = 0.0,
    subjects: Iterable[str] = (),
    cache_dir: Path | None = None,
) -> Iterator[tuple[int | None, Tensor]]:
    """Each layer and the second moment (d, d) of the keys that must be preserved, one after the other.

    Of images only those that the model gets right count, at CLS and, weighed by `patch_weight`, at the patch tokens:
    they are different populations. Of texts every token counts,
    and of prompts, weighed by `prompt_weight`, the last, behind which an answer is read; those that name one of the subjects
    to be edited are left out.

    Raises:
        WeightsmithError: nothing to preserve, images for a language model or texts for a classifier.
        HeldOutError: `preserve` is sealed.
    """
    if not 0 <= patch_weight <= 1:
        raise WeightsmithError(f"the share of the patch tokens must be from 0 to 1, not {patch_weight:g}: give 0.2 say")
    if not 0 <= prompt_weight <= 1:
        raise WeightsmithError(f"the share of the prompts must be from 0 to 1, not {prompt_weight:g}: give 0.5 say")
    if isinstance(preserve, ImageSet) != (model.family.reads == "images"):
        wanted = "texts" if model.family.reads == "text" else "images"
        raise WeightsmithError(f"{model.name} reads {wanted}: give {wanted} to preserve")
    if isinstance(preserve, ImageSet):
        return _of_images(model, component, layers, preserve, patch_weight, cache_dir)
    return _of_texts(model, component, layers, preserve, prompt_weight, subjects, cache_dir)


def _of_texts(
    model: Model,
    component: str,
    layers: Sequence[int | None],
    preserve: TextSet | Knowledge,
    prompt_weight: float,
    subjects: Iterable[str],
    cache_dir: Path | None,
) -> Iterator[tuple[int | None, Tensor]]:
    sites = {layer: Site(model.key_of(component), layer) for layer in layers}
    texts = preserve.texts if isinstance(preserve, Knowledge) else preserve
    found = key_moment(model, list(sites.values()), texts, cache_dir)
    prompts = preserve.apart_from(subjects) if isinstance(preserve, Knowledge) and prompt_weight else ()
    if not prompts:
        yield from ((layer, found[site].matrix) for layer, site in sites.items())
        return
    # Those behind the prompts are there all at once, or where memory is short a layer at a time, a pass for each.
    short = not fits(model, component, layers)
    at_last = {} if short else _moments_behind(model, list(sites.values()), prompts)
    for layer, site in sites.items():
        mine = at_last or _moments_behind(model, [site], prompts)
        yield layer, (1 - prompt_weight) * found[site].matrix + prompt_weight * mine[site]


def _of_images(
    model: Model,
    component: str,
    layers: Sequence[int | None],
    preserve: ImageSet,
    patch_weight: float,
    cache_dir: Path | None,
) -> Iterator[tuple[int | None, Tensor]]:
    kind, right = model.key_of(component), right_ones(model, preserve)
    at_lookup = {layer: model.lookup(kind, layer) for layer in layers}
    at_patches = {
        layer: site.at("patches") for layer, site in at_lookup.items() if site.tokens == "cls" and patch_weight
    }
    found = key_moment(model, [*at_lookup.values(), *at_patches.values()], right, cache_dir)
    for layer, site in at_lookup.items():
        if layer in at_patches:
            yield layer, (1 - patch_weight) * found[site].matrix + patch_weight * found[at_patches[layer]].matrix
        else:
            yield layer, found[site].matrix


_COPIES = 5
"""Matrices of a layer that are there while its metric is made: two moments and what they give, the metric, a factor."""


def fits(model: Model, component: str, layers: Sequence[int | None]) -> bool:
    """Whether moments and metrics of all layers fit into memory at a time."""
    most = fit_at_once(model, Site(model.key_of(component), layers[0]), _COPIES)
    return most is None or most >= len(layers)


def _moments_behind(model: Model, sites: Sequence[Site], prompts: Sequence[str]) -> dict[Site, Tensor]:
    """Site → second moment of the keys at the last token of each prompt."""
    step = max(1, len(prompts) // _PROMPTS)
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for prompt in prompts[::step]:
        ids = model.tokenize(prompt)
        by_length.setdefault(len(ids), []).append(ids)
    count, found = sum(map(len, by_length.values())), dict[Site, Tensor]()
    for rows in by_length.values():
        with (
            tempfile.TemporaryDirectory() as scratch
        ):  # another choice of requests leaves other prompts: nothing to keep
            texts = TextSet.from_ids(torch.tensor(rows))
            of_length = key_moment(model, [site.at("last") for site in sites], texts, Path(scratch))
            for site in sites:
                share = of_length[site.at("last")].matrix * (len(rows) / count)
                found[site] = found[site].add_(share) if site in found else torch.zeros_like(share).add_(share)
    return found


def default_layers(model: Model) -> tuple[int, ...]:
    """The last three blocks of an image classifier ([9, 10, 11] of a ViT-B); only the last without a residual stream.

    In a language model a subject is recalled in early and middle blocks: those from a sixth to two fifths of the depth,
    where the papers' tables for GPT-2 XL, GPT-J and Llama-3 lie (3–8 of 28, 4–8 of 32).
    """
    if model.family.reads == "text":
        first = round(model.n_layers / 6)
        return tuple(range(first, max(first + 1, round(0.4 * model.n_layers))))
    return last_layers(model, 3 if model.family.spreads else 1)


def last_layers(model: Model, count: int) -> tuple[int, ...]:
    """The last blocks, as many of them."""
    return tuple(range(max(0, model.n_layers - count), model.n_layers))
