from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weightsmith.data.folder import FolderStore, folder
from weightsmith.errors import WeightsmithError


def add(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (5, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three cats and two dogs in folders of their class."""
    root = tmp_path / "pets"
    for name, count in (("dog", 2), ("cat", 3)):
        for number in range(count):
            add(root / name / f"{number}.png", (number, 100, 200))
    return root


def test_classes_are_sorted_folders(pets: Path) -> None:
    (pets / "readme.txt").write_text("not an image")
    (pets / "cat" / "notes.txt").write_text("not an image")
    (pets / ".thumbnails").mkdir()
    (pets / "cat" / "._0.png").write_bytes(b"side file")
    source = folder(pets, image_size=8)
    assert (source.name, source.class_names, list(source.parts)) == ("pets", ("cat", "dog"), ["train"])
    train = source.part("train")
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert train.pixels().shape == (5, 3, 8, 8)
    assert train.pixels()[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "JPEG", "bmp", "tif", "TIFF", "webp"])
def test_every_ending_is_read(tmp_path: Path, ending: str) -> None:
    for name in ("a", "b"):
        add(tmp_path / name / f"x.{ending}")
    assert folder(tmp_path, 4).part("train").pixels()[0, :, 0, 0].tolist() == pytest.approx([10, 20, 30], abs=8)


def test_parts_and_nested_folders(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        for name in ("n01", "n02"):
            for number in range(count):
                add(tmp_path / part / name / "images" / f"{name}_{number}.JPEG")
    (tmp_path / "wnids.txt").write_text("n01\nn02\n")
    source = folder(tmp_path, 4)
    assert {part: images.labels.tolist() for part, images in source.parts.items()} == {
        "train": [0, 0, 0, 1, 1, 1],
        "val": [0, 0, 1, 1],
        "test": [0, 1],
    }
    assert source.part("train").overlaps(source.part("val")) == 0


def test_a_part_may_lack_a_class_that_train_has(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        add(tmp_path / "train" / name / "0.png")
    add(tmp_path / "test" / "c" / "0.png")
    assert folder(tmp_path, 4).part("test").labels.tolist() == [2]


def test_scaling_is_bilinear_and_grey_has_one_channel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    expected = np.asarray(Image.fromarray(pixels).resize((4, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(FolderStore((str(path),), 4).read(np.array([0, 0])), [expected, expected])
    assert FolderStore((str(path),), 4, grey=True).read(np.array([0])).shape == (1, 4, 4, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_eight_bit_colour(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        image = Image.fromarray(np.full((3, 3), 200 * 257, dtype=np.uint16))
    elif mode == "P":
        image = Image.new("RGB", (3, 3), (200, 200, 200)).quantize()
        image.info["transparency"] = bytes([255, *range(255)])
    else:
        image = Image.new("L", (3, 3), 200).convert("RGB").convert(mode)
    image.save(path)
    read = FolderStore((str(path),), 3).read(np.array([0]))
    assert read.shape == (1, 3, 3, 3)
    assert int(np.median(read)) in ((255, 0) if mode == "1" else (200,))


def test_links_are_followed_and_circles_end(pets: Path, tmp_path: Path) -> None:
    add(tmp_path / "elsewhere" / "9.png")
    (pets / "owl").symlink_to(tmp_path / "elsewhere")
    (pets / "dog" / "linked.png").symlink_to(tmp_path / "elsewhere" / "9.png")
    (pets / "dog" / "circle").symlink_to(pets / "dog")
    assert folder(pets, 4).part("train").labels.tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_a_fingerprint_goes_by_names_and_content(pets: Path, tmp_path: Path) -> None:
    first = folder(pets, 4).part("train").source
    os.utime(pets / "cat" / "0.png", (0, 0))
    moved = pets.rename(tmp_path / "moved")
    assert folder(moved, 8).part("train").source == first
    data = bytearray((moved / "cat" / "0.png").read_bytes())
    data[-1] ^= 1
    (moved / "cat" / "0.png").write_bytes(data)
    changed = folder(moved, 4).part("train").source
    (moved / "cat" / "0.png").rename(moved / "cat" / "00.png")
    assert len({first, changed, folder(moved, 4).part("train").source}) == 3


def big_png() -> bytes:
    """A small file that says it has 20000x20000 pixels."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "png")
    data = bytearray(file.getvalue())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def half_a_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "jpeg")
    return file.getvalue()[:2000]


def float_tiff() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.float32)).save(file, "tiff")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", half_a_jpeg(), big_png(), float_tiff()],
    ids=["empty", "text", "truncated", "bomb", "float"],
)
def test_an_image_that_cannot_be_decoded_is_named(pets: Path, content: bytes) -> None:
    (pets / "cat" / "1.png").write_bytes(content)
    train = folder(pets, 4).part("train")
    assert train.pixels([0]).shape == (1, 3, 4, 4)
    with pytest.raises(WeightsmithError, match=r"cat/1\.png cannot be read .*: remove or replace it"):
        train.pixels()


def test_an_image_just_over_the_limit_is_refused_too(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)  # the images have 20; up to twice the limit PIL only warns
    with pytest.raises(WeightsmithError, match=r"cat/0\.png cannot be read"):
        folder(pets, 4).part("train").pixels()


def test_an_image_that_has_gone_is_named(pets: Path) -> None:
    train = folder(pets, 4).part("train")
    (pets / "dog" / "0.png").unlink()
    with pytest.raises(WeightsmithError, match=r"dog/0\.png cannot be read"):
        train.pixels()


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    def refused(root: Path, message: str) -> None:
        with pytest.raises(WeightsmithError, match=message) as caught:
            folder(root, 4)
        assert str(root) in str(caught.value)

    refused(tmp_path / "missing", "there is no folder")
    root = tmp_path / "set"
    root.mkdir()
    refused(root, "holds no images")
    add(root / "loose.png")
    refused(root, "holds no images")
    (root / "cat").mkdir()
    refused(root, "holds no images")
    add(root / "cat" / "0.png")
    refused(root, "has the single class 'cat'")
    (root / "dog").mkdir()
    refused(root, "class 'dog' of the train part .* has no images")
    parts = tmp_path / "parts"
    add(parts / "val" / "owl" / "0.png")
    refused(parts, "no folder train")
    for name in ("cat", "dog"):
        add(parts / "train" / name / "0.png")
    refused(parts, "class 'owl' of the val folder .* is not in its train folder")
    (parts / "val" / "owl").rename(parts / "val" / "cat")
    (parts / "test").mkdir()
    refused(parts, "test folder .* holds no class folder")
    with pytest.raises(WeightsmithError, match="--image-size 0"):
        folder(parts, 0)
