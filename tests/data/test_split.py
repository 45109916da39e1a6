from __future__ import annotations

import numpy as np
import pytest

from weightsmith.data import seal
from weightsmith.data.images import ImageSet
from weightsmith.data.split import Source, class_counts, from_arrays, sample, stratified
from weightsmith.errors import HeldOutError, WeightsmithError


def labelled(labels: np.ndarray, part: str = "train") -> ImageSet:
    names = tuple(f"class {label}" for label in range(int(labels.max()) + 1))
    return from_arrays(np.zeros((len(labels), 1, 1), np.uint8), labels, names, "s", part)


def random_labels(n: int, n_classes: int, seed: int = 0) -> np.ndarray:
    """Classes of unequal size, each present."""
    shares = np.linspace(1, 3, n_classes)
    labels = np.random.default_rng(seed).choice(n_classes, n, p=shares / shares.sum())
    labels[: 2 * n_classes] = np.arange(2 * n_classes) % n_classes
    return labels


def test_pathmnist_is_cut_into_71997_and_17999() -> None:
    rest, held = stratified(labelled(random_labels(89_996, 9)), 0.2, 42, "--held-out-ratio")
    assert (len(rest), len(held)) == (71_997, 17_999)


@pytest.mark.parametrize(("n", "ratio", "seed"), [(500, 0.2, 0), (501, 0.37, 1), (89, 0.5, 2), (3_000, 0.9, 3)])
def test_each_class_is_divided_in_proportion_within_one_image(n: int, ratio: float, seed: int) -> None:
    images = labelled(random_labels(n, 7, seed))
    rest, part = stratified(images, ratio, seed, "--held-out-ratio")
    assert len(part) == int(n * ratio)
    assert sorted([*rest.positions, *part.positions]) == list(range(n))
    assert np.abs(class_counts(part) - class_counts(images) * len(part) / n).max() <= 1


def test_the_seed_decides_the_split() -> None:
    images = labelled(random_labels(300, 4))
    digests = [stratified(images, 0.2, seed, "--held-out-ratio")[1].digest() for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan"), 0.001, 0.999])
def test_a_ratio_that_cannot_be_names_its_flag(ratio: float) -> None:
    with pytest.raises(WeightsmithError, match="--held-out-ratio"):
        stratified(labelled(random_labels(100, 4)), ratio, 0, "--held-out-ratio")


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(WeightsmithError, match="'class 2' has a single image"):
        stratified(labelled(np.array([0, 1] * 20 + [2])), 0.2, 0, "--held-out-ratio")


def test_a_source_is_split_into_disjoint_parts_of_which_one_is_sealed() -> None:
    source = Source("cells", {"train": labelled(random_labels(400, 4))})
    split = source.split(held_out=0.2, seed=42)
    assert (len(split.train), len(split.val), len(split.held_out)) == (256, 64, 80)
    assert split.val_carved
    manifest = split.manifest()
    assert manifest["parts"]["held_out"]["overlap_with_held_out"] == 0
    assert manifest["parts"]["train"]["overlap_with_held_out"] == 0
    assert split.train.overlaps(split.val) == split.val.overlaps(split.held_out) == 0
    with pytest.raises(HeldOutError):
        split.held_out.pixels()
    with seal.evaluation():
        assert len(split.held_out.pixels()) == 80


def test_given_parts_are_used_as_they_are() -> None:
    parts = {part: labelled(random_labels(n, 4), part) for part, n in (("train", 200), ("val", 50), ("test", 60))}
    source = Source("cells", parts)
    split = source.split(held_out="test")
    assert (len(split.train), len(split.val), len(split.held_out)) == (200, 50, 60)
    assert split.held_out.sealed
    assert not split.val_carved
    carved = source.split(held_out="val")
    assert (carved.held_out.part, carved.val.part, carved.val_carved) == ("val", "train", True)
    with pytest.raises(WeightsmithError, match="holds nothing out"):
        _ = source.split(held_out="none").held_out
    with pytest.raises(WeightsmithError, match=r"cells has no part 'tset': did you mean 'test'\?"):
        source.split(held_out="tset")


def test_info_counts_each_class_of_each_part() -> None:
    split = Source("cells", {"train": labelled(random_labels(400, 4))}).split()
    rows = split.info()
    assert len(rows) == 3 * (4 + 1)
    for part, images in split.parts().items():
        counted = [row["count"] for row in rows if row["part"] == part and row["class"] != "all"]
        assert sum(counted) == len(images)


@pytest.mark.parametrize("count", [1, 3, 7, 50, 299])
def test_a_sample_of_any_size_has_the_classes_in_proportion(count: int) -> None:
    images = labelled(random_labels(300, 7))
    drawn = sample(images, count, seed=0)
    assert len(drawn) == len(set(drawn.positions.tolist())) == count
    assert (np.diff(drawn.positions) > 0).all()
    assert np.abs(class_counts(drawn) - class_counts(images) * count / 300).max() <= 1.5


def test_a_sample_depends_on_the_seed_and_is_the_whole_where_there_is_no_more() -> None:
    images = labelled(random_labels(60, 3))
    assert sample(images, 20, 1).digest() == sample(images, 20, 1).digest() != sample(images, 20, 2).digest()
    assert sample(images, 60, 1) is images
    assert sample(images, 1000, 1) is images
    assert sample(images.seal(), 10, 1).sealed
