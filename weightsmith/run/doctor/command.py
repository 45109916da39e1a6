"""`weightsmith doctor`: every check, and what a person or a program is told of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith.errors import WeightsmithError
from weightsmith.files import default_cache_dir, user_path
from weightsmith.run.doctor import hardware, places, software
from weightsmith.run.doctor.check import Check, State
from weightsmith.run.doctor.child import asked
from weightsmith.run.options.doctor import DoctorOptions
from weightsmith.run.outcome import Outcome

_MARKS: dict[State, tuple[str, str]] = {
    "fine": ("fine", "green"),
    "broken": ("broken", "bold red"),
    "slow": ("slow", "yellow"),
    "absent": ("absent", "dim"),
}


def doctor(options: DoctorOptions) -> Outcome:
    """Look at everything; the status of the outcome is 1 where something is broken.

    Raises:
        WeightsmithError: a timeout that is none.
    """
    if not 0 < options.timeout < math.inf:
        raise WeightsmithError(f"--timeout must be a positive number of seconds, not {options.timeout:g}: give 5 say")
    found = checks(options)
    broken = [one.name for one in found if one.state == "broken"]
    told = f"Broken: {', '.join(broken)}." if broken else "Nothing is broken."
    return Outcome(
        command="doctor",
        figures={"checks": [asdict(one) for one in found]},
        summary=[told],
        notes=[f"{one.name}: {one.remedy}" for one in found if one.remedy],
        shown=[_table(found), told],
        status=1 if broken else 0,
    )


def checks(options: DoctorOptions) -> list[Check]:
    """Every check. Children, which import what may be broken, run beside each other and beside the question to the hub."""
    cache = user_path(options.cache_dir) if options.cache_dir else default_cache_dir()
    runs = user_path(options.runs_dir)
    with ThreadPoolExecutor(4) as pool:
        torch = pool.submit(asked, hardware.TORCH)
        models = pool.submit(asked, software.TRANSFORMERS)
        vision = pool.submit(asked, software.TORCHVISION) if software.installed("torchvision") else None
        hub = pool.submit(places.hub, options.timeout)
        gpus, cores = hardware.gpus_there(), hardware.usable_cores()
        return [
            software.python(),
            *software.needed(),
            hardware.torch_build(torch.result(), gpus),
            hardware.gpu(gpus),
            hardware.threads(torch.result(), cores),
            software.transformers(models.result()),
            software.torchvision(None if vision is None else vision.result()),
            places.cache(cache),
            places.disk(cache, "the cache"),
            places.runs(runs),
            places.disk(runs, "runs"),
            hub.result(),
            *software.optional(),
        ]


def _table(found: Sequence[Check]) -> Table:
    """A row a check, its remedy under it."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in found:
        word, style = _MARKS[one.state]
        told = Text(one.found)
        if one.remedy:
            told.append(f"\nremedy: {one.remedy}", style="bold" if one.state == "broken" else "italic")
        table.add_row(Text(word, style=style), Text(one.name), told)
    return table
