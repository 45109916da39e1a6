"""What is counted before anything is changed: predictions, key statistics, intervals."""

from weightsmith.measure.convergence import Convergence
from weightsmith.measure.cost import Cost
from weightsmith.measure.intervals import Interval, bootstrap, proportion
from weightsmith.measure.latency import Latency, latencies
from weightsmith.measure.moments import Moment, fit_at_once, key_moment, mixed
from weightsmith.measure.predictions import Predictions, misclassified, predict

__all__ = [
    "Convergence",
    "Cost",
    "Interval",
    "Latency",
    "Moment",
    "Predictions",
    "bootstrap",
    "fit_at_once",
    "key_moment",
    "latencies",
    "misclassified",
    "mixed",
    "predict",
    "proportion",
]
