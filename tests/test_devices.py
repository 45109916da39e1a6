"""What is measured and edited on each kind of device is what the CPU gives, up to the rounding of float32.

The CPU's own row holds the checks themselves; a GPU's run where there is one, and say so elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import build_tiny_model
from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.data.images import ImageSet
from weightsmith.data.texts import TextSet
from weightsmith.edit import make_editor
from weightsmith.locate import error_cases, screen, sweep
from weightsmith.measure import key_moment, misclassified, predict
from weightsmith.models import Model, load, save
from weightsmith.site import Site
from weightsmith.train import TrainOptions, fit
from weightsmith.train.loop import Training

NEAR = {"rtol": 2e-3, "atol": 2e-4}
"""Of float32 on a GPU, whose products are summed in another order."""


@pytest.fixture(params=["cpu", "cuda", "mps"])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        pytest.skip(f"this machine has no {name} device")
    return name


@pytest.fixture
def both(device: str, tmp_path: Path) -> Callable[[str], tuple[Model, Model]]:
    """`both(family)`: one network on the CPU and on the device."""

    def made(family: str) -> tuple[Model, Model]:
        model = build_tiny_model(family)
        save(model, tmp_path / family)
        return load(tmp_path / family), load(tmp_path / family, device=device)

    return made


@pytest.fixture
def images(random_set: Callable[..., ImageSet]) -> ImageSet:
    return random_set(48)


def test_predictions(both: Callable[[str], tuple[Model, Model]], images: ImageSet, device: str) -> None:
    here, there = both("vit")
    assert there.device.type == device
    assert next(there.module.parameters()).device.type == device
    torch.testing.assert_close(predict(there, images).logits.cpu(), predict(here, images).logits, **NEAR)


def test_key_statistics_are_float64_on_the_cpu(
    both: Callable[[str], tuple[Model, Model]], images: ImageSet, tmp_path: Path
) -> None:
    found = []
    for number, model in enumerate(both("vit")):
        sites = [Site("mlp.key", layer).at("cls") for layer in (0, 2)]
        found.append(key_moment(model, sites, images, tmp_path / f"cache-{number}"))
    for site, moment in found[0].items():
        other = found[1][site].matrix
        assert other.dtype == torch.float64
        assert other.device.type == "cpu"
        torch.testing.assert_close(other, moment.matrix, **NEAR)


def test_traces_and_gradient_screens(both: Callable[[str], tuple[Model, Model]], images: ImageSet) -> None:
    traces, screens = [], []
    for model in both("vit"):
        cases = error_cases(model, misclassified(model, images, limit=4), EmbeddingNoise(3.0, 2, 0))
        sites = [Site("resid.out", layer).at("cls") for layer in range(3)] + [Site("attn.z", 1, head=0)]
        traces.append(torch.as_tensor(sweep(model, cases, sites, min_gap=0.0).effects().values))
        screens.append(torch.as_tensor(screen(model, cases, sites).values))
    torch.testing.assert_close(traces[1], traces[0], **NEAR)
    torch.testing.assert_close(screens[1], screens[0], **NEAR)


@pytest.mark.parametrize("method", ["memit", "alphaedit", "patcher", "head"])
def test_edits_go_on_and_come_off_to_the_bit(
    both: Callable[[str], tuple[Model, Model]], images: ImageSet, method: str, tmp_path: Path
) -> None:
    logits = []
    for number, model in enumerate(both("vit")):
        asked = misclassified(model, images, limit=2)
        delta = make_editor(method).solve(model, asked, images, tmp_path / f"cache-{number}")
        before = predict(model, images).logits
        with delta.on(model):
            logits.append(predict(model, images).logits.cpu())
        assert torch.equal(predict(model, images).logits, before)
        assert not torch.equal(logits[-1], before.cpu())
    torch.testing.assert_close(logits[1], logits[0], rtol=0.05, atol=0.05)  # steps of a descent add their rounding up


def test_texts_are_scored_and_written(both: Callable[[str], tuple[Model, Model]], tmp_path: Path) -> None:
    here, there = both("gpt2")
    ids = torch.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(there.token_logits(ids.to(there.device)).cpu(), here.token_logits(ids), **NEAR)
    texts = TextSet.from_ids(ids)
    sites = [Site("mlp.key", 1)]
    found = [
        key_moment(model, sites, texts, tmp_path / f"{n}")[sites[0]].matrix for n, model in enumerate((here, there))
    ]
    torch.testing.assert_close(found[1], found[0], **NEAR)


def test_training_is_in_mixed_precision_on_a_gpu_alone(
    both: Callable[[str], tuple[Model, Model]],
    images: ImageSet,
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both come to the same accuracy on what they were trained on, which a lookup table of 48 images can."""
    seen: list[torch.dtype | None] = []
    real = Training._step
    monkeypatch.setattr(Training, "_step", lambda self, *where: (seen.append(self.half), real(self, *where))[1])
    right = []
    for number, model in enumerate(both("vit")):
        options = TrainOptions(epochs=12, batch_size=16, lr=5e-3)
        fit(model, images, images, options, tmp_path / f"{number}.pt")
        right.append(float(predict(model, images).right.float().mean()))
    halves = set(seen)
    assert halves == (
        {None} if device != "cuda" else {None, torch.bfloat16} if torch.cuda.is_bf16_supported() else halves
    )
    assert abs(right[0] - right[1]) < 0.25
    assert min(right) > 0.3
