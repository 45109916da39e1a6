"""The options of `export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

Form = Literal["onnx", "peft", "merged"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Take a run's edited model elsewhere: an ONNX file, a LoRA adapter of PEFT's, or a Hugging Face folder with the edit in
    its weights; read back and compared before it is in place.
    """

    form: Annotated[Form, tyro.conf.Positional] = "merged"
    """onnx, peft or merged."""
    source: Annotated[str, tyro.conf.Positional] = ""
    """The run folder of `weightsmith run` or `edit`; or a model alone (Hugging Face folder, hub name, timm:NAME)."""
    out: str | None = None
    """The file (onnx) or folder to write."""
    method: str | None = None
    """Whose edit, where the run made several [the first one's]."""
    delta: tuple[str, ...] = ()
    """Files of deltas to put on together instead of the run's."""
    rank: int | None = None
    """peft: largest rank of a layer; what that loses is told [as many as the edit has, which loses nothing]."""
    base_model: str | None = None
    """peft: name or folder to write into the adapter as the model it is for [where the run has it]."""
    license: str | None = None
    """merged, peft: licence for the card, by the hub's identifier, apache-2.0 say [that of the base model's card]."""
    push: str | None = None
    """merged, peft: push the folder to this repository of the Hugging Face hub, OWNER/NAME, as well."""
    private: bool = False
    """Make the repository a private one, where --push makes it."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), or a torch device."""
    runs_dir: str = "runs"
    """Where the run `facts` lies, whose model is that of a run of `edit --model auto`."""
    cache_dir: str | None = None
    """Where that model is kept otherwise [the platform's cache folder]."""
    overwrite: bool = False
    """Replace what an earlier export wrote."""
