"""LoRA adapters in PEFT's own files: what `Delta.to_lora` writes and `Delta.of_lora` reads.

W' = W + s B A with A (rank, in) and B (out, rank) (Hu et al., LoRA, 2022, section 4.1), s = alpha / rank, or
alpha / √rank where the adapter is rank-stabilised (Kalajdzievski 2023, eq. 3).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from weightsmith.errors import WeightsmithError
from weightsmith.files import any_tensors, atomic_folder, save_tensors, understood

_FORMAT = "weightsmith-lora-1"
_CONFIG, _WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias)")
_MORE_THAN_LORA = {
    "use_dora": "DoRA's magnitudes",
    "use_qalora": "QALoRA's pooling",
    "use_bdlora": "block-diagonal factors",
    "alora_invocation_tokens": "an activation by tokens",
    "arrow_config": "a router",
    "kasa_config": "KaSA's singular values",
    "monteclora_config": "a sampled mixture",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "target parameters",
}
"""Entries of the configuration that make an adapter something else than W + s B A."""
_KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave W as it was; the others (PiSSA, OLoRA, CorDA, LoftQ, …) take a part out of it first."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """The change W + B A of several layers, with no scaling left to do.

    Attributes:
        factors: layer → A (rank, in), B (out, rank), whichever way round its weight is stored.
        biases: layer → change of its bias (out,); of layers in `factors` alone.
        transposed: names of the weights that are stored (in, out).
        base: hash of the weights that it was made for; "" fits any.
        info: what made it; JSON values only.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    base: str = ""
    info: dict[str, Any] = field(default_factory=dict)


def transposed_weights(module: nn.Module) -> frozenset[str]:
    """Names of the weights that a network stores (in, out): those of GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D  # heavy, and only needed here

    return frozenset(f"{path}.weight" for path, part in module.named_modules() if isinstance(part, Conv1D))


def write_adapter(
    folder: Path | str, adapter: Adapter, base_model: str | None = None, alpha: float | None = None
) -> None:
    """Write a folder that plain PEFT loads.

    B is written times rank / alpha, so that PEFT's scaling gives B A as it was. PEFT warns, and does the right thing, where
    some of the layers are Conv1D and others Linear, because its `fan_in_fan_out` is one for all.

    Args:
        base_model: name or path written as its base model.
        alpha: `lora_alpha` of every layer; None takes each layer's rank.

    Raises:
        WeightsmithError: an alpha that is not positive, or a folder that cannot be written.
    """
    from peft import LoraConfig  # heavy, and only needed here

    if alpha is not None and not 0 < alpha < math.inf:
        raise WeightsmithError(f"--lora-alpha must be a positive number, not {alpha:g}: leave it out to take the rank")
    ranks = {layer: len(down) for layer, (down, _) in adapter.factors.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()) if alpha is None else alpha,
        target_modules=sorted(ranks),
        rank_pattern=ranks,
        alpha_pattern=ranks if alpha is None else {},
        fan_in_fan_out=bool(adapter.transposed),
        lora_bias=bool(adapter.biases),
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    config.target_modules = sorted(ranks)  # PEFT makes it a set, and would write it in another order in each process
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in adapter.factors.items():
        unscaled = 1.0 if alpha is None else ranks[layer] / alpha
        parts = {"lora_A.weight": down, "lora_B.weight": up * unscaled}
        if adapter.biases:
            bias = adapter.biases.get(layer)
            parts["lora_B.bias"] = up.new_zeros(len(up)) if bias is None else bias * unscaled
        for part, tensor in parts.items():
            tensors[f"base_model.model.{layer}.{part}"] = tensor.float().contiguous().cpu()
    header = {
        "format": _FORMAT,
        "base": adapter.base,
        "info": adapter.info,
        "transposed": sorted(adapter.transposed),
    }
    with atomic_folder(folder) as temporary:
        config.save_pretrained(temporary)
        save_tensors(temporary / _WEIGHTS, tensors, {"format": "pt", "weightsmith": json.dumps(header)})


def read_adapter(folder: Path | str) -> Adapter:
    """Read a folder that `write_adapter` or PEFT wrote; factors are float64 with the scaling in B.

    Where PEFT wrote it, `fan_in_fan_out` says of all layers together whether their weights are stored (in, out), and no
    base is known.

    Raises:
        WeightsmithError: naming the folder or file: one that is missing or damaged, a pickle, or an adapter that is more
            than W + s B A (DoRA, whole modules saved beside it, an initialisation that changed the base, …).
    """
    folder = Path(folder)
    config = _config(folder)
    if not (folder / _WEIGHTS).is_file() and (folder / _PICKLE).is_file():
        raise WeightsmithError(
            f"{folder / _PICKLE} is a pickle, which can run code when it is read: load the adapter in PEFT and save it "
            "again, which writes safetensors"
        )
    header, tensors = any_tensors(folder / _WEIGHTS)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None or tensor.ndim != (1 if key.endswith("bias") else 2):
            raise WeightsmithError(
                f"{folder / _WEIGHTS} holds {key}, which is no factor of a linear layer: merge the adapter in PEFT "
                "(merge_and_unload) and save the model"
            )
        parts.setdefault(found["layer"], {})[found["part"]] = tensor.double()
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    for layer, part in parts.items():
        rank, scaling = _scaling(folder, config, layer)
        down, up = part.get("lora_A.weight"), part.get("lora_B.weight")
        if down is None or up is None or not len(down) == up.shape[1] == rank:
            raise WeightsmithError(f"{folder} holds no factors of rank {rank} for {layer}: save the adapter again")
        factors[layer] = (down, up * scaling)
        if "lora_B.bias" in part and bool(part["lora_B.bias"].any()):  # a layer without a bias holds zeros here
            biases[layer] = part["lora_B.bias"] * scaling
    if not factors:
        raise WeightsmithError(f"{folder / _WEIGHTS} holds no LoRA factors: check the path, or save the adapter again")
    if header.get("format") == _FORMAT:
        with understood(folder / _WEIGHTS, "save the adapter again"):
            return Adapter(factors, biases, frozenset(header["transposed"]), header["base"], header["info"])
    turned = frozenset(f"{layer}.weight" for layer in factors) if config.get("fan_in_fan_out") else frozenset()
    return Adapter(factors, biases, turned, info={"base_model": config.get("base_model_name_or_path")})


def _config(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter that is W + s B A and nothing more."""
    path = folder / _CONFIG
    if not path.is_file():
        raise WeightsmithError(f"{path} does not exist: give the folder of a LoRA adapter as PEFT saves it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = str(config["peft_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsmithError(f"{path} is damaged or no configuration of PEFT's: save the adapter again") from error
    if kind != "LORA":
        raise WeightsmithError(f"{path} describes a {kind} adapter: only LoRA adapters are a change of weights B A")
    more = [what for entry, what in _MORE_THAN_LORA.items() if config.get(entry)]
    if config.get("init_lora_weights", True) not in _KEEPS_BASE:
        more.append(f"an initialisation ({config['init_lora_weights']}) that changed the base weights")
    if more:
        raise WeightsmithError(
            f"{path} describes an adapter with {more[0]}, which is more than B A: merge it in PEFT (merge_and_unload) and "
            "save the model"
        )
    return dict(config)


def _scaling(folder: Path, config: dict[str, Any], layer: str) -> tuple[int, float]:
    """Rank and s of a layer, found as PEFT finds them: the first pattern that fits the end of its name."""
    try:
        values = {"r": config["r"], "lora_alpha": config["lora_alpha"]}
        for entry, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            for key, value in (config.get(pattern) or {}).items():
                if re.match(rf"(.*\.)?({key})$", layer):
                    values[entry] = value
                    break
        rank, alpha = int(values["r"]), float(values["lora_alpha"])
        return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        raise WeightsmithError(
            f"{folder / _CONFIG} gives no rank and alpha for {layer} ({error}): save the adapter again"
        ) from error
