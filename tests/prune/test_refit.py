"""Refitting against least squares over the same keys, and against what it must not make worse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from weightsmith.circuit import Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.delta import weights_hash
from weightsmith.errors import HeldOutError, WeightsmithError, WrongWeightsError
from weightsmith.models import Model, record
from weightsmith.prune import Streams, cls_only, key_statistics, refit, removed, shape_of, streams
from weightsmith.prune.refit import images_that_fit
from weightsmith.site import Site

FAMILIES = ("vit", "narrow_vit")
UNITS = (Unit("head", 0, (1,)), Unit("neurons", 0, (0, 3, 4, 9)), Unit("neurons", 2, (1, 2)))


def narrowed(model: Model, images: ImageSet, *units: Unit) -> tuple[Model, Kept, Streams]:
    kept = Kept.everything(shape_of(model)).without(*units)
    return removed(model, kept, key_statistics(model, images)), kept, streams(model, images)


def pixels_of(model: Model, images: ImageSet) -> Tensor:
    return torch.cat([model.preprocess(pixels) for pixels, _ in images.batches(64)]).double()


@pytest.mark.parametrize("family_name", FAMILIES)
def test_streams_are_those_of_the_model(double: Callable[[str], Model], images: ImageSet, family_name: str) -> None:
    model = double(family_name)
    found = streams(model, images)
    sites = [Site(kind, layer) for layer in range(model.n_layers) for kind in ("resid.in", "resid.out")]
    with torch.no_grad():
        seen = record(model, pixels_of(model, images), sites)
    torch.testing.assert_close(found.entering, seen[Site("resid.in", 0)])
    for layer in range(model.n_layers):
        torch.testing.assert_close(found.behind[2 * layer + 1], seen[Site("resid.out", layer)])
    assert len(found) == len(images)


@pytest.mark.parametrize("family_name", FAMILIES)
def test_nothing_removed_is_nothing_changed(double: Callable[[str], Model], images: ImageSet, family_name: str) -> None:
    model = double(family_name)
    narrow, kept, whole = narrowed(model, images)
    refit(narrow, kept, whole, fingerprint=model.fingerprint())
    for name, tensor in model.module.state_dict().items():
        torch.testing.assert_close(narrow.module.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_each_map_is_the_ridge_regression_on_the_keys_of_the_smaller_model(
    double: Callable[[str], Model], images: ImageSet
) -> None:
    """Sublayer after sublayer, least squares over stacked rows: √share for each token, √λ for each distance to W₀."""
    model, ridge, cls_weight = double("vit"), 1e-2, 0.3
    # The attention of block 1 goes whole, so the map before it is fitted to the stream behind it.
    narrow, kept, whole = narrowed(model, images, *UNITS, Unit("attn", 1))
    before = {name: tensor.clone() for name, tensor in narrow.module.state_dict().items()}
    refit(narrow, kept, whole, fingerprint=model.fingerprint(), ridge=ridge, cls_weight=cls_weight)
    after = narrow.module.state_dict()
    plan = [
        ("vit.layers.0.attention.o_proj", Site("attn.z", 0), Site("resid.in", 0), 0, cls_weight),
        ("vit.layers.0.mlp.fc2", Site("mlp.key", 0), Site("resid.mid", 0), 2, cls_weight),
        ("vit.layers.1.mlp.fc2", Site("mlp.key", 1), Site("resid.mid", 1), 3, cls_weight),
        ("vit.layers.2.attention.o_proj", Site("attn.z", 2), Site("resid.in", 2), 4, 1.0),
        ("vit.layers.2.mlp.fc2", Site("mlp.key", 2), Site("resid.mid", 2), 5, 1.0),
    ]
    with torch.no_grad():
        inputs = pixels_of(model, images)
        for name, keys_at, stream_at, behind, cls in plan:
            stream_site = stream_at if stream_at.kind == "resid.in" else Site("resid.in", stream_at.layer)
            wanted_sites = [keys_at, stream_site]
            attention = Site("attn.out", stream_at.layer)
            if stream_at.kind == "resid.mid" and narrow.has("attn.out", stream_at.layer or 0):
                wanted_sites.append(attention)
            seen = record(narrow, inputs, wanted_sites)
            stream = seen[stream_site] + (seen[attention] if attention in wanted_sites else 0)
            keys = seen[keys_at]
            tokens = keys.shape[1]
            share = torch.full((tokens,), (1 - cls) / tokens, dtype=torch.float64)
            share[0] += cls
            rows = (share / len(keys)).sqrt().repeat(len(keys))[:, None]
            flat = keys.flatten(0, 1)
            mean = (flat * rows.square()).sum(0)
            scale = ((flat - mean).square() * rows.square()).sum(0).mean()
            width = flat.shape[1]
            root = (ridge * scale).sqrt()
            near = torch.eye(width, width + 1, dtype=torch.float64) * root  # the bias may be anything
            ones = torch.ones(len(flat), 1, dtype=torch.float64)
            design = torch.cat([torch.cat([flat, ones], 1) * rows, near])
            missing = (whole.behind[behind] - stream).flatten(0, 1) * rows
            goal = torch.cat([missing, before[f"{name}.weight"].mT * root])
            solution = torch.linalg.lstsq(design, goal).solution
            torch.testing.assert_close(after[f"{name}.weight"], solution[:-1].mT, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(after[f"{name}.bias"], solution[-1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family_name", FAMILIES)
def test_the_stream_behind_the_last_block_comes_nearer(
    double: Callable[[str], Model], images: ImageSet, family_name: str
) -> None:
    model = double(family_name)
    generator = torch.Generator().manual_seed(0)
    shape = shape_of(model)
    nearer = 0
    for _ in range(6):
        units = []
        for layer, neurons in enumerate(shape.neurons):
            if neurons:
                gone = torch.randperm(neurons, generator=generator)[: neurons // 2]
                units.append(Unit("neurons", layer, tuple(gone.tolist())))
        narrow, kept, whole = narrowed(model, images, *units)
        before_change, wanted = weights_hash(model), whole.behind[-1][:, 0]
        inputs = pixels_of(model, images)
        site = Site("resid.out", narrow.n_layers - 1)
        with torch.no_grad():
            folded = (record(narrow, inputs, [site])[site][:, 0] - wanted).square().sum()
            refit(narrow, kept, whole, fingerprint=model.fingerprint())
            fitted = (record(narrow, inputs, [site])[site][:, 0] - wanted).square().sum()
        nearer += int(fitted < folded)
        assert weights_hash(model) == before_change
    assert nearer == 6


def test_bad_input(double: Callable[[str], Model], images: ImageSet) -> None:
    model = double("vit")
    narrow, kept, whole = narrowed(model, images, *UNITS)
    with pytest.raises(WrongWeightsError, match="other weights"):
        refit(narrow, kept, whole, fingerprint="another")
    for ridge in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(WeightsmithError, match="ridge"):
            refit(narrow, kept, whole, fingerprint=model.fingerprint(), ridge=ridge)
    with pytest.raises(HeldOutError):
        streams(model, images.seal())
    with pytest.raises(WeightsmithError, match="at least one"):
        streams(model, images.subset([]))
    with pytest.raises(WeightsmithError, match="CLS alone"):
        streams(cls_only(model), images)


def test_memory_bounds_the_images(tiny_model: Callable[..., Model], images: ImageSet) -> None:
    model = tiny_model("vit")
    each = sum(one.nbytes for one in (streams(model, images).entering, *streams(model, images).behind)) / len(images)
    assert images_that_fit(model, 1000, int(10.5 * each * 8 / 7)) in (10, 11)
    assert images_that_fit(model, 1000, 1) == 1
    assert images_that_fit(model, 3) == 3
