"""What every command that fills a run folder is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """What every job that fills a run folder has: where its files go, and how it is gone on with."""

    seed: int = 42
    """Of the split, the weights, the training and every random choice."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), or a torch device. `disk`: the CPU, with a trained model's weights left in their file
    and read block by block; so they are on a CPU, too, where they take more than half of the memory that is free."""
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
class TrackedOptions(FolderOptions):
    """What every job that trains has beside that."""

    tracker: tuple[str, ...] = ()
    """Experiment trackers that are told every epoch, through accelerate: tensorboard (into `trackers/` of the run folder),
    wandb, mlflow and so on."""
