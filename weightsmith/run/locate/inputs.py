"""What `weightsmith locate` looks at: a trained model, and images or prompts with their corrupted counterparts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weightsmith.data.corruptions import EmbeddingNoise, corruption
from weightsmith.data.images import ImageSet
from weightsmith.data.prompts import read_prompts
from weightsmith.data.sources import open_data
from weightsmith.data.split import Source
from weightsmith.errors import HeldOutError, WeightsmithError, perhaps
from weightsmith.files import user_path, write_json
from weightsmith.locate import Cases, ImageCases, Prompt, PromptCases
from weightsmith.locate.cases import UNDECIDED
from weightsmith.measure import predict
from weightsmith.models import Model, create, load, presets, save
from weightsmith.run.folder import RunFolder
from weightsmith.run.job import check_device, save_indices
from weightsmith.run.options.locate import LocateOptions, PairOptions, PatchOptions, SweepOptions
from weightsmith.run.recorded import recorded_split
from weightsmith.train import TrainOptions, fit

_log = logging.getLogger(__name__)

EMBEDDED = ("digits", "coloured-digits")
"""Data sets that come along, for which `--model auto` trains a model on the spot."""

_STRENGTHS = {"blur": "sigma", "pixel_noise": "scale", "region_swap": "share"}
"""What `--strength` is of each corruption."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """The images that are looked at.

    Attributes:
        names: one an image; pixels: (n, channels, height, width) uint8.
        labels, predicted: (n,) int64 the right class and the one that the model gives.
        class_names: one a class.
        told: what was chosen, in a sentence.
    """

    names: tuple[str, ...]
    pixels: Tensor
    labels: Tensor
    predicted: Tensor
    class_names: tuple[str, ...]
    told: str


def trained_model(options: LocateOptions, folder: RunFolder) -> Model:
    """The model that `--model` names; `auto` trains the digits' preset into the run folder, once.

    Raises:
        WeightsmithError: `auto` with data that has no preset, or a model that cannot be loaded.
    """
    device = check_device(options.device, stored=options.model != "auto")
    if options.model != "auto":
        return load(options.model, device=device)
    check_auto(options)
    return embedded_model(options.data_path, options.seed, folder, device)


def check_auto(options: LocateOptions) -> None:
    """Raise `WeightsmithError` where `--model auto` has no model for the data, or holds the part out."""
    if options.data_path not in EMBEDDED:
        raise WeightsmithError(
            "--model is needed: name a trained model (run folder, Hugging Face folder or hub name); only for "
            f"{' and '.join(EMBEDDED)} one is trained on the spot"
        )
    if options.part not in ("train", "val"):
        raise WeightsmithError(
            f"--part {options.part} is not open with --model auto, which trains on a part of the {options.data_path} and holds "
            f"out a fifth: give --part val or train{perhaps(options.part, ('val', 'train'))}"
        )


def embedded_model(data_path: str, seed: int, folder: RunFolder, device: str) -> Model:
    """The digits' preset, trained on digits of one kind or the other into the run folder, once, its split recorded."""
    place, checkpoint = folder.path / "model", folder.checkpoints / "checkpoint.pt"
    source = open_data(data_path)
    split = source.split(0.2, seed)
    if not checkpoint.exists():
        _log.info("training a small model on the %s first", data_path)
    model = create("digits", source.class_names, seed, source.part("train").channels)
    recipe = TrainOptions(seed=seed, **(presets()["digits"]["training"] | short(data_path)))
    # Always through the checkpoint: one of another seed or data set is refused there, a finished one is not trained again.
    history = fit(model, split.train, split.val, recipe, checkpoint, resume=True)
    if not (history.skipped and (place / "config.json").exists()):
        save(model, place)
        save_indices(folder.path, split.parts())
        write_json(folder.path / "data_split.json", split.manifest())
    return load(place, device=device)


def chosen_images(options: LocateOptions, model: Model) -> Chosen:
    """The images that `--data-path`, `--part`, `--select` and `--max-samples` mean.

    Raises:
        WeightsmithError: no such data, other classes than the model's, or no image that fits the selection.
        HeldOutError: a part that the model's run holds out.
    """
    if options.max_samples < 1:
        raise WeightsmithError(f"--max-samples must be at least 1, not {options.max_samples}: give 50 say")
    cache = user_path(options.cache_dir) if options.cache_dir else None
    source = open_data(options.data_path, model.preprocess.size, cache)
    images = part_of(options, source)
    seen = predict(model, images)
    wanted = {"errors": ~seen.right, "right": seen.right, "all": torch.ones_like(seen.right)}[options.select]
    which = torch.nonzero(wanted).flatten().numpy()
    if not len(which):
        other = {"errors": "makes no errors", "right": "gets nothing right"}.get(options.select, "sees nothing")
        raise WeightsmithError(
            f"the model {other} on the {options.part} part of {options.data_path}: give --select all, or other images"
        )
    found = len(which)
    if options.max_samples < found:
        which = np.sort(np.random.default_rng(options.seed).permutation(which)[: options.max_samples])
    told = (
        f"{len(which)} of the {found} images of the {options.part} part"
        + {
            "errors": " that the model gets wrong",
            "right": " that the model gets right",
            "all": "",
        }[options.select]
    )
    return Chosen(
        tuple(seen.names[i] for i in which),
        images.pixels(which),
        seen.labels[which],
        seen.classes[which],
        images.class_names,
        told,
    )


def image_cases(options: SweepOptions, model: Model, chosen: Chosen) -> ImageCases:
    """The chosen images with their corrupted counterparts; the decision is for the class given or the label.

    Of an image that the model gets wrong it is against the other of the two; else against what the corrupted run favours.
    """
    if isinstance(options, PairOptions):
        _check_corruption(options)
    first, second = chosen.predicted, chosen.labels
    if options.target == "label":
        first, second = second, first
    foils = torch.where(first == second, UNDECIDED, second)
    if not isinstance(options, PairOptions) or options.corruption == "noise":
        noise = EmbeddingNoise(options.noise, options.num_ablations, options.seed)
        return ImageCases(model, chosen.names, chosen.pixels, noise, first, foils, describes=options.target)
    if options.corrupted_from is not None:
        other, how = _other_images(options, model, chosen), f"the image of {options.corrupted_from}"
    else:
        given = {} if options.strength is None else {_STRENGTHS[options.corruption]: options.strength}
        other = corruption(options.corruption, **given)(chosen.pixels, chosen.labels, options.seed)
        how = " ".join([options.corruption, *(f"{name}={value:g}" for name, value in given.items())])
    return ImageCases(model, chosen.names, chosen.pixels, other, first, foils, how, describes=options.target)


def prompt_cases(options: SweepOptions, model: Model) -> PromptCases:
    """The prompts of a file, with noise on their subjects.

    Raises:
        WeightsmithError: no such file, a prompt that does not fit the model, text for a model without a tokenizer.
    """
    if options.max_samples < 1:
        raise WeightsmithError(f"--max-samples must be at least 1, not {options.max_samples}: give 50 say")
    prompts: list[Prompt] = []
    for one in read_prompts(options.data_path, options.max_samples):
        if one.ids:
            prompts.append(Prompt(one.name, one.ids, one.span, one.target))
        else:
            span = model.tokenize.subject(one.text, one.subject)
            prompts.append(Prompt(one.name, model.tokenize(one.text), span))
    return PromptCases(model, tuple(prompts), EmbeddingNoise(options.noise, options.num_ablations, options.seed))


def cases_of(options: SweepOptions, model: Model) -> tuple[Cases, Chosen | None, str]:
    """(cases, the images among them if any, what they are in words)."""
    if model.family.reads == "text":
        if isinstance(options, PatchOptions):
            raise WeightsmithError(
                f"{model.name} is a {model.family.title}: weightsmith locate patch works on pairs of images, use "
                "weightsmith locate trace"
            )
        cases = prompt_cases(options, model)
        return cases, None, f"{len(cases.names)} prompts of {Path(options.data_path).name}"
    chosen = chosen_images(options, model)
    return image_cases(options, model, chosen), chosen, chosen.told


def _check_corruption(options: PairOptions) -> None:
    """Refuse what would be left out without a word."""
    if options.corrupted_from is not None and options.corruption == "noise":
        raise WeightsmithError("--corrupted-from takes the place of --corruption noise: leave one of them out")
    if options.strength is not None and (options.corrupted_from is not None or options.corruption not in _STRENGTHS):
        what = "--corrupted-from" if options.corrupted_from is not None else options.corruption
        raise WeightsmithError(f"--strength is of {', '.join(_STRENGTHS)}, not of {what}: leave it out")


def short(data: str) -> dict[str, int]:
    """The coloured digits are learned in fewer epochs."""
    return {"epochs": 8} if data == "coloured-digits" else {}


def part_of(options: LocateOptions, source: Source) -> ImageSet:
    """A part by name: the one that the model's run made of this data, if it did; else the data set's own, or a carved one."""
    if options.model == "auto":
        return source.split(0.2, options.seed).parts()[options.part]
    recorded = _recorded_part(options, source)
    if recorded is not None:
        return recorded
    if options.part in source.parts:
        return source.part(options.part)
    if options.part == "val":
        return source.split("none", options.seed).val
    return source.part(options.part)


def _recorded_part(options: LocateOptions, source: Source) -> ImageSet | None:
    recorded = recorded_split(options.model, source)
    if recorded is None:
        return None
    theirs, held = recorded.entries, recorded.held()
    there = {entry["part"] for name, entry in theirs.items() if name not in held}
    remedy = f"give --part {' or '.join(name for name in theirs if name not in held)}" if there else "give other images"
    if options.part in held or options.part in {theirs[name]["part"] for name in held} - there:
        raise HeldOutError(
            f"--part {options.part} is what the run {options.model} holds out for its final evaluation: {remedy}"
        )
    if options.part not in theirs:
        raise WeightsmithError(
            f"--part {options.part} is none of the parts that the run {options.model} records: {remedy}"
            f"{perhaps(options.part, theirs)}"
        )
    return recorded.part(options.part, source)


def _other_images(options: PairOptions, model: Model, chosen: Chosen) -> Tensor:
    """Image for image the corrupted one, from another data set of the same order."""
    assert options.corrupted_from is not None
    size, cache = model.preprocess.size, user_path(options.cache_dir) if options.cache_dir else None
    mine = open_data(options.data_path, size, cache)
    part, place = chosen.names[0].split("/")[0], [int(name.split("/")[1]) for name in chosen.names]
    try:
        theirs = open_data(options.corrupted_from, size, cache).part(part)
    except WeightsmithError as error:
        raise WeightsmithError(f"--corrupted-from {options.corrupted_from}: {error}") from error
    if len(theirs) != len(mine.part(part)):
        raise WeightsmithError(
            f"--corrupted-from {options.corrupted_from} has {len(theirs)} images in its {part} part and --data-path "
            f"{len(mine.part(part))}: pairs need image for image the same, give the corrupted counterpart of "
            "--data-path"
        )
    return theirs.pixels(place)
