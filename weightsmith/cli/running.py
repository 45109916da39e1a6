"""A call carried out: logged, told, and ended with the exit status that says how it went."""

from __future__ import annotations

import logging
import os
import sys

from rich.logging import RichHandler

from weightsmith.batches import REMEDY, out_of_memory
from weightsmith.cli.exits import INTERRUPTED, REFUSED
from weightsmith.cli.parsing import Call
from weightsmith.cli.starting import collector_paused
from weightsmith.cli.telling import tell, tell_error, tell_json
from weightsmith.errors import WeightsmithError
from weightsmith.files import cause_of, disk_is_full, recorded
from weightsmith.progress import CONSOLE
from weightsmith.ranks import led
from weightsmith.run.outcome import Outcome


def carried_out(call: Call) -> int:
    """Do what was asked, tell it, and return the exit status."""
    handler = RichHandler(console=CONSOLE, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    logger = logging.getLogger("weightsmith")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        with led(), recorded() as written:
            outcome = _outcome(call)
        if call.json:
            tell_json(outcome, written)
        else:
            tell(outcome)
        return outcome.status
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED.status
    except BaseException as error:
        told = _told(error)
        if told is None:  # a defect of ours: its traceback says where
            if call.json and isinstance(error, Exception):
                tell_error(f"{type(error).__name__}: {error}", REFUSED.status, as_json=True)
            raise
        text, status = told
        tell_error(text, status, as_json=call.json)
        return status


def _told(error: BaseException) -> tuple[str, int] | None:
    """(what to say of an error, the exit status); None for a defect."""
    if isinstance(error, WeightsmithError):
        return str(error), REFUSED.status
    if isinstance(error, KeyboardInterrupt):
        told = "stopped by Ctrl-C; what was finished is kept: give --resume and the run's --run-name to go on"
        return told, INTERRUPTED.status
    if isinstance(error, FileExistsError | NotADirectoryError):
        told = f"{error.filename} cannot be used ({error.strerror}): a file is where a folder should be, give another place"
        return told, REFUSED.status
    if out_of_memory(error):
        told = (
            f"memory ran out ({cause_of(error)}): {REMEDY}; where the command knows --batch-size or --batch-memory, give less, "
            "and --resume where it knows that"
        )
        return told, REFUSED.status
    if isinstance(error, OSError) and disk_is_full(error):
        told = f"the disk is full ({error.filename or 'while writing'}): free some space and give --resume to go on"
        return told, REFUSED.status
    return None


def _outcome(call: Call) -> Outcome:
    """What the command came to, or what it would do."""
    with collector_paused():
        does = call.command.planner() if call.dry_run else call.command.function()
    done: Outcome = does(call.options).outcome() if call.dry_run else does(call.options)
    return done
