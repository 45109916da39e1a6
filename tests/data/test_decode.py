from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet as writer

from weightsmith.data.decode import decoded
from weightsmith.data.folder import folder
from weightsmith.data.parquet import parquet
from weightsmith.errors import WeightsmithError

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (60, 120, 180))


def quarters(size: tuple[int, int] = (8, 4)) -> Image.Image:
    """An image of four colours, so that every way of turning it shows."""
    image = Image.new("RGB", size)
    width, height = size[0] // 2, size[1] // 2
    for place, colour in enumerate(COLOURS):
        left, top = (place % 2) * width, (place // 2) * height
        image.paste(colour, (left, top, left + width, top + height))
    return image


def in_file(image: Image.Image, kind: str = "png", **how: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **how)
    file.seek(0)
    return file


def seen(file: io.BytesIO) -> np.ndarray:
    return np.asarray(decoded(file).convert("RGB"))


TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation → how a camera held that way stores what it sees."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_exif_turns_the_image_upright(orientation: int, kind: str) -> None:
    upright = quarters((16, 32))
    how = TURNS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"webp": {"lossless": True}, "jpeg": {"quality": 100, "subsampling": 0}}.get(kind, {})
    file = in_file(upright if how is None else upright.transpose(how), kind, exif=exif, **lossless)
    assert np.abs(seen(file).astype(int) - np.asarray(upright)).max() <= 8


def test_damaged_exif_is_passed_over() -> None:
    file = in_file(quarters(), "jpeg", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff")
    assert seen(file).shape == (4, 8, 3)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind: str) -> None:
    levels = np.array([[0, 1, 127, 128, 257, 5140, 32896, 65407, 65535]], np.uint16)
    read = seen(in_file(Image.fromarray(levels), kind))
    assert read[0, :, 0].tolist() == [round(level / 257) for level in levels[0].tolist()]
    eight = np.arange(256, dtype=np.uint16)[None]
    assert (seen(in_file(Image.fromarray(eight * 257), kind))[0, :, 0] == eight).all()


@pytest.mark.parametrize("pixel", [np.int32, np.float32])
def test_thirty_two_bits_are_refused(pixel: type) -> None:
    with pytest.raises(ValueError, match="32 bits, save it with 8 or 16"):
        decoded(in_file(Image.fromarray(np.full((3, 3), 70_000, pixel)), "tiff"))


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_what_is_transparent_lies_on_white(kind: str) -> None:
    layer = Image.new("RGBA", (3, 1))
    layer.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 51)])
    read = seen(in_file(layer, kind, **({"lossless": True, "exact": True} if kind == "webp" else {})))
    assert np.abs(read[0].astype(int) - [(200, 0, 0), (255, 255, 255), (244, 204, 204)]).max() <= 1


def test_grey_with_alpha_stays_grey_on_white() -> None:
    layer = Image.new("LA", (2, 1))
    layer.putdata([(90, 255), (90, 0)])
    image = decoded(in_file(layer))
    assert (image.mode, list(image.getdata())) == ("L", [90, 255])


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("kind", ["png", "gif"])
def test_a_palette_gives_its_colours(kind: str, transparent: bool) -> None:
    image = quarters().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    first = image.getpixel((0, 0))  # of the red quarter
    read = seen(in_file(image, kind, **({"transparency": first} if transparent else {})))
    expected = np.asarray(quarters()).copy()
    if transparent:
        expected[:2, :4] = 255
    assert np.abs(read.astype(int) - expected).max() <= 1


def test_a_colour_that_stands_for_transparent_is_white() -> None:
    read = seen(in_file(quarters(), transparency=(0, 0, 255)))
    assert read[3, 0].tolist() == [255, 255, 255]
    assert read[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["tiff", "jpeg"])
def test_printers_colours_are_those_of_a_screen(kind: str) -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # full magenta and yellow are red
    assert np.abs(seen(in_file(ink, kind)).astype(int) - (255, 0, 0)).max() <= 4


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putdata([0, 1])
    assert seen(in_file(image)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in COLOURS[:3]]
    file = in_file(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(seen(file).astype(int) - COLOURS[0]).max() <= 2


def odd_files(root: Path) -> dict[str, tuple[int, int, int]]:
    """Two classes of images of odd modes: file → the colour that a person sees."""
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = Image.new("RGB", (4, 4), (10, 20, 30))
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    images = {
        "deep.png": (Image.fromarray(np.full((4, 4), 100 * 257, np.uint16)), {}, (100, 100, 100)),
        "clear.png": (clear, {}, (255, 255, 255)),
        "turned.tif": (turned, {"exif": exif}, (10, 20, 30)),
        "moving.gif": (Image.new("RGB", (4, 4), (0, 0, 255)), {}, (0, 0, 255)),
        "ink.tiff": (Image.new("CMYK", (4, 4), (255, 255, 255, 255)), {}, (0, 0, 0)),
    }
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for file, (image, how, _) in images.items():
            image.save(root / name / file, **how)
    return {file: colour for file, (_, _, colour) in images.items()}


def test_a_folder_of_odd_images_reads_as_a_person_sees_it(tmp_path: Path) -> None:
    wanted = odd_files(tmp_path)
    train = folder(tmp_path, 4).part("train")
    assert train.labels.tolist() == [0] * len(wanted) + [1] * len(wanted)
    expected = [wanted[name] for name in sorted(wanted)] * 2
    assert train.pixels()[:, :, 0, 0].tolist() == [list(colour) for colour in expected]


def test_parquet_reads_the_same_images_the_same(tmp_path: Path) -> None:
    wanted = odd_files(tmp_path / "files")
    encoded = [(tmp_path / "files" / "a" / name).read_bytes() for name in sorted(wanted)]
    table = pa.table({"image": pa.array(encoded, pa.binary()), "label": [0, 1, 0, 1, 0]})
    writer.write_table(table, tmp_path / "x.parquet")
    pixels = parquet(tmp_path / "x.parquet").part("train").pixels()
    assert pixels[:, :, 0, 0].tolist() == [list(wanted[name]) for name in sorted(wanted)]


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    odd_files(tmp_path)
    (tmp_path / "a" / "deep.png").write_bytes(b"")
    with pytest.raises(WeightsmithError, match=r"a/deep\.png cannot be read \(it is empty\): remove or replace it"):
        folder(tmp_path, 4).part("train").pixels()
