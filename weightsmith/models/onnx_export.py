"""A model as an ONNX file, for runtimes without Python."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from weightsmith.errors import WeightsmithError
from weightsmith.files import atomic_path, cause_of
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


class _TokenLogits(_Logits):
    """The same of a language model: logits behind every token."""

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.module(input_ids=input_ids, use_cache=False).logits
        return logits


def require_onnx(what: str) -> None:
    """Raise `WeightsmithError` where a package is missing that writing an ONNX file needs; `what` needs it."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise WeightsmithError(f"{missing[0]} is needed to write {what}: pip install 'weightsmith[onnx]'")


def save_onnx(model: Model, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write one ONNX file (opset 20) whose batch may be of any size.

    Of a classifier `pixel_values` (batch, channels, size, size) → `logits` (batch, classes); preprocessing stays outside, as
    in `preprocessor_config.json`. Of a language model `input_ids` (batch, sequence) int64 → `logits` (batch, sequence,
    vocabulary), a sequence of any length that the model reads; tokenizing stays outside.

    Args:
        metadata: entries that the file carries, for `InferenceSession.get_modelmeta()`.

    Raises:
        WeightsmithError: onnx or onnxscript not installed, or a network that cannot be exported.
    """
    require_onnx(str(path))
    # Two samples: what is exported with one takes the batch for a constant.
    batch = {0: torch.export.Dim("batch", min=1)}
    network: _Logits
    if model.family.reads == "text":
        name, network = "input_ids", _TokenLogits(model)
        example = torch.zeros(2, min(5, model.n_tokens), dtype=torch.int64, device=model.device)
        shapes = batch | {1: torch.export.Dim("sequence", min=1, max=model.n_tokens)}
    else:
        name, network, preprocess = "pixel_values", _Logits(model), model.preprocess
        dtype = next(model.module.parameters()).dtype
        size = (2, preprocess.channels, preprocess.size, preprocess.size)
        example, shapes = torch.zeros(size, dtype=dtype, device=model.device), batch
    with _quiet():
        try:
            program = torch.onnx.export(
                network.eval(),
                (example,),
                dynamo=True,
                opset_version=_OPSET,
                input_names=[name],
                output_names=["logits"],
                dynamic_shapes={name: shapes},
                verbose=False,
            )
        except Exception as error:  # torch.export has many types of its own
            raise WeightsmithError(
                f"{model.name} cannot be exported to ONNX ({cause_of(error)}): export it merged, as a Hugging Face folder"
            ) from error
    assert program is not None
    program.model.metadata_props.update(metadata or {})
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
