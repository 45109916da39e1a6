"""How good the scores are that a search goes by: against exact removal of single units, and as faithfulness of circuits."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence

import torch

from weightsmith import __version__
from weightsmith.data.split import sample
from weightsmith.files import DAMAGED, write_csv, write_json
from weightsmith.prune import (
    FaithfulnessCurve,
    agreement,
    edge_faithfulness,
    edge_scores,
    key_statistics,
    unit_faithfulness,
    unit_scores,
)
from weightsmith.run.cells import key_of, told
from weightsmith.run.compress.baseline import Baseline
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.compress import CompressOptions

_log = logging.getLogger(__name__)

AGREEMENT, FAITHFULNESS = "agreement.csv", "faithfulness.csv"
_DONE = "study.json"
_MOST_GROUPS = 96
"""Groups of neurons whose removal is tried one by one: each costs a part of a pass over the images."""
_METHODS = ("gauss-newton", "magnitude", "random")
_EDGE_METHODS = ("eap-ig", "gauss-newton")


def study(options: CompressOptions, folder: RunFolder, base: Baseline) -> None:
    """`agreement.csv` and `faithfulness.csv`, unless they are there, from a sample of the validation images.

    Raises:
        WeightsmithError: a model whose answers are no finite numbers.
    """
    images, model = sample(base.split.val, options.study_images, options.seed), base.model
    group = max(options.group, math.ceil(sum(base.shape.neurons) / _MOST_GROUPS))
    depends = {"version": __version__, "baseline": model.fingerprint(), "images": images.digest()}
    key, place = key_of({**depends, "group": group, "seed": options.seed}), folder.path / "cells" / _DONE
    if _is_done(folder, key):
        return
    _log.info("studying scores on %d images", len(images))
    statistics = key_statistics(model, images)
    rows = agreement(model, images, group=group, statistics=statistics, seed=options.seed)
    write_csv(folder.results / AGREEMENT, [{**row, "spearman": told(row["spearman"])} for row in rows])
    units = [*base.shape.units("head"), *base.shape.units("neurons", group)]
    curves: list[FaithfulnessCurve] = []
    for method in _METHODS:
        scores = unit_scores(model, images, units, method, statistics=statistics, seed=options.seed)
        named = f"heads and neurons, {method}"
        curves.append(unit_faithfulness(model, images, units, scores.values, statistics, ranked=named))
    for method in _EDGE_METHODS:
        values = edge_scores(model, images, method=method, seed=options.seed).values
        curves.append(edge_faithfulness(model, images, values, ranked=f"edges, {method}"))
    drawn = torch.rand(len(values), generator=torch.Generator().manual_seed(options.seed))
    curves.append(edge_faithfulness(model, images, drawn, ranked="edges, random"))
    write_csv(folder.results / FAITHFULNESS, _rows(curves))
    write_json(place, {"key": key})


def _rows(curves: Sequence[FaithfulnessCurve]) -> list[dict[str, object]]:
    """One row a curve and fraction, its areas beside it."""
    return [
        {name: told(value) if isinstance(value, float) else value for name, value in (row | curve.summary()).items()}
        for curve in curves
        for row in curve.rows()
    ]


def _is_done(folder: RunFolder, key: str) -> bool:
    if not all((folder.results / name).exists() for name in (AGREEMENT, FAITHFULNESS)):
        return False
    try:
        known = json.loads((folder.path / "cells" / _DONE).read_text(encoding="utf-8"))
        return bool(known["key"] == key)
    except DAMAGED:
        return False
