"""A head is the same tensors in a file as in the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import weightsmith as ws
from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.heads import head_names
from weightsmith.models import heads, save
from weightsmith.models.mlp import MLPConfig, MLPForImageClassification


@pytest.mark.parametrize("head_layers", [1, 3])
def test_a_deep_head_in_a_file(head_layers: int, tmp_path: Path) -> None:
    config = MLPConfig(
        image_size=1, num_channels=6, hidden_sizes=(6, 5, 4), reads="features", num_labels=3, head_layers=head_layers
    )
    with torch.random.fork_rng():
        model = ws.load(MLPForImageClassification(config).eval())
    save(model, tmp_path / "folder")
    found = head_names(Checkpoint.open(tmp_path / "folder"))
    assert found == set(heads.head_names(model))
    assert len(found) == 2 * head_layers
