"""`weightsmith merge`: several fine-tuned models become one, at a given coefficient or at one that data choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from weightsmith.errors import WeightsmithError
from weightsmith.files import user_path, write_csv, write_text
from weightsmith.merge import Merged, Method, create
from weightsmith.merge import merge as merged_from
from weightsmith.merge.card import merged_card
from weightsmith.merge.mergekit import Recipe, read_recipe
from weightsmith.report.merge_page import build_merge
from weightsmith.report.render import PageSection
from weightsmith.run.options.merge import MergeOptions
from weightsmith.run.outcome import Outcome

if TYPE_CHECKING:
    from weightsmith.run.merge.search import Found, Search

_TABLE, _TESTS, _FIGURE, _PAGE = "search.csv", "search_test.csv", "search.png", "report.html"
_OF_SEARCH = ("control_data_path", "coefficients", "judging_images")
"""Options that mean nothing without `data_path`."""


def merge(options: MergeOptions) -> Outcome:
    """Merge what the options name.

    Raises:
        WeightsmithError: bad options, checkpoints that do not fit together, or a folder that exists, in one sentence.
    """
    method, options, notes = asked(options)
    assert options.out is not None
    search = search_of(options, method)
    found = search.done() if search else None
    done = merged_from(
        found.method if found else method,
        options.base,
        options.models,
        options.out,
        weights=options.weights or None,
        head=options.head,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        sha256=options.sha256,
        overwrite=options.overwrite,
        notes=[*notes, *(found.bench.notes if found else ())],
        more={"search": found.record()} if found else None,
        beside=lambda folder, report: _beside(folder, report, found, user_path(str(options.out)).name),
    )
    return _outcome(done, found)


def asked(options: MergeOptions) -> tuple[Method, MergeOptions, Sequence[str]]:
    """(the method, the options with what a recipe says, what is to be told of the recipe).

    Raises:
        WeightsmithError: bad options, or a recipe that cannot be read.
    """
    recipe = None
    if options.mergekit is not None:
        recipe = read_recipe(user_path(options.mergekit))
        options = _under(options, recipe)
    for flag, value in (("--base", options.base), ("--models", options.models), ("--out", options.out)):
        if not value:
            raise WeightsmithError(
                f"{flag} is missing: give it, as in weightsmith merge --base DIR --models DIR ... --out DIR"
            )
    method = create(
        options.method, scale=options.lambda_, density=options.density, gamma=options.gamma, seed=options.seed
    )
    return method, options, recipe.notes if recipe else ()


def search_of(options: MergeOptions, method: Method, *, blank: bool = False) -> Search | None:
    """The search for the coefficient, where data are given that choose it.

    Args:
        blank: see `open_data`.
    """
    if not options.data_path:
        default = MergeOptions()
        for name in _OF_SEARCH:
            if getattr(options, name) != getattr(default, name):
                raise WeightsmithError(
                    f"--{name.replace('_', '-')} is of the search for a coefficient, which needs data: give --data-path, the "
                    "data set of each model"
                )
        return None
    if options.lambda_ is not None:
        raise WeightsmithError(
            "--lambda and --data-path exclude each other: one says the coefficient, the other has it chosen"
        )
    from weightsmith.merge import check_target
    from weightsmith.run.job import check_device
    from weightsmith.run.merge.search import Bench, Search

    assert options.base is not None
    assert options.out is not None
    check_target(options.out, options.overwrite)
    if not all(map(math.isfinite, options.coefficients)):
        raise WeightsmithError("--coefficients must be finite numbers: give 0 0.5 1")
    if options.judging_images is not None and options.judging_images < 1:
        raise WeightsmithError(
            f"--judging-images must be at least 1, not {options.judging_images}: leave it out for all"
        )
    bench = Bench.of(
        options, options.base, options.models, options.data_path, options.control_data_path, options.judging_images,
        check_device(options.device), blank=blank,
    )  # fmt: skip
    return Search.of(options, method, bench)


def _beside(folder: Path, report: Mapping[str, Any], found: Found | None, name: str) -> None:
    """The card, the page, and the tables and the figure of a search."""
    write_text(folder / "README.md", merged_card(report))
    sections: list[PageSection] = []
    if found is not None:
        from weightsmith.report import save
        from weightsmith.report.coefficients import coefficient_figure
        from weightsmith.report.search_section import search_section

        sections.append(search_section(found.rows, found.record()))

        write_csv(folder / _TABLE, found.rows)
        write_csv(folder / _TESTS, found.test)
        save(coefficient_figure(found.rows), folder / _FIGURE)
    write_text(folder / _PAGE, build_merge(report, f"{name}: models merged", sections))


def _under(options: MergeOptions, recipe: Recipe) -> MergeOptions:
    """The recipe's values, where no flag says otherwise."""
    default = MergeOptions()
    unset = {f.name for f in fields(options) if getattr(options, f.name) == getattr(default, f.name)}
    values = {name: value for name, value in recipe.options.items() if name in unset}
    return replace(options, **values)


def _outcome(done: Merged, found: Found | None) -> Outcome:
    """What there is to tell of a merge."""
    shown: list[RenderableType] = []
    if found is not None:
        from weightsmith.report.coefficients import backbone_table

        shown.append(backbone_table(found.test, found.best.coefficient))
    table = Table("model", "weight", "change / base", box=None, pad_edge=False)
    models: Sequence[dict[str, object]] = done.report["models"]
    for model in models:
        ratio = model["change_over_base"]
        table.add_row(escape(str(model["name"])), f"{model['weight']:g}", "inf" if ratio is None else f"{ratio:.4f}")
    output = done.report["output"]
    figures = {"models": models, "output": output} | ({"test": found.test} if found is not None else {})
    return Outcome(
        command="merge",
        folder=done.path,
        page=done.path / _PAGE,
        figures=figures,
        notes=done.notes,
        shown=[*shown, table],
        closing=f"holds the merged model: {output['tensors']} tensors, {output['bytes'] / 1e6:.1f} MB, read back and equal to "
        "what was merged",
    )
