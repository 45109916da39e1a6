"""Images to look at, written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import Examples, load_examples, save_examples


def some(kind: str, count: int) -> Examples:
    images = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8) if count else None
    chances = torch.rand(count, 3)
    names = tuple(f"train/{place}" for place in range(count))
    labels = torch.arange(count, dtype=torch.int64)
    return Examples(kind, "head", "held_out", 9, names, labels, images, chances, chances.flip(-1))


def test_what_was_written_is_read_back_also_where_there_is_no_image(tmp_path: Path) -> None:
    given = [some("edited", 2), some("broken", 0)]
    save_examples(tmp_path / "e.safetensors", given)
    found = load_examples(tmp_path / "e.safetensors")
    assert [(one.kind, one.method, one.part, one.total, one.names) for one in found] == [
        ("edited", "head", "held_out", 9, ("train/0", "train/1")),
        ("broken", "head", "held_out", 9, ()),
    ]
    assert given[0].images is not None
    assert found[0].images is not None
    assert torch.equal(found[0].images, given[0].images)
    assert torch.equal(found[0].after, given[0].before.flip(-1))
    assert found[1].images is None


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "e.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsmithError, match=r"e\.safetensors is damaged"):
        load_examples(tmp_path / "e.safetensors")
