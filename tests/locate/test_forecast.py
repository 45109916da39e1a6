"""What a sweep is said to cost is what it costs: the count of block forwards of images is exact."""

from __future__ import annotations

import pytest
import torch

from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.locate import ImageCases, Prompt, PromptCases, forecast, grids, sweep
from weightsmith.locate.cases import select
from weightsmith.locate.forecast import sweep_cost


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_SECONDS", 0.0)


@pytest.mark.parametrize("places", ["cls", "all", "windows", "heads", "tokens", "attn.z"])
@pytest.mark.parametrize("sever", [(), ("mlp.out",)])
def test_images_are_counted_exactly(tiny_model, random_pixels, places: str, sever: tuple[str, ...]) -> None:
    model = tiny_model("vit")
    zeros = torch.zeros(4, dtype=torch.int64)
    cases = ImageCases(model, tuple("abcd"), random_pixels(4), EmbeddingNoise(3.0, 3, 0), zeros, zeros + 1)
    sites = {
        "cls": lambda: grids.layers(model, "resid.out", "cls"),
        "all": lambda: grids.layers(model, "mlp.out"),
        "windows": lambda: grids.layers(model, "attn.out", None, (1, 2)),
        "heads": lambda: grids.heads(model),
        "tokens": lambda: grids.tokens(model, "resid.out"),
        "attn.z": lambda: grids.layers(model, "attn.z", "cls"),
    }[places]()
    real = sweep(model, cases, sites, min_gap=0.0, sever=sever).info
    # Planned with one image, for all of them.
    planned = sweep_cost(model, select(cases, [0, 1]), sites, 4, sever=sever)
    assert planned.block_forwards == pytest.approx(real["block_forwards"], abs=0.02)
    assert planned.naive == real["naive_block_forwards"]
    assert planned.seconds > 0
    assert planned.memory > 0


def test_prompts_are_counted_by_examples(tiny_model) -> None:
    model = tiny_model("gpt2")
    prompts = tuple(Prompt(str(i), (5, 6, 7, 8, 9, 10), (1, 2)) for i in range(3))
    cases = PromptCases(model, prompts, EmbeddingNoise(3.0, 2, 0))
    sites = grids.subject(model, "resid.out")
    real = sweep(model, cases, sites, min_gap=0.0).info
    planned = sweep_cost(model, cases, sites, 3)
    assert planned.block_forwards == pytest.approx(real["block_forwards"], rel=0.15)
    assert sweep_cost(model, cases, sites, 30).block_forwards == pytest.approx(10 * planned.block_forwards)
