"""What every closed-form editor is: where it edits, what it reads, what it aims at; a row adds its metric and ridge."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightsmith.delta import Delta, weights_hash
from weightsmith.edit.corrections import Corrections
from weightsmith.edit.metric import Metric
from weightsmith.edit.preserved import Preserved, default_layers, fits, last_layers, preserved_moments
from weightsmith.edit.reading import Contexts, corrections_of, without_repeats
from weightsmith.edit.spread import Place, Ridge, Solve, check_places, edit_batch, finished, ridged
from weightsmith.edit.targets import TargetOptions
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.request import Request, TextRequest

_log = logging.getLogger(__name__)

MARGIN = {"images": 0.1, "text": 4.0}
"""The logit margin that an edit aims at where nobody says."""

STEPS = {"images": (100, 0.05), "text": (30, 0.2)}
"""Steps of Adam for the wanted values where nobody says, and how large they are: a text's forward pass costs more."""

KL_FACTOR = {"subject_last": 0.0625, "last": 0.0}
"""Weight of the KL term on a neutral prompt where nobody says; where an answer is read nothing neutral can be."""


def margin_for(model: Model, given: float | None) -> float:
    """The margin that was given, or that of `MARGIN`. Raises `WeightsmithError` for a negative one."""
    margin = given if given is not None else MARGIN[model.family.reads]
    if not 0 <= margin < math.inf:
        raise WeightsmithError(
            f"--margin must be a number from 0, not {margin:g}: give by how much the wanted answer should lead, 0.3 say"
        )
    return margin


@dataclass(frozen=True, kw_only=True)
class ClosedForm(ABC):
    """An editor whose update is the solver's; see `solver` for ΔW and the rows for M and ρ.

    | paper | here |
    |---|---|
    | layers, `rewrite_module_tmp` | `layers`, `component` |
    | keys k averaged over prefixes | `prefix_lengths`, `half_bare`; for images `views` |
    | `v_num_grad_steps`, `v_lr`, `clamp_norm_factor`, `v_weight_decay`, `kl_factor` | `steps`, `v_lr`, `clamp`, … |
    | stop at loss < 0.05 | `stop_loss`; None stops each request at its margin and shortens δ to it |
    | present value in the prompt alone | `compat`; else averaged as the keys are |

    Attributes:
        layers: blocks to edit; None takes `default_layers`.
        component: the linear maps to edit: "mlp.value", "attn.value", or "classifier.value" (which has no layers).
        margin: by how much the wanted answer's logit should lead; None takes `MARGIN`.
        steps, lr, v_lr, clamp, weight_decay, kl_factor, stop_loss: of the target values, see `TargetOptions`; None takes
            `STEPS` and `KL_FACTOR`.
        lookup: token of a prompt at which a language model is edited: "last", behind which the answer is read (each token
            of the answer then has a key of its own), or the papers' "subject_last".
        prefix_lengths: (tokens, how many) of generated sentences before a prompt, over which keys and values are averaged.
        views, view: the same for images: how many augmented views beside each, and of which kind.
        seed: of prefixes and views.
        patch_weight: share of the patch tokens' moment in an image model's statistics, 0 to 1; the rest is CLS's.
        prompt_weight: share of the moment behind preserved prompts in a language model's statistics, where there are any.
        rounds: at most this many solves of the whole batch.
        compat: values as the papers read them.
    """

    layers: tuple[int, ...] | None = None
    component: str = "mlp.value"
    margin: float | None = None
    steps: int | None = None
    lr: float | None = None
    v_lr: float | None = None
    clamp: float = 4.0
    weight_decay: float = 0.0
    kl_factor: float | None = None
    stop_loss: float | None = None
    lookup: str = "last"
    prefix_lengths: tuple[tuple[int, int], ...] = ((3, 2), (8, 3))
    views: int = 0
    view: str = "light"
    seed: int = 0
    patch_weight: float = 0.0
    prompt_weight: float = 0.5
    rounds: int = 10
    compat: bool = False

    name: ClassVar[str]
    half_bare: ClassVar[bool] = True
    at_once: ClassVar[int | None] = None
    """How many requests one solve may hold; None is any number."""
    stated: ClassVar[bool] = False
    """Whether the wanted values are stated at the edited map itself rather than in the residual stream."""

    @abstractmethod
    def metric(self, moment: Tensor) -> Metric:
        """M of the preserved keys' second moment (d, d)."""

    @abstractmethod
    def rho(self) -> Ridge:
        """ρ."""

    def solution(self) -> Solve:
        """The solve at a place."""
        return ridged(self.rho())

    def default_layers(self, model: Model) -> tuple[int, ...]:
        """The blocks to edit where nobody says."""
        if model.family.reads == "text" and self.lookup == "last":
            return last_layers(model, 1)
        return default_layers(model)

    def solve(
        self, model: Model, requests: Sequence[Request], preserve: Preserved, cache_dir: Path | None = None
    ) -> Delta:
        """One batch of edits as a low-rank delta; `info` has a row a request and a row a solve.

        Args:
            preserve: images or texts whose keys span what must not change; of images only those that the model gets
                right count.

        Raises:
            WeightsmithError: no requests, requests that contradict each other, layers out of range, nothing preserved,
                or keys that the metric does not let be edited.
            HeldOutError: `preserve` is sealed.
        """
        kept, repeated = without_repeats(requests)
        corrections = self.read(model, kept, cache_dir)
        subjects = {request.subject for request in kept if isinstance(request, TextRequest)}
        places = self.places(model, preserve, subjects, cache_dir)
        delta = self.solve_at(model, corrections, places)
        layers = [place.layer for place in places if place.layer is not None]
        info = {"method": self.name, "options": asdict(self), "layers": layers, "repeated": repeated}
        return Delta(delta.changes, delta.base, info | delta.info)

    def read(self, model: Model, requests: Sequence[Request], cache_dir: Path | None = None) -> Corrections:
        """The requests as this editor reads them. Raises as `solve`."""
        contexts = Contexts(
            self.prefix_lengths, self.lookup, self.half_bare, self.compat, self.views, self.view, self.seed
        )
        return corrections_of(model, requests, contexts, cache_dir)

    def places(
        self, model: Model, preserve: Preserved, subjects: Iterable[str] = (), cache_dir: Path | None = None
    ) -> list[Place]:
        """Where it edits and under which metrics; prompts about `subjects` are not preserved. Raises as `solve`."""
        layers = self._layers(model)
        short = not fits(model, self.component, layers)
        places = []
        for layer, moment in preserved_moments(
            model, self.component, layers, preserve, self.patch_weight, self.prompt_weight, subjects, cache_dir
        ):
            place = Place(self.component, layer, self.metric(moment), moment)
            places.append(place.put_aside(cache_dir) if short else place)
        return places

    def solve_at(
        self,
        model: Model,
        corrections: Corrections,
        places: Sequence[Place],
        weights: Mapping[str, float] | None = None,
    ) -> Delta:
        """The delta for corrections that were read, at places whose metrics are known; `weights` by request's name."""
        margin = margin_for(model, self.margin)
        steps, lr = STEPS[model.family.reads]
        options = TargetOptions(
            margin=margin,
            steps=self.steps if self.steps is not None else steps,
            lr=self.lr if self.lr is not None else lr,
            v_lr=self.v_lr,
            clamp=self.clamp,
            weight_decay=self.weight_decay,
            kl_factor=self.kl_factor if self.kl_factor is not None else KL_FACTOR[self.lookup],
            stop_loss=self.stop_loss,
        )
        stated = self.component if self.stated else None
        size = self.at_once or len(corrections)
        if size >= len(corrections):
            return edit_batch(model, corrections, places, self.solution(), options, self.rounds, stated, weights)
        delta = Delta({}, weights_hash(model))
        solves: list[dict[str, Any]] = []
        norms: list[float] = []
        for first in range(0, len(corrections), size):
            with delta.on(model, check=False):
                chunk = corrections.part(first, first + size)
                step = edit_batch(model, chunk, places, self.solution(), options, self.rounds, stated, weights)
            delta = delta.then(step)
            solves += [{"first_request": first, **row} for row in step.info["solves"]]
            norms += [row["residual_norm"] for row in step.info["requests"]]
        info = {"solves": solves, "targets": asdict(options)}
        return finished(model, corrections, delta.compressed(), torch.tensor(norms), info)

    def _layers(self, model: Model) -> tuple[int | None, ...]:
        if self.component == "classifier.value":
            if self.layers:
                raise WeightsmithError("the classifier has no layers: leave --edit-layers out, or edit mlp.value")
            return (None,)
        layers = tuple(sorted(self.layers)) if self.layers is not None else self.default_layers(model)
        model.check_layers(layers)
        check_places(model, layers)
        return layers
