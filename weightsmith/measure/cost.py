"""What a network costs whatever the machine: parameters, multiplications, bytes on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from weightsmith.models import Model

_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Cost:
    """Attributes:
    parameters: trainable or not, shared ones counted once.
    macs: multiplications with addition in the forward pass of one image: linear maps, convolutions and both products of
        attention. Biases, norms, activations and softmax are not counted.
    flops: two a multiplication with addition.
    size: bytes of the weights on disk; None where the model was not loaded from a folder.
    """

    parameters: int
    macs: int
    flops: int
    size: int | None

    @classmethod
    def of(cls, model: Model) -> Cost:
        """Count one forward pass of an image classifier, as it is run, so that what a model skips is not counted."""
        inputs = still_image(model, 1)
        # A fused attention kernel is one operation, of which counting knows on some devices only: two products it is.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.logits(inputs)
        flops = int(counter.get_total_flops())
        parameters = sum(parameter.numel() for parameter in model.module.parameters())
        return cls(parameters, flops // 2, flops, size_on_disk(model))


def still_image(model: Model, batch_size: int) -> torch.Tensor:
    """(batch_size, channels, size, size) of zeros on the model's device: what a pass costs does not depend on the pixels."""
    reads = model.preprocess
    return torch.zeros(batch_size, reads.channels, reads.size, reads.size, device=model.device)


def size_on_disk(model: Model) -> int | None:
    """Bytes of the weight files in the folder that a model was loaded from, None where there is none."""
    module: Any = model.module
    named = getattr(module, "name_or_path", "")
    for pattern in _WEIGHTS:
        files = list(Path(named).glob(pattern)) if named else []
        if files:
            return sum(file.stat().st_size for file in files)
    return None
