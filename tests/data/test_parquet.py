from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet as writer

from weightsmith.data.parquet import holds_parquet, parquet
from weightsmith.data.sources import open_data, open_part
from weightsmith.errors import WeightsmithError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(image: np.ndarray | Image.Image, **how: Any) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(file, "PNG", **how)
    return file.getvalue()


def colour(n: int, side: tuple[int, int] = (4, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *side, 3), dtype=np.uint8)


def write(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any],
    *,
    names: Sequence[str] = ("image", "label"),
    kinds: Sequence[pa.DataType] = (pa.binary(), pa.int64()),
    classes: object = None,
) -> Path:
    """A parquet file of two columns, with the hub's metadata where there are class names."""
    values: list[Any] = list(images)
    if pa.types.is_struct(kinds[0]):
        values = [None if image is None else {"bytes": image, "path": "x.png"} for image in images]
    table = pa.table([pa.array(values, kinds[0]), pa.array(labels, kinds[1])], names=list(names))
    if classes is not None:
        entries = {"info": {"features": {names[1]: {"names": classes, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(entries)})
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(table, path, row_group_size=2)
    return path


def pngs(images: np.ndarray) -> list[bytes]:
    return [encoded(image) for image in images]


@pytest.mark.parametrize("kind", [STRUCT, pa.binary(), pa.large_binary()], ids=["struct", "bytes", "large"])
def test_both_layouts_of_images_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    images = colour(5)
    path = write(tmp_path / "cells.parquet", pngs(images), [0, 1, 2, 1, 0], kinds=(kind, pa.uint8()))
    source = parquet(path)
    assert (source.name, list(source.parts), source.class_names) == (
        "cells.parquet",
        ["train"],
        ("class 0", "class 1", "class 2"),
    )
    train = source.part("train")
    assert np.array_equal(train.pixels().numpy(), images.transpose(0, 3, 1, 2))
    assert np.array_equal(train.pixels([4, 0, 2]).numpy(), images[[4, 0, 2]].transpose(0, 3, 1, 2))
    assert train.labels.tolist() == [0, 1, 2, 1, 0]
    assert train.labels.dtype == np.int64
    assert open_part(f"{path}:train").digest() == train.digest()


def test_files_of_a_folder_are_its_parts(tmp_path: Path) -> None:
    images = colour(7)
    data = pngs(images)
    write(tmp_path / "set" / "train-00000-of-00002.parquet", data[:2], [0, 1], classes=["cat", "dog"])
    write(tmp_path / "set" / "train-00001-of-00002.parquet", data[2:5], [1, 1, 0], classes=["cat", "dog"])
    write(tmp_path / "set" / "validation-00000-of-00001.parquet", data[5:6], [1])
    write(tmp_path / "set" / "test.parquet", data[6:], [0])
    (tmp_path / "set" / "README.md").touch()
    source = open_data(str(tmp_path / "set"))
    assert (source.name, source.class_names) == ("set", ("cat", "dog"))
    assert {part: images.labels.tolist() for part, images in source.parts.items()} == {
        "train": [0, 1, 1, 1, 0],
        "val": [1],
        "test": [0],
    }
    assert np.array_equal(source.part("train").pixels().numpy(), images[:5].transpose(0, 3, 1, 2))
    assert np.array_equal(source.part("test").pixels().numpy(), images[6:].transpose(0, 3, 1, 2))
    assert len({images.source for images in source.parts.values()}) == 1
    assert source.part("train").overlaps(source.part("val")) == 0


def test_shards_may_be_empty_and_of_several_types(tmp_path: Path) -> None:
    images = colour(2)
    write(tmp_path / "train-0.parquet", pngs(images[:1]), [0])
    write(tmp_path / "train-1.parquet", [], [])
    write(tmp_path / "train-2.parquet", pngs(images[1:]), [1], kinds=(pa.large_binary(), pa.int8()))
    train = parquet(tmp_path).part("train")
    assert np.array_equal(train.pixels().numpy(), images.transpose(0, 3, 1, 2))
    assert train.labels.tolist() == [0, 1]


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    data = pngs(colour(3))
    files = [
        write(tmp_path / "a" / "train.parquet", data, [0, 1, 1]),
        write(tmp_path / "b" / "train.parquet", data, [0, 1, 1]),
        write(tmp_path / "c" / "train.parquet", data, [0, 1, 0]),
        write(tmp_path / "d" / "train.parquet", data[::-1], [0, 1, 1]),
    ]
    first, same, labels, order = (parquet(file).part("train").source for file in files)
    assert first == same
    assert len({first, labels, order}) == 3


def test_a_column_called_a_label_is_preferred(tmp_path: Path) -> None:
    table = pa.table({"width": [5, 5], "png": pngs(colour(2)), "fine_label": [1, 0], "checksum": [b"a", b"b"]})
    writer.write_table(table, tmp_path / "a.parquet")
    assert parquet(tmp_path / "a.parquet").part("train").labels.tolist() == [1, 0]
    write(tmp_path / "b.parquet", pngs(colour(2)), [1, 0], names=("picture", "kind"))
    assert parquet(tmp_path / "b.parquet").part("train").labels.tolist() == [1, 0]
    table = pa.table({"id": [7, 8], "png": pngs(colour(2)), "label": ["cat", "dog"]})
    writer.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(WeightsmithError, match=r"c\.parquet has no column of integer classes .*label \(string\)"):
        parquet(tmp_path / "c.parquet")


@pytest.mark.parametrize("classes", [[], None, {"a": 1}, "no list"])
def test_metadata_without_class_names_is_passed_over(tmp_path: Path, classes: object) -> None:
    path = write(tmp_path / "a.parquet", pngs(colour(2)), [1, 0], classes=classes)
    assert parquet(path).class_names == ("class 0", "class 1")


def test_images_of_other_sizes_are_scaled_to_the_first(tmp_path: Path) -> None:
    data = [encoded(Image.new("RGB", size, (9, 8, 7))) for size in ((5, 4), (10, 8), (2, 3))]
    write(tmp_path / "train.parquet", data, [0, 1, 0])
    write(tmp_path / "test.parquet", [encoded(Image.new("L", (6, 6), 9))], [0])
    source = parquet(tmp_path)
    pixels = source.part("train").pixels()
    assert pixels.shape == (3, 3, 4, 5)
    assert (pixels.numpy() == np.array([9, 8, 7]).reshape(1, 3, 1, 1)).all()
    assert source.part("test").pixels().shape == (1, 3, 4, 5)  # what a network trained on the train part reads


def test_grey_images_have_one_channel_unless_some_are_coloured(tmp_path: Path) -> None:
    grey = [encoded(Image.new("L", (5, 4), level)) for level in (3, 4)]
    assert parquet(write(tmp_path / "grey.parquet", grey, [0, 1])).part("train").pixels().shape == (2, 1, 4, 5)
    mixed = write(tmp_path / "mixed.parquet", [*grey, *pngs(colour(1))], [0, 1, 1])
    pixels = parquet(mixed).part("train").pixels()
    assert pixels.shape == (3, 3, 4, 5)
    assert (pixels[1] == 4).all()


def test_images_of_other_depths_come_to_8_bits(tmp_path: Path) -> None:
    deep = encoded(np.full((4, 5), 40_000, dtype=np.uint16))
    pixels = parquet(write(tmp_path / "deep.parquet", [deep], [0])).part("train").pixels()
    assert pixels.shape == (1, 1, 4, 5)
    assert (pixels == round(40_000 / 257)).all()
    palette = Image.new("P", (5, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    data = [encoded(palette, transparency=bytes([0, 100])), encoded(Image.new("1", (5, 4), 1))]
    pixels = parquet(write(tmp_path / "palette.parquet", data, [0, 0])).part("train").pixels()
    assert pixels[0, :, 0, 0].tolist() == [159, 163, 167]  # 100 / 255 of it, on white
    assert (pixels[1] == 255).all()


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 2, 1], ["a", "b"], r"label 2 of image 1 of the train part of .*a\.parquet is outside 0\.\.1: correct"),
        ([0, 1, -1], ["a", "b"], r"label -1 of image 2 of the train part of .*a\.parquet is outside 0\.\.1: correct"),
        ([0, 1, -1], None, r"label -1 of image 2 of the train part of .*a\.parquet is outside 0\.\.1: correct"),
        ([0, 2**40, 0], None, r"label 1099511627776 of image 1 of the train part of .* is outside 0\.\.2: correct"),
        ([0, None, None], None, r"a\.parquet has 2 images without a class in label: leave them out"),
    ],
)
def test_labels_that_do_not_fit_are_named(
    tmp_path: Path, labels: list[int | None], classes: list[str] | None, message: str
) -> None:
    path = write(tmp_path / "a.parquet", pngs(colour(3)), labels, classes=classes)
    with pytest.raises(WeightsmithError, match=message):
        parquet(path)


def test_a_class_beyond_those_of_train_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", pngs(colour(2)), [0, 1])
    write(tmp_path / "test.parquet", pngs(colour(2)), [0, 2])
    with pytest.raises(WeightsmithError, match=r"label 2 of image 1 of the test part of .* is outside 0\.\.1"):
        parquet(tmp_path)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    for name, table, lacking in (
        ("a", {"label": [0], "url": ["http://x"]}, r"encoded images .*label \(int64\), url \(string\)"),
        ("b", {"image": [b"x"], "label": [0.5]}, r"integer classes .*label \(double\)"),
        ("c", {"image": [{"path": "x.png"}], "label": [0]}, "encoded images"),
        ("d", {}, "encoded images among its columns, none"),
    ):
        writer.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        with pytest.raises(WeightsmithError, match=rf"{name}\.parquet has no column of {lacking}.*hub's layout"):
            parquet(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize("other", [{"img": [b"x"], "label": [0]}, {"image": ["x"], "label": [0]}, {"image": [b"x"]}])
@pytest.mark.parametrize("file", ["train-1.parquet", "test-0.parquet"])
def test_a_file_unlike_the_first_is_named(tmp_path: Path, other: dict[str, list[Any]], file: str) -> None:
    write(tmp_path / "train-0.parquet", pngs(colour(1)), [0])
    writer.write_table(pa.table(other), tmp_path / file)
    with pytest.raises(WeightsmithError, match=rf"{file} has not the columns image .* and label .*: give the files"):
        parquet(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pngs(colour(3)), [0, 1, 0])
    whole = path.read_bytes()
    for damaged in (b"", b"no parquet", whole[: len(whole) // 2], whole[:4] + bytes(len(whole) - 4)):
        path.write_bytes(damaged)
        with pytest.raises(WeightsmithError, match=r"a\.parquet is damaged or no parquet file \(.*\): fetch it again"):
            parquet(path)


def test_damaged_images_are_named_when_they_are_read(tmp_path: Path) -> None:
    data = pngs(colour(4, side=(20, 20)))
    images = [data[0], data[1][:200], None, b"no image"]
    for kind in (pa.binary(), STRUCT):
        train = parquet(write(tmp_path / "a.parquet", images, [0, 1, 0, 1], kinds=(kind, pa.int64()))).part("train")
        assert train.pixels([0]).shape == (1, 3, 20, 20)
        for place in (1, 2, 3):
            with pytest.raises(WeightsmithError, match=rf"image {place} of the train part of .*a\.parquet cannot be"):
                train.pixels([place])
    for image in images[1:]:
        path = write(tmp_path / "b.parquet", [image], [0])
        with pytest.raises(
            WeightsmithError, match=r"the first image of .*b\.parquet cannot be read \(.*\): replace it"
        ):
            parquet(path)


def test_an_image_just_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", pngs(colour(1)), [0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)  # the images have 20; up to twice the limit PIL only warns
    with pytest.raises(WeightsmithError, match=r"a\.parquet cannot be read"):
        parquet(path)


def test_a_set_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "none.parquet", [], [])
    with pytest.raises(WeightsmithError, match=r"the train part of .*none\.parquet holds no images: give"):
        parquet(tmp_path / "none.parquet")
    with writer.ParquetWriter(tmp_path / "rows.parquet", pa.schema({"image": pa.binary(), "label": pa.int64()})):
        pass  # not even a group of rows
    with pytest.raises(WeightsmithError, match=r"the train part of .*rows\.parquet holds no images: give"):
        parquet(tmp_path / "rows.parquet")
    write(tmp_path / "set" / "train.parquet", pngs(colour(1)), [0])
    write(tmp_path / "set" / "test.parquet", [], [])
    with pytest.raises(WeightsmithError, match=r"the test part of .*set holds no images: give"):
        parquet(tmp_path / "set")


def test_places_that_are_no_set_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match=r"there is no parquet file .*gone\.parquet: check the path"):
        open_data(str(tmp_path / "gone.parquet"))
    write(tmp_path / "cells.parquet", pngs(colour(1)), [0])
    with pytest.raises(WeightsmithError, match=r"has no train-\*\.parquet: name the files"):
        open_data(str(tmp_path))
    assert holds_parquet(tmp_path)
    assert not holds_parquet(tmp_path / "cells.parquet")
    assert not holds_parquet(tmp_path / "gone")


def test_without_pyarrow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", pngs(colour(1)), [0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(WeightsmithError, match=r"a\.parquet needs pyarrow: pip install 'weightsmith\[parquet\]'"):
        parquet(path)


def test_cifar10_is_opened(shared_data: Path) -> None:
    source = open_data(str(shared_data / "cifar10"))
    assert {part: len(images) for part, images in source.parts.items()} == {"train": 50_000, "test": 10_000}
    assert source.class_names[:2] == ("airplane", "automobile")
    assert len(source.class_names) == len(set(source.class_names)) == 10
    assert source.part("train").pixels([0]).shape == source.part("test").pixels([9_999]).shape == (1, 3, 32, 32)
    for images in source.parts.values():
        assert np.bincount(images.labels).tolist() == [len(images) // 10] * 10
