"""`weightsmith bench`: a run, its journal and its page, opened together and closed together."""

from __future__ import annotations

import logging
import sys
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout

from weightsmith.errors import WeightsmithError
from weightsmith.files import remove, user_path, write_text
from weightsmith.progress import CONSOLE
from weightsmith.run.bench.guard import is_loopback
from weightsmith.run.bench.server import address_of, listening, serve
from weightsmith.run.bench.session import Session
from weightsmith.run.correct.corrections import Corrections, Sources, begun_with, corrections, image_job, is_image_run
from weightsmith.run.job import check_device
from weightsmith.run.options.bench import WorkbenchOptions
from weightsmith.run.outcome import Outcome
from weightsmith.run.session import at_least
from weightsmith.stream import TrustOptions

_log = logging.getLogger(__name__)

_NEEDS = ("gradio", "fastapi", "uvicorn")


def bench(options: WorkbenchOptions) -> Outcome:
    """Open the page of a run and answer until Ctrl-C; the corrected classifier is written when the page is closed.

    Raises:
        WeightsmithError: bad options, no Gradio, a port in use, a run that cannot be corrected or has a bench open.
    """
    _check(options)
    run = user_path(options.run)
    if not is_image_run(run):
        image_job(options.run)  # which says what it is
    with only_one(run) as told, listening(options.host, options.port) as bound, opened(options) as held:
        from weightsmith.run.bench.page import app  # Gradio is imported here and nowhere else

        session, address = Session(held, options.max_images), address_of(bound)
        told(address)
        if not is_loopback(options.host):
            _log.warning(
                "--host %s: everybody who reaches this machine can change the run; --host 127.0.0.1 keeps it to this one",
                options.host,
            )
        said = f"[bold]{address}[/] is open; Ctrl-C closes it, and every edit that was kept stays"
        CONSOLE.print(said, soft_wrap=True)  # not among what is told at the end
        if options.open_browser and sys.stdout.isatty():
            webbrowser.open(address)
        page = app(session, f"{run.absolute().name}: correct the classifier", options.host, options.port)
        try:
            serve(page, bound, options.host)
        except KeyboardInterrupt:
            _log.info("the page is closed")
        if not session.summary().saved:
            session.save()
        left = len(held.stream.edits())
    return Outcome(
        command="bench",
        folder=run,
        figures={"in_force": left},
        summary=[f"{left} edits are in force"],
        closing=f"holds {left} edits in force; weightsmith edits lists them",
    )


@contextmanager
def opened(options: WorkbenchOptions) -> Iterator[Corrections]:
    """The run's corrections, begun or gone on with."""
    begun = begun_with(options.run)
    if begun is not None and options.edit_from not in (None, begun.edit_from):
        raise WeightsmithError(
            f"the errors that {options.run} has edits of come from {begun.edit_from}: leave out --edit-from "
            f"{options.edit_from}, or move the folder edits away to begin a new journal"
        )
    edit_from = options.edit_from if begun is None else begun.edit_from
    job = image_job(
        options.run,
        edit_from=edit_from,
        stream_ratio=options.stream_ratio if begun is None else begun.stream_ratio,
        data_path=options.data_path,
        cache_dir=options.cache_dir,
        device=options.device,
    )
    if edit_from is None and job.options.edit_from == "train":  # a run's default, of which few are wrong
        job.options = replace(job.options, edit_from="val")
    trust = TrustOptions(
        threshold=options.trust_threshold,
        action=options.trust_action,
        heldout_samples=options.trust_heldout_samples,
        seed=job.options.seed,
    )
    sources = Sources(
        edit_from=job.options.edit_from,
        stream_ratio=job.options.stream_ratio,
        max_images=options.max_images,
        max_preserved=options.max_preserved,
        trust=asdict(trust),
    )
    with job.folder.logged(), corrections(job, sources, options.edit_method, options.reach) as held:
        yield held


@contextmanager
def only_one(run: Path) -> Iterator[Callable[[str], None]]:
    """Keep a second bench away from a run, whose message tells the address of the first.

    Yields:
        what to tell the address to.

    Raises:
        WeightsmithError: there is one already.
    """
    lock, note = FileLock(run / ".bench.lock"), run / ".bench.address"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        where = f" at {note.read_text(encoding='utf-8').strip()}" if note.is_file() else ""
        raise WeightsmithError(f"{run} has a bench open already{where}: use that page, or close it first") from error
    try:
        yield lambda address: write_text(note, address + "\n")
    finally:
        remove(note)
        lock.release()


def _check(options: WorkbenchOptions) -> None:
    """Everything that can be known to be wrong before the run is opened."""
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise WeightsmithError(f"the page needs {missing[0]}, which is not installed: pip install 'weightsmith[app]'")
    at_least(options, {"max_images": 2, "max_preserved": 1})
    check_device(options.device)
