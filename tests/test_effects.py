from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.site import Site

SITES = (Site("mlp.out", 0), Site("mlp.out", 2), Site("attn.out", 0), Site("classifier.value"))


@pytest.fixture
def effects() -> Effects:
    values = torch.from_numpy(np.random.default_rng(0).normal([0.0, 9.0, 5.0, 20.0], size=(7, 4)))
    return Effects(SITES, values, tuple(f"val/{i}" for i in range(7)), "probability", {"noise": 3.0})


def test_the_table_has_the_statistics_of_each_site(effects: Effects) -> None:
    rows = effects.table()
    assert [row["site"] for row in rows] == [str(site) for site in SITES]
    assert [row["layer"] for row in rows] == [0, 2, 0, None]
    assert [row["rank"] for row in rows] == [4, 2, 3, 1]
    for row, column in zip(rows, effects.values.numpy().T, strict=True):
        assert row["n"] == 7
        assert row["mean"] == pytest.approx(column.mean(), rel=1e-12)
        assert row["std"] == pytest.approx(column.std(ddof=1), rel=1e-12)
        assert row["stderr"] == pytest.approx(stats.sem(column), rel=1e-12)
        resampled = stats.bootstrap((column,), np.mean, n_resamples=4000, method="percentile", random_state=1)
        width = resampled.confidence_interval.high - resampled.confidence_interval.low
        assert (row["low"], row["high"]) == pytest.approx(tuple(resampled.confidence_interval), abs=0.06 * width)


def test_intervals_of_all_sites_come_from_one_resampling() -> None:
    values = torch.from_numpy(np.random.default_rng(3).normal(size=(30, 1)))
    table = Effects(SITES[:2], torch.cat([values, 2 * values + 1], 1), tuple(map(str, range(30))), "kl").table()
    assert table[1]["low"] == pytest.approx(2 * table[0]["low"] + 1)
    assert table[1]["high"] == pytest.approx(2 * table[0]["high"] + 1)


def test_normalised_effects_are_shares_of_each_gap() -> None:
    info = {"clean": [3.0, 1.0], "corrupted": [1.0, 2.0]}
    effects = Effects(SITES[:2], torch.tensor([[1.0, 2.0], [-0.5, -1.0]]).double(), ("a", "b"), "kl", info)
    assert effects.gaps.tolist() == [2.0, -1.0]
    assert effects.normalised().values.tolist() == [[0.5, 1.0], [0.5, 1.0]]
    assert effects.normalised().info["normalised"]
    assert effects.at([SITES[1]]).values.tolist() == [[2.0], [-1.0]]
    with pytest.raises(WeightsmithError, match=r"classifier\.value was not measured"):
        effects.at([SITES[3]])
    with pytest.raises(WeightsmithError, match="changes nothing of b"):
        Effects(SITES[:1], torch.ones(2, 1), ("a", "b"), "kl", info | {"corrupted": [1.0, 1.0]}).normalised()
    with pytest.raises(WeightsmithError, match="without a corruption"):
        Effects(SITES[:1], torch.ones(2, 1), ("a", "b"), "kl").normalised()


def test_one_sample_has_no_spread_and_no_nan() -> None:
    (row,) = Effects(SITES[:1], torch.tensor([[0.25]]), ("val/0",), "probability").table()
    assert (row["mean"], row["std"], row["low"], row["high"]) == (0.25, 0.0, 0.25, 0.25)


def test_top_sites_and_layers(effects: Effects) -> None:
    assert effects.top(2) == [SITES[3], SITES[1]]
    assert effects.top(4) == [SITES[3], SITES[1], SITES[2], SITES[0]]
    assert effects.top_layers(1) == (2,)
    assert effects.top_layers(2) == (0, 2)  # in the order of the network, a layer counts by its best site


def test_equal_effects_keep_the_order_of_the_sites() -> None:
    tied = Effects(SITES[:3], torch.zeros(2, 3), ("a", "b"), "probability")
    assert tied.top(3) == list(SITES[:3])
    assert [row["rank"] for row in tied.table()] == [1, 2, 3]


@pytest.mark.parametrize("count", [0, 5, -1])
def test_more_sites_than_there_are_is_an_error(effects: Effects, count: int) -> None:
    with pytest.raises(WeightsmithError, match=f"top {count} of 4 sites"):
        effects.top(count)


@pytest.mark.parametrize("count", [0, 3])
def test_more_layers_than_there_are_is_an_error(effects: Effects, count: int) -> None:
    with pytest.raises(WeightsmithError, match=f"top {count} of 2 layers"):
        effects.top_layers(count)


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(WeightsmithError, match="1 samples at 4 sites"):
        Effects(SITES, torch.zeros(4, 1), ("a",), "probability")


def test_save_and_load_are_inverse(effects: Effects, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "effects.safetensors"
    transposed = Effects(SITES, effects.values.mT.contiguous().mT, effects.samples, "logit_difference", {"k": [1, "ä"]})
    for one in (effects, transposed):
        one.save(path)
        back = Effects.load(path)
        assert torch.equal(back.values, one.values)
        assert back.values.dtype == torch.float64
        assert (back.sites, back.samples, back.metric, back.info) == (one.sites, one.samples, one.metric, one.info)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match=r"nowhere\.safetensors does not exist"):
        Effects.load(tmp_path / "nowhere.safetensors")


def test_a_damaged_file_is_named(effects: Effects, tmp_path: Path) -> None:
    path = tmp_path / "effects.safetensors"
    effects.save(path)
    whole = path.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsmithError, match=r"effects\.safetensors is damaged"):
            Effects.load(path)


@pytest.mark.parametrize("metadata", [None, {"weightsmith": json.dumps({"format": "weightsmith-delta-1"})}])
def test_a_file_of_another_format_is_told(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"values": torch.zeros(1, 1)}, path, metadata=metadata)
    with pytest.raises(WeightsmithError, match=r"other\.safetensors is no weightsmith-effects-1 file"):
        Effects.load(path)
