"""What is to be measured, fixed in the run's folder before anything is."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.run.compare.benches import ImageBench, TextBench, options_of
from weightsmith.run.compare.draws import PLAN, REQUESTS, Plan, signed, write_requests
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.knowledge import BenchOptions
from weightsmith.run.spread import CELL_THREADS, Settings


def planned(
    options: BenchOptions,
    bench: TextBench | ImageBench,
    methods: Sequence[str],
    sizes: tuple[int, ...],
    seeds: tuple[int, ...],
    notes: Sequence[str],
    folder: RunFolder,
    spread: Settings,
) -> Plan:
    """The plan, written before anything is measured, with what cells take of the machine.

    Raises:
        WeightsmithError: the folder has cells of another plan, because the model or the data changed meanwhile.
    """
    plan = Plan(
        reads=bench.model.family.reads,
        model=options.model,
        fingerprint=bench.model.fingerprint(),
        data=options.data_path,
        preserve=bench.preserve.digest(),
        held_out=bench.held_out.digest() if isinstance(bench, ImageBench) else "",
        methods={method: options_of(bench.editor(method)) for method in methods},
        batch_sizes=sizes,
        seeds=seeds,
        draws=signed(bench.draws),
        notes=tuple(notes),
    )
    path = folder.results / PLAN
    if path.exists():
        before = Plan.load(path)
        for name, what in (("fingerprint", "model"), ("draws", "requests"), ("preserve", "preserved data")):
            if getattr(before, name) != getattr(plan, name):
                raise WeightsmithError(
                    f"{path} is of another {what} than there is now: give what it was made of to go on, or --overwrite to "
                    "measure anew"
                )
    plan.save(path)
    if isinstance(bench, TextBench):
        write_requests(folder.results / REQUESTS, bench.draws)
    told = {"device": str(bench.model.device), "weights": weights_hash(bench.model), "seed": options.seed}
    folder.write_env(**told, **{CELL_THREADS: spread.threads})
    return plan


def check_planned(bench: TextBench | ImageBench, folder: RunFolder) -> Plan:
    """The plan that the command has written, to which what a worker sees must be the same.

    Raises:
        WeightsmithError: another model, or other requests or preserved data.
    """
    path = folder.results / PLAN
    plan = Plan.load(path)
    there = (bench.model.fingerprint(), signed(bench.draws), bench.preserve.digest())
    for mine, planned_one, what in zip(
        there, (plan.fingerprint, plan.draws, plan.preserve), ("model", "requests", "preserved data"), strict=True
    ):
        if mine != planned_one:
            raise WeightsmithError(
                f"it sees another {what} than {path} says: give every machine the same files, packages and threads"
            )
    return plan
