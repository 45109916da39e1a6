"""From the options of `weightsmith compare` and `ablate` to what is measured on: a model, its requests, how they are drawn."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.data.factworld import FactWorld
from weightsmith.data.images import ImageSet
from weightsmith.data.sources import open_data
from weightsmith.edit.hyperparameters import read_hyperparameters
from weightsmith.errors import WeightsmithError
from weightsmith.files import user_path
from weightsmith.measure import misclassified
from weightsmith.models import Model
from weightsmith.request import ImageRequest, Request
from weightsmith.run.compare.benches import ImageBench, TextBench, permuted
from weightsmith.run.compare.draws import Draws, Plan, drawn_again, matched, named_apart, plan_file
from weightsmith.run.folder import RunFolder
from weightsmith.run.job import check_device
from weightsmith.run.knowledge.fact_run import FACTS, of_auto
from weightsmith.run.knowledge.language import Kept, facts_of, of_name
from weightsmith.run.locate.inputs import EMBEDDED, embedded_model
from weightsmith.run.options.ablate import AblateOptions
from weightsmith.run.options.knowledge import BenchOptions, CompareOptions
from weightsmith.run.recorded import recorded_split

_log = logging.getLogger(__name__)

BATCH_SIZES, SEEDS = (1, 8, 32, 128), (0, 1, 2)
METHODS = {
    "text": ("rome", "memit", "emmet", "alphaedit", "head", "finetune", "lora"),
    "images": ("patcher", "alphaedit", "memit", "emmet", "rome", "head", "finetune", "lora"),
}
"""What is compared where nobody says."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command asks of a bench, besides `BenchOptions`.

    Attributes:
        sizes: of the batches, from small to large; seeds: of the draws.
        methods: those to measure; None is the usual ones.
        sizes_flag, methods_flag: how a user types them.
        earlier: a comparison whose requests are taken again, and its file.
    """

    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...] | None
    sizes_flag: str = "--batch-sizes"
    methods_flag: str = "--methods"
    earlier: tuple[Plan, Path] | None = None


def bench_of(
    options: CompareOptions, folder: RunFolder, notes: list[str]
) -> tuple[TextBench | ImageBench, tuple[int, ...], tuple[int, ...]]:
    """(what is measured on, batch sizes, seeds); what a reader must know is added to the notes.

    Raises:
        WeightsmithError: data that does not fit the model, no requests, or requests of another kind of model.
    """
    earlier = earlier_of(options)
    sizes, seeds = sweep_of(options, earlier)
    asked = Asked(sizes=sizes, seeds=seeds, methods=options.methods, earlier=earlier)
    bench, sizes = _bench(options, asked, folder, notes)
    return bench, sizes, seeds


def batch_of(options: AblateOptions, folder: RunFolder, notes: list[str]) -> TextBench | ImageBench:
    """What an ablation measures on: `max_edits` requests a seed. Raises as `bench_of`."""
    asked = Asked(
        sizes=(options.max_edits,),
        seeds=options.seeds,
        methods=options.edit_method,
        sizes_flag="--max-edits",
        methods_flag="--edit-method",
    )
    return _bench(options, asked, folder, notes)[0]


def _bench(
    options: BenchOptions, asked: Asked, folder: RunFolder, notes: list[str]
) -> tuple[TextBench | ImageBench, tuple[int, ...]]:
    """(what is measured on, the batch sizes that there are requests for). Raises as `bench_of`."""
    if options.model == "auto" and options.data_path in EMBEDDED:
        model = embedded_model(options.data_path, options.seed, folder, check_device(options.device))
        return _images(options, model, asked, notes)
    world: FactWorld | None
    if options.model == "auto":
        if options.data_path != FACTS and asked.earlier is None and not user_path(options.data_path).suffix == ".json":
            raise WeightsmithError(
                f"--model is needed: name the trained classifier of {options.data_path} (run folder, Hugging Face folder or "
                f"hub name); only for {FACTS}, {' and '.join(EMBEDDED)} there is one"
            )
        model, world = of_auto(options)
    else:
        model, world = of_name(options.model, options.device)
    if model.family.reads == "images":
        if options.data_path == FACTS:
            raise WeightsmithError(
                f"--model {options.model} is an image classifier: give its images with --data-path, `digits` say"
            )
        return _images(options, model, asked, notes)
    if options.data_path in EMBEDDED:
        raise WeightsmithError(
            f"--model {options.model} is a language model and --data-path {options.data_path} are images: give a JSON file "
            "of facts"
        )
    kept = Kept.of(model, options.preserve, world)
    if kept.aside is None:
        notes.append("The text is too short to keep windows aside, so perplexity and drift are not measured.")
    draws: Draws
    if asked.earlier is not None:
        draws = drawn_again(*asked.earlier)
        _same_kind(asked.earlier[0], "text", model, notes)
    else:
        most = asked.sizes[-1]
        draws = named_apart({seed: facts_of(options.data_path, world, most, seed, usable=True) for seed in asked.seeds})
    sizes = _within(asked, draws, f"facts in {options.data_path}", notes)
    chosen = {seed: draws[seed][: sizes[-1]] for seed in asked.seeds}
    return TextBench(model, chosen, kept, settings_of(options, asked)), sizes


def settings_of(options: BenchOptions, asked: Asked) -> dict[str, dict[str, Any]]:
    """Method → what the files of `--hparams` say of it.

    Raises:
        WeightsmithError: a file that cannot be read, one of a method that is not measured, or two of one method.
    """
    found: dict[str, dict[str, Any]] = {}
    for named in options.hparams:
        method, fields, notes = read_hyperparameters(named)
        if asked.methods is not None and method not in asked.methods:
            raise WeightsmithError(
                f"--hparams {named} is for {method} and {asked.methods_flag} says {' '.join(asked.methods)}: add it, or "
                "leave the file out"
            )
        if method in found:
            raise WeightsmithError(f"--hparams {named} is a second file for {method}: give one for each method")
        for note in notes:
            _log.info("--hparams %s: %s", named, note)
        found[method] = fields
    return found


def earlier_of(options: CompareOptions) -> tuple[Plan, Path] | None:
    if options.requests is None:
        return None
    path = plan_file(options.requests)
    try:
        return Plan.load(path), path
    except WeightsmithError as error:
        raise WeightsmithError(f"--requests {options.requests}: {error}") from error


def sweep_of(options: CompareOptions, earlier: tuple[Plan, Path] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Batch sizes from small to large, and seeds: the user's, else those of the earlier comparison, else the defaults."""
    of_earlier = earlier[0] if earlier is not None else None
    sizes = options.batch_sizes or (of_earlier.batch_sizes if of_earlier else BATCH_SIZES)
    seeds = options.seeds or (of_earlier.seeds if of_earlier else SEEDS)
    if of_earlier is not None:
        missing = [seed for seed in seeds if seed not in of_earlier.draws]
        if missing:
            raise WeightsmithError(
                f"--seeds {missing[0]} has no draw in --requests {options.requests}: it has "
                f"{' '.join(map(str, of_earlier.draws))}"
            )
    return tuple(sorted(sizes)), tuple(seeds)


def _within(asked: Asked, draws: Draws, what: str, notes: list[str]) -> tuple[int, ...]:
    """The batch sizes that there are requests for; the others are noted."""
    count = min(len(draws[seed]) for seed in asked.seeds)
    there = tuple(size for size in asked.sizes if size <= count)
    if not there:
        more = " and more are" if len(asked.sizes) > 1 else " is"
        raise WeightsmithError(
            f"{asked.sizes_flag} {asked.sizes[0]}{more} asked for, and there are {count} {what}: give fewer"
        )
    left = [str(size) for size in asked.sizes if size > count]
    if left:
        notes.append(f"Batches of {', '.join(left)} edits are left out: there are {count} {what}.")
    return there


def _same_kind(plan: Plan, reads: str, model: Model, notes: list[str]) -> None:
    if plan.reads != reads:
        raise WeightsmithError(
            f"--requests are of a comparison on {plan.reads} and {model.name} reads {reads}: give others"
        )
    if plan.fingerprint != model.fingerprint():
        notes.append(f"The requests are those of a comparison on another model, {plan.model}.")


def _images(options: BenchOptions, model: Model, asked: Asked, notes: list[str]) -> tuple[ImageBench, tuple[int, ...]]:
    if options.preserve:
        raise WeightsmithError(
            "--preserve is of text: a classifier preserves the images of its train part, leave it out"
        )
    train, val, held_out = parts_of(options, model, notes)
    draws: Draws
    if asked.earlier is not None:
        plan = asked.earlier[0]
        _same_kind(plan, "images", model, notes)
        draws = matched(plan, _by_name(val, plan), f"the validation part of {options.data_path}")
    else:
        errors: list[Request] = [*misclassified(model, val)]
        if not errors:
            raise WeightsmithError(
                f"the model makes no errors on the validation part of {options.data_path}, so there is nothing to edit: "
                "give a harder data set"
            )
        draws = {seed: permuted(errors, seed, asked.sizes[-1]) for seed in asked.seeds}
    sizes = _within(asked, draws, "errors in the validation part", notes)
    chosen = {seed: draws[seed][: sizes[-1]] for seed in asked.seeds}
    settings = settings_of(options, asked)
    return ImageBench(model, chosen, train, held_out, options.views, options.n_views, settings), sizes


def _by_name(val: ImageSet, plan: Plan) -> dict[str, Request]:
    """The images that a plan names, as requests for their labels."""
    wanted = {name for drawn in plan.draws.values() for name, _ in drawn}
    places = [place for place, name in enumerate(val.names()) if name in wanted]
    if not places:
        return {}
    names, labels, pixels = list(val.names()), val.labels, val.pixels(places)
    return {
        names[place]: ImageRequest(names[place], pixels[k], int(labels[place]), -1, val.source)
        for k, place in enumerate(places)
    }


def parts_of(
    options: BenchOptions, model: Model, notes: list[str], *, blank: bool = False
) -> tuple[ImageSet, ImageSet, ImageSet]:
    """(train, validation, sealed held-out part), as the model's run cut them; else cut here. `blank`: see `open_data`."""
    cache = user_path(options.cache_dir) if options.cache_dir else None
    source = open_data(options.data_path, model.preprocess.size, cache, blank=blank)
    if source.n_classes != model.n_classes:
        raise WeightsmithError(
            f"{model.name} has {model.n_classes} classes and --data-path {options.data_path} {source.n_classes}: give a "
            "classifier of these classes"
        )
    if options.model == "auto":
        split = source.split(0.2, options.seed)
        return split.train, split.val, split.held_out
    recorded = recorded_split(options.model, source)
    if recorded is not None and {"train", "val"} <= recorded.entries.keys() and recorded.held():
        train, val = recorded.part("train", source), recorded.part("val", source)
        return train, val, recorded.part(recorded.held()[0], source)
    notes.append(
        f"What {options.model} was trained on is not recorded, so the data are cut here, and nobody can tell whether it has "
        "seen held-out images."
    )
    split = source.split("test" if "test" in source.parts else 0.2, options.seed)
    return split.train, split.val, split.held_out
