"""Train on a data set's official parts, and report on its test part once, at the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from weightsmith import report
from weightsmith.data.images import ImageSet
from weightsmith.data.sources import open_data
from weightsmith.data.split import Source, Split, info, manifest
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import Classification, classify
from weightsmith.files import read_csv, user_path, write_csv, write_json, write_text
from weightsmith.models import Model, registered_by, save, wrapper_of
from weightsmith.report.baseline_page import CLASSES, BaselineInputs, build_baseline
from weightsmith.run.cards import licence_of
from weightsmith.run.cells import columns
from weightsmith.run.folder import RunFolder
from weightsmith.run.job import (
    TRAIN_DEFAULTS,
    check_device,
    check_network,
    image_size_of,
    new_model,
    save_indices,
    start_of,
    train_options,
)
from weightsmith.run.options.correct import BaselineOptions
from weightsmith.run.outcome import Outcome
from weightsmith.run.session import Kin, session
from weightsmith.run.tables import count_rows
from weightsmith.train import TrainOptions, fit

_log = logging.getLogger(__name__)

_DEFAULTS = TRAIN_DEFAULTS | {"batch_size": 64, "lr": 5e-5}
KIN = Kin(
    commands=("baseline",),
    called="baseline",
    another="another command",
    results=(
        "baseline_training_history.csv", "baseline_metrics.csv", CLASSES, "confusion_matrix.csv", "training_curve.png",
        "data_split_info.csv", "report.html",
    ),
    checkpoints=("checkpoint.pt",),
    worth=("model", "checkpoints/checkpoint.pt"),
    free=("pin_memory",),
)  # fmt: skip
SUSPICIOUS = 0.98
"""Accuracy beyond which a leak between the parts, or too easy a task, is more likely than a good model."""


def baseline(options: BaselineOptions) -> Outcome:
    """Train on train, select on val, report on test.

    Writes `baseline_metrics.csv`, `baseline_class_metrics.csv`, `confusion_matrix.csv`, `baseline_training_history.csv`,
    `training_curve.png`, `data_split.json`, `model/` and `report.html`.
    A data set without official parts is cut: a fifth is the test part and a fifth of the rest the validation part.
    """
    device = check_device(options.device)
    source, split, _ = opened(options)
    with session(options, "baseline", KIN, stem_of(source)) as folder:
        parts = split.parts()
        parts = {"train": parts["train"], "val": parts["val"], "test": parts["held_out"]}
        scores = _train_and_test(options, source, parts, folder, device)
        notes = [
            f"{part} accuracy is {100 * score.accuracy.value:.1f}%: look for images shared between the parts, or an easier "
            "task than meant"
            for part, score in scores.items()
            if score.accuracy.value > SUSPICIOUS
        ]
        page = _write_page(options, scores, source.class_names, folder, notes)
        for note in notes:
            _log.warning("%s", note)
    return Outcome(
        command="baseline",
        folder=folder.path,
        page=page,
        figures={"metrics": [row for part, score in scores.items() for row in _rows(part, score)]},
        notes=notes,
        shown=[f"{part} accuracy {score.accuracy}, macro F1 {score.macro['f1']}" for part, score in scores.items()],
        closing="holds the model and its metrics",
    )


def stem_of(source: Source) -> str:
    """What a run without a name is called."""
    return f"baseline-{source.name}"


def opened(options: BaselineOptions, *, blank: bool = False) -> tuple[Source, Split, TrainOptions]:
    """The data, how they are cut, and how a model is trained on them.

    Args:
        blank: see `open_data`.

    Raises:
        WeightsmithError: two names for the data, bad data, or hyper-parameters that are none.
    """
    if options.data_dir is not None and options.data_path is not None:
        raise WeightsmithError("--data-dir and --data-path both name the data: give one of them")
    check_network(options)
    path = options.data_path or str(user_path(options.data_dir or "~/.medmnist") / "pathmnist_224.npz")
    cache = user_path(options.cache_dir) if options.cache_dir else None
    source = open_data(path, image_size_of(options), cache, blank=blank)
    split = source.split("test" if "test" in source.parts else 0.2, options.seed)
    return source, split, train_options(options, _DEFAULTS)


def _train_and_test(
    options: BaselineOptions, source: Source, parts: dict[str, ImageSet], folder: RunFolder, device: str
) -> dict[str, Classification]:
    out = folder.results
    write_csv(out / "data_split_info.csv", info(parts))
    write_json(out / "data_split.json", {"seed": options.seed, "parts": manifest(parts)})
    save_indices(out, parts)
    model = new_model(options, source, device)
    history = fit(
        model,
        parts["train"],
        parts["val"],
        train_options(options, _DEFAULTS),
        folder.checkpoints / "checkpoint.pt",
        resume=options.resume,
        pin_memory=options.pin_memory,
        on_epoch=lambda rows: write_csv(out / "baseline_training_history.csv", rows),
    )
    write_csv(out / "baseline_training_history.csv", history.rows)
    report.save(report.training_curve(history.rows), out / "training_curve.png")
    scores = {part: classify(model, parts[part], title=part) for part in ("val", "test")}
    write_csv(out / "baseline_metrics.csv", [row for part, score in scores.items() for row in _rows(part, score)])
    rows = [row for part, score in scores.items() for row in _class_rows(part, score, source.class_names)]
    write_csv(out / CLASSES, rows)
    counts = [row for part, score in scores.items() for row in count_rows(part, {"baseline": score.confusion})]
    write_csv(out / "confusion_matrix.csv", counts)
    digests = {name: images.digest() for name, images in parts.items()}
    folder.write_env(device=device, weights=weights_hash(model), seed=options.seed, data=digests)
    save(model, folder.path / "model", _card(options, source, model, out, folder.env()))
    return scores


def _rows(part: str, score: Classification) -> list[dict[str, object]]:
    """The rows of `baseline_metrics.csv` for one part."""
    return [
        {
            "part": part,
            "metric": name,
            "value": round(interval.value, 6),
            "low": round(interval.low, 6),
            "high": round(interval.high, 6),
            "n": interval.n,
        }
        for name, interval in (("accuracy", score.accuracy), *((f"macro_{k}", v) for k, v in score.macro.items()))
    ]


def _class_rows(part: str, score: Classification, names: Sequence[str]) -> list[dict[str, object]]:
    """The rows of `baseline_class_metrics.csv` for one part; the accuracy on the images of a class is its recall."""
    totals = score.confusion.sum(1)
    return [
        {
            "part": part,
            "label": label,
            "class": name,
            "n": int(totals[label]),
            **columns(("recall", "precision", "f1"), {"recall": right, "precision": given, "f1": both}),
        }
        for label, (name, right, given, both) in enumerate(
            zip(names, score.class_accuracy, score.precision, score.f1, strict=True)
        )
    ]


def _write_page(
    options: BaselineOptions,
    scores: dict[str, Classification],
    names: Sequence[str],
    folder: RunFolder,
    notes: Sequence[str],
) -> Path:
    """Write `report.html` from the files, and return its path."""
    out = folder.results
    inputs = BaselineInputs(
        title=f"{folder.path.name}: a classifier trained",
        notes=notes,
        training_rows=read_csv(out / "baseline_training_history.csv"),
        metric_rows=read_csv(out / "baseline_metrics.csv"),
        class_rows=read_csv(out / CLASSES),
        confusions={part: score.confusion for part, score in scores.items()},
        class_names=names,
        split_rows=read_csv(out / "data_split_info.csv"),
        manifest=json.loads((out / "data_split.json").read_text(encoding="utf-8"))["parts"],
        config=asdict(options),
        env=folder.env(),
    )
    write_text(out / "report.html", build_baseline(inputs))
    return out / "report.html"


def _card(options: BaselineOptions, source: Source, model: Model, out: Path, env: dict[str, object]) -> str:
    return report.model_card(
        title=f"{source.name} classifier",
        base_model=start_of(options),
        data=source.name,
        class_names=source.class_names,
        channels=source.part("train").channels,
        split_rows=read_csv(out / "data_split_info.csv"),
        training_rows=read_csv(out / "baseline_training_history.csv"),
        provenance=env,
        licence=licence_of(start_of(options)),
        needs=wrapper_of(model),
        registered_by=registered_by(model),
    )
