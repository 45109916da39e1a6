"""Restored runs in which only what a write changes is computed, in a network that is taken apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightsmith.locate.lanes import Batch
from weightsmith.locate.plan import BEFORE_ATTENTION
from weightsmith.models import Model, Split, Trace


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some tokens of each lane: chosen ones, (n, r), or a stretch from `first` to the end."""

    first: int = 0
    chosen: Tensor | None = None

    def take(self, kept: Tensor, which: Tensor) -> Tensor:
        """A copy of these rows of `kept` (inputs, tokens, width), (n, r, width)."""
        if self.chosen is not None:
            return kept[which[:, None], self.chosen]
        return kept[which, self.first :] if self.first else kept[which]

    def lay(self, values: Tensor, onto: Tensor) -> None:
        """Write `values` (n, r, width) at these rows of `onto` (n, tokens, width)."""
        if self.chosen is None:
            onto[:, self.first :] = values
        else:
            onto[torch.arange(len(onto), device=onto.device)[:, None], self.chosen] = values

    def places(self, tokens: int, device: torch.device) -> Tensor:
        """Their positions, (r,) or (n, r)."""
        return torch.arange(self.first, tokens, device=device) if self.chosen is None else self.chosen

    def within(self, outer: _Rows, tokens: int, device: torch.device) -> Tensor:
        """(n or 1, r) where these rows lie among those of `outer`: a stretch that holds them, or the same chosen ones."""
        if outer.chosen is None:
            return _by_lane(self.places(tokens, device)) - outer.first
        return torch.arange(outer.chosen.shape[1], device=device)[None]


@dataclass(frozen=True, eq=False)
class _State:
    """The rows of the residual stream that differ from the corrupted run's, all others being its: values (n, r, width)."""

    rows: _Rows
    values: Tensor


@dataclass(frozen=True, eq=False)
class _Put:
    """One write of each lane, ready to be laid over activations.

    Attributes:
        kind: of the write.
        rows: the tokens written.
        columns: (n, c) the entries written, None for all.
        source: (inputs, tokens, width) of which lane i takes number which[i].
    """

    kind: str
    rows: _Rows
    columns: Tensor | None
    source: Tensor
    which: Tensor

    def covers(self, rows: _Rows) -> bool:
        """Whether it replaces these rows wholly."""
        if self.columns is not None:
            return False
        if self.rows.chosen is None:
            return rows.chosen is None and self.rows.first <= rows.first
        return rows.chosen is not None

    def onto(self, old: Tensor | None, rows: _Rows, turn: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Activations `old` (n, r, width) at `rows` with the write in them; `old` may be overwritten, or None if covered.

        Args:
            turn: what happens to the value before it is written, by its positions.
        """
        tokens, device = self.source.shape[1], self.source.device
        # A stretch that begins before the rows at hand is cut to them: what lies before is not computed.
        mine = (
            _Rows(max(self.rows.first, rows.first)) if self.rows.chosen is None and rows.chosen is None else self.rows
        )
        if self.columns is None:
            values = mine.take(self.source, self.which)
        else:
            places = _by_lane(mine.places(tokens, device))
            values = self.source[self.which[:, None, None], places[:, :, None], self.columns[:, None, :]]
        if turn is not None:
            values = turn(values, mine.places(tokens, device))
        if self.covers(rows):
            return values
        assert old is not None
        index = mine.within(rows, tokens, device)
        lanes = torch.arange(len(old), device=device)[:, None]
        if self.columns is None:
            old[lanes, index] = values
        else:
            old[lanes[:, :, None], index[:, :, None], self.columns[:, None, :]] = values
        return old


class SplitLanes:
    """Restored runs in which only what a write changes is computed.

    - A pass starts at the write itself, inside its block, from what the corrupted run left there.
    - In the block behind it only the changed rows get new queries, keys and values; all others are the corrupted run's.
    - In a causal model rows before the first write never change: the suffix runs against the corrupted keys and values.
    - In the last block only the row that the classifier reads is computed behind keys and values.
    """

    def __init__(self, model: Model, clean: Tensor, corrupted: Tensor, kinds: set[str], held: set[str]) -> None:
        self._split = split = Split.of(model, corrupted)
        streams = {"resid.in", "resid.mid", "resid.out", "query", "key", "attn.v"}
        of_attention = {"attn.z"} if "attn.z" in kinds else set()
        self._base: Trace = split.run(corrupted, streams | held | of_attention | (kinds & {"attn.out"}))
        self._clean: Trace = split.run(clean, kinds)
        self.clean, self.corrupted = self._clean.logits, self._base.logits
        self.work = float(model.n_layers * (len(clean) + len(corrupted)))
        rows = split.tokens
        self._whole = [
            block.macs(rows, queries=rows, keys=rows, attended=rows, outputs=rows, mlps=rows) for block in split.blocks
        ]
        inner = max(
            (p.numel() // corrupted.shape[2] for p in split.blocks[0].mlp.parameters() if p.ndim == 2), default=0
        )
        self.tokens = rows
        self._lane_bytes = rows * (10 * corrupted.shape[2] + 3 * inner) * corrupted.element_size()

    def lane_bytes(self) -> int:
        return self._lane_bytes

    def run(self, batch: Batch) -> Tensor:
        by_layer: dict[int, list[_Put]] = {}
        for place, write in enumerate(batch.writes[0]):
            by_layer.setdefault(write.layer, []).append(self._put(batch, place))
        state: _State | None = None
        for layer in range(batch.writes[0][0].layer, len(self._split.blocks)):
            state = self._block(layer, batch, state, by_layer.get(layer, []))
        assert state is not None
        return self._split.tail(self._row(state, batch, len(self._split.blocks), self._split.read_at)[:, 0])

    def _put(self, batch: Batch, place: int) -> _Put:
        writes = [lane[place] for lane in batch.writes]
        one, device = writes[0], batch.base.device
        columns: Tensor | None = None
        if one.columns is not None:
            first = torch.tensor([write.columns[0] for write in writes if write.columns is not None], device=device)
            columns = first[:, None] + torch.arange(one.columns[1] - one.columns[0], device=device)
        assert one.rows is not None
        if len(one.rows) == self._split.tokens:
            rows = _Rows(batch.first)
        else:
            rows = _Rows(chosen=torch.tensor([write.rows for write in writes], device=device))
        source, which = (self._clean, batch.case) if one.clean else (self._base, batch.base)
        return _Put(one.kind, rows, columns, source.at(one.kind, one.layer), which)

    def _block(self, layer: int, batch: Batch, state: _State | None, puts: Sequence[_Put]) -> _State:
        for put in puts:
            if put.kind == "resid.in":
                state = _State(put.rows, put.onto(None, put.rows))
        before = [put for put in puts if put.kind in BEFORE_ATTENTION[1:]]
        behind = [put for put in puts if put.kind not in BEFORE_ATTENTION]
        if state is None and not before:
            return self._inside(layer, batch, behind)
        last = layer == len(self._split.blocks) - 1
        read_at = self._split.read_at if last else None
        query, key, value = self._projected(layer, batch, state, before, read_at)
        block = self._split.blocks[layer]
        if read_at is not None:
            rows = _Rows(chosen=torch.full((len(batch.base), 1), read_at, device=batch.base.device))
            stream = self._row(state, batch, layer, read_at)
            first = read_at
        else:
            rows = _Rows(batch.first)
            stream = rows.take(self._base.at("resid.in", layer), batch.base)
            if state is not None:
                stream = _overlaid(stream, rows, state)
            first, query = batch.first, query[:, batch.first :]
        heads = block.attend(query, key, value, first if block.causal else None)
        self._count(layer, batch, attended=heads.shape[1])
        return self._behind(layer, batch, stream, heads, rows, behind)

    def _inside(self, layer: int, batch: Batch, puts: Sequence[_Put]) -> _State:
        """The block in which a pass starts, behind its keys and values: only the rows written are computed."""
        chosen = all(put.rows.chosen is not None for put in puts)
        same = chosen and all(torch.equal(_chosen(put.rows), _chosen(puts[0].rows)) for put in puts)
        rows = puts[0].rows if same else _Rows(batch.first)
        if not any(put.kind in ("attn.z", "attn.out") for put in puts):
            middle = rows.take(self._base.at("resid.mid", layer), batch.base)
            return self._mlp(layer, batch, middle, rows, puts)
        stream = rows.take(self._base.at("resid.in", layer), batch.base)
        if any(put.kind == "attn.z" for put in puts):
            heads = rows.take(self._base.at("attn.z", layer), batch.base)
            return self._behind(layer, batch, stream, heads, rows, puts)
        out = rows.take(self._base.at("attn.out", layer), batch.base)
        for put in puts:
            if put.kind == "attn.out":
                out = put.onto(out, rows)
        return self._mlp(layer, batch, stream + out, rows, puts)

    def _behind(
        self, layer: int, batch: Batch, stream: Tensor, heads: Tensor, rows: _Rows, puts: Sequence[_Put]
    ) -> _State:
        """From what the heads give to the end of the block, at some rows."""
        for put in puts:
            if put.kind == "attn.z":
                heads = put.onto(heads, rows)
        attention = [put for put in puts if put.kind == "attn.out"]
        out: Tensor | None = None
        if not any(put.covers(rows) for put in attention):
            out = self._split.blocks[layer].output(heads)
            self._count(layer, batch, outputs=heads.shape[1])
        for put in attention:
            out = put.onto(out, rows)
        assert out is not None
        return self._mlp(layer, batch, stream + out, rows, puts)

    def _mlp(self, layer: int, batch: Batch, middle: Tensor, rows: _Rows, puts: Sequence[_Put]) -> _State:
        """From the residual stream between attention and MLP to the end of the block, at some rows."""
        ends = [put for put in puts if put.kind == "resid.out"]
        if any(put.covers(rows) for put in ends):
            return _State(rows, ends[-1].onto(None, rows))
        block, mlps = self._split.blocks[layer], [put for put in puts if put.kind == "mlp.out"]
        out: Tensor | None = None
        if not any(put.covers(rows) for put in mlps):
            out = block.mlp(block.norm2(middle))
            self._count(layer, batch, mlps=middle.shape[1])
        for put in mlps:
            out = put.onto(out, rows)
        assert out is not None
        hidden = middle + out
        for put in ends:
            hidden = put.onto(hidden, rows)
        return _State(rows, hidden)

    def _projected(
        self, layer: int, batch: Batch, state: _State | None, puts: Sequence[_Put], read_at: int | None
    ) -> list[Tensor]:
        """Rotated queries, rotated keys and values of all tokens (queries of one, where only that is read)."""
        split, block = self._split, self._split.blocks[layer]
        found = [self._base.at(kind, layer) for kind in ("query", "key", "attn.v")]
        if state is None or state.values.shape[1] < split.tokens:
            found = [kept[batch.base] for kept in found]
        if state is not None:
            rows, device = state.rows, state.values.device
            one = read_at is not None and rows.chosen is None
            if one and read_at is not None:
                query, key, value = block.project_one(state.values, read_at - rows.first)
                query = split.rotate(query, torch.tensor([read_at], device=device))
            else:
                query, key, value = block.project(state.values)
                query = split.rotate(query, rows.places(split.tokens, device))
            key = split.rotate(key, rows.places(split.tokens, device))
            self._count(layer, batch, queries=query.shape[1], keys=key.shape[1])
            if state.values.shape[1] == split.tokens:
                found = [query, key, value]
            else:
                for old, new in zip(found[one:], (query, key, value)[one:], strict=True):
                    rows.lay(new, old)
                found[0] = query if one else found[0]
        if read_at is not None and found[0].shape[1] > 1:
            found[0] = found[0][:, read_at : read_at + 1]
        everything = _Rows()
        for put in puts:
            which = BEFORE_ATTENTION.index(put.kind) - 1
            turn = split.rotate if which < 2 else None
            rows = everything
            if which == 0 and read_at is not None:
                rows = _Rows(chosen=torch.full((len(batch.base), 1), read_at, device=batch.base.device))
            found[which] = put.onto(found[which], rows, turn)
        return found

    def _row(self, state: _State | None, batch: Batch, layer: int, row: int) -> Tensor:
        """(n, 1, width) one row of what enters a block, or behind the last one leaves it."""
        inside = layer < len(self._split.blocks)
        kept = self._base.at("resid.in", layer) if inside else self._base.at("resid.out", layer - 1)
        found = kept[batch.base, row][:, None]
        if state is None:
            return found
        if state.rows.chosen is None:
            return state.values[:, row - state.rows.first][:, None]
        lane, place = torch.nonzero(state.rows.chosen == row, as_tuple=True)
        found[lane, 0] = state.values[lane, place]
        return found

    def _count(self, layer: int, batch: Batch, **rows: int) -> None:
        self.work += len(batch.base) * self._split.blocks[layer].macs(self._split.tokens, **rows) / self._whole[layer]


def _by_lane(places: Tensor) -> Tensor:
    """(n, r) positions, or (1, r) where all lanes have the same."""
    return places if places.ndim == 2 else places[None]


def _chosen(rows: _Rows) -> Tensor:
    assert rows.chosen is not None
    return rows.chosen


def _overlaid(stream: Tensor, rows: _Rows, state: _State) -> Tensor:
    """A stretch of the stream with the rows that changed in it."""
    if state.rows.chosen is None:
        if state.rows.first == rows.first:
            return state.values
        stream[:, state.rows.first - rows.first :] = state.values
        return stream
    lanes = torch.arange(len(stream), device=stream.device)[:, None]
    stream[lanes, state.rows.chosen - rows.first] = state.values
    return stream
