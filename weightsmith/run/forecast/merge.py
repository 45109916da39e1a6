"""The plan of `weightsmith merge`."""

from __future__ import annotations

from weightsmith.merge.forecast import merge_cost
from weightsmith.run.forecast.plan import Plan, Step, amount
from weightsmith.run.merge.command import asked
from weightsmith.run.options.merge import MergeOptions


def merge(options: MergeOptions) -> Plan:
    """What `weightsmith.run.merge.merge` would do. Raises as it does, where that shows in the tensors tried here."""
    method, options, _ = asked(options)
    cost = merge_cost(
        method,
        options.base,
        options.models,
        str(options.out),
        weights=options.weights or None,
        head=options.head,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        sha256=options.sha256,
        overwrite=options.overwrite,
    )
    step = Step(
        name=f"merge, {method.name}",
        what=f"{cost.tensors} tensors, {cost.numbers:,} numbers; {amount(cost.read)} are read and {amount(cost.size)} written "
        f"in {cost.files} file{'s' * (cost.files > 1)}, and read back",
        seconds=cost.seconds,
        memory=cost.memory,
    )
    notes = [
        "A merge runs no network, so it has no block forwards.",
        f"The time is from {cost.timed:.0%} of the numbers, merged just now and not written; a disk that writes slower than "
        "this machine computes takes longer. docs/commands.md says how far estimates were from real runs.",
    ]
    if options.data_path:
        tried = (
            f"{len(options.coefficients)} coefficients on the validation images of {len(options.data_path)} data sets"
        )
        notes.append(f"The search for the coefficient comes before it and is not counted: {tried}.")
    return Plan(command="merge", steps=[step], folder=cost.target, notes=notes)
