"""`Site`: a named place in a network, `mlp.key[7]@cls`, that parses and prints as the same text."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from types import MappingProxyType

from weightsmith.errors import WeightsmithError, did_you_mean

KINDS = MappingProxyType(
    {
        "resid.in": "residual stream entering a block",
        "resid.mid": "residual stream between attention and MLP",
        "resid.out": "residual stream leaving a block",
        "attn.q": "queries, by head",
        "attn.k": "keys of the attention, by head",
        "attn.v": "values of the attention, by head",
        "attn.z": "weighted values of each head: input of the attention's output projection",
        "attn.value": "output of the attention's output projection",
        "attn.out": "what the attention adds to the residual stream (after any layer scale)",
        "mlp.key": "input of the MLP's down-projection",
        "mlp.value": "output of the MLP's down-projection, what editors solve for",
        "mlp.out": "what the MLP adds to the residual stream (after any layer scale)",
        "classifier.key": "features that enter the classifier",
        "classifier.value": "logits",
    }
)
"""Every kind of site and what lies there. A family's table says where each one is."""

NAMED_TOKENS = ("cls", "patches", "last")
_WITHOUT_LAYER = ("classifier.key", "classifier.value")
_WITH_HEADS = ("attn.q", "attn.k", "attn.v", "attn.z")
_TEXT = re.compile(r"(?P<kind>[a-z_.]+)(\[(?P<layer>\d+)(,(?P<head>\d+))?\])?(@(?P<tokens>[a-z0-9,:]+))?")


@dataclass(frozen=True)
class Site:
    """A named place: a kind, a block, for attention sites a head, and the tokens meant.

    Attributes:
        kind: a key of `KINDS`.
        layer: block, counted from 0; None for the classifier's sites.
        head: attention head, counted from 0; None means all heads.
        tokens: "cls", "patches", "last", or token positions (sorted, without repeats); None means every token.

    Raises:
        WeightsmithError: an unknown kind, a head where there are none, a negative number.

    >>> Site.parse("attn.z[3,5]@cls")
    Site(kind='attn.z', layer=3, head=5, tokens='cls')
    >>> str(Site("resid.out", 4, tokens=(17, 0)))
    'resid.out[4]@0,17'
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    tokens: str | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise WeightsmithError(f"there is no site {self.kind!r}: {did_you_mean(self.kind, KINDS)}")
        if (self.layer is None) != (self.kind in _WITHOUT_LAYER):
            wanted = "no layer" if self.kind in _WITHOUT_LAYER else f"a layer: write {self.kind}[7]"
            raise WeightsmithError(f"the site {self.kind} takes {wanted}")
        if self.head is not None and self.kind not in _WITH_HEADS:
            raise WeightsmithError(f"the site {self.kind} has no heads: {', '.join(_WITH_HEADS)} have")
        if min(self.layer or 0, self.head or 0) < 0:
            raise WeightsmithError(f"layer and head of the site {self.kind} count from 0 and cannot be negative")
        if isinstance(self.tokens, tuple):
            if not self.tokens or min(self.tokens) < 0:
                raise WeightsmithError(f"the tokens of the site {self.kind} must be positions from 0, at least one")
            object.__setattr__(self, "tokens", tuple(sorted(set(self.tokens))))
        elif self.tokens is not None and self.tokens not in NAMED_TOKENS:
            raise WeightsmithError(
                f"there are no tokens named {self.tokens!r}: use positions or one of {', '.join(NAMED_TOKENS)}"
            )

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read what `str` prints. Raises `WeightsmithError` for any other text."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise WeightsmithError(
                f"{text!r} is no site: write kind[layer], kind[layer,head], with @cls or @0,17,4:8 for tokens"
            )
        layer, head = (None if match[name] is None else int(match[name]) for name in ("layer", "head"))
        tokens = match["tokens"]
        return cls(match["kind"], layer, head, _parse_tokens(tokens) if tokens and tokens[0].isdigit() else tokens)

    def __str__(self) -> str:
        place = "" if self.layer is None else f"[{self.layer}]" if self.head is None else f"[{self.layer},{self.head}]"
        tokens = _print_tokens(self.tokens) if isinstance(self.tokens, tuple) else self.tokens
        return self.kind + place + (f"@{tokens}" if tokens is not None else "")

    def at(self, tokens: str | tuple[int, ...] | None) -> Site:
        """The same place at other tokens."""
        return replace(self, tokens=tokens)


def _parse_tokens(text: str) -> tuple[int, ...]:
    positions: list[int] = []
    for piece in text.split(","):
        bounds = piece.split(":")
        if not all(bound.isdigit() for bound in bounds) or len(bounds) > 2:
            raise WeightsmithError(f"{text!r} names no tokens: write positions and ranges such as 0,17,4:8")
        if any(len(bound) > 7 for bound in bounds):
            raise WeightsmithError(f"{text!r} names tokens beyond any model's: positions have at most seven digits")
        first = int(bounds[0])
        positions.extend(range(first, int(bounds[-1])) if len(bounds) == 2 else [first])
    return tuple(positions)


def _print_tokens(positions: tuple[int, ...]) -> str:
    """Positions with runs of three or more as ranges whose end is excluded: (0, 4, 5, 6) prints as 0,4:7."""
    pieces: list[str] = []
    start = 0
    while start < len(positions):
        end = start
        while end + 1 < len(positions) and positions[end + 1] == positions[end] + 1:
            end += 1
        run = positions[start : end + 1]
        pieces.extend([f"{run[0]}:{run[-1] + 1}"] if len(run) > 2 else [str(p) for p in run])
        start = end + 1
    return ",".join(pieces)
