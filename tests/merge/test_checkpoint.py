"""Tensors come out of every source as they went in, and files that are not whole are told in one sentence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.storage.dtypes import KINDS
from weightsmith.models import Model, load, save


def same(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    assert checkpoint.names == tuple(sorted(expected))
    for name, tensor in expected.items():
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype == checkpoint.dtype(name)
        assert read.shape == tensor.shape == checkpoint.shape(name)
        assert read.reshape(-1).view(torch.uint8).equal(tensor.contiguous().reshape(-1).view(torch.uint8))
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in expected.values())


def sharded(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> Path:
    """A folder with an index, written here by hand."""
    folder.mkdir(parents=True)
    weight_map = {}
    for shard in range(shards):
        part = {name: tensors[name] for place, name in enumerate(tensors) if place % shards == shard}
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_every_source_gives_the_same(tensors, tmp_path: Path, dtype: torch.dtype) -> None:
    held = tensors(1, dtype)
    save_file(held, tmp_path / "one.safetensors", metadata={"made": "here"})
    torch.save(held, tmp_path / "one.pt")
    torch.save({"state_dict": held, "epoch": 3}, tmp_path / "training.bin")
    places = [tmp_path / name for name in ("one.safetensors", "one.pt", "training.bin")]
    hashes = set()
    for source in (*places, sharded(tmp_path / "sharded", held, 3), held):
        with Checkpoint.open(source) as checkpoint:
            same(checkpoint, held)
            hashes.add(checkpoint.sha256())
    assert len(hashes) == 1
    assert Checkpoint.open(str(places[0])).metadata["made"] == "here"
    assert len(Checkpoint.open(tmp_path / "sharded").files()) == 3


def test_the_format_before_torch_1_6(tensors, tmp_path: Path) -> None:
    """It cannot be mapped."""
    torch.save(tensors(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    same(Checkpoint.open(tmp_path / "old.pt"), tensors())


def test_a_network_has_the_hash_of_its_weights(model: Model, tmp_path: Path) -> None:
    held = Checkpoint.open(model)
    same(held, model.module.state_dict())
    assert held.sha256() == Checkpoint.open(model.module).sha256() == weights_hash(model)
    save(model, tmp_path / "folder")
    stored = Checkpoint.open(tmp_path / "folder")
    assert stored.config["model_type"] in model.family.model_types
    assert stored.folder == tmp_path / "folder"
    assert load(tmp_path / "folder").fingerprint() == model.fingerprint()
    if stored.names == held.names:  # else transformers' files have names of their own, or leave tied tensors out
        assert stored.sha256() == held.sha256()


def test_tied_tensors_of_a_network(tiny_model) -> None:
    checkpoint = Checkpoint.open(tiny_model("gpt2"))
    assert checkpoint.tied("transformer.wte.weight") == checkpoint.tied("lm_head.weight") == "lm_head.weight"
    assert checkpoint.tied("transformer.wpe.weight") == "transformer.wpe.weight"


def test_tensors_that_are_read_are_fresh(tensors, write) -> None:
    held = tensors()
    for source in (write(held, "one"), held):
        checkpoint = Checkpoint.open(source)
        checkpoint.read("embed.weight").zero_()
        same(checkpoint, held)


def test_pieces_and_numbers(tensors, write) -> None:
    held = tensors(3, torch.bfloat16)
    checkpoint = Checkpoint.open(write(held, "one"))
    bits = checkpoint.bits("embed.weight", 10, np.empty(7, "<u2"))
    assert bits.tolist() == held["embed.weight"].reshape(-1)[10:17].view(torch.uint16).tolist()
    assert torch.from_numpy(checkpoint.whole("embed.weight")).equal(held["embed.weight"].float())
    assert checkpoint.whole("position_ids").tolist() == list(range(7))


@given(st.lists(st.floats(width=32), min_size=1, max_size=20), st.sampled_from(["F16", "BF16", "F32"]))
def test_rounding_is_that_of_torch(values: list[float], name: str) -> None:
    kind = KINDS[name]
    numbers = np.array(values, np.float32)
    expected = torch.from_numpy(numbers).to(kind.torch)
    mine = kind.narrowed(numbers)
    assert torch.from_numpy(kind.widened(mine)).equal(expected.float()) or np.isnan(numbers).any()
    assert np.array_equal(kind.widened(mine), expected.float().numpy(), equal_nan=True)


def header_of(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def rewritten(path: Path, header: dict | str, body: bytes) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _noise(path: Path) -> None:
    path.write_bytes(b"not a checkpoint at all")


def _long(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def _unknown_type(path: Path) -> None:
    header, body = header_of(path)
    header["embed.weight"]["dtype"] = "F31"
    rewritten(path, header, body)


def _wrong_shape(path: Path) -> None:
    header, body = header_of(path)
    header["embed.weight"]["shape"] = [13, 9]
    rewritten(path, header, body)


def _overlap(path: Path) -> None:
    header, body = header_of(path)
    first, last = header["blocks.0.fc.bias"]["data_offsets"]
    header["blocks.0.fc.bias"]["data_offsets"] = [0, last - first]
    rewritten(path, header, body)


def _twice(path: Path) -> None:
    header, body = header_of(path)
    text = json.dumps(header)
    entry = json.dumps(header["scale"])
    rewritten(path, text[:-1] + f', "scale": {entry}' + "}", body)


BROKEN: dict[str, Callable[[Path], None]] = {
    "cut": _cut, "cut in header": _cut_in_header, "noise": _noise, "long": _long, "unknown type": _unknown_type,
    "wrong shape": _wrong_shape, "overlap": _overlap, "twice": _twice, "empty": lambda path: path.write_bytes(b""),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_damaged_files(tensors, write, how: str) -> None:
    path = write(tensors(), "one")
    BROKEN[how](path)
    with pytest.raises(WeightsmithError, match=r"one\.safetensors is damaged .* write it again"):
        Checkpoint.open(path)


def test_a_file_that_is_cut_after_it_was_opened(tensors, write) -> None:
    path = write(tensors(), "one")
    checkpoint = Checkpoint.open(path)
    _cut_in_header(path)
    with pytest.raises(WeightsmithError, match=r"one\.safetensors cannot be read any more"):
        checkpoint.sha256()


def test_indices_and_shards_that_do_not_fit(tensors, tmp_path: Path) -> None:
    held = tensors()
    folder = sharded(tmp_path / "one", held, 3)
    index = folder / "model.safetensors.index.json"
    entries = json.loads(index.read_text())

    def refused(changes: dict[str, str | None], words: str) -> None:
        weight_map = {k: v for k, v in (entries["weight_map"] | changes).items() if v is not None}
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(WeightsmithError, match=words):
            Checkpoint.open(folder)

    refused({"absent": "model-00001-of-00003.safetensors"}, "names absent, which model-00001")
    refused({"scale": None}, "holds scale, which model.safetensors.index.json does not place there")
    refused({"absent": "model-00009.safetensors"}, "model-00009.safetensors is missing, a shard")
    refused({"absent": "../one.safetensors"}, "lies elsewhere")
    index.write_text("{}")
    with pytest.raises(WeightsmithError, match="no weight_map"):
        Checkpoint.open(folder)
    index.write_text("[")
    with pytest.raises(WeightsmithError, match="cannot be read"):
        Checkpoint.open(folder)
    index.write_text(json.dumps(entries))
    same(Checkpoint.open(folder), held)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsmithError, match=r"model-00002-of-00003\.safetensors is missing"):
        Checkpoint.open(folder)


class Odd:
    """Something that a state dict does not hold."""


def test_pickles_and_other_files(tensors, tmp_path: Path) -> None:
    torch.save({"weight": Odd()}, tmp_path / "odd.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("odd.pt", "module.pt", "list.pt"):
        with pytest.raises(WeightsmithError, match=rf"{name} is a pickle .*save_file"):
            Checkpoint.open(tmp_path / name)
    torch.save({"a": torch.ones(2), "b": 3}, tmp_path / "mixed.pt")
    with pytest.raises(WeightsmithError, match=r"mixed\.pt holds b of type int"):
        Checkpoint.open(tmp_path / "mixed.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "weights.gguf").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    for name, words in (
        ("broken.pt", "damaged"),
        ("weights.gguf", "is no checkpoint"),
        ("folder", "holds no weights"),
        ("nowhere", "does not exist"),
    ):
        with pytest.raises(WeightsmithError, match=words):
            Checkpoint.open(tmp_path / name)


def test_names_that_are_not_there(tensors) -> None:
    checkpoint = Checkpoint.open(tensors())
    with pytest.raises(WeightsmithError, match=r"no tensor 'scael': did you mean 'scale'"):
        checkpoint.read("scael")
    with pytest.raises(WeightsmithError, match="meta device"):
        Checkpoint.open(torch.nn.Linear(2, 2, device="meta"))
    with pytest.raises(WeightsmithError, match="no plain tensor"):
        Checkpoint.open({"sparse": torch.eye(3).to_sparse()})
