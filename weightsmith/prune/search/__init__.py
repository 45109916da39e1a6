"""Which heads and neurons may go: searches under a budget of KL, multiplications or time, and ACDC's one by one."""

from weightsmith.prune.search.acdc import AcdcResult, acdc
from weightsmith.prune.search.in_steps import by_steps
from weightsmith.prune.search.in_time import within_time
from weightsmith.prune.search.timing import TimeTable, time_table
from weightsmith.prune.search.within import Circuit, Ways, within_kl, within_macs

__all__ = [
    "AcdcResult",
    "Circuit",
    "TimeTable",
    "Ways",
    "acdc",
    "by_steps",
    "time_table",
    "within_kl",
    "within_macs",
    "within_time",
]
