"""Screens against their definition, against the exact sweep where they must agree, and what is said of how good they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.locate.cases import UNDECIDED, ImageCases, Prompt, PromptCases, select
from weightsmith.locate.grids import heads, layers, tokens
from weightsmith.locate.metrics import METRICS
from weightsmith.locate.screen import METHODS, Screened, rank_correlation, recall, screen, screened
from weightsmith.locate.sweep import sweep
from weightsmith.models import Model, families, patch, record
from weightsmith.site import Site

NOISE = EmbeddingNoise(scale=2.0, samples=2, seed=5)
KINDS = ("resid.in", "attn.q", "attn.k", "attn.v", "attn.z", "attn.value", "attn.out", "mlp.key", "mlp.value", "mlp.out",
         "resid.out")  # fmt: skip
TOKEN_FAMILIES = sorted(name for name, family in families().items() if family.has_tokens)
PROMPTS = (
    Prompt("a", (4, 9, 2, 22, 7, 1, 3), (1, 4)),
    Prompt("b", (3, 8, 6, 6, 11), (2, 3), target=3),
    Prompt("c", (12, 1, 5, 17, 6, 2), (0, 2)),
)


@pytest.fixture
def cases(model: Model, random_pixels: Callable[..., Tensor]) -> Any:
    """Three cases of each family."""
    if model.family.reads == "text":
        return PromptCases(model, PROMPTS, NOISE)
    undecided = torch.full((3,), UNDECIDED)
    corruption = NOISE if model.family.has_tokens else random_pixels(3, seed=2)
    return ImageCases(model, ("a", "b", "c"), random_pixels(3, seed=1), corruption, undecided, undecided)


def some_sites(model: Model) -> list[Site]:
    found: list[Site] = []
    for kind in (kind for kind in KINDS if kind in model.family.sites):
        found += layers(model, kind, windows=[2])
        if model.family.has_tokens:
            found += layers(model, kind, "last") + layers(model, kind, (0, 2))
        if model.family.sites[kind].heads:
            found += heads(model, kind)
    return found


def in_double(model: Model, scale: float) -> PromptCases:
    """Prompts under noise of any smallness, in double precision."""
    model.module.double()
    return PromptCases(model, PROMPTS, EmbeddingNoise(scale=scale, samples=2, seed=5))


# --- where the guess must be right ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family_name", [name for name in TOKEN_FAMILIES if families()[name].reads == "text"])
def test_the_error_falls_faster_than_the_corruption(model: Model) -> None:
    """A linear guess: its error is of second order, at every kind of site, so a tenth of the noise is a hundredth."""
    ways = {"attribution": "logit_difference", "integrated": "probability"}
    errors: dict[str, list[float]] = {method: [] for method in ways}
    sizes: dict[str, list[float]] = {method: [] for method in ways}
    for scale in (0.01, 0.001):
        small = select(in_double(model, scale), [0, 1])
        sites = [site for site in some_sites(model) if site.span == 1]  # a window's sum counts one block's way twice
        swept = sweep(model, small, sites, metrics=list(ways.values()), min_gap=0.0)
        for method, metric in ways.items():
            exact, guess = swept.effects(metric), screen(model, small, sites, method=method, metric=metric)
            torch.testing.assert_close(guess.gaps, exact.gaps, rtol=0, atol=1e-10)
            errors[method].append(float((guess.values - exact.values).abs().max()))
            sizes[method].append(float(exact.values.abs().max()))
    for method in ways:
        assert errors[method][1] < errors[method][0] / 50
        assert sizes[method][1] > sizes[method][0] / 20
        assert errors[method][1] < 0.02 * sizes[method][1]


@pytest.mark.parametrize("method", METHODS)
def test_a_small_corruption_is_guessed_within_a_few_percent(
    method: str, tiny_model: Callable[..., Model], random_pixels: Callable[..., Tensor]
) -> None:
    for family_name in ("vit", "deit"):
        model = tiny_model(family_name)
        undecided = torch.full((2,), UNDECIDED)
        noise = EmbeddingNoise(scale=0.003, samples=2, seed=5)
        small = ImageCases(model, ("a", "b"), random_pixels(2), noise, undecided, undecided)
        sites = [site for site in some_sites(model) if site.span == 1]
        exact = sweep(model, small, sites, min_gap=0.0).effects()
        guess = screen(model, small, sites, method=method)
        assert (guess.values - exact.values).abs().max() < 0.03 * exact.values.abs().max()
        assert rank_correlation(guess.mean(), exact.mean()) > 0.98


@pytest.mark.parametrize("family_name", [name for name in TOKEN_FAMILIES if families()[name].reads == "text"])
def test_along_the_whole_path_the_integral_is_the_gap(model: Model) -> None:
    """Completeness (Sundararajan et al., 2017, prop. 1), at the site that the path is drawn in; one gradient has it not."""
    strong = select(in_double(model, 1.0), [0, 1])
    site = [Site("resid.in", 0)]
    gaps = sweep(model, strong, site, min_gap=0.0).effects().gaps
    misses = [
        float((screen(model, strong, site, method=method, steps=steps).values[:, 0] - gaps).abs().max())
        for method, steps in (("attribution", 1), ("integrated", 20), ("integrated", 80))
    ]
    assert misses[0] > 0.1 * float(gaps.abs().max())
    assert misses[1] < misses[0] / 5
    assert misses[2] < misses[1] / 8, "midpoints: four times the steps, a sixteenth of the error"


# --- what it is made of ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family_name", TOKEN_FAMILIES)
def test_a_guess_is_difference_times_gradient(model: Model, cases: Any, method: str) -> None:
    """By hand: each noise sample alone, a leaf put in at the site, the gradient of the metric there."""
    places = [Site("attn.z", 1), Site("attn.q", 0), Site("mlp.out", 2), Site("resid.out", 0), Site("attn.v", 1)]
    found = screen(model, cases, [*places, Site("attn.z", 1, 1, (0, 2)), Site("attn.v", 1, 0)], method=method, steps=3)
    targets, foils = (found.info[name] for name in ("target_classes", "foil_classes"))
    for index in range(2):
        entering, corrupted = cases.embedded([index])
        wanted = torch.zeros(len(found.sites), dtype=torch.float64)
        for one in corrupted[0]:
            with torch.no_grad():
                clean, base = (record(model, start, places, start=0) for start in (entering, one[None]))
            width = base[places[0]].shape[-1] // model.n_heads(1, "attn.z")
            for column, place in enumerate(places):
                slope = torch.zeros_like(base[place])
                shares = [0.0] if method == "attribution" else [1 / 6, 1 / 2, 5 / 6]
                for share in shares:
                    start = one[None] + share * (entering - one[None])
                    own = record(model, start, [place], start=0)[place].detach()
                    leaf = own.requires_grad_()
                    with patch(model, {place: leaf}):
                        logits = model.run_from(0, start)[0]
                    (gradient,) = torch.autograd.grad(logits[targets[index]] - logits[foils[index]], leaf)
                    slope += gradient / len(shares)
                product = ((clean[place] - base[place]) * slope)[0].double()
                assert product.abs().sum() > 0
                wanted[column] += product.sum() / len(corrupted[0])
                if place == places[0]:
                    wanted[-2] += product[[0, 2], width : 2 * width].sum() / len(corrupted[0])
                if place == places[-1]:
                    wanted[-1] += product[:, :width].sum() / len(corrupted[0])
        torch.testing.assert_close(found.values[index], wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_parts_add_up(model: Model, cases: Any, method: str) -> None:
    """Windows are the sums of their blocks, heads and tokens add up to the whole."""
    kinds = [kind for kind in KINDS if kind in model.family.sites]
    whole = [site for kind in kinds for site in layers(model, kind)]
    found = screen(model, cases, whole + [Site(kind, 0, span=model.n_layers) for kind in kinds], method=method, steps=2)
    each = found.values[:, : len(whole)].view(3, len(kinds), model.n_layers)
    assert (each.abs().amax((0, 2)) > 0).all(), "no gradient reached a kind of site"
    torch.testing.assert_close(each.sum(2), found.values[:, len(whole) :], rtol=1e-6, atol=1e-6)
    if not model.family.has_tokens:
        return
    place = {site: i for i, site in enumerate(whole)}
    for kind in (kind for kind in kinds if model.family.sites[kind].heads):
        parts = screen(model, cases, heads(model, kind), method=method, steps=2).values
        by_layer = parts.split([model.n_heads(layer, kind) for layer in range(model.n_layers)], 1)
        summed = torch.stack([part.sum(1) for part in by_layer], 1)
        torch.testing.assert_close(summed, each[:, kinds.index(kind)], rtol=1e-4, atol=1e-5)
    one = select(cases, [0])
    count = one.tokens(0)
    parts = screen(model, one, tokens(model, "mlp.out", count=count), method=method, steps=2).values
    columns = [place[site] for site in layers(model, "mlp.out")]
    summed = parts.view(model.n_layers, count).sum(1)
    torch.testing.assert_close(summed, found.values[0, columns], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family_name", TOKEN_FAMILIES)
def test_names_of_the_subjects_tokens(model: Model, cases: Any) -> None:
    names = ("subject_first", "subject_middle", "subject_last", "after_first", "after_middle", "last")
    sites = [Site("mlp.out", 1, tokens=name) for name in names]
    if model.family.reads != "text":
        with pytest.raises(WeightsmithError, match="names tokens of a subject"):
            screen(model, cases, sites)
        return
    found = screen(model, cases, sites).values
    alone = [
        screen(model, select(cases, [i]), tokens(model, "mlp.out", count=cases.tokens(i))).values[0].view(3, -1)[1]
        for i in range(3)
    ]
    one, two = alone[:2]
    torch.testing.assert_close(found[0], one[1:7], rtol=0, atol=1e-6)
    nothing = torch.tensor(float("nan"), dtype=torch.float64)
    wanted = torch.stack([two[2], nothing, two[2], two[3], nothing, two[4]])
    torch.testing.assert_close(found[1], wanted, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
def test_the_gaps_are_those_of_the_sweep(model: Model, cases: Any, metric: str) -> None:
    sites = [Site("resid.out", 0), Site("mlp.value", 1)]
    exact = sweep(model, cases, sites, metrics=[metric], min_gap=0.0).effects(metric)
    guess = screen(model, cases, sites, metric=metric)
    torch.testing.assert_close(guess.gaps, exact.gaps, rtol=1e-5, atol=1e-5)
    for name in ("target_classes", "foil_classes", "sigma"):
        assert guess.info.get(name) == exact.info.get(name)
    assert (guess.metric, guess.sites, guess.samples) == (metric, exact.sites, exact.samples)
    assert (guess.info["screen"], guess.info["steps"]) == ("attribution", 1)


def test_the_model_is_left_as_it_was(
    model: Model, cases: Any, hook_count: Callable[[nn.Module], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights_hash(model)
    screen(model, cases, [Site("resid.out", 0)], method="integrated", steps=2)

    def fail(*_: Any) -> None:
        raise ArithmeticError

    with monkeypatch.context() as patched:
        patched.setattr(torch.autograd, "grad", fail)
        with pytest.raises(ArithmeticError):
            screen(model, cases, [Site("resid.out", 0)])
    assert weights_hash(model) == before
    assert hook_count(model.module) == 0
    assert not any(parameter.grad is not None for parameter in model.module.parameters())
    with torch.no_grad():  # a caller's mode does not matter
        assert screen(model, cases, [Site("resid.out", 0)]).values.isfinite().all()


# --- how good it is -------------------------------------------------------------------------------------------------


def test_recall_and_rank_correlation_by_hand() -> None:
    exact = torch.tensor([9.0, -8.0, 7.0, 6.0, -5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.1, 0.0])
    assert recall(exact, exact) == {5: 1.0, 10: 1.0}
    assert recall(-exact, exact) == {5: 1.0, 10: 1.0}, "by size"
    guess = exact.clone()
    guess[[0, 1, 5, 6]] = torch.tensor([0.2, 10.0, -11.0, 12.0])  # the first one out, the sixth and seventh in
    assert recall(guess, exact)[5] == 3 / 5
    assert recall(guess, exact, counts=(1, 2, 3, 11, 12)) == {1: 0.0, 2: 0.0, 3: 1 / 3, 11: 1.0}
    unknown = exact.clone()
    unknown[0] = torch.nan
    assert recall(unknown, exact, counts=(1, 2)) == {1: 0.0, 2: 1 / 2}, "what was not guessed comes last"
    a, b = rankdata(guess.numpy()), rankdata(exact.numpy())
    by_hand = ((a - a.mean()) * (b - b.mean())).sum() / (len(a) * a.std() * b.std())
    assert rank_correlation(guess, exact) == pytest.approx(by_hand)
    assert rank_correlation(-exact, exact) == pytest.approx(-1)
    assert rank_correlation(unknown, exact) == pytest.approx(1), "over what is known of both"
    nothing = rank_correlation(torch.ones(4), exact[:4]), rank_correlation(exact[:1], exact[:1])
    assert all(value != value for value in nothing)


@pytest.fixture
def result(model: Model, cases: Any) -> tuple[Any, list[Site], Screened]:
    """A screen of few sites, in which the first case is refused."""
    sites = [site for kind in ("resid.out", "mlp.value") for site in layers(model, kind)]
    if model.family.has_tokens:
        sites += heads(model)
    gaps = sweep(model, cases, sites[:1], min_gap=0.0).effects().gaps.abs()
    order = [int(gaps.argmin()), *(i for i in range(3) if i != int(gaps.argmin()))]
    chosen = select(cases, order)
    between = float(gaps.min() + (gaps.median() - gaps.min()) / 2)
    return chosen, sites, screened(model, chosen, sites, verify=4, audit=1, min_gap=between)


def test_what_a_screen_says_of_itself(model: Model, result: tuple[Any, list[Site], Screened]) -> None:
    chosen, sites, found = result
    kept = chosen.names[1:]
    assert found.screen.samples == found.verified.samples == kept
    assert found.audit.samples == kept[:1]
    whole = screen(model, chosen, sites)
    torch.testing.assert_close(found.screen.values, whole.values[1:], rtol=0, atol=1e-6)
    assert found.screen.gaps.tolist() == pytest.approx(whole.gaps[1:].tolist())
    assert found.screen.info["target_classes"] == whole.info["target_classes"][1:]
    order = whole.mean().abs().argsort(descending=True)[:4].tolist()
    assert found.verified.sites == tuple(sites[i] for i in order)
    assert found.audit.sites == tuple(sites)
    mine, theirs = found.screen.values[0], found.audit.effects().values[0]
    assert found.recall == recall(mine, theirs)
    assert found.recall
    assert found.rank_correlation == pytest.approx(rank_correlation(mine, theirs), nan_ok=True)


def test_the_audit_sees_the_same_corruption_as_the_screen(
    model: Model, result: tuple[Any, list[Site], Screened]
) -> None:
    """Also where cases before it were refused: else the screen would be blamed for other noise."""
    chosen, sites, found = result
    audited, verified = found.audit.effects(), found.verified.effects()
    assert float(audited.gaps[0]) == pytest.approx(float(verified.gaps[0]), rel=1e-4)
    assert audited.info["foil_classes"] == verified.info["foil_classes"][:1]
    wanted = verified.values[0]
    torch.testing.assert_close(audited.at(verified.sites).values[0], wanted, rtol=1e-4, atol=1e-5)
    exact = sweep(model, chosen, sites, min_gap=0.0).effects().values[1]
    torch.testing.assert_close(audited.values[0], exact, rtol=1e-4, atol=1e-5)


def test_more_is_asked_for_than_there_is(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    cases = PromptCases(model, PROMPTS, NOISE)
    sites = layers(model, "resid.out", "last")
    found = screened(model, cases, sites, verify=99, audit=99, min_gap=0.0, metric="kl", checkpoint=tmp_path)
    assert len(found.verified.sites) == 3
    assert found.audit.samples == ("a", "b", "c")
    assert found.recall == {}
    assert (found.screen.metric, list(found.audit.restored)) == ("kl", ["kl", "logit_difference", "probability"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit", "verified"]
    again = screened(model, cases, sites, verify=99, audit=99, min_gap=0.0, metric="kl", checkpoint=tmp_path)
    assert torch.equal(again.audit.restored["kl"], found.audit.restored["kl"])


def test_the_audit_is_spread_over_all_samples(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("gpt2")
    cases, sites = PromptCases(model, PROMPTS, NOISE), layers(model, "resid.out", "last") + heads(model)
    found = screened(model, cases, sites, verify=1, audit=2, min_gap=0.0)
    assert found.audit.samples == ("a", "c")
    mine, theirs = found.screen.values[[0, 2]].mean(0), found.audit.effects().mean()
    assert found.recall == recall(mine, theirs)
    assert found.rank_correlation == pytest.approx(rank_correlation(mine, theirs))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "attributions"}, "--method attributions is not known: did you mean 'attribution'"),
        ({"metric": "kld"}, "--metric kld is not known: did you mean 'kl'"),
        ({"method": "integrated", "steps": 0}, "--steps must be at least 1, not 0"),
        ({"verify": 0}, "--verify must be at least 1, not 0"),
        ({"audit": -1}, "--audit must be at least 1, not -1"),
        ({"sites": []}, "no sites to screen"),
        ({"min_gap": 1e9}, "choose a stronger corruption"),
    ],
)
def test_bad_options_are_told(tiny_model: Callable[..., Model], options: dict[str, Any], told: str) -> None:
    model = tiny_model("gpt2")
    given = {"sites": layers(model, "resid.out")} | options
    with pytest.raises(WeightsmithError, match=told):
        screened(model, PromptCases(model, PROMPTS, NOISE), given.pop("sites"), **given)


@pytest.mark.parametrize(
    "site",
    [
        Site("resid.out", 9),
        Site("attn.z", 0, 9),
        Site("resid.mid", 0),
        Site("classifier.key"),
        Site("mlp.out", 2, span=2),
        Site("resid.out", 1, tokens=(9,)),
    ],
    ids=str,
)
def test_sites_that_are_not_there_are_told_as_the_sweep_does(tiny_model: Callable[..., Model], site: Site) -> None:
    model = tiny_model("gpt2")
    cases = PromptCases(model, PROMPTS, NOISE)
    said = []
    for attempt in (screen, sweep):
        with pytest.raises(WeightsmithError) as told:
            attempt(model, cases, [Site("resid.out", 0), site])
        said.append(str(told.value))
    assert said[0] == said[1]
