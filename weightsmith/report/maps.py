"""The maps of `weightsmith locate` over layers, heads and tokens.

They draw from rows that the function beside each gives, as in `curves`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.report.heatmaps import Axis, counted, heat_maps
from weightsmith.report.plots import short
from weightsmith.report.scales import Rows, measures_of, panel_title
from weightsmith.report.words import TOKENS, token_label


def layer_head_rows(effects: Effects) -> Rows:
    """The cells of `layer_head_map`: panel, layer, head, site, mean, low, high, n, marked.

    Raises:
        WeightsmithError: no attention heads among the sites.
    """
    sites = [site for site in effects.sites if site.head is not None]
    if not sites:
        raise WeightsmithError("there is no map over heads to draw: measure single heads, attn.z[3,5] for instance")
    return [
        {
            "panel": panel_title(site, with_tokens=True),
            "layer": site.centre,
            "head": site.head,
            **measures,
            "marked": measures["low"] > 0 or measures["high"] < 0,
        }
        for site, measures in measures_of(effects, sites)
    ]


def layer_head_map(effects: Effects) -> Figure:
    """Heat map of the mean effect of every attention head; a dot where the 95% interval excludes zero.

    The interval is that of each head by itself: of a hundred heads without effect, about five have a dot. Layers may
    have different numbers of heads. Queries, keys, values or tokens that were measured apart have a panel each.

    Raises:
        WeightsmithError: as `layer_head_rows`.
    """
    rows = layer_head_rows(effects)
    return heat_maps(rows, counted("layer", rows), counted("head", rows), effects)


def layer_token_rows(
    effects: Effects, token_labels: Sequence[str] | None = None, subject: tuple[int, int] | None = None
) -> Rows:
    """The cells of `layer_token_map`: panel, layer, tokens, label, subject, site, mean.

    Raises:
        WeightsmithError: no token positions among the sites, or one beyond the labels.
    """
    sites = [site for site in effects.sites if site.layer is not None and site.head is None and site.tokens is not None]
    if not sites:
        raise WeightsmithError(
            "there is no map over tokens to draw: measure single tokens, resid.out[3]@5 for instance"
        )
    beyond = [site for site in sites if isinstance(site.tokens, tuple) and site.tokens[-1] >= len(token_labels or ())]
    if token_labels is not None and beyond:
        raise WeightsmithError(f"there are labels for {len(token_labels)} tokens, and {beyond[0]} is beyond them")
    rows: Rows = []
    order: dict[str, tuple[float, ...]] = {}
    first, end = subject or (0, 0)
    for site, mean in zip(sites, effects.at(sites).mean().tolist(), strict=True):
        assert site.tokens is not None
        inside = isinstance(site.tokens, tuple) and any(first <= token < end for token in site.tokens)
        rows.append(
            {
                "panel": panel_title(site),
                "layer": site.centre,
                "tokens": str(site).split("@")[1],
                "label": short(token_label(site.tokens, token_labels), 26) + "*" * inside,
                "subject": inside or str(site.tokens).startswith("subject"),
                "site": str(site),
                "mean": mean,
            }
        )
        order[rows[-1]["tokens"]] = _token_order(site.tokens)
    return sorted(rows, key=lambda row: (order[row["tokens"]], row["layer"]))


def layer_token_map(
    effects: Effects, token_labels: Sequence[str] | None = None, subject: tuple[int, int] | None = None
) -> Figure:
    """Heat map of the mean effect, a row for every token or block of tokens, a column for every layer.

    Kinds and windows that were measured apart have a panel each, on one scale.

    Args:
        effects: measured at token positions; sites at all tokens are left out.
        token_labels: the text of each token, by position. Without it positions are those of an image: 0 is CLS.
        subject: first and end of the positions that name the subject; their labels have a star.

    Raises:
        WeightsmithError: as `layer_token_rows`.
    """
    rows = layer_token_rows(effects, token_labels, subject)
    names = {row["tokens"]: row["label"] for row in rows}
    of_subject = {row["tokens"] for row in rows if row["subject"]}
    kept = [place for place, tokens in enumerate(names) if tokens in of_subject]
    title = "token (* of the subject)" if subject is not None and kept else "token"
    down = Axis("tokens", list(names), list(names.values()), title, kept)
    return heat_maps(rows, down, counted("layer", rows), effects, with_text=False)


def _token_order(tokens: str | tuple[int, ...]) -> tuple[float, ...]:
    """CLS first, then by position, then by name in the order of a text."""
    if isinstance(tokens, tuple):
        return tokens
    return (-1.0,) if tokens == "cls" else (math.inf, [*TOKENS, tokens].index(tokens))
