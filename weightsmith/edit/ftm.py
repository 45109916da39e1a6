"""Fine-tuning of the last MLP's value map by margins, held to what the unedited model says."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.delta import Delta, Dense, weights_hash
from weightsmith.edit.closed_form import margin_for
from weightsmith.edit.last_map import Asked, LastMap, Pool, Rows
from weightsmith.edit.preserved import Preserved
from weightsmith.edit.reading import Contexts, corrections_of, without_repeats
from weightsmith.edit.registry import editor
from weightsmith.edit.spread import finished
from weightsmith.edit.targets import margins
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.request import Request, TextRequest

MARGIN = {"images": 1.0, "text": 3.0}
"""The logit margin that it aims at where nobody says."""

_ENOUGH = 0.9
"""Share of the new rows that must have half their margin before it stops: what it says behind a few generated prefixes is
not worth a hundred steps."""

_BETAS = (0.9, 0.95)
"""Of Adam: a batch has few steps, and the first gradients are the largest."""

_ROWS = 4096
"""Rows of new requests a step; of more, as many are drawn."""

Read = Callable[[Request], Asked]
"""From a request to its rows."""

Replay = Callable[[int], Sequence[Request]]
"""From the number of a step to the earlier requests that are asked again in it."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """What the unedited model says of preserved samples: its W (width, d), and the samples as rows.

    A prompt that names the subject of a request, and that the unedited model answers as it answers the request, is about
    what the request changes: it is held no more. What else is known of the subject is.
    """

    last: LastMap
    weight: Tensor
    pools: Sequence[Pool]
    _about: dict[str, Tensor] = field(default_factory=dict)

    def apart_from(self, requests: Iterable[Request], read: Read) -> list[Rows]:
        """The rows of each pool that these requests leave as they are; an empty pool is left out.

        Args:
            read: the rows of a request, asked for once each.
        """
        texts = [request for request in requests if isinstance(request, TextRequest)]
        found = []
        for pool in self.pools:
            rows = pool.rows
            if pool.prompts and texts:
                kept = torch.ones(len(rows), dtype=torch.bool, device=rows.keys.device)
                for request in texts:
                    kept[self._rows_about(pool, request, read)] = False
                rows = rows[torch.nonzero(kept).flatten()]
            if len(rows):
                found.append(rows)
        return found

    @torch.no_grad()
    def _rows_about(self, pool: Pool, request: TextRequest, read: Read) -> Tensor:
        """Places of the rows that are about what a request changes."""
        known = f"{request.subject}\n{request.prompt}"
        if known not in self._about:
            first = int(self.last.logits(self.weight, read(request).rows[:1]).argmax())
            each = enumerate(zip(pool.prompts, pool.answers, strict=True))
            named = [place for place, (prompt, said) in each if said == first and request.subject in prompt]
            self._about[known] = torch.tensor(named, dtype=torch.long, device=self.weight.device)
        return self._about[known]


@editor("ftm")
@dataclass(frozen=True, kw_only=True)
class FTM:
    """Adam on the value map of the last MLP, by margins, while KL holds preserved outputs where they were.

    loss = mean over asked rows of max(0, margin − lead) + `kl` · Σ over populations KL(unedited ‖ now)

    A row is a token of an answer in one context, or a view of an image; its lead is the logit of what is wanted over the
    largest other. Populations are images that the model gets right, or tokens of running text and prompts with what the
    unedited model answers them; a step draws `batch` rows of each. A margin is an inequality: a row that holds asks for
    nothing. That leaves room for more edits than the map has input dimensions, where closed forms, which fix a value for
    every key, run out of them.

    After FT-M (Zhang et al., A Comprehensive Study of Knowledge Editing for Large Language Models, 2024), which trains one
    down-projection on the answers' tokens. Deviations: margins in place of NLL, the KL term, the last block (keys do not
    depend on what is learned, so a step costs a read-out a row; see `last_map`), and replay in every step of a stream.

    Attributes:
        margin: wanted lead; None takes `MARGIN`.
        lr: Adam's step, relative to the root mean square of the unedited W.
        steps: at least so many; most: at most so many, while more than a tenth of the rows lack half their margin.
        kl: weight of the KL term; batch: preserved rows of each population a step.
        preserved: rows of each population that are kept to draw from.
        prefix_lengths: (tokens, how many) of generated sentences before a prompt, each a context.
        views, view: the same for images: how many augmented views, and of which kind.
        seed: of contexts and draws.
    """

    margin: float | None = None
    lr: float = 0.09
    steps: int = 40
    most: int = 200
    kl: float = 25.0
    batch: int = 512
    preserved: int = 40000
    prefix_lengths: tuple[tuple[int, int], ...] = ((3, 2), (8, 3))
    views: int = 0
    view: str = "light"
    seed: int = 0

    name: ClassVar[str] = "ftm"

    def __post_init__(self) -> None:
        """Raise `WeightsmithError` for hyper-parameters out of range."""
        if not (0 < self.lr < math.inf and 0 <= self.kl < math.inf):
            raise WeightsmithError(
                f"ftm needs lr above 0 and kl from 0, not lr {self.lr:g} and kl {self.kl:g}: leave them out for the usual"
            )
        if not (1 <= self.steps <= self.most and self.batch >= 1 and self.preserved >= 1):
            raise WeightsmithError(
                f"ftm needs steps from 1 to most, batch and preserved from 1, not steps {self.steps}, most {self.most}, "
                f"batch {self.batch} and preserved {self.preserved}: leave them out for the usual"
            )

    def solve(
        self, model: Model, requests: Sequence[Request], preserve: Preserved, cache_dir: Path | None = None
    ) -> Delta:
        """A delta on the map; `info` has a row a request.

        Raises:
            WeightsmithError: no requests, requests that contradict each other, nothing preserved, or a model without such
                a map.
            HeldOutError: `preserve` is sealed.
        """
        kept, repeated = without_repeats(requests)
        rows = {request.name: self.read(model, request, cache_dir) for request in kept}
        delta = self.solve_at(model, kept, self.anchor(model, preserve), lambda request: rows[request.name])
        return Delta(delta.changes, delta.base, delta.info | {"repeated": repeated})

    def read(self, model: Model, request: Request, cache_dir: Path | None = None) -> Asked:
        """The rows of a request, read by itself, so that they do not depend on what else is asked. Raises as `solve`."""
        contexts = Contexts(self.prefix_lengths, "last", views=self.views, view=self.view, seed=self.seed)
        return LastMap.of(model).asked(corrections_of(model, [request], contexts, cache_dir))

    def anchor(self, model: Model, preserve: Preserved) -> Anchor:
        """What later edits are held to: measured on the unedited model. Raises as `solve`."""
        last = LastMap.of(model)
        return Anchor(last, last.weight(), last.preserved(preserve, self.preserved, self.seed))

    def solve_at(
        self,
        model: Model,
        requests: Sequence[Request],
        anchor: Anchor,
        read: Read,
        *,
        edited: Sequence[Request] = (),
        replay: Replay | None = None,
        weight: float = 1.0,
    ) -> Delta:
        """The delta for requests on the model as it is.

        Args:
            read: the rows of a request, as `read` gives them.
            edited: all earlier requests: what they changed is not held.
            replay: those that are asked again in each step, where their rows count `weight`.
        """
        margin = margin_for(model, self.margin if self.margin is not None else MARGIN[model.family.reads])
        last = LastMap.of(model)
        held = anchor.apart_from([*edited, *requests], read)
        asked = [read(request) for request in requests]
        generator = torch.Generator().manual_seed(self._seed_of(requests))
        new = Asked.joined(asked)
        start = last.weight()
        w = start.clone().requires_grad_()
        rms = float(anchor.weight.square().mean().sqrt())
        optimizer = torch.optim.Adam([w], lr=self.lr * rms, betas=_BETAS)
        steps = 0
        for step in range(self.most):
            rows = new if len(new) <= _ROWS else new[_drawn(new.rows, _ROWS, generator)]
            again = replay(step) if replay is not None else ()
            both = Asked.joined([rows, *map(read, again)])
            leads = margins(last.logits(w, both.rows), both.wanted)
            met = float((leads[: len(rows)].detach() >= margin / 2).float().mean())
            if step >= self.steps and met >= _ENOUGH:
                break
            short = (margin - leads).clamp(min=0)
            loss = (short[: len(rows)].sum() + weight * short[len(rows) :].sum()) / len(rows)
            for pool in held:
                chosen = pool[_drawn(pool, self.batch, generator)]
                with torch.no_grad():
                    before = last.logits(anchor.weight, chosen).log_softmax(-1)
                now = last.logits(w, chosen).log_softmax(-1)
                loss = loss + self.kl * F.kl_div(now, before, log_target=True, reduction="batchmean")
            if not bool(torch.isfinite(loss)):
                raise WeightsmithError(f"fine-tuning diverged in step {step + 1}: give a smaller lr than {self.lr:g}")
            (w.grad,) = torch.autograd.grad(loss, [w])
            optimizer.step()
            steps += 1
        change = w.detach() - start
        moved = torch.stack([(each.rows.keys @ change.mT).norm(dim=1).mean() for each in asked]).cpu()
        stored = change.mT.contiguous() if last.transposed else change
        layers = [model.n_layers - 1]
        info = {"method": self.name, "options": asdict(self), "layers": layers, "steps": steps}
        delta = Delta({last.name: Dense(stored.cpu())}, weights_hash(model))
        corrections = corrections_of(model, requests, Contexts(lookup="last"))
        return finished(model, corrections, delta, moved, info)

    def _seed_of(self, requests: Sequence[Request]) -> int:
        """Other draws for other requests: a stream would else hold the same few preserved rows in every batch."""
        told = f"{self.seed}|" + "|".join(request.name for request in requests)
        return int.from_bytes(hashlib.sha256(told.encode()).digest()[:7], "big")


def _drawn(rows: Rows, count: int, generator: torch.Generator) -> Tensor:
    """(count,) places of rows, drawn with replacement."""
    return torch.randint(len(rows), (count,), generator=generator).to(rows.keys.device)
