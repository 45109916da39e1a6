"""Many restored runs at once. A lane is one of them: one corrupted input, and what is written into its pass.

Two ways to run them. `split_lanes` takes the network apart and computes only what the writes change; `hook_lanes` puts
hooks on the whole network and starts at the first block written, for families that cannot be taken apart and for
networks on which somebody else has hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from weightsmith.locate.plan import Write


@dataclass(frozen=True, eq=False)
class Batch:
    """Lanes that run together: all with writes of the same forms.

    Attributes:
        base: (n,) which corrupted input each lane starts from.
        case: (n,) which clean run its values come from.
        writes: one tuple of writes a lane.
        first: in a causal model, a token before which no lane differs from its corrupted input.
    """

    base: Tensor
    case: Tensor
    writes: Sequence[tuple[Write, ...]]
    first: int = 0


class Lanes(Protocol):
    """How restored runs are computed for some cases: their clean and corrupted runs are kept here.

    Attributes:
        clean, corrupted: (n, classes) logits of the unpatched runs.
        tokens: of each input, 0 where there are none.
        work: block forwards done so far, one input through one whole block being one.
    """

    clean: Tensor
    corrupted: Tensor
    tokens: int
    work: float

    def run(self, batch: Batch) -> Tensor:
        """(n, classes) logits of the lanes."""
        ...

    def lane_bytes(self) -> int:
        """Memory that one lane needs at most while it runs."""
        ...
