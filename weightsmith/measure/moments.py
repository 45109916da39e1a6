"""Second moments of keys: what the null space of preserved knowledge and the inverse covariance are made from."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weightsmith import mapped, ranks
from weightsmith.data.images import ImageSet
from weightsmith.data.texts import TextSet
from weightsmith.errors import WeightsmithError
from weightsmith.files import default_cache_dir, remove_abandoned
from weightsmith.measure.convergence import Convergence
from weightsmith.measure.kept import keep_tensors, kept_tensors
from weightsmith.measure.reading import read_alone, read_shared
from weightsmith.measure.sums import RunningSum
from weightsmith.models import Model
from weightsmith.progress import progress
from weightsmith.site import Site

_FORMAT = "weightsmith-moment-3"
_SEED = 0
"""Of the order in which samples are read when a convergence rule may stop early."""

_BATCH_TOKENS = 2048
"""In a pass on a CPU, so that activations stay in memory that is at hand; elsewhere eight times as many."""

_COPIES = 2
"""Matrices of a site that are in memory while it is read: the sum, and the moment made of it."""

_SAVE_SECONDS = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Moment:
    """The uncentred second moment of the keys at a site.

    Attributes:
        site: where the keys were read.
        matrix: (d, d) float64 on the CPU, C = (1/count) Σ k kᵀ, symmetric.
        count: number of keys, one a token meant by the site.
        samples: number of images or windows of text that they come from.
        stopped: why reading ended, in words.
        converged: a convergence rule ended it.
        trace_change: what tr C moved at the rule's last comparison, relative; None without one.
        overlap: of the top subspaces at the rule's last comparison, 0 to 1; None without one.
    """

    site: Site
    matrix: Tensor
    count: int
    samples: int = 0
    stopped: str = ""
    converged: bool = False
    trace_change: float | None = None
    overlap: float | None = None


def key_moment(
    model: Model,
    sites: Sequence[Site],
    samples: ImageSet | TextSet,
    cache_dir: Path | None = None,
    batch_size: int | None = None,
    until: Convergence | None = None,
) -> dict[Site, Moment]:
    """Second moments of the keys at several sites over images or running text, in one pass that ends at the last site.

    A site without tokens takes the key of every token; `site.at("cls")` and `site.at("patches")` are an image's two
    populations (see `mixed`). Products are taken in float32 over short blocks of keys and summed in float64.

    Results are cached by content: weights, samples, site, dtype, and the rule where there is one. A second model, another
    subset or an edited weight has another key, and an entry that is damaged, or is another one than its name says, is
    measured again. Sums are put aside while
    they grow, and whenever the call is broken off; the next call goes on from there and ends with the same bits.

    Args:
        cache_dir: where cached moments lie; None takes the platform's cache folder.
        batch_size: images or windows in a pass; None takes as many as hold about 2,048 tokens (on a GPU
            16,384), at most 256.
        until: stop each site when its moment has converged. Samples are then read in an order drawn once and for all, so
            that the first ones speak for the whole set; None reads all of them in the set's order.

    Raises:
        HeldOutError: the set is sealed.
        WeightsmithError: an empty set, samples that the model cannot read, a site that it does not have, keys that are
            no finite numbers.
    """
    sites = tuple(dict.fromkeys(sites))
    _check(model, sites, samples)
    samples.check_open()  # also when everything comes from the cache
    size = batch_size or _batch_size(model, samples)
    folder = (cache_dir or default_cache_dir()) / "moments"
    dtype = str(next(model.module.parameters()).dtype)
    content = f"{_FORMAT}:{model.fingerprint()}:{samples.digest()}:{dtype}:"
    content += f"{until}:{_SEED}:{size}" if until is not None else "all"  # a rule looks between batches
    paths = {site: folder / f"{_hash(f'{content}:{site}')}.safetensors" for site in sites}
    found = {site: moment for site, path in paths.items() if (moment := _cached(path, site)) is not None}
    partial = {site: path.with_suffix(f".{size}.partial") for site, path in paths.items() if site not in found}
    groups = _groups(model, list(partial))
    if groups:
        remove_abandoned(folder)
    for group in groups:
        with closing(_measured(model, {site: partial[site] for site in group}, samples, size, until)) as finished:
            for moment in finished:
                found[moment.site] = moment
                header = {key: value for key, value in vars(moment).items() if key not in ("site", "matrix")}
                header |= {"format": _FORMAT, "site": str(moment.site)}
                keep_tensors(paths[moment.site], {"matrix": moment.matrix}, header)
                for path in folder.glob(f"{paths[moment.site].stem}.*.partial"):
                    path.unlink(missing_ok=True)
                if len(groups) > 1:  # from the file, where the system may leave it
                    found[moment.site] = _cached(paths[moment.site], moment.site) or moment
                    mapped.release([found[moment.site].matrix])
    return {site: found[site] for site in sites}


def fit_at_once(model: Model, site: Site, copies: int) -> int | None:
    """At how many sites like this one so many (d, d) matrices of float64 fit into half of the memory that is free, 1 at least.

    None where that cannot be told.
    """
    free, width = mapped.free_memory(), model.width(site)
    if free is None or not width:
        return None
    return max(1, int(free / 2 // (copies * 8 * width**2)))


def _groups(model: Model, sites: Sequence[Site]) -> list[Sequence[Site]]:
    """The sites that are measured in one pass: all of them where their sums fit into memory, else as many as do."""
    if not sites:
        return []
    most = min((fit_at_once(model, site, _COPIES) or len(sites) for site in sites), default=1)
    groups = [sites[first : first + most] for first in range(0, len(sites), most)]
    if len(groups) > 1:
        _log.info("Key statistics of %d sites do not fit into memory: %d passes of %d.", len(sites), len(groups), most)
    return groups


def mixed(moments: Sequence[Moment], weights: Sequence[float]) -> Moment:
    """One moment of several populations of keys that the same linear map reads: Σ w C / Σ w.

    With the counts as weights, the moments at CLS and at the patches give the moment at all tokens.

    Raises:
        WeightsmithError: no moments, not one weight each, negative or no weights, moments of different linear maps.
    """
    total = sum(weights)
    if not moments or len(moments) != len(weights) or min(weights) < 0 or not 0 < total < float("inf"):
        raise WeightsmithError(
            f"{len(moments)} moments cannot be mixed with the weights {list(weights)}: give one weight from 0 for each, "
            "not all of them 0"
        )
    places = {moment.site.at(None) for moment in moments}
    if len(places) > 1:
        raise WeightsmithError(
            f"moments of different places cannot be mixed ({', '.join(sorted(map(str, places)))}): take one kind and layer"
        )
    matrix = torch.zeros_like(moments[0].matrix)
    for moment, weight in zip(moments, weights, strict=True):
        matrix += moment.matrix * (weight / total)
    same = {moment.site for moment in moments}
    site = moments[0].site if len(same) == 1 else places.pop()
    shares = [f"{w / total:.3g} of {m.site} ({m.stopped})" for m, w in zip(moments, weights, strict=True)]
    return Moment(
        site,
        matrix,
        count=sum(moment.count for moment in moments),
        samples=max(moment.samples for moment in moments),
        stopped=f"mixed: {', '.join(shares)}",
        converged=all(moment.converged for moment in moments),
    )


@torch.no_grad()
def _measured(
    model: Model, partial: dict[Site, Path], samples: ImageSet | TextSet, size: int, until: Convergence | None
) -> Generator[Moment, None, None]:
    """Each site's moment as soon as it is there. Sites whose sums were put aside at different places join on the way."""
    sums = [RunningSum.load(path, site, len(samples), size) for site, path in partial.items()]
    done = min(running.samples for running in sums)
    saved, save_seconds = time.monotonic(), 0.0
    read = read_alone if ranks.world() == 1 else read_shared
    try:
        with progress("key statistics", len(samples), done) as advance:
            for count in read(model, _ordered(samples, until), sums, done, size, until):
                done += count
                for running in [each for each in sums if each.samples == done]:
                    if until is not None and done < len(samples) and running.converged(until):
                        yield _moment(running, len(samples), until, converged=True)
                        sums.remove(running)  # not before its taker has kept it
                if not sums:
                    return
                advance(count, "" if sums[0].last is None else str(sums[0].last))
                # Saving may take one second in twenty, however large the sums.
                if time.monotonic() - saved > max(_SAVE_SECONDS, 20 * save_seconds):
                    save_seconds = _put_aside(sums, partial)
                    saved = time.monotonic()
        while sums:
            yield _moment(sums[0], len(samples), until, converged=False)
            sums.pop(0)
    except BaseException:
        try:
            _put_aside(sums, partial)
        except (WeightsmithError, OSError) as error:  # what broke the call off is what its caller has to hear
            _log.warning("key statistics could not be put aside: %s", error)
        raise


def _put_aside(sums: Sequence[RunningSum], partial: dict[Site, Path]) -> float:
    """Save every sum; the seconds that it took."""
    started = time.monotonic()
    for running in sums:
        running.save(partial[running.site])
    return time.monotonic() - started


def _moment(running: RunningSum, samples: int, until: Convergence | None, converged: bool) -> Moment:
    last = running.last
    if converged:
        stopped = f"converged after {running.count:,} tokens: {last}"
    elif until is None:
        stopped = f"all {samples:,} samples read"
    else:
        stopped = f"all {samples:,} samples read ({running.count:,} tokens) before convergence"
        if last is not None and last.overlap is not None:
            stopped += f": {last} at {last.count:,} tokens"
    change, overlap = (None, None) if last is None else (last.trace_change, last.overlap)
    return Moment(running.site, running.matrix(), running.count, running.samples, stopped, converged, change, overlap)


def _ordered(samples: ImageSet | TextSet, until: Convergence | None) -> ImageSet | TextSet:
    """The samples in an order that depends on which they are alone, so that sums can be taken up by any later call.

    Files are often sorted by class or topic; a rule that stops early must not see the first class only.
    """
    if isinstance(samples, ImageSet):
        places = np.argsort(samples.positions, kind="stable")
    else:
        places = np.argsort(samples.windows, kind="stable")
    if until is not None:
        # A shorter last window stays last: batches then hold the same samples wherever reading is taken up.
        free = len(places) - 1 if isinstance(samples, TextSet) else len(places)
        places = np.concatenate([places[:free][np.random.default_rng(_SEED).permutation(free)], places[free:]])
    return samples.subset(places)


def _batch_size(model: Model, samples: ImageSet | TextSet) -> int:
    tokens = samples.longest if isinstance(samples, TextSet) else max(1, model.n_tokens)
    at_once = _BATCH_TOKENS if model.device.type == "cpu" else 8 * _BATCH_TOKENS
    return max(1, min(256, at_once // tokens))


def _check(model: Model, sites: Sequence[Site], samples: ImageSet | TextSet) -> None:
    if len(samples) == 0:
        what = "images" if isinstance(samples, ImageSet) else "windows of text"
        raise WeightsmithError(f"there are no {what} to take key statistics from: preserve at least one")
    for site in sites:
        model.bind(site)
    if isinstance(samples, ImageSet):
        _ = model.preprocess  # says so when the model reads text
        return
    if model.family.reads != "text":
        raise WeightsmithError(f"{model.name} is a {model.family.title} and reads no text: give images")
    if samples.longest > model.n_tokens:
        raise WeightsmithError(
            f"windows of {samples.longest} tokens are longer than the {model.n_tokens} that {model.name} reads: cut the "
            f"text with length={model.n_tokens} or less"
        )
    if samples.largest_id >= model.n_classes:
        raise WeightsmithError(
            f"the text holds the token id {samples.largest_id} and {model.name} knows {model.n_classes} tokens: cut the "
            "text with the model's own tokenizer"
        )
    far = [site for site in sites if isinstance(site.tokens, tuple) and site.tokens[-1] >= samples.shortest]
    if far:
        raise WeightsmithError(
            f"the site {far[0]} asks for a token that a window of {samples.shortest} tokens does not have: leave that "
            "window out, or name smaller positions"
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _cached(path: Path, site: Site) -> Moment | None:
    if not path.exists():
        return None
    try:
        header, tensors = kept_tensors(path, _FORMAT)
        matrix = tensors["matrix"]
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] and matrix.dtype == torch.float64
        if header.pop("site") != str(site) or not square or not bool(torch.isfinite(matrix).all()):
            raise WeightsmithError(f"{path} is not the moment of {site}")
        return Moment(site, matrix, **header)
    except (WeightsmithError, KeyError, TypeError) as error:
        _log.warning("cached key statistics are measured again: %s", error)
        return None
