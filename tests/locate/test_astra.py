"""Attribution against one forward pass a mask and scikit-learn by hand; steering against its formula by hand."""

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
from weightsmith.locate.astra import AstraOptions, Attribution, Steering, attribute, steered, steering
from weightsmith.models import Model, families, load, patch, record
from weightsmith.site import Site

OPTIONS = AstraOptions(masks=24, top=3, batch=50)
NAMES = ("val/0", "val/1", "val/2")
TARGETS = torch.tensor([1, 0, 3])
LABELS = torch.tensor([0, 1, 2])
WITH_PATCHES = sorted(name for name, family in families().items() if family.has_tokens and family.reads == "images")
WITHOUT = sorted(name for name in families() if name not in WITH_PATCHES)


def vit(image_size: int = 11, patch_size: int = 3, seed: int = 0) -> Model:
    """A ViT of 9 patches whose last two rows and columns of pixels fill no patch."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=image_size, patch_size=patch_size, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24, num_labels=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = ViTForImageClassification(config)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn_like(parameter)
                if "norm" in name and name.endswith("weight"):
                    parameter.copy_(1 + 0.2 * noise)
                else:
                    parameter.copy_(noise * (1.5 / parameter.shape[1] ** 0.5 if parameter.ndim == 2 else 0.3))
    return load(module)


@pytest.fixture(params=[*WITH_PATCHES, "nine patches"])
def looked(request: pytest.FixtureRequest, tiny_model: Callable[..., Model]) -> Model:
    model: Model = vit() if request.param == "nine patches" else tiny_model(request.param)
    return model


@pytest.fixture
def pixels(random_pixels: Callable[..., Tensor]) -> Tensor:
    return random_pixels(3, seed=1, side=10)


@pytest.fixture
def calibration(random_pixels: Callable[..., Tensor]) -> Tensor:
    return random_pixels(5, seed=2, side=10)


@pytest.fixture
def measured(pixels: Tensor, calibration: Tensor) -> tuple[Model, Attribution, Steering]:
    model = vit()
    attribution = attribute(model, pixels, TARGETS, NAMES, OPTIONS)
    return model, attribution, steering(model, pixels, attribution, calibration)


def painted(model: Model, inputs: Tensor, keep: list[bool]) -> Tensor:
    """One preprocessed image (1, c, s, s) with the patches that are not kept painted over, one after the other."""
    size = model.module.config.patch_size
    side = math.isqrt(len(keep))
    inputs = inputs.clone()
    for number, kept in enumerate(keep):
        if not kept:
            row, column = number // side * size, number % side * size
            for channel, (mean, std) in enumerate(zip(model.preprocess.mean, model.preprocess.std, strict=True)):
                inputs[0, channel, row : row + size, column : column + size] = (0 - mean) / std
    return inputs


@torch.no_grad()
def slow(model: Model, pixels: Tensor, targets: Tensor, options: AstraOptions) -> tuple[np.ndarray, list[list[float]]]:
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


def test_the_weights_are_those_of_one_pass_a_mask(looked: Model, pixels: Tensor) -> None:
    found = attribute(looked, pixels, TARGETS, NAMES, OPTIONS)
    weights, fits = slow(looked, pixels, TARGETS, OPTIONS)
    assert np.abs(weights).max() > 0.05, "nothing to compare"
    np.testing.assert_allclose(found.weights.numpy(), weights, rtol=0, atol=1e-6)
    np.testing.assert_allclose(torch.stack([found.fit, found.fit_fresh], 1).numpy(), fits, rtol=0, atol=1e-5)
    for row, top in zip(weights, found.top, strict=True):
        assert list(top) == [i for i in np.argsort(-row)[: OPTIONS.top] if row[i] > 0]
    assert found.weights.dtype == torch.float64
    assert found.weights.shape == (3, looked.n_tokens - looked.family.special)
    assert found.info["forwards"] == 3 * (24 + 16)
    assert found.info["unconverged"] == []


def test_the_weights_solve_the_lasso(pixels: Tensor) -> None:
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


def test_a_black_patch_is_what_black_pixels_become(random_pixels: Callable[..., Tensor]) -> None:
    model = vit()
    image = random_pixels(2, side=11)
    keep = torch.tensor([[True, False, True, True, True, False, True, True, True], [False] * 8 + [True]])
    black = image.clone()
    black[0, :, 0:3, 3:6] = 0
    black[0, :, 3:6, 6:9] = 0
    black[1, :, :9, :9] = 0
    black[1, :, 6:9, 6:9] = image[1, :, 6:9, 6:9]
    assert torch.equal(astra._Grid.of(model).blackened(model.preprocess(image), keep), model.preprocess(black))


@pytest.mark.parametrize("number", [0, 4, 8])
def test_the_one_patch_that_decides_is_found(number: int, random_pixels: Callable[..., Tensor]) -> None:
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


def test_a_logit_that_no_mask_changes_has_no_evidence(pixels: Tensor) -> None:
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
    with pytest.raises(WeightsmithError, match=r"no patch of any image speaks for its target.*--masks"):
        steering(model, pixels, found, pixels)


def test_at_most_top_patches_and_only_positive_ones(pixels: Tensor) -> None:
    model = vit()
    many = attribute(model, pixels, TARGETS, NAMES, AstraOptions(masks=32, top=15))
    few = attribute(model, pixels, TARGETS, NAMES, AstraOptions(masks=32, top=2))
    assert torch.equal(many.weights, few.weights)
    for weights, all_of_them, two in zip(many.weights, many.top, few.top, strict=True):
        assert len(all_of_them) == int((weights > 0).sum())
        assert list(weights[list(all_of_them)]) == sorted(weights[weights > 0], reverse=True)
        assert two == all_of_them[:2]


def test_a_lasso_that_does_not_converge_is_named_and_does_not_warn(
    pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(astra, "_ITERATIONS", 1)
    assert attribute(vit(), pixels, TARGETS, NAMES, OPTIONS).info["unconverged"] == list(NAMES)


@pytest.mark.parametrize("batch", [1, 7, 40, 81, 1000])
def test_the_batch_size_does_not_matter(
    measured: tuple[Model, Attribution, Steering], pixels: Tensor, calibration: Tensor, batch: int
) -> None:
    model, one, vectors = measured
    other = attribute(model, pixels, TARGETS, NAMES, AstraOptions(masks=24, top=3, batch=batch))
    torch.testing.assert_close(other.weights, one.weights, rtol=0, atol=1e-5)
    assert other.top == one.top
    again = steering(model, pixels, other, calibration, batch=batch)
    torch.testing.assert_close(again.vectors, vectors.vectors, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.centres, vectors.centres, rtol=0, atol=1e-5)
    rows, others = (steered(model, pixels, TARGETS, LABELS, vectors, strengths=(0, 2), batch=b) for b in (64, batch))
    for row, same in zip(rows, others, strict=True):
        assert row == pytest.approx(same, abs=1e-5)


def test_two_calls_are_equal_and_another_seed_is_not(pixels: Tensor) -> None:
    model = vit()
    one, two = (attribute(model, pixels, TARGETS, NAMES, OPTIONS) for _ in range(2))
    assert torch.equal(one.weights, two.weights)
    assert torch.equal(one.fit_fresh, two.fit_fresh)
    assert (one.top, one.info) == (two.top, two.info)
    other = attribute(model, pixels, TARGETS, NAMES, AstraOptions(masks=24, top=3, batch=50, seed=1))
    assert not torch.equal(one.weights, other.weights)


def test_an_image_is_attributed_alike_whatever_follows_it(pixels: Tensor) -> None:
    model = vit()
    alone = attribute(model, pixels[:1], TARGETS[:1], NAMES[:1], OPTIONS)
    together = attribute(model, pixels, TARGETS, NAMES, OPTIONS)
    torch.testing.assert_close(alone.weights, together.weights[:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", ["cls", "patches"])
@torch.no_grad()
def test_the_steering_vectors_are_those_of_one_pass_an_image(
    looked: Model, pixels: Tensor, calibration: Tensor, tokens: str
) -> None:
    pixels = torch.cat([pixels, torch.zeros_like(pixels[:1])])  # the black one has no evidence
    attribution = attribute(looked, pixels, torch.tensor([1, 0, 3, 2]), (*NAMES, "black"), OPTIONS)
    found = steering(looked, pixels, attribution, calibration, layers=(0, 2), tokens=tokens)
    assert (found.layers, found.tokens) == ((0, 2), tokens)
    used = [i for i, top in enumerate(attribution.top) if top]
    assert 0 < len(used) < 4
    assert found.info["samples"] == [attribution.samples[i] for i in used]
    where = slice(0, 1) if tokens == "cls" else slice(looked.family.special, None)
    for place, layer in enumerate((0, 2)):
        site = Site("resid.out", layer)

        def stream(inputs: Tensor, site: Site = site) -> Tensor:
            return record(looked, inputs, [site])[site][0, where].mean(0)

        changes = []
        for i in used:
            inputs = looked.preprocess(pixels[i : i + 1])
            keep = [number not in attribution.top[i] for number in range(attribution.weights.shape[1])]
            changes.append(stream(inputs) - stream(painted(looked, inputs, keep)))
        torch.testing.assert_close(found.vectors[place], torch.stack(changes).mean(0), rtol=0, atol=1e-5)
        centre = torch.stack([stream(looked.preprocess(one[None])) for one in calibration]).mean(0)
        torch.testing.assert_close(found.centres[place], centre, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", ["cls", "patches"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_steering_follows_the_formula(pixels: Tensor, calibration: Tensor, layer: int, tokens: str) -> None:
    model = vit()
    attribution = attribute(model, pixels, TARGETS, NAMES, OPTIONS)
    found = steering(model, pixels, attribution, calibration, tokens=tokens)
    inputs, site = model.preprocess(torch.cat([pixels, calibration])), Site("resid.out", layer)
    plain = record(model, inputs, [site])[site]
    with found.on(model, layer, 1.5):
        moved = record(model, inputs, [site])[site]
        logits = model.logits(inputs)
    wanted = plain.clone()
    v, centre = found.vectors[layer], found.centres[layer]
    steps = []
    for image in range(len(inputs)):
        for token in range(1) if tokens == "cls" else range(1, 10):
            h = plain[image, token]
            cosine = float((h - centre) @ v / ((h - centre).norm() * v.norm()))
            steps.append(1.5 * float(h.norm()) * min(max(cosine, 0.0), 1.0))
            wanted[image, token] = h - steps[-1] * v / v.norm()
            if cosine <= 0:
                assert torch.equal(moved[image, token], h)
    assert min(steps) == 0 < max(steps), "both sides of the gate"
    torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, model.run_from(layer + 1, wanted), rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_points_elsewhere_and_strength_nought_change_no_bit(
    measured: tuple[Model, Attribution, Steering], pixels: Tensor
) -> None:
    model, _, found = measured
    inputs = model.preprocess(pixels)
    plain = model.logits(inputs)
    for layer in range(3):
        with found.on(model, layer, 0):
            assert torch.equal(model.logits(inputs), plain)
        site = found.site(layer)
        h = record(model, inputs[:1], [site])[site][0, 0]
        away = Steering((layer,), (found.centres[layer] - h)[None], found.centres[layer][None])
        with away.on(model, layer, 5):
            same = model.logits(inputs[:1])
        assert torch.equal(same, model.logits(inputs[:1]))
        for vector, centre in ((torch.zeros(16), found.centres[layer]), (found.vectors[layer], h)):
            nothing = Steering((layer,), vector[None], centre[None])  # no direction, or nothing to turn from
            assert torch.equal(nothing.moved(h[None], layer, 5), h[None])


def test_along_the_vector_all_of_the_length_goes_at_strength_one() -> None:
    found = Steering((4,), torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2))
    torch.testing.assert_close(found.moved(torch.tensor([0.0, 2.0]), 4, 1), torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(found.moved(torch.tensor([0.0, 2.0]), 4, 2), torch.tensor([0.0, -2.0]))
    h = torch.tensor([3.0, 4.0])  # ‖h‖ · cos = 4
    torch.testing.assert_close(found.moved(h, 4, 0.5), torch.tensor([3.0, 2.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_precision_of_the_network_stays(dtype: torch.dtype) -> None:
    found = Steering((0,), torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2))
    h = torch.tensor([[3.1, 4.3], [1.7, -2.9]], dtype=dtype)
    moved = found.moved(h, 0, 1)
    assert moved.dtype == dtype
    assert torch.equal(moved[1], h[1])
    assert float(moved[0, 1]) == pytest.approx(0, abs=0.02)


@torch.no_grad()
def test_the_table_of_settings_is_what_steering_does(
    measured: tuple[Model, Attribution, Steering], pixels: Tensor
) -> None:
    model, _, found = measured
    inputs = model.preprocess(pixels)
    targets = model.logits(inputs).argmax(-1)  # two are given their target at first, and one its label
    labels = (targets + torch.tensor([1, 2, 0])) % 4
    targets[2] = (targets[2] + 1) % 4
    rows = steered(model, pixels, targets, labels, found, layers=(2, 0), strengths=(0.0, 1, 8))
    assert (rows[0]["target_share"], rows[0]["accuracy"]) == (2 / 3, 1 / 3)
    assert [(row["layer"], row["strength"]) for row in rows] == [(i, s) for i in (2, 0) for s in (0.0, 1.0, 8.0)]
    changed = False
    for row in rows:
        with found.on(model, row["layer"], row["strength"]):
            probabilities = model.logits(inputs).softmax(-1)
        given = probabilities.argmax(-1)
        assert row["n"] == 3
        assert row["target_probability"] == pytest.approx(float(probabilities[range(3), targets].mean()), abs=1e-6)
        assert row["target_share"] == pytest.approx(float((given == targets).float().mean()))
        assert row["accuracy"] == pytest.approx(float((given == labels).float().mean()))
        changed |= abs(row["target_probability"] - rows[0]["target_probability"]) > 1e-3
    assert changed
    assert {row["layer"] for row in steered(model, pixels, targets, labels, found)} == {0, 1, 2}


@pytest.mark.parametrize("seed", range(4))
def test_steering_takes_planted_evidence_away(seed: int, random_pixels: Callable[..., Tensor]) -> None:
    """One patch pasted into every image speaks for a class; steering lowers that class, and less so without the patch."""
    model = vit(seed=seed)
    clean = random_pixels(24, seed=5, side=11) // 16
    pasted = clean.clone()
    pasted[..., 3:6, 3:6] = random_pixels(1, seed=6, side=3)
    with torch.no_grad():
        gain = (model.logits(model.preprocess(pasted)) - model.logits(model.preprocess(clean))).mean(0)
    targets = gain.argmax().repeat(24)
    found = attribute(model, pasted[:12], targets[:12], [str(i) for i in range(12)], AstraOptions(masks=32, top=1))
    assert found.top == ((4,),) * 12
    vectors = steering(model, pasted[:12], found, clean[:12])
    fall = []
    for unseen in (pasted[12:], clean[12:]):
        before, after = steered(model, unseen, targets[12:], targets[12:], vectors, layers=(2,), strengths=(0, 1))
        fall.append(before["target_probability"] - after["target_probability"])
    assert fall[0] > max(2 * fall[1], 0.02)


def test_the_model_is_left_alone(
    measured: tuple[Model, Attribution, Steering],
    pixels: Tensor,
    calibration: Tensor,
    hook_count: Callable[[nn.Module], int],
) -> None:
    model, attribution, found = measured
    weights, hooks = weights_hash(model), hook_count(model.module)
    with pytest.raises(WeightsmithError, match="uint8"), found.on(model, 1, 2.0):
        model.logits(model.preprocess(pixels.float()))
    with pytest.raises(WeightsmithError, match="no forward pass reached"), found.on(model, 1, 2.0):
        pass
    narrow = Steering((1,), torch.ones(1, 5), torch.ones(1, 5))
    with pytest.raises(WeightsmithError, match="width 5 and the model 16"), narrow.on(model, 1, 2.0):
        model.logits(model.preprocess(pixels))
    with pytest.raises(WeightsmithError, match="width 5 and the model 16"):
        steered(model, pixels, TARGETS, LABELS, narrow)
    with pytest.raises(WeightsmithError, match="uint8"):
        attribute(model, pixels.float(), TARGETS, NAMES)
    with pytest.raises(WeightsmithError, match="uint8"):
        steering(model, pixels, attribution, calibration.float())
    assert hook_count(model.module) == hooks
    assert weights_hash(model) == weights


def test_steering_lives_beside_other_patches(measured: tuple[Model, Attribution, Steering], pixels: Tensor) -> None:
    model, _, found = measured
    inputs = model.preprocess(pixels)
    with torch.no_grad(), found.on(model, 0, 4.0):
        one = model.logits(inputs)
        with patch(model, {Site("mlp.out", 1): lambda old: 2 * old}):
            two = model.logits(inputs)
        assert torch.equal(model.logits(inputs), one)
    assert not torch.equal(one, two)


def test_one_row_a_patch(measured: tuple[Model, Attribution, Steering], tmp_path: Path) -> None:
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


def test_save_and_load_are_inverse(measured: tuple[Model, Attribution, Steering], tmp_path: Path) -> None:
    _, one, vectors = measured
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
    vectors.save(tmp_path / "steering.safetensors")
    again = Steering.load(tmp_path / "steering.safetensors")
    assert torch.equal(again.vectors, vectors.vectors)
    assert torch.equal(again.centres, vectors.centres)
    assert (again.layers, again.tokens, again.info) == (vectors.layers, vectors.tokens, vectors.info)


@pytest.mark.parametrize("kind", [Attribution, Steering])
def test_bad_files_are_told(
    kind: type[Attribution] | type[Steering], measured: tuple[Model, Attribution, Steering], tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(WeightsmithError, match=r"file\.safetensors does not exist"):
        kind.load(path)
    save_file({"values": torch.zeros(1)}, path, metadata={"weightsmith": json.dumps({"format": "weightsmith-delta-1"})})
    with pytest.raises(WeightsmithError, match=r"file\.safetensors is no weightsmith-\w+-1 file"):
        kind.load(path)
    measured[1 if kind is Attribution else 2].save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsmithError, match=r"file\.safetensors is damaged"):
        kind.load(path)


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


def test_images_and_classes_that_do_not_fit_are_told(
    measured: tuple[Model, Attribution, Steering], pixels: Tensor, calibration: Tensor
) -> None:
    model, attribution, found = measured
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
    with pytest.raises(WeightsmithError, match="labels name a class beyond"):
        steered(model, pixels, TARGETS, LABELS + 2, found)
    with pytest.raises(WeightsmithError, match="attribution is of 3 images with 9 patches, and 2 with 9"):
        steering(model, pixels[:2], attribution, calibration)
    with pytest.raises(WeightsmithError, match="no calibration images"):
        steering(model, pixels, attribution, calibration[:0])
    with pytest.raises(WeightsmithError, match="and 3 with 4 were given"):
        steering(vit(8, 4), pixels, attribution, calibration)
    with pytest.raises(WeightsmithError, match=r"--tokens clss cannot be steered: did you mean 'cls'\?"):
        steering(model, pixels, attribution, calibration, tokens="clss")
    for layers in ((3,), (0, 0), ()):
        with pytest.raises(WeightsmithError, match="--layers names"):
            steering(model, pixels, attribution, calibration, layers=layers)
    for batch in (0, -1):
        with pytest.raises(WeightsmithError, match="--batch"):
            steering(model, pixels, attribution, calibration, batch=batch)
        with pytest.raises(WeightsmithError, match="--batch"):
            steered(model, pixels, TARGETS, LABELS, found, batch=batch)


def test_settings_that_there_are_not_are_told(
    measured: tuple[Model, Attribution, Steering], pixels: Tensor, calibration: Tensor
) -> None:
    model, attribution, _ = measured
    some = steering(model, pixels, attribution, calibration, layers=(0, 2))
    with pytest.raises(WeightsmithError, match="--layers names layer 1: there are steering vectors of layers 0, 2"):
        steered(model, pixels, TARGETS, LABELS, some, layers=(1,))
    with pytest.raises(WeightsmithError, match="--layers names layer 1"), some.on(model, 1, 1.0):
        pass
    for strength in (-1.0, math.nan, math.inf):
        with pytest.raises(WeightsmithError, match="--strengths must be numbers from 0"):
            steered(model, pixels, TARGETS, LABELS, some, strengths=(strength,))
    with pytest.raises(WeightsmithError, match="--strengths names no strength"):
        steered(model, pixels, TARGETS, LABELS, some, strengths=())


def test_values_of_another_shape_are_refused() -> None:
    one = torch.zeros(1)
    with pytest.raises(WeightsmithError, match="as many targets, fits and lists"):
        Attribution(("a",), torch.zeros(2), torch.zeros(1, 4), ((),), one, one, ())
    for weights in (torch.zeros(1, 5), torch.zeros(4), torch.zeros(2, 4)):
        with pytest.raises(WeightsmithError, match="patches of a square grid"):
            Attribution(("a",), one, weights, ((),), one, one, ())
    with pytest.raises(WeightsmithError, match="steering of 2 layers needs"):
        Steering((0, 1), torch.zeros(1, 4), torch.zeros(1, 4))


def test_logits_that_overflow_are_told(pixels: Tensor) -> None:
    model = vit()
    nn.init.constant_(model.module.classifier.bias, math.nan)
    with pytest.raises(WeightsmithError, match="logits of val/0 are not finite"):
        attribute(model, pixels, TARGETS, NAMES, OPTIONS)


@pytest.mark.parametrize("family_name", WITHOUT)
def test_a_network_without_patches_has_none_to_black_out(
    model: Model, measured: tuple[Model, Attribution, Steering], pixels: Tensor
) -> None:
    told = "no patch tokens|reads no images"
    with pytest.raises(WeightsmithError, match=told):
        attribute(model, pixels, TARGETS, NAMES)
    with pytest.raises(WeightsmithError, match=told):
        steering(model, pixels, measured[1], pixels)
    with pytest.raises(WeightsmithError):
        steered(model, pixels, TARGETS, LABELS, measured[2])
