"""The options of `locate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightsmith.run.options.folder import FolderOptions


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
