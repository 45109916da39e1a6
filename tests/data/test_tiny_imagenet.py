"""Tiny-ImageNet's folder, as published and as it is sorted by many, and what is said of one that is not whole."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weightsmith.data.sources import open_data, open_part
from weightsmith.data.tiny_imagenet import tiny_imagenet
from weightsmith.errors import HeldOutError, WeightsmithError

WNIDS = ("n03", "n01", "n02")
"""In another order than the sorted one."""
VAL = {"val_0.JPEG": "n02", "val_1.JPEG": "n03", "val_2.JPEG": "n02", "val_3.JPEG": "n01"}


def add(path: Path, level: int, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).convert(mode).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of two train images, of level 10 × class + image, and four validation images of level 100 + number."""
    root = tmp_path / "tiny-imagenet-3"
    for label, wnid in enumerate(WNIDS):
        for number in range(2):
            add(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", 10 * label + number, "RGB")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t15\t15\n")
    for number, name in enumerate(VAL):
        add(root / "val" / "images" / name, 100 + number, "L" if number == 1 else "RGB")
    annotate(root)
    add(root / "test" / "images" / "test_0.JPEG", 200)
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (root / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane, grus\n")
    return root


def annotate(root: Path, labels: dict[str, str] = VAL) -> Path:
    path = root / "val" / "val_annotations.txt"
    path.write_text("".join(f"{name}\t{wnid}\t0\t0\t15\t15\n" for name, wnid in labels.items()))
    return path


def sort_val(root: Path, form: str) -> None:
    """Move the validation images into folders of their classes, as scripts that go round do it."""
    for name, wnid in VAL.items():
        target = root / form.format(wnid) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(target)


def levels(source, part: str) -> list[int]:
    return source.part(part).pixels()[:, 0, 8, 8].tolist()


def test_classes_have_the_order_of_the_list_and_the_names_of_the_words(root: Path) -> None:
    source = open_data(str(root))
    assert source.name == "tiny-imagenet-3"
    assert source.class_names == ("crane (n03)", "goldfish", "crane (n02)")  # two cranes are told apart
    assert list(source.parts) == ["train", "val"]
    assert source.part("train").labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert levels(source, "train") == pytest.approx([0, 1, 10, 11, 20, 21], abs=2)
    assert source.part("val").labels.tolist() == [2, 0, 2, 1]
    assert levels(source, "val") == pytest.approx([100, 101, 102, 103], abs=2)


def test_a_grey_jpeg_becomes_colour(root: Path) -> None:
    with Image.open(root / "val" / "images" / "val_1.JPEG") as image:
        assert image.mode == "L"
    pixels = open_data(str(root)).part("val").pixels([1])
    assert pixels.shape == (1, 3, 16, 16)
    assert bool((pixels[:, 0] == pixels[:, 1]).all() and (pixels[:, 0] == pixels[:, 2]).all())


def test_without_words_the_wnids_are_the_names(root: Path) -> None:
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\n")
    assert open_data(str(root)).class_names == ("n03", "goldfish", "n02")
    (root / "words.txt").unlink()
    assert open_data(str(root)).class_names == WNIDS


def test_images_keep_their_size_and_are_never_scaled_up(root: Path) -> None:
    for asked, side in ((None, 16), (224, 16), (16, 16), (8, 8)):
        assert open_data(str(root), asked).part("train").pixels([0]).shape == (1, 3, side, side)


@pytest.mark.parametrize("form", ["val/{}", "val/{}/images", "val/images/{}"])
@pytest.mark.parametrize("table", [True, False])
def test_validation_images_that_were_sorted_into_classes_are_the_same_images(
    root: Path, form: str, table: bool
) -> None:
    before = open_data(str(root)).part("val")
    expected = sorted(zip(levels(open_data(str(root)), "val"), before.labels.tolist(), strict=True))
    sort_val(root, form)
    if not table:
        (root / "val" / "val_annotations.txt").unlink()
    source = open_data(str(root))
    assert source.part("val").labels.tolist() == [0, 1, 2, 2]
    assert sorted(zip(levels(source, "val"), source.part("val").labels.tolist(), strict=True)) == expected


def test_a_folder_without_val_has_one_part(root: Path) -> None:
    shutil.rmtree(root / "val")
    assert list(open_data(str(root)).parts) == ["train"]


def test_the_validation_part_can_be_held_out_by_name(root: Path) -> None:
    for wnid in WNIDS:
        for number in range(2, 10):
            add(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", number)
    split = open_data(str(root)).split(held_out="val")
    assert (len(split.train), len(split.val), len(split.held_out), split.val_carved) == (24, 6, 4, True)
    with pytest.raises(HeldOutError):
        split.held_out.pixels()
    assert len(open_part(f"{root}:val")) == 4


def test_the_fingerprint_covers_classes_too(root: Path) -> None:
    first = tiny_imagenet(root).part("val").source
    assert tiny_imagenet(root, 8).part("train").source == first
    annotate(root, VAL | {"val_0.JPEG": "n01"})
    relabelled = tiny_imagenet(root).part("val").source
    annotate(root)
    (root / "wnids.txt").write_text("n01\nn02\nn03\n")
    assert len({first, relabelled, tiny_imagenet(root).part("val").source}) == 3


Break = Callable[[Path], object]


def table(*lines: str) -> Break:
    """Put these in place of the last line of the table, the one of val_3.JPEG."""

    def change(root: Path) -> None:
        path = root / "val" / "val_annotations.txt"
        path.write_text("\n".join([*path.read_text().splitlines()[:-1], *lines]))

    return change


BROKEN: dict[str, tuple[Break, str]] = {
    "no wnids": (lambda root: (root / "wnids.txt").unlink(), r"has no wnids\.txt.*: unpack the archive again"),
    "empty wnids": (lambda root: (root / "wnids.txt").write_text("\n"), r"wnids\.txt is empty: unpack"),
    "one wnid": (lambda root: (root / "wnids.txt").write_text("n01\n"), r"wnids\.txt names the single class n01: add"),
    "a wnid twice": (
        lambda root: (root / "wnids.txt").write_text("n01\nn02\nn01\nn03\n"),
        r"wnids\.txt names the class n01 more than once: remove",
    ),
    "wnids of bytes": (
        lambda root: (root / "wnids.txt").write_bytes(b"\xff\xfe\xff"),
        r"wnids\.txt is no text \(.*\): unpack",
    ),
    "missing class": (
        lambda root: shutil.rmtree(root / "train" / "n02"),
        r"train lacks 1 of the 3 classes of wnids\.txt, n02 the first: unpack .*or take them out",
    ),
    "class of no list": (
        lambda root: add(root / "train" / "n09" / "images" / "n09_0.JPEG", 1),
        r"train has a folder n09 and wnids\.txt no such class: add it there or remove the folder",
    ),
    "empty class": (
        lambda root: [file.unlink() for file in (root / "train" / "n01" / "images").iterdir()],
        r"the class folder .*train/n01 has no images: add some, or remove it and take it out of wnids\.txt",
    ),
    "damaged first image": (
        lambda root: (root / "train" / "n03" / "images" / "n03_0.JPEG").write_bytes(b"no image"),
        r"n03_0\.JPEG cannot be read .*: remove or replace it",
    ),
    "no table": (
        lambda root: (root / "val" / "val_annotations.txt").unlink(),
        r"val_annotations\.txt is missing, .*: unpack the archive again",
    ),
    "empty table": (
        lambda root: (root / "val" / "val_annotations.txt").write_text(""),
        r"val_annotations\.txt is empty: unpack",
    ),
    "line cut after the name": (table("val_3.JPEG"), r"line 4 of .*val_annotations\.txt is cut off, 'val_3.JPEG': "),
    "line cut after the class": (table("val_3.JPEG\tn01"), r"line 4 of .* is cut off, .*: unpack the archive again"),
    "line cut in the box": (table("val_3.JPEG\tn01\t0\t0\t15\t"), r"line 4 of .* is cut off"),
    "unknown class": (
        table("val_3.JPEG\tn07\t0\t0\t15\t15"),
        r"line 4 of .* gives val_3\.JPEG the class n07, which is not in wnids\.txt: add it there, or correct the line",
    ),
    "image named twice": (
        table("val_3.JPEG\tn01\t0\t0\t15\t15", "val_0.JPEG\tn01\t0\t0\t15\t15"),
        r"line 5 of .* names val_0\.JPEG a second time: remove one",
    ),
    "image that is gone": (
        lambda root: (root / "val" / "images" / "val_2.JPEG").unlink(),
        r"val_annotations\.txt names val_2\.JPEG, which is not in .*images \(1 such lines in all\): unpack",
    ),
    "image that is not named": (
        table(),
        r"val_annotations\.txt does not name val_3\.JPEG of .*images \(1 such images in all\): unpack",
    ),
    "half sorted": (
        lambda root: add(root / "val" / "n01" / "val_9.JPEG", 1),
        r"val has class folders, and .*images/val_0\.JPEG is outside of one \(4 in all\): sort all or none",
    ),
    "empty val": (
        lambda root: [shutil.rmtree(root / "val"), (root / "val").mkdir()],
        r"val holds no images: unpack the archive again, or remove the folder",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_is_not_whole_is_told(root: Path, what: str) -> None:
    change, message = BROKEN[what]
    change(root)
    with pytest.raises(WeightsmithError, match=message) as caught:
        open_data(str(root))
    assert "\n" not in str(caught.value)


def test_sorted_validation_images_of_an_unknown_class_are_told(root: Path) -> None:
    sort_val(root, "val/{}")
    (root / "val" / "n02").rename(root / "val" / "n08")
    with pytest.raises(WeightsmithError, match=r"val has a folder n08 and wnids\.txt no such class"):
        open_data(str(root))


def test_a_truncated_jpeg_is_named_when_it_is_read(root: Path) -> None:
    place = root / "train" / "n01" / "images" / "n01_1.JPEG"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place)
    place.write_bytes(place.read_bytes()[:-100])
    train = open_data(str(root)).part("train")
    assert len(train.pixels([0, 1, 2])) == 3
    with pytest.raises(WeightsmithError, match=r"n01_1\.JPEG cannot be read .*: remove or replace it"):
        train.pixels()


@pytest.mark.parametrize("ending", ["tar.xz", "tar.gz", "zip", "ZIP"])
def test_an_archive_is_to_be_unpacked(tmp_path: Path, ending: str) -> None:
    archive = tmp_path / f"tiny-imagenet-200.{ending}"
    archive.write_bytes(b"packed")
    with pytest.raises(WeightsmithError, match=r"--data-path .* is an archive: unpack it and give the folder"):
        open_data(str(archive))


def test_the_folder_around_it_leads_to_it(root: Path) -> None:
    with pytest.raises(WeightsmithError, match=rf"holds Tiny-ImageNet in a folder of its own: give {root}$"):
        open_data(str(root.parent))


def test_the_real_set_is_opened(shared_data: Path, tmp_path: Path) -> None:
    """Three classes of the published images: the lists are cut to what was unpacked."""
    archive = shared_data / "tiny-imagenet-50.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} among the test data")
    wanted = ("n02883205", "n03250847", "n03404251")
    rows: list[str] = []
    with tarfile.open(archive) as packed:
        for member in packed:
            parts = Path(member.name).parts
            file = packed.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            if parts[-1] == "val_annotations.txt":
                rows = [line for line in file.read().decode().splitlines() if line.split("\t")[1] in wanted]
            if parts[-1] == "words.txt" or (set(parts) & set(wanted)) or parts[1:3] == ("val", "images"):
                place = tmp_path.joinpath("set", *parts[1:])
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.read())
    root = tmp_path / "set"
    (root / "wnids.txt").write_text("\n".join(wanted))
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows))
    kept = {row.split("\t")[0] for row in rows}
    for file_path in (root / "val" / "images").iterdir():
        if file_path.name not in kept:
            file_path.unlink()
    source = open_data(str(root))
    assert source.class_names == ("bow tie", "drumstick", "fur coat")
    assert {part: len(images) for part, images in source.parts.items()} == {"train": 600, "val": 150}
    assert np.bincount(source.part("val").labels).tolist() == [50, 50, 50]
    pixels = source.part("val").pixels()
    assert pixels.shape == (150, 3, 64, 64)
    assert float(pixels.float().std()) > 40
