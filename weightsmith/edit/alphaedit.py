"""AlphaEdit: edits solved inside the null space of what must be preserved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from weightsmith.edit.closed_form import ClosedForm
from weightsmith.edit.metric import Metric, NullSpace
from weightsmith.edit.registry import editor
from weightsmith.edit.spread import Ridge

DEFAULT_FRACTION = 0.9
"""Share of the dimensions that the null space takes where nobody says."""


@editor("alphaedit")
@dataclass(frozen=True, kw_only=True)
class AlphaEdit(ClosedForm):
    """Null-space constrained editing (Fang et al., AlphaEdit, ICLR 2025, eq. 14).

    ΔW = R (Kᵀ P K + ρ I)⁻¹ Kᵀ P in each layer: K the keys of the edits at the lookup token (CLS, or the subject's last),
    P the projector on the null space of the second moment of preserved keys, R the wanted minus the present values.

    | paper | here |
    |---|---|
    | K₁, R | keys and residuals of the requests at the lookup token |
    | K₀ | keys of the preserved images at the lookup token, or of every token of the preserved texts |
    | P, threshold 0.02 | `NullSpace`, by its share of the dimensions (`null_fraction`); or `null_threshold` |
    | – | whitening of what preserved energy the null space still holds (`null_floor`); None gives the paper's P |
    | L2 = 10 | `ridge`, relative to mean diag(Kᵀ P K); `l2` is the paper's and wins where it is given |
    | K_p | none: one batch |

    Deviations: scale-free parameters; a margin instead of a fixed number of steps, so that no value is overshot;
    several rounds (see `edit_batch`).

    Attributes:
        null_fraction, null_energy, null_threshold: how large the null space is; at most one of them, none means
            null_fraction = 0.9.
        null_floor: ε of the whitened null space; None takes the paper's projector.
        ridge, l2: ρ, relative or absolute.
    """

    null_fraction: float | None = None
    null_energy: float | None = None
    null_threshold: float | None = None
    null_floor: float | None = 1e-6
    ridge: float = 0.1
    l2: float | None = None

    name: ClassVar[str] = "alphaedit"

    def metric(self, moment: Tensor) -> Metric:
        rules = (self.null_fraction, self.null_energy, self.null_threshold)
        return NullSpace.of(
            moment,
            fraction=DEFAULT_FRACTION if rules == (None, None, None) else self.null_fraction,
            energy=self.null_energy,
            threshold=self.null_threshold,
            floor=self.null_floor,
        )

    def rho(self) -> Ridge:
        return Ridge(absolute=self.l2) if self.l2 is not None else Ridge(relative=self.ridge)
