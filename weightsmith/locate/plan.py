"""What restoring a site writes where, reduced to the fewest kinds of writes, and grouped so that many run as one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.models import Model
from weightsmith.site import Site

ORDER = (
    "resid.in", "attn.q", "attn.k", "attn.v", "attn.z", "attn.value", "attn.out",
    "mlp.key", "mlp.value", "mlp.out", "resid.out",
)  # fmt: skip
"""The kinds that are written, in the order in which a block computes them."""

BEFORE_ATTENTION = ("resid.in", "attn.q", "attn.k", "attn.v")

SEVERABLE = ("attn.out", "mlp.out")
"""What may be held at its corrupted value in the blocks behind a restored site."""


@dataclass(frozen=True)
class Write:
    """One activation put into a pass.

    Attributes:
        kind: one of `ORDER`.
        layer: its block.
        rows: the tokens written; None where there are no tokens.
        columns: (first, end) of the entries written, one head; None for all.
        clean: the value is that of the clean run; else that of the corrupted one, which holds a severed path.
    """

    kind: str
    layer: int
    rows: tuple[int, ...] | None
    columns: tuple[int, int] | None = None
    clean: bool = True

    @property
    def place(self) -> tuple[int, int]:
        """Where in the pass it happens."""
        return self.layer, ORDER.index(self.kind)

    @property
    def end(self) -> tuple[int, int]:
        """Where in the pass what it restores is complete: a linear map's whole input is as good as its output."""
        return self.layer, ORDER.index(self.kind if self.columns is not None else _SAME.get(self.kind, self.kind))

    @property
    def form(self) -> tuple[object, ...]:
        """Writes of one form run in one batch: they differ in which tokens and which head, not in how many."""
        width = None if self.columns is None else self.columns[1] - self.columns[0]
        return (self.kind, self.layer, None if self.rows is None else len(self.rows), width, self.clean)


@dataclass(frozen=True)
class Target:
    """What is measured once: a site restored.

    Attributes:
        index: its place among the sites asked for.
        writes: what restoring it writes, in the order of the pass; empty when nothing that is read depends on it.
        restores_all: the whole residual stream is restored, so that the pass ends as the clean one does.
    """

    index: int
    writes: tuple[Write, ...]
    restores_all: bool = False


def targets(
    model: Model,
    sites: Sequence[Site],
    tokens: int,
    *,
    sever: Sequence[str] = (),
    reduce: bool = True,
) -> list[Target]:
    """What restoring each of the sites writes, for inputs of so many tokens.

    Args:
        tokens: of each input; 0 where there are none.
        sever: kinds, `attn.out` or `mlp.out`, held at their corrupted values in all parts of the pass behind the site.
        reduce: leave out what cannot matter: behind the last block only one token is read, and before it only that
            token's query; linear maps' inputs are written as their outputs. Somebody's hook may make any of it matter.

    Raises:
        WeightsmithError: a site that the model has not or that cannot be written, a kind that cannot be severed.
    """
    wrong = [kind for kind in sever if kind not in SEVERABLE or kind not in model.family.sites]
    if wrong:
        there = [kind for kind in SEVERABLE if kind in model.family.sites]
        named = did_you_mean(wrong[0], there) if there else f"a {model.family.title} has no such paths, leave it out"
        raise WeightsmithError(f"--sever {wrong[0]} cannot be severed: {named}")
    found: list[Target] = []
    for index, site in enumerate(sites):
        single = site.each()
        writes = [_write(model, each, tokens, reduce) for each in single]
        last = max(writes, key=lambda write: write.place)
        held = [
            Write(kind, layer, _all(tokens), clean=False)
            for layer in range(last.layer, model.n_layers)
            for kind in sever
            if (layer, ORDER.index(kind)) > last.end
        ]
        everything = (
            last.kind in ("resid.in", "resid.out")
            and last.columns is None
            and (last.rows is None or len(last.rows) == tokens)
            and not held
        )
        ordered = sorted([*writes, *held], key=lambda write: write.place)
        if reduce:
            ordered = [kept for write in ordered if (kept := _reduced(model, write, tokens)) is not None]
            if not any(write.clean for write in ordered):
                ordered = []
        found.append(Target(index, tuple(ordered), everything))
    return found


def groups(found: Iterable[Target]) -> list[list[Target]]:
    """Targets that can run in one batch, by the forms of their writes."""
    by_form: dict[tuple[object, ...], list[Target]] = {}
    for target in found:
        if target.writes:
            by_form.setdefault(tuple(write.form for write in target.writes), []).append(target)
    return list(by_form.values())


def _all(tokens: int) -> tuple[int, ...] | None:
    return tuple(range(tokens)) if tokens else None


def _write(model: Model, site: Site, tokens: int, reduce: bool) -> Write:
    bound = model.bind(site)
    if not bound.writable or site.layer is None or site.kind not in ORDER:
        raise WeightsmithError(
            f"{site} cannot be restored: {did_you_mean(site.kind, [kind for kind in ORDER if kind in model.family.sites])}"
        )
    if bound.tokens is None:
        rows = _all(tokens)
    else:
        rows = tuple(sorted({(int(token) + tokens) % tokens if token < 0 else int(token) for token in bound.tokens}))
        if rows[-1] >= tokens:
            raise WeightsmithError(
                f"the site {site} asks for token {rows[-1]}: there are 0 to {tokens - 1}, name one of them"
            )
    columns: tuple[int, int] | None = None
    if site.head is not None:
        whole = model.bind(replace(site, head=None)).columns
        assert bound.columns is not None
        first = bound.columns.start - (0 if whole is None else whole.start)
        columns = (first, first + bound.columns.stop - bound.columns.start)
    kind = site.kind
    if reduce and model.family.parts is not None:
        # Behind these sites there is nothing but a linear map, and nothing else enters it at these tokens.
        kind = _SAME.get(kind, kind) if site.head is None else kind
    if reduce and kind == "resid.in" and site.layer > 0:
        return Write("resid.out", site.layer - 1, rows)
    return Write(kind, site.layer, rows, columns)


_SAME = {
    "attn.z": "attn.out",
    "attn.value": "attn.out",
    "mlp.key": "mlp.out",
    "mlp.value": "mlp.out",
}
"""Sites whose restoring is the restoring of what their block's sublayer adds, in a family that can be taken apart."""


def _reduced(model: Model, write: Write, tokens: int) -> Write | None:
    """The part of a write that the logits can depend on, None when there is none."""
    if write.rows is None or write.layer < model.n_layers - 1 or model.family.pool is None:
        return write
    if write.kind in ("resid.in", "attn.k", "attn.v"):
        return write
    read_at = tokens - 1 if model.family.pool == "last" else int(model.family.cls or 0)
    return replace(write, rows=(read_at,)) if read_at in write.rows else None


Lane = tuple[Target, int, int]
"""A target, the case in which it is restored, and the corrupted input."""


def is_idle(target: Target, first: int, causal: bool) -> bool:
    """Whether restoring the target cannot change this case: what is written is what is there."""
    written = [write for write in target.writes if write.clean]
    entering = all(write.kind == "resid.in" and write.layer == 0 for write in written)
    if entering and all(write.rows is not None and write.rows[-1] < first for write in written):
        return True
    # Before the first corrupted token a causal model's runs are the same.
    return causal and all(write.rows is not None and write.rows[-1] < first for write in written)


def first_token(target: Target, first: int, tokens: int) -> int:
    """The first token at which a lane can differ from its corrupted input."""
    written = [write.rows for write in target.writes if write.clean and write.rows]
    return min(first if len(rows) == tokens else rows[0] for rows in written)


def chunked(todo: Sequence[Lane], starts: Sequence[int], size: int, tokens: int) -> Iterator[tuple[int, list[Lane]]]:
    """Lanes that run together, with the first token of theirs: at most `size`, and of suffixes of about one length.

    All of a chunk run the longest suffix among them, so one that is a fifth shorter begins a chunk of its own.
    """
    order = sorted(range(len(todo)), key=lambda i: starts[i])
    chunk: list[int] = []
    for i in order:
        if chunk and (len(chunk) == size or tokens - starts[i] < 0.8 * (tokens - starts[chunk[0]])):
            yield starts[chunk[0]], [todo[k] for k in chunk]
            chunk = []
        chunk.append(i)
    if chunk:
        yield starts[chunk[0]], [todo[k] for k in chunk]


def first_changed(clean: Tensor, corrupted: Tensor) -> int:
    """The first token (of the first axis) whose embedding the corruption changes, over all noise samples."""
    if clean.ndim < 2:
        return 0
    changed = (corrupted != clean).any(-1).any(0)
    return int(changed.float().argmax()) if bool(changed.any()) else len(changed)
