"""What a merge is said to cost is what it writes; nothing is written for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from weightsmith.errors import WeightsmithError
from weightsmith.merge import create, forecast, merge
from weightsmith.merge.forecast import merge_cost


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "model"):
        tensors = {f"layer.{i}.weight": torch.randn(40, 50, generator=generator) for i in range(3)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "model.safetensors"


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "slerp", "tsv"])
def test_what_is_written_is_what_was_said(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(forecast, "_SECONDS", 0.0)
    base, model = pair
    before = sorted(tmp_path.rglob("*"))
    cost = merge_cost(create(method), base, [model], tmp_path / "out", max_shard_size="9KB")
    assert sorted(tmp_path.rglob("*")) == before
    done = merge(create(method), base, [model], tmp_path / "out", max_shard_size="9KB")
    assert cost.target == done.path
    assert cost.size == done.report["output"]["bytes"] == 3 * 40 * 50 * 4
    assert cost.tensors == done.report["output"]["tensors"]
    assert cost.files == len(done.report["output"]["files"]) > 1
    assert cost.read == 2 * cost.size
    assert cost.numbers == 6000
    assert cost.seconds > 0
    assert 0 < cost.timed <= 1


def test_what_a_merge_refuses_its_plan_refuses(pair, tmp_path: Path) -> None:
    base, model = pair
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(WeightsmithError, match="--overwrite"):
        merge_cost(create("ties"), base, [model], tmp_path / "out")
