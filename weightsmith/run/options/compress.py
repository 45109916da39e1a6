"""The options of `compress`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightsmith.run.options.correct import JobOptions
from weightsmith.run.options.spread import SpreadOptions

UnitScore = Literal["gauss-newton", "task-loss", "eap", "eap-ig", "exact", "magnitude", "random"]


@dataclass(frozen=True, kw_only=True)
class CompressOptions(JobOptions, SpreadOptions):
    """Make a vision transformer smaller: train it, remove what it does not need, measure what is left."""

    mode: Literal["full", "train", "optimize", "evaluate"] = "full"
    """What to do: train the baseline, optimize it (search and removal), evaluate all models; `full` does the three. Each
    works on what the run folder holds already."""
    method: Literal["both", "acdc", "eap"] = "both"
    """How to search: by a budget of KL divergence (acdc), by a share of the multiplications (eap), or both."""
    skip_training: bool = False
    """Take the baseline that is in the run folder."""
    checkpoint: str | None = None
    """A trained ViT classifier to take as the baseline (run folder, Hugging Face folder or hub name): nothing is trained."""
    baseline_name: str = "baseline"
    """The baseline is models/NAME in the run folder."""
    acdc_base_name: str = "acdc"
    """Models of a threshold are optimized_models/NAME_threshold_V."""
    eap_base_name: str = "eap"
    """Models of a keep ratio are optimized_models/NAME_keep_V."""

    data_path: str = "digits"
    """A MedMNIST-layout .npz, a folder of images by class, Tiny-ImageNet's folder, parquet files in the hub's layout, or
    `digits` or `coloured-digits` (no download needed)."""
    held_out_ratio: float = 0.2
    """Share of the train part that only the evaluation may see."""
    held_out_from: Literal["auto", "train", "val", "test"] = "auto"
    """What is held out: a share of the train part, or the data set's whole validation or test part; `auto` takes the
    validation part of Tiny-ImageNet, else a share of the train part."""
    val_ratio: float = 0.2
    """Share of the remaining train part that becomes the validation part, where the data has none of its own."""

    acdc_thresholds: tuple[float, ...] = (0.01, 0.05, 0.1)
    """Budgets in nats of the mean KL divergence of the smaller model from the baseline; one model each."""
    eap_keep_ratios: tuple[float, ...] = (0.9, 0.8, 0.7)
    """Shares of the baseline's multiplications that stay; one model each."""
    latency_ratios: tuple[float, ...] = ()
    """Shares of the baseline's wall time that stay, on this machine; one model each, optimized_models/latency_ratio_V."""
    pareto: bool = False
    """Sweep further thresholds and keep ratios as well; the evaluation draws the Pareto front."""
    acdc_rule: Literal["budget", "step"] = "budget"
    """The threshold bounds the KL of the final model (budget), or what each removal adds, as published (step)."""
    group: int = 16
    """Neurons that go together by the step rule; the budget rule takes them one by one."""
    use_task_loss: bool = False
    """Score units for the cross-entropy with the labels instead of the KL divergence from the baseline."""
    eap_score: UnitScore = "gauss-newton"
    """How heads and neurons are scored for keep ratios; the other goals take the first."""
    analysis_batches: int | None = None
    """Batches of train images that maps are fitted to and units are scored on [acdc 30, eap and latency 20], all images where
    there are no more."""
    analysis_batch_size: int = 32
    """Images in each of them."""
    judging_images: int = 512
    """Validation images that attempts are judged by, all where there are no more: a model changes less on images that it was
    trained on, so a budget kept there would not hold elsewhere."""
    latency_batch_size: int = 8
    """Images a pass for which --latency-ratios hold."""
    fold: Literal["ridge", "mean", "none"] = "ridge"
    """What stands in for removed heads and neurons: the best linear guess from those that stay, their mean, or nothing."""
    ridge: float = 1e-3
    """Ridge of that guess, relative to the mean variance of what stays."""
    round_widths: int = 16
    """MLP widths are multiples of this: processors are slower in between."""
    cls_only: bool = True
    """Compute only the CLS row from the last attention on, which changes nothing but the time."""

    study: bool = True
    """Compare every way to score units with exact removal of single ones, and draw how faithful circuits are."""
    study_images: int = 64
    """Images for that."""

    recover_epochs: int = 0
    """Epochs of distillation from the baseline on the train part after the removal; the best by validation accuracy stays."""
    recover_lr: float | None = None
    """Its learning rate [a third of the training's]."""
    recover_temperature: float = 1.0
    """Its temperature."""
    recover_label_weight: float = 0.0
    """Share of its loss that the labels have."""
    onnx: bool = False
    """Write model.onnx beside each smaller model."""

    tolerance: float = 1.0
    """Percentage points of accuracy that a recommended faster model may lose against the baseline."""
    rounds: int = 30
    """Passes of each model that are timed at batch sizes 1, 8 and 64, as for `evaluate`."""
    eval_batch_size: int = 64
    """Images a pass while predicting."""
