"""Lists of sites to sweep: by layer, in windows, by token, by head."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.site import SUBJECT_TOKENS, Site

SUBJECT_GRID = (*SUBJECT_TOKENS, "last")
"""The rows of a tracing figure of prompts: first, middle and last token of the subject, what follows it, and the last."""


def layers(
    model: Model, kind: str, tokens: str | tuple[int, ...] | None = None, windows: Sequence[int] = (1,)
) -> list[Site]:
    """Each block that has the kind of site, and each window of so many such blocks that lies wholly inside the network.

    A window restores more and so has a larger effect than any block in it: a window never comes without the single
    blocks.

    Raises:
        WeightsmithError: a window of less than one block or of more than there are.
    """
    wrong = [window for window in windows if not 1 <= window <= model.n_layers]
    if wrong:
        raise WeightsmithError(
            f"--window {wrong[0]} does not fit: {model.name} has {model.n_layers} layers, give 1 to that"
        )
    return [
        Site(kind, layer, tokens=tokens, span=window)
        for window in sorted({1, *windows})
        for layer in range(model.n_layers - window + 1)
        if all(model.has(kind, layer + step) for step in range(window))
    ]


def heads(model: Model, kind: str = "attn.z", tokens: str | tuple[int, ...] | None = None) -> list[Site]:
    """Each head of each block.

    Raises:
        WeightsmithError: the network has no attention, or the kind no heads.
    """
    if not model.family.attention:
        raise WeightsmithError(f"a {model.family.title} has no attention heads: leave out --heads")
    return [
        Site(kind, layer, head, tokens) for layer in range(model.n_layers) for head in range(model.n_heads(layer, kind))
    ]


def tokens(model: Model, kind: str, block: int = 1, count: int | None = None) -> list[Site]:
    """Each token in each block that has the site: CLS and other special tokens alone, the patches in stretches of `block`.

    Args:
        count: tokens of the inputs; by default those of an image.

    Raises:
        WeightsmithError: the network has no tokens, or a stretch of less than one.
    """
    if not model.family.has_tokens:
        raise WeightsmithError(f"a {model.family.title} has no tokens: restore whole layers, --tokens all")
    if block < 1:
        raise WeightsmithError(
            f"--token-block must be at least 1, not {block}: 1 restores each token by itself, give that or more"
        )
    count = model.n_tokens if count is None else count
    special = model.family.special
    stretches: list[tuple[int, ...]] = [(token,) for token in range(min(special, count))]
    stretches += [tuple(range(start, min(start + block, count))) for start in range(special, count, block)]
    there = [layer for layer in range(model.n_layers) if model.has(kind, layer)]
    return [Site(kind, layer, tokens=stretch) for layer in there for stretch in stretches]


def subject(model: Model, kind: str, windows: Sequence[int] = (1,)) -> list[Site]:
    """For prompts, each of the subject's tokens by name in each block: the grid of ROME's figure 1."""
    return [site for name in SUBJECT_GRID for site in layers(model, kind, name, windows)]
