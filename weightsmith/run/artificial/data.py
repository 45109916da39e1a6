"""The tables of `weightsmith artificial`: made and written as CSV, or given; read back, split and recorded."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

from weightsmith.data.artificial import tasks
from weightsmith.data.split import Source, Split
from weightsmith.data.tables import open_table, write_table
from weightsmith.errors import WeightsmithError
from weightsmith.files import DAMAGED, user_path, write_json
from weightsmith.run.cells import key_of
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.artificial import ArtificialOptions

_log = logging.getLogger(__name__)

DATA, RECORD = "data", "data.json"
NAMES = ("dataset1", "dataset2")
"""The base's table, and the one that is fine-tuned on."""


@dataclass(frozen=True, eq=False)
class Task:
    """One table with its split; `name` is what figures call it."""

    name: str
    source: Source
    split: Split

    @property
    def width(self) -> int:
        """How many features a row has."""
        return self.source.part("train").channels

    def digests(self) -> dict[str, str]:
        """Part → hash of which rows it holds."""
        return {name: rows.digest() for name, rows in self.split.parts().items()}


def make_data(options: ArtificialOptions, folder: RunFolder) -> None:
    """Write the tables that are not given, and `data.json`, which says what they are and how they are split.

    Raises:
        WeightsmithError: a bad table, or two of different width.
    """
    record = folder.path / RECORD
    if record.is_file() and not options.overwrite:
        _log.info("the data are there already")
        return
    for name, task, given in zip(NAMES, tasks(options.preset), _given(options), strict=True):
        if given is None:
            features, labels = task.make()
            write_table(folder.path / DATA / f"{name}.csv", features, labels)
            _log.info("%s: %d rows of %d features, %d classes", name, *features.shape, task.n_classes)
    found = _opened(options, folder)
    asked = [None if path else asdict(task) for task, path in zip(tasks(options.preset), _given(options), strict=True)]
    entries = [
        {"name": task.name, "made": made, "source": task.source.name, "features": task.width}
        | {"classes": task.source.n_classes, "key": _key(task), "split": task.split.manifest()}
        for task, made in zip(found, asked, strict=True)
    ]
    write_json(record, {"tasks": entries})


def read_data(options: ArtificialOptions, folder: RunFolder) -> tuple[Task, Task]:
    """The tables as the data stage recorded them.

    Raises:
        WeightsmithError: nothing recorded, a bad table, or one that has changed since.
    """
    record = folder.path / RECORD
    try:
        recorded: list[dict[str, Any]] = json.loads(record.read_text(encoding="utf-8"))["tasks"]
        keys = [entry["key"] for entry in recorded]
    except FileNotFoundError:
        raise WeightsmithError(f"{record} is missing: run --stage data first") from None
    except DAMAGED as error:
        raise WeightsmithError(f"{record} is damaged: run --stage data --overwrite") from error
    found = _opened(options, folder)
    for task, key in zip(found, keys, strict=True):
        if _key(task) != key:
            raise WeightsmithError(
                f"{task.source.name} is not as the data stage recorded it in {record}: the table changed; give another "
                "--run-name, or run --stage data --overwrite"
            )
    return found


def _given(options: ArtificialOptions) -> tuple[str | None, str | None]:
    return options.base_data, options.finetune_data


def _opened(options: ArtificialOptions, folder: RunFolder) -> tuple[Task, Task]:
    sources = [
        open_table(user_path(given) if given else folder.path / DATA / f"{name}.csv")
        for name, given in zip(NAMES, _given(options), strict=True)
    ]
    first, second = (
        Task(name, source, source.split(options.held_out_ratio, options.seed, options.val_ratio))
        for name, source in zip(NAMES, sources, strict=True)
    )
    if first.width != second.width:
        raise WeightsmithError(
            f"the tables have {first.width} and {second.width} features: give --base-data and --finetune-data of one width"
        )
    return first, second


def _key(task: Task) -> str:
    return key_of({"source": task.source.part("train").source, "parts": task.digests()})
