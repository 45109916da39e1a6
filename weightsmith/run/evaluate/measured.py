"""What `weightsmith evaluate` measures: kept in the run folder as it comes, and as the rows and entries of its files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from weightsmith import __version__
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import (
    Candidate,
    Classification,
    Confidence,
    ConfidenceBin,
    Recommendation,
    accuracy_change,
    answers_of,
    confidence_bins,
    pareto_front,
    recommend,
)
from weightsmith.evaluate.confidence import BINS
from weightsmith.files import DAMAGED, write_json
from weightsmith.measure import Cost, Interval, Latency, Predictions, latencies
from weightsmith.measure.kept import keep_tensors, kept_tensors
from weightsmith.models import Model
from weightsmith.run.cells import columns, key_of, told
from weightsmith.run.tables import MANY

_log = logging.getLogger(__name__)

BATCH_SIZES, CENTRE = (1, 8, 64), 8
"""Batch sizes that are timed, and the one by which models are compared."""
_PREDICTIONS, _TIMES = "weightsmith-evaluation-predictions-1", "weightsmith-evaluation-times-1"
_SCORES = (
    "accuracy", "accuracy_change", "top5", "macro_precision", "macro_recall", "macro_f1", "confidence",
    "confidence_when_right", "confidence_when_wrong", "confidence_gap", "entropy", "overconfidence", "efficiency",
)  # fmt: skip


def answers(models: Mapping[str, Model], images: ImageSet, batch_size: int, place: Path) -> dict[str, Predictions]:
    """What each model says of the images, taken from files in `place` where it is known already."""
    found: dict[str, Predictions] = {}
    for number, (name, model) in enumerate(models.items(), 1):
        key = key_of({"version": __version__, "model": model.fingerprint(), "images": images.digest()})
        path = place / f"{key[:16]}.safetensors"
        kept = _kept(path, key, tuple(images.names()), images.n_classes)
        if kept is None:
            _log.info("model %d of %d: %s on %d images", number, len(models), name, len(images))
            found[name] = answers_of(model, images, batch_size, name)
            tensors = {"logits": found[name].logits, "labels": found[name].labels}
            keep_tensors(path, tensors, {"format": _PREDICTIONS, "key": key}, wanted=True)
        else:
            _log.info("model %d of %d: %s is measured already", number, len(models), name)
            found[name] = kept
    return found


def _kept(path: Path, key: str, names: tuple[str, ...], classes: int) -> Predictions | None:
    """Predictions that were kept, None where there are none or they are damaged."""
    if not path.exists():
        return None
    try:
        header, tensors = kept_tensors(path, _PREDICTIONS)
        kept = Predictions(tensors["logits"], tensors["labels"], names)
    except (WeightsmithError, KeyError) as error:
        _log.warning("%s is damaged and measured again: %s", path, error)
        return None
    fits = tuple(kept.logits.shape) == (len(names), classes) and len(kept.labels) == len(names)
    return kept if fits and header.get("key") == key else None


def timed(
    models: Mapping[str, Model], baseline: str, rounds: int, seed: int, place: Path
) -> dict[str, dict[int, Latency]]:
    """Name → batch size → times, the baseline under a second name as well; taken from a file where they are known already.

    All models are timed together or none, for their rounds belong together.
    """
    depends = {"version": __version__, "rounds": rounds, "seed": seed, "sizes": BATCH_SIZES, "baseline": baseline}
    depends |= {"threads": torch.get_num_threads(), "models": {n: m.fingerprint() for n, m in models.items()}}
    key = key_of(depends | {"device": str(next(iter(models.values())).device)})
    path = place / "times.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["format"] == _TIMES and known["key"] == key:
            return {
                name: {int(size): Latency(int(size), np.array(row)) for size, row in sizes.items()}
                for name, sizes in known["milliseconds"].items()
            }
        _log.info("the times are of other models or another machine and are measured again")
    except FileNotFoundError:
        pass
    except DAMAGED as error:
        _log.warning("%s is damaged and measured again: %s", path, error)
    _log.info("timing %d models, the baseline twice", len(models))
    found = latencies({**models, Measured.CONTROL: models[baseline]}, BATCH_SIZES, rounds, seed=seed)
    kept = {n: {str(size): one.milliseconds.tolist() for size, one in sizes.items()} for n, sizes in found.items()}
    write_json(path, {"format": _TIMES, "key": key, "milliseconds": kept})
    return found


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that was measured, by the model's name.

    Attributes:
        predictions: on the same images; costs: of one image.
        times: batch size → times; `CONTROL` is the baseline timed again.
    """

    CONTROL: ClassVar[str] = "the baseline again"

    predictions: Mapping[str, Predictions]
    costs: Mapping[str, Cost]
    times: Mapping[str, Mapping[int, Latency]]
    baseline: str

    @cached_property
    def scores(self) -> dict[str, Classification]:
        return {name: Classification.of(seen) for name, seen in self.predictions.items()}

    @cached_property
    def confidence(self) -> dict[str, Confidence]:
        return {name: Confidence.of(seen) for name, seen in self.predictions.items()}

    @cached_property
    def bins(self) -> dict[str, tuple[ConfidenceBin, ...]]:
        """Of each model how often it is right by how sure it is."""
        return {name: confidence_bins(seen) for name, seen in self.predictions.items()}

    @cached_property
    def candidates(self) -> dict[str, Candidate]:
        return {
            name: Candidate(name, scores.accuracy, self.times[name][CENTRE].median)
            for name, scores in self.scores.items()
        }

    def front(self) -> tuple[str, ...]:
        """Names on the Pareto front of accuracy against the time of a batch of 8, fastest first."""
        return pareto_front(list(self.candidates.values()))

    def change(self, one: str, other: str) -> Interval:
        """Accuracy of one − that of another; that of the other − that of the one is its negative, bounds too."""
        names = list(self.predictions)
        if one != self.baseline and (other == self.baseline or names.index(other) < names.index(one)):
            return accuracy_change(self.predictions[other], self.predictions[one])
        found = accuracy_change(self.predictions[one], self.predictions[other])
        # no minus noughts
        return Interval(0.0 - found.value, 0.0 - found.high, 0.0 - found.low, found.n)

    def ratio(self, one: str, other: str) -> Interval:
        """Time of one / that of another, at a batch of 8."""
        return self.times[one][CENTRE].against(self.times[other][CENTRE])

    def recommendations(self, tolerance: float) -> tuple[Recommendation, ...]:
        """As `weightsmith.evaluate.recommend`."""
        return recommend(list(self.candidates.values()), self.baseline, tolerance, self.change, self.ratio)

    def measures(self, name: str) -> dict[str, Interval]:
        """What has an interval, under the names of the columns."""
        scores, sure = self.scores[name], self.confidence[name]
        values = [
            scores.accuracy, self.change(name, self.baseline), scores.top5, *scores.macro.values(), sure.mean,
            sure.when_right, sure.when_wrong, sure.gap, sure.entropy, sure.overconfidence,
            self.candidates[name].efficiency,
        ]  # fmt: skip
        return dict(zip(_SCORES, values, strict=True))

    def rows(self) -> list[dict[str, object]]:
        """The rows of `evaluation_metrics.csv`, one a model: value, low and high; "" stands for what is unknown."""
        return [self._row(name) for name in self.predictions]

    def class_rows(self, class_names: tuple[str, ...]) -> list[dict[str, object]]:
        """The rows of `class_accuracy.csv`, one for each class that is there and each model."""
        return [
            {"class": class_name, "model": name, "n": share.n, **columns(("accuracy",), {"accuracy": share})}
            for class_name, shares in self.by_class(class_names)
            for name, share in shares.items()
        ]

    def _row(self, name: str) -> dict[str, object]:
        cost, front = self.costs[name], self.front()
        row: dict[str, object] = {"model": name, "baseline": name == self.baseline, "pareto": name in front}
        row |= columns(_SCORES, self.measures(name))
        row["calibration_error"] = told(self.confidence[name].calibration_error)
        for size, times in self.times[name].items():
            low, high = times.quartiles
            row |= columns([f"ms_{size}"], {f"ms_{size}": times.median})
            row |= {
                f"ms_{size}_q1": told(low),
                f"ms_{size}_q3": told(high),
                f"images_per_second_{size}": told(times.throughput),
            }
            ratio = times.against(self.times[self.baseline][size])
            row |= columns([f"time_ratio_{size}"], {f"time_ratio_{size}": ratio})
        row |= {"parameters": cost.parameters, "macs": cost.macs, "flops": cost.flops}
        return row | {"bytes_on_disk": "" if cost.size is None else cost.size}

    def entry(self, name: str, class_names: tuple[str, ...]) -> dict[str, Any]:
        """A model in `evaluation_metrics.json`."""
        scores, cost = self.scores[name], self.costs[name]
        measures = {key: _entry(one) for key, one in self.measures(name).items()}
        classes = {c: _entry(share) for c, share in zip(class_names, scores.class_accuracy, strict=True)}
        return {
            "baseline": name == self.baseline,
            "pareto": name in self.front(),
            "measures": measures,
            "calibration": {
                "expected_error": self.confidence[name].calibration_error,
                "bins": BINS,
                "widths": "equal",
                "filled": [{**vars(one), "accuracy": _entry(one.accuracy)} for one in self.bins[name]],
            },
            "class_accuracy": classes,
            "confusion": _counts(scores.confusion),
            "latency": {str(size): self._latency(name, size) for size in self.times[name]},
            "parameters": cost.parameters,
            "macs": cost.macs,
            "flops": cost.flops,
            "bytes_on_disk": cost.size,
        }

    def control(self) -> dict[str, Any]:
        """The baseline timed again, and its time divided by its own: what noise alone gives."""
        return {str(size): self._latency(self.CONTROL, size) for size in self.times[self.CONTROL]}

    def _latency(self, name: str, size: int) -> dict[str, Any]:
        times = self.times[name][size]
        return {
            "milliseconds": _entry(times.median),
            "quartiles": list(times.quartiles),
            "images_per_second": times.throughput,
            "ratio_to_baseline": _entry(times.against(self.times[self.baseline][size])),
        }

    def by_class(self, class_names: tuple[str, ...]) -> list[tuple[str, dict[str, Interval]]]:
        """Of each class that is there, its name and each model's accuracy on its images."""
        found = {name: scores.class_accuracy for name, scores in self.scores.items()}
        return [
            (class_name, {name: shares[label] for name, shares in found.items()})
            for label, class_name in enumerate(class_names)
            if found[self.baseline][label].n
        ]


def _counts(confusion: np.ndarray) -> list[list[int]] | dict[str, list[int]]:
    """Rows of counts; of more than `MANY` classes only the cells that occur, for a hundred million would be noughts."""
    if len(confusion) <= MANY:
        rows: list[list[int]] = confusion.tolist()
        return rows
    true, predicted = np.nonzero(confusion)
    found = {"true": true, "predicted": predicted, "count": confusion[true, predicted]}
    return {name: values.tolist() for name, values in found.items()}


def _entry(found: Interval) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
