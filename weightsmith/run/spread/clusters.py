"""Where joblib sends cells: processes of this machine, or a Ray or Dask cluster, there or started for the while.

Both clusters bring a joblib backend of their own. Ray's gives its results only when all are there, so that a command that is
killed would lose them; Dask's never returns when a worker is lost for good. `Futures` does neither: it is the documented
interface of a joblib backend over futures, which both clusters have.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from joblib.parallel import ParallelBackendBase

import weightsmith
from weightsmith.errors import WeightsmithError
from weightsmith.files import cause_of
from weightsmith.run.spread.interrupts import interrupts_held
from weightsmith.run.spread.settings import Settings, usable_cores
from weightsmith.run.spread.work import Answer, Failure

_log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds in which a cluster must answer."""
_STARTING = 60.0
"""Seconds in which its first worker must have imported weightsmith."""
_ANSWERING = 40.0
"""Seconds in which a process must have found a cluster at an address."""
_FINDS = {
    "ray": "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)",
    "dask": "import sys; from distributed import Client; Client(sys.argv[1], timeout='10s').close()",
}
_ANSWERED: set[str] = set()
"""Addresses at which a process found what it asked for; to find out takes seconds, so that it is done once."""
_TRIES = 2
"""Times that a cell is given to another worker when its own is lost."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Where cells go.

    Attributes:
        backend: as joblib takes it; jobs: cells at a time; told: what it is, in words.
    """

    backend: Any
    jobs: int
    told: str


class Futures(ParallelBackendBase):
    """A joblib backend over futures.

    Args:
        send: begins to call a function elsewhere, and gives a future with `add_done_callback` and `result`.
        cancel: ends the calls of such futures, or takes them off the queue.
    """

    supports_retrieve_callback = True

    def __init__(self, send: Callable[[Callable[[], Any]], Any], cancel: Callable[[list[Any]], None]) -> None:
        super().__init__()
        self._send, self._cancel = send, cancel
        self._sent = 0
        self._waiting: dict[int, Any] = {}

    def effective_n_jobs(self, n_jobs: int) -> int:
        """What joblib counts with: never one, at which it would call the functions itself."""
        return max(2, n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Any:
        """Begin a call; joblib hands them over in their order, so that the number of a call is that of its cell."""
        number, future = self._sent, self._send(func)
        self._sent += 1
        self._waiting[number] = future
        if callback is not None:
            future.add_done_callback(lambda done: callback((number, done)))
        return future

    def retrieve_result_callback(self, out: tuple[int, Any]) -> list[tuple[int, Answer]]:
        """What a call returned; of one whose worker was lost, that it failed, so that the others go on."""
        number, future = out
        self._waiting.pop(number, None)
        try:
            found: list[tuple[int, Answer]] = future.result()
        except Exception as error:
            why = f"its worker was lost ({type(error).__name__}: {cause_of(error)})"
            return [(number, Answer(Failure(why)))]
        return found

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: ARG002  (nothing is to be made ready)
        waiting, self._waiting = list(self._waiting.values()), {}
        self._cancel(waiting)


@contextmanager
def pool_of(settings: Settings, cells: int) -> Iterator[Pool]:
    """Where so many cells go. Raises `WeightsmithError` for a cluster that does not answer or cannot do it."""
    with {"processes": _processes, "ray": _ray, "dask": _dask}[settings.backend](settings, cells) as pool:
        yield pool


@contextmanager
def _processes(settings: Settings, cells: int) -> Iterator[Pool]:
    from joblib.externals.loky import get_reusable_executor

    assert settings.jobs is not None
    jobs = max(2, min(settings.jobs, cells))  # joblib would do with one what it is to do elsewhere
    try:
        yield Pool("loky", jobs, "processes of this machine")
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)  # each holds a model


@contextmanager
def _ray(settings: Settings, cells: int) -> Iterator[Pool]:
    import ray

    own = not ray.is_initialized()
    told = f"the Ray cluster at {settings.address}" if settings.address else "a Ray cluster of this machine"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if own and settings.address:
        if settings.address != "auto":
            _check_answers(settings, "Ray", "`ray start --head`")
        with _refused(settings, "Ray", "`ray start --head`"):
            ray.init(address=settings.address, **quiet)
    elif own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        wanted = _here(settings, cells) * settings.threads
        ray.init(address="local", num_cpus=wanted, include_dashboard=False, **quiet)
    try:
        room = sum(int(node["Resources"].get("CPU", 0)) // settings.threads for node in ray.nodes() if node["Alive"])
        if not room:
            raise WeightsmithError(
                f"{settings.named or '--backend ray'}: no machine of the cluster has {settings.threads} processors, which "
                "--threads asks for: start workers, or give fewer"
            )
        called = ray.remote(num_cpus=settings.threads, max_retries=_TRIES)(_called)
        with _refused(settings, "Ray", "one whose workers have weightsmith installed"):
            _check_worker(settings, ray.get(called.remote(here), timeout=_STARTING))

        def cancel(waiting: list[Any]) -> None:
            for future in waiting:
                ray.cancel(future.object_ref, force=True)

        def send(func: Callable[[], Any]) -> Any:
            reference = called.remote(func)
            future = reference.future()
            future.object_ref = reference
            return future

        yield Pool(Futures(send, cancel), settings.jobs or room, told)
    finally:
        if own:
            ray.shutdown()


@contextmanager
def _dask(settings: Settings, cells: int) -> Iterator[Pool]:
    from distributed import Client, LocalCluster

    cluster: Any = None
    if settings.address:
        told = f"the Dask cluster at {settings.address}"
        _check_answers(settings, "Dask", "`dask scheduler`")
        with _refused(settings, "Dask", "`dask scheduler`"):
            client = Client(settings.address, timeout=PATIENCE, set_as_default=False)
    else:
        told = "a Dask cluster of this machine"
        with interrupts_held():
            cluster = LocalCluster(
                n_workers=_here(settings, cells),
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=None,
                silence_logs=logging.CRITICAL,
            )
            client = Client(cluster, set_as_default=False)
    try:
        with _refused(settings, "Dask", "one whose workers have weightsmith installed (`dask worker`)"):
            client.wait_for_workers(1, timeout=PATIENCE)
            for answer in client.run(here).values():
                _check_worker(settings, answer)
        # Threads of one worker share a model, so that a worker counts as one, whatever it has of them.
        room = len(client.ncores())
        futures = Futures(lambda func: client.submit(_called, func, pure=False, retries=_TRIES), client.cancel)
        yield Pool(futures, settings.jobs or room, told)
    finally:
        client.close(timeout=PATIENCE)
        if cluster is not None:
            cluster.close(timeout=PATIENCE)


def _here(settings: Settings, cells: int) -> int:
    """Workers of a cluster that is started on this machine."""
    return min(settings.jobs or max(1, usable_cores() // settings.threads), cells)


def here() -> tuple[str, str]:
    """(version of weightsmith, name of the machine) where this is called."""
    return weightsmith.__version__, socket.gethostname()


def _called(func: Callable[[], Any]) -> Any:
    return func()


def _check_worker(settings: Settings, answer: tuple[str, str]) -> None:
    version, machine = answer
    if version != weightsmith.__version__:
        raise WeightsmithError(
            f"{settings.named or '--backend'}: {machine} has weightsmith {version} and this is {weightsmith.__version__}: "
            "install the same version there"
        )


@contextmanager
def _refused(settings: Settings, called: str, remedy: str) -> Iterator[None]:
    """Turn whatever a cluster that cannot be used makes its library raise into a sentence."""
    try:
        yield
    except WeightsmithError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {cause_of(error)}"
        raise WeightsmithError(
            f"{settings.named or 'the cluster of this machine'} cannot be used as a {called} cluster ({why}): give the address "
            f"of one that runs, {remedy}"
        ) from error


def _check_answers(settings: Settings, called: str, starts: str) -> None:
    """Raise `WeightsmithError` where nothing listens at the address: the libraries would try for minutes."""
    address = settings.address
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise WeightsmithError(f"{settings.named} is no address of a {called} cluster: give HOST:PORT")
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError as error:
        raise WeightsmithError(
            f"{settings.named}: no {called} cluster answers there ({cause_of(error)}): check the address, or start one with "
            f"{starts}"
        ) from error
    if address in _ANSWERED:
        return
    # Another server may listen, for which both libraries wait without end: in a process of its own that can be ended.
    try:
        subprocess.run(  # noqa: S603  (this Python)
            [sys.executable, "-c", _FINDS[settings.backend], address],
            capture_output=True,
            check=False,
            timeout=_ANSWERING,
        )
    except subprocess.TimeoutExpired as error:
        raise WeightsmithError(
            f"{settings.named}: what listens there is no {called} cluster, or does not answer in {_ANSWERING:g} s: check the "
            f"address, or start one with {starts}"
        ) from error
    _ANSWERED.add(address)
