"""The stages of a correction. Each reads what earlier ones left in the run folder and writes its own files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weightsmith import evaluate, locate, report
from weightsmith.data.images import ImageSet
from weightsmith.data.split import info, manifest
from weightsmith.data.views import EmbeddingNoise
from weightsmith.delta import Delta, weights_hash
from weightsmith.edit import editors, make_editor
from weightsmith.errors import WeightsmithError
from weightsmith.files import write_csv, write_json, write_text
from weightsmith.measure import Predictions, misclassified
from weightsmith.models import load, save
from weightsmith.request import ImageRequest, load_requests, save_requests
from weightsmith.run.cards import classifier_card
from weightsmith.run.editing import editor_options, layers_for, methods_for
from weightsmith.run.folder import RunFolder
from weightsmith.run.job import TRAIN_DEFAULTS, Job, check_split, new_model, save_indices, train_options
from weightsmith.run.recorded import check_not_trained_on
from weightsmith.run.tables import (
    EDIT_COLUMNS,
    confusion_rows,
    confusion_tables,
    delta_name,
    edit_log_name,
    edit_rows,
    prediction_rows,
)
from weightsmith.train import fit

_log = logging.getLogger(__name__)


def run_data(job: Job) -> None:
    """`data_split_info.csv`, `data_split.json` (index hashes) and `data_split_indices.npz`."""
    split, out = job.split, job.folder.results
    parts = split.parts()
    if job.new_site is not None:
        parts |= {"stream": job.new_site[0], "new_site_held_out": job.new_site[1]}
    shared = {name: entry["overlap_with_held_out"] for name, entry in manifest(parts).items()}
    leaking = [name for name, count in shared.items() if count]
    if leaking:
        raise WeightsmithError(
            f"the {leaking[0]} part shares {shared[leaking[0]]} images with held-out data: remove the copies "
            "from one of them"
        )
    save_indices(out, parts)
    write_csv(out / "data_split_info.csv", info(parts))
    write_json(
        out / "data_split.json",
        {"seed": split.seed, "val_carved_from_train": split.val_carved, "parts": manifest(parts)},
    )
    job.folder.write_env(data={name: images.digest() for name, images in parts.items()}, seed=job.options.seed)


def run_train(job: Job) -> None:
    """`training_metrics.csv`, the checkpoint and `model/`; with `--checkpoint` that model, checked, and no training."""
    options, out = job.options, job.folder.results
    check_split(job)
    if options.checkpoint is not None:
        model = load(options.checkpoint, device=job.device)
        if model.n_classes != job.source.n_classes:
            raise WeightsmithError(
                f"--checkpoint {options.checkpoint} has {model.n_classes} classes and {options.data_path} "
                f"{job.source.n_classes}: give a classifier of these classes, or train one"
            )
        held = [images for images in (*job.split.parts().values(), *(job.new_site or ())) if images.sealed]
        unknown = check_not_trained_on(options.checkpoint, held)
        if unknown:
            job.note(unknown)
        job.note(f"Nothing was trained: the classifier is {options.checkpoint}.")
    else:
        model = new_model(options, job.source, job.device)
        history = fit(
            model,
            job.part("train"),
            job.part("val"),
            train_options(options, TRAIN_DEFAULTS),
            job.folder.checkpoints / "checkpoint.pt",
            resume=options.resume,
            pin_memory=options.pin_memory,
            on_epoch=lambda rows: write_csv(out / "training_metrics.csv", rows),
        )
        write_csv(out / "training_metrics.csv", history.rows)
        report.save(report.training_curve(history.rows), job.folder.figures / "training_curve.png")
        if history.skipped:
            _log.info("training was skipped: a checkpoint of this data, model and hyper-parameters is finished")
    save(model, job.folder.path / "model", classifier_card(job.folder, options, model))
    job.folder.write_env(device=job.device, weights=weights_hash(model))


def run_locate(job: Job) -> None:
    """`layer_importance.csv`, `layer_statistics.csv`, `effects.safetensors` and a figure."""
    options, out = job.options, job.folder.results
    check_split(job)
    requests, part = job.errors("train", options.max_samples, min(options.min_errors, options.max_samples))
    _need_errors(requests, part)
    effects = locate.causal_trace(
        job.trained,
        requests,
        EmbeddingNoise(options.noise, options.num_ablations, options.seed),
        kind=options.trace_site,
        target=options.trace_target,
        metric=options.trace_metric,
    )
    classes = effects.info["target_classes"]
    rows = [
        {
            "sample": sample,
            "target_class": classes[i],
            "clean": round(effects.info["clean"][i], 6),
            "corrupted": round(effects.info["corrupted"][i], 6),
            **{f"layer_{site.layer}": round(float(effects.values[i, k]), 6) for k, site in enumerate(effects.sites)},
        }
        for i, sample in enumerate(effects.samples)
    ]
    report.save(report.layer_importance(effects), job.folder.figures / "layer_importance.png")
    effects.save(out / "effects.safetensors")
    write_csv(out / "layer_importance.csv", rows)
    write_csv(out / "layer_statistics.csv", effects.table())
    done, naive = effects.info["block_forwards"], effects.info["naive_block_forwards"]
    job.note(
        f"Tracing {len(requests)} images took {done:,} block forwards; one full pass a site and noise sample would "
        f"take {naive:,} ({naive / done:.2f} times as many)."
    )


def run_edit(job: Job) -> None:
    """`requests.safetensors`, a delta and a log for each method, and `edited/`, the model with the first method's edit."""
    options, out = job.options, job.folder.results
    check_split(job)
    if job.new_site is not None:
        requests = misclassified(job.trained, job.new_site[0], options.max_edits, seed=options.seed)
        part = options.edit_from
    else:
        requests, part = job.errors(options.edit_from, options.max_edits, options.min_errors)
    _need_errors(requests, part)
    methods = methods_for(job)
    layers = {method: layers_for(job, method) for method in methods}
    _log.info("editing %d images of %s with %s", len(requests), part, ", ".join(methods))
    deltas: dict[str, Delta] = {}
    for method in methods:
        deltas[method] = make_editor(method, **editor_options(options, method, layers[method])).solve(
            job.trained, requests, job.part("train"), job.cache_dir
        )
        failed = sum(not row["success"] for row in deltas[method].info["requests"])
        if failed:
            job.note(f"{method}: {failed} of {len(requests)} edits did not reach their class.")
    save_requests(out / "requests.safetensors", requests)
    for method, delta in deltas.items():
        write_csv(out / edit_log_name(method), edit_rows(delta), EDIT_COLUMNS)
        delta.save(job.folder.path / delta_name(methods, method))
    first = deltas[methods[0]]
    with first.on(job.trained):
        save(job.trained, job.folder.path / "edited", classifier_card(job.folder, options, job.trained, first))


def run_eval(job: Job) -> None:
    """`evaluation_report.csv`, `confusion_matrix.csv/.png`, `predictions.csv`, `examples.safetensors`, card of `edited/`."""
    options, out = job.options, job.folder.results
    check_split(job)
    requests = load_requests(out / "requests.safetensors")
    parts: dict[str, ImageSet] = {}
    if job.new_site is not None:
        parts["new_site"] = job.new_site[1]
    if options.held_out_from != "none":
        parts["held_out"] = job.part("held_out")
    if not parts:
        raise WeightsmithError(
            "nothing is held out, so nothing can be proven: --held-out-from none needs --edit-from PATH, give it"
        )
    methods = methods_for(job)
    deltas = {m: Delta.load(job.folder.path / delta_name(methods, m)) for m in methods}
    rows: list[dict[str, object]] = []
    cells: list[dict[str, object]] = []
    predictions: list[dict[str, object]] = []
    shown: list[evaluate.Examples] = []
    for part, images in parts.items():
        before: Predictions | None = None
        reports: dict[str, evaluate.EditReport] = {}
        for method, delta in deltas.items():
            reports[method] = evaluate.editing(
                job.trained,
                requests,
                images,
                delta,
                views=options.views,
                n_views=options.n_views,
                seed=options.seed,
                before=before,
            )
            before = reports[method].before
            shown += evaluate.examples(job.trained, requests, images, delta, reports[method], method=method, part=part)
            rows += [{"method": method, "part": part, **row} for row in reports[method].rows(job.source.class_names)]
        cells += confusion_rows(part, reports)
        predictions += prediction_rows(part, reports, job.source.class_names)
    tables = confusion_tables(cells, next(iter(parts)), job.source.n_classes)
    figure = report.confusion_matrices(tables.pop("before"), tables, job.source.class_names)
    report.save(figure, out / "confusion_matrix.png")
    write_csv(out / "predictions.csv", predictions)
    evaluate.save_examples(out / "examples.safetensors", shown)
    write_csv(out / "confusion_matrix.csv", cells)
    write_csv(out / "evaluation_report.csv", rows)
    first = deltas[methods[0]]
    mine = [row for row in rows if row["method"] == methods[0]]
    card = classifier_card(job.folder, options, job.trained, first, mine)
    write_text(job.folder.path / "edited" / "README.md", card)


@dataclass(frozen=True)
class Stage:
    """One stage: what it does, what its result depends on, and what it leaves.

    Attributes:
        run: does it.
        concerns: options that its result depends on, beside those of the stages before it.
        needs: stages whose results it reads.
        results: every file that it may leave, whatever its options are.
    """

    run: Callable[[Job], None]
    concerns: tuple[str, ...]
    needs: tuple[str, ...]
    results: Callable[[RunFolder], list[Path]]


def _in_results(*names: str) -> Callable[[RunFolder], list[Path]]:
    return lambda folder: [folder.results / name for name in names]


def _train_results(folder: RunFolder) -> list[Path]:
    return [folder.checkpoints / "checkpoint.pt", folder.path / "model", folder.results / "training_metrics.csv"]


def _edit_results(folder: RunFolder) -> list[Path]:
    methods = list(editors())
    return [
        folder.results / "requests.safetensors",
        folder.path / "edited",
        folder.path / "delta.safetensors",
        *(folder.path / f"delta_{method}.safetensors" for method in methods),
        *(folder.results / edit_log_name(method) for method in methods),
    ]


STAGES: dict[str, Stage] = {
    "data": Stage(
        run_data,
        ("data_path", "held_out_ratio", "held_out_from", "val_ratio", "seed", "edit_from", "stream_ratio"),
        (),
        _in_results("data_split.json", "data_split_info.csv", "data_split_indices.npz"),
    ),
    "train": Stage(
        run_train,
        ("model", "checkpoint", "epochs", "batch_size", "lr", "weight_decay", "augment", "label_smoothing"),
        ("data",),
        _train_results,
    ),
    "locate": Stage(
        run_locate,
        ("num_ablations", "max_samples", "noise", "trace_site", "trace_target", "trace_metric", "min_errors"),
        ("train",),
        _in_results("effects.safetensors", "layer_importance.csv", "layer_statistics.csv"),
    ),
    "edit": Stage(
        run_edit,
        (
            "edit_method", "edit_layers", "layers_from", "num_edit_layers", "astra_layers", "max_edits", "min_errors",
            "margin", "null_fraction", "null_threshold", "whiten", "ridge", "l2", "head_lr", "head_steps", "ewc_strength",
            "ewc_lambda", "closed_form",
        ),
        ("train",),
        _edit_results,
    ),
    "eval": Stage(
        run_eval,
        ("views", "n_views"),
        ("edit",),
        _in_results(
            "evaluation_report.csv", "confusion_matrix.csv", "confusion_matrix.png", "predictions.csv",
            "examples.safetensors",
        ),
    ),
}  # fmt: skip
"""The stages in their order."""


def _need_errors(requests: list[ImageRequest], part: str) -> None:
    if not requests:
        raise WeightsmithError(
            f"the model makes no errors on {part}, so there is nothing to correct: give other images with --edit-from, "
            "or a harder data set"
        )
