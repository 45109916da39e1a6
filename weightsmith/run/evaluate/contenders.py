"""The classifiers that `weightsmith evaluate` puts side by side, and the images that none of them has learned from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from weightsmith.data.images import ImageSet
from weightsmith.data.sources import open_data
from weightsmith.data.split import Source
from weightsmith.errors import WeightsmithError, did_you_mean, near_path
from weightsmith.files import user_path
from weightsmith.models import Model
from weightsmith.run.job import check_device
from weightsmith.run.judges import classifier
from weightsmith.run.options.evaluate import EvaluateOptions
from weightsmith.run.recorded import recorded_split

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Contender:
    """One of the classifiers.

    Attributes:
        name: for people, and unlike that of any other; path: as it was named.
        found: whether it was found below a folder rather than named.
    """

    name: str
    path: str
    model: Model
    found: bool = False


def contenders(options: EvaluateOptions, notes: list[str]) -> tuple[list[Contender], str]:
    """(the classifiers, the baseline's name); what was left out is added to the notes.

    Raises:
        WeightsmithError: none, one twice, one that cannot be read, a language model, different classes.
    """
    device = check_device(options.device)
    known: dict[str, Contender] = {}
    for path in options.model_paths:
        one = Contender(path, path, classifier(path, "--model-paths", device))
        if _place(path) in known:
            raise WeightsmithError(
                f"--model-paths names {path} and {known[_place(path)].path}, which are one model: give each once"
            )
        known[_place(path)] = one
    if options.auto_find is not None:
        for place, one in _found(options.auto_find, device, notes).items():
            known.setdefault(place, one)
    base = _baseline(options, known, device)
    named = _named_apart(list(known.values()))
    _same_classes([one for one in named if not one.found])
    return named, named[list(known).index(base)].name


def _found(folder: str, device: str, notes: list[str]) -> dict[str, Contender]:
    """Place → classifier below a folder, sorted by name."""
    root = user_path(folder)
    if not root.is_dir():
        raise WeightsmithError(
            f"--auto-find {folder} is no folder: give one that has trained classifiers below it{near_path(root)}"
        )
    found: dict[str, Contender] = {}
    for path in sorted(file.parent for file in root.rglob("config.json")):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue  # what was being written, or set aside
        try:
            model = classifier(str(path), "--auto-find", device)
        except WeightsmithError as error:
            notes.append(f"Left out: {error}.")
            continue
        found[_place(str(path))] = Contender(str(path), str(path), model, found=True)
    if not found:
        raise WeightsmithError(f"--auto-find {folder} has no image classifier below it: give another folder")
    return found


def _place(path: str) -> str:
    """What is the same for one model named in two ways: its folder, or its name on the hub."""
    place = user_path(path)
    if not place.exists():
        return path
    return str((place if (place / "config.json").is_file() else place / "model").resolve())


def _baseline(options: EvaluateOptions, known: dict[str, Contender], device: str) -> str:
    """The place of the baseline, which joins the models where it is not among them."""
    asked = options.baseline
    if asked is None:
        if not known:
            raise WeightsmithError(
                "--model-paths needs one or more trained classifiers, or --auto-find a folder of some: give one"
            )
        return next(iter(known))
    place = _place(asked)
    if place in known:
        return place
    named = {one.name: key for key, one in zip(known, _named_apart(list(known.values())), strict=True)}
    if asked in named:
        return named[asked]
    if named and not user_path(asked).exists() and "/" not in asked:
        raise WeightsmithError(f"--baseline {asked} is no folder and none of the models: {did_you_mean(asked, named)}")
    others = dict(known)
    known.clear()  # it comes first
    known[place] = Contender(asked, asked, classifier(asked, "--baseline", device))
    known.update(others)
    _log.info("--baseline %s joins the models", asked)
    return place


def _named_apart(models: Sequence[Contender]) -> list[Contender]:
    """Each with the shortest end of its path that no other has; a run folder's `model` is called like the run."""
    parts = []
    for one in models:
        place = user_path(one.path)
        whole = place.resolve().parts[1:] if place.exists() else (one.path,)
        parts.append(whole[:-1] if len(whole) > 1 and whole[-1] == "model" else whole)
    names = [whole[-1] for whole in parts]
    for length in range(2, max((len(whole) for whole in parts), default=0) + 1):
        twice = {name for name in names if names.count(name) > 1}
        names = ["/".join(whole[-length:]) if name in twice else name for whole, name in zip(parts, names, strict=True)]
    return [replace(one, name=name) for one, name in zip(models, names, strict=True)]


def _same_classes(models: Sequence[Contender]) -> None:
    for one in models[1:]:
        first = models[0]
        if one.model.n_classes != first.model.n_classes:
            raise WeightsmithError(
                f"{first.name} has {first.model.n_classes} classes and {one.name} {one.model.n_classes}: give classifiers of "
                "the same classes"
            )
        mine, theirs = first.model.class_names, one.model.class_names
        if mine != theirs and set(mine) == set(theirs):
            raise WeightsmithError(
                f"{first.name} and {one.name} have the same classes in another order: give classifiers that were trained on "
                "the same data"
            )


def held_out_of(
    options: EvaluateOptions, models: Sequence[Contender], notes: list[str], *, blank: bool = False
) -> tuple[list[Contender], ImageSet]:
    """(classifiers of the data's classes, the sealed images); what a reader must know is added to the notes.

    Args:
        blank: see `open_data`.

    Raises:
        WeightsmithError: data of other classes, no images, models whose runs hold out different images, or one that has
            learned from what the others hold out.
    """
    cache = user_path(options.cache_dir) if options.cache_dir else None
    source = open_data(options.data_path, max(one.model.preprocess.size for one in models), cache, blank=blank)
    fits: list[Contender] = []
    for one in models:
        if one.model.n_classes == source.n_classes:
            fits.append(one)
            continue
        told = f"{one.name} has {one.model.n_classes} classes and --data-path {options.data_path} {source.n_classes}"
        if not one.found:
            raise WeightsmithError(f"{told}: give classifiers of these classes")
        notes.append(f"Left out: {told}.")
    if not fits:
        raise WeightsmithError(
            f"no model below --auto-find {options.auto_find} has the {source.n_classes} classes of --data-path "
            f"{options.data_path}: give other data"
        )
    _same_classes(fits)
    images = _images(options, fits, source, notes)
    if len(images) == 0:
        raise WeightsmithError(f"the {images.part} part of {options.data_path} holds no images: give another --part")
    return fits, images


def _images(options: EvaluateOptions, models: Sequence[Contender], source: Source, notes: list[str]) -> ImageSet:
    records = {one.name: recorded_split(one.path, source) for one in models}
    held = {
        name: record.part(record.held()[0], source)
        for name, record in records.items()
        if record is not None and record.held()
    }
    if options.part == "auto" and held:
        (first, images), *others = held.items()
        for name, theirs in others:
            if theirs.digest() != images.digest():
                raise WeightsmithError(
                    f"{first} and {name} hold out different images of {options.data_path}, so that there are none to compare "
                    "them on: give models of one split, or --part test where neither has learned from that"
                )
    elif options.part == "auto" and not {"test", "val"} & source.parts.keys():
        images = source.split(0.2, options.seed).held_out
    else:
        part = options.part if options.part != "auto" else "test" if "test" in source.parts else "val"
        images = source.part(part).seal()
    for name, record in records.items():
        if record is None:
            notes.append(
                f"What {name} was trained on is not recorded, so nobody can tell whether it has seen these images."
            )
            continue
        for seen in sorted(record.entries.keys() - set(record.held())):
            shared = record.part(seen, source).overlaps(images)
            if shared and seen != "val":
                raise WeightsmithError(
                    f"{name} has learned from {shared} of the {len(images)} images that all models would be measured on: leave "
                    "it out, or give data that none has seen"
                )
            if shared:
                notes.append(f"{name} was chosen on {shared} of these images: it may look better than it is.")
    return images
