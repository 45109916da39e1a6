"""Where a checkpoint's tensors lie: safetensors files, folders of shards, state dicts of torch, networks in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.errors import WeightsmithError, near_path
from weightsmith.files import as_bytes, cause_of, user_path
from weightsmith.merge.storage.dtypes import BY_TORCH_NAME, Array, Kind
from weightsmith.merge.storage.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from torch import Tensor, nn

    from weightsmith.delta import HasModule

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The files of a folder in which weights are looked for, in this order."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
"""Endings of what `torch.save` writes."""
_WITHIN = ("state_dict", "model_state_dict", "model")
"""Entries of a training checkpoint under which its state dict usually is."""


@dataclass(frozen=True)
class Stored:
    """One tensor: what it is, and where.

    Attributes:
        kind, shape: of the tensor.
        file, offset: the safetensors file and its first byte there; None for a tensor in memory.
        tensor: the tensor in memory, or mapped by torch.
        tied: the first name of the same memory in a network, "" where it has one name only.
    """

    kind: Kind
    shape: tuple[int, ...]
    file: SafetensorsFile | None = None
    offset: int = 0
    tensor: Tensor | None = None
    tied: str = ""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.elements * self.kind.size

    def read_into(self, first: int, out: Array) -> None:
        """Fill `out`, of bytes, from byte `first` of the tensor on.

        Raises:
            WeightsmithError: the file has changed or cannot be read any more.
        """
        if self.file is not None:
            self.file.read_into(self.offset + first, out)
            return
        assert self.tensor is not None
        size = self.kind.size
        flat = self.tensor.detach().reshape(-1)[first // size : (first + len(out) + size - 1) // size]
        bits = as_bytes(flat).numpy()
        out[:] = bits[first % size : first % size + len(out)]

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


@dataclass(frozen=True)
class Opened:
    """What a source holds."""

    name: str
    stored: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    files: tuple[Path, ...] = ()


def opened(source: str | Path | nn.Module | HasModule | Mapping[str, Tensor]) -> Opened:
    """What a source holds; raises as `Checkpoint.open`."""
    if isinstance(source, str | Path):
        path = user_path(source)
        return _of_folder(str(source), path) if path.is_dir() else _of_file(str(source), path)
    if isinstance(source, Mapping):
        return Opened("the state dict", _of_tensors(source, "the state dict"))
    from weightsmith.delta import network

    module = network(source)
    config: Any = getattr(module, "config", None)
    entries = config.to_dict() if hasattr(config, "to_dict") else {}
    name = type(module).__name__
    return Opened(name, _of_tensors(module.state_dict(), name), config=entries)


def _of_folder(name: str, path: Path) -> Opened:
    for folder in (path, path / "model"):  # a run folder has its model one level down
        found = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
        if found is not None:
            break
    else:
        raise WeightsmithError(
            f"{name} holds no weights: give a folder with {WEIGHTS[0]}, or {WEIGHTS[1]} and its shards"
        )
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if found.name.endswith(".index.json"):
        stored, metadata, files = _of_index(found)
    else:
        whole = _of_file(name, found)
        stored, metadata, files = dict(whole.stored), whole.metadata, whole.files
    return Opened(name, stored, metadata, config, folder, files)


def _of_file(name: str, path: Path) -> Opened:
    if not path.exists():
        raise WeightsmithError(
            f"{name} does not exist: give a .safetensors file, or a folder that holds one{near_path(path)}"
        )
    if path.name.endswith(".index.json"):
        stored, metadata, files = _of_index(path)
        return Opened(name, stored, metadata, files=files)
    if path.suffix in PICKLES:
        return Opened(name, _of_pickle(path), files=(path,))
    if path.suffix != ".safetensors":
        raise WeightsmithError(
            f"{name} is no checkpoint: give a .safetensors file, a .pt state dict, or a model's folder"
        )
    file = SafetensorsFile.open(path)
    return Opened(name, _of_safetensors(file), file.metadata, files=(path,))


def _of_safetensors(file: SafetensorsFile) -> dict[str, Stored]:
    return {name: Stored(kind, shape, file, offset) for name, (kind, shape, offset) in file.tensors.items()}


def _of_index(index: Path) -> tuple[dict[str, Stored], Mapping[str, str], tuple[Path, ...]]:
    """Every tensor that the index names, from its shard."""
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise WeightsmithError(f"{index} has no weight_map of tensors to shards: save the model again")
    stored: dict[str, Stored] = {}
    metadata: Mapping[str, str] = {}
    files: list[Path] = []
    for shard in sorted(set(weight_map.values())):
        path = index.parent / shard
        if Path(shard).name != shard:
            raise WeightsmithError(
                f"{index} names the shard {shard!r}, which lies elsewhere: shards lie beside their index, copy it there"
            )
        if not os.path.isfile(path):  # Path.is_file raises for a name that no disk can have
            raise WeightsmithError(f"{path} is missing, a shard that {index.name} names: copy or fetch it again")
        whole = _of_file(str(path), path)
        metadata = metadata or whole.metadata
        files.append(path)
        named = {name for name, where in weight_map.items() if where == shard}
        absent, unnamed = sorted(named - set(whole.stored)), sorted(set(whole.stored) - named)
        if absent or unnamed:
            what = (
                f"{index} names {absent[0]}, which {shard} does not hold"
                if absent
                else f"{path} holds {unnamed[0]}, which {index.name} does not place there"
            )
            raise WeightsmithError(f"{what}: the files belong to different models, so fetch or save the model again")
        stored |= whole.stored
    return stored, metadata, tuple(files)


def _of_pickle(path: Path) -> dict[str, Stored]:
    """The tensors of a file that `torch.save` wrote; no code of it is run."""
    import torch

    try:
        try:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            held = torch.load(
                path, map_location="cpu", weights_only=True
            )  # the format before torch 1.6 cannot be mapped
    except Exception as error:  # damaged files end in exceptions of many types
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise _not_tensors_alone(path) from error
        raise WeightsmithError(
            f"{path} is damaged or no file of torch.save ({cause_of(error)}): save it again"
        ) from error
    for entry in _WITHIN:
        if isinstance(held, Mapping) and isinstance(held.get(entry), Mapping):
            held = held[entry]
    if not isinstance(held, Mapping):
        raise _not_tensors_alone(path)
    return _of_tensors(held, str(path))


def _not_tensors_alone(path: Path) -> WeightsmithError:
    return WeightsmithError(
        f"{path} is a pickle that holds more than tensors, and reading it could run its code: where it comes from, write "
        "`safetensors.torch.save_file(model.state_dict(), 'model.safetensors')`, and give that file"
    )


def _of_tensors(tensors: Mapping[str, Any], name: str) -> dict[str, Stored]:
    import torch

    stored: dict[str, Stored] = {}
    firsts: dict[tuple[Any, ...], str] = {}
    for key in sorted(tensors):
        tensor = tensors[key]
        kind = BY_TORCH_NAME.get(str(getattr(tensor, "dtype", "")).removeprefix("torch."))
        if not isinstance(tensor, torch.Tensor) or kind is None or tensor.layout != torch.strided:
            what = f"{tensor.dtype} {tensor.layout}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise WeightsmithError(
                f"{name} holds {key} of type {what}, which is no plain tensor: give a plain state dict"
            )
        if tensor.device.type == "meta":
            raise WeightsmithError(f"{name} has {key} without values (on the meta device): load its weights first")
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), kind.name)
        first = firsts.setdefault(place, key) if tensor.numel() else key
        stored[key] = Stored(kind, tuple(tensor.shape), tensor=tensor, tied="" if first == key else first)
    return stored


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsmithError(f"{path} cannot be read ({cause_of(error)}): save the model again") from error
    if not isinstance(found, dict):
        raise WeightsmithError(f"{path} must hold one JSON object: save the model again")
    return found
