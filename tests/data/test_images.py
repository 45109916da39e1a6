from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.data import seal
from weightsmith.data.images import ArrayStore, ImageSet
from weightsmith.data.split import from_arrays
from weightsmith.errors import HeldOutError


def labelled(n: int, n_classes: int = 3, source: str = "s", part: str = "train") -> ImageSet:
    """n images of 2x2 pixels; the pixels of each hold its position."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 2, 2)).copy()
    names = tuple(f"class {label}" for label in range(n_classes))
    return from_arrays(images, np.arange(n) % n_classes, names, source, part)


@given(st.data())
def test_a_subset_of_a_subset_is_the_composed_subset(data: st.DataObject) -> None:
    images = labelled(data.draw(st.integers(1, 40)))
    outer = data.draw(st.lists(st.integers(0, len(images) - 1), min_size=1, max_size=50))
    inner = data.draw(st.lists(st.integers(0, len(outer) - 1), max_size=50))
    twice, once = images.subset(outer).subset(inner), images.subset([outer[i] for i in inner])
    assert twice.positions.tolist() == once.positions.tolist()
    assert twice.digest() == once.digest()
    assert twice.names() == once.names()
    assert torch.equal(twice.pixels(), once.pixels())
    assert twice.labels.tolist() == once.labels.tolist()


@given(st.lists(st.integers(0, 19), max_size=30))
def test_a_store_reads_in_the_order_asked_for(positions: list[int]) -> None:
    array = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2)
    read = ArrayStore(array).read(np.array(positions, dtype=np.int64))
    assert read.shape == (len(positions), 2, 2, 1)
    assert np.array_equal(read[..., 0], array[positions])


def test_pixels_are_channels_first() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    images = from_arrays(array, np.zeros(5), ("a",), "s", "train")
    assert images.pixels().shape == (5, 3, 4, 6)
    assert images.pixels([2])[0, 1, 3, 5] == array[2, 3, 5, 1]


def test_batches_cover_the_set_in_order() -> None:
    images = labelled(10).subset([9, 0, 5, 4, 7, 7, 1])
    pixels, labels = zip(*images.batches(3), strict=True)
    assert [len(piece) for piece in pixels] == [3, 3, 1]
    assert torch.equal(torch.cat(pixels), images.pixels())
    assert torch.cat(labels).tolist() == images.labels.tolist()


def test_sealed_images_are_read_only_inside_an_evaluation() -> None:
    sealed = labelled(6).seal()
    reads = (lambda: sealed.labels, sealed.pixels, lambda: next(sealed.batches(2)), sealed.subset([1]).pixels)
    for read in reads:
        with pytest.raises(HeldOutError, match=r"train set of [61] images is held out"):
            read()
    with seal.evaluation():
        assert sealed.labels.tolist() == [0, 1, 2, 0, 1, 2]
        for read in reads:
            read()
    with pytest.raises(HeldOutError):
        sealed.pixels()


def test_the_seal_closes_after_an_exception() -> None:
    with pytest.raises(KeyError), seal.evaluation():
        raise KeyError
    with pytest.raises(HeldOutError):
        seal.check_open("it")


def test_equal_sets_have_equal_digests_and_others_do_not() -> None:
    images = labelled(10)
    assert images.subset([3, 1, 2]).digest() == images.subset([1, 2, 3]).seal().digest()
    others = [
        images.subset([1, 2, 4]),
        images.subset([1, 2]),
        images.subset([1, 2, 3, 3]),
        labelled(10, part="val").subset([1, 2, 3]),
        labelled(10, source="other").subset([1, 2, 3]),
    ]
    digests = {images.subset([1, 2, 3]).digest()} | {other.digest() for other in others}
    assert len(digests) == 1 + len(others)


def test_overlap_counts_images_of_the_same_source_and_part() -> None:
    images = labelled(10)
    assert images.subset([1, 2, 3]).overlaps(images.subset([3, 2, 9]).seal()) == 2
    assert images.subset([1, 2, 3]).overlaps(images.subset([4])) == 0
    assert images.overlaps(labelled(10, part="val")) == 0
    assert images.overlaps(labelled(10, source="other")) == 0
