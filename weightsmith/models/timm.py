"""Vision transformers of timm, inside the wrapper that transformers has for them: loaded by name, put in from memory.

The wrapper makes a timm network one of Hugging Face's: its folder loads in plain transformers where timm is installed, and
the network inside is timm's own, under `timm_model`. timm is not required; it needs torchvision.
"""

from __future__ import annotations

import difflib
import sys
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from weightsmith.errors import WeightsmithError
from weightsmith.files import cause_of

PREFIX = "timm:"
"""Of names that timm resolves: timm:vit_tiny_patch16_224."""
MODEL_TYPE = "timm_wrapper"
"""What transformers calls the wrapper in a config."""

_BASE = "vit_base_patch16_224"
"""The architecture under which a network that was not made by name is saved, with every size beside it."""
_TOLD = ("global_pool", "no_embed_class", "num_prefix_tokens", "num_reg_tokens", "pool_include_prefix")
"""Attributes of a network that its text does not show."""


def require_timm(what: str) -> None:
    """Raise `WeightsmithError` where timm, or the torchvision that it needs, is missing; `what` needs it."""
    missing = [name for name in ("timm", "torchvision") if find_spec(name) is None]
    if missing:
        raise WeightsmithError(
            f"{what} needs {missing[0]}: pip install timm torchvision, of a torchvision that fits your torch"
        )


def is_timm(module: nn.Module) -> bool:
    """Whether a network in memory is one of timm's vision transformers; asks for no timm where none was imported."""
    room = sys.modules.get("timm.models.vision_transformer")
    return room is not None and isinstance(module, room.VisionTransformer)


def pretrained(name: str) -> nn.Module:
    """A timm network with its published weights, wrapped, by its name behind `timm:`.

    Raises:
        WeightsmithError: timm is missing, knows no such name, has no weights of it, or cannot fetch them.
    """
    require_timm(f"{PREFIX}{name}")
    import timm

    base = name.partition(".")[0]
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models("*vit*"), n=3)
        meant = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models('*vit*')"
        raise WeightsmithError(f"timm knows no model {name}: {meant}")
    try:
        module: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's, timm's and torch's own types: all mean that there are no weights
        raise WeightsmithError(
            f"the weights of {PREFIX}{name} could not be fetched ({cause_of(error)}): fetch them where there is internet with "
            f"`hf download timm/{name} --local-dir DIR` and give DIR"
        ) from error
    return wrapped(module)


def wrapped(module: nn.Module) -> nn.Module:
    """A timm network in the wrapper of transformers; it is the same network, not a copy, and keeps its mode.

    Raises:
        WeightsmithError: a network without a classifier.
    """
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    network: Any = module
    if not isinstance(network.head, nn.Linear):
        raise WeightsmithError(
            f"this {type(module).__name__} of timm has no classifier: make it with num_classes, or reset_classifier(N)"
        )
    published: dict[str, Any] = dict(getattr(network, "pretrained_cfg", None) or {})
    architecture = str(published.get("architecture") or _BASE)
    names = published.get("label_names") or [f"class {i}" for i in range(network.head.out_features)]
    config = TimmWrapperConfig(
        architecture=architecture,
        model_args=_arguments(network, architecture) or None,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    kept = ("mean", "std", "crop_pct", "interpolation", "input_size", "architecture", "tag")
    config.pretrained_cfg = {key: published[key] for key in kept if key in published}
    training = module.training
    with torch.device("meta"):
        wrapper: Any = TimmWrapperForImageClassification._from_config(config)
    wrapper.timm_model = module
    completed(wrapper)
    wrapper.train(training)
    return wrapper  # type: ignore[no-any-return]


def completed(wrapper: nn.Module) -> None:
    """Write into the wrapper's config what configs of transformers say and timm's do not: sizes, channels and heads."""
    network: Any = wrapper.timm_model
    config: Any = wrapper.config
    embed = network.patch_embed
    config.image_size, config.patch_size = int(embed.img_size[0]), int(embed.patch_size[0])
    config.num_channels = int(embed.proj.in_channels)
    config.hidden_size = int(network.embed_dim)
    config.num_attention_heads = int(network.blocks[0].attn.num_heads)


def preprocessing(module: nn.Module) -> dict[str, object]:
    """What a timm config says of the pixels, as entries of a `preprocessor_config.json`; its crop is not among them."""
    said = getattr(module.config, "pretrained_cfg", None) or {}
    names = {"mean": "image_mean", "std": "image_std"}
    return {names[key]: list(said[key]) for key in names if said.get(key)}


def check_saves(wrapper: nn.Module) -> None:
    """Raise `WeightsmithError` unless the config describes the network, so that its folder can be loaded again."""
    config: Any = wrapper.config
    network: Any = wrapper.timm_model
    why = _differs(network, config.architecture, dict(config.model_args or {}))
    if why:
        raise WeightsmithError(
            f"this network of timm cannot be saved as a folder, since timm would build another from its sizes ({why}): save "
            "its state_dict, or make it by timm.create_model"
        )


def _arguments(network: Any, architecture: str) -> dict[str, Any]:
    """Arguments of `timm.create_model` beside the name, none where the name says it all."""
    if _differs(network, architecture, {}) is None:
        return {}
    block, embed = network.blocks[0], network.patch_embed
    scale = getattr(block.ls1, "gamma", None)
    arguments: dict[str, Any] = {
        "img_size": [int(side) for side in embed.img_size],
        "patch_size": int(embed.patch_size[0]),
        "in_chans": int(embed.proj.in_channels),
        "embed_dim": int(network.embed_dim),
        "depth": len(network.blocks),
        "num_heads": int(block.attn.num_heads),
        "mlp_ratio": block.mlp.fc1.out_features / int(network.embed_dim),
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "init_values": None if scale is None else 1e-5,  # where training starts; the weights are loaded over it
        "class_token": network.cls_token is not None,
        "global_pool": network.global_pool,
        "no_embed_class": bool(network.no_embed_class),
        "reg_tokens": int(network.num_reg_tokens),
        "pre_norm": not isinstance(network.norm_pre, nn.Identity),
    }
    return arguments


def _differs(network: Any, architecture: str, arguments: dict[str, Any]) -> str | None:
    """In what a network differs from what timm builds by these arguments, None where in nothing that a pass sees."""
    import timm

    try:
        with torch.device("meta"):
            other: Any = timm.create_model(
                architecture, pretrained=False, num_classes=network.head.out_features, **arguments
            )
    except Exception as error:  # arguments that do not go together: whatever timm or torch raises
        return cause_of(error)
    for name in _TOLD:
        if getattr(network, name, None) != getattr(other, name, None):
            return f"its {name} is {getattr(network, name, None)!r}"
    mine, theirs = ({name: tuple(t.shape) for name, t in one.state_dict().items()} for one in (network, other))
    unlike = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if unlike:
        return f"its {unlike[0]} has another shape"
    lines = [repr(one).splitlines() for one in (network, other)]
    changed = next((a.strip() for a, b in zip(*lines, strict=False) if a != b), None)
    return changed if changed is not None or len(lines[0]) == len(lines[1]) else "its modules"
