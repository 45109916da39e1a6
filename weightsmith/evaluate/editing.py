"""What an edit did: to the edited images, to other views of them, and to images that nothing has seen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.data import seal
from weightsmith.data.images import ImageSet
from weightsmith.data.views import random_view
from weightsmith.delta import Delta, lifted, wears_delta
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate.classification import Classification, accuracy_change
from weightsmith.evaluate.rows import report_row
from weightsmith.measure import Interval, Predictions, bootstrap, predict, proportion
from weightsmith.models import Model
from weightsmith.request import ImageRequest, stack_images, targets

MEASURES = ("efficacy", "generalisation", "locality", "repaired", "net_accuracy_change", "accuracy")
"""The headline measures, in the order in which they are shown."""


@dataclass(frozen=True, eq=False)
class EditReport:
    """One edit, measured (methods of model editing, image counterparts of ES, PS and NS).

    Attributes:
        efficacy: edited samples that are right now.
        generalisation: augmented views of edited samples that are right now; interval by bootstrap over samples.
        locality: held-out samples that were right and still are.
        repaired: held-out samples that were wrong and are right now.
        net_accuracy_change: held-out accuracy after − before, paired bootstrap.
        before, after: held-out predictions.
        scores_before, scores_after: their scores.
    """

    efficacy: Interval
    generalisation: Interval
    locality: Interval
    repaired: Interval
    net_accuracy_change: Interval
    before: Predictions
    after: Predictions
    scores_before: Classification
    scores_after: Classification

    def rows(self, class_names: Sequence[str]) -> list[dict[str, object]]:
        """The rows of `evaluation_report.csv`: measure, class, value before and after with 95% intervals, n."""
        before, after = self.scores_before, self.scores_after
        scores = ("precision", "recall", "f1")
        changes = MEASURES[:-1]
        return [
            report_row("accuracy", "", before.accuracy, after.accuracy),
            *(report_row(name, "", None, getattr(self, name)) for name in changes),
            *(report_row(f"macro_{name}", "", before.macro[name], after.macro[name]) for name in scores),
            *(
                report_row(name, class_name, getattr(before, name)[label], getattr(after, name)[label])
                for label, class_name in enumerate(class_names)
                for name in scores
            ),
        ]

    def __str__(self) -> str:
        lines = [f"held-out accuracy    {self.scores_before.accuracy} before, {self.scores_after.accuracy} after"]
        for name in MEASURES[:-1]:
            interval: Interval = getattr(self, name)
            lines.append(f"{name.replace('_', ' '):20} {interval}  n={interval.n}")
        return "\n".join(lines)


def editing(
    model: Model,
    requests: Sequence[ImageRequest],
    held_out: ImageSet,
    delta: Delta | None = None,
    *,
    views: str = "light",
    n_views: int = 8,
    seed: int = 0,
    before: Predictions | None = None,
) -> EditReport:
    """Measure an edit on the requests and on held-out images, before and after.

    Args:
        delta: the edit; None takes the one that the model wears: `with delta.on(model): editing(model, …)`.
        views: kind of augmented views for the generalisation; `n_views` of each request.
        before: predictions of the unedited model on `held_out`, when they are at hand.

    Raises:
        WeightsmithError: no delta, or held-out images among the requests.
    """
    if delta is None and not wears_delta(model):
        raise WeightsmithError("the model wears no delta: evaluate inside `with delta.on(model)`, or pass the delta")
    names = set(held_out.names())
    leaked = [request.name for request in requests if request.source == held_out.source and request.name in names]
    if leaked:
        raise WeightsmithError(f"{len(leaked)} edited samples are held out ({leaked[0]} first): hold out other images")
    with seal.evaluation():
        if before is None:
            with nullcontext() if delta is not None else lifted(model):
                before = predict(model, held_out, title="held-out, before")
        with nullcontext() if delta is None else delta.on(model):
            after = predict(model, held_out, title="held-out, after")
            hits = _hits(model, stack_images(requests), requests)
            view_hits = [
                _hits(model, random_view(stack_images(requests), views, seed * 1009 + k), requests)
                for k in range(n_views)
            ]
    was, now = before.right, after.right
    return EditReport(
        efficacy=proportion(int(hits.sum()), len(hits)),
        generalisation=_share_of_views(view_hits),
        locality=proportion(int((was & now).sum()), int(was.sum())),
        repaired=proportion(int((~was & now).sum()), int((~was).sum())),
        net_accuracy_change=accuracy_change(before, after),
        before=before,
        after=after,
        scores_before=Classification.of(before),
        scores_after=Classification.of(after),
    )


@torch.no_grad()
def _hits(model: Model, pixels: Tensor, requests: Sequence[ImageRequest]) -> Tensor:
    """(n,) bool: images that get the wanted class."""

    def classes(some: Tensor) -> Tensor:
        return model.logits(model.preprocess(some, model.device)).argmax(-1).cpu()

    return torch.cat(list(Fitting("edited images are asked").each(classes, [(pixels,)]))) == targets(requests)


def _share_of_views(view_hits: Sequence[Tensor]) -> Interval:
    """Share of right views. Views of one sample are not independent, so whole samples are resampled."""
    if not view_hits:
        return proportion(0, 0)
    count = len(view_hits)
    right = torch.stack(list(view_hits)).sum(0).numpy()  # (samples,) 0 … count
    cells = np.bincount(right, minlength=count + 1)
    shares = np.arange(count + 1) / count
    return bootstrap(cells, lambda tables: (tables @ shares / len(right))[:, None])[0]
