"""`weightsmith compare`: editing methods side by side, over batch sizes and seeds, on the same requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from weightsmith import __version__, report
from weightsmith.delta import Delta
from weightsmith.edit import Editor, editors
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import user_path, write_csv, write_json, write_text
from weightsmith.report.comparison import comparison_figures, comparison_table
from weightsmith.report.comparison_page import ComparisonInputs, build_comparison, shown_table
from weightsmith.run.benches import ImageBench, TextBench
from weightsmith.run.benching import METHODS, bench_of
from weightsmith.run.cells import Cell, failures, file_of, key_of
from weightsmith.run.draws import PLAN, REQUESTS, Plan
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.knowledge import CompareOptions
from weightsmith.run.outcome import Outcome
from weightsmith.run.planned import planned
from weightsmith.run.session import Kin, at_least, distinct, session

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
        plan = planned(options, bench, methods, sizes, seeds, notes, folder)
        for note in notes:
            _log.warning("%s", note)
        cells = _Sweep(options, bench, plan, folder).run()
        rows = [cell.row(bench.names) for cell in cells]
        page = _write(options, bench, plan, rows, folder)
    table = comparison_table(rows)
    return Outcome(
        command="compare",
        folder=folder.path,
        page=page,
        figures={"methods": table},
        summary=_summary(bench, plan, rows),
        notes=[*plan.notes, *_failures(cells)],
        shown=[shown_table(table), *_failures(cells)],
    )


def _failures(cells: Sequence[Cell]) -> list[str]:
    """Why cells failed, the first five of them."""
    failed = [cell for cell in cells if cell.error]
    told = [f"{cell.method}, {cell.batch_size} edits, seed {cell.seed} failed: {cell.error}" for cell in failed[:5]]
    return told + ([f"{len(failed)} cells failed; {ROWS} says why"] if len(failed) > 5 else [])


def check_options(options: CompareOptions) -> None:
    """Everything that can be known to be wrong before any work is done."""
    at_least(options, {"n_views": 1})
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
class _Sweep:
    """The cells, one after another: small batches first, so that a long comparison soon says something."""

    options: CompareOptions
    bench: TextBench | ImageBench
    plan: Plan
    folder: RunFolder

    def run(self) -> list[Cell]:
        """Every cell in the order of methods, batch sizes and seeds."""
        place = self.folder.path / "cells"
        found: dict[str, Cell] = {}
        waiting: list[tuple[str, int, int]] = []
        for size, seed, method in product(self.plan.batch_sizes, self.plan.seeds, self.plan.methods):
            cell = Cell.load(place / file_of(method, size, seed), self._key(method, size, seed))
            if cell is None:
                waiting.append((method, size, seed))
            else:
                found[cell.file] = cell
        if found:
            _log.info("%d of %d cells are measured already", len(found), len(found) + len(waiting))
        started = time.monotonic()
        warm: set[str] = set()
        for number, (method, size, seed) in enumerate(waiting):
            left = _left(time.monotonic() - started, [one[1] for one in waiting], number)
            _log.info("cell %d of %d: %s, %d edits, seed %d%s", number + 1, len(waiting), method, size, seed, left)
            if method not in warm:
                self._warm(method, seed)
                warm.add(method)
            cell = self._measured(method, size, seed)
            cell.save(place)
            found[cell.file] = cell
        order = product(self.plan.methods, self.plan.batch_sizes, self.plan.seeds)
        return [found[file_of(*which)] for which in order]

    def _key(self, method: str, size: int, seed: int) -> str:
        return key_of(
            {
                "version": __version__,
                "model": self.plan.fingerprint,
                "method": [method, self.plan.methods[method]],
                "requests": [content for _, content in self.plan.draws[seed][:size]],
                "seed": seed,
                "preserve": self.plan.preserve,
                **self.bench.depends(),
            }
        )

    def _warm(self, method: str, seed: int) -> None:
        """Statistics and prefixes are measured once and kept; they shall not count among the seconds of a cell."""
        with failures([]):
            self._solve(self.bench.editor(method), 1, seed)

    def _solve(self, editor: Editor, size: int, seed: int) -> Delta:
        cache = user_path(self.options.cache_dir) if self.options.cache_dir else None
        requests = self.bench.draws[seed][:size]
        return editor.solve(self.bench.model, requests, self.bench.keeping(requests), cache)

    def _measured(self, method: str, size: int, seed: int) -> Cell:
        cell = Cell(method, size, seed, self._key(method, size, seed))
        errors: list[str] = []
        with failures(errors):
            started = time.perf_counter()
            delta = self._solve(self.bench.editor(method), size, seed)
            seconds = time.perf_counter() - started
            reached = [bool(row["success"]) for row in delta.info["requests"]]
            cell = replace(
                cell,
                measures=self.bench.measure(seed, size, delta),
                seconds=seconds,
                update_norm=delta.norm(),
                reached=sum(reached) / len(reached),
            )
        for error in errors:
            _log.warning("%s, %d edits, seed %d failed: %s", method, size, seed, error)
            cell = replace(cell, error=error)
        return cell


def _left(spent: float, sizes: Sequence[int], done: int) -> str:
    """How long the rest takes, a cell counted by its edits, for large batches come last; "" while that is a mere guess."""
    counted = sum(sizes[:done])
    return f", about {spent / counted * sum(sizes[done:]) / 60:.0f} min left" if done >= 5 else ""


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
