"""The options of every command, as dataclasses. Nothing heavy is imported here, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

from weightsmith.errors import WeightsmithError, did_you_mean

Stage = Literal["data", "train", "locate", "edit", "eval", "full"]
STAGE_NAMES: tuple[str, ...] = ("data", "train", "locate", "edit", "eval")
METHODS: tuple[str, ...] = ("alphaedit", "head", "finetune")

DEFAULT_DATA = "~/.medmnist/pathmnist_224.npz"


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """What every job that fills a run folder has: where its files go, and how it is gone on with."""

    seed: int = 42
    """Of the split, the weights, the training and every random choice."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), or a torch device."""
    resume: bool = False
    """Go on with a run that was stopped; what is finished is kept."""
    overwrite: bool = False
    """Redo what an existing run has done; its results stay until the new ones are complete."""
    run_name: str | None = None
    """Name of the run's folder [made from data set and method, with a number where that is taken]."""
    timestamp: bool = False
    """Add date and time to the folder's name."""
    runs_dir: str = "runs"
    """Where run folders lie."""
    checkpoint_dir: str | None = None
    """Put checkpoints into DIR/<run name> instead of the run folder."""
    log_dir: str | None = None
    """Put the log into DIR/<run name> instead of the run folder."""
    results_dir: str | None = None
    """Put tables, figures and the report into DIR/<run name> instead of the run folder."""
    cache_dir: str | None = None
    """Where key statistics and unpacked data are kept [the platform's cache folder]."""
    config: str | None = None
    """A YAML file of these options; flags given beside it win."""


@dataclass(frozen=True, kw_only=True)
class JobOptions(FolderOptions):
    """What every job that trains has: a model and how it is trained."""

    model: str = "auto"
    """Hub name or folder to fine-tune with a new head, a preset (digits, small, cifar) or a JSON config to train from
    scratch. `auto` takes google/vit-base-patch16-224, and for the digits their preset."""
    epochs: int | None = None
    """Training epochs [10; a preset brings its own]."""
    batch_size: int | None = None
    """Images a training step [run 32, baseline 64; a preset brings its own]."""
    lr: float | None = None
    """Learning rate [run 1e-4, baseline 5e-5; a preset brings its own]."""
    weight_decay: float | None = None
    """AdamW's weight decay [0.01; a preset brings its own]."""
    augment: Literal["none", "light", "natural", "dihedral"] | None = None
    """Random views of training images [none; a preset brings its own]."""
    pin_memory: bool = True
    """Page-locked batches, on CUDA only."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(JobOptions):
    """Correct a classifier: data, train, locate, edit, evaluate."""

    stage: Stage = "full"
    """Which stage to run; each takes what earlier stages left in the run folder, `full` runs all five."""
    data_path: str = DEFAULT_DATA
    """A MedMNIST-layout .npz, a folder of images by class, parquet files in the hub's layout, or `digits` or
    `coloured-digits` (no download needed)."""
    held_out_ratio: float = 0.2
    """Share of the train part that only the evaluation may see."""
    held_out_from: Literal["train", "test", "none"] = "train"
    """What is held out: a share of the train part, the file's whole test part, or (with `--edit-from PATH`) only the
    rest of that data set."""
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

    edit_method: tuple[str, ...] = ("alphaedit",)
    """One or more of alphaedit, head, finetune; several are compared on the same corrections."""
    edit_layers: tuple[int, ...] | None = None
    """Layers to edit [the traced ones, else the last three]."""
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
    """AlphaEdit: ridge relative to mean diag(KᵀPK) [0.1]."""
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

    views: Literal["none", "light", "natural", "dihedral"] = "light"
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


@dataclass(frozen=True, kw_only=True)
class LocateOptions(FolderOptions):
    """What every way to locate has: a trained model, the inputs, and the places that are looked at."""

    model: str = "auto"
    """A trained model: run folder, Hugging Face folder or hub name; an image classifier or a language model. `auto` trains
    the preset of the digits or the coloured digits first, for about 15 s."""
    data_path: str = "digits"
    """Images: as for `run`. For a language model a JSON file of prompts with subjects (known-1000, CounterFact), or of
    token ids."""
    part: str = "val"
    """Which part of the images: train, val or test. Where the model's run folder tells what it held out, that is refused."""
    select: Literal["errors", "right", "all"] = "errors"
    """Which of them: those that the model gets wrong, those it gets right, or all."""
    max_samples: int = 50
    """Images or prompts at most, drawn at random with --seed (prompts: the first ones)."""
    batch_memory: int | None = None
    """Megabytes for the runs that are kept at a time [512; on a GPU a quarter of its memory]."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions(LocateOptions):
    """Places to measure, and what is measured there."""

    sites: tuple[str, ...] = ("resid.out", "attn.out", "mlp.out")
    """Kinds restored in each layer: resid.out, attn.out, mlp.out, resid.in, attn.q, attn.k, attn.v, attn.z, mlp.key."""
    tokens: tuple[str, ...] = ("auto",)
    """At which tokens, one or more of cls, patches, last, all, each, or positions such as 0,17,4:8 [cls; prompts: the
    subject's, by name]."""
    token_block: int = 1
    """Restore so many neighbouring patches together, where each token is restored by itself."""
    heads: bool = True
    """Measure each attention head as well."""
    noise: float = 3.0
    """Noise on embeddings, in standard deviations of the clean ones."""
    num_ablations: int = 10
    """Noise samples an input."""
    target: Literal["predicted", "label"] = "predicted"
    """The class whose recovery is measured: the one that the model gives, or the image's label."""
    metric: Literal["logit_difference", "probability", "kl"] = "logit_difference"
    """What is drawn; the tables have all three, raw and normalised."""
    min_gap: float | None = None
    """Refuse inputs in which the corruption changes the metric by less [logit difference 0.05, probability 0.005, kl
    0.001]."""


@dataclass(frozen=True, kw_only=True)
class DrawnOptions(SweepOptions):
    """What is measured and drawn beside single layers."""

    window: tuple[int, ...] = (1,)
    """Windows of so many layers; single layers are always measured beside them."""
    map_samples: int = 4
    """Inputs for which every layer and token is restored by itself and drawn; 0 draws none."""
    map_site: str = "resid.out"
    """The kind that is restored for those maps."""
    sever: tuple[str, ...] = ()
    """Also measure the layers with these paths severed behind the restored place: attn.out, mlp.out."""


@dataclass(frozen=True, kw_only=True)
class PairOptions(SweepOptions):
    """Images, each with what it becomes without its colour, its order, its sharpness..."""

    data_path: str = "coloured-digits"
    """Images: as for `run`."""
    select: Literal["errors", "right", "all"] = "right"
    """Which of them: those that the model gets wrong, those it gets right, or all."""
    max_samples: int = 1000
    """Images at most, drawn at random with --seed."""
    corruption: Literal["greyscale", "blur", "pixel_noise", "patch_shuffle", "region_swap", "other_image", "noise"] = (
        "greyscale"
    )
    """What is done to the image; noise is on its embeddings, and what a prompt always gets."""
    strength: float | None = None
    """Of the corruption: blur's sigma (share of the side), pixel noise's scale, region swap's share [each its own]."""
    corrupted_from: str | None = None
    """A second data set, image for image the corrupted one of the first, instead of a corruption."""


@dataclass(frozen=True, kw_only=True)
class TraceOptions(DrawnOptions):
    """Causal tracing: noise on the embeddings of patches, or of a prompt's subject."""


@dataclass(frozen=True, kw_only=True)
class PatchOptions(PairOptions, DrawnOptions):
    """Activation patching on pairs: an image and what it becomes without its colour, its order, its sharpness..."""

    window: tuple[int, ...] = (1, 3)
    """Windows of so many layers; single layers are always measured beside them."""


@dataclass(frozen=True, kw_only=True)
class AttributionOptions(PairOptions):
    """Gradient screens of every place at once, the best of them measured exactly, and how much the screen missed."""

    method: Literal["attribution", "integrated"] = "attribution"
    """Gradient at the corrupted run, or its mean along the path to the clean one."""
    steps: int = 10
    """Points on that path."""
    verify: int = 20
    """Places of largest screened effect to measure exactly on all inputs."""
    audit: int = 32
    """Inputs on which every place is measured exactly, for the recall."""


@dataclass(frozen=True, kw_only=True)
class PatchAttributionOptions(LocateOptions):
    """ASTRA: which patches of the image make the class, by random masks, and a steering vector made from them."""

    masks: int = 64
    """Random masks an image."""
    keep: float = 0.5
    """Probability with which a mask keeps a patch."""
    alpha: float = 0.01
    """Weight of the Lasso's penalty."""
    top: int = 15
    """Patches of largest positive weight that make the steering vector."""
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Strengths of the steering that are tried."""
    target: Literal["predicted", "label"] = "predicted"
    """The class that is attributed: the one that the model gives, or the image's label."""


Options = TypeVar("Options", bound=FolderOptions)


def read_yaml(path: Path, base: Options) -> Options:
    """The options in a YAML file over `base`.

    Raises:
        WeightsmithError: naming the file and the entry: not readable, no mapping, an unknown name, a value of another type.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsmithError(f"--config {path} cannot be read ({reason}): give a YAML file of options") from error
    if not isinstance(entries, dict):
        raise WeightsmithError(f"--config {path} must hold a mapping such as `epochs: 10`")
    hints = get_type_hints(type(base))
    values: dict[str, Any] = {}
    for key, value in entries.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            raise WeightsmithError(f"--config {path} names the unknown option {key!r}: {did_you_mean(name, hints)}")
        values[name] = _typed(value, hints[name], f"--config {path}: {key}")
    return dataclasses.replace(base, **values)


def to_yaml(options: FolderOptions) -> str:
    """The options as YAML, that `read_yaml` reads back."""
    entries = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(options).items()}
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """The value if it fits the type of its field, converted where YAML has no such type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in inner:
            raise WeightsmithError(f"{where} is {value!r}: {did_you_mean(str(value), [str(i) for i in inner])}")
        return value
    if origin is tuple:
        entries = value if isinstance(value, list) else [value]
        return tuple(_typed(entry, inner[0], where) for entry in entries)
    if inner:  # X | None
        options = [option for option in inner if option is not type(None)]
        return None if value is None else _typed(value, options[0], where)
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise WeightsmithError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return value
