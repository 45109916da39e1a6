"""Heads, neurons, sublayers and blocks taken out of a vision transformer's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weightsmith.circuit import Kept, Shape
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, load
from weightsmith.prune.statistics import KeyStatistics, key_statistics
from weightsmith.prune.sublayers import ATTENTION, BLOCKS, MLP, POSITIONS, Narrower, last_attention

_MODEL_TYPES = ("vit", "weightsmith_vit")
_NOT_CARRIED = ("model_type", "architectures", "auto_map", "transformers_version", "dtype")


def shape_of(model: Model) -> Shape:
    """Sizes of a vision transformer, from which MACs and parameters are counted.

    Raises:
        WeightsmithError: a model that is no ViT.
    """
    config = _config(model)
    side = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    state = model.module.state_dict()
    neurons = [state.get(f"{BLOCKS}.{layer}.mlp.fc1.bias") for layer in range(model.n_layers)]
    return Shape(
        tokens=model.n_tokens,
        width=int(config.hidden_size),
        head_width=_head_width(config),
        patch=int(config.num_channels) * int(side) ** 2,
        classes=model.n_classes,
        heads=tuple(model.n_heads(layer) for layer in range(model.n_layers)),
        neurons=tuple(0 if one is None else len(one) for one in neurons),
        qkv_bias=bool(config.qkv_bias),
    )


@torch.no_grad()
def removed(
    model: Model,
    kept: Kept,
    calibration: ImageSet | KeyStatistics | None,
    *,
    fold: str = "ridge",
    ridge: float = 1e-3,
    cls_weight: float = 0.5,
) -> Model:
    """A new, physically smaller model with what is kept; the given one stays as it is.

    Rows of q, k, v and columns of the output projection leave with a head, a row of fc1 and a column of fc2 with a neuron; a
    sublayer without any goes with its norm, and a block without both goes whole. What the removed keys gave is folded
    into the map that read them (`folded`), with statistics of the model as given: over all tokens, with more weight on CLS,
    where a later attention reads the result, and over CLS alone where only the classifier does. The constant that is left
    of a sublayer that went is added to what was last added to the stream before it, or to the position embeddings.

    Args:
        kept: of the model's own heads and neurons; removing from a model that was narrowed before is the same.
        calibration: images, or what `key_statistics` counted over them, where several removals are tried; None needs
            `fold="none"`.
        fold: "ridge", "mean" or "none", what stands in for removed keys.
        ridge: λ relative to the mean variance of the kept keys.
        cls_weight: in [0, 1], how much CLS counts beyond being one token of many: 0 takes all tokens alike, 1 CLS only.

    Raises:
        HeldOutError: calibration images that are sealed.
        WrongWeightsError: statistics of another model.
        WeightsmithError: no ViT, heads or neurons that it does not have, no attention left, or nothing to calibrate with.
    """
    whole = shape_of(model)
    shape = kept.shape(whole)
    last_attention(kept)  # refuses what keeps no head before anything is counted
    statistics = calibrated(model, calibration, fold, needed=kept != Kept.everything(whole))
    narrower = Narrower(model, whole, statistics, fold, ridge, cls_weight)
    state = narrower.state
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith(f"{BLOCKS}.")}
    adds = POSITIONS  # what was last added to the stream
    for layer in range(model.n_layers):
        new = f"{BLOCKS}.{sum(block < layer for block in kept.blocks)}."
        for sublayer in (ATTENTION, MLP):
            if not narrower.members(sublayer, layer):
                continue
            left = narrower.narrowed(sublayer, layer, kept)
            if not left.tensors:
                tensors[adds] = (tensors[adds].cpu().double() + left.bias.cpu().double()).to(tensors[adds])
                continue
            tensors |= {new + name: tensor for name, tensor in left.tensors.items()}
            adds = f"{new}{sublayer.columns}.bias"
            tensors[adds] = left.bias.to(state[f"{BLOCKS}.{layer}.{sublayer.columns}.bias"])
    return _built(model, shape, tensors, computes_cls_only(model))


@torch.no_grad()
def cls_only(model: Model, only: bool = True) -> Model:
    """A new model with the same weights that computes, from the last attention on, the CLS row alone, or all rows again.

    The classifier reads CLS behind the last block; there the other rows are keys and values only, and their queries, output
    projection and MLP reach nothing. Logits differ by rounding. What leaves the last block then has one token.

    Raises:
        WeightsmithError: a model that is no ViT.
    """
    return _built(model, shape_of(model), dict(model.module.state_dict()), only)


def calibrated(
    model: Model, calibration: ImageSet | KeyStatistics | None, fold: str, needed: bool
) -> KeyStatistics | None:
    """Statistics to fold with, counted where images are given; None where nothing will be folded.

    Raises:
        WeightsmithError: nothing to calibrate with.
    """
    if fold == "none" or not needed:
        return None
    if calibration is None:
        raise WeightsmithError(f"fold={fold} needs calibration images: give some, or fold none")
    return key_statistics(model, calibration) if isinstance(calibration, ImageSet) else calibration


def _built(model: Model, shape: Shape, tensors: dict[str, Tensor], cls_only: bool) -> Model:
    """A narrow network of these sizes and tensors, with the rest of the model's config."""
    from weightsmith.models.narrow_vit import NarrowViTConfig, NarrowViTForImageClassification

    old = _config(model)
    entries = {name: entry for name, entry in old.to_dict().items() if name not in _NOT_CARRIED}
    entries |= {
        "num_hidden_layers": len(shape.heads),
        "attention_heads": list(shape.heads),
        "mlp_widths": list(shape.neurons),
        "head_dim": shape.head_width,
        "cls_only": cls_only,
    }
    config: Any = NarrowViTConfig(**entries)
    with torch.random.fork_rng(devices=[]):  # the fresh weights are overwritten, a user's draws must not shift
        module: Any = NarrowViTForImageClassification._from_config(
            config, attn_implementation=old._attn_implementation, dtype=next(model.module.parameters()).dtype
        )
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise WeightsmithError(
            f"the weights of {model.name} are not those of a plain ViT, {' '.join(str(error).split())[:160]}: merge adapters "
            "first"
        ) from error
    made = load(module.to(model.device))
    return replace(made, encode=model.encode, class_names=model.class_names, name=model.name)


def computes_cls_only(model: Model) -> bool:
    """Whether the model computes, from the last attention on, the CLS row alone. Raises `WeightsmithError` for no ViT."""
    return bool(getattr(_config(model), "cls_only", False))


def _config(model: Model) -> Any:
    config: Any = getattr(model.module, "config", None)
    if getattr(config, "model_type", None) not in _MODEL_TYPES:
        raise WeightsmithError(
            f"{model.name} is a {model.family.title}, and heads and neurons are removed from ViT image classifiers only: give "
            "one of these"
        )
    return config


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
