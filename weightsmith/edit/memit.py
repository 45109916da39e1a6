"""MEMIT and EMMET: many edits at once, by least squares or by equality, held back by the preserved keys' moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from weightsmith.edit.closed_form import ClosedForm
from weightsmith.edit.metric import InverseMoment, Metric
from weightsmith.edit.registry import editor
from weightsmith.edit.spread import Ridge, Solve, ridged
from weightsmith.models import Model


@editor("memit")
@dataclass(frozen=True, kw_only=True)
class MEMIT(ClosedForm):
    """Mass editing by least squares (Meng et al., MEMIT, ICLR 2023, eq. 14).

    ΔW = R Kᵀ (λC + K Kᵀ)⁻¹ = R (Kᵀ C⁻¹ K + λ I)⁻¹ Kᵀ C⁻¹ in each layer.

    | paper | here |
    |---|---|
    | C | second moment of the preserved keys |
    | λ = 15000 (`mom2_update_weight`) | `ridge`, λ relative to mean diag(Kᵀ C⁻¹ K); `moment_weight` is the paper's |

    Attributes:
        ridge, moment_weight: λ, relative or absolute; the absolute one wins where it is given.
    """

    ridge: float = 0.1
    moment_weight: float | None = None

    name: ClassVar[str] = "memit"

    def metric(self, moment: Tensor) -> Metric:
        return InverseMoment.of(moment, 1.0)

    def rho(self) -> Ridge:
        if self.moment_weight is not None:
            return Ridge(absolute=self.moment_weight)
        return Ridge(relative=self.ridge)


@editor("emmet")
@dataclass(frozen=True, kw_only=True)
class EMMET(ClosedForm):
    """Mass editing under equality constraints (Gupta et al., EMMET, 2024, eq. 10): ROME for many requests at once.

    ΔW = R (Kᵀ C̃⁻¹ K + λₑ I)⁻¹ Kᵀ C̃⁻¹ with C̃ = w C + μ I, in one layer, with λₑ = 0 for a single request.

    | paper's code | here |
    |---|---|
    | w (`mom2_update_weight`), μ | `moment_weight` and `shift`, of which only their ratio to λₑ matters |
    | λₑ = 0.1 | `edit_ridge`; `ridge` is relative to mean diag(Kᵀ C̃⁻¹ K) |

    Attributes:
        moment_weight: w; shift: μ.
        ridge, edit_ridge: λₑ, relative or absolute; the absolute one wins where it is given.
    """

    moment_weight: float = 1.0
    shift: float = 0.0
    ridge: float = 1e-3
    edit_ridge: float | None = None

    name: ClassVar[str] = "emmet"

    def metric(self, moment: Tensor) -> Metric:
        return InverseMoment.of(moment, self.moment_weight, shift=self.shift)

    def rho(self) -> Ridge:
        return Ridge(absolute=self.edit_ridge) if self.edit_ridge is not None else Ridge(relative=self.ridge)

    def solution(self) -> Solve:
        exact = ridged(Ridge(absolute=0.0))
        many = ridged(self.rho())
        return lambda measured, share, place: (many if len(share) > 1 else exact)(measured, share, place)

    def default_layers(self, model: Model) -> tuple[int, ...]:
        return super().default_layers(model)[-1:]
