"""The gate before a merge: every tensor of the base is accounted for in every model, or the merge does not begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from weightsmith.errors import WeightsmithError
from weightsmith.files import CHUNK
from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.heads import HeadPolicy, head_names
from weightsmith.merge.pieces import Sources

_TIED = 8
"""Tensors that a model may store otherwise because they are tied; where more are missing it is another architecture."""
_LOOK = 4096
"""Bytes by which tensors are told apart before they are compared as a whole."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where each tensor of the merged model comes from.

    Attributes:
        sources: what is merged.
        copied: tensors that are taken as they are: name → source (0 the base, then the models) and the name there.
        left_out: tensors of the base that the merged model does not have, because it was asked to do without its head.
        notes: what a user must know, in sentences.
    """

    sources: Sources
    copied: Mapping[str, tuple[int, str]]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of the merged model, sorted."""
        return tuple(sorted((*self.sources.names, *self.copied)))


def planned(base: Checkpoint, models: Sequence[Checkpoint], weights: Sequence[float], head: HeadPolicy) -> Plan:
    """Check that the models fit the base, tensor by tensor, and say where each tensor comes from.

    Raises:
        WeightsmithError: naming the model and the first tensor: another architecture, missing, extra, renamed or mis-shaped
            tensors, numbers of another kind.
    """
    heads = [frozenset[str]()] * (len(models) + 1)
    if head.way != "merge":
        heads = [head_names(checkpoint) for checkpoint in (base, *models)]
    body = [name for name in base.names if name not in heads[0]]
    notes: list[str] = []
    places: list[dict[str, str]] = []
    for model, own_head in zip(models, heads[1:], strict=True):
        _check_architecture(base, model)
        theirs = [name for name in model.names if name not in own_head]
        places.append(_places(base, model, body, theirs, notes))
        for name in body:
            _check_tensor(base, model, name, places[-1].get(name, name))
        notes += _told_types(base, model, body, places[-1])
    merged = tuple(name for name in body if base.kind(name).floating)
    copied = {name: (0, name) for name in body if not base.kind(name).floating}
    if head.way == "base":
        copied |= {name: (0, name) for name in heads[0]}
    if head.way == "take":
        copied |= {name: (1 + head.model, name) for name in heads[1 + head.model]}
    left_out = tuple(sorted(heads[0])) if head.way == "skip" else ()
    if left_out:
        notes.append(
            f"the merged model has no head ({', '.join(left_out)}), as --head skip asked: train one before it is used"
        )
    sources = Sources(base, tuple(models), tuple(weights), merged, tuple(places))
    return Plan(sources=sources, copied=copied, left_out=left_out, notes=tuple(notes))


def check_base_apart(base: Checkpoint, models: Sequence[Checkpoint], allowed: bool, method: str) -> None:
    """Raise `WeightsmithError` where the base is one of the models, whose change is 0 then."""
    mine = {path.resolve() for path in base.files()}
    for model in models:
        if not allowed and (model is base or (mine and mine & {path.resolve() for path in model.files()})):
            raise WeightsmithError(
                f"--models names the base {model.name}, whose change is 0 and would only thin out the others in {method}: "
                "take it out of --models"
            )


def twins(sources: Sources) -> dict[str, str]:
    """Merged tensors that are the same, byte by byte, in the base and in every model: tied ones, stored under two names.

    Returns:
        The later name → the first.
    """

    def held(name: str) -> list[tuple[Checkpoint, str]]:
        models = enumerate(sources.models)
        return [(sources.base, name), *((model, sources.place(i, name)) for i, model in models)]

    groups: dict[tuple[object, ...], list[str]] = {}
    for name in sources.names:
        if 0 not in sources.base.shape(name):
            looks = tuple(_look(*place) for place in held(name))
            groups.setdefault((sources.base.kind(name).name, sources.base.shape(name), *looks), []).append(name)
    found: dict[str, str] = {}
    for first, *others in groups.values():
        for name in others:
            if all(same(*one, *other) for one, other in zip(held(first), held(name), strict=True)):
                found[name] = first
    return found


def same(one: Checkpoint, name: str, other: Checkpoint, place: str) -> bool:
    """Whether two tensors agree in kind, shape and every byte."""
    if one.kind(name) != other.kind(place) or one.shape(name) != other.shape(place):
        return False
    kind, total = one.kind(name), int(np.prod(one.shape(name), dtype=np.int64))
    step = CHUNK // kind.size
    for first in range(0, total, step):
        n = min(step, total - first)
        mine, theirs = (c.bits(k, first, np.empty(n, kind.layout)) for c, k in ((one, name), (other, place)))
        if mine.tobytes() != theirs.tobytes():
            return False
    return True


def _look(checkpoint: Checkpoint, name: str) -> bytes:
    kind, total = checkpoint.kind(name), int(np.prod(checkpoint.shape(name), dtype=np.int64))
    return checkpoint.bits(name, 0, np.empty(min(total, _LOOK // kind.size), kind.layout)).tobytes()


def _check_architecture(base: Checkpoint, model: Checkpoint) -> None:
    mine, theirs = base.config.get("model_type"), model.config.get("model_type")
    if mine and theirs and mine != theirs:
        raise WeightsmithError(
            f"{model.name} is a model of the type {theirs} and the base {base.name} one of the type {mine}: only models that "
            "were fine-tuned from the base can be merged"
        )


def _places(
    base: Checkpoint, model: Checkpoint, body: Sequence[str], theirs: Sequence[str], notes: list[str]
) -> dict[str, str]:
    """The names under which a model has what it does not have under the base's name: tied tensors that are stored once."""
    missing = sorted(set(body) - set(theirs))
    extra = sorted(set(theirs) - set(body))
    places: dict[str, str] = {}
    for name in missing if len(missing) <= _TIED else []:
        twin = next(
            (other for other in body if other in model and other != name and same(base, name, base, other)), None
        )
        if twin is not None and base.kind(name).floating:
            places[name] = twin
            notes.append(f"{model.name} stores {name} once, as {twin}, to which the base ties it")
    few = extra if len(extra) <= _TIED else []
    copies = [name for name in few if any(o in base and o != name and same(model, name, model, o) for o in theirs)]
    notes += [
        f"{model.name} stores {name} twice, as tied tensors may be; the base and the merged model store it once"
        for name in copies
    ]
    missing = [name for name in missing if name not in places]
    extra = [name for name in extra if name not in copies]
    if not missing and not extra:
        return places
    hint = _renamed(missing, extra)
    if hint:
        raise WeightsmithError(
            f"{model.name} names its tensors otherwise than the base {base.name} ({hint}): save both alike"
        )
    which = f"lacks {len(missing)} of the base's {len(body)} tensors, {missing[0]} first" if missing else ""
    more = f"has {len(extra)} that the base does not have, {extra[0]} first" if extra else ""
    raise WeightsmithError(
        f"{model.name} {' and '.join(part for part in (which, more) if part)}: it is of another architecture or depth than "
        f"{base.name}, or was saved without them"
    )


def _renamed(missing: Sequence[str], extra: Sequence[str]) -> str:
    """How the names differ, where it is by a prefix alone or a single name is another one."""
    if missing and len(missing) == len(extra):
        for longer, shorter in ((missing, extra), (extra, missing)):
            prefix = longer[0].removesuffix(shorter[0])
            if prefix != longer[0] and all(l == prefix + s for l, s in zip(longer, shorter, strict=True)):  # noqa: E741
                return f"{extra[0]} where the base has {missing[0]}"
        if len(missing) == 1:
            return f"{extra[0]} where the base has {missing[0]}"
    return ""


def _check_tensor(base: Checkpoint, model: Checkpoint, name: str, place: str) -> None:
    mine, theirs = base.shape(name), model.shape(place)
    if mine != theirs:
        raise WeightsmithError(
            f"{model.name} has {place} of shape {list(theirs)} where the base {base.name} has {list(mine)}: they are of "
            "different sizes or class counts (--head base keeps the base's head, --head take:I a model's)"
        )
    kinds = base.kind(name), model.kind(place)
    if kinds[0].floating != kinds[1].floating or any(kind.name.startswith(("F8", "C")) for kind in kinds):
        odd = next((kind for kind in kinds if kind.name.startswith(("F8", "C"))), kinds[1])
        raise WeightsmithError(
            f"{model.name} or {base.name} has {name} as {odd.torch_name}, which cannot be merged: save both in float32, "
            "bfloat16 or float16"
        )


def _told_types(base: Checkpoint, model: Checkpoint, body: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """Where a model's numbers are of another width than the base's."""
    pairs: dict[tuple[str, str], int] = {}
    for name in body:
        pair = (model.kind(places.get(name, name)).torch_name, base.kind(name).torch_name)
        if base.kind(name).floating and pair[0] != pair[1]:
            pairs[pair] = pairs.get(pair, 0) + 1
    return [
        f"{model.name} has {count} tensors in {theirs} where the base has {mine}; they are merged in float32 or wider"
        for (theirs, mine), count in pairs.items()
    ]
