from __future__ import annotations

import errno
import io
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightsmith.data import npz
from weightsmith.data.npz import fingerprint, open_npz
from weightsmith.data.split import from_arrays
from weightsmith.errors import WeightsmithError

Arrays = dict[str, np.ndarray]
Save = Callable[..., Path]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_read_is_what_was_written(arrays: Arrays, save: Save, tmp_path: Path, compressed: bool) -> None:
    read = open_npz(save(arrays, compressed=compressed), tmp_path / "cache")
    assert read.keys() == arrays.keys()
    for key, array in arrays.items():
        expected = array.reshape(-1) if key.endswith("labels") else array
        assert np.array_equal(read[key], expected)
        assert read[key].dtype == (np.int64 if key.endswith("labels") else np.uint8)
    assert not (tmp_path / "cache").exists()


def test_members_that_name_other_places_are_written_nowhere(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    path = save(arrays)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("train_images.npy")
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../escaped.npy", "../../train_images.npy", f"{tmp_path}/escaped.npy", "a/train_images.npy"):
            archive.writestr(name, content)
    before = set(files_below(tmp_path))
    open_npz(path, tmp_path / "cache", memory_limit=0)
    unpacked = set(files_below(tmp_path)) - before
    assert unpacked
    assert all((tmp_path / "cache") in file.parents for file in unpacked)
    assert not any("escaped" in file.name for file in unpacked)


@pytest.mark.parametrize("compressed", [False, True])
def test_mapped_pixels_equal_pixels_in_memory(arrays: Arrays, save: Save, tmp_path: Path, compressed: bool) -> None:
    path = save(arrays, compressed=compressed)
    small, large = open_npz(path, tmp_path / "cache"), open_npz(path, tmp_path / "cache", memory_limit=0)
    assert isinstance(large["train_images"], np.memmap)
    for part in ("train", "val", "test"):
        sets = [
            from_arrays(a[f"{part}_images"], a[f"{part}_labels"], ("a", "b", "c"), "s", part) for a in (small, large)
        ]
        order = np.random.default_rng(0).permutation(len(sets[0]))
        assert sets[0].pixels(order).equal(sets[1].pixels(order))
        assert sets[0].labels.tolist() == sets[1].labels.tolist()


def test_arrays_in_fortran_order_and_empty_parts_are_read(save: Save, tmp_path: Path, arrays: Arrays) -> None:
    arrays["train_images"] = np.asfortranarray(arrays["train_images"])
    arrays |= {"val_images": np.zeros((0, 6, 6, 3), np.uint8), "val_labels": np.zeros((0, 1), np.uint8)}
    path = save(arrays)
    for limit in (0, 2**20):
        read = open_npz(path, tmp_path / "cache", memory_limit=limit)
        assert np.array_equal(read["train_images"], arrays["train_images"])
        assert len(read["val_images"]) == len(read["val_labels"]) == 0


def test_unpacking_happens_once(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    path = save(arrays)
    open_npz(path, tmp_path / "cache", memory_limit=0)
    written = {file: file.stat().st_mtime_ns for file in files_below(tmp_path / "cache")}
    unpacked = ["test_images.npy", "train_images.npy", "val_images.npy"]
    assert sorted(file.name for file in written if file.suffix == ".npy") == unpacked
    assert {file.parent.name for file in written} == {fingerprint(path)}
    open_npz(path, tmp_path / "cache", memory_limit=0)
    assert {file: file.stat().st_mtime_ns for file in files_below(tmp_path / "cache")} == written


def test_unpacking_at_the_same_time_does_no_harm(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    path = save(arrays)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda _: open_npz(path, tmp_path / "cache", memory_limit=0), range(8)))
    assert all(np.array_equal(each["train_images"], arrays["train_images"]) for each in read)
    assert len([path for path in files_below(tmp_path / "cache") if path.suffix == ".npy"]) == 3


def test_an_unpacked_file_of_another_size_is_unpacked_again(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    path = save(arrays)
    open_npz(path, tmp_path / "cache", memory_limit=0)
    target = tmp_path / "cache" / "npz" / fingerprint(path) / "train_images.npy"
    target.write_bytes(target.read_bytes()[:-1])
    assert np.array_equal(open_npz(path, tmp_path / "cache", 0)["train_images"], arrays["train_images"])


def _zeros(targets: dict[str, Path]) -> None:
    targets["train"].write_bytes(b"\0" * targets["train"].stat().st_size)


def _one_byte(targets: dict[str, Path]) -> None:
    with targets["val"].open("rb+") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))


def _swapped(targets: dict[str, Path]) -> None:
    aside = targets["val"].with_name("aside")
    targets["val"].rename(aside)
    targets["test"].rename(targets["val"])
    aside.rename(targets["test"])


def _no_marks(targets: dict[str, Path]) -> None:
    """As an earlier version left it, and damaged."""
    _one_byte(targets)
    for target in targets.values():
        target.with_suffix(".checked").unlink()


@pytest.mark.parametrize("damage", [_zeros, _one_byte, _swapped, _no_marks])
def test_an_unpacked_file_that_is_another_is_unpacked_again(
    arrays: Arrays,
    save: Save,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[dict[str, Path]], None],
) -> None:
    arrays["test_images"], arrays["test_labels"] = arrays["val_images"] + 1, arrays["val_labels"]
    path = save(arrays)
    open_npz(path, tmp_path / "cache", memory_limit=0)
    folder = tmp_path / "cache" / "npz" / fingerprint(path)
    damage({part: folder / f"{part}_images.npy" for part in ("train", "val", "test")})
    read = open_npz(path, tmp_path / "cache", 0)
    assert all(np.array_equal(read[f"{part}_images"], arrays[f"{part}_images"]) for part in ("train", "val", "test"))
    assert "damaged and unpacked again" in caplog.text
    caplog.clear()
    open_npz(path, tmp_path / "cache", 0)
    assert not caplog.text


def test_an_unpacked_file_of_an_earlier_version_is_kept(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    path = save(arrays)
    open_npz(path, tmp_path / "cache", memory_limit=0)
    for mark in tmp_path.rglob("*.checked"):
        mark.unlink()
    before = {file: file.stat().st_mtime_ns for file in files_below(tmp_path / "cache")}
    open_npz(path, tmp_path / "cache", memory_limit=0)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(list(tmp_path.rglob("*.checked"))) == 3


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_unpacking_leaves_nothing(
    arrays: Arrays, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    path, chunks = save(arrays), npz._chunks

    def interrupted(*args: object) -> object:
        yield next(iter(chunks(*args)))  # type: ignore[arg-type]
        raise interruption

    monkeypatch.setattr(npz, "_chunks", interrupted)
    with pytest.raises((KeyboardInterrupt, WeightsmithError)) as caught:
        open_npz(path, tmp_path / "cache", memory_limit=0)
    if isinstance(interruption, OSError):
        assert "cells.npz" in str(caught.value)
        assert "--cache-dir" in str(caught.value)
    assert files_below(tmp_path / "cache") == []


def test_a_disk_without_room_is_named_beforehand(
    arrays: Arrays, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(WeightsmithError, match=f"cells.npz needs .*{tmp_path / 'cache'}.*--cache-dir"):
        open_npz(save(arrays), tmp_path / "cache", memory_limit=0)
    assert files_below(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_made_is_named(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(WeightsmithError, match=r"cells.npz cannot be unpacked into .*--cache-dir"):
        open_npz(save(arrays), tmp_path / "cache", memory_limit=0)


def test_only_old_leftovers_are_swept(arrays: Arrays, save: Save, tmp_path: Path) -> None:
    path = save(arrays)
    folder = tmp_path / "cache" / "npz" / fingerprint(path)
    folder.mkdir(parents=True)
    old, live = folder / ".train_images.npy.1.aa.tmp", folder / ".train_images.npy.2.bb.tmp"
    for file in (old, live):
        file.write_bytes(b"x")
    two_days_ago = time.time() - 2 * 86400
    os.utime(old, (two_days_ago, two_days_ago))
    open_npz(path, tmp_path / "cache", memory_limit=0)
    assert (old.exists(), live.exists()) == (False, True)


def test_a_fingerprint_goes_by_content(arrays: Arrays, save: Save) -> None:
    first = fingerprint(save(arrays, "a.npz"))
    assert fingerprint(save(dict(reversed(arrays.items())), "b.npz", compressed=True)) == first
    arrays["test_images"][0, 0, 0, 0] ^= 1
    assert fingerprint(save(arrays, "c.npz")) != first


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def with_member(arrays: Arrays, key: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", data if name == key else npy(array))
    return file.getvalue()


def saved(arrays: Arrays) -> bytes:
    return with_member(arrays, "", b"")


def corrupt(arrays: Arrays) -> bytes:
    data = bytearray(saved(arrays))
    data[data.find(b"\x93NUMPY") + 200] ^= 0xFF  # the first byte of pixels is 128 bytes in
    return bytes(data)


def corrupt_compressed(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    data = bytearray(file.getvalue())
    data[400] ^= 0xFF
    return bytes(data)


def without(*keys: str) -> Callable[[Arrays], bytes]:
    return lambda arrays: saved({key: array for key, array in arrays.items() if key not in keys})


def changed(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], bytes]:
    return lambda arrays: saved(arrays | {key: change(arrays[key])})


BAD_FILES: dict[str, tuple[Callable[[Arrays], bytes], str]] = {
    "empty": (lambda _: b"", "is empty"),
    "text": (lambda _: b"not an archive", "is no .npz file"),
    "single array": (lambda arrays: npy(arrays["train_images"]), "is a single array"),
    "cut off": (lambda arrays: saved(arrays)[:-500], "cut off or damaged"),
    "cut off early": (lambda arrays: saved(arrays)[:40], "cut off or damaged"),
    "wrong checksum": (corrupt, "damaged in train_images.npy"),
    "broken compression": (corrupt_compressed, "cut off or damaged"),
    "no array": (lambda arrays: with_member(arrays, "val_images", b"hello"), "damaged in val_images.npy"),
    "half an array": (
        lambda arrays: with_member(arrays, "val_images", npy(arrays["val_images"])[:-9]),
        "damaged in val_images.npy",
    ),
    "more than an array": (
        lambda arrays: with_member(arrays, "val_images", npy(arrays["val_images"]) + b"x"),
        "damaged in val_images.npy",
    ),
    "pickled images": (changed("train_images", lambda a: a.astype(object)), "pickled Python objects"),
    "pickled labels": (changed("test_labels", lambda a: a.astype(object)), "pickled Python objects"),
    "no labels": (without("train_labels"), "lacks train_labels .*arrays there: .*test_images.*optionally val_images"),
    "no train part": (without("train_images", "train_labels"), "lacks train_images, train_labels"),
    "half a test part": (without("test_images"), "lacks test_images"),
    "nothing": (lambda _: saved({}), "is no .npz file|lacks train_images"),
    "floats": (changed("train_images", lambda a: a / np.float32(255)), "is float32: save images as uint8"),
    "signed": (changed("val_images", lambda a: a.astype(np.int8)), "is int8: save images as uint8"),
    "flat images": (changed("train_images", lambda a: a.reshape(len(a), -1)), r"has shape \(12, 108\)"),
    "two channels": (changed("train_images", lambda a: a[..., :2]), r"has shape \(12, 6, 6, 2\)"),
    "volumes": (changed("train_images", lambda a: a[..., None]), r"has shape \(12, 6, 6, 3, 1\)"),
    "no pixels": (changed("train_images", lambda a: a[:, :0]), r"has shape \(12, 0, 6, 3\)"),
    "fewer labels": (changed("train_labels", lambda a: a[:-1]), "12 images and 11 labels"),
    "fewer images": (changed("test_images", lambda a: a[:-1]), "2 images and 3 labels"),
    "other size": (changed("val_images", lambda a: a[:, :5]), "save all parts at one size"),
    "float labels": (changed("train_labels", lambda a: a.astype(float)), "is float64: save class numbers"),
    "text labels": (changed("train_labels", lambda a: a.astype(str)), "save class numbers as integers"),
    "several labels": (changed("train_labels", lambda a: np.repeat(a, 14, axis=1)), "14 columns.*not supported"),
    "cube of labels": (changed("train_labels", lambda a: a[..., None]), r"has shape \(12, 1, 1\)"),
    "no train images": (
        lambda arrays: saved(arrays | {"train_images": arrays["train_images"][:0], "train_labels": np.zeros(0, int)}),
        "holds no image",
    ),
}


@pytest.mark.parametrize("memory_limit", [0, 2**20])
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_with_a_remedy(arrays: Arrays, tmp_path: Path, case: str, memory_limit: int) -> None:
    make, message = BAD_FILES[case]
    path = tmp_path / "cells.npz"
    path.write_bytes(make(arrays))
    with pytest.raises(WeightsmithError, match=message) as caught:
        open_npz(path, tmp_path / "cache", memory_limit)
    assert str(path) in str(caught.value)
    assert ": " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [file for file in files_below(tmp_path / "cache") if file.suffix == ".tmp"]


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match=r"no file .*cells.npz: put your copy there"):
        open_npz(tmp_path / "cells.npz", tmp_path)
    with pytest.raises(WeightsmithError, match=r"`weightsmith download pathmnist --size 224 --to .*` fetches it"):
        open_npz(tmp_path / "pathmnist_224.npz", tmp_path)
    with pytest.raises(WeightsmithError, match=r"`weightsmith download bloodmnist --size 28` fetches it"):
        open_npz(Path("~/.medmnist/bloodmnist.npz").expanduser(), tmp_path)
    with pytest.raises(WeightsmithError, match="is a folder"):
        fingerprint(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_ends_in_another_exception(arrays: Arrays, tmp_path: Path, data: st.DataObject) -> None:
    good = bytearray(saved(arrays))
    headers = [i for i in range(len(good)) if good[i : i + 2] == b"PK" or good[i : i + 6] == b"\x93NUMPY"]
    start = data.draw(st.sampled_from(headers))
    for _ in range(data.draw(st.integers(1, 4))):
        place = min(start + data.draw(st.integers(0, 130)), len(good) - 1)
        good[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "cells.npz"
    path.write_bytes(good)
    for limit in (0, 2**20):
        try:
            open_npz(path, tmp_path / "cache", limit)
        except WeightsmithError as error:
            assert "cells.npz" in str(error)  # noqa: PT017 - most damage is found, and none is required to be


def test_real_histology_is_read(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "medmnist" / "histology_27.npz"
    small, large = open_npz(path, tmp_path), open_npz(path, tmp_path, memory_limit=2**20)
    assert small["train_images"].shape == (6816, 27, 27, 3)
    assert [len(small[f"{part}_labels"]) for part in ("train", "val", "test")] == [6816, 995, 2085]
    assert all(np.array_equal(small[key], large[key]) for key in small)
