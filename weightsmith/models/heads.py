"""Which tensors of a classifier are its head: by the role of their module, never by a part of their name."""

from __future__ import annotations

from typing import Any

from torch import nn

from weightsmith.errors import WeightsmithError
from weightsmith.models.model import Model


def head_modules(model: Model) -> dict[str, nn.Module]:
    """Path → module of what belongs to the classes: the classifier that the family's table names.

    A plain MLP says in its config how many linear maps its head has; the last blocks are then part of it.
    """
    config: Any = model.module.config
    deep = int(getattr(config, "head_layers", 1)) - 1
    if not 0 <= deep <= model.n_layers:
        raise WeightsmithError(
            f"{model.name} has {model.n_layers} blocks, and its config asks for a head of {deep + 1} layers: "
            "correct head_layers"
        )
    return {path: model.module.get_submodule(path) for path in model.family.head_paths(model.n_layers, deep + 1)}


def head_names(model: Model) -> tuple[str, ...]:
    """Names of the head's tensors, as the state dict has them."""
    return tuple(f"{path}.{name}" for path, module in head_modules(model).items() for name in module.state_dict())


def backbone_names(model: Model) -> tuple[str, ...]:
    """Names of all other tensors."""
    head = set(head_names(model))
    return tuple(name for name in model.module.state_dict() if name not in head)
