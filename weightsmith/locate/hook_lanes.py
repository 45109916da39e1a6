"""Restored runs of whole blocks, with hooks: the way that fits every network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightsmith.locate.lanes import Batch
from weightsmith.locate.plan import Write
from weightsmith.models import Model, patch, record
from weightsmith.site import Site


class HookLanes:
    """Restored runs of whole blocks, with hooks: from the first block written on."""

    def __init__(self, model: Model, clean: Tensor, corrupted: Tensor, kinds: set[str], held: set[str]) -> None:
        self._model = model
        layers = range(model.n_layers)
        # A pass starts from what the block before it gave: at its own input somebody's hook may have been already.
        streams = [Site("resid.out", layer) for layer in layers[:-1]]
        self._base = record(model, corrupted, [*streams, *(Site(k, i) for k in held for i in layers)], start=0)
        self._entering = [corrupted, *(self._base[site] for site in streams)]
        self._clean = record(model, clean, [Site(kind, layer) for kind in kinds for layer in layers], start=0)
        self.clean, self.corrupted = self._clean.logits, self._base.logits
        self.work = float(model.n_layers * (len(clean) + len(corrupted)))
        self._shape = corrupted.shape[1:]
        self.tokens = corrupted.shape[1] if model.family.has_tokens else 0

    def run(self, batch: Batch) -> Tensor:
        first = batch.writes[0][0].layer
        patches: dict[Site, Callable[[Tensor], Tensor]] = {}
        for place, write in enumerate(batch.writes[0]):
            site = Site(write.kind, write.layer)
            source = self._clean[site][batch.case] if write.clean else self._base[site][batch.base]
            patches[site] = _after(patches.get(site), _writer([lane[place] for lane in batch.writes], source))
        self.work += len(batch.base) * (self._model.n_layers - first)
        with patch(self._model, patches):
            return self._model.run_from(first, self._entering[first][batch.base])

    def lane_bytes(self) -> int:
        return 20 * int(self._shape.numel()) * 4


def _after(before: Callable[[Tensor], Tensor] | None, then: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return then if before is None else lambda old: then(before(old))


def _writer(writes: Sequence[Write], source: Tensor) -> Callable[[Tensor], Tensor]:
    if writes[0].rows is None:
        return lambda old: source.to(old.dtype)
    index = _index(writes, source.device)

    def write(old: Tensor) -> Tensor:
        written = old.clone()
        written[index] = source[index]
        return written

    return write


def _index(writes: Sequence[Write], device: torch.device) -> tuple[Tensor, ...]:
    """Where the writes of n lanes lie in (n, tokens, ·): index tensors that broadcast to (n, rows) or (n, rows, columns)."""
    rows = torch.tensor([write.rows for write in writes], device=device)
    lanes = torch.arange(len(writes), device=device)[:, None]
    if writes[0].columns is None:
        return lanes, rows
    first = torch.tensor([write.columns[0] for write in writes if write.columns is not None], device=device)
    columns = first[:, None] + torch.arange(writes[0].columns[1] - writes[0].columns[0], device=device)
    return lanes[:, :, None], rows[:, :, None], columns[:, None, :]
