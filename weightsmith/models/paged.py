"""Networks larger than memory: a block's weights are read from their file when its turn comes, and forgotten behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from weightsmith import mapped
from weightsmith.errors import WeightsmithError
from weightsmith.models.model import Model

DISK = "disk"
"""In place of a device: computed on the CPU, with weights that stay in their files."""

_SHARE = 0.5
"""Of the memory that is free, above which a network's weights stay in their files without being asked to."""

_log = logging.getLogger(__name__)


def weights_of(module: nn.Module) -> list[Tensor]:
    """Every parameter and buffer, each once."""
    return [*module.parameters(), *module.buffers()]


def bytes_of(module: nn.Module) -> int:
    """Bytes of the weights; what is tied counts once."""
    return sum(map(_size, weights_of(module)))


def _size(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()


def stays_in_file(module: nn.Module, asked: bool, name: str) -> bool:
    """Whether a network that was just loaded leaves its weights where they are: asked to, or where memory is short.

    Raises:
        WeightsmithError: asked to, on a system that cannot, or with weights that are no map of a file.
    """
    size = bytes_of(module)
    if asked:
        if not mapped.can_map():
            raise WeightsmithError(f"--device {DISK} needs Linux, which tells what may be forgotten: give auto or cpu")
        if mapped.in_files(weights_of(module)) < size / 2:
            raise WeightsmithError(
                f"the weights of {name} cannot stay in their file: save the model as safetensors, in the type that it is "
                "computed in, or give --device cpu"
            )
        return True
    free = mapped.free_memory()
    if free is None or size <= _SHARE * free or mapped.in_files(weights_of(module)) < size / 2:
        return False
    _log.info(
        "The weights of %s take %.1f GB and %.1f GB of memory are free: they stay in their file, and a block's are read when "
        "its turn comes.",
        name,
        size / 1e9,
        free / 1e9,
    )
    return True


def page(model: Model) -> Model:
    """Have the model's weights read block by block, in forward passes and the backward passes that follow them.

    Edits are put on as usual: what is changed stays in memory as long as it is.
    """
    mapped.stay(model.module)
    turns = [weights_of(part) for part in (*model.blocks, _classifier(model))]
    for number, module in enumerate((*model.blocks, _classifier(model))):
        before, after = turns[number - 1] if number else [], turns[number + 1] if number + 1 < len(turns) else []
        module.register_forward_pre_hook(_entered(turns[number], after))
        module.register_forward_hook(_left(before, turns[number], after), always_call=True)
    return model


def _classifier(model: Model) -> nn.Module:
    return model.module.get_submodule(model.family.classifier)


def saved_in_shards(model: Model) -> dict[str, Any]:
    """What `save_pretrained` is told, so that no more is in memory at a time than in a forward pass."""
    size = at_a_time(model)
    how: dict[str, Any] = {"state_dict": _Behind(model.module.state_dict(), size), "max_shard_size": size}
    if getattr(model.module, "_weight_conversions", None) == []:
        how["save_original_format"] = (
            False  # it is the original one, and looking for what to turn back takes all weights at once
        )
    return how


class _Behind(dict[str, Tensor]):
    """Weights by name; those taken out for one file are forgotten when the next file's are taken."""

    def __init__(self, weights: dict[str, Tensor], size: int) -> None:
        super().__init__(weights)
        self._size = size
        self._taken: list[Tensor] = []

    def pop(self, name: str, *default: Any) -> Any:
        tensor = super().pop(name, *default)
        if sum(map(_size, (*self._taken, tensor))) > self._size:
            mapped.release(self._taken)
            self._taken = []
        self._taken.append(tensor)
        return tensor


def at_a_time(model: Model) -> int:
    """Bytes of weights that are in memory at a time: those outside the blocks, and of two blocks, one of them read ahead."""
    if not mapped.stays(model.module):
        return bytes_of(model.module)
    blocks = [bytes_of(block) for block in model.blocks]
    return bytes_of(model.module) - sum(blocks) + 2 * max(blocks)


def _entered(mine: Sequence[Tensor], after: Sequence[Tensor]) -> Callable[..., None]:
    def ask(*_: Any) -> None:
        mapped.ask_for(mine)
        mapped.ask_for(after)

    return ask


def _left(before: Sequence[Tensor], mine: Sequence[Tensor], after: Sequence[Tensor]) -> Callable[..., None]:
    def back(_: Tensor) -> None:
        """The gradient has come to what this block gave: the one behind it is done with."""
        mapped.release(after)
        mapped.ask_for(before)

    def forget(_: nn.Module, __: Any, given: Any) -> None:
        mapped.release(mine)
        output = given[0] if isinstance(given, tuple) else given
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(back)  # type: ignore[no-untyped-call]

    return forget
