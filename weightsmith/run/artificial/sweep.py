"""The sweep of `weightsmith artificial`: every operation and coefficient, judged on each data set with its own head."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any, cast

from weightsmith import __version__, report
from weightsmith.errors import WeightsmithError
from weightsmith.files import DAMAGED, read_csv, write_csv, write_json, write_text
from weightsmith.merge.task_vector import TaskVector
from weightsmith.merge.vectors.operations import Mode, Operation
from weightsmith.models import Model
from weightsmith.models.heads import head_names
from weightsmith.report.arithmetic import best_choice, choice_table, choices, sweep_figure
from weightsmith.report.arithmetic_page import ArithmeticInputs, build_arithmetic
from weightsmith.run.artificial.data import Task, read_data
from weightsmith.run.artificial.networks import BASE, FINETUNED, notes_of, stored
from weightsmith.run.artificial.pair import pair_of
from weightsmith.run.cells import key_of
from weightsmith.run.folder import RunFolder
from weightsmith.run.job import check_device
from weightsmith.run.judges import Judge, columns, on_test, on_validation, with_backbone
from weightsmith.run.options.artificial import ArtificialOptions
from weightsmith.run.outcome import PARTLY, Outcome
from weightsmith.run.spread import (
    CELL_THREADS,
    Failure,
    Measure,
    Sweep,
    check_folder,
    each,
    settings_of,
    to_redo,
)

_log = logging.getLogger(__name__)

CELLS = "cells"
TABLE, REFERENCES, CHOICES, FIGURE, RECORD, PAGE = (
    "sweep.csv", "references.csv", "choices.csv", "figures/sweep.png", "sweep.json", "report.html",
)  # fmt: skip
FILES = (TABLE, REFERENCES, CHOICES, FIGURE, RECORD, PAGE)
HEADS = (
    "Heads are never part of the arithmetic: each data set is judged with the head that was trained on it, whatever the "
    "backbone under it. A head is found by its role in the network, not by its name."
)
Rows = list[dict[str, object]]
Cell = tuple[str, str, float]
"""Operation, mode and coefficient."""


@dataclass(frozen=True)
class Swept:
    """What a sweep came to: its rows, what each untouched backbone reaches, the coefficients that validation chose, notes, and
    what failed, with how to redo it.
    """

    rows: Rows
    references: Rows
    choices: Rows
    notes: Sequence[str]
    redo: Sequence[str]


def swept_tables(options: ArtificialOptions, folder: RunFolder, tasks: tuple[Task, Task], device: str) -> Swept:
    """The sweep of the networks that the earlier stages left, on both tables."""
    return _of_tables(options, folder, tasks, device).done()


def swept_pair(options: ArtificialOptions, folder: RunFolder, device: str) -> Swept:
    """The sweep of a pair of image classifiers that the user names."""
    found = _Sweep(options, folder, *pair_of(options, device))
    folder.write_env(device=device, data={one.name: one.digests() for one in found.judges}, seed=options.seed)
    return found.done()


def elsewhere(options: ArtificialOptions, folder: RunFolder) -> Measure:
    """What measures coefficients in a worker. Raises as `swept_tables` and `swept_pair`."""
    check_folder(folder.path)
    device = check_device(options.device)
    if options.pretrained is not None:
        return _Sweep(options, folder, *pair_of(options, device)).measure
    return _of_tables(options, folder, read_data(options, folder), device).measure


def _of_tables(options: ArtificialOptions, folder: RunFolder, tasks: tuple[Task, Task], device: str) -> _Sweep:
    base, fine = stored(folder, BASE, device), stored(folder, FINETUNED, device)
    judges = [
        Judge(task.name, model, task.split.val, task.split.held_out)
        for task, model in zip(tasks, (base, fine), strict=True)
    ]
    return _Sweep(options, folder, base, fine, judges, [*notes_of(folder, BASE), *notes_of(folder, FINETUNED)])


@dataclass(frozen=True, eq=False)
class _Sweep:
    """One sweep: w and f, and judges whose networks bring a head each."""

    options: ArtificialOptions
    folder: RunFolder
    base: Model
    fine: Model
    judges: list[Judge]
    notes: list[str]

    def done(self) -> Swept:
        """Measure what is not measured yet, and write the tables and the figure."""
        options, out = self.options, self.folder.results
        ways = list(product(options.operations, options.modes))
        rows, redo = self._measured([(*way, coefficient) for way in ways for coefficient in options.coefficients])
        references = [
            {"backbone": name, "data": one.name, **judge(one)}
            for name, model in ((BASE, self.base), (FINETUNED, self.fine))
            for one in (with_backbone(other, model) for other in self.judges)
        ]
        chance = {one.name: 1 / one.model.n_classes for one in self.judges}
        chosen = choices(rows)
        write_csv(out / TABLE, rows)
        write_csv(out / REFERENCES, references)
        write_csv(out / CHOICES, chosen)
        report.save(sweep_figure(rows, references, chance), out / FIGURE)
        made = {f"{operation}, {mode}": self._vectors[operation, mode].info for operation, mode in ways}
        notes = [HEADS, *self.notes, *redo]
        write_json(out / RECORD, {"notes": notes, "chance": chance, "vectors": made, "best": best_choice(chosen)})
        self._write_page(rows, references, chosen, chance, notes)
        for note in notes:
            _log.info(note)
        return Swept(rows, references, chosen, notes, redo)

    def _write_page(
        self, rows: Rows, references: Rows, chosen: Rows, chance: dict[str, float], notes: Sequence[str]
    ) -> None:
        out = self.folder.results
        training = {which: out / f"{which}_training.csv" for which in (BASE, FINETUNED)}
        inputs = ArithmeticInputs(
            title=f"{self.folder.path.name}: task arithmetic",
            sweep=rows,
            references=references,
            choices=chosen,
            chance=chance,
            training={which: read_csv(path) for which, path in training.items() if path.exists()},
            notes=notes,
            config=asdict(self.options),
            env=self.folder.env(),
        )
        write_text(out / PAGE, build_arithmetic(inputs))

    def _vector(self, operation: str, mode: str) -> TaskVector:
        heads = {*head_names(self.base), *head_names(self.fine)}
        try:
            return TaskVector(
                self.base.module,
                self.fine.module,
                cast(Operation, operation),
                cast(Mode, mode),
                without=heads,
            )
        except WeightsmithError as error:
            if self.options.pretrained is None:
                raise
            raise WeightsmithError(f"--pretrained and --finetuned are no pair: {error}") from error

    def measure(self, cell: Cell) -> Rows:
        """The rows of an operation, a mode and a coefficient, one a judge."""
        operation, mode, coefficient = cell
        rows: Rows = []
        for one in self._start:
            with self._vectors[operation, mode].on(one.model, coefficient):
                measured = judge(one)
            rows.append(
                {"operation": operation, "mode": mode, "coefficient": coefficient, "data": one.name, **measured}
            )
        return rows

    @cached_property
    def _start(self) -> list[Judge]:
        return [with_backbone(one, self.base) for one in self.judges]

    @cached_property
    def _vectors(self) -> dict[tuple[str, str], TaskVector]:
        ways = product(self.options.operations, self.options.modes)
        return {(operation, mode): self._vector(operation, mode) for operation, mode in ways}

    def _measured(self, cells: Sequence[Cell]) -> tuple[Rows, list[str]]:
        """(the rows of all cells, in their order, and why some failed); what is there already is not measured again."""
        spread = settings_of(self.options, self.folder)
        self.folder.write_env(**{CELL_THREADS: spread.threads})
        places = {cell: self.folder.path / CELLS / f"{cell[0]}-{cell[1]}-{cell[2]!r}.json" for cell in cells}
        keys = {cell: self._key(self._vectors[cell[:2]], cell[2]) for cell in cells}
        known = {cell: _kept(places[cell], keys[cell]) for cell in cells}
        found = {cell: rows for cell, rows in known.items() if rows is not None}
        waiting = [cell for cell in cells if cell not in found]
        titles = [f"{operation}, {mode}, coefficient {coefficient:g}" for operation, mode, coefficient in waiting]
        make = partial(elsewhere, self.options, self.folder)
        failed: list[tuple[str, str]] = []
        for number, measured in each(
            Sweep(waiting, titles, self.measure, make, called="coefficient", short=True), spread
        ):
            cell = waiting[number]
            if isinstance(measured, Failure):
                failed.append((titles[number], measured.why))
                continue
            write_json(places[cell], {"key": keys[cell], "rows": measured})
            found[cell] = measured
        if not found:
            raise WeightsmithError(f"no coefficient could be measured: {failed[0][1]}")
        redo = to_redo("artificial", self.folder, failed, len(cells), "log.txt", "coefficients")
        return [row for cell in cells if cell in found for row in found[cell]], redo

    def _key(self, vector: TaskVector, coefficient: float) -> str:
        """SHA-256 of everything that a cell depends on."""
        made = {name: vector.info[name] for name in ("operation", "mode", "pretrained", "finetuned", "without")}
        heads = [one.model.fingerprint() for one in self.judges]
        data = [one.digests() for one in self.judges]
        return key_of(
            {"version": __version__, "vector": made, "coefficient": coefficient, "heads": heads, "data": data}
        )


def judge(one: Judge) -> dict[str, object]:
    """Accuracy of the judge's network: on validation samples, and on the sealed test samples."""
    return columns("val", on_validation(one)) | columns("test", on_test(one))


def _kept(place: Any, key: str) -> Rows | None:
    """The rows of a cell that was measured with the same; None where there is none, or a damaged one."""
    try:
        entries = json.loads(place.read_text(encoding="utf-8"))
        return cast(Rows, entries["rows"]) if entries["key"] == key else None
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        _log.warning("%s is damaged and measured again: %s", place, error)
        return None


def outcome(folder: RunFolder, found: Swept | None) -> Outcome:
    """What there is to tell of a run; without a sweep, where it lies."""
    if found is None:
        return Outcome(command="artificial", folder=folder.path)
    return Outcome(
        command="artificial",
        folder=folder.path,
        page=folder.results / PAGE,
        figures={"choices": found.choices, "references": found.references},
        notes=found.notes,
        shown=[choice_table(found.choices, found.references), *found.redo],
        status=PARTLY if found.redo else 0,
    )
