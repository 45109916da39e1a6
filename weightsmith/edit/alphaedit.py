"""AlphaEdit on image classifiers: edits solved inside the null space of what must be preserved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from weightsmith.data.images import ImageSet
from weightsmith.delta import Delta
from weightsmith.edit.preserved import default_layers, right_ones
from weightsmith.edit.registry import editor
from weightsmith.edit.solver import NullSpace
from weightsmith.edit.spread import Place, Ridge, check_places, edit_batch
from weightsmith.edit.values import TargetOptions
from weightsmith.measure import key_moment
from weightsmith.models import Model
from weightsmith.request import ImageRequest

DEFAULT_FRACTION = 0.9
"""Share of the dimensions that the null space takes where nobody says."""


@editor("alphaedit")
@dataclass(frozen=True, kw_only=True)
class AlphaEdit:
    """Null-space constrained editing (Fang et al., AlphaEdit, ICLR 2025, eq. 14), on images.

    ΔW = R (Kᵀ P K + ρ I)⁻¹ Kᵀ P in each layer: K the keys of the edits at the lookup token (CLS), P the projector on
    the null space of the second moment of preserved keys, R the wanted minus the present values.

    | paper | here |
    |---|---|
    | K₁, R | keys and residuals of the requests at the lookup token |
    | K₀ | keys of the images of `preserve` that the model gets right, at the lookup token |
    | P, threshold 0.02 | `NullSpace`, by its share of the dimensions (`null_fraction`); or `null_threshold` |
    | – | whitening of what preserved energy the null space still holds (`null_floor`); None gives the paper's P |
    | L2 = 10 | `ridge`, relative to mean diag(Kᵀ P K); `l2` is the paper's |
    | K_p | none: one batch |

    Deviations: scale-free parameters; a margin instead of a fixed number of steps, so that no value is overshot;
    several rounds (see `edit_batch`).

    Attributes:
        layers: blocks to edit; None takes the last three.
        component: the linear maps to edit, "mlp.value" or "attn.value".
        null_fraction, null_energy, null_threshold: how large the null space is; at most one of them, none means
            null_fraction = 0.9.
        null_floor: ε of the whitened null space; None takes the paper's projector.
        ridge, l2: ρ, relative or absolute; exactly one of them.
        margin, steps, lr, clamp, weight_decay: of the target values, see `TargetOptions`.
        rounds: at most this many solves of the whole batch.
    """

    layers: tuple[int, ...] | None = None
    component: str = "mlp.value"
    null_fraction: float | None = None
    null_energy: float | None = None
    null_threshold: float | None = None
    null_floor: float | None = 1e-6
    ridge: float | None = 0.1
    l2: float | None = None
    margin: float = 0.1
    steps: int = 100
    lr: float = 0.05
    clamp: float = 4.0
    weight_decay: float = 1e-3
    rounds: int = 10

    def solve(
        self, model: Model, requests: Sequence[ImageRequest], preserve: ImageSet, cache_dir: Path | None = None
    ) -> Delta:
        """One batch of edits as a low-rank delta; `info` has a row a request and a row a solve.

        Args:
            preserve: images whose keys span what must not change; only those that the model gets right count.

        Raises:
            WeightsmithError: no requests, layers out of range, nothing preserved, or a null space without a dimension.
            HeldOutError: `preserve` is sealed.
        """
        layers = tuple(sorted(self.layers)) if self.layers is not None else default_layers(model)
        model.check_layers(layers)
        check_places(model, layers)
        rules = (self.null_fraction, self.null_energy, self.null_threshold)
        fraction = DEFAULT_FRACTION if rules == (None, None, None) else self.null_fraction
        sites = {layer: model.lookup(model.key_of(self.component), layer) for layer in layers}
        moments = key_moment(model, list(sites.values()), right_ones(model, preserve), cache_dir)
        places = [
            Place(
                self.component,
                layer,
                NullSpace.of(
                    moments[sites[layer]].matrix,
                    fraction=fraction,
                    energy=self.null_energy,
                    threshold=self.null_threshold,
                    floor=self.null_floor,
                ),
                moments[sites[layer]].matrix,
            )
            for layer in layers
        ]
        options = TargetOptions(
            margin=self.margin, steps=self.steps, lr=self.lr, clamp=self.clamp, weight_decay=self.weight_decay
        )
        delta = edit_batch(model, requests, places, Ridge(self.ridge, self.l2), options, self.rounds)
        info = {"method": "alphaedit", "options": asdict(self), "layers": list(layers)}
        return Delta(delta.changes, delta.base, info | delta.info)
