"""The places that a locate command's options name, and how what was measured there is tabled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.files import disk_is_full
from weightsmith.locate import Sweep, grids
from weightsmith.locate.metrics import FLOORS
from weightsmith.models import Model
from weightsmith.run.findings import Findings
from weightsmith.run.options.locate import DrawnOptions, LocateOptions, SweepOptions
from weightsmith.site import SUBJECT_TOKENS, Site

_log = logging.getLogger(__name__)

_WORDS = ("all", "auto", "each")
"""What `--tokens` takes beside the tokens that a site can name."""


def check_places(options: SweepOptions) -> None:
    """What is wrong with `--sites` and `--tokens` whatever the model: names that there are not.

    Raises:
        WeightsmithError: nothing named, an unknown kind of site, tokens that are neither positions nor a known name.
    """
    if not options.sites or not options.tokens:
        raise WeightsmithError("--sites and --tokens need at least one entry each, resid.out and cls say")
    for kind in options.sites:
        with of_flag(f"--sites {kind}"):
            Site(kind, 0)
    for tokens in options.tokens:
        if tokens not in _WORDS:
            _parsed(tokens)


def places_of(options: SweepOptions, model: Model, text: bool) -> dict[str, list[Site]]:
    """The places that the options name: "layers" and "heads"."""
    check_places(options)
    windows = options.window if isinstance(options, DrawnOptions) else (1,)
    layers: list[Site] = []
    for kind, tokens in product(dict.fromkeys(options.sites), dict.fromkeys(options.tokens)):
        with of_flag(f"--sites {kind}"):
            model.bind(Site(kind, 0))
        if text and tokens == "auto":
            layers += grids.subject(model, kind, windows)
            continue
        if tokens == "each":
            if text:
                raise WeightsmithError("--tokens each is for images, which all have as many: leave it out for prompts")
            layers += grids.tokens(model, kind, options.token_block)
            continue
        at = _tokens(tokens, model)
        layers += grids.layers(model, kind, at, windows)
        if not (text and at in SUBJECT_TOKENS):
            with of_flag(f"--tokens {tokens}"):
                model.bind(Site(kind, 0, tokens=at))
    layers = list(dict.fromkeys(layers))
    has_heads = options.heads and model.family.attention is not None
    return {"layers": layers, "heads": grids.heads(model) if has_heads else []}


@contextmanager
def of_flag(flag: str) -> Iterator[None]:
    """What is wrong with the value of a flag is told with the flag."""
    try:
        yield
    except WeightsmithError as error:
        raise WeightsmithError(f"{flag} does not fit: {error}") from error


def _tokens(named: str, model: Model) -> str | tuple[int, ...] | None:
    """What one entry of `--tokens` says."""
    if named == "all":
        return None
    if named == "auto":
        return model.family.lookup
    return _parsed(named)


def _parsed(named: str) -> str | tuple[int, ...] | None:
    try:
        return Site.parse(f"resid.out[0]@{named}").tokens
    except WeightsmithError as error:
        raise WeightsmithError(
            f"--tokens {named} is not understood ({error}): give cls, all, each or 0,17,4:8"
        ) from error


def memory_of(options: LocateOptions) -> int | None:
    return None if options.batch_memory is None else options.batch_memory * 2**20


@contextmanager
def goes_on(place: Path) -> Iterator[None]:
    """Say what to do with finished cases that do not fit, because the model or the data changed meanwhile, or are damaged."""
    if finished := len(list(place.rglob("cases-*.safetensors"))):
        _log.info("%s: %d finished pieces are there already", place.name, finished)
    try:
        yield
    except WeightsmithError as error:
        cause = error.__cause__
        if (
            str(place) not in str(error)
            or isinstance(cause, OSError)
            or (isinstance(cause, Exception) and disk_is_full(cause))
        ):
            raise  # what is there is right, it is the disk that is not
        raise WeightsmithError(f"{error}; --overwrite measures anew") from error


def add_sweep(found: Findings, options: SweepOptions, swept: Sweep, name: str) -> None:
    """Statistics of every place in every metric, raw and normalised."""
    rows: list[dict[str, Any]] = []
    for metric in swept.restored:
        effects = swept.effects(metric)
        rows += _statistics(effects, "raw")
        clear = [i for i, gap in enumerate(effects.gaps.abs().tolist()) if gap >= FLOORS[metric]]
        if clear:
            rows += _statistics(effects.of(clear).normalised(), "share of the gap")
    found.tables[f"{name}_statistics.csv"] = rows
    main = [row for row in rows if row["metric"] == options.metric and row["form"] == "raw"]
    title = {"layers": "Effect of layers", "heads": "Effect of heads", "severed": "Effect of layers, paths severed"}
    found.shown.append((title.get(name, f"Effect, {name}"), f"{name}_statistics.csv"))
    found.tables[f"{name}_statistics.csv"] = main + [row for row in rows if row not in main]


def _statistics(effects: Effects, form: str) -> list[dict[str, Any]]:
    rows = []
    for site, row in zip(effects.sites, effects.table(), strict=True):
        numbers = {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
        place = {"site": numbers.pop("site"), "kind": site.kind, "layer": numbers.pop("layer"), "window": site.span}
        place |= {"head": site.head, "tokens": str(Site("resid.out", 0, tokens=site.tokens)).partition("@")[2] or "all"}
        rows.append({"metric": effects.metric, "form": form, **place, **numbers})
    return rows
