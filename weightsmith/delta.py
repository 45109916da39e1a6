"""`Delta`: a change of weights as a value, that can be added, scaled, put on, taken off, saved and exported."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from weightsmith import mapped
from weightsmith.adapters import Adapter, read_adapter, transposed_weights, write_adapter
from weightsmith.errors import WeightsmithError, WrongWeightsError, perhaps
from weightsmith.factors import Change, Dense, LowRank, factored, joined
from weightsmith.files import as_bytes, read_tensors, understood, write_tensors

__all__ = [
    "Change",
    "Delta",
    "Dense",
    "HasModule",
    "LowRank",
    "factored",
    "lifted",
    "network",
    "stepped",
    "wears_delta",
    "weights_hash",
]

_FORMAT = "weightsmith-delta-1"


class HasModule(Protocol):
    """Anything that wraps a network, such as `weightsmith.Model`."""

    @property
    def module(self) -> nn.Module: ...


def network(model: nn.Module | HasModule) -> nn.Module:
    """The network itself, wrapped or not."""
    return model if isinstance(model, nn.Module) else model.module


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Everything that a delta may change: parameters, and buffers of floats such as the running means of a norm."""
    buffers = module.named_buffers(remove_duplicate=False)
    return dict(module.named_parameters(remove_duplicate=False)) | {n: b for n, b in buffers if b.is_floating_point()}


def weights_hash(model: nn.Module | HasModule) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of every parameter and buffer that a checkpoint holds."""
    module = network(model)
    weights = sorted(module.state_dict().items())
    in_file = mapped.stays(module)
    if in_file and (known := _IN_FILE.get(module)) is not None and known.holds(weights):
        return known.hash
    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(as_bytes(tensor).numpy().data)
        if in_file:
            mapped.release([tensor])
    if in_file and all(mapped.unchanged(tensor) for _, tensor in weights):
        _IN_FILE[module] = _InFile(digest.hexdigest(), _addresses(weights))
    return digest.hexdigest()


@dataclass(frozen=True)
class _InFile:
    """The hash of weights that stay in their file, read once; it is theirs as long as none was written to or replaced."""

    hash: str
    addresses: tuple[int, ...]

    def holds(self, weights: Sequence[tuple[str, Tensor]]) -> bool:
        return self.addresses == _addresses(weights) and all(mapped.unchanged(tensor) for _, tensor in weights)


_IN_FILE: WeakKeyDictionary[nn.Module, _InFile] = WeakKeyDictionary()


def _addresses(weights: Sequence[tuple[str, Tensor]]) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for _, tensor in weights)


@dataclass(frozen=True, eq=False)
class Delta:
    """Parameter name → change, for one set of weights.

    A delta never touches a model by itself: `on` puts it on for a while and takes it off bit by bit, `apply` makes
    it stay. `+`, `-` and scaling give new deltas for the same weights.

    Attributes:
        changes: parameter name → `LowRank` or `Dense`.
        base: `weights_hash` of the weights that the delta was made for; "" fits any.
        info: what made it (method, hyper-parameters, diagnostics); JSON values only.
    """

    changes: Mapping[str, Change]
    base: str = ""
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", MappingProxyType(dict(self.changes)))

    def __add__(self, other: Delta) -> Delta:
        if not isinstance(other, Delta):
            return NotImplemented
        if self.base and other.base and self.base != other.base:
            raise WrongWeightsError(
                "the two deltas were made for different weights: use `first.then(second)` when the second was made "
                "on the weights that the first left"
            )
        return self._joined(other, self.base or other.base)

    def then(self, later: Delta) -> Delta:
        """The sum of this delta and one that was made on the weights it left, for this one's weights."""
        return self._joined(later, self.base)

    def _joined(self, other: Delta, base: str) -> Delta:
        changes = dict(self.changes)
        for name, change in other.changes.items():
            changes[name] = joined(changes[name], change) if name in changes else change
        return Delta(changes, base, {"sum_of": [self.info, other.info]})

    def __mul__(self, factor: float) -> Delta:
        changes = {name: change.scaled(factor) for name, change in self.changes.items()}
        return replace(self, changes=changes, info=self.info | {"scale": self.info.get("scale", 1.0) * factor})

    __rmul__ = __mul__

    def __neg__(self) -> Delta:
        return self * -1.0

    def __sub__(self, other: Delta) -> Delta:
        return self + (-other)

    def norm(self) -> float:
        """Frobenius norm of the whole change."""
        return math.sqrt(sum(change.norm() ** 2 for change in self.changes.values()))

    def compressed(self) -> Delta:
        """The same change with every low-rank part at its smallest rank."""
        return replace(
            self,
            changes={n: c.compressed() if isinstance(c, LowRank) else c for n, c in self.changes.items()},
        )

    def check(self, model: nn.Module | HasModule) -> None:
        """Raise `WrongWeightsError` unless the model has the weights that this delta was made for."""
        if self.base and weights_hash(model) != self.base:
            raise WrongWeightsError(
                "this delta was made for other weights than the model has: load the model it was made for, or pass "
                "check=False to put it on all the same"
            )

    @contextmanager
    def on(self, model: nn.Module | HasModule, check: bool = True) -> Iterator[None]:
        """Put the change on while the block runs, then restore the saved weights (w + d − d is not bitwise w).

        Raises:
            WrongWeightsError: `check` and the model has other weights than those the delta was made for.
            WeightsmithError: a parameter is missing or of another shape.
        """
        module = network(model)
        if check:
            self.check(module)
        worn = _WORN.setdefault(module, _Worn())
        for name, parameter in self._parameters(module).items():
            if name not in worn.originals:
                worn.originals[name] = _original(module, parameter)
        worn.deltas.append(self)
        try:
            self._write(self._parameters(module))
            yield
        finally:
            _take_off(module, worn, self)

    def apply(self, model: nn.Module | HasModule, check: bool = True) -> None:
        """Add the change to the model's weights for good. Raises as `on`; the model is never left half-changed."""
        module = network(model)
        if check:
            self.check(module)
        parameters = self._parameters(module)
        saved = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            self._write(parameters)
        except BaseException:
            _copy_into(parameters, saved)
            raise

    def _parameters(self, module: nn.Module) -> dict[str, Tensor]:
        parameters = _weights(module)
        for name, change in self.changes.items():
            if name not in parameters:
                raise WeightsmithError(
                    f"the model has no parameter {name!r} that this delta changes: load the model it was made for"
                    f"{perhaps(name, parameters)}"
                )
            if tuple(parameters[name].shape) != change.shape:
                raise WeightsmithError(
                    f"the delta changes {name} of shape {change.shape}, the model has "
                    f"{tuple(parameters[name].shape)}: load the model it was made for"
                )
        return {name: parameters[name] for name in self.changes}

    @torch.no_grad()
    def _write(self, parameters: Mapping[str, Tensor]) -> None:
        for name, change in self.changes.items():
            weight = parameters[name]
            weight.copy_(stepped(weight, change.dense()))

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, atomically."""
        header = {"format": _FORMAT, "base": self.base, "info": self.info}
        write_tensors(path, self.tensors(), header)

    def tensors(self) -> dict[str, Tensor]:
        """The changes as named tensors, on the CPU; `of_tensors` reads them."""
        tensors: dict[str, Tensor] = {}
        for name, change in self.changes.items():
            if isinstance(change, LowRank):
                tensors[f"{name}:left"] = change.left.contiguous().cpu()
                tensors[f"{name}:right"] = change.right.contiguous().cpu()
            else:
                tensors[f"{name}:dense"] = change.change.contiguous().cpu()
        return tensors

    @classmethod
    def load(cls, path: Path | str) -> Delta:
        """Read what `save` wrote. Raises `WeightsmithError` for a missing or damaged file or another format."""
        header, tensors = read_tensors(path, _FORMAT)
        with understood(path):
            return cls.of_tensors(tensors, header["base"], header["info"])

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], base: str, info: dict[str, Any]) -> Delta:
        """The delta that `tensors` told."""
        changes: dict[str, Change] = {}
        for key in tensors:
            name, _, part = key.rpartition(":")
            if part == "left":
                changes[name] = LowRank(tensors[f"{name}:left"], tensors[f"{name}:right"])
            elif part == "dense":
                changes[name] = Dense(tensors[key])
        return cls(changes, base, info)

    def to_lora(
        self,
        folder: Path | str,
        model: nn.Module | HasModule,
        base_model: str | None = None,
        alpha: float | None = None,
    ) -> None:
        """Write the delta as a LoRA adapter that plain PEFT loads: alpha/rank B A = change, at full rank.

        Weights of linear layers become lora_A (rank, in) and lora_B (out, rank); a dense change is factored by SVD at
        full rank; a change of a bias becomes lora_B's bias. The base's hash and the info go into the file's metadata.

        Args:
            model: the network that it is for, which says which weights it stores (in, out), as GPT-2 does.
            base_model: name or path written into the adapter as its base model.
            alpha: `lora_alpha` of every layer; None takes each layer's rank. The change is the same.

        Raises:
            WeightsmithError: a change that the model has no place for, or of something else than a linear layer's weight or
                bias; a bad alpha.
        """
        if not self.changes:
            raise WeightsmithError("this delta changes nothing, so there is no adapter to write: solve an edit first")
        self._parameters(network(model))
        transposed = transposed_weights(network(model))
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        biases: dict[str, Tensor] = {}
        for name, change in self.changes.items():
            layer, _, kind = name.rpartition(".")
            if kind == "weight" and len(change.shape) == 2:
                low = factored(change)
                low = low.compressed() if low.left.shape[1] > min(low.shape) else low
                factors[layer] = (low.left.mT, low.right.mT) if name in transposed else (low.right, low.left)
            elif kind == "bias" and isinstance(change, Dense):
                biases[layer] = change.change
            else:
                raise WeightsmithError(f"{name} cannot be part of a LoRA adapter: apply the delta and save the model")
        alone = [layer for layer in biases if layer not in factors]
        if alone:
            raise WeightsmithError(
                f"{alone[0]}.bias changes without its weight, which no LoRA adapter can hold: apply the delta "
                "and save the model"
            )
        turned = frozenset(name for name in self.changes if name in transposed)
        write_adapter(folder, Adapter(factors, biases, turned, self.base, self.info), base_model, alpha)

    @classmethod
    def of_lora(cls, folder: Path | str, transposed: Collection[str] | None = None) -> Delta:
        """Read a LoRA adapter, of `to_lora` or of PEFT; like any delta it then goes on its own base alone.

        Args:
            transposed: as in `to_lora`; None takes the adapter's word, which PEFT gives for all layers together.

        Raises:
            WeightsmithError: a missing or damaged file, a pickle, or an adapter that is more than B A, such as DoRA.
        """
        adapter = read_adapter(folder)
        turned = adapter.transposed if transposed is None else transposed
        changes: dict[str, Change] = {}
        for layer, (down, up) in adapter.factors.items():
            name = f"{layer}.weight"
            changes[name] = LowRank(down.mT, up.mT) if name in turned else LowRank(up, down)
        changes |= {f"{layer}.bias": Dense(bias) for layer, bias in adapter.biases.items()}
        return cls(changes, adapter.base, adapter.info)


def stepped(weight: Tensor, step: Tensor) -> Tensor:
    """The sum weight + step in the type of the weight, computed in float32, or in float64 for float64."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    step = step.to(wide).to(weight.device)
    # Elements that do not change keep their bits: −0.0 + 0.0 would be +0.0.
    return torch.where(step == 0, weight.to(wide), weight.to(wide) + step).to(weight.dtype)


@dataclass
class _Worn:
    """The deltas on a network now, in the order in which they came, and the original of every weight they change.

    An original of None is in the weights' file.
    """

    deltas: list[Delta] = field(default_factory=list)
    originals: dict[str, Tensor | None] = field(default_factory=dict)


_WORN: WeakKeyDictionary[nn.Module, _Worn] = WeakKeyDictionary()


def _take_off(module: nn.Module, worn: _Worn, delta: Delta) -> None:
    """Restore the originals and put the other deltas on again: they may come off in any order."""
    worn.deltas[:] = [other for other in worn.deltas if other is not delta]
    parameters = _weights(module)
    _copy_into({name: parameters[name] for name in worn.originals}, worn.originals)
    for other in worn.deltas:
        other._write(other._parameters(module))
    changed = {name for other in worn.deltas for name in other.changes}
    worn.originals = {name: original for name, original in worn.originals.items() if name in changed}


def wears_delta(model: nn.Module | HasModule) -> bool:
    """Whether a delta is on the model now, put there by `Delta.on`."""
    worn = _WORN.get(network(model))
    return worn is not None and bool(worn.deltas)


@contextmanager
def lifted(model: nn.Module | HasModule) -> Iterator[None]:
    """Take every delta that the model wears off while the block runs: the model as it was before."""
    module = network(model)
    originals = _WORN.get(module, _Worn()).originals
    parameters = {n: p for n, p in _weights(module).items() if n in originals}
    worn = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        _copy_into(parameters, originals)
        yield
    finally:
        _copy_into(parameters, worn)


def _original(module: nn.Module, parameter: Tensor) -> Tensor | None:
    """What to restore a weight from: a copy, or None where that is its file."""
    if mapped.stays(module) and mapped.in_files([parameter]) and mapped.unchanged(parameter):
        return None
    return parameter.detach().clone()


@torch.no_grad()
def _copy_into(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor | None]) -> None:
    for name, parameter in parameters.items():
        value = values[name]
        if value is None:
            mapped.forget(parameter)
        else:
            parameter.copy_(value)
