"""ROME: one request at a time, exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from weightsmith.edit.closed_form import ClosedForm
from weightsmith.edit.corrections import Measured
from weightsmith.edit.metric import InverseMoment, Metric
from weightsmith.edit.registry import editor
from weightsmith.edit.solver import Solution, solve
from weightsmith.edit.spread import Place, Ridge, Solve, ridged
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model


@editor("rome")
@dataclass(frozen=True, kw_only=True)
class ROME(ClosedForm):
    """Rank-one model editing (Meng et al., ROME, NeurIPS 2022, eq. 2), one request after another in one layer.

    ΔW = (v* − W k*) (C⁻¹ k*)ᵀ / (k*ᵀ C⁻¹ k*): the smallest change in the metric C that maps the key to the value.

    | paper | here |
    |---|---|
    | k* | key of the request at the lookup token, averaged over its contexts |
    | v* | wanted value at the edited map, see `TargetOptions` |
    | C | second moment of the preserved keys |

    The same averaged key stands in numerator and denominator. The published code divides by the bare prompt's key
    instead, which is the known cause of edits that disable a model (Gupta et al., "Rebuilding ROME", 2024); `compat`
    gives that form, for comparison.
    """

    name: ClassVar[str] = "rome"
    half_bare: ClassVar[bool] = False
    at_once: ClassVar[int | None] = 1
    stated: ClassVar[bool] = True

    def metric(self, moment: Tensor) -> Metric:
        return InverseMoment.of(moment, 1.0)

    def rho(self) -> Ridge:
        return Ridge(absolute=0.0)

    def solution(self) -> Solve:
        return _published if self.compat else ridged(self.rho())

    def default_layers(self, model: Model) -> tuple[int, ...]:
        return super().default_layers(model)[-1:]

    def _layers(self, model: Model) -> tuple[int | None, ...]:
        layers = super()._layers(model)
        if len(layers) > 1:
            raise WeightsmithError(f"ROME edits one layer and was given {len(layers)}: give one, or take memit")
        return layers


def _published(measured: Measured, share: Tensor, place: Place) -> Solution:
    """The code's form: u = C⁻¹ k* of the averaged key, divided by u · k of the bare one."""
    consistent = solve(measured.keys.mT.cpu(), share.mT.cpu(), place.metric, absolute_ridge=0.0)
    key, bare = measured.keys[0].double().cpu(), measured.bare[0].double().cpu()
    u = place.metric.times(key[:, None])[:, 0]
    factor = float(u @ key) / float(u @ bare)
    return replace(consistent, left=consistent.left * factor)
