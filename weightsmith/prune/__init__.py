"""Smaller models: what is not needed leaves the weights, what it did is made good by what stays.

`within_kl`, `within_macs` and `within_time` search for a circuit under a budget and return a physically smaller model. They
score heads and neurons (`unit_scores`), take the cheapest out (`removed`) and fit the maps behind the rest to the whole
model's stream (`refit`). `acdc` is the published search, one removal after another. `edge_scores` says how much each part
reads of each other part, `run_edges` runs the network with some of that only, and `faithfulness` how far the best of any
ranking alone do what the whole does.
"""

from weightsmith.prune.edges import CORRUPTIONS, EDGE_METHODS, EdgeGraph, EdgeScores, edge_scores, run_edges
from weightsmith.prune.faithfulness import (
    CIRCUIT_METRICS,
    FRACTIONS,
    FaithfulnessCurve,
    edge_faithfulness,
    faithfulness,
    unit_faithfulness,
)
from weightsmith.prune.fold import FOLDS, folded
from weightsmith.prune.masked import run_units
from weightsmith.prune.refit import Streams, refit, streams
from weightsmith.prune.removal import cls_only, removed, shape_of
from weightsmith.prune.scores import METHODS, agreement, unit_scores
from weightsmith.prune.search import (
    AcdcResult,
    Circuit,
    TimeTable,
    Ways,
    acdc,
    by_steps,
    time_table,
    within_kl,
    within_macs,
    within_time,
)
from weightsmith.prune.statistics import KeyStatistic, KeyStatistics, key_statistics
from weightsmith.prune.trials import Trials

__all__ = [
    "CIRCUIT_METRICS",
    "CORRUPTIONS",
    "EDGE_METHODS",
    "FOLDS",
    "FRACTIONS",
    "METHODS",
    "AcdcResult",
    "Circuit",
    "EdgeGraph",
    "EdgeScores",
    "FaithfulnessCurve",
    "KeyStatistic",
    "KeyStatistics",
    "Streams",
    "TimeTable",
    "Trials",
    "Ways",
    "acdc",
    "agreement",
    "by_steps",
    "cls_only",
    "edge_faithfulness",
    "edge_scores",
    "faithfulness",
    "folded",
    "key_statistics",
    "refit",
    "removed",
    "run_edges",
    "run_units",
    "shape_of",
    "streams",
    "time_table",
    "unit_faithfulness",
    "unit_scores",
    "within_kl",
    "within_macs",
    "within_time",
]
