"""From the files of a run folder to its report and model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith import report
from weightsmith.delta import Delta
from weightsmith.effects import Effects
from weightsmith.evaluate import Examples, load_examples
from weightsmith.files import read_csv, write_text
from weightsmith.request import load_requests, stack_images
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.correct import RunOptions
from weightsmith.run.tables import confusion_tables, delta_name, edit_rows


def write_report(folder: RunFolder, options: RunOptions) -> Path:
    """Write `report.html` from whatever the stages have left so far, and return its path."""
    results = folder.results
    evaluation = _rows(results / "evaluation_report.csv")
    cells = _rows(results / "confusion_matrix.csv")
    split = _rows(results / "data_split_info.csv")
    names = tuple(row["name"] for row in split if row["part"] == "train" and row["class"] != "all")
    manifest = _json(results / "data_split.json").get("parts", {})
    effects = results / "effects.safetensors"
    examples = _examples(results / "examples.safetensors")
    confusions = {}
    for part in dict.fromkeys(row["part"] for row in cells):
        tables = confusion_tables(cells, part, len(names))
        confusions[part] = (tables.pop("before"), tables)
    inputs = report.ReportInputs(
        title=f"{folder.path.name}: a classifier corrected",
        notes=folder.notes(),
        config=dict(options.__dict__),
        env=folder.env(),
        split_rows=split,
        manifest=manifest,
        training_rows=_rows(results / "training_metrics.csv"),
        effects=Effects.load(effects) if effects.exists() else None,
        edits=_edits(folder, options, examples),
        changed=[_changed(one) for one in examples if one.kind != "edited"],
        evaluation_rows=evaluation,
        confusions=confusions,
        class_names=names,
    )
    page = results / "report.html"
    write_text(page, report.build(inputs))
    return page


def _edits(folder: RunFolder, options: RunOptions, examples: Sequence[Examples]) -> list[report.EditedBatch]:
    stored = folder.results / "requests.safetensors"
    if not stored.exists():
        return []
    images = stack_images(load_requests(stored)).numpy()
    seen = {one.method: one for one in examples if one.kind == "edited"}
    batches: list[report.EditedBatch] = []
    for method in options.edit_method:
        path = folder.path / delta_name(options.edit_method, method)
        if path.exists():
            delta = Delta.load(path)
            rows = edit_rows(delta)
            known = seen.get(delta.info["method"])
            if known is None or len(known.names) != len(rows):  # not evaluated yet, or with other requests
                batches.append(report.EditedBatch(delta.info["method"], delta.info["layers"], rows, images))
                continue
            before, after = known.before.numpy(), known.after.numpy()
            batches.append(report.EditedBatch(delta.info["method"], delta.info["layers"], rows, images, before, after))
    return batches


def _examples(path: Path) -> list[Examples]:
    return load_examples(path) if path.exists() else []


def _changed(one: Examples) -> report.ChangedImages:
    images = np.zeros((0, 3, 1, 1), np.uint8) if one.images is None else one.images.numpy()
    return report.ChangedImages(
        method=one.method,
        part=one.part,
        kind=one.kind,
        total=one.total,
        names=one.names,
        labels=one.labels.numpy(),
        images=images,
        before=one.before.numpy(),
        after=one.after.numpy(),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return list(read_csv(path)) if path.exists() else []


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
