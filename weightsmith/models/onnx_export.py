"""An image classifier as an ONNX file, for runtimes without Python."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from weightsmith.errors import WeightsmithError
from weightsmith.files import atomic_path
from weightsmith.models.model import Model

_NEEDED = ("onnx", "onnxscript")
_OPSET = 20


class _Logits(nn.Module):
    """The network with tensors in and out."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.module = model.module

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.module(pixel_values=pixel_values).logits
        return logits


def require_onnx(what: str) -> None:
    """Raise `WeightsmithError` where a package is missing that writing an ONNX file needs; `what` needs it."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise WeightsmithError(f"{missing[0]} is needed to write {what}: pip install 'weightsmith[onnx]'")


def save_onnx(model: Model, path: Path | str) -> None:
    """Write one ONNX file (opset 20), `pixel_values` (batch, channels, size, size) → `logits` (batch, classes).

    The batch may be of any size; preprocessing stays outside, as in `preprocessor_config.json`.

    Raises:
        WeightsmithError: no image classifier, onnx or onnxscript not installed, or a network that cannot be exported.
    """
    preprocess = model.preprocess
    require_onnx(str(path))
    dtype = next(model.module.parameters()).dtype
    # Two images: what is exported with one takes the batch for a constant.
    example = torch.zeros(2, preprocess.channels, preprocess.size, preprocess.size, dtype=dtype, device=model.device)
    with _quiet():
        try:
            program = torch.onnx.export(
                _Logits(model).eval(),
                (example,),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
        except Exception as error:  # torch.export has many types of its own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WeightsmithError(f"{model.name} cannot be exported to {path}: {reason}") from error
    assert program is not None
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's steps and the warnings of the packages below it off a user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
