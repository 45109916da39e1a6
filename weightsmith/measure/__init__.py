"""What is counted before anything is changed: predictions, key statistics, intervals."""

from weightsmith.measure.intervals import Interval, bootstrap, proportion
from weightsmith.measure.moments import Moment, key_moment
from weightsmith.measure.predictions import Predictions, misclassified, predict

__all__ = [
    "Interval",
    "Moment",
    "Predictions",
    "bootstrap",
    "key_moment",
    "misclassified",
    "predict",
    "proportion",
]
