"""Cells handed out: every one comes back, whatever becomes of the others and whoever measures them."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.spread import measures
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.run.options.spread import SpreadOptions
from weightsmith.run.spread import Failure, Settings, Sweep, check_spread, clusters, each, kept_failure, settings, work
from weightsmith.run.spread.settings import usable_cores

HERE = Settings("processes", 1, 1)


@pytest.fixture
def spread(flags: list[str]) -> Settings:
    """The settings of each backend in turn."""
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    jobs = int(given["--jobs"]) if "--jobs" in given else None
    address = given.get("--address", "")
    return Settings(given.get("--backend", "processes"), jobs, 1, address, f"--address {address}")


def sweep(place: Path, *cells: tuple[str, int], refused: str = "") -> Sweep:
    titles = [f"{kind} {number}" for kind, number in cells]
    return Sweep(cells, titles, partial(measures.measure, place), partial(measures.make, place, refused))


def found(place: Path, spread: Settings, *cells: tuple[str, int]) -> list[Any]:
    """What cells came to, in their order."""
    answers = dict(each(sweep(place, *cells), spread))
    return [answers[number] for number in range(len(cells))]


MANY = [("fine", number) for number in range(7)]


def test_every_cell_comes_back_and_what_fails_is_told(
    spread: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One sweep, for workers take seconds to begin: values, failures, warnings, bits, and where it was all measured."""
    cells = [("fine", 3), ("refused", 1), ("defect", 5), ("warned", 7), *[("random", size) for size in (150, 250)]]
    places = [("both", number) for number in range(6)]
    with caplog.at_level(logging.INFO, "weightsmith"):
        here = found(tmp_path, HERE, *cells)
        list(map(Path.unlink, tmp_path.glob("made-*")))
        there = found(tmp_path, spread, *cells, *places)
    assert [one for one in here if not isinstance(one, Failure)][:2] == [9, 49]
    assert [one.why for one in here if isinstance(one, Failure)] == [
        "1 cannot be measured: give another",
        "ZeroDivisionError: integer division or modulo by zero",
    ]
    assert [getattr(one, "why", one) for one in there[:6]] == [getattr(one, "why", one) for one in here]
    assert "number // 0" in there[2].trace
    assert there[1].trace == ""
    assert caplog.messages.count("refused 1 failed: 1 cannot be measured: give another") == 2
    assert "warned 7: 7 is odd" in caplog.messages
    assert "12 cells, 2 at a time, on " in caplog.text
    workers = {pid for pid, _, _ in there[6:]}
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert {(threads, folder) for _, threads, folder in there[6:]} == {(1, os.getcwd())}
    assert len(list(tmp_path.glob("made-*"))) == 2, "each of the two workers begins once"


def test_what_ends_every_sweep(spread: Settings, tmp_path: Path) -> None:
    for one in (HERE, spread):
        with pytest.raises(WeightsmithError, match="disk is full"):
            found(tmp_path, one, *MANY, ("full", 0), *MANY)
    with pytest.raises(HeldOutError, match="held-out data"):
        found(tmp_path, HERE, ("held out", 0))
    held_out = measured_elsewhere(("held out", 0), tmp_path)
    assert isinstance(held_out.ends, HeldOutError)


def measured_elsewhere(cell: tuple[str, int], place: Path) -> work.Answer:
    """What a worker would answer, without one."""
    return work.answered(work.Task(partial(measures.make, place), str(place), cell, 1, os.getcwd()))


def test_a_worker_that_cannot_begin(spread: Settings, tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match=f"a worker on {socket.gethostname()} cannot begin: no such model"):
        list(each(sweep(tmp_path, *MANY, refused="no such model: give another"), spread))


def test_a_worker_that_is_killed(spread: Settings, tmp_path: Path) -> None:
    """Processes: one sentence, and what was finished stays. Clusters try another worker, and then it has failed."""
    cells = [*MANY[:2], ("killed", 0), *MANY[2:5]]
    if spread.backend == "processes":
        with pytest.raises(WeightsmithError, match=r"ended from outside.*--resume"):
            found(tmp_path, spread, *cells)
        return
    answers = found(tmp_path, spread, *cells)
    assert isinstance(answers[2], Failure)
    assert "its worker was lost" in answers[2].why
    assert [answers[number] for number in (0, 1, 3, 4, 5)] == [0, 1, 4, 9, 16]


def test_nobody_is_left_behind_when_one_stops_listening(tmp_path: Path) -> None:
    answers = each(sweep(tmp_path, *[("where", number) for number in range(20)]), Settings("processes", 2, 1))
    _, (worker, *_) = next(answers)
    answers.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while measures.alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_threads_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    assert found(tmp_path, Settings("processes", 1, before + 1), ("where", 0))[0][1] == before + 1
    assert torch.get_num_threads() == before


def test_a_traceback_is_kept_beside_a_cell_until_it_is_measured(tmp_path: Path) -> None:
    cell = tmp_path / "memit-1.5-0.json"
    kept_failure(cell, Failure("ValueError: no", "Traceback ..."))
    assert (tmp_path / "memit-1.5-0.traceback.txt").read_text() == "Traceback ..."
    kept_failure(cell, Failure("it cannot be"))
    assert not list(tmp_path.iterdir())


# --- clusters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_cluster_is_started_where_none_is_named(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"ray": "ray", "dask": "distributed"}[backend])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert found(tmp_path, Settings(backend, 1, 1), *MANY) == [number**2 for number in range(7)]
    assert len(list(tmp_path.glob("made-*"))) == 1


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
        found(tmp_path, Settings(backend, None, 1, address, f"--address {address}"), *MANY)
    assert address in str(refused.value)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(("backend", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_a_server_that_is_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, package: str
) -> None:
    pytest.importorskip(package)
    monkeypatch.setattr(clusters, "_ANSWERING", 3.0)
    with silent_server() as port, pytest.raises(WeightsmithError, match="what listens there is no"):
        found(tmp_path, Settings(backend, None, 1, f"127.0.0.1:{port}", f"--address 127.0.0.1:{port}"), *MANY)


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


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_workers_of_another_version(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = request.getfixturevalue(f"{backend}_address")
    monkeypatch.setattr(clusters.weightsmith, "__version__", "9.9.9")
    with pytest.raises(WeightsmithError, match=r"and this is 9\.9\.9: install the same version there"):
        found(tmp_path, Settings(backend, None, 1, address, f"--address {address}"), *MANY)


def test_more_threads_than_any_machine_has(ray_address: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match="no machine of the cluster has 64 processors"):
        found(tmp_path, Settings("ray", None, 64, ray_address, f"--address {ray_address}"), *MANY)


# --- flags ----------------------------------------------------------------------------------------------------------


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
