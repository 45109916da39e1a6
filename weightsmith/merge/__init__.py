"""Combining models: checkpoints as they lie on the disk, read piece by piece, and the methods that merge them.

Only what touches a network imports torch, so that a merge takes the memory and the time of its tensors and of nothing else.
"""

from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.merging import Merged, check_target, merge
from weightsmith.merge.methods import METHODS, Method, create

__all__ = ["METHODS", "Checkpoint", "Merged", "Method", "check_target", "create", "merge"]
