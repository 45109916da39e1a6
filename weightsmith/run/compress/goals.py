"""The smaller models that `weightsmith compress` is asked for, and what is wrong with asking for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from weightsmith.circuit import Shape
from weightsmith.data.images import ImageSet
from weightsmith.data.split import Split, sample
from weightsmith.errors import WeightsmithError
from weightsmith.measure.latency import LEAST_ROUNDS
from weightsmith.models import Model
from weightsmith.models.onnx_export import require_onnx
from weightsmith.prune import Circuit, Ways, by_steps, within_kl, within_macs, within_time
from weightsmith.run.job import TRAIN_DEFAULTS, train_options
from weightsmith.run.options.compress import CompressOptions
from weightsmith.run.session import at_least, distinct, flag
from weightsmith.train import DistillOptions

PARETO_THRESHOLDS = (0.005, 0.02, 0.2)
PARETO_KEEP_RATIOS = (0.6, 0.5, 0.4, 0.3)
"""What `--pareto` adds to the goals given."""

_BATCHES = {"acdc": 30, "eap": 20, "latency": 20}
"""Batches that a search sees, where the user does not say."""


@dataclass(frozen=True)
class Goal:
    """One smaller model that is asked for.

    Attributes:
        method: how it is searched for.
        value: threshold in nats, share of the multiplications, or share of the time.
        name: of its folder.
        swept: whether `--pareto` asks for it rather than the user.
    """

    method: Literal["acdc", "eap", "latency"]
    value: float
    name: str
    swept: bool = False

    def images(self, options: CompressOptions, split: Split) -> ImageSet:
        """What maps are fitted to and units are scored on: a stratified sample of train that depends on the seed alone."""
        batches = options.analysis_batches or _BATCHES[self.method]
        return sample(split.train, batches * options.analysis_batch_size, options.seed)

    def judging(self, options: CompressOptions, split: Split) -> ImageSet:
        """What attempts are judged by: a stratified sample of the validation part, which no weight was fitted to."""
        return sample(split.val, options.judging_images, options.seed)

    def settings(self, options: CompressOptions) -> dict[str, Any]:
        """The options, by name, that the search's result depends on beside model and images."""
        names = ["fold", "ridge", "cls_only", "round_widths", "seed"]
        names += {
            "acdc": ["acdc_rule", "group"],
            "eap": ["use_task_loss", "eap_score"],
            "latency": ["latency_batch_size"],
        }[self.method]
        return {name: getattr(options, name) for name in names}

    def circuit(self, options: CompressOptions, model: Model, split: Split) -> Circuit:
        """Search. Raises `WeightsmithError` where nothing reaches the goal."""
        images, judging = self.images(options, split), self.judging(options, split)
        ways = Ways(
            fold=options.fold,
            ridge=options.ridge,
            cls_only=options.cls_only,
            multiple=options.round_widths,
            seed=options.seed,
        )
        if self.method == "acdc" and options.acdc_rule == "step":
            return by_steps(model, images, self.value, ways, judging=judging, group=options.group)
        if self.method == "acdc":
            return within_kl(model, images, self.value, ways, judging=judging)
        if self.method == "eap":
            ways = replace(ways, score="task-loss" if options.use_task_loss else options.eap_score)
            return within_macs(model, images, self.value, ways, judging=judging)
        return within_time(model, images, self.value, ways, judging=judging, batch_size=options.latency_batch_size)


def goals_of(options: CompressOptions) -> list[Goal]:
    """Every model that is asked for, thresholds first, each list in its order and what `--pareto` adds behind it."""
    found: list[Goal] = []
    for method, base, given, more in (
        ("acdc", f"{options.acdc_base_name}_threshold", options.acdc_thresholds, PARETO_THRESHOLDS),
        ("eap", f"{options.eap_base_name}_keep", options.eap_keep_ratios, PARETO_KEEP_RATIOS),
    ):
        if options.method in ("both", method):
            swept = [value for value in more if value not in given] if options.pareto else []
            found += [_goal(method, value, base) for value in given]
            found += [replace(_goal(method, value, base), swept=True) for value in swept]
    return found + [_goal("latency", value, "latency_ratio") for value in options.latency_ratios]


def within_reach(goals: Sequence[Goal], options: CompressOptions, shape: Shape, notes: list[str]) -> list[Goal]:
    """The goals that some model of this shape can reach; those of a sweep that none can are told and left out.

    Raises:
        WeightsmithError: a keep ratio below what embeddings, one head and the classifier cost.
    """
    least = replace(shape, heads=(1,), neurons=(0,)).macs(options.cls_only) / shape.macs()
    found: list[Goal] = []
    for goal in goals:
        if goal.method == "eap" and goal.value < least:
            told = (
                f"--eap-keep-ratios {goal.value:g} leaves nothing of the model: embeddings, one head and the classifier are "
                f"{least:.4f} of its multiplications"
            )
            if not goal.swept:
                raise WeightsmithError(f"{told}; give {math.ceil(1000 * least) / 1000:g} or more")
            notes.append(f"Left out of the sweep: {told}.")
            continue
        found.append(goal)
    return found


def check_goals(options: CompressOptions) -> None:
    """Everything of the search and the recovery that can be known to be wrong before any work is done."""
    least = dict.fromkeys(
        (
            "analysis_batches",
            "analysis_batch_size",
            "group",
            "round_widths",
            "latency_batch_size",
            "eval_batch_size",
            "study_images",
            "judging_images",
        ),
        1,
    )
    at_least(options, least | {"recover_epochs": 0, "rounds": LEAST_ROUNDS, "tolerance": 0})
    _positive(options, "ridge", "recover_lr")
    if math.isnan(options.tolerance):
        raise WeightsmithError("--tolerance must be a number of percentage points, 1 say")
    if options.method in ("both", "acdc"):
        distinct("acdc_thresholds", options.acdc_thresholds, "0.01 0.05 0.1")
        for value in options.acdc_thresholds:
            if not (value > 0 and math.isfinite(value)):
                raise WeightsmithError(
                    f"--acdc-thresholds must be positive numbers of nats, not {value:g}: give 0.01 say"
                )
    if options.method in ("both", "eap"):
        distinct("eap_keep_ratios", options.eap_keep_ratios, "0.9 0.8 0.7")
    if options.latency_ratios:
        distinct("latency_ratios", options.latency_ratios, "0.8 0.5")
    for name, ratios in (("eap_keep_ratios", options.eap_keep_ratios), ("latency_ratios", options.latency_ratios)):
        for value in ratios:
            if not 0 < value <= 1:
                raise WeightsmithError(f"{flag(name)} must be shares above 0 and up to 1, not {value:g}: give 0.8 say")
    for name in ("baseline_name", "acdc_base_name", "eap_base_name"):
        value = getattr(options, name)
        if not value or value.startswith(".") or any(sign in value for sign in "/\\\0"):
            raise WeightsmithError(f"{flag(name)} {value!r} cannot be a folder's name: give a name without slashes")
    if options.acdc_base_name == options.eap_base_name:
        raise WeightsmithError(
            f"--acdc-base-name and --eap-base-name are both {options.eap_base_name}: give two different names"
        )
    if options.skip_training and options.mode == "train":
        raise WeightsmithError("--skip-training leaves --mode train nothing to do: give one of them")
    if options.recover_epochs:
        recovery(options)
    if options.onnx:
        require_onnx("model.onnx of --onnx")


def recovery(options: CompressOptions) -> DistillOptions:
    """The hyper-parameters of the recovery. Raises `WeightsmithError` for flags that are none."""
    _positive(options, "recover_temperature")
    if not 0 <= options.recover_label_weight <= 1:
        raise WeightsmithError(
            f"--recover-label-weight must be a share from 0 to 1, not {options.recover_label_weight:g}: give 0 for none"
        )
    recipe = train_options(options, TRAIN_DEFAULTS)
    return DistillOptions(
        epochs=options.recover_epochs,
        batch_size=recipe.batch_size,
        lr=options.recover_lr or recipe.lr / 3,
        weight_decay=recipe.weight_decay,
        augment=recipe.augment,
        label_smoothing=recipe.label_smoothing,
        temperature=options.recover_temperature,
        label_weight=options.recover_label_weight,
        seed=options.seed,
    )


def _goal(method: Any, value: float, base: str) -> Goal:
    short = f"{value:g}"
    return Goal(method, value, f"{base}_{short if float(short) == value else repr(value)}")


def _positive(options: CompressOptions, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise WeightsmithError(f"{flag(name)} must be a positive number, not {value:g}: leave it out for the usual")
