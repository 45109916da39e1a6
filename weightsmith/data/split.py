"""Cut a source into what may be learned from and what stays sealed until the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import train_test_split

from weightsmith.data.images import ArrayStore, ImageSet
from weightsmith.errors import WeightsmithError, did_you_mean


@dataclass(frozen=True)
class Source:
    """A data set as it lies on disk: named parts ("train", and where the file has them "val" and "test")."""

    name: str
    parts: dict[str, ImageSet]

    @property
    def class_names(self) -> tuple[str, ...]:
        return next(iter(self.parts.values())).class_names

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    def part(self, name: str) -> ImageSet:
        if name not in self.parts:
            raise WeightsmithError(f"{self.name} has no part {name!r}: {did_you_mean(name, self.parts)}")
        return self.parts[name]

    def split(self, held_out: float | str = 0.2, seed: int = 42, val_ratio: float = 0.2) -> Split:
        """Split the train part, stratified by class.

        Args:
            held_out: the fraction of the train part to hold out, or the name of a part to hold out whole
                ("test"), or "none" when the caller holds out data of another source.
            seed: of the random split.
            val_ratio: fraction of what remains that becomes the validation part where the source has none.

        Raises:
            WeightsmithError: a fraction outside (0, 1), a missing part, a class too small to be split.
        """
        train = self.part("train")
        sealed: ImageSet | None
        if isinstance(held_out, str):
            sealed = None if held_out == "none" else self.part(held_out).seal()
        else:
            train, held = stratified(train, held_out, seed, "--held-out-ratio")
            sealed = held.seal()
        if "val" in self.parts and held_out != "val":
            val, carved = self.parts["val"], False
        else:
            train, val = stratified(train, val_ratio, seed + 1, "--val-ratio")
            carved = True
        for part, images in (("train", train), ("val", val)):
            if len(images) == 0:
                raise WeightsmithError(f"the {part} part of {self.name} is empty: give a data set with more images")
        return Split(train=train, val=val, sealed_part=sealed, seed=seed, val_carved=carved)


@dataclass(frozen=True)
class Split:
    """Train, validation and held-out images of one source; the held-out part is sealed.

    `val_carved` tells that the validation part was cut from the training data rather than given by the source.
    """

    train: ImageSet
    val: ImageSet
    sealed_part: ImageSet | None
    seed: int
    val_carved: bool

    @property
    def held_out(self) -> ImageSet:
        """The sealed part: it can be handed around, and read only by `weightsmith.evaluate`."""
        if self.sealed_part is None:
            raise WeightsmithError("this split holds nothing out: split with held_out=0.2, or name a part to hold out")
        return self.sealed_part

    def parts(self) -> dict[str, ImageSet]:
        parts = {"train": self.train, "val": self.val}
        return parts if self.sealed_part is None else parts | {"held_out": self.sealed_part}

    def info(self) -> list[dict[str, object]]:
        """Counts per class and part: the rows of `data_split_info.csv`."""
        return info(self.parts())

    def manifest(self) -> dict[str, object]:
        """What proves the isolation afterwards, see `manifest`."""
        return {"seed": self.seed, "val_carved_from_train": self.val_carved, "parts": manifest(self.parts())}


def info(parts: Mapping[str, ImageSet]) -> list[dict[str, object]]:
    """Counts per class and part, and a row "all" for each part."""
    rows: list[dict[str, object]] = []
    for part, images in parts.items():
        counts = class_counts(images)
        for label, name in enumerate(images.class_names):
            share = counts[label] / max(len(images), 1)
            rows.append(
                {"part": part, "class": label, "name": name, "count": int(counts[label]), "share": round(share, 6)}
            )
        rows.append({"part": part, "class": "all", "name": "", "count": len(images), "share": 1.0})
    return rows


def manifest(parts: Mapping[str, ImageSet]) -> dict[str, dict[str, object]]:
    """What proves the isolation: source, size and index hash of each part, and the images it shares with held-out ones."""
    sealed = [images for images in parts.values() if images.sealed]
    return {
        name: {
            "source": images.source,
            "part": images.part,
            "size": len(images),
            "sha256": images.digest(),
            "held_out": images.sealed,
            "overlap_with_held_out": sum(images.overlaps(other) for other in sealed if other is not images),
        }
        for name, images in parts.items()
    }


def class_counts(images: ImageSet) -> np.ndarray:
    """(classes,) number of images of each class; counting reads no pixel, so a sealed part may be counted."""
    return np.bincount(images.all_labels[images.positions], minlength=images.n_classes)


def stratified(images: ImageSet, ratio: float, seed: int, flag: str) -> tuple[ImageSet, ImageSet]:
    """(rest, part): a random part of floor(ratio · n) images with the classes in proportion.

    Raises:
        WeightsmithError: naming `flag`, when the ratio is outside (0, 1) or a class cannot be divided.
    """
    if not 0 < ratio < 1:
        raise WeightsmithError(f"{flag} must lie between 0 and 1, not {ratio:g}: give 0.2 to take a fifth")
    size = int(len(images) * ratio)
    counts = class_counts(images)
    present = int((counts > 0).sum())
    if size < present or len(images) - size < present:
        raise WeightsmithError(
            f"{flag} {ratio:g} of {len(images)} images leaves a part smaller than the {present} classes: "
            "change the ratio or give more images"
        )
    scarce = [images.class_names[c] for c in np.flatnonzero(counts == 1)]
    if scarce:
        raise WeightsmithError(f"class {scarce[0]!r} has a single image and cannot be split: add images or drop it")
    labels = images.all_labels[images.positions]
    rest, part = train_test_split(np.arange(len(images)), test_size=size, random_state=seed, stratify=labels)
    return images.subset(np.sort(rest)), images.subset(np.sort(part))


def sample(images: ImageSet, count: int, seed: int) -> ImageSet:
    """So many images of a set at random, the classes in proportion; the whole set where it has no more.

    Unlike `stratified` it takes any number, fewer than there are classes too: the images of a class are spread evenly over
    a line that all classes share, and those at its start are taken.
    """
    if count >= len(images):
        return images
    random = np.random.default_rng(seed)
    labels = images.all_labels[images.positions]
    spot = np.empty(len(images))
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        spot[members] = (np.arange(len(members)) + random.random()) / len(members)
    return images.subset(np.sort(np.argsort(spot, kind="stable")[:count]))


def from_arrays(
    images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], source: str, part: str
) -> ImageSet:
    """An image set over arrays: images (N, height, width[, channels]) uint8, labels (N,)."""
    return ImageSet(
        store=ArrayStore(images),
        positions=np.arange(len(images), dtype=np.int64),
        all_labels=np.asarray(labels, dtype=np.int64).reshape(-1),
        class_names=class_names,
        source=source,
        part=part,
    )
