"""What a search stands on: the whole model's answers, keys and stream, read once, and what each attempt says beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.circuit import Kept, Shape
from weightsmith.data.images import ImageSet
from weightsmith.data.views import random_view
from weightsmith.errors import WeightsmithError
from weightsmith.measure import Interval
from weightsmith.measure.intervals import means
from weightsmith.models import Model
from weightsmith.prune.refit import Streams, images_that_fit, refit, streams
from weightsmith.prune.removal import cls_only, computes_cls_only, removed, shape_of
from weightsmith.prune.statistics import KeyStatistics, key_statistics

JUDGING = 0.25
"""Share of the calibration images on which attempts are judged, where no others are given; nothing is fitted to them."""

_JUDGED, _MOST_VIEWS = 1024, 4
_BATCH = 64


def views_of(judging: int) -> int:
    """Random views that each of so many judging images has beside itself, so that attempts are judged on enough."""
    return max(0, min(_MOST_VIEWS, -(-_JUDGED // judging) - 1)) if judging else 0


@dataclass(eq=False)
class Ground:
    """One model and its calibration images, and what attempts at a smaller one cost and say.

    Attributes:
        model: whole, all tokens computed. given: as it came.
        shape: of the model. macs: multiply-adds of an image in the one that was given.
        fitting: images that maps are fitted to and units scored on. judging: on which attempts are judged.
        views: light views of each judging image that attempts are judged by as well: so many that about 1,024 are seen.
        clean: (1 + views, n, classes) float64 log-probabilities of the whole model on the judging images and their views.
        fold, ridge: as for `removed`; only "ridge" is followed by `refit`.
        passes: forward-equivalents over all calibration images spent so far: multiply-adds of networks that ran, divided by
            those of the whole model over all of them; a backward pass counts as two.
    """

    model: Model
    given: Model
    shape: Shape
    macs: int
    fitting: ImageSet
    judging: ImageSet
    views: int
    clean: Tensor
    statistics: KeyStatistics | None
    streams: Streams | None
    fold: str
    ridge: float
    passes: float

    @classmethod
    def of(
        cls, model: Model, images: ImageSet, judging: ImageSet | None, *, fold: str, ridge: float, seed: int
    ) -> Ground:
        """Read what is needed of the whole model; without images to judge by, a part of the others is kept aside for it.

        A model knows the images that it was trained on so well that less changes there than on others: judge by those.

        Raises:
            HeldOutError: the images are sealed.
            WeightsmithError: fewer than 8 images, images of other classes, no ViT.
        """
        images.check_open()
        if len(images) < 8:
            raise WeightsmithError(f"{len(images)} calibration images are too few to search with: give 8 or more")
        if images.n_classes != model.n_classes:
            raise WeightsmithError(
                f"{model.name} has {model.n_classes} classes and the calibration images {images.n_classes}: give images of "
                "the data that it was trained on"
            )
        shape = shape_of(model)
        given, alone = model, computes_cls_only(model)
        model = cls_only(model, only=False) if alone else model
        fitting = images
        if judging is None:
            order = np.random.default_rng(seed).permutation(len(images))
            count = max(2, round(JUDGING * len(images)))
            judging, fitting = (images.subset(np.sort(part)) for part in (order[:count], order[count:]))
        judging.check_open()
        views = views_of(len(judging))
        clean = _log_probabilities(model, judging, views)
        if not bool(clean.isfinite().all()):
            raise WeightsmithError(
                f"{model.name} gives logits that are not finite: train it again, or repair its weights"
            )
        found = cls(
            model, given, shape, shape.macs(alone), fitting, judging, views, clean, None, None, fold, ridge, 0.0
        )
        found._count(len(judging) * (1 + views))
        if fold != "none":
            found.statistics = key_statistics(model, fitting)
            found._count(len(fitting))
        if fold == "ridge":
            shown = fitting.subset(np.arange(images_that_fit(model, len(fitting))))
            found.streams = streams(model, shown)
            found._count(len(shown))
        return found

    def smaller(self, kept: Kept) -> Model:
        """The physically smaller model, folded and fitted, all tokens computed."""
        if kept == Kept.everything(self.shape):
            return self.model
        made = removed(self.model, kept, self.statistics, fold=self.fold, ridge=self.ridge)
        if self.streams is not None:
            refit(made, kept, self.streams, fingerprint=self.streams.fingerprint, ridge=self.ridge)
            self._count(len(self.streams), kept)
        return made

    def kl(self, model: Model, kept: Kept) -> np.ndarray:
        """(1 + views, n) KL(whole ‖ smaller) of each judging image and of its views, nats."""
        said = _log_probabilities(model, self.judging, self.views)
        self._count(len(self.judging) * (1 + self.views), kept)
        # Rounding gives a model against itself −1e-17.
        return (self.clean.exp() * (self.clean - said)).sum(-1).clamp(min=0.0).numpy()

    def _count(self, images: int, kept: Kept | None = None) -> None:
        share = 1.0 if kept is None else kept.shape(self.shape).macs() / self.shape.macs()
        self.passes += share * images / (len(self.fitting) + len(self.judging))

    def scored(self, images: int, kept: Kept, passes: float) -> None:
        """Add what scoring the units of a smaller model took: so many of its passes over so many images."""
        share = kept.shape(self.shape).macs() / self.shape.macs()
        self.passes += passes * share * images / (len(self.fitting) + len(self.judging))


@torch.no_grad()
def _log_probabilities(model: Model, images: ImageSet, views: int) -> Tensor:
    """(1 + views, n, classes) float64 of images and of random views of them, which are the same in every call."""
    dtype = next(model.module.parameters()).dtype

    def answered(*seen: Tensor) -> Tensor:
        logits = [model.logits(model.preprocess(some, model.device).to(dtype)) for some in seen]
        return torch.stack(logits).double().cpu().log_softmax(-1)

    batches = (
        [pixels, *(random_view(pixels, "light", number * _MOST_VIEWS + i) for i in range(views))]
        for number, (pixels, _) in enumerate(images.batches(_BATCH))
    )
    return torch.cat(list(Fitting("a smaller model is asked").each(answered, batches)), 1)


def interval(values: np.ndarray) -> Interval:
    """Mean over the judging images themselves, with its bootstrap interval."""
    return means(values[0][:, None])[0]


def bound(values: np.ndarray) -> float:
    """What a budget is compared with, so that it holds on other images too: the larger of two guesses at the mean KL there.

    One is the one-sided 95% bound of the mean by Student's t. It is too small where the few images that change most are
    not among those seen: the KL of a sure model is nothing on nearly all. The other is the mean over views as well, some
    of which are less sure.

    Args:
        values: (1 + views, n) as `Ground.kl` gives them.
    """
    plain = values[0]
    if len(plain) < 2:
        return float("inf")
    above = plain.mean() + t.ppf(0.95, len(plain) - 1) * plain.std(ddof=1) / np.sqrt(len(plain))
    return float(max(above, values.mean()))
