"""Accuracy, precision, recall and F1 with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from weightsmith.data import seal
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.measure import Interval, Predictions, bootstrap, predict, proportion
from weightsmith.measure.intervals import NOTHING
from weightsmith.measure.predictions import BATCH
from weightsmith.models import Model

MANY = 1000
"""Classes beyond which a table of all pairs of them is held in half the memory."""


@dataclass(frozen=True, eq=False)
class Classification:
    """Scores of one set of predictions.

    Attributes:
        accuracy, top5: with Wilson's 95% interval; top-5 is NaN with five classes or fewer, of which it says nothing.
        precision, recall, f1: one interval a class (bootstrap); NaN where the class is neither predicted nor present.
        macro: "precision", "recall" and "f1" averaged over the classes that are present.
        confusion: (classes, classes) counts, rows are the true classes.
    """

    accuracy: Interval
    top5: Interval
    precision: tuple[Interval, ...]
    recall: tuple[Interval, ...]
    f1: tuple[Interval, ...]
    macro: dict[str, Interval]
    confusion: np.ndarray

    @property
    def class_accuracy(self) -> tuple[Interval, ...]:
        """Share of each class's samples that are right, with Wilson's interval; `NOTHING` where there are none."""
        return tuple(proportion(int(row[label]), int(row.sum())) for label, row in enumerate(self.confusion))

    @classmethod
    def of(cls, predictions: Predictions) -> Classification:
        """Score predictions against their labels."""
        confusion = confusion_matrix(predictions)
        classes = len(confusion)
        cells = _Cells.of(confusion)
        by_class = bootstrap(
            cells.counts, lambda drawn: np.concatenate(cells.precision_recall_f1(drawn), 1), width=3 * classes
        )
        macro = bootstrap(
            cells.counts,
            lambda drawn: np.stack([_mean(score) for score in cells.precision_recall_f1(drawn)], 1),
            width=3 * classes,
        )
        return cls(
            accuracy=proportion(int(confusion.trace()), int(confusion.sum())),
            top5=top(predictions, 5),
            precision=tuple(by_class[:classes]),
            recall=tuple(by_class[classes : 2 * classes]),
            f1=tuple(by_class[2 * classes :]),
            macro=dict(zip(("precision", "recall", "f1"), macro, strict=True)),
            confusion=confusion,
        )


def classify(model: Model, images: ImageSet, title: str = "evaluating") -> Classification:
    """Score a model on a set of images; the one way in which a sealed set is read for plain scores."""
    return Classification.of(answers_of(model, images, title=title))


def answers_of(model: Model, images: ImageSet, batch_size: int = BATCH, title: str = "evaluating") -> Predictions:
    """What a model says of a set of images, which may be sealed. Raises as `predict`."""
    with seal.evaluation():
        return predict(model, images, batch_size, title)


def top(predictions: Predictions, k: int) -> Interval:
    """Share of samples whose class has one of the k largest logits, with Wilson's interval; `NOTHING` of k classes or fewer."""
    if predictions.logits.shape[1] <= k:
        return NOTHING
    among = (predictions.logits.topk(k, -1).indices == predictions.labels[:, None]).any(-1)
    return proportion(int(among.sum()), len(among))


def accuracy_change(before: Predictions, after: Predictions) -> Interval:
    """Accuracy of `after` − that of `before` on the same images; paired bootstrap over images.

    Raises:
        WeightsmithError: predictions of other images.
    """
    if before.names != after.names:
        raise WeightsmithError("two predictions are of different images: compare models on the same ones")
    was, now = before.right, after.right
    n, gained, lost = len(was), int((~was & now).sum()), int((was & ~now).sum())
    cells = np.array([gained, lost, n - gained - lost])
    return bootstrap(cells, lambda tables: ((tables[:, 0] - tables[:, 1]) / n)[:, None])[0]


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """(classes, classes) int64 counts, int32 of many classes; rows are the true classes, columns the predicted ones."""
    classes = predictions.logits.shape[1]
    pairs = predictions.labels.numpy() * classes + predictions.classes.numpy()
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return counts if classes <= MANY else counts.astype(np.int32)


@dataclass(frozen=True, eq=False)
class _Cells:
    """The cells of a confusion matrix that occur: of a table of many classes they are few.

    Attributes:
        counts: (cells,) int64; true, given: (classes, cells) which of them are of a true and of a predicted class.
        right: (cells,) whether the two are one.
    """

    counts: np.ndarray
    true: csr_matrix
    given: csr_matrix
    right: np.ndarray

    @classmethod
    def of(cls, confusion: np.ndarray) -> _Cells:
        classes = len(confusion)
        rows, columns = np.nonzero(confusion)
        if not len(rows):  # nothing was predicted
            rows = columns = np.zeros(1, dtype=np.int64)
        place = np.arange(len(rows))
        one = np.ones(len(rows), dtype=np.int64)
        true, given = (csr_matrix((one, (label, place)), (classes, len(rows))) for label in (rows, columns))
        return cls(confusion[rows, columns].astype(np.int64), true, given, rows == columns)

    def precision_recall_f1(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each (tables, classes), of the cells' counts in other tables (tables, cells)."""
        hits = (self.true @ (drawn * self.right).T).T.astype(np.float64)
        predicted, true = (self.given @ drawn.T).T, (self.true @ drawn.T).T
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = hits / predicted, hits / true
            f1 = 2 * hits / (predicted + true)
        # A class that is there but never predicted is missed, not undefined.
        return np.where((predicted == 0) & (true > 0), 0.0, precision), recall, f1


def _mean(scores: np.ndarray) -> np.ndarray:
    """(tables,) mean over the classes where the score is defined; NaN where it is nowhere."""
    defined = np.isfinite(scores)
    count = defined.sum(1)
    total = np.where(defined, scores, 0.0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
