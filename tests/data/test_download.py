from __future__ import annotations

import errno
import hashlib
import http.server
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from weightsmith.data import download as module
from weightsmith.data.download import download, known_file, known_sets
from weightsmith.errors import WeightsmithError

CONTENT = os.urandom(700_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `CONTENT`; `behaviour` says how well, `asked` keeps the Range of every request."""

    behaviour = "ranges"

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/cells.npz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        behaviour = self.server.behaviour
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if behaviour == "missing":
            self.send_error(404)
            return
        if behaviour == "no ranges":
            start = 0
        if behaviour == "other piece" and asked:
            start -= 1
        if asked and start >= len(CONTENT):
            self.send_response(416)
            if behaviour != "no length":
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        partial = asked is not None and behaviour != "no ranges"
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if behaviour == "breaks off" else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: Server, to: Path, **changes: str) -> Path:
    return download("pathmnist", 28, to, **({"url": server.url, "md5": MD5} | changes), timeout=5)


def test_a_file_is_fetched_whole_and_once(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "pathmnist.npz"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert fetch(server, path.parent) == path
    assert server.asked == [None]


@pytest.mark.parametrize(
    ("behaviour", "requests"),
    [
        ("ranges", ["bytes=300000-"]),
        ("no ranges", ["bytes=300000-"]),
        ("other piece", ["bytes=300000-", None]),
    ],
)
def test_a_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, behaviour: str, requests: list[str | None]
) -> None:
    server.behaviour = behaviour
    (tmp_path / "pathmnist.npz.part").write_bytes(CONTENT[:300_000])
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == requests


@pytest.mark.parametrize("behaviour", ["ranges", "no length"])
def test_a_part_file_that_is_complete_is_taken(server: Server, tmp_path: Path, behaviour: str) -> None:
    server.behaviour = behaviour
    (tmp_path / "pathmnist.npz.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_file_that_is_too_long_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pathmnist.npz.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_broken_connection_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.behaviour = "breaks off"
    with pytest.raises(WeightsmithError, match=r"broke off .*goes on from .*pathmnist\.npz\.part"):
        fetch(server, tmp_path)
    part = tmp_path / "pathmnist.npz.part"
    assert CONTENT.startswith(part.read_bytes())
    assert part.stat().st_size > 0
    server.behaviour = "ranges"
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[1] is not None


def test_a_wrong_sum_is_named_and_its_file_removed(server: Server, tmp_path: Path) -> None:
    expected = "0" * 32
    with pytest.raises(WeightsmithError, match=rf"pathmnist\.npz\.part is {MD5} instead of {expected}"):
        fetch(server, tmp_path, md5=expected)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_sum_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pathmnist.npz").write_bytes(b"mine")
    with pytest.raises(WeightsmithError, match=r"pathmnist\.npz is there but its MD5 .*move or remove it"):
        fetch(server, tmp_path)
    assert (tmp_path / "pathmnist.npz").read_bytes() == b"mine"


def by_hand(url: str, to: Path) -> str:
    return re.escape(f"fetch {url} (MD5 {MD5}) on a machine with internet and place it at {to / 'pathmnist.npz'}")


def test_without_an_answer_the_way_by_hand_is_told(server: Server, tmp_path: Path) -> None:
    server.behaviour = "missing"
    with pytest.raises(WeightsmithError, match=f"answered 404 .*{by_hand(server.url, tmp_path)}"):
        fetch(server, tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/cells.npz"
    for url in (closed, "http://no-such-host.invalid/cells.npz"):
        with pytest.raises(WeightsmithError, match=f"cannot be reached .*{by_hand(url, tmp_path)}"):
            fetch(server, tmp_path, url=url)
    for url in ("file:///etc/hosts", "cells.npz"):
        with pytest.raises(WeightsmithError, match="is no web address"):
            fetch(server, tmp_path, url=url)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(WeightsmithError, match=rf"{tmp_path} has .* GiB free .*--to"):
        fetch(server, tmp_path)


def test_a_disk_that_fills_keeps_the_part(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received = module._received

    def filling(*args: object) -> Iterator[bytes]:
        yield next(received(*args))  # type: ignore[arg-type]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_received", filling)
    with pytest.raises(WeightsmithError, match=r"is full: .*goes on from .*pathmnist\.npz\.part"):
        fetch(server, tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    assert (tmp_path / "pathmnist.npz.part").stat().st_size > 0
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsmithError, match=r"pathmnist\.npz\.part cannot be written .*--to"):
        fetch(server, tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("pathmnits", 224, "no MedMNIST set 'pathmnits': did you mean 'pathmnist'"),
        ("chestmnist", 224, "chestmnist is multi-label"),
        ("organmnist3d", 64, "organmnist3d is three-dimensional"),
        ("pathmnist", 100, "--size 100 of pathmnist does not exist: give one of 28, 64, 128, 224"),
    ],
)
def test_an_unknown_set_or_size_is_answered(tmp_path: Path, name: str, size: int, message: str) -> None:
    with pytest.raises(WeightsmithError, match=message):
        download(name, size, tmp_path)


def test_the_table_holds_together() -> None:
    sets = known_sets()
    assert len(sets) == 11
    for known in sets.values():
        assert len(known.class_names) == known.n_classes >= 2
        assert set(known.n_samples) == {"train", "val", "test"}
        assert sorted(known.files) == [28, 64, 128, 224]
        for size, file in known.files.items():
            assert re.fullmatch(r"[0-9a-f]{32}", file.md5)
            assert f"/{known.file_name(size)}?" in file.url
    assert len({file.md5 for known in sets.values() for file in known.files.values()}) == 44
    path = sets["pathmnist"]
    assert (path.n_classes, path.n_channels, path.n_samples["train"]) == (9, 3, 89_996)


def test_names_of_published_files_are_recognised() -> None:
    path = known_sets()["pathmnist"]
    assert known_file(Path("x/pathmnist_224.npz")) == (path, 224)
    assert known_file(Path("PathMNIST.npz")) == (path, 28)
    assert known_file(Path("cells_224.npz")) is None
    assert known_file(Path("pathmnist_224_mine.npz")) is None
