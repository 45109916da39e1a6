"""Heads, neurons, sublayers and blocks taken out of a vision transformer's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from weightsmith.circuit import Kept, Shape
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError, WrongWeightsError
from weightsmith.models import Model, load
from weightsmith.prune.fold import folded
from weightsmith.prune.statistics import KeyStatistics, key_statistics

_MODEL_TYPES = ("vit", "weightsmith_vit")
_BLOCKS = "vit.layers"
_POSITIONS = "vit.embeddings.position_embeddings"
_NOT_CARRIED = ("model_type", "architectures", "auto_map", "transformers_version", "dtype")


@dataclass(frozen=True)
class _Sublayer:
    """Modules of an attention or MLP: a norm, maps whose rows are cut, and one whose columns are."""

    norm: str
    rows: tuple[str, ...]
    columns: str
    keys: str


_ATTENTION = _Sublayer(
    "layernorm_before", ("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.o_proj", "attn.z"
)
_MLP = _Sublayer("layernorm_after", ("mlp.fc1",), "mlp.fc2", "mlp.key")


def shape_of(model: Model) -> Shape:
    """Sizes of a vision transformer, from which MACs and parameters are counted.

    Raises:
        WeightsmithError: a model that is no ViT.
    """
    config = _config(model)
    side = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    state = model.module.state_dict()
    neurons = [state.get(f"{_BLOCKS}.{layer}.mlp.fc1.bias") for layer in range(model.n_layers)]
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
    if not 0 <= cls_weight <= 1:
        raise WeightsmithError(f"cls_weight={cls_weight} is no share: give 0 to 1")
    if not any(shape.heads):
        raise WeightsmithError("no patch reaches the classifier of a model without attention: keep at least one head")
    statistics = _statistics(model, calibration, fold, needed=kept != Kept.everything(whole))
    state = model.module.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith(f"{_BLOCKS}.")}
    last_read = max(layer for layer, heads in enumerate(kept.heads) if heads)
    adds = _POSITIONS  # what was last added to the stream
    for layer in range(model.n_layers):
        old = f"{_BLOCKS}.{layer}."
        new = f"{_BLOCKS}.{sum(block < layer for block in kept.blocks)}."
        for sublayer, stay, there in (
            (_ATTENTION, _entries(kept.heads[layer], whole.head_width), whole.heads[layer]),
            (_MLP, kept.neurons[layer], whole.neurons[layer]),
        ):
            if not there:
                continue
            # From the last attention on only the classifier reads the stream, and it reads CLS.
            weight_of_cls = cls_weight if layer < last_read else 1.0
            down = old + sublayer.columns
            weight, bias = folded(
                state[f"{down}.weight"],
                state[f"{down}.bias"],
                stay,
                None if statistics is None else statistics.at(sublayer.keys, layer, weight_of_cls),
                fold,
                ridge,
            )
            if not stay:
                tensors[adds] = (tensors[adds].cpu().double() + bias.cpu().double()).to(tensors[adds])
                continue
            tensors |= {new + name: tensor for name, tensor in _cut(state, old, sublayer, stay).items()}
            adds = f"{new}{sublayer.columns}.bias"
            tensors[f"{new}{sublayer.columns}.weight"] = weight.to(state[f"{down}.weight"])
            tensors[adds] = bias.to(state[f"{down}.bias"])
    return _built(model, shape, tensors, bool(getattr(_config(model), "cls_only", False)))


@torch.no_grad()
def cls_only(model: Model) -> Model:
    """A new model with the same weights that computes, from the last attention on, the CLS row alone.

    The classifier reads CLS behind the last block; there the other rows are keys and values only, and their queries, output
    projection and MLP reach nothing. Logits differ by rounding. What leaves the last block then has one token.

    Raises:
        WeightsmithError: a model that is no ViT.
    """
    return _built(model, shape_of(model), dict(model.module.state_dict()), cls_only=True)


def _entries(heads: Sequence[int], width: int) -> tuple[int, ...]:
    """The entries of these heads, which lie side by side."""
    return tuple(entry for head in heads for entry in range(head * width, (head + 1) * width))


def _cut(state: dict[str, Tensor], old: str, sublayer: _Sublayer, stay: Sequence[int]) -> dict[str, Tensor]:
    """The norm, and the rows that stay of the maps that read it, by their name in the block."""
    which = torch.tensor(list(stay), dtype=torch.long)
    cut = {f"{sublayer.norm}.{name}": state[f"{old}{sublayer.norm}.{name}"] for name in ("weight", "bias")}
    for path in sublayer.rows:
        for name in ("weight", "bias"):
            if f"{old}{path}.{name}" in state:  # a ViT may project without biases
                tensor = state[f"{old}{path}.{name}"]
                cut[f"{path}.{name}"] = tensor[which.to(tensor.device)]
    return cut


def _statistics(
    model: Model, calibration: ImageSet | KeyStatistics | None, fold: str, needed: bool
) -> KeyStatistics | None:
    if fold == "none" or not needed:
        return None
    if calibration is None:
        raise WeightsmithError(f"fold={fold} needs calibration images: give some, or fold none")
    if isinstance(calibration, ImageSet):
        return key_statistics(model, calibration)
    if calibration.fingerprint != model.fingerprint():
        raise WrongWeightsError(
            f"these key statistics are of other weights than {model.name}'s: take them of the model that is narrowed"
        )
    return calibration


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
