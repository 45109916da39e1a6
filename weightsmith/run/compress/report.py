"""The end of `weightsmith compress`: the evaluation of all models of a run, and what it says of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weightsmith import report
from weightsmith.evaluate import divergence
from weightsmith.files import read_csv, write_csv, write_json
from weightsmith.measure.intervals import NOTHING
from weightsmith.report.compression import agreement_table, faithfulness_figure, kept_figure, shown_models
from weightsmith.report.compression_charts import divergence_blocks, faithfulness_blocks, frontier_blocks, kept_blocks
from weightsmith.report.evaluation_page import Section
from weightsmith.report.parts import Block
from weightsmith.run.cells import columns, stored, told
from weightsmith.run.compress.baseline import Baseline
from weightsmith.run.compress.record import Optimized, finished
from weightsmith.run.compress.study import AGREEMENT, FAITHFULNESS
from weightsmith.run.evaluate.evaluation import Evaluated, evaluated
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.compress import CompressOptions
from weightsmith.run.options.evaluate import EvaluateOptions
from weightsmith.run.session import flag

MODEL_ROWS, MODEL_METRICS = "compress_metrics.csv", "compress_metrics.json"
FILES = (MODEL_ROWS, MODEL_METRICS, "figures/kept.png", "figures/faithfulness.png")

_FORMAT = "weightsmith-compress-1"
_FLAGS = {"acdc": "acdc_thresholds", "eap": "eap_keep_ratios", "latency": "latency_ratios"}
_ABOUT = (
    "Smaller vision transformers, made by taking heads, MLP neurons and blocks out of the weights. KL is the mean divergence "
    "of a model's class probabilities from the baseline's; judging images are those of the validation part that the "
    "search judged its attempts by."
)

_FRONTIER = (
    "What smaller models lose over what they keep, with 95% intervals over held-out images. A ring is around those that are "
    "recommended."
)
_DIVERGENCE = (
    "KL divergence of class probabilities from the baseline's, with 95% intervals. Held-out images were in no search: where "
    "they give clearly more than the judging images, the search fitted its judges."
)
_FAITHFULNESS = (
    "Faithfulness of circuits of the best scored parts, the others replaced by their mean: 1 is the whole model, 0 what is "
    "left with none of them. Lines on points are 95% intervals over images. CPR is the area under a curve over shares (more is "
    "better), CMD the area between it and 1 (less is better)."
)


def evaluated_run(options: CompressOptions, folder: RunFolder, base: Baseline, notes: list[str]) -> Evaluated:
    """Evaluate the baseline and every finished model on the held-out images, and write tables, figures and the page.

    Raises:
        WeightsmithError: a model that cannot be read.
    """
    models = finished(folder.path, base.model.fingerprint(), notes)
    asked = EvaluateOptions(
        model_paths=(str(base.place), *models),
        baseline=str(base.place),
        data_path=options.data_path,
        batch_size=options.eval_batch_size,
        tolerance=options.tolerance,
        rounds=options.rounds,
        seed=options.seed,
        device=options.device,
        cache_dir=options.cache_dir,
    )
    done = evaluated(asked, folder, notes, command="compress")
    rows = model_rows(models, done)
    out = folder.results
    if rows:
        write_csv(out / MODEL_ROWS, rows)
    whole = {"name": done.found.baseline, "path": str(base.place), "shape": asdict(base.shape)}
    entries = [{**row, **models[path].to_json()} for path, row in zip(models, rows, strict=True)]
    metrics = {"format": _FORMAT, "baseline": whole, "models": entries, "notes": list(done.notes)}
    write_json(out / MODEL_METRICS, stored(metrics))
    chosen = [(one.purpose, one.model) for one in done.chosen]
    section = _section(folder, base, models, rows, chosen)
    done.write(folder, f"{folder.path.name}: a model made smaller", asdict(options), section)
    return done


def model_rows(models: Mapping[str, Optimized], done: Evaluated | None) -> list[dict[str, object]]:
    """The rows of `compress_metrics.csv`, one a smaller model, by its path; "" stands for what is unknown.

    `kl_ratio` is KL on held-out images / KL on judging images, of models that were not trained in between.
    `budget_holds` says of models that were searched under a budget whether KL on held-out images is within it: "uncertain"
    where it is above, but its interval is not.
    """
    names = {} if done is None else {path: name for name, path in done.paths.items()}
    return [_row(one, names.get(path, one.name), done) for path, one in models.items()]


def _row(one: Optimized, name: str, done: Evaluated | None) -> dict[str, object]:
    left, whole = one.kept.shape(one.whole), one.whole
    held, accuracy = NOTHING, NOTHING
    cost: dict[str, object] = dict.fromkeys(("parameters", "macs", "bytes_on_disk"), "")
    if done is not None:
        found = done.found
        held = divergence(found.predictions[found.baseline], found.predictions[name])
        accuracy = found.change(name, found.baseline)
        counted = found.costs[name]
        cost = {"parameters": counted.parameters, "macs": counted.macs, "bytes_on_disk": counted.size}
    macs, before = (_number(one.info.get(key)) for key in ("macs", "macs_whole"))
    ratio = held.value / one.kl.value if one.kl.value > 0 and not one.recovery else NOTHING.value
    budget = one.method == "acdc" and one.settings.get("acdc_rule") == "budget" and not one.recovery
    holds = "yes" if held.value <= one.goal else "uncertain" if held.low <= one.goal else "no"
    return {
        "model": name,
        "method": one.method,
        "goal": one.goal,
        "asked": f"{flag(_FLAGS[one.method])} {one.goal:g}",
        "heads": f"{sum(left.heads)} of {sum(whole.heads)}",
        "neurons": f"{sum(left.neurons)} of {sum(whole.neurons)}",
        "blocks": f"{len(left.heads)} of {len(whole.heads)}",
        "macs_kept": told(macs / before) if before else "",
        "parameters_kept": told(left.parameters() / whole.parameters()),
        **cost,
        **columns(
            ("kl", "kl_held_out", "accuracy_change"), {"kl": one.kl, "kl_held_out": held, "accuracy_change": accuracy}
        ),
        "judging_images": one.kl.n,
        "kl_ratio": told(ratio),
        "budget_holds": holds if budget and held.n else "",
        "recovered_epochs": one.recovery.get("best_epoch", ""),
        "search_images": one.info.get("images", ""),
        "search_passes": one.info.get("passes", ""),
        "search_seconds": told(_number(one.info.get("seconds"))),
    }


def _section(
    folder: RunFolder,
    base: Baseline,
    models: Mapping[str, Optimized],
    rows: Sequence[dict[str, object]],
    chosen: Sequence[tuple[str, str]],
) -> Section:
    """What the page says besides, from what the run holds."""
    named = [(one.name, one.kept) for one in models.values()]
    figures: list[tuple[str, Sequence[Block]]] = [
        (_FRONTIER, frontier_blocks(rows, chosen)),
        (_DIVERGENCE, divergence_blocks(rows)),
        ("What stays of heads and of MLP neurons, block by block, counted from 0.", kept_blocks(named, base.shape)),
    ]
    if named:
        report.save(kept_figure(named, base.shape), folder.figures / "kept.png")
    tables = [("Smaller models, KL with 95% intervals", shown_models(rows), MODEL_ROWS)] if rows else []
    agreement, curves = _left(folder.results / AGREEMENT), _left(folder.results / FAITHFULNESS)
    if agreement:
        title = "Spearman correlation of scores with exact removal of single units, by kind of unit"
        tables.append((title, agreement_table(agreement), AGREEMENT))
    if curves:
        curves = [{**row, "name": row["ranked"], "value": row["faithfulness"]} for row in curves]
        report.save(faithfulness_figure(curves), folder.figures / "faithfulness.png")
        figures.append((_FAITHFULNESS, faithfulness_blocks(curves)))
    return Section(_ABOUT, _summary(rows), [one for one in figures if one[1]], tables)


def _summary(rows: Sequence[dict[str, object]]) -> list[str]:
    """Whether budgets hold on images that no search saw."""
    judged = [row for row in rows if row["budget_holds"]]
    if not judged:
        return []
    held, unclear = (sum(row["budget_holds"] == word for row in judged) for word in ("yes", "uncertain"))
    worst = max(float(str(row["kl_held_out"])) / float(str(row["goal"])) for row in judged)
    others = f", for {unclear} it is exceeded by less than the images tell" if unclear else ""
    return [
        f"The KL budget holds on held-out images for {held} of {len(judged)} models that were searched under one{others}; the "
        f"largest held-out KL is {worst:.2f} of its budget."
    ]


def _left(path: Path) -> list[dict[str, str]]:
    return read_csv(path) if path.exists() else []


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else NOTHING.value
