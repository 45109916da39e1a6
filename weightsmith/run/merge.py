"""`weightsmith merge`: several fine-tuned models become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weightsmith.errors import WeightsmithError
from weightsmith.files import user_path
from weightsmith.merge import Merged, create
from weightsmith.merge import merge as merged_from
from weightsmith.merge.card import merged_card
from weightsmith.merge.mergekit import Recipe, read_recipe
from weightsmith.run.options import MergeOptions


def merge(options: MergeOptions) -> Path:
    """Merge what the options name, and return the folder of the merged model.

    Raises:
        WeightsmithError: bad options, checkpoints that do not fit together, or a folder that exists, in one sentence.
    """
    recipe = None
    if options.mergekit is not None:
        recipe = read_recipe(user_path(options.mergekit))
        options = _under(options, recipe)
    for flag, value in (("--base", options.base), ("--models", options.models), ("--out", options.out)):
        if not value:
            raise WeightsmithError(f"{flag} is missing: weightsmith merge --base DIR --models DIR ... --out DIR")
    assert options.base is not None
    assert options.out is not None
    method = create(
        options.method, scale=options.lambda_, density=options.density, gamma=options.gamma, seed=options.seed
    )
    done = merged_from(
        method,
        options.base,
        options.models,
        options.out,
        weights=options.weights or None,
        head=options.head,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        sha256=options.sha256,
        overwrite=options.overwrite,
        card=merged_card,
        notes=recipe.notes if recipe else (),
    )
    _show(done)
    return done.path


def _under(options: MergeOptions, recipe: Recipe) -> MergeOptions:
    """The recipe's values, where no flag says otherwise."""
    default = MergeOptions()
    unset = {f.name for f in fields(options) if getattr(options, f.name) == getattr(default, f.name)}
    values = {name: value for name, value in recipe.options.items() if name in unset}
    return replace(options, **values)


def _show(done: Merged) -> None:
    console = Console()
    table = Table("model", "weight", "change / base", box=None, pad_edge=False)
    models: Sequence[dict[str, object]] = done.report["models"]
    for model in models:
        ratio = model["change_over_base"]
        table.add_row(escape(str(model["name"])), f"{model['weight']:g}", "inf" if ratio is None else f"{ratio:.4f}")
    console.print(table)
    output = done.report["output"]
    console.print(
        f"[bold]{escape(str(done.path))}[/] holds the merged model: {output['tensors']} tensors, {output['bytes'] / 1e6:.1f} MB"
        ", read back and equal to what was merged",
        soft_wrap=True,
    )
