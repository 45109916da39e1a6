"""What the rows of the table read: good models and data, each made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.conftest import (
    Once,
    _undrawn,
    drawn,
    finished,
    knowing,
    run_copy,
    small_facts,
    talker,
    tiny,
    tuned,
    weightsmith,
)
from weightsmith.data import artificial as presets
from weightsmith.data.artificial import ArtificialTask
from weightsmith.models import create, save
from weightsmith.models.mlp import MLPConfig, MLPForImageClassification
from weightsmith.models.store import wrap

__all__ = [
    "_undrawn", "drawn", "finished", "knowing", "run_copy", "small_facts", "talker", "tiny", "tuned", "weightsmith",
]  # fmt: skip


@pytest.fixture(scope="session")
def tuned_runs(tuned: tuple[Path, dict[str, Path]]) -> Path:
    """The folder of two runs that were fine-tuned from the finished one; beside it lie their data."""
    return tuned[0]


@pytest.fixture(scope="session")
def rivals(once: Once) -> Path:
    """A folder with two small untrained classifiers of digits, as run folders."""

    def make(folder: Path) -> None:
        for name, width in (("large", 16), ("small", 8)):
            entries = {
                "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": width, "num_hidden_layers": 2,
                "num_attention_heads": 2, "intermediate_size": 2 * width,
            }  # fmt: skip
            (folder / f"{name}.json").write_text(json.dumps(entries))
            model = create(str(folder / f"{name}.json"), tuple("0123456789"), 0, channels=1)
            save(model, folder / "runs" / name / "model")

    return once("bad-inputs-rivals", make)


@pytest.fixture(scope="session")
def near(once: Once, tiny_model: Callable[..., Any]) -> Path:
    """A folder with a base and two models near it."""

    def make(folder: Path) -> None:
        for name, step in (("base", 0.0), ("one", 0.03), ("two", -0.01)):
            model = tiny_model("vit")
            with torch.no_grad():
                for parameter in model.module.parameters():
                    parameter.add_(step)
            save(model, folder / name)

    return once("bad-inputs-near", make)


@pytest.fixture(scope="session")
def texts(once: Once, tiny_model: Callable[..., Any]) -> Path:
    """A folder with a Llama of 29 tokens that reads 16 of them, without a tokenizer."""

    def make(folder: Path) -> None:
        save(tiny_model("llama"), folder / "llama")
        (folder / "ids.json").write_text(json.dumps([{"ids": [1, 5, 9, 2, 7], "subject": [1, 3]}]))

    return once("bad-inputs-texts", make)


@pytest.fixture
def small_tables() -> Iterator[None]:
    """The artificial data sets are small ones."""
    sizes = {"n_features": 16, "n_informative": 6, "n_clusters_per_class": 1, "class_sep": 3.0}
    first = ArtificialTask(n_samples=150, n_classes=3, seed=1, **sizes)  # type: ignore[arg-type]
    second = ArtificialTask(n_samples=160, n_classes=4, seed=2, **sizes)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(presets.PRESETS, "plain", (first, second))
        yield


def perfect(folder: Path) -> Path:
    """A model that gets a two-class data set right: black images are class 0, white ones class 1."""
    module = MLPForImageClassification(MLPConfig(image_size=8, num_channels=1, hidden_sizes=(4,), num_labels=2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.blocks[0].linear.weight[0] = 1.0
        module.classifier.weight[1, 0] = 1.0
        module.classifier.bias[0] = 1.0
    save(wrap(module.eval(), None, {}, "perfect"), folder)
    return folder
