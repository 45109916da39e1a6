"""Flags of sweeps that cannot be meant, and clusters that are not there."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.run.conftest import assert_refused
from tests.run.spread.checks import MANY, ablation, comparison, found, settings_at
from weightsmith.errors import WeightsmithError
from weightsmith.run.options.spread import SpreadOptions
from weightsmith.run.spread import check_spread, clusters, settings
from weightsmith.run.spread.settings import usable_cores


@pytest.mark.parametrize(("backend", "package"), [("ray", "ray"), ("dask", "distributed")])
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nowhere", "is no address of a"),
        ("127.0.0.1:{closed}", "answers there"),
        ("tcp://127.0.0.1:x", "is no address"),
    ],
)
def test_a_cluster_that_is_not_there(tmp_path: Path, backend: str, package: str, address: str, words: str) -> None:
    pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = address.format(closed=free.getsockname()[1])
    started = time.monotonic()
    with pytest.raises(WeightsmithError, match=words) as refused:
        found(tmp_path, settings_at(backend, address), *MANY)
    assert address in str(refused.value)
    assert time.monotonic() - started < 60, "the libraries would try for minutes"


@pytest.mark.parametrize(("backend", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_a_server_that_is_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, package: str
) -> None:
    pytest.importorskip(package)
    monkeypatch.setattr(clusters, "_ANSWERING", 3.0)
    with silent_server() as port, pytest.raises(WeightsmithError, match="what listens there is no"):
        found(tmp_path, settings_at(backend, f"127.0.0.1:{port}"), *MANY)


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for one in kept:
            one.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SpreadOptions(jobs=0), "--jobs must be at least 1, not 0"),
        (SpreadOptions(threads=0), "--threads must be at least 1, not 0"),
        (SpreadOptions(address="127.0.0.1:6379"), "--address 127.0.0.1:6379 is of a cluster"),
    ],
)
def test_flags_that_cannot_be_meant(options: SpreadOptions, words: str) -> None:
    with pytest.raises(WeightsmithError, match=words):
        check_spread(options)


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_backend_that_is_not_installed(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda _: None)
    with pytest.raises(
        WeightsmithError, match=r'--backend \w+ needs the package \w+: pip install "weightsmith\[cluster\]"'
    ):
        check_spread(SpreadOptions(backend=backend))
    check_spread(SpreadOptions(jobs=2))


def test_this_machine_has_processors() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--jobs", 0], ["--jobs must be at least 1"]),
        (["--threads", -1], ["--threads must be at least 1"]),
        (["--address", "127.0.0.1:8786"], ["--address 127.0.0.1:8786", "--backend ray or --backend dask"]),
        (["--backend", "dask", "--address", "127.0.0.1:1"], ["--address 127.0.0.1:1", "no Dask cluster answers there"]),
        (["--backend", "ray", "--address", "nowhere"], ["--address nowhere is no address of a Ray cluster"]),
    ],
)
@pytest.mark.parametrize("command", ["compare", "ablate"])
def test_bad_flags(
    weightsmith, finished: Path, tmp_path: Path, command: str, flags: list[object], words: list[str]
) -> None:
    pytest.importorskip("ray" if "ray" in flags else "distributed" if "dask" in flags else "joblib")
    given = comparison(finished, tmp_path) if command == "compare" else ablation(finished, tmp_path, "lora")
    assert_refused(weightsmith(*given, *flags), words)
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_a_backend_that_is_nearly_right(weightsmith, finished: Path, tmp_path: Path) -> None:
    outcome = weightsmith(*comparison(finished, tmp_path, "--backend", "rai"))
    assert outcome.status == 2
    assert "ray" in outcome.err
