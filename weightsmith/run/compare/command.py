"""`weightsmith compare`: editing methods side by side, over batch sizes and seeds, on the same requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

from weightsmith import __version__, report
from weightsmith.delta import Delta
from weightsmith.edit import editors
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import user_path, write_csv, write_json, write_text
from weightsmith.report.comparison import comparison_figures, comparison_table
from weightsmith.report.comparison_page import ComparisonInputs, build_comparison, shown_table
from weightsmith.run.cells import Cell, failures, file_of, key_of
from weightsmith.run.compare.benches import ImageBench, TextBench
from weightsmith.run.compare.benching import METHODS, bench_of
from weightsmith.run.compare.draws import PLAN, REQUESTS, Plan
from weightsmith.run.compare.planned import check_planned, planned
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.knowledge import CompareOptions
from weightsmith.run.outcome import PARTLY, Outcome
from weightsmith.run.session import Kin, at_least, distinct, session
from weightsmith.run.spread import (
    Failure,
    Measure,
    Settings,
    Sweep,
    check_folder,
    check_spread,
    each,
    kept_failure,
    settings_of,
    to_redo,
)

_log = logging.getLogger(__name__)

ROWS, TABLE = "baseline_comparison.csv", "comparison_table.csv"

KIN = Kin(
    commands=("compare",),
    called="compare",
    another="another command",
    results=(PLAN, REQUESTS, ROWS, TABLE, "figures", "summary.json", "report.html"),
    inside=("cells",),
    worth=("cells/*.json",),
)


def compare(options: CompareOptions) -> Outcome:
    """Measure every method with every batch size and seed.

    A cell is one batch of edits on the unedited model. Each is kept when it is measured, so a comparison that was
    stopped goes on where it was; one that cannot be measured says why, and the others are measured all the same.

    Raises:
        WeightsmithError: bad options or data, in one sentence; a run that exists without `resume` or `overwrite`.
    """
    check_options(options)
    stem = "again" if options.requests is not None else user_path(options.data_path).stem
    with session(options, "compare", KIN, f"{stem}-compare") as folder:
        notes: list[str] = []
        bench, sizes, seeds = bench_of(options, folder, notes)
        methods = options.methods or METHODS[bench.model.family.reads]
        spread = settings_of(options, folder)
        plan = planned(options, bench, methods, sizes, seeds, notes, folder, spread)
        for note in notes:
            _log.warning("%s", note)
        cells = _cells(options, bench, plan, folder, spread)
        rows = [cell.row(bench.names) for cell in cells]
        page = _write(options, bench, plan, rows, folder)
    table = comparison_table(rows)
    failed = [(_title(cell.method, cell.batch_size, cell.seed), cell.error) for cell in cells if cell.error]
    redo = to_redo("compare", folder, failed, len(cells), ROWS, "cells")
    return Outcome(
        command="compare",
        folder=folder.path,
        page=page,
        figures={"methods": table},
        summary=_summary(bench, plan, rows),
        notes=[*plan.notes, *redo],
        shown=[shown_table(table), *redo],
        status=PARTLY if failed else 0,
    )


def check_options(options: CompareOptions) -> None:
    """Everything that can be known to be wrong before any work is done."""
    at_least(options, {"n_views": 1})
    check_spread(options)
    given = {"methods": options.methods, "batch_sizes": options.batch_sizes, "seeds": options.seeds}
    such_as = {"methods": "alphaedit memit", "batch_sizes": "1 8 32", "seeds": "0 1 2"}
    for name, values in given.items():
        if values is not None:
            distinct(name, values, such_as[name])
    for method in options.methods or ():
        if method not in editors():
            raise WeightsmithError(f"--methods {method} is no editor: {did_you_mean(method, editors())}")
    for size in options.batch_sizes or ():
        if size < 1:
            raise WeightsmithError(f"--batch-sizes must be at least 1, not {size}: give `1 8 32` say")
    for seed in options.seeds or ():
        if not 0 <= seed < 2**32:
            raise WeightsmithError(f"--seeds must be from 0 to {2**32 - 1}, not {seed}: give `0 1 2` say")


@dataclass(eq=False)
class _Bench:
    """Measures cells on one model."""

    bench: TextBench | ImageBench
    cache_dir: Path | None
    warm: set[str] = field(default_factory=set)

    def measure(self, which: tuple[str, int, int]) -> Cell:
        """The cell of a method, a batch size and a seed, without its key. Raises where it cannot be measured."""
        method, size, seed = which
        if method not in self.warm:
            self.warm.add(method)
            with failures(
                []
            ):  # statistics and prefixes are measured once and kept; they shall not count among the seconds
                self._solve(method, 1, seed)
        started = time.perf_counter()
        delta = self._solve(method, size, seed)
        seconds = time.perf_counter() - started
        reached = [bool(row["success"]) for row in delta.info["requests"]]
        return Cell(
            method,
            size,
            seed,
            key="",
            measures=self.bench.measure(seed, size, delta),
            seconds=seconds,
            update_norm=delta.norm(),
            reached=sum(reached) / len(reached),
        )

    def _solve(self, method: str, size: int, seed: int) -> Delta:
        requests = self.bench.draws[seed][:size]
        return self.bench.editor(method).solve(self.bench.model, requests, self.bench.keeping(requests), self.cache_dir)


def elsewhere(options: CompareOptions, folder: RunFolder) -> Measure:
    """What measures cells in a worker. Raises as `bench_of`, and where the worker sees other data than the command."""
    check_folder(folder.path)
    bench, _, _ = bench_of(options, folder, [])
    check_planned(bench, folder)
    return _Bench(bench, _cache(options)).measure


def _cells(
    options: CompareOptions, bench: TextBench | ImageBench, plan: Plan, folder: RunFolder, spread: Settings
) -> list[Cell]:
    """Every cell in the order of methods, batch sizes and seeds; those that are in the folder are not measured again.

    Small batches come first, so that a long comparison soon says something. Cells that failed are measured again.
    """
    place = folder.path / "cells"
    found: dict[str, Cell] = {}
    waiting: list[tuple[str, int, int]] = []
    keys: list[str] = []
    for size, seed, method in product(plan.batch_sizes, plan.seeds, plan.methods):
        key = _key(bench, plan, method, size, seed)
        cell = Cell.load(place / file_of(method, size, seed), key)
        if cell is None or cell.error:
            waiting.append((method, size, seed))
            keys.append(key)
        else:
            found[cell.file] = cell
    if found:
        _log.info("%d of %d cells are measured already", len(found), len(found) + len(waiting))
    sweep = Sweep(
        cells=waiting,
        titles=[_title(*which) for which in waiting],
        measure=_Bench(bench, _cache(options)).measure,
        make=partial(elsewhere, options, folder),
        costs=[size for _, size, _ in waiting],
    )
    for number, measured in each(sweep, spread):
        failure = measured if isinstance(measured, Failure) else None
        cell = Cell(*waiting[number], "", error=failure.why) if failure is not None else measured
        cell = replace(cell, key=keys[number])
        cell.save(place)
        kept_failure(place / cell.file, failure)
        found[cell.file] = cell
    order = product(plan.methods, plan.batch_sizes, plan.seeds)
    return [found[file_of(*which)] for which in order]


def _key(bench: TextBench | ImageBench, plan: Plan, method: str, size: int, seed: int) -> str:
    return key_of(
        {
            "version": __version__,
            "model": plan.fingerprint,
            "method": [method, plan.methods[method]],
            "requests": [content for _, content in plan.draws[seed][:size]],
            "seed": seed,
            "preserve": plan.preserve,
            **bench.depends(),
        }
    )


def _cache(options: CompareOptions) -> Path | None:
    return user_path(options.cache_dir) if options.cache_dir else None


def _title(method: str, size: int, seed: int) -> str:
    return f"{method}, {size} edits, seed {seed}"


def _write(
    options: CompareOptions, bench: TextBench | ImageBench, plan: Plan, rows: list[dict[str, object]], folder: RunFolder
) -> Path:
    out = folder.results
    write_csv(out / ROWS, rows)
    table = comparison_table(rows)
    write_csv(out / TABLE, [{name: _blank(value) for name, value in row.items()} for row in table])
    for name, figure in comparison_figures(rows).items():
        report.save(figure, folder.figures / f"{name}.png")
    summary = _summary(bench, plan, rows)
    write_json(out / "summary.json", {"command": "compare", "summary": summary, "notes": list(plan.notes)})
    page = out / "report.html"
    inputs = ComparisonInputs(
        title=f"{folder.path.name}: editing methods compared",
        summary=summary,
        notes=plan.notes,
        table=table,
        rows=rows,
        failed=[
            (f"{r['method']}, {r['batch_size']} edits, seed {r['seed']}", str(r["error"])) for r in rows if r["error"]
        ],
        config=asdict(options),
        env=folder.env(),
    )
    write_text(page, build_comparison(inputs))
    return page


def _summary(bench: TextBench | ImageBench, plan: Plan, rows: Sequence[dict[str, object]]) -> list[str]:
    kinds = {"text": "facts of a language model", "images": "errors of an image classifier"}
    told = [
        f"{len(plan.methods)} methods, batches of {', '.join(map(str, plan.batch_sizes))} {kinds[plan.reads]}, "
        f"{len(plan.seeds)} draws of them; every method on the same draws, each batch on the unedited model.",
        f"{PLAN} fixes requests, seeds and sizes: `weightsmith compare --requests` measures the same again.",
    ]
    if isinstance(bench, ImageBench):
        told.append(
            "Requests are errors of the validation part, the train part is preserved, and locality is measured on the "
            "held-out part, which nothing but the evaluation reads."
        )
    failed = sum(bool(row["error"]) for row in rows)
    return told + ([f"{failed} of {len(rows)} cells failed; {ROWS} says why."] if failed else [])


def _blank(value: object) -> object:
    return "" if isinstance(value, float) and value != value else round(value, 6) if isinstance(value, float) else value
