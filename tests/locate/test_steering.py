"""Steering against its formula by hand, one pass an image."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.locate.astra import AstraOptions, Attribution, attribute
from weightsmith.locate.steering import Steering, steered, steering_vectors
from weightsmith.models import Model, families, patch, record
from weightsmith.site import Site

OPTIONS = AstraOptions(masks=24, top=3, batch=50)
NAMES = ("val/0", "val/1", "val/2")
TARGETS = torch.tensor([1, 0, 3])
LABELS = torch.tensor([0, 1, 2])
WITHOUT = sorted(name for name, family in families().items() if not family.has_tokens or family.reads != "images")


@pytest.mark.parametrize("tokens", ["cls", "patches"])
@torch.no_grad()
def test_the_steering_vectors_are_those_of_one_pass_an_image(
    looked: Model, pixels: Tensor, calibration: Tensor, painted: Callable[..., Tensor], tokens: str
) -> None:
    pixels = torch.cat([pixels, torch.zeros_like(pixels[:1])])  # the black one has no evidence
    attribution = attribute(looked, pixels, torch.tensor([1, 0, 3, 2]), (*NAMES, "black"), OPTIONS)
    found = steering_vectors(looked, pixels, attribution, calibration, layers=(0, 2), tokens=tokens)
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


def test_without_evidence_there_is_nothing_to_steer_away_from(vit: Callable[..., Model], pixels: Tensor) -> None:
    model = vit()
    nn.init.zeros_(model.module.classifier.weight)
    found = attribute(model, pixels, TARGETS, NAMES, OPTIONS)
    with pytest.raises(WeightsmithError, match=r"no patch of any image speaks for its target.*--masks"):
        steering_vectors(model, pixels, found, pixels)


@pytest.mark.parametrize("batch", [1, 3, 7, 1000])
def test_the_batch_size_does_not_matter(
    measured: tuple[Model, Attribution, Steering], pixels: Tensor, calibration: Tensor, batch: int
) -> None:
    model, attribution, one = measured
    again = steering_vectors(model, pixels, attribution, calibration, batch=batch)
    torch.testing.assert_close(again.vectors, one.vectors, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.centres, one.centres, rtol=0, atol=1e-5)
    rows, others = (steered(model, pixels, TARGETS, LABELS, one, strengths=(0, 2), batch=b) for b in (64, batch))
    for row, same in zip(rows, others, strict=True):
        assert row == pytest.approx(same, abs=1e-5)


@pytest.mark.parametrize("tokens", ["cls", "patches"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_steering_follows_the_formula(
    measured: tuple[Model, Attribution, Steering], pixels: Tensor, calibration: Tensor, layer: int, tokens: str
) -> None:
    model, attribution, _ = measured
    found = steering_vectors(model, pixels, attribution, calibration, tokens=tokens)
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
def test_steering_takes_planted_evidence_away(
    seed: int, vit: Callable[..., Model], random_pixels: Callable[..., Tensor]
) -> None:
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
    vectors = steering_vectors(model, pasted[:12], found, clean[:12])
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
        steering_vectors(model, pixels, attribution, calibration.float())
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


def test_save_and_load_are_inverse(measured: tuple[Model, Attribution, Steering], tmp_path: Path) -> None:
    vectors = measured[2]
    vectors.save(tmp_path / "deep" / "steering.safetensors")
    again = Steering.load(tmp_path / "deep" / "steering.safetensors")
    assert torch.equal(again.vectors, vectors.vectors)
    assert torch.equal(again.centres, vectors.centres)
    assert (again.layers, again.tokens, again.info) == (vectors.layers, vectors.tokens, vectors.info)


def test_bad_files_are_told(measured: tuple[Model, Attribution, Steering], tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(WeightsmithError, match=r"file\.safetensors does not exist"):
        Steering.load(path)
    save_file({"values": torch.zeros(1)}, path, metadata={"weightsmith": json.dumps({"format": "weightsmith-delta-1"})})
    with pytest.raises(WeightsmithError, match=r"file\.safetensors is no weightsmith-\w+-1 file"):
        Steering.load(path)
    measured[2].save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsmithError, match=r"file\.safetensors is damaged"):
        Steering.load(path)


def test_images_and_classes_that_do_not_fit_are_told(
    measured: tuple[Model, Attribution, Steering], vit: Callable[..., Model], pixels: Tensor, calibration: Tensor
) -> None:
    model, attribution, found = measured
    with pytest.raises(WeightsmithError, match="labels name a class beyond"):
        steered(model, pixels, TARGETS, LABELS + 2, found)
    with pytest.raises(WeightsmithError, match="attribution is of 3 images with 9 patches, and 2 with 9"):
        steering_vectors(model, pixels[:2], attribution, calibration)
    with pytest.raises(WeightsmithError, match="no calibration images"):
        steering_vectors(model, pixels, attribution, calibration[:0])
    with pytest.raises(WeightsmithError, match="and 3 with 4 were given"):
        steering_vectors(vit(8, 4), pixels, attribution, calibration)
    with pytest.raises(WeightsmithError, match=r"--tokens clss cannot be steered: did you mean 'cls'\?"):
        steering_vectors(model, pixels, attribution, calibration, tokens="clss")
    for layers in ((3,), (0, 0), ()):
        with pytest.raises(WeightsmithError, match="--layers names"):
            steering_vectors(model, pixels, attribution, calibration, layers=layers)
    for batch in (0, -1):
        with pytest.raises(WeightsmithError, match="--batch"):
            steering_vectors(model, pixels, attribution, calibration, batch=batch)
        with pytest.raises(WeightsmithError, match="--batch"):
            steered(model, pixels, TARGETS, LABELS, found, batch=batch)


def test_settings_that_there_are_not_are_told(
    measured: tuple[Model, Attribution, Steering], pixels: Tensor, calibration: Tensor
) -> None:
    model, attribution, _ = measured
    some = steering_vectors(model, pixels, attribution, calibration, layers=(0, 2))
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
    with pytest.raises(WeightsmithError, match="steering of 2 layers needs"):
        Steering((0, 1), torch.zeros(1, 4), torch.zeros(1, 4))


@pytest.mark.parametrize("family_name", WITHOUT)
def test_a_network_without_patches_has_no_steering(
    model: Model, measured: tuple[Model, Attribution, Steering], pixels: Tensor
) -> None:
    with pytest.raises(WeightsmithError, match=r"no patch tokens|reads no images"):
        steering_vectors(model, pixels, measured[1], pixels)
    with pytest.raises(WeightsmithError):
        steered(model, pixels, TARGETS, LABELS, measured[2])
