"""`Family`: where the sites of an architecture lie, read from a TOML table. A new architecture is a table, no code."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from torch import nn

from weightsmith.errors import UnknownArchitectureError, WeightsmithError, did_you_mean, perhaps
from weightsmith.files import cause_of
from weightsmith.site import KINDS

_HOW_TO_ADD = (
    "write a table like weightsmith/models/families/vit.toml and pass it: "
    "weightsmith.load(model, family=weightsmith.models.Family.from_toml('mine.toml'))"
)


@dataclass(frozen=True)
class Place:
    """Where a kind of site lies.

    Attributes:
        module: module path; inside the block, or from the network's root when it starts with "/".
        side: the module's input or its output.
        item: which element, where the module returns a tuple.
        heads: the last axis is (heads, head width).
        tokens: the activation has a token axis.
        patch: writing there changes the pass; False where a hook sees a copy that nothing reads on.
        part: (i, n): the site is the i-th of n equal parts of the last axis, where one module gives several things.
    """

    module: str
    side: Literal["in", "out"]
    item: int | None = None
    heads: bool = False
    tokens: bool = True
    patch: bool = True
    part: tuple[int, int] | None = None

    def path(self, block: str) -> str:
        if self.module.startswith("/"):
            return self.module[1:]
        return f"{block}.{self.module}" if self.module else block


@dataclass(frozen=True)
class LinearPlace:
    """A linear map W·key + b = value that an editor can solve for."""

    key: str
    module: str
    transposed: bool = False  # the parameter holds Wᵀ, as GPT-2's Conv1D does


@dataclass(frozen=True)
class BlockParts:
    """The modules of a pre-norm block, so that it can be run in parts: x + attention(norm1(x)), then + mlp(norm2(.)).

    Attributes:
        norm1, norm2, mlp: modules inside the block.
        qkv: the projections to queries, keys and values, or one module that gives all three side by side.
        output: the attention's output projection.
        up: the MLP's first linear map, where a neuron is an activation of one; None where it is gated.
    """

    norm1: str
    norm2: str
    mlp: str
    qkv: tuple[str, ...]
    output: str
    up: str | None = None


@dataclass(frozen=True)
class Family:
    """One architecture: blocks, tokens, sites and linear maps by module path.

    `rotary` is the module that gives (cos, sin) of the positions, from the network's root, where blocks are handed them:
    None where positions are embedded; with `rotary_may_lack` a network without it turns queries and keys itself. `partial`
    says that a block may be without its attention or without its MLP; the sites of what is not there are not there either.
    `scaled` says that a factor a channel may lie between what a block's maps give and what is added to the stream. `fits` is
    what tells networks of one model type apart: attribute, counted from the root, → what it must be, a module by the name of
    its class, False for what must not be there.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    blocks: str
    tail: tuple[str, ...]
    pool: str | None
    classifier: str
    sites: dict[str, Place]
    linear: dict[str, LinearPlace]
    reads: Literal["images", "text"] = "images"
    has_tokens: bool = False
    cls: int | None = None
    special: int = 0
    attention: str | None = None
    head_width: str | None = None
    causal: bool = False
    rotary: str | None = None
    rotary_may_lack: bool = False
    parts: BlockParts | None = None
    partial: bool = False
    root: str = ""
    scaled: bool = False
    fits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lookup(self) -> str | None:
        """The tokens at which a whole input is read: CLS, or the last token of a text; None where there are no tokens."""
        if not self.has_tokens:
            return None
        return "last" if self.cls is None else "cls"

    @property
    def residual(self) -> bool:
        """Whether the blocks add to a residual stream."""
        return self.attention is not None

    @property
    def spreads(self) -> bool:
        """Whether what an MLP's map gives is added to the stream as it is, so that an edit can be spread over layers."""
        return self.residual and not self.scaled

    @classmethod
    def from_toml(cls, path: Path | str) -> Family:
        """Read a family table.

        Raises:
            WeightsmithError: naming the file and the entry, when the table is incomplete or names unknown sites.
        """
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise WeightsmithError(f"the family table {path} cannot be read ({cause_of(error)}): correct it") from error
        return cls._from_table(str(path), table)

    @classmethod
    def _from_table(cls, name: str, table: dict[str, Any]) -> Family:
        table = _extended(table, name)
        try:
            table = _filled(table, table.get("root", ""))
            sites = {
                kind: Place(**entry | ({"part": tuple(entry["part"])} if "part" in entry else {}))
                for kind, entry in table["sites"].items()
            }
            linear = {kind: LinearPlace(**entry) for kind, entry in table["linear"].items()}
            tokens, attention, tail = table.get("tokens"), table.get("attention", {}), table["tail"]
            parts = table.get("parts") or None  # a table says `parts = false` where the one it extends has them
            family = cls(
                name=Path(name).stem,
                title=table["title"],
                model_types=tuple(table["model_types"]),
                blocks=table["blocks"],
                tail=tuple(tail["modules"]),
                pool=tail.get("pool"),
                classifier=tail["classifier"],
                sites=sites,
                linear=linear,
                reads=table.get("reads", "images"),
                has_tokens=tokens is not None,
                cls=(tokens or {}).get("cls"),
                special=(tokens or {}).get("special", 0),
                attention=attention.get("module"),
                head_width=attention.get("head_width"),
                causal=attention.get("causal", False),
                rotary=attention.get("rotary"),
                rotary_may_lack=attention.get("rotary_may_lack", False),
                parts=None if parts is None else BlockParts(**parts | {"qkv": tuple(parts["qkv"])}),
                partial=table.get("partial", False),
                root=table.get("root", ""),
                scaled=table.get("scaled", False),
                fits=dict(table.get("fits", {})),
            )
        except (KeyError, TypeError) as error:
            raise WeightsmithError(
                f"the family table {name!r} is incomplete or has a wrong entry ({cause_of(error)}): correct it"
            ) from error
        unknown = [kind for kind in (*sites, *linear) if kind not in KINDS]
        if unknown:
            raise WeightsmithError(
                f"the family table {name!r} names the unknown site {unknown[0]!r}: {did_you_mean(unknown[0], KINDS)}"
            )
        sides = [place.side for place in sites.values() if place.side not in ("in", "out")]
        if sides or family.pool not in (None, "cls", "last"):
            wrong = f"side {sides[0]!r}, not in or out" if sides else f"pool {family.pool!r}, not cls or last"
            raise WeightsmithError(f"the family table {name!r} has the {wrong}: correct it")
        return family

    def head_paths(self, layers: int, head_layers: int = 1) -> tuple[str, ...]:
        """Modules that belong to the classes: the classifier and, of a head of several maps, the last blocks of so many."""
        deep = range(layers - head_layers + 1, layers)
        return (*(f"{self.blocks}.{layer}" for layer in deep), self.classifier)

    def misfit(self, module: nn.Module) -> str | None:
        """The first attribute that is not what `fits` says, in words; None where all are."""
        for path, wanted in self.fits.items():
            where = ".".join(part for part in (self.root, path) if part)
            found = _attribute(module, where)
            if found != wanted and not (wanted is False and found is None):
                return f"{where} is {found!r}, not {wanted!r}"
        return None

    def check(self, module: nn.Module) -> None:
        """Raise `WeightsmithError` naming the first module that the table names and the network does not have."""
        there = {name for name, _ in module.named_modules()}
        block = f"{self.blocks}.0"
        inside = [place.path(block) for place in self.sites.values()]
        if self.parts is not None:
            parts = self.parts
            inside += [f"{block}.{path}" for path in (parts.norm1, parts.norm2, parts.mlp, *parts.qkv, parts.output)]
        if self.partial:
            inside = [path for path in inside if not path.startswith(f"{block}.")]
        rotary = [self.rotary] if self.rotary and not self.rotary_may_lack else []
        named = [self.blocks, self.classifier, *self.tail, *rotary, *inside]
        missing = [path for path in named if path not in there]
        if missing:
            raise WeightsmithError(
                f"the family table {self.name!r} does not fit {type(module).__name__}: it has no module {missing[0]!r}, "
                f"so correct the table, or leave `family` out{perhaps(missing[0], there)}"
            )


def _extended(table: dict[str, Any], name: str) -> dict[str, Any]:
    """The table laid over the shipped one that it extends, that one over its own, and so on."""
    seen: list[str] = []
    while "extends" in table:
        parent = str(table["extends"])
        if parent not in _shipped_names() or parent in seen:
            raise WeightsmithError(
                f"the family table {name!r} extends {parent!r}: {did_you_mean(parent, _shipped_names())}"
            )
        seen.append(parent)
        table = _merged(_shipped_table(parent), {key: value for key, value in table.items() if key != "extends"})
    return table


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _filled(value: Any, root: str) -> Any:
    """The table with every {root} replaced."""
    if isinstance(value, dict):
        return {key: _filled(entry, root) for key, entry in value.items()}
    if isinstance(value, list):
        return [_filled(entry, root) for entry in value]
    return value.replace("{root}", root) if isinstance(value, str) else value


def _shipped_table(name: str) -> dict[str, Any]:
    text = (resources.files("weightsmith.models") / "families" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _shipped_names() -> list[str]:
    folder = resources.files("weightsmith.models") / "families"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


@cache
def families() -> dict[str, Family]:
    """Every shipped family by name."""
    return {name: Family._from_table(name, _shipped_table(name)) for name in _shipped_names()}


def family_of(module: nn.Module) -> Family:
    """The family that describes this network, by the model type in its config.

    Raises:
        UnknownArchitectureError: listing the families and how to add one.
    """
    model_type = getattr(getattr(module, "config", None), "model_type", None)
    named = [family for family in families().values() if model_type in family.model_types]
    for family in sorted(named, key=lambda one: -len(one.fits)):  # the table that says most comes first
        if family.misfit(module) is None and _has_module(module, family.blocks, family.classifier):
            return family
    what = type(module).__name__ + (f" (model type {model_type!r})" if model_type else "")
    reasons = "; ".join(f"{family.name} does not fit: {why}" for family in named if (why := family.misfit(module)))
    if reasons:
        raise UnknownArchitectureError(f"no family describes this {what}; {reasons}; to add one, {_HOW_TO_ADD}")
    known = ", ".join(f"{family.name} ({family.title})" for family in families().values())
    raise UnknownArchitectureError(f"no family describes {what}; known families: {known}; to add one, {_HOW_TO_ADD}")


def _attribute(module: nn.Module, path: str) -> Any:
    """The attribute at a dotted path, None where there is none; a module as the name of its class."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return type(found).__name__ if isinstance(found, nn.Module) else found


def _has_module(module: nn.Module, *paths: str) -> bool:
    names = {name for name, _ in module.named_modules()}
    return all(path in names for path in paths)
