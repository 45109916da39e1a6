"""What is counted before anything is changed: predictions, key statistics, intervals."""

from weightsmith.measure.convergence import Convergence
from weightsmith.measure.intervals import Interval, bootstrap, proportion
from weightsmith.measure.moments import Moment, key_moment, mixed
from weightsmith.measure.predictions import Predictions, misclassified, predict

__all__ = [
    "Convergence",
    "Interval",
    "Moment",
    "Predictions",
    "bootstrap",
    "key_moment",
    "misclassified",
    "mixed",
    "predict",
    "proportion",
]
