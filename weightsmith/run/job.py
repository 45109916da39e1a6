"""A run under way: its data, split and model, opened when first asked for, and the guard on held-out data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightsmith.data.images import ImageSet
from weightsmith.data.sources import open_data, open_part
from weightsmith.data.split import Source, Split, stratified
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.files import atomic_path, cause_of, understood, user_path
from weightsmith.measure import misclassified
from weightsmith.models import Model, create, load, presets
from weightsmith.models.paged import DISK
from weightsmith.models.store import PRETRAINED, check_new, check_there
from weightsmith.request import ImageRequest
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.compress import CompressOptions
from weightsmith.run.options.correct import BaselineOptions, RunOptions
from weightsmith.train import TrainOptions, find_device

_log = logging.getLogger(__name__)

Trains = RunOptions | BaselineOptions | CompressOptions
"""Options of the commands that train on a data set."""

TRAIN_DEFAULTS = {
    "epochs": 10,
    "batch_size": 32,
    "lr": 1e-4,
    "weight_decay": 0.01,
    "augment": "none",
    "label_smoothing": 0.0,
}
"""Of `run`, where neither the user nor a preset says."""


@dataclass
class Job:
    """A run under way: its options and folder, and what stages share, opened when first asked for.

    `stage` is the one that runs now; held-out data is handed to the evaluation alone.
    """

    options: RunOptions
    folder: RunFolder
    stage: str = ""

    @cached_property
    def cache_dir(self) -> Path | None:
        return user_path(self.options.cache_dir) if self.options.cache_dir else None

    @cached_property
    def device(self) -> str:
        return check_device(self.options.device)

    @cached_property
    def source(self) -> Source:
        return open_data(self.options.data_path, image_size_of(self.options), self.cache_dir)

    @cached_property
    def split(self) -> Split:
        """The split of the data, the same in every stage: it is checked against what the data stage wrote."""
        options = self.options
        held_out = options.held_out_ratio if options.held_out_from == "train" else options.held_out_from
        return self.source.split(held_out, options.seed, options.val_ratio)

    @cached_property
    def new_site(self) -> tuple[ImageSet, ImageSet] | None:
        """(stream of corrections, sealed rest) of the data set that `--edit-from` names; None for train and val."""
        options = self.options
        if options.edit_from in ("train", "val"):
            return None
        images = open_part(options.edit_from, image_size_of(options), self.cache_dir)
        if images.n_classes != self.source.n_classes:
            raise WeightsmithError(
                f"--edit-from {options.edit_from} has {images.n_classes} classes and the data {self.source.n_classes}: "
                "give a data set of the same classes"
            )
        named = [names for names in (images.class_names, self.source.class_names) if not names[0].startswith("class ")]
        if len(named) == 2 and named[0] != named[1]:
            raise WeightsmithError(
                f"--edit-from {options.edit_from} has the classes {', '.join(named[0])} and the data "
                f"{', '.join(named[1])}: give a data set of the same classes in the same order"
            )
        rest, stream = stratified(images, options.stream_ratio, options.seed, "--stream-ratio")
        for part in self.split.parts().values():
            if part.overlaps(images):
                raise WeightsmithError(
                    f"--edit-from {options.edit_from} shares {part.overlaps(images)} images with the {part.part} part "
                    "of this run: give another data set, or --held-out-from none when it is the file's test part"
                )
        return stream, rest.seal()

    @cached_property
    def trained(self) -> Model:
        """The trained classifier, as the train stage left it."""
        return load(self.folder.path / "model", device=self.device)

    def part(self, name: str) -> ImageSet:
        """A part of the data by name. Raises `HeldOutError` for held-out data outside the evaluation stage."""
        if name == "held_out" and self.stage != "eval":
            raise HeldOutError(
                f"the {self.stage} stage asked for held-out data: only the eval stage may read it, give the "
                "train or val part"
            )
        if name == "held_out":
            return self.split.held_out
        return {"train": self.split.train, "val": self.split.val}[name]

    def note(self, text: str) -> None:
        """Say something once to the log and keep it for the report."""
        _log.info(text)
        self.folder.note(self.stage, text)

    def errors(self, wanted: str, limit: int, fewest: int) -> tuple[list[ImageRequest], str]:
        """(misclassified images, the part they come from): of the part asked for, or of validation where it has too few."""
        found = misclassified(self.trained, self.part(wanted), limit, seed=self.options.seed)
        if wanted == "train" and len(found) < min(fewest, limit):
            more = misclassified(self.trained, self.part("val"), limit, seed=self.options.seed)
            if len(more) > len(found):
                origin = "carved from the training data" if self.split.val_carved else "given by the data set"
                self.note(
                    f"The model gets only {len(found)} images of the train part wrong (--min-errors {fewest}), so the "
                    f"errors come from the validation part, {origin}; held-out data stays unseen."
                )
                return more, "val"
        return found, wanted


def check_device(name: str, *, stored: bool = False) -> str:
    """A device that this machine has. Raises `WeightsmithError` naming `--device`.

    Args:
        stored: the network is in files, so that its weights may stay on the disk.
    """
    if name == "auto":
        return find_device()
    if name == DISK:
        if stored:
            return DISK
        raise WeightsmithError(
            f"--device {DISK} leaves a trained model's weights in its file, and here a network is made, trained or kept whole: "
            "give auto or cpu"
        )
    try:
        torch.zeros(1, device=name)
    except Exception as error:  # the type depends on the device and the build of torch
        raise WeightsmithError(f"--device {name} cannot be used here ({cause_of(error)}): give auto or cpu") from error
    return name


def model_name(model: str, data_path: str) -> str:
    """What `--model auto` means: the digits' preset for the digits, grey or coloured, else the pretrained ViT."""
    if model != "auto":
        return model
    return "digits" if data_path in ("digits", "coloured-digits") else PRETRAINED


def start_of(options: Trains) -> str:
    """The pretrained model that training begins with; "" for fresh weights."""
    name = model_name(options.model, options.data_path or "")
    return "" if name in presets() or name.endswith(".json") else name


def image_size_of(options: Trains) -> int:
    """Side to which a folder's images are resized on reading: the preset's, else the 224 of pretrained ViTs."""
    entries = presets().get(model_name(options.model, options.data_path or ""), {})
    return int(entries.get("image_size", 224))


def train_options(options: Trains, defaults: dict[str, Any]) -> TrainOptions:
    """Hyper-parameters: the user's, else the preset's, else the command's defaults."""
    recipe = presets().get(model_name(options.model, options.data_path or ""), {}).get("training", {})
    given = {name: getattr(options, name) for name in defaults if getattr(options, name) is not None}
    return TrainOptions(seed=options.seed, **(defaults | recipe | given))


def check_network(options: Trains) -> None:
    """Raise `WeightsmithError` where nothing answers to the name of the network that is to be trained, or is trained."""
    trained = None if isinstance(options, BaselineOptions) else options.checkpoint
    if trained is not None:
        check_there(trained)
    else:
        check_new(model_name(options.model, options.data_path or ""))


def new_model(options: Trains, source: Source, device: str) -> Model:
    """The network to train, on its device."""
    channels = source.part("train").channels
    model = create(model_name(options.model, options.data_path or ""), source.class_names, options.seed, channels)
    model.module.to(device)
    return model


def check_split(job: Job) -> None:
    """Raise `WeightsmithError` unless the data are split as the data stage recorded it."""
    path = job.folder.results / "data_split.json"
    if not path.exists():
        raise WeightsmithError(f"{path} is missing: run --stage data first")
    with understood(path, "start a new run"):
        entries = json.loads(path.read_text(encoding="utf-8"))["parts"]
        recorded = {name: entry["sha256"] for name, entry in entries.items()}
    for name, images in job.split.parts().items():
        if recorded.get(name) != images.digest():
            raise WeightsmithError(
                f"the {name} part is not the one that the data stage recorded in {path}: the data or --seed changed; "
                "start a new run"
            )


def save_indices(folder: Path, parts: Mapping[str, ImageSet]) -> None:
    """`data_split_indices.npz`: which images of its source each part holds, so that anybody can check the hashes."""
    with atomic_path(folder / "data_split_indices.npz") as temporary, temporary.open("wb") as file:
        positions: dict[str, Any] = {name: images.positions for name, images in parts.items()}
        np.savez_compressed(file, **positions)
