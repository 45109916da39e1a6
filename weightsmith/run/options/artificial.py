"""The options of `artificial`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightsmith.run.options.folder import TrackedOptions
from weightsmith.run.options.spread import SpreadOptions


@dataclass(frozen=True, kw_only=True)
class ArtificialOptions(TrackedOptions, SpreadOptions):
    """Task arithmetic on artificial data: two tables, a base, a fine-tuned network, a sweep; or the sweep of your own pair."""

    stage: Literal["data", "base", "finetune", "sweep", "full"] = "full"
    """Which stage to run; each takes what earlier stages left in the run folder, `full` runs all four."""

    preset: str = "plain"
    """The two tables: `plain` (scikit-learn's defaults: two clusters a class, corners 2 apart) or `informative` (one cluster a
    class, corners 4 apart), on which fine-tuning learns something."""
    base_data: str | None = None
    """A CSV file to take as the base's task: a header, numbers, the last column `label`."""
    finetune_data: str | None = None
    """A CSV file to take as the task that is fine-tuned on, as wide as the other."""
    held_out_ratio: float = 0.2
    """Share of each table that only the final accuracies may see: its test part."""
    val_ratio: float = 0.2
    """Share of the rest that chooses the epoch and the coefficient."""

    epochs: int = 100
    """Epochs of the base's training; the one of best validation accuracy is kept, none is left out."""
    lr: float = 1e-3
    """Its learning rate."""
    finetune_epochs: int | None = None
    """Epochs of fine-tuning [as many as --epochs]."""
    finetune_lr: float = 1e-4
    """Its learning rate."""
    freeze_backbone: bool = False
    """Fine-tune the new head alone: the task vector of the backbone is then zero."""
    batch_size: int = 32
    """Rows a training step, or images a pass."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    base_model: str | None = None
    """A base that is there (a folder of such a run, or a checkpoint of its backbone): nothing is trained in its place."""

    operations: tuple[str, ...] = ("subtract", "add", "multiply", "divide")
    """What the task vector is, of base w and fine-tuned f: f - w, f + w, f * w, f / w."""
    modes: tuple[str, ...] = ("raw", "anchored")
    """raw: w + coefficient times the vector; anchored: a way from w to a target that is reached at coefficient 1."""
    coefficients: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """How much of the vector is put on."""

    pretrained: str | None = None
    """Sweep this pair of your own: an image classifier (run folder, Hugging Face folder or hub name), the w of above."""
    finetuned: str | None = None
    """The classifier that was fine-tuned from it, the f of above."""
    data_path: str | None = None
    """The data set that the fine-tuned classifier was trained on, as for `run`, or a CSV table; judged with its head."""
    pretrained_data_path: str | None = None
    """The data set of the pretrained classifier, judged with its own head, where it is to be judged as well."""
