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

SUBJECT_TOKENS = ("subject_first", "subject_middle", "subject_last", "after_first", "after_middle")
"""Names of tokens that only a prompt with a subject has: of the subject, and of what follows it before the last token."""

NAMED_TOKENS = ("cls", "patches", "last", *SUBJECT_TOKENS)
_WITHOUT_LAYER = ("classifier.key", "classifier.value")
_WITH_HEADS = ("attn.q", "attn.k", "attn.v", "attn.z")
_TEXT = re.compile(
    r"(?P<kind>[a-z_.]+)(\[(?P<layer>\d{1,7})(:(?P<end>\d{1,7}))?(,(?P<head>\d{1,7}))?\])?(@(?P<tokens>[a-z0-9,:_]+))?"
)


@dataclass(frozen=True)
class Site:
    """A named place: a kind, a block, for attention sites a head, and the tokens meant.

    Attributes:
        kind: a key of `KINDS`.
        layer: block, counted from 0; None for the classifier's sites.
        head: attention head, counted from 0; None means all heads.
        tokens: "cls", "patches", "last", a name of `SUBJECT_TOKENS`, or token positions (sorted, without repeats);
            None means every token.
        span: a window of that many blocks, of which `layer` is the first; 1 is a single block.

    Raises:
        WeightsmithError: an unknown kind, a head where there are none, a negative number, a span below 1.

    Examples:
        >>> Site.parse("attn.z[3,5]@cls")
        Site(kind='attn.z', layer=3, head=5, tokens='cls')
        >>> str(Site("resid.out", 4, tokens=(17, 0)))
        'resid.out[4]@0,17'
        >>> [str(site) for site in Site.parse("mlp.out[2:4]@last").each()]
        ['mlp.out[2]@last', 'mlp.out[3]@last']
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    tokens: str | tuple[int, ...] | None = None
    span: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise WeightsmithError(f"there is no site {self.kind!r}: {did_you_mean(self.kind, KINDS)}")
        if (self.layer is None) != (self.kind in _WITHOUT_LAYER):
            wanted = "no layer" if self.kind in _WITHOUT_LAYER else f"a layer: write {self.kind}[7]"
            raise WeightsmithError(f"the site {self.kind} takes {wanted}")
        if self.head is not None and self.kind not in _WITH_HEADS:
            raise WeightsmithError(f"the site {self.kind} has no heads: {', '.join(_WITH_HEADS)} have")
        if min(self.layer or 0, self.head or 0) < 0:
            raise WeightsmithError(
                f"layer and head of the site {self.kind} count from 0 and cannot be negative: write {self.kind}[0]"
            )
        if self.span < 1 or (self.span > 1 and self.layer is None):
            raise WeightsmithError(
                f"the window of the site {self.kind} must hold at least one block: write {self.kind}[4:7]"
            )
        if isinstance(self.tokens, tuple):
            if not self.tokens or min(self.tokens) < 0:
                raise WeightsmithError(
                    f"the tokens of the site {self.kind} must be positions from 0, at least one: write @0,17"
                )
            object.__setattr__(self, "tokens", tuple(sorted(set(self.tokens))))
        elif self.tokens is not None and self.tokens not in NAMED_TOKENS:
            raise WeightsmithError(
                f"there are no tokens named {self.tokens!r}: {did_you_mean(str(self.tokens), NAMED_TOKENS)}, or give positions"
            )

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read what `str` prints. Raises `WeightsmithError` for any other text."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise WeightsmithError(
                f"{text!r} is no site: write kind[layer], kind[layer,head] or kind[first:end], with @cls or @0,17,4:8 "
                "for tokens"
            )
        layer, end, head = (None if match[name] is None else int(match[name]) for name in ("layer", "end", "head"))
        span = 1 if end is None or layer is None else end - layer
        tokens = match["tokens"]
        at = _parse_tokens(tokens) if tokens and tokens[0].isdigit() else tokens
        return cls(match["kind"], layer, head, at, span)

    def __str__(self) -> str:
        layers = f"{self.layer}" if self.layer is None or self.span == 1 else f"{self.layer}:{self.layer + self.span}"
        head = "" if self.head is None else f",{self.head}"
        place = "" if self.layer is None else f"[{layers}{head}]"
        tokens = _print_tokens(self.tokens) if isinstance(self.tokens, tuple) else self.tokens
        return self.kind + place + (f"@{tokens}" if tokens is not None else "")

    def at(self, tokens: str | tuple[int, ...] | None) -> Site:
        """The same place at other tokens."""
        return replace(self, tokens=tokens)

    def each(self) -> tuple[Site, ...]:
        """The sites of single blocks that a window stands for."""
        if self.layer is None or self.span == 1:
            return (self,)
        return tuple(replace(self, layer=self.layer + i, span=1) for i in range(self.span))

    @property
    def centre(self) -> int | None:
        """The middle block of a window (the later of two), the block itself without one; what curves are drawn at."""
        return None if self.layer is None else self.layer + self.span // 2


def _parse_tokens(text: str) -> tuple[int, ...]:
    positions: list[int] = []
    for piece in text.split(","):
        bounds = piece.split(":")
        if not all(bound.isdigit() for bound in bounds) or len(bounds) > 2:
            raise WeightsmithError(f"{text!r} names no tokens: write positions and ranges such as 0,17,4:8")
        if any(len(bound) > 7 for bound in bounds):
            raise WeightsmithError(
                f"{text!r} names tokens beyond any model's: positions have at most seven digits, write smaller ones"
            )
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
