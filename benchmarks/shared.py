"""What benchmarks of more than one room share: train once a seed, and keep rows of earlier runs beside new ones."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import weightsmith as ws
from weightsmith.data.split import Split
from weightsmith.files import read_csv, write_csv, write_json
from weightsmith.models import create, load, presets, save
from weightsmith.run.folder import environment
from weightsmith.run.job import save_indices
from weightsmith.train import TrainOptions, fit


def trained(preset: str, split: Split, seed: int, work: Path, **recipe: Any) -> tuple[ws.Model, float]:
    """The preset's model for a seed, from `work` if it was trained before, and the seconds that training took."""
    folder = work / f"{preset}-{seed}"
    clock = folder / "seconds.json"
    folder.mkdir(parents=True, exist_ok=True)
    save_indices(folder, split.parts())  # so that a command that is given the model knows what is held out
    write_json(folder / "data_split.json", split.manifest())
    if clock.exists():
        return load(folder / "model"), json.loads(clock.read_text())
    model = create(preset, split.train.class_names, seed, split.train.channels)
    started = time.perf_counter()
    options = TrainOptions(seed=seed, **presets()[preset]["training"] | recipe)
    fit(model, split.train, split.val, options, folder / "checkpoint.pt", resume=True)
    seconds = time.perf_counter() - started
    save(model, folder / "model")
    write_json(clock, seconds)
    return model, seconds


def keep(
    rows: Sequence[Mapping[str, object]],
    folder: Path,
    name: str,
    keys: Sequence[str] = ("protocol", "seed", "method"),
    packages: Mapping[str, str] | None = None,
) -> None:
    """Write the rows as CSV and the machine beside them; rows of an earlier run that this one did not measure stay.

    Args:
        keys: columns that say what a row measured.
        packages: versions of peers, by name.
    """
    path = folder / f"{name}.csv"
    measured = {tuple(str(row[key]) for key in keys) for row in rows}
    old = list(read_csv(path)) if path.exists() else []
    kept = [row for row in old if tuple(row[key] for key in keys) not in measured]
    write_csv(path, [*kept, *rows])
    machine = environment()
    machine["packages"] |= packages or {}
    write_json(folder / "machine.json", machine)


def held() -> int:
    """Bytes of memory that this process holds when freed memory has gone back to the system; its peak begins anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """Bytes that this process held at most since its peak was begun anew."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
