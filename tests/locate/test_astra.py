"""Attribution against one forward pass a mask and scikit-learn by hand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.files import write_csv
from weightsmith.locate import astra
from weightsmith.locate.astra import AstraOptions, Attribution, attribute
from weightsmith.models import Model, families

OPTIONS = AstraOptions(masks=24, top=3, batch=50)
NAMES = ("val/0", "val/1", "val/2")
TARGETS = torch.tensor([1, 0, 3])
WITHOUT = sorted(name for name, family in families().items() if not family.has_tokens or family.reads != "images")


@torch.no_grad()
def slow(
    model: Model, pixels: Tensor, targets: Tensor, options: AstraOptions, painted: Callable[..., Tensor]
) -> tuple[np.ndarray, list[list[float]]]:
    """Weights (n, patches) and for each image [R², fresh R²]: one mask, one forward pass."""
    patches = model.n_tokens - model.family.special
    weights, fits = [], []
    for index in range(len(pixels)):
        masks = np.random.default_rng((options.seed, index)).random((options.masks + 16, patches)) < options.keep
        inputs = model.preprocess(pixels[index : index + 1])
        y = np.array([float(model.logits(painted(model, inputs, list(m)))[0, targets[index]]) for m in masks])
        scaler = StandardScaler().fit(masks[: options.masks].astype(float))
        z = scaler.transform(masks.astype(float))
        lasso = Lasso(alpha=options.alpha, tol=1e-8, max_iter=20_000).fit(z[: options.masks], y[: options.masks])
        weights.append(lasso.coef_)
        parts = (slice(None, options.masks), slice(options.masks, None))
        fits.append([float(lasso.score(z[part], y[part])) for part in parts])
    return np.stack(weights), fits


def test_the_weights_are_those_of_one_pass_a_mask(
    looked: Model, pixels: Tensor, painted: Callable[..., Tensor]
) -> None:
    found = attribute(looked, pixels, TARGETS, NAMES, OPTIONS)
    weights, fits = slow(looked, pixels, TARGETS, OPTIONS, painted)
    assert np.abs(weights).max() > 0.05, "nothing to compare"
    np.testing.assert_allclose(found.weights.numpy(), weights, rtol=0, atol=1e-6)
    np.testing.assert_allclose(torch.stack([found.fit, found.fit_fresh], 1).numpy(), fits, rtol=0, atol=1e-5)
    for row, top in zip(weights, found.top, strict=True):
        assert list(top) == [i for i in np.argsort(-row)[: OPTIONS.top] if row[i] > 0]
    assert found.weights.dtype == torch.float64
    assert found.weights.shape == (3, looked.n_tokens - looked.family.special)
    assert found.info["forwards"] == 3 * (24 + 16)
    assert found.info["unconverged"] == []


def test_the_weights_solve_the_lasso(vit: Callable[..., Model], pixels: Tensor, painted: Callable[..., Tensor]) -> None:
    """Optimality: |Zᵀ(y − ŷ)|/n is α where a weight is not 0, with its sign, and at most α where it is."""
    options = AstraOptions(masks=32, alpha=0.05)
    model = vit()
    found = attribute(model, pixels, TARGETS, NAMES, options)
    for index in range(3):
        masks = np.random.default_rng((0, index)).random((48, 9))[:32] < 0.5
        inputs = model.preprocess(pixels[index : index + 1])
        with torch.no_grad():
            y = np.array([float(model.logits(painted(model, inputs, list(m)))[0, TARGETS[index]]) for m in masks])
        z = (masks - masks.mean(0)) / masks.std(0)
        w = found.weights[index].numpy()
        slope = z.T @ (y - y.mean() - z @ w) / 32
        active = w != 0
        assert active.any()
        np.testing.assert_allclose(slope[active], 0.05 * np.sign(w[active]), atol=1e-5)
        assert np.abs(slope).max() <= 0.05 + 1e-5


def test_a_black_patch_is_what_black_pixels_become(
    vit: Callable[..., Model], random_pixels: Callable[..., Tensor]
) -> None:
    model = vit()
    image = random_pixels(2, side=11)
    keep = torch.tensor([[True, False, True, True, True, False, True, True, True], [False] * 8 + [True]])
    black = image.clone()
    black[0, :, 0:3, 3:6] = 0
    black[0, :, 3:6, 6:9] = 0
    black[1, :, :9, :9] = 0
    black[1, :, 6:9, 6:9] = image[1, :, 6:9, 6:9]
    assert torch.equal(astra.PatchGrid.of(model).blackened(model.preprocess(image), keep), model.preprocess(black))


@pytest.mark.parametrize("number", [0, 4, 8])
def test_the_one_patch_that_decides_is_found(
    number: int, vit: Callable[..., Model], random_pixels: Callable[..., Tensor]
) -> None:
    """In a black image with one patch of colour nothing else can matter; its weight is known in closed form."""
    model = vit()
    image = torch.zeros(1, 3, 11, 11, dtype=torch.uint8)
    row, column = number // 3 * 3, number % 3 * 3
    image[..., row : row + 3, column : column + 3] = random_pixels(1, seed=3, side=3)
    with torch.no_grad():
        gain = (model.logits(model.preprocess(image)) - model.logits(model.preprocess(image * 0)))[0]
    shown = np.random.default_rng((0, 0)).random((80, 9))[:64, number] < 0.5
    best = int(gain.argmax())
    found = attribute(model, image, torch.tensor([best]), ["one"])
    wanted = torch.zeros(9, dtype=torch.float64)
    wanted[number] = float(gain[best]) * shown.std() - 0.01
    assert wanted[number] > 0.05
    torch.testing.assert_close(found.weights[0], wanted, rtol=0, atol=1e-5)
    assert found.top == ((number,),)
    assert found.uninformative == ()
    assert found.fit_fresh[0] > 0.95
    worst = int(gain.argmin())
    against = attribute(model, image, torch.tensor([worst]), ["one"])
    assert gain[worst] < -0.05
    assert float(against.weights[0, number]) < 0
    assert (against.top, against.uninformative) == (((),), ("one",))


def test_a_logit_that_no_mask_changes_has_no_evidence(vit: Callable[..., Model], pixels: Tensor) -> None:
    model = vit()
    black = torch.cat([pixels[:2], torch.zeros_like(pixels[:1])])
    found = attribute(model, black, TARGETS, NAMES, OPTIONS)
    assert "val/2" in found.uninformative
    assert (found.weights[2] == 0).all()
    assert found.top[2] == ()
    nn.init.zeros_(model.module.classifier.weight)
    found = attribute(model, pixels, TARGETS, NAMES, OPTIONS)
    assert found.uninformative == NAMES
    assert (found.weights == 0).all()
    assert found.fit.isnan().all()
    assert found.fit_fresh.isnan().all()


def test_at_most_top_patches_and_only_positive_ones(vit: Callable[..., Model], pixels: Tensor) -> None:
    model = vit()
    many = attribute(model, pixels, TARGETS, NAMES, AstraOptions(masks=32, top=15))
    few = attribute(model, pixels, TARGETS, NAMES, AstraOptions(masks=32, top=2))
    assert torch.equal(many.weights, few.weights)
    for weights, all_of_them, two in zip(many.weights, many.top, few.top, strict=True):
        assert len(all_of_them) == int((weights > 0).sum())
        assert list(weights[list(all_of_them)]) == sorted(weights[weights > 0], reverse=True)
        assert two == all_of_them[:2]


def test_a_lasso_that_does_not_converge_is_named_and_does_not_warn(
    vit: Callable[..., Model], pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(astra, "_ITERATIONS", 1)
    assert attribute(vit(), pixels, TARGETS, NAMES, OPTIONS).info["unconverged"] == list(NAMES)


@pytest.mark.parametrize("batch", [1, 7, 40, 81, 1000])
def test_the_batch_size_does_not_matter(measured: tuple[Model, Attribution, Any], pixels: Tensor, batch: int) -> None:
    model, one, _ = measured
    other = attribute(model, pixels, TARGETS, NAMES, AstraOptions(masks=24, top=3, batch=batch))
    torch.testing.assert_close(other.weights, one.weights, rtol=0, atol=1e-5)
    assert other.top == one.top


def test_two_calls_are_equal_and_another_seed_is_not(vit: Callable[..., Model], pixels: Tensor) -> None:
    model = vit()
    one, two = (attribute(model, pixels, TARGETS, NAMES, OPTIONS) for _ in range(2))
    assert torch.equal(one.weights, two.weights)
    assert torch.equal(one.fit_fresh, two.fit_fresh)
    assert (one.top, one.info) == (two.top, two.info)
    other = attribute(model, pixels, TARGETS, NAMES, AstraOptions(masks=24, top=3, batch=50, seed=1))
    assert not torch.equal(one.weights, other.weights)


def test_an_image_is_attributed_alike_whatever_follows_it(vit: Callable[..., Model], pixels: Tensor) -> None:
    model = vit()
    alone = attribute(model, pixels[:1], TARGETS[:1], NAMES[:1], OPTIONS)
    together = attribute(model, pixels, TARGETS, NAMES, OPTIONS)
    torch.testing.assert_close(alone.weights, together.weights[:1], rtol=0, atol=1e-5)


def test_the_model_is_left_alone(
    measured: tuple[Model, Attribution, Any], pixels: Tensor, hook_count: Callable[[nn.Module], int]
) -> None:
    model = measured[0]
    weights, hooks = weights_hash(model), hook_count(model.module)
    attribute(model, pixels, TARGETS, NAMES, OPTIONS)
    with pytest.raises(WeightsmithError, match="uint8"):
        attribute(model, pixels.float(), TARGETS, NAMES)
    assert hook_count(model.module) == hooks
    assert weights_hash(model) == weights


def test_one_row_a_patch(measured: tuple[Model, Attribution, Any], tmp_path: Path) -> None:
    found = measured[1]
    rows = found.rows()
    assert len(rows) == 27
    write_csv(tmp_path / "attribution.csv", rows)
    with (tmp_path / "attribution.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["sample", "target", "patch", "row", "column", "weight", "top"]
    for index, row in enumerate(read):
        image, number = divmod(index, 9)
        assert (row["sample"], int(row["target"])) == (NAMES[image], int(TARGETS[image]))
        assert int(row["patch"]) == number == 3 * int(row["row"]) + int(row["column"])
        assert float(row["weight"]) == float(found.weights[image, number])
    for image in range(3):
        ranked = sorted((r for r in rows if r["sample"] == NAMES[image] and r["top"]), key=lambda r: int(r["top"]))
        assert tuple(r["patch"] for r in ranked) == found.top[image]
        assert [r["top"] for r in ranked] == list(range(1, len(ranked) + 1))


def test_save_and_load_are_inverse(measured: tuple[Model, Attribution, Any], tmp_path: Path) -> None:
    one = measured[1]
    one.save(tmp_path / "deep" / "attribution.safetensors")
    back = Attribution.load(tmp_path / "deep" / "attribution.safetensors")
    for name in ("targets", "weights", "fit", "fit_fresh"):
        assert torch.equal(getattr(back, name), getattr(one, name))
        assert getattr(back, name).dtype == getattr(one, name).dtype
    assert (back.samples, back.top, back.uninformative, back.info) == (
        one.samples,
        one.top,
        one.uninformative,
        one.info,
    )


def test_bad_files_are_told(measured: tuple[Model, Attribution, Any], tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(WeightsmithError, match=r"file\.safetensors does not exist"):
        Attribution.load(path)
    save_file({"values": torch.zeros(1)}, path, metadata={"weightsmith": json.dumps({"format": "weightsmith-delta-1"})})
    with pytest.raises(WeightsmithError, match=r"file\.safetensors is no weightsmith-\w+-1 file"):
        Attribution.load(path)
    measured[1].save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsmithError, match=r"file\.safetensors is damaged"):
        Attribution.load(path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"masks": 1}, "--masks must be at least 2, not 1"),
        ({"keep": 0.0}, "--keep must lie between 0 and 1, not 0"),
        ({"keep": 1.0}, "--keep"),
        ({"keep": math.nan}, "--keep"),
        ({"alpha": 0.0}, "--alpha must be a positive number, not 0"),
        ({"alpha": math.inf}, "--alpha"),
        ({"top": 0}, "--top must be at least 1, not 0"),
        ({"seed": -1}, "--seed must be at least 0, not -1"),
        ({"batch": 0}, "--batch must be at least 1, not 0"),
    ],
)
def test_options_out_of_range_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(WeightsmithError, match=told):
        AstraOptions(**options)


def test_images_and_classes_that_do_not_fit_are_told(measured: tuple[Model, Attribution, Any], pixels: Tensor) -> None:
    model = measured[0]
    with pytest.raises(WeightsmithError, match="no images to look at"):
        attribute(model, pixels[:0], TARGETS[:0], ())
    for wrong in (TARGETS[:2], TARGETS.float(), TARGETS[None]):
        with pytest.raises(WeightsmithError, match="3 images need as many whole-numbered targets"):
            attribute(model, pixels, wrong, NAMES)
    for beyond in (4, -1):
        with pytest.raises(WeightsmithError, match="a class beyond the 4"):
            attribute(model, pixels, torch.tensor([0, 1, beyond]), NAMES)
    with pytest.raises(WeightsmithError, match="3 images were given 2 names"):
        attribute(model, pixels, TARGETS, NAMES[:2])


def test_values_of_another_shape_are_refused() -> None:
    one = torch.zeros(1)
    with pytest.raises(WeightsmithError, match="as many targets, fits and lists"):
        Attribution(("a",), torch.zeros(2), torch.zeros(1, 4), ((),), one, one, ())
    for weights in (torch.zeros(1, 5), torch.zeros(4), torch.zeros(2, 4)):
        with pytest.raises(WeightsmithError, match="patches of a square grid"):
            Attribution(("a",), one, weights, ((),), one, one, ())


def test_logits_that_overflow_are_told(vit: Callable[..., Model], pixels: Tensor) -> None:
    model = vit()
    nn.init.constant_(model.module.classifier.bias, math.nan)
    with pytest.raises(WeightsmithError, match="logits of val/0 are not finite"):
        attribute(model, pixels, TARGETS, NAMES, OPTIONS)


@pytest.mark.parametrize("family_name", WITHOUT)
def test_a_network_without_patches_has_none_to_black_out(model: Model, pixels: Tensor) -> None:
    with pytest.raises(WeightsmithError, match=r"no patch tokens|reads no images"):
        attribute(model, pixels, TARGETS, NAMES)
