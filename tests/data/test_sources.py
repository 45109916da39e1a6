from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestCentroid

from weightsmith.data.corruptions import Greyscale
from weightsmith.data.npz import fingerprint
from weightsmith.data.sources import coloured_digits, digits, medmnist, open_data, open_part
from weightsmith.errors import WeightsmithError
from weightsmith.files import default_cache_dir
from weightsmith.run.job import model_name

Arrays = dict[str, np.ndarray]
Save = Callable[..., Path]


def test_digits_are_1797_grey_scans_over_the_whole_range() -> None:
    source = digits()
    train = source.part("train")
    assert (len(train), source.class_names) == (1797, tuple("0123456789"))
    pixels = train.pixels()
    assert pixels.shape == (1797, 1, 8, 8)
    assert (int(pixels.min()), int(pixels.max()), len(pixels.unique())) == (0, 255, 17)
    assert train.digest() == digits().part("train").digest()


def test_coloured_digits_are_the_digits_in_colour() -> None:
    grey, coloured = digits().part("train"), coloured_digits().part("train")
    pixels = coloured.pixels()
    assert (pixels.shape, pixels.dtype) == ((1797, 3, 8, 8), torch.uint8)
    assert coloured.labels.tolist() == grey.labels.tolist()
    assert coloured.class_names == grey.class_names
    assert coloured.source.startswith("d4c6a4aee933c65a")  # the same images on every machine
    assert coloured.digest() == open_data("coloured-digits").part("train").digest() != grey.digest()
    ink = grey.pixels()[:, 0]
    chroma = pixels.int().amax(1) - pixels.int().amin(1)
    assert int(chroma[ink == 0].max()) == 0
    assert int(chroma[ink == 255].min()) > 80


def learned(train: torch.Tensor, labels: np.ndarray) -> float:
    """Accuracy of nearest centroids on every other image, learned from the rest."""
    flat = train.flatten(1).numpy()
    return float(NearestCentroid().fit(flat[::2], labels[::2]).score(flat[1::2], labels[1::2]))


def test_greyscale_takes_the_cue_of_coloured_digits() -> None:
    images = coloured_digits().part("train")
    pixels, labels = images.pixels(), images.labels
    hue = pixels.float().mean((2, 3))
    grey = Greyscale()(pixels, torch.from_numpy(labels), 0)
    brightness = grey.float().mean((1, 2, 3))
    assert learned(hue - hue.mean(1, keepdim=True), labels) > 0.97  # colour alone
    assert 0.2 < learned(grey, labels) < 0.6  # shape alone
    assert learned(brightness[:, None], labels) < 0.2
    # The ten hues have one luma: how dark the full strokes of a class are tells nothing of the class.
    full = digits().part("train").pixels()[:, 0] == 255
    luma = [float(grey[:, 0][(labels == digit)[:, None, None] & full.numpy()].float().mean()) for digit in range(10)]
    assert max(luma) - min(luma) < 2.5


def test_auto_takes_the_preset_of_the_digits_in_colour_too() -> None:
    assert model_name("auto", "coloured-digits") == model_name("auto", "digits") == "digits"
    assert model_name("small", "coloured-digits") == "small"


def test_a_file_becomes_a_source(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    path = save(arrays)
    source = medmnist(path, tmp_path / "cache")
    assert source.name == "cells.npz"
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert {part: len(images) for part, images in source.parts.items()} == {"train": 12, "val": 6, "test": 3}
    assert {images.source for images in source.parts.values()} == {fingerprint(path)}
    assert np.array_equal(source.part("val").pixels().numpy(), arrays["val_images"].transpose(0, 3, 1, 2))
    assert source.part("test").labels.tolist() == [0, 1, 2]


def test_a_published_name_brings_its_class_names(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    assert medmnist(save(arrays, "pathmnist_224.npz"), tmp_path).class_names[0] == "adipose"
    assert medmnist(save(arrays, "pathmnist_224.npz"), tmp_path, ("a", "b", "c")).class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("name", "key", "position", "label", "message"),
    [
        ("cells.npz", "val_labels", 4, -1, r"label -1 at position 4 of the val part of .*cells.npz"),
        ("pathmnist.npz", "train_labels", 7, 9, r"label 9 at position 7 of the train part of .*pathmnist.npz.*rename"),
        ("cells.npz", "test_labels", 1, 3, r"'class 3' is in the test part of .*cells.npz but not in its train part"),
        ("cells.npz", "train_labels", 3, 2**40, r"label 1099511627776 at position 3 of the train part of .*cells.npz"),
    ],
)
def test_labels_that_do_not_fit_are_named(
    arrays: Arrays, save: Save, tmp_path: Path, name: str, key: str, position: int, label: int, message: str
) -> None:
    arrays[key] = arrays[key].astype(np.int64)
    arrays[key][position] = label
    with pytest.raises(WeightsmithError, match=message):
        medmnist(save(arrays, name), tmp_path)


def test_too_few_class_names_are_an_error(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match=r"label 2 at position 2 of the train part .*cells.npz.* 0\.\.1"):
        medmnist(save(arrays), tmp_path, ("a", "b"))


def image_folder(root: Path) -> Path:
    for name in ("cat", "dog"):
        for number in range(2):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (5, 4), (number, 0, 0)).save(path)
    return root


def test_data_is_digits_or_a_file_or_a_folder(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    assert open_data("digits").name == "digits"
    assert open_data("coloured-digits").name == "coloured-digits"
    assert open_data(str(save(arrays)), cache_dir=tmp_path / "cache").n_classes == 3
    place = str(image_folder(tmp_path / "pets"))
    assert open_data(place).part("train").pixels().shape == (4, 3, 224, 224)
    assert open_data(place, image_size=8).part("train").pixels().shape == (4, 3, 8, 8)


@pytest.mark.parametrize("spec", ["", "digit", "cells.csv", "cells.npz:test", "no/such/folder", "a\0b"])
def test_anything_else_names_the_flag_and_the_forms(spec: str) -> None:
    with pytest.raises(
        WeightsmithError, match=r'--data-path .*give "digits", "coloured-digits", .*\.npz file.*folder'
    ) as caught:
        open_data(spec)
    assert repr(spec) in str(caught.value)


def test_the_name_of_a_published_set_hints_at_the_download() -> None:
    with pytest.raises(WeightsmithError, match="`weightsmith download pathmnist --size 28` fetches"):
        open_data("pathmnist")


def test_a_suffix_picks_the_part(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    path = save(arrays)
    for part, size in (("train", 12), ("val", 6), ("test", 3)):
        images = open_part(f"{path}:{part}", cache_dir=tmp_path / "cache")
        assert (images.part, len(images)) == (part, size)
    several = re.escape(f"--edit-from {path} has 3 parts: give {path}:train or {path}:val or {path}:test")
    with pytest.raises(WeightsmithError, match=several):
        open_part(str(path))
    with pytest.raises(WeightsmithError, match=r"cells.npz has no part 'tset': did you mean 'test'"):
        open_part(f"{path}:tset")
    with pytest.raises(WeightsmithError, match="--edit-from 'nothing' is no data set"):
        open_part("nothing:val")


def test_a_single_part_needs_no_suffix(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    only_train = {key: array for key, array in arrays.items() if key.startswith("train")}
    assert len(open_part(str(save(only_train, "odd:name.npz")))) == 12
    assert len(open_part("digits")) == len(open_part("digits:train")) == 1797
    assert len(open_part("coloured-digits")) == len(open_part("coloured-digits:train")) == 1797
    assert len(open_part(str(image_folder(tmp_path / "pets:new")), image_size=4)) == 4


def test_the_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "elsewhere"))
    assert default_cache_dir() == tmp_path / "elsewhere"
    monkeypatch.delenv("WEIGHTSMITH_CACHE")
    assert "weightsmith" in default_cache_dir().parts


@pytest.mark.parametrize(
    ("name", "classes", "parts"),
    [
        ("histology_27", ("class 0", "class 1", "class 2", "class 3"), (6816, 995, 2085)),
        ("pneumoniamnist", ("normal", "pneumonia"), (4708, 524, 624)),
    ],
)
def test_real_sets_are_opened(
    shared_data: Path, tmp_path: Path, name: str, classes: tuple[str, ...], parts: tuple[int, ...]
) -> None:
    path = shared_data / "medmnist" / f"{name}.npz"
    source = medmnist(path, tmp_path)
    assert source.class_names == classes
    assert tuple(len(images) for images in source.parts.values()) == parts
    split = source.split(held_out=0.2, seed=42)
    assert len(split.held_out) == parts[0] // 5
    assert split.train.overlaps(split.held_out) == 0
