"""The options of `facts`, `edit` and `compare`, and what `ablate` shares with the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightsmith.run.options.folder import FolderOptions, TrackedOptions
from weightsmith.run.options.spread import SpreadOptions


@dataclass(frozen=True, kw_only=True)
class FactsOptions(TrackedOptions):
    """Make the fact world, and train a small GPT-2 on it: a few minutes on a CPU."""

    seed: int = 0
    """Of the world, the weights and the training."""


@dataclass(frozen=True, kw_only=True)
class EditOptions(FolderOptions):
    """Edit facts in a language model, and measure what became of them and of everything else."""

    model: str = "auto"
    """A language model: Hugging Face folder, run folder or hub name. `auto` takes the small GPT-2 of the fact world, which
    is trained once, in a few minutes."""
    data_path: str = "facts"
    """A JSON file of facts: CounterFact, zsRE, EasyEdit's layouts or our own. `facts` takes those of the fact world."""
    edit_method: tuple[str, ...] = ("alphaedit",)
    """One or more of alphaedit, memit, emmet, rome, ftm (for long streams), head, finetune, lora; several are measured on the
    same edits."""
    hparams: str | None = None
    """Hyper-parameters: a YAML or JSON file (ours, EasyEdit's, or those of the papers' code), or the name of a model that
    they are shipped for, such as gpt2-xl [the editor's own, scale-free]."""
    edit_layers: tuple[int, ...] | None = None
    """Layers to edit [those of --hparams, else the editor's own]."""
    max_edits: int = 100
    """Facts to edit at most, drawn at random with --seed; fewer are the first of more."""
    preserve: tuple[str, ...] = ()
    """UTF-8 text files that say what the model must go on doing: key statistics come from them [the fact world's text]."""
    margin: float | None = None
    """Logit margin by which the wanted answer should lead [the editor's own]."""

    edit_mode: Literal["raw", "lora_native"] = "raw"
    """lora_native: the edit is a LoRA adapter of --lora-rank, in `adapter/`, that plain PEFT loads, and is measured as such."""
    lora_rank: int = 16
    """Largest rank of the adapter."""
    lora_alpha: float | None = None
    """alpha of the adapter [its rank]; the change is the same."""
    lora_scale: float = 1.0
    """By what the edit is multiplied."""
    lora_use_svd: bool = True
    """Truncated SVD; `--no-lora-use-svd` begins as LoRA does and needs --lora-fit-steps."""
    lora_fit_steps: int = 0
    """Steps of alternating least squares."""
    allow_fallback: bool = True
    """Keep the raw change of a weight that the rank does not hold, and say so; else that is an error."""

    batch_size: int | None = None
    """Edit so many at a time, each batch on the model that the one before left, with a journal from which edits can be taken
    back (`weightsmith edits`) [all at once, without one]."""
    replay: Literal["none", "keys", "requests", "both"] | None = None
    """With --batch-size: what keeps earlier edits. `keys` guards their keys in every solve, `requests` asks some of them again
    with what they miss by then. Default: keys with an editor that solves for some, else requests."""
    replay_rate: float | None = None
    """Requests replayed a new one, more while they are found to have slipped. Default: 0.5, and 10 in
    each step of ftm."""
    replay_buffer_size: int = 2000
    """Requests that are remembered for it."""
    replay_strategy: Literal["random", "priority", "recent"] = "random"
    """Which are replayed."""
    replay_eviction: Literal["fifo", "lru"] = "fifo"
    """Which are forgotten when the buffer is full: the oldest, or those not replayed for longest."""
    replay_weight: float = 1.0
    """What a replayed request or a guarded key counts, a new one counting 1."""
    trust_enable: bool = False
    """With --batch-size: judge each batch on text kept aside and on earlier edits before it stays."""
    trust_threshold: float = 0.8
    """Least score, 0 to 1."""
    trust_action: Literal["rollback", "scale", "warn"] = "rollback"
    """What becomes of a batch below it: taken back, shrunk to the largest factor that passes, or kept with a warning."""
    trust_heldout_samples: int = 64
    """Windows of text kept aside that it is judged on."""
    trust_weights: tuple[float, ...] = (0.4, 0.3, 0.2, 0.05, 0.05)
    """Of efficacy, locality, retention of earlier edits, drift and update norm in the score."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions(FolderOptions, SpreadOptions):
    """What `compare` and `ablate` have: what editing methods are measured on."""

    model: str = "auto"
    """A language model or a trained image classifier: run folder, Hugging Face folder or hub name. `auto` takes the small
    model of the facts, the digits or the coloured digits, and trains it first."""
    data_path: str = "facts"
    """`facts` or a JSON file of facts, as for `edit`; for a classifier images, as for `run`, of which the validation part
    gives the requests, the train part what is preserved, and the held-out part the proof."""
    hparams: tuple[str, ...] = ()
    """YAML or JSON files of hyper-parameters, as for `edit`, each for the method that it names."""
    preserve: tuple[str, ...] = ()
    """UTF-8 text files, as for `edit`."""
    views: Literal["none", "light", "natural", "natural-colour", "dihedral"] = "light"
    """Images: augmented views of edited images on which generalisation is measured."""
    n_views: int = 8
    """Images: views an edited image."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(BenchOptions):
    """Compare editing methods over batch sizes and seeds on the same requests."""

    methods: tuple[str, ...] | None = None
    """Which to compare [rome memit emmet alphaedit head finetune lora, each with its own defaults]."""
    batch_sizes: tuple[int, ...] | None = None
    """Edits in a batch; each cell is one batch on the unedited model [1 8 32 128]."""
    seeds: tuple[int, ...] | None = None
    """Of the draws of requests; the same draw for every method, and a batch is the first of a larger one [0 1 2]."""
    requests: str | None = None
    """The comparison.json (or its run folder) of an earlier comparison, to measure on the very same requests."""
