"""Smaller models: what is not needed leaves the weights, what it did on average is folded into what stays.

`removed` takes heads, neurons, sublayers and blocks out of a vision transformer, `cls_only` leaves uncomputed what never
reaches the classifier. Which units may go is decided by `acdc`, which tries smaller models (`Trials`) in an order that
`unit_scores` gives.
"""

from weightsmith.prune.acdc import AcdcResult, acdc
from weightsmith.prune.fold import FOLDS, folded
from weightsmith.prune.removal import cls_only, removed, shape_of
from weightsmith.prune.scores import METHODS, agreement, unit_scores
from weightsmith.prune.statistics import KeyStatistic, KeyStatistics, key_statistics
from weightsmith.prune.trials import Trials

__all__ = [
    "FOLDS",
    "METHODS",
    "AcdcResult",
    "KeyStatistic",
    "KeyStatistics",
    "Trials",
    "acdc",
    "agreement",
    "cls_only",
    "folded",
    "key_statistics",
    "removed",
    "shape_of",
    "unit_scores",
]
