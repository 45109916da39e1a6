"""Gradient screens: a first guess at every site for the price of a few passes, and the exact sweep of what it points at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor

from weightsmith import ranks
from weightsmith.batches import Fitting
from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.locate.cases import Cases, PromptCases, decided, select
from weightsmith.locate.metrics import METRICS, Decision, check_metric
from weightsmith.locate.plan import targets
from weightsmith.locate.sweep import Sweep, sweep
from weightsmith.models import Model, patch, record
from weightsmith.progress import progress
from weightsmith.site import Site

METHODS = ("attribution", "integrated")
"""`attribution`: the gradient at the corrupted run. `integrated`: its mean along the path to the clean one."""

_BATCH = 32


@dataclass(frozen=True, eq=False)
class Screened:
    """What a screen guessed and what is true.

    Attributes:
        screen: the guess at every site, over all samples.
        audit: the exact sweep of every site, over the samples of the audit.
        verified: the exact sweep of the sites that the screen ranks first, over all samples.
        recall: k → share of the exact top k (by size of the mean effect, on the audited samples) among the screen's top k
            on the same samples.
        rank_correlation: Spearman's, of the two mean effects over sites, on the audited samples.
    """

    screen: Effects
    audit: Sweep
    verified: Sweep
    recall: dict[int, float]
    rank_correlation: float


def screen(
    model: Model,
    cases: Cases,
    sites: Sequence[Site],
    *,
    method: str = "attribution",
    metric: str = "logit_difference",
    steps: int = 10,
) -> Effects:
    """A linear guess at the effect of restoring each site: (a_clean − a_corrupted) · ∂metric/∂a, summed over its entries.

    `attribution` takes the gradient at the corrupted run: two passes forward and one backward for all sites together
    (attribution patching; Syed et al., 2023, eq. 2, in the denoising direction). `integrated` takes its mean over
    `steps` inputs between the corrupted and the clean one (midpoints; Hanna et al., EAP-IG, 2024, eq. 4).

    It is a guess: good for heads and the outputs of attention and MLP, poor for the raw residual stream. `screened`
    measures how good.

    Args:
        sites: as for `sweep`; a window is guessed as the sum of its blocks.

    Returns:
        Effects in the metric's units, beside the same gaps as the sweep's, comparable site by site.

    Raises:
        WeightsmithError: an unknown method or metric, no sites, fewer than one step.
    """
    if method not in METHODS:
        raise WeightsmithError(f"--method {method} is not known: {did_you_mean(method, METHODS)}")
    if steps < 1:
        raise WeightsmithError(f"--steps must be at least 1, not {steps}: give 10 say")
    if not sites:
        raise WeightsmithError("there are no sites to screen: name some with --sites")
    check_metric(metric)
    names = cases.names
    rows, ends, classes, fitting = [], [], [], Fitting("cases are screened")
    with progress(f"screening by {method}", len(names)) as advance:
        guesses = ranks.dealt(
            _guessed, _chunks(cases), lambda which: (model, select(cases, which), sites, method, metric, steps, fitting)
        )
        for which, (values, gap, decision) in guesses:
            rows.append(values)
            ends.append(gap)
            classes.append(decision)
            advance(len(which))
    clean, corrupted = torch.cat(ends, 1).tolist()
    targets, foils = torch.cat(classes, 1).tolist()
    info = cases.describe() | {
        "screen": method,
        "steps": steps if method == "integrated" else 1,
        "clean": clean,
        "corrupted": corrupted,
        "target_classes": targets,
        "foil_classes": foils,
    }
    return Effects(tuple(sites), torch.cat(rows), names, metric, info)


def screened(
    model: Model,
    cases: Cases,
    sites: Sequence[Site],
    *,
    method: str = "attribution",
    metric: str = "logit_difference",
    steps: int = 10,
    verify: int = 20,
    audit: int = 32,
    min_gap: float | None = None,
    memory: int | None = None,
    checkpoint: Path | None = None,
) -> Screened:
    """Screen every site, sweep the best exactly, and measure on some samples how much the screen missed.

    Args:
        verify: sites to sweep exactly over all samples: those whose mean guess is largest in size.
        audit: samples over which every site is swept exactly, for recall: so many that are not refused, evenly over all.
        min_gap, memory, checkpoint: as for `sweep`.

    Raises:
        WeightsmithError: as `screen` and `sweep`; verify or audit below 1.
    """
    for flag, value in (("--verify", verify), ("--audit", audit)):
        if value < 1:
            raise WeightsmithError(f"{flag} must be at least 1, not {value}: give 20 say")
    guess = screen(model, cases, sites, method=method, metric=metric, steps=steps)
    metrics = [metric, *(name for name in METRICS if name != metric)]
    best = [sites[i] for i in _order(guess.mean())[: min(verify, len(sites))]]
    folder = checkpoint
    verified = sweep(
        model, cases, best, metrics=metrics, min_gap=min_gap, memory=memory, title="verifying",
        checkpoint=None if folder is None else folder / "verified",
    )  # fmt: skip
    place = {name: i for i, name in enumerate(guess.samples)}
    # Evenly over all, for data sets are often sorted by class.
    spread = torch.linspace(0, len(verified.samples) - 1, min(audit, len(verified.samples))).round().long().tolist()
    chosen = [place[verified.samples[i]] for i in spread]
    exact = sweep(
        model, select(cases, chosen), sites, metrics=metrics, min_gap=0.0, memory=memory, title="auditing",
        checkpoint=None if folder is None else folder / "audit",
    )  # fmt: skip
    kept = [place[name] for name in verified.samples]
    info = guess.info | {
        name: [guess.info[name][i] for i in kept] for name in ("clean", "corrupted", "target_classes", "foil_classes")
    }
    guess = replace(guess, values=guess.values[kept], samples=tuple(verified.samples), info=info)
    mine, theirs = guess.of(spread).mean(), exact.effects(metric).mean()
    return Screened(guess, exact, verified, recall(mine, theirs), rank_correlation(mine, theirs))


def recall(guess: Tensor, exact: Tensor, counts: Sequence[int] = (5, 10, 20, 50)) -> dict[int, float]:
    """Each k → share of the exact top k sites that are among the guessed top k, both by size; k below the number of sites."""
    first, second = _order(guess), _order(exact)
    found: dict[int, float] = {}
    for count in counts:
        if count < len(first):
            found[count] = len(set(first[:count]) & set(second[:count])) / count
    return found


def rank_correlation(guess: Tensor, exact: Tensor) -> float:
    """Spearman's correlation of two mean effects over the sites; NaN where one of them is constant."""
    known = ~(guess.isnan() | exact.isnan())
    if int(known.sum()) < 2 or any(bool((values[known] == values[known][0]).all()) for values in (guess, exact)):
        return float("nan")
    return float(spearmanr(guess[known].numpy(), exact[known].numpy()).statistic)


def _order(values: Tensor) -> list[int]:
    """Places by size, largest first."""
    places: list[int] = torch.argsort(values.abs().nan_to_num(nan=-1.0), descending=True, stable=True).tolist()
    return places


def _chunks(cases: Cases) -> list[list[int]]:
    size = 1 if isinstance(cases, PromptCases) else max(1, _BATCH // cases.samples)
    return [list(range(i, min(i + size, len(cases.names)))) for i in range(0, len(cases.names), size)]


def _guessed(
    model: Model, cases: Cases, sites: Sequence[Site], method: str, metric: str, steps: int, fitting: Fitting
) -> tuple[Tensor, Tensor, Tensor]:
    """`_guess` in as many passes as memory needs."""

    def guess(part: slice) -> tuple[Tensor, Tensor, Tensor]:
        return _guess(model, select(cases, list(range(part.start, part.stop))), sites, method, metric, steps)

    values, ends, classes = zip(*fitting.parts(guess, len(cases.names)), strict=True)
    return torch.cat(values), torch.cat(ends, 1), torch.cat(classes, 1)


def _guess(
    model: Model, cases: Cases, sites: Sequence[Site], method: str, metric: str, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(cases, sites) guesses, (2, cases) clean and corrupted metric, (2, cases) targets and foils."""
    which = list(range(len(cases.names)))
    meant = [cases.meant(which[0], site) if isinstance(cases, PromptCases) else [site] for site in sites]
    targets(model, [site for group in meant for site in group], cases.tokens(which[0]))  # refuses what a sweep refuses
    singles = [each for group in meant for site in group for each in site.each()]
    whole = list(dict.fromkeys(replace(each, head=None, tokens=None) for each in singles))
    entering, corrupted_in = cases.embedded(which)
    n, samples = corrupted_in.shape[:2]
    flat = corrupted_in.flatten(0, 1)
    with torch.no_grad():
        clean = record(model, entering, whole, start=0)
        corrupted = record(model, flat, whole, start=0)
    decision = decided(cases, which, clean.logits, corrupted.logits.view(n, samples, -1).mean(1))
    of_lane = torch.arange(n, device=flat.device).repeat_interleave(samples)
    asked = decision.at(of_lane)
    shares = [(step + 0.5) / steps for step in range(steps)] if method == "integrated" else [0.0]
    slopes = {site: torch.zeros_like(corrupted[site]) for site in whole}
    for share in shares:
        point = flat + share * (entering[of_lane] - flat)
        shapes = {site: corrupted[site] for site in whole}
        for site, slope in _gradients(model, point, shapes, asked, metric).items():
            slopes[site] += slope / len(shares)
    guessed: dict[Site, Tensor] = {}
    for each in singles:
        base = replace(each, head=None, tokens=None)
        product = (clean[base][of_lane] - corrupted[base]) * slopes[base]
        part = _part(model, each, product)
        guessed[each] = part.flatten(1).sum(1).double().view(n, samples).mean(1).cpu()
    columns = []
    for group in meant:
        each_site = [torch.stack([guessed[each] for each in site.each()]).sum(0) for site in group]
        columns.append(torch.stack(each_site).mean(0) if each_site else torch.full((n,), torch.nan).double())
    ends = torch.stack(
        [decision.measure(metric, clean.logits), asked.measure(metric, corrupted.logits).view(n, samples).mean(1)]
    )
    return torch.stack(columns, 1), ends.cpu(), torch.stack([decision.target, decision.foil]).cpu()


def _gradients(
    model: Model, point: Tensor, shapes: dict[Site, Tensor], asked: Decision, metric: str
) -> dict[Site, Tensor]:
    """∂metric/∂a at each site, for what enters the first block: the slope in something added there that is zero."""
    added = {site: torch.zeros_like(like, requires_grad=True) for site, like in shapes.items()}

    def adding(site: Site) -> Callable[[Tensor], Tensor]:
        return lambda old: old + added[site]

    with torch.enable_grad(), patch(model, {site: adding(site) for site in added}):
        total = asked.measure(metric, model.run_from(0, point)).sum()
        slopes = torch.autograd.grad(total, list(added.values()))
    return dict(zip(added, slopes, strict=True))


def _part(model: Model, site: Site, whole: Tensor) -> Tensor:
    """The part of a whole site's tensor that a head and tokens name."""
    bound = model.bind(site)
    if bound.tokens is not None:
        whole = whole[:, bound.tokens.to(whole.device)]
    if bound.columns is None:
        return whole
    first = model.bind(replace(site, head=None)).columns
    begin = bound.columns.start - (0 if first is None else first.start)
    return whole[..., begin : begin + bound.columns.stop - bound.columns.start]
