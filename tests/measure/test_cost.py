"""Multiplications against what one counts by hand, and times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from torch import nn

from weightsmith.measure import Cost, Latency, latencies
from weightsmith.measure.cost import still_image
from weightsmith.measure.intervals import median
from weightsmith.models import create, load, save


def vit_macs(size: int, patch: int, width: int, layers: int, mlp: int, classes: int, channels: int = 3) -> int:
    """Patches, then in each block q, k, v and the output map, both products of attention, and the MLP; then the head."""
    patches = (size // patch) ** 2
    tokens = patches + 1
    embedding = patches * width * channels * patch**2
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * mlp
    return embedding + layers * block + width * classes


def test_the_multiplications_of_a_vit(tiny_model, hook_count) -> None:
    model = tiny_model("vit")
    cost = Cost.of(model)
    assert cost.macs == vit_macs(8, 4, 16, 3, 24, 4) == 32416
    assert cost.flops == 2 * cost.macs
    assert cost.parameters == sum(parameter.numel() for parameter in model.module.parameters())
    assert cost.size is None
    assert hook_count(model.module) == 0


def test_the_multiplications_of_an_mlp(tiny_model) -> None:
    assert Cost.of(tiny_model("mlp")).macs == 192 * 14 + 14 * 12 + 12 * 10 + 10 * 4


def test_what_a_model_skips_is_not_counted(tiny_model) -> None:
    model = tiny_model("vit")
    whole = Cost.of(model)
    blocks = model.module.get_submodule("vit.layers")
    assert isinstance(blocks, nn.ModuleList)
    del blocks[1]
    assert Cost.of(model).macs == whole.macs - (whole.macs - vit_macs(8, 4, 16, 0, 24, 4)) // 3


def test_size_on_disk_is_of_the_weights(tiny_model, tmp_path: Path) -> None:
    save(tiny_model("vit"), tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("much" * 1000)
    expected = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert Cost.of(load(tmp_path / "model")).size == expected
    assert Cost.of(load(tmp_path)).size == expected


def test_times_are_of_every_model_in_every_round(tiny_model) -> None:
    found = latencies({"one": tiny_model("mlp"), "two": tiny_model("vit")}, (1, 4), rounds=7)
    assert {name: {size: len(one.milliseconds) for size, one in sizes.items()} for name, sizes in found.items()} == {
        "one": {1: 7, 4: 7},
        "two": {1: 7, 4: 7},
    }
    assert all((one.milliseconds > 0).all() for sizes in found.values() for one in sizes.values())


def test_models_run_in_turn(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    models = {name: tiny_model("mlp") for name in "abc"}
    for name, model in models.items():
        model.module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    latencies(models, (1,), rounds=8)
    counted = ran[6:]
    rounds = ["".join(counted[start : start + 3]) for start in range(0, len(counted), 3)]
    assert len(rounds) == 8
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) > 1  # the order is drawn anew


def test_slow_passes_are_timed_six_times(tiny_model) -> None:
    found = latencies({"a": tiny_model("mlp")}, (1,), rounds=100, most_seconds=0.0)
    assert len(found["a"][1].milliseconds) == 6


def test_a_latency() -> None:
    slow, fast = Latency(8, np.array([4.0, 8.0, 12.0, 4.0])), Latency(8, np.array([2.0, 4.0, 6.0, 2.0]))
    assert slow.median.value == 6
    assert slow.quartiles == (4.0, 9.0)
    assert fast.throughput == pytest.approx(8000 / 3)
    assert slow.against(fast).value == 2


@pytest.mark.parametrize("n", [6, 9, 30, 101])
def test_the_interval_of_a_median_is_that_of_order_statistics(n: int) -> None:
    values = np.random.default_rng(n).permutation(n).astype(float)
    found = median(values)
    below = int(found.low)  # of the values 0 … n − 1 so many lie below the bound
    assert found.value == (n - 1) / 2
    assert found.high == n - 1 - below
    assert binom.cdf(below, n, 0.5) <= 0.025 < binom.cdf(below + 1, n, 0.5)


def test_few_values_have_no_interval() -> None:
    assert np.isnan(median([1.0, 2.0, 3.0, 4.0, 5.0]).low)
    assert median([]).n == 0


def test_a_still_image_is_what_a_model_reads() -> None:
    model = create("digits", tuple("0123456789"), 0, 1)
    pixels = still_image(model, 3)
    assert pixels.shape == (3, 1, model.preprocess.size, model.preprocess.size)
    assert pixels.device == model.device
