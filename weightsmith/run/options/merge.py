"""The options of `merge`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

MergeMethod = Literal[
    "linear",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "slerp",
    "breadcrumbs",
    "model_stock",
    "tsv",
    "iso_c",
]


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Merge models that were fine-tuned from one base into one, without losing a tensor."""

    method: MergeMethod = "task_arithmetic"
    """How: docs/merge.md has the formula of each."""
    base: str | None = None
    """The model that the others were fine-tuned from: a Hugging Face folder, a run folder, a .safetensors file or a .pt state
    dict."""
    models: tuple[str, ...] = ()
    """The fine-tuned models, one or more."""
    weights: tuple[float, ...] = ()
    """What each model counts for, in their order [1 each, slerp 0.5]; a negative one takes its task away."""
    out: str | None = None
    """The folder to write."""
    lambda_: Annotated[float | None, tyro.conf.arg(name="lambda")] = None
    """λ, what the merged change is multiplied by [1]; 0 gives the base, bit for bit."""
    density: float | None = None
    """Share of each change that stays [ties 0.2, dare 0.5, breadcrumbs 0.15]."""
    gamma: float | None = None
    """Share of the largest changes that breadcrumbs leaves out [0.01]."""
    seed: int = 42
    """Of what dare drops, and of how data sets are cut."""
    data_path: tuple[str, ...] = ()
    """Choose λ by data: the data set of each model, in their order, as for `run`; their validation parts choose, their test
    parts are reported once."""
    control_data_path: str | None = None
    """The data set of the base, on which it must keep its accuracy; wanted where a weight is negative."""
    control_keep: float = 0.95
    """Share of its accuracy that it must keep there."""
    coefficients: tuple[float, ...] = ()
    """The λ to choose from [0, 0.1, ..., 1]."""
    judging_images: int | None = None
    """Validation images a data set that choose, at most [all]."""
    held_out_ratio: float = 0.2
    """Share that is its test part, of a data set that has none and whose model's run is not there."""
    val_ratio: float = 0.2
    """Share of the rest that is its validation part, likewise."""
    device: str = "auto"
    """What the judged networks run on: auto (CUDA, else MPS, else CPU), or a torch device."""
    cache_dir: str | None = None
    """Where measured accuracies are kept, so that a search that was stopped goes on [the platform's cache folder]."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of the merged tensors [the base's]."""
    max_shard_size: str | None = None
    """Largest file, 5GB say [one file]."""
    head: str = "merge"
    """The classifier or language-model head: merge it, keep the base's (base), take a model's (take:I, from 0) or leave it out
    (skip)."""
    sha256: bool = False
    """Also tell the SHA-256 of every source's weights, which takes longer than the merge."""
    overwrite: bool = False
    """Replace what an earlier merge wrote into the folder."""
    config: str | None = None
    """A YAML file of these options; flags given beside it win."""
    mergekit: str | None = None
    """A YAML file of mergekit's; flags given beside it win."""
