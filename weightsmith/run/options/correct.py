"""The options of `run`, `baseline` and `download`: correcting an image classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from weightsmith.run.options.folder import TrackedOptions

Stage = Literal["data", "train", "locate", "edit", "eval", "full"]
STAGE_NAMES: tuple[str, ...] = ("data", "train", "locate", "edit", "eval")

DEFAULT_DATA = "~/.medmnist/pathmnist_224.npz"


@dataclass(frozen=True, kw_only=True)
class JobOptions(TrackedOptions):
    """What every job that trains has: a model and how it is trained."""

    model: str = "auto"
    """Hub name or folder to fine-tune with a new head, a preset (digits, small, cifar, tiny-imagenet) or a JSON config to
    train from scratch. `auto` takes google/vit-base-patch16-224, and for the digits their preset."""
    epochs: int | None = None
    """Training epochs [10; a preset brings its own]."""
    batch_size: int | None = None
    """Images a training step [run 32, baseline 64; a preset brings its own]."""
    lr: float | None = None
    """Learning rate [run 1e-4, baseline 5e-5; a preset brings its own]."""
    weight_decay: float | None = None
    """AdamW's weight decay [0.01; a preset brings its own]."""
    augment: Literal["none", "light", "natural", "natural-colour", "dihedral"] | None = None
    """Random views of training images [none; a preset brings its own]."""
    label_smoothing: float | None = None
    """Share of the wanted distribution that all classes have alike in training [0; a preset brings its own]."""
    pin_memory: bool = True
    """Page-locked batches, on CUDA only."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(JobOptions):
    """Correct a classifier: data, train, locate, edit, evaluate."""

    stage: Stage = "full"
    """Which stage to run; each takes what earlier stages left in the run folder, `full` runs all five."""
    data_path: str = DEFAULT_DATA
    """A MedMNIST-layout .npz, a folder of images by class, Tiny-ImageNet's folder, parquet files in the hub's layout, or
    `digits` or `coloured-digits` (no download needed)."""
    held_out_ratio: float = 0.2
    """Share of the train part that only the evaluation may see."""
    held_out_from: Literal["train", "val", "test", "none"] = "train"
    """What is held out: a share of the train part, the data set's whole validation part (Tiny-ImageNet's labelled one; a
    validation part is then cut from train) or test part, or (with `--edit-from PATH`) only the rest of that data set."""
    val_ratio: float = 0.2
    """Share of the remaining train part that becomes the validation part, where the data has none of its own."""

    checkpoint: str | None = None
    """A trained classifier to correct as it is (run folder, Hugging Face folder or hub name): nothing is trained."""

    num_ablations: int = 32
    """Noise samples an image in causal tracing."""
    max_samples: int = 50
    """Misclassified images to trace at most."""
    noise: float = 3.0
    """Noise on the patch embeddings in standard deviations of the clean ones."""
    trace_site: str = "resid.out"
    """What is restored in each layer: resid.out (the block's output), mlp.out or attn.out, at CLS."""
    trace_target: Literal["predicted", "label"] = "predicted"
    """The class whose recovery is measured: the wrong one that the model gives, or the right one."""
    trace_metric: Literal["probability", "logit_difference"] = "probability"
    """What is measured."""

    edit_method: tuple[str, ...] = ("auto",)
    """One or more of patcher (vision transformers), alphaedit, memit, emmet, rome, head, finetune, lora; several are compared
    on the same corrections. `auto` takes the patcher where the model has a CLS token, else alphaedit; alphaedit too where
    a flag says which layers, which null space or which ridge."""
    edit_layers: tuple[int, ...] | None = None
    """Layers to edit [the traced ones, else the last three; rome and emmet take one]."""
    layers_from: str | None = None
    """Take the layers of largest effect from a `weightsmith locate` run folder or its effects file instead of tracing's."""
    num_edit_layers: int = 3
    """How many of the traced layers to edit."""
    astra_layers: bool = True
    """Take the traced layers where the user gives none; `--no-astra-layers` takes the last three."""
    max_edits: int = 30
    """Corrections at most."""
    min_errors: int = 10
    """With fewer errors than this in the train part, corrections come from the validation part, and the log says so."""
    edit_from: str = "train"
    """Where corrections come from: train, val, or the path of a labelled data set of a new site (`file.npz:test` picks a
    part): one random part of it is the stream of corrections, the rest is held out."""
    stream_ratio: float = 0.5
    """Share of that data set which is the stream."""
    margin: float | None = None
    """Logit margin by which an edited image should get its class [the editor's own]."""
    null_fraction: float | None = None
    """AlphaEdit: share of the dimensions that the null space takes [0.9]."""
    null_threshold: float | None = None
    """AlphaEdit: eigenvalues below this absolute number span the null space (the paper's rule, 0.02)."""
    whiten: bool = True
    """AlphaEdit: weigh the null space by what energy of preserved keys it still holds; `--no-whiten` takes the paper's
    projector."""
    ridge: float | None = None
    """AlphaEdit, MEMIT, EMMET: ridge relative to mean diag(KᵀMK) [the editor's own: 0.1, EMMET 0.001]."""
    l2: float | None = None
    """AlphaEdit: absolute ridge (the paper's, 10)."""
    head_lr: float = 0.01
    """Head editing: Adam's step."""
    head_steps: int = 50
    """Head editing: steps at most."""
    ewc_strength: float | None = None
    """Head editing: weight of the consolidation relative to the mean Fisher information [the editor's own]."""
    ewc_lambda: float | None = None
    """Head editing: absolute weight of the consolidation (1000 in the reference) instead of the relative one."""
    closed_form: bool = False
    """Head editing: one closed-form solve instead of gradient steps."""

    views: Literal["none", "light", "natural", "natural-colour", "dihedral"] = "light"
    """Augmented views of edited images on which generalisation is measured."""
    n_views: int = 8
    """Views an edited image."""


@dataclass(frozen=True, kw_only=True)
class BaselineOptions(JobOptions):
    """Train a classifier on a data set's official train, val and test parts."""

    data_dir: str | None = None
    """Folder that holds pathmnist_224.npz [~/.medmnist]."""
    data_path: str | None = None
    """Another data set: .npz, folder of images, or `digits` (its parts are then cut from the whole)."""


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Fetch a MedMNIST data set: resumed, checked by MD5, put in place when it is whole."""

    name: Annotated[str, tyro.conf.Positional] = "pathmnist"
    """Name of the data set."""
    size: int = 224
    """Side of the images in pixels: 28, 64, 128 or 224."""
    to: str = "~/.medmnist"
    """Folder to put the file into."""
