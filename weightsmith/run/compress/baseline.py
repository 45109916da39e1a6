"""The baseline of `weightsmith compress`: trained, given or already there, and the split that it was trained on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from weightsmith import report
from weightsmith.circuit import Shape
from weightsmith.data.sources import open_data
from weightsmith.data.split import Source, Split, info
from weightsmith.data.tiny_imagenet import is_tiny_imagenet
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.files import DAMAGED, atomic_folder, user_path, write_csv, write_json
from weightsmith.models import Model, load, registered_by, save
from weightsmith.prune import shape_of
from weightsmith.run.cells import key_of
from weightsmith.run.folder import RunFolder
from weightsmith.run.job import (
    TRAIN_DEFAULTS,
    check_device,
    image_size_of,
    new_model,
    save_indices,
    start_of,
    train_options,
)
from weightsmith.run.options.compress import CompressOptions
from weightsmith.run.recorded import check_not_trained_on
from weightsmith.train import fit

_log = logging.getLogger(__name__)

MODELS, RECORD = "models", "baseline.json"
_FORMAT = "weightsmith-baseline-1"


@dataclass(frozen=True, eq=False)
class Baseline:
    """The model that is made smaller.

    Attributes:
        model: as it lies in `place`; shape: its sizes.
        source, split: the data.
        origin: what training began with or the checkpoint that was given, "" for fresh weights.
    """

    model: Model
    shape: Shape
    place: Path
    source: Source
    split: Split
    origin: str


def resolved(options: CompressOptions) -> CompressOptions:
    """The options with what `auto` means for this data."""
    tiny = options.data_path and is_tiny_imagenet(user_path(options.data_path))
    held_out = ("val" if tiny else "train") if options.held_out_from == "auto" else options.held_out_from
    model = "tiny-imagenet" if tiny and options.model == "auto" else options.model
    return replace(options, held_out_from=held_out, model=model)


def trains(options: CompressOptions) -> bool:
    """Whether the baseline is made by this call, or taken as it is there."""
    return options.mode in ("full", "train") and not options.skip_training


def baseline_place(options: CompressOptions, folder: Path) -> Path:
    """Where the baseline lies in a run's folder."""
    return folder / MODELS / options.baseline_name


def baseline_of(
    options: CompressOptions, folder: RunFolder, device: str, notes: list[str], suits: Callable[[Shape], object]
) -> Baseline:
    """The baseline, made where it is not there yet; its split is recorded in the run's folder.

    Args:
        notes: what a reader must know is added.
        suits: called with the sizes before anything is trained; raises where they do not suit what is asked for.

    Raises:
        WeightsmithError: bad data or a model that is no ViT, a baseline of other options or of another split.
    """
    place = baseline_place(options, folder.path)
    given, named = None, f"--baseline-name {options.baseline_name}"
    if not trains(options):
        given = _classifier(str(place), named, device)
    elif options.checkpoint is not None:
        named = f"--checkpoint {options.checkpoint}"
        given = _classifier(options.checkpoint, named, device)
    size = image_size_of(options) if given is None else given.preprocess.size
    source = open_data(options.data_path, size, user_path(options.cache_dir) if options.cache_dir else None)
    if given is not None:
        _check_classes(given, source, named, options.data_path)
        suits(shape_of(given))
    held_out = options.held_out_ratio if options.held_out_from == "train" else options.held_out_from
    split = source.split(held_out, options.seed, options.val_ratio)
    making = _Making(options, folder, source, split, place, suits)
    making.check_split()
    _write_split(folder, split)
    if not trains(options):
        assert given is not None
        unknown = {"origin": "", "notes": [f"What {options.baseline_name} was trained on is not recorded."]}
        record: dict[str, Any] = _record_of(place) or unknown
        notes += record["notes"]
        return Baseline(given, shape_of(given), place, source, split, record["origin"])
    notes += making.trained(device) if given is None else making.taken(given)
    model = _classifier(str(place), f"--baseline-name {options.baseline_name}", device)
    folder.write_env(device=device, weights=weights_hash(model), data=making.digests, seed=options.seed)
    return Baseline(model, shape_of(model), place, source, split, _origin(options))


def baseline_there(options: CompressOptions, folder: RunFolder, fingerprint: str) -> Baseline:
    """The baseline that `baseline_of` has left, opened again where a smaller model is made; nothing is written.

    Raises:
        WeightsmithError: another baseline than that of the fingerprint, or another split of the data.
    """
    place = baseline_place(options, folder.path)
    model = _classifier(str(place), f"--baseline-name {options.baseline_name}", check_device(options.device))
    if model.fingerprint() != fingerprint:
        raise WeightsmithError(
            f"it sees another baseline in {place} than the command: give every machine the same files"
        )
    cache = user_path(options.cache_dir) if options.cache_dir else None
    source = open_data(options.data_path, model.preprocess.size, cache)
    held_out = options.held_out_ratio if options.held_out_from == "train" else options.held_out_from
    split = source.split(held_out, options.seed, options.val_ratio)
    record = _record_of(place)
    if record is not None and record["split"] != {name: images.digest() for name, images in split.parts().items()}:
        raise WeightsmithError(
            f"it sees other data in {options.data_path} than the command: give every machine the same"
        )
    origin = record["origin"] if record is not None else ""
    return Baseline(model, shape_of(model), place, source, split, origin)


def _classifier(path: str, named: str, device: str) -> Model:
    """A ViT classifier. Raises `WeightsmithError` naming the flag for anything else."""
    try:
        model = load(path, device=device)
        shape_of(model)
    except WeightsmithError as error:
        raise WeightsmithError(f"{named} cannot be compressed: {error}") from error
    return model


def _check_classes(model: Model, source: Source, named: str, data: str) -> None:
    mine, theirs = model.class_names, source.class_names
    if len(mine) != len(theirs):
        raise WeightsmithError(
            f"{named} has {len(mine)} classes and --data-path {data} {len(theirs)}: give a classifier of these classes, or "
            "train one"
        )
    if mine != theirs and set(mine) == set(theirs):
        raise WeightsmithError(
            f"{named} and --data-path {data} have the same classes in another order: give a classifier that was trained on "
            "this data"
        )


@dataclass(frozen=True, eq=False)
class _Making:
    """A baseline that is made, or found made already."""

    options: CompressOptions
    folder: RunFolder
    source: Source
    split: Split
    place: Path
    suits: Callable[[Shape], object]

    @cached_property
    def digests(self) -> dict[str, str]:
        return {name: images.digest() for name, images in self.split.parts().items()}

    def check_split(self) -> None:
        """Raise `WeightsmithError` where the baseline that is there had another split: it may know what is held out."""
        record = _record_of(self.place)
        if record is not None and record["split"] != self.digests:
            raise WeightsmithError(
                f"{self.place} was trained on another split of the data than --data-path, --seed and the held-out flags name: "
                "give those of its run, or --mode full --overwrite"
            )

    def trained(self, device: str) -> list[str]:
        """Train, unless what is there was trained with the same options on the same data; the notes of the baseline."""
        options, out = self.options, self.folder.results
        model = new_model(options, self.source, device)
        try:
            self.suits(shape_of(model))
        except WeightsmithError as error:
            named = "" if "--" in str(error) else f"--model {options.model} cannot be compressed: "
            raise WeightsmithError(f"{named}{error}") from error
        recipe = train_options(options, TRAIN_DEFAULTS)
        key = key_of({"split": self.digests, "start": weights_hash(model), "recipe": asdict(recipe)})
        if self._is_finished(key):
            return []
        history = fit(
            model,
            self.split.train,
            self.split.val,
            recipe,
            self.folder.checkpoints / f"{options.baseline_name}.pt",
            resume=options.resume,
            pin_memory=options.pin_memory,
            on_epoch=lambda rows: write_csv(out / "training_metrics.csv", rows),
        )
        write_csv(out / "training_metrics.csv", history.rows)
        report.save(report.training_curve(history.rows), self.folder.figures / "training_curve.png")
        self.folder.log_event("compress", "trained", epochs=len(history.rows), best_epoch=history.best_epoch)
        self._save(model, key, [], history.rows)
        return []

    def taken(self, model: Model) -> list[str]:
        """Copy the checkpoint, unless it is there; the notes of the baseline."""
        checkpoint = self.options.checkpoint
        assert checkpoint is not None
        unknown = check_not_trained_on(checkpoint, [self.split.held_out])
        notes = [*([unknown] if unknown else []), f"Nothing was trained: the baseline is {checkpoint}."]
        key = key_of({"split": self.digests, "checkpoint": model.fingerprint()})
        if not self._is_finished(key):
            self.folder.log_event("compress", "taken", checkpoint=checkpoint)
            self._save(model, key, notes, ())
        return notes

    def _is_finished(self, key: str) -> bool:
        """Whether the baseline of this key is there. Raises `WeightsmithError` where another one is."""
        if not (self.place / "config.json").is_file():
            return False
        record = _record_of(self.place)
        if record is None or record["key"] != key:
            raise WeightsmithError(
                f"{self.place} is another baseline than these options make: give --skip-training to take it as it is, "
                "--overwrite to replace it, or another --run-name"
            )
        _log.info("the baseline is there already")
        return True

    def _save(self, model: Model, key: str, notes: list[str], rows: Sequence[dict[str, float]]) -> None:
        card = report.model_card(
            title=f"{self.source.name} classifier",
            base_model=_origin(self.options),
            data=self.source.name,
            class_names=self.source.class_names,
            channels=self.source.part("train").channels,
            split_rows=self.split.info(),
            training_rows=rows,
            notes=notes,
            registered_by=registered_by(model),
        )
        record = {"key": key, "split": self.digests, "origin": _origin(self.options), "notes": notes}
        with atomic_folder(self.place) as temporary:
            save(model, temporary, card)
            write_json(temporary / RECORD, {"format": _FORMAT, **record})


def _origin(options: CompressOptions) -> str:
    return options.checkpoint or start_of(options)


def _record_of(place: Path) -> dict[str, Any] | None:
    """What a baseline's folder says of its making; None where it says nothing that can be read."""
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        known = record["format"] == _FORMAT and {"key", "split", "notes", "origin"} <= record.keys()
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        raise WeightsmithError(
            f"{place / RECORD} is damaged ({error}), so nobody knows what the baseline was trained on: give --overwrite"
        ) from error
    return record if known else None


def _write_split(folder: RunFolder, split: Split) -> None:
    """What proves the isolation, where `weightsmith evaluate` looks for it."""
    write_csv(folder.results / "data_split_info.csv", info(split.parts()))
    write_json(folder.path / "data_split.json", split.manifest())
    save_indices(folder.path, split.parts())
