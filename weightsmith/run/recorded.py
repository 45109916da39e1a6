"""What the run that made a model recorded of its split: which images it learned from, and which it holds out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from weightsmith.data.images import ImageSet
from weightsmith.data.split import Source
from weightsmith.errors import WeightsmithError
from weightsmith.files import cause_of, user_path

_NAMES = ("data_split.json", "data_split_indices.npz")


@dataclass(frozen=True, eq=False)
class Recorded:
    """The parts of one data set, as a run cut it.

    Attributes:
        entries: part → what `data_split.json` says of it; indices: part → (n,) positions in its source.
    """

    entries: dict[str, dict[str, Any]]
    indices: dict[str, np.ndarray]

    def held(self) -> list[str]:
        """The parts that are held out."""
        return [name for name, entry in self.entries.items() if entry["held_out"]]

    def part(self, name: str, source: Source) -> ImageSet:
        """The images of a part, sealed where they are held out."""
        images = source.part(self.entries[name]["part"])
        found = images.subset(np.flatnonzero(np.isin(images.positions, self.indices[name])))
        return found.seal() if name in self.held() else found


def recorded_split(model: str, source: Source) -> Recorded | None:
    """What the run of a model recorded of this data set; None where there is no record of it.

    Raises:
        WeightsmithError: a record that is damaged or gone: nobody knows then what is held out.
    """
    folder = _record_of(model)
    if folder is None:
        return None
    mine = next(iter(source.parts.values())).source
    entries, indices = _read(folder)
    theirs = {name: entry for name, entry in entries.items() if entry["source"] == mine}
    return Recorded(theirs, {name: indices[name] for name in theirs}) if theirs else None


def check_not_trained_on(checkpoint: str, sealed: Sequence[ImageSet]) -> str:
    """What is not recorded of the data that `--checkpoint` was trained on, in a sentence; "" where its record is there.

    Raises:
        WeightsmithError: the run that made it was trained, or selected, on images of the sealed sets.
    """
    folder = _record_of(checkpoint)
    if folder is None or not all((folder / name).exists() for name in _NAMES):
        return f"What {checkpoint} was trained on is not recorded, so nobody can tell here whether it has seen held-out images."
    recorded, indices = _read(folder)
    used = {part: indices[part] for part in ("train", "val") if part in indices}  # validation images chose the epoch
    for part, images in ((part, images) for part in used for images in sealed):
        if (images.source, images.part) == (recorded[part]["source"], recorded[part]["part"]):
            shared = len(np.intersect1d(used[part], images.positions))
            if shared:
                raise WeightsmithError(
                    f"--checkpoint {checkpoint} has {shared} of the {len(images)} images that this run holds out in its "
                    f"{part} part: give the --seed and --held-out-ratio of its run, or --held-out-from test"
                )
    return ""


def _read(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """(part → what is recorded of it, part → positions of its images in their source).

    Raises:
        WeightsmithError: a record that is damaged or gone.
    """
    try:
        entries = json.loads((folder / _NAMES[0]).read_text(encoding="utf-8"))["parts"]
        with np.load(folder / _NAMES[1], allow_pickle=False) as stored:
            indices = {name: stored[name] for name in entries}
        for name, entry in entries.items():
            if not (
                isinstance(entry["source"], str)
                and isinstance(entry["part"], str)
                and isinstance(entry["held_out"], bool)
            ):
                raise ValueError(f"{name} has no source, part and held_out")
            if indices[name].ndim != 1 or indices[name].dtype.kind not in "iu":
                raise ValueError(f"{name} has no positions of images")
    except Exception as error:  # damaged bytes make zipfile, zlib, tokenize and numpy raise a dozen kinds of exception
        raise WeightsmithError(
            f"the record of the split in {folder} is damaged ({cause_of(error)}), so nobody knows what is held out: restore "
            "data_split.json and data_split_indices.npz"
        ) from error
    return entries, indices


def _record_of(model: str) -> Path | None:
    """Where the run that made a model recorded its split, be the model given as the run's folder or as one in it.

    None where no run did.
    """
    place = user_path(model).absolute()
    run = place.parent if place.name in ("model", "edited") else place
    above = place.parent.parent
    if place.parent.name in ("models", "optimized_models") and any((above / name).exists() for name in _NAMES):
        run = above
    if any((run / name).exists() for name in _NAMES):
        return run
    try:
        asked = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not (isinstance(asked, dict) and asked.get("results_dir")):
        return None
    results = user_path(str(asked["results_dir"])) / run.name
    if not any((results / name).exists() for name in _NAMES):
        raise WeightsmithError(
            f"the run {run} put its results into {results}, where nothing says now what it holds out: copy {_NAMES[0]} and "
            f"{_NAMES[1]} of that run into {run}"
        )
    return results
