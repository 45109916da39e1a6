"""Heads by role, and networks that read rows of numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import weightsmith as ws
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.models.heads import backbone_names, head_names
from weightsmith.models.mlp import MLPConfig, MLPForImageClassification


def reader(**more: object) -> Model:
    entries = {"image_size": 1, "num_channels": 6, "hidden_sizes": (6, 5, 4), "reads": "features", "num_labels": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ws.load(MLPForImageClassification(MLPConfig(**entries | more)).eval())


def test_head_and_backbone_are_all_and_do_not_meet(model: Model) -> None:
    head, backbone = head_names(model), backbone_names(model)
    assert sorted([*head, *backbone]) == sorted(model.module.state_dict())
    assert f"{model.family.classifier}.weight" in head
    assert backbone


def test_a_deep_head_takes_the_last_blocks() -> None:
    names = {name.rpartition(".")[0] for name in head_names(reader(head_layers=3))}
    assert names == {"blocks.1.linear", "blocks.2.linear", "classifier"}
    with pytest.raises(WeightsmithError, match="head_layers"):
        head_names(reader(head_layers=5))


def test_a_network_of_features_is_saved_and_reads_numbers_as_they_are(tmp_path: Path) -> None:
    model = reader()
    rows = torch.tensor([[1e6, -3.0, 0.0, 0.5, 2.0, -1.0]])[:, :, None, None]
    assert torch.equal(model.preprocess(rows), rows)
    ws.models.save(model, tmp_path / "m")
    again = ws.load(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(again.logits(again.preprocess(rows)), model.logits(rows))
    assert again.fingerprint() == model.fingerprint()


def test_a_network_of_features_refuses_what_it_does_not_read(random_pixels: Callable[..., torch.Tensor]) -> None:
    for data in (random_pixels(2), torch.ones(2, 5, 1, 1)):
        with pytest.raises(WeightsmithError, match="tables of 6 features"):
            reader().preprocess(data)
