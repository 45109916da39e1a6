"""Cells of a sweep, measured one after another in this process or side by side in others: `each` is all that a sweep asks.

`each` hands cells out through joblib and takes what they came to as it comes, `work` is what happens where a cell is measured,
`clusters` knows Ray and Dask, `settings` what the flags mean, `told` what is said of cells that failed. Workers write nothing
into the run folder but what a sweep keeps beside its cells; results come back as values, and the process that was called writes
them.
"""

from weightsmith.run.spread.each import Sweep, each
from weightsmith.run.spread.settings import CELL_THREADS, Settings, check_spread, settings_of
from weightsmith.run.spread.told import kept_failure, to_redo
from weightsmith.run.spread.work import Failure, Measure, check_folder

__all__ = [
    "CELL_THREADS",
    "Failure",
    "Measure",
    "Settings",
    "Sweep",
    "check_folder",
    "check_spread",
    "each",
    "kept_failure",
    "settings_of",
    "to_redo",
]
