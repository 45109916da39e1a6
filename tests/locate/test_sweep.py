"""The planned sweep against the slow reference: one full hooked pass a site, case and noise sample, in every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.locate.cases import UNDECIDED, Cases, ImageCases, Prompt, PromptCases
from weightsmith.locate.metrics import METRICS, Decision
from weightsmith.locate.sweep import Sweep, sweep
from weightsmith.models import Model, patch, record
from weightsmith.site import Site

NOISE = EmbeddingNoise(scale=2.0, samples=2, seed=5)
BLANK = torch.zeros(())


@pytest.fixture(params=["noise", "pixels"])
def cases(request: pytest.FixtureRequest, model: Model, random_pixels: Callable[..., Tensor]) -> Cases:
    """Two or three cases of each family; prompts of two lengths."""
    if model.family.reads == "text":
        if request.param == "pixels":
            made = (Prompt("long", (4, 9, 2, 22, 7, 1, 3, 12), (0, 3)), Prompt("whole", (5, 6), (1, 2), target=3))
        else:
            made = (Prompt("a", (1, 5, 9, 2, 7), (1, 3)), Prompt("b", (3, 8, 6, 6, 11, 4), (2, 5)))
        return PromptCases(model, made, NOISE)
    names, undecided = ("x/0", "x/1", "x/2"), torch.full((3,), UNDECIDED)
    pixels = random_pixels(3, seed=1)
    if request.param == "pixels" or not model.family.has_tokens:
        return ImageCases(model, names, pixels, random_pixels(3, seed=2), undecided, undecided)
    return ImageCases(model, names, pixels, NOISE, torch.tensor([0, 1, 2]), torch.tensor([3, 2, 1]))


def all_sites(model: Model) -> list[Site]:
    """Every kind at every layer: whole, at every way to name tokens, by head, and as windows."""
    kinds = [k for k, place in model.family.sites.items() if place.patch and not k.startswith("classifier.")]
    tokens: list[str | tuple[int, ...] | None] = [None]
    if model.family.cls is not None:
        tokens += ["cls", "patches", "last", (0, 2), (1,), tuple(range(model.n_tokens))]
    elif model.family.has_tokens:
        tokens += ["last", (0,), (1,), (0, 1)]
    found: list[Site] = []
    for kind in kinds:
        for at in tokens:
            found += [Site(kind, layer, tokens=at) for layer in range(model.n_layers)]
            found += [Site(kind, layer, tokens=at, span=2) for layer in range(model.n_layers - 1)]
            if model.family.sites[kind].heads:
                heads = range(model.n_heads(0, kind))
                found += [Site(kind, layer, head, at) for layer in range(model.n_layers) for head in heads]
    return found


@torch.no_grad()
def reference(model: Model, cases: Cases, sites: list[Site], sever: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Metric → (cases, sites): each restored run by its own full pass with hooks, from the embeddings."""
    found = {metric: torch.zeros(len(cases.names), len(sites), dtype=torch.float64) for metric in METRICS}
    start = Site("resid.in", 0)
    for index in range(len(cases.names)):
        clean_in, corrupted_in = cases.embedded([index])
        clean = record(model, clean_in, [each for site in sites for each in site.each()], start=0)
        base = [record(model, one[None], held_sites(model, sever), start=0) for one in corrupted_in[0]]
        mean = torch.stack([run.logits[0] for run in base]).mean(0)
        target, foil = int(cases.targets[index]), int(cases.foils[index])
        target = int(clean.logits[0].argmax()) if target == UNDECIDED else target
        if foil == UNDECIDED:
            foil = int(mean.index_fill(0, torch.tensor(target), -torch.inf).argmax())
        decision = Decision(torch.tensor([target]), torch.tensor([foil]), clean.logits.log_softmax(-1))
        for column, site in enumerate(sites):
            last = max(site.each(), key=lambda each: each.layer or 0)
            for one, run in zip(corrupted_in[0], base, strict=True):
                entering = one[None].clone()
                for each in site.each():
                    if (each.kind, each.layer) == (
                        start.kind,
                        start.layer,
                    ):  # nothing runs before the first block's input
                        entering = model.bind(each).write(entering, clean[each])
                writes = {each: clean[each] for each in site.each() if each.kind != "resid.in" or each.layer}
                writes |= {place: run[place] for place in held_sites(model, sever) if is_behind(place, last)}
                with patch(model, writes):
                    logits = model.run_from(0, entering)
                for metric, values in found.items():
                    values[index, column] += float(decision.measure(metric, logits)) / len(base)
    return found


def held_sites(model: Model, sever: tuple[str, ...]) -> list[Site]:
    return [Site(kind, layer) for kind in sever for layer in range(model.n_layers)]


def is_behind(place: Site, site: Site) -> bool:
    order = [
        "resid.in",
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.z",
        "attn.value",
        "attn.out",
        "mlp.key",
        "mlp.value",
        "mlp.out",
    ]
    at = len(order) if site.kind == "resid.out" else order.index(site.kind)
    assert place.layer is not None
    assert site.layer is not None
    same = {"attn.z", "attn.value", "attn.out"} if place.kind == "attn.out" else {"mlp.key", "mlp.value", "mlp.out"}
    if place.layer == site.layer and site.kind in same and site.head is None:
        return False
    return (place.layer, order.index(place.kind)) > (site.layer, at)


def agree(found: Sweep, wanted: dict[str, Tensor], sites: list[Site]) -> None:
    for metric in METRICS:
        worst = (found.restored[metric] - wanted[metric]).abs().amax(0)
        assert worst.max() < 1e-5, f"{metric} at {sites[int(worst.argmax())]}"


def test_every_site_is_that_of_a_full_pass(model: Model, cases: Cases) -> None:
    sites = all_sites(model)
    found, wanted = sweep(model, cases, sites, min_gap=0.0), reference(model, cases, sites)
    agree(found, wanted, sites)
    if model.family.has_tokens:  # in a plain MLP every site restores everything
        assert all(values.std() > 1e-4 for values in wanted.values()), "nothing to compare"
    assert found.info["block_forwards"] < found.info["naive_block_forwards"]
