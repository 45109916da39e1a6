"""The planned sweep against the slow reference: a full hooked pass for each site and case, in every family."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.locate.cases import UNDECIDED, Cases, ImageCases, Prompt, PromptCases, select
from weightsmith.locate.grids import layers, tokens
from weightsmith.locate.hook_lanes import HookLanes
from weightsmith.locate.lanes import Batch
from weightsmith.locate.metrics import METRICS, Decision
from weightsmith.locate.plan import ORDER, first_changed, first_token, groups, targets
from weightsmith.locate.split_lanes import SplitLanes
from weightsmith.locate.sweep import Sweep, sweep
from weightsmith.models import Model, Split, families, patch, record
from weightsmith.models.split import Block
from weightsmith.site import Site

MODULE = importlib.import_module("weightsmith.locate.sweep")  # the package has the function by that name
NOISE = EmbeddingNoise(scale=2.0, samples=2, seed=5)
WRITTEN = ORDER
TOKEN_FAMILIES = sorted(name for name, family in families().items() if family.has_tokens)
TEXT_FAMILIES = sorted(name for name, family in families().items() if family.reads == "text")
IMAGE_FAMILIES = sorted(name for name, family in families().items() if family.reads == "images")
PARTED = sorted(name for name, family in families().items() if family.parts is not None)


@pytest.fixture(params=["noise", "pixels"])
def cases(request: pytest.FixtureRequest, model: Model, random_pixels: Callable[..., Tensor]) -> Cases:
    """Two cases of each family; prompts of two lengths."""
    if model.family.reads == "text":
        if request.param == "pixels":
            made = (Prompt("long", (4, 9, 2, 22, 7, 1, 3, 12), (0, 3)), Prompt("whole", (5, 6), (1, 2), target=3))
        else:
            made = (Prompt("a", (1, 5, 9, 2, 7), (1, 3)), Prompt("b", (3, 8, 6, 6, 11, 4), (2, 5)))
        return PromptCases(model, made, NOISE)
    names, undecided = ("x/0", "x/1"), torch.full((2,), UNDECIDED)
    pixels = random_pixels(2, seed=1)
    if request.param == "pixels" or not model.family.has_tokens:
        return ImageCases(model, names, pixels, random_pixels(2, seed=2), undecided, undecided)
    return ImageCases(model, names, pixels, NOISE, torch.tensor([0, 1]), torch.tensor([3, 2]))


def few_cases(model: Model, random_pixels: Callable[..., Tensor], noise: EmbeddingNoise, count: int = 2) -> Any:
    """Cases whose runs decide; of a network without tokens pairs of images."""
    if model.family.reads == "text":
        made = (
            Prompt("x/0", (4, 9, 2, 22, 7, 1, 3), (1, 3)),
            Prompt("x/1", (3, 8, 6, 6, 11), (2, 4), target=3),
            Prompt("x/2", (1, 5, 9, 2), (0, 1)),
            Prompt("x/3", (2, 2, 4), (1, 2)),
        )
        return PromptCases(model, made[:count], noise)
    names, undecided = tuple(f"x/{i}" for i in range(count)), torch.full((count,), UNDECIDED)
    corruption = noise if model.family.has_tokens else random_pixels(count, seed=2)
    return ImageCases(model, names, random_pixels(count, seed=1), corruption, undecided, undecided)


@pytest.fixture
def few(model: Model, random_pixels: Callable[..., Tensor]) -> Cases:
    """Two cases of each family."""
    made: Cases = few_cases(model, random_pixels, NOISE)
    return made


def some_sites(model: Model, every: int = 1) -> list[Site]:
    """Of every kind and form a few; or one of so many of them, in each family others."""
    last = model.n_layers - 1
    found: list[Site] = []
    for kind in (kind for kind in WRITTEN if kind in model.family.sites):
        found += [Site(kind, layer) for layer in (0, 1, last)]
        found += [Site(kind, 0, span=2), Site(kind, 0, span=last + 1)]
        if model.family.has_tokens:
            found += [Site(kind, 0, tokens=(0, 2)), Site(kind, 1, tokens="last"), Site(kind, last, tokens=(2,))]
            found += [Site(kind, 1, tokens=(1,), span=2)]
        if model.family.cls is not None:
            found += [Site(kind, 1, tokens="cls"), Site(kind, last, tokens="patches")]
        if model.family.sites[kind].heads:
            found += [Site(kind, 1, 1), Site(kind, 0, 0, (1, 2)), Site(kind, last, 1, "last")]
    return found[sorted(families()).index(model.family.name) % every :: every]


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many clean and corrupted runs each of the lanes keeps, from now on."""
    seen: list[tuple[int, int]] = []
    lanes_for = MODULE.lanes_for

    def spied(model: Model, clean: Tensor, corrupted: Tensor, *kinds: Any) -> Any:
        seen.append((len(clean), len(corrupted)))
        return lanes_for(model, clean, corrupted, *kinds)

    monkeypatch.setattr(MODULE, "lanes_for", spied)
    return seen


def count_lanes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lanes run together, from now on."""
    seen: list[int] = []
    for kind in (SplitLanes, HookLanes):
        run = kind.run

        def counted(lanes: Any, batch: Batch, run: Callable[..., Tensor] = run) -> Tensor:
            seen.append(len(batch.base))
            return run(lanes, batch)

        monkeypatch.setattr(kind, "run", counted)
    return seen


def same_sweep(found: Sweep, wanted: Sweep) -> None:
    assert found.samples == wanted.samples
    for metric in METRICS:
        for one, other in (
            (found.restored, wanted.restored),
            (found.clean, wanted.clean),
            (found.corrupted, wanted.corrupted),
        ):
            torch.testing.assert_close(one[metric], other[metric], rtol=1e-6, atol=1e-6)


def one_sentence(told: pytest.ExceptionInfo[WeightsmithError]) -> None:
    text = str(told.value)
    assert "\n" not in text
    assert ". " not in text
    assert 20 < len(text) < 300


def all_sites(model: Model) -> list[Site]:
    """Every kind at every layer: whole, at every way to name tokens, by head, and as windows.

    Each head of a layer is there with all tokens, and one with each name of tokens, by turns another: heads are cut out of a
    stream and tokens out of a text alike for any two.
    """
    kinds = [k for k, place in model.family.sites.items() if place.patch and not k.startswith("classifier.")]
    tokens: list[str | tuple[int, ...] | None] = [None]
    if model.family.cls is not None:
        tokens += ["cls", "patches", "last", (0, 2), (1,), tuple(range(model.n_tokens))]
    elif model.family.has_tokens:
        tokens += ["last", (0,), (1,), (0, 1)]
    found: list[Site] = []
    for kind in kinds:
        for turn, at in enumerate(tokens):
            found += [Site(kind, layer, tokens=at) for layer in range(model.n_layers)]
            found += [Site(kind, layer, tokens=at, span=2) for layer in range(model.n_layers - 1)]
            if model.family.sites[kind].heads:
                for layer in range(model.n_layers):
                    count = model.n_heads(layer, kind)
                    some = range(count) if at is None else [(layer + turn) % count]
                    found += [Site(kind, layer, head, at) for head in some]
    return found


@torch.no_grad()
def reference(
    model: Model, cases: Cases, sites: list[Site], sever: tuple[str, ...] = (), together: int = 64
) -> dict[str, Tensor]:
    """Metric → (cases, sites): each site by a full pass of its own with hooks, from the embeddings of all noise samples.

    The passes of some sites are rows of one batch, in which each writes what is its own; with `together=1` there is one pass
    after another.
    """
    found = {metric: torch.zeros(len(cases.names), len(sites), dtype=torch.float64) for metric in METRICS}
    for index in range(len(cases.names)):
        clean_in, corrupted_in = cases.embedded([index])
        many = torch.cat([clean_in] * cases.samples)
        clean = record(model, many, [each for site in sites for each in site.each()], start=0)
        base = record(model, corrupted_in[0], held_sites(model, sever), start=0)
        mean = base.logits.mean(0)
        target, foil = int(cases.targets[index]), int(cases.foils[index])
        target = int(clean.logits[0].argmax()) if target == UNDECIDED else target
        if foil == UNDECIDED:
            foil = int(mean.index_fill(0, torch.tensor(target), -torch.inf).argmax())
        for first in range(0, len(sites), together):
            some = sites[first : first + together]
            entering = torch.cat([corrupted_in[0]] * len(some))
            written: dict[Site, list[tuple[slice, Tensor]]] = {}
            for number, site in enumerate(some):
                rows = slice(number * cases.samples, (number + 1) * cases.samples)
                last = max(site.each(), key=lambda each: each.layer or 0)
                for each in site.each():
                    if each.kind == "resid.in" and not each.layer:  # nothing runs before the first block's input
                        entering[rows] = model.bind(each).write(entering[rows], clean[each])
                    else:
                        written.setdefault(each, []).append((rows, clean[each]))
                for place in held_sites(model, sever):
                    if is_behind(place, last):
                        written.setdefault(place, []).append((rows, base[place]))
            with patch(model, {place: in_rows(given) for place, given in written.items()}):
                logits = model.run_from(0, entering)
            count = len(some) * cases.samples
            pair = (torch.tensor([number] * count) for number in (target, foil))
            decision = Decision(*pair, torch.cat([clean.logits.log_softmax(-1)] * len(some)))
            for metric, values in found.items():
                measured = decision.measure(metric, logits).view(len(some), -1)
                values[index, first : first + together] = measured.mean(1)
    return found


def in_rows(given: list[tuple[slice, Tensor]]) -> Callable[[Tensor], Tensor]:
    """Write values into some rows of a batch."""

    def write(old: Tensor) -> Tensor:
        new = old.clone()
        for rows, value in given:
            new[rows] = value
        return new

    return write


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


@pytest.mark.parametrize("sever", [(), ("attn.out", "mlp.out")], ids=lambda sever: "+".join(sever) or "none")
@pytest.mark.parametrize("family_name", ["gpt2", "mlp", "narrow_vit"])
def test_passes_of_many_sites_in_one_batch_are_those_of_each_alone(
    model: Model, few: Cases, sever: tuple[str, ...]
) -> None:
    sites, held = some_sites(model, 3), sever if model.family.has_tokens else ()
    alone, together = (reference(model, few, sites, held, count) for count in (1, 64))
    for metric in METRICS:
        torch.testing.assert_close(together[metric], alone[metric], rtol=0, atol=2e-6)


def test_every_site_is_that_of_a_full_pass(model: Model, cases: Cases) -> None:
    sites = all_sites(model)
    found, wanted = sweep(model, cases, sites, min_gap=0.0), reference(model, cases, sites)
    agree(found, wanted, sites)
    if model.family.has_tokens:  # in a plain MLP every site restores everything
        assert all(values.std() > 1e-4 for values in wanted.values()), "nothing to compare"
    assert found.info["block_forwards"] < found.info["naive_block_forwards"]


# --- severed paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sever", [("mlp.out",), ("attn.out",), ("attn.out", "mlp.out")], ids="+".join)
@pytest.mark.parametrize("family_name", TOKEN_FAMILIES)
def test_severed_paths_hold_their_corrupted_values(model: Model, few: Cases, sever: tuple[str, ...]) -> None:
    sites = some_sites(model, 3)
    found, wanted = sweep(model, few, sites, min_gap=0.0, sever=sever), reference(model, few, sites, sever)
    agree(found, wanted, sites)
    assert found.info["sever"] == list(sever)
    handle = model.blocks[1].register_forward_hook(lambda *_: None)
    agree(sweep(model, few, sites, min_gap=0.0, sever=sever), wanted, sites)  # with hooks
    handle.remove()
    whole = sweep(model, few, sites, min_gap=0.0)
    changed = (found.restored["kl"] - whole.restored["kl"]).abs().amax(0)
    assert (changed > 1e-4).sum() > len(sites) / 3, "severing changed next to nothing"


@pytest.mark.parametrize("family_name", TOKEN_FAMILIES)
def test_behind_the_last_block_there_is_nothing_to_sever(model: Model, few: Cases) -> None:
    sites = [Site("mlp.out", model.n_layers - 1), Site("resid.out", model.n_layers - 1, tokens="last")]
    found, severed = (sweep(model, few, sites, min_gap=0.0, sever=sever) for sever in ((), ("attn.out", "mlp.out")))
    for metric in METRICS:
        assert torch.equal(found.restored[metric], severed.restored[metric])


def test_what_cannot_be_severed_is_told(model: Model, few: Cases) -> None:
    site = [Site("resid.out", 0)]
    for kind in ("resid.out", "mlp.value", "mlp.oot"):
        with pytest.raises(WeightsmithError, match=f"--sever {kind}") as told:
            sweep(model, few, site, sever=["mlp.out", kind] if model.family.has_tokens else [kind])
        one_sentence(told)
    if not model.family.has_tokens:
        with pytest.raises(WeightsmithError, match=r"--sever mlp\.out.*no such paths"):
            sweep(model, few, site, sever=["mlp.out"])


# --- parts and hooks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sever", [(), ("attn.out", "mlp.out")], ids=lambda sever: "+".join(sever) or "none")
@pytest.mark.parametrize("family_name", PARTED)
@torch.no_grad()
def test_lanes_in_parts_and_lanes_with_hooks_are_the_same(model: Model, few: Cases, sever: tuple[str, ...]) -> None:
    clean, corrupted = few.embedded([0])
    tokens = clean.shape[1]
    plan = targets(model, all_sites(model)[bool(sever) :: 2], tokens, sever=sever)
    kinds = {write.kind for target in plan for write in target.writes if write.clean}
    lanes = [make(model, clean, corrupted[0], kinds, set(sever)) for make in (SplitLanes, HookLanes)]
    for name in ("clean", "corrupted"):
        torch.testing.assert_close(getattr(lanes[0], name), getattr(lanes[1], name), rtol=0, atol=1e-6)
    first = first_changed(clean[0], corrupted[0]) if model.family.causal else 0
    moved = 0
    for group in groups(plan):
        lane = torch.arange(len(group)) % 2  # of both noise samples in one batch
        start = min(first_token(target, first, tokens) for target in group) if model.family.causal else 0
        batch = Batch(lane, torch.zeros_like(lane), [target.writes for target in group], start)
        one, other = (each.run(batch) for each in lanes)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5, msg=str(group[0].writes[0]))
        moved += int(((one - lanes[0].corrupted[lane]).abs().amax(1) > 1e-4).sum())
    assert moved > len(plan) / 4, "nothing was restored"
    assert all(each.lane_bytes() > 0 for each in lanes)
    assert lanes[0].work < lanes[1].work


@pytest.mark.parametrize("family_name", TOKEN_FAMILIES)
def test_a_hook_that_only_looks_changes_nothing(
    model: Model, few: Cases, hook_count: Callable[[nn.Module], int]
) -> None:
    sites, calls = some_sites(model, 3), []
    found = sweep(model, few, sites, min_gap=0.0)
    assert Split.fits(model) == (model.family.name in PARTED)
    handle = model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    hooks = hook_count(model.module)
    assert not Split.fits(model)
    again = sweep(model, few, sites, min_gap=0.0)
    assert calls, "the hook was passed by"
    assert hook_count(model.module) == hooks
    calls.clear()
    model.run_from(0, few.embedded([0])[0])
    assert calls == [1]
    handle.remove()
    for metric in METRICS:
        torch.testing.assert_close(again.restored[metric], found.restored[metric], rtol=0, atol=1e-5)
        torch.testing.assert_close(again.clean[metric], found.clean[metric], rtol=0, atol=1e-5)
    assert Split.fits(model) == (model.family.name in PARTED)


def steer(*arguments: Any) -> Any:
    """A hook behind a module that gives a tensor: it turns the stream and moves it."""
    return arguments[-1].roll(1, -1) * 0.9 + 0.1


def steer_input(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return ((arguments[0].roll(1, -1) * 0.9 + 0.1, *arguments[1:]), keywords)


def blend(*arguments: Any) -> Any:
    """A hook through which every token depends on every other."""
    return arguments[-1] + arguments[-1].mean(1, keepdim=True)


def blend_input(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return ((blend(arguments[0]), *arguments[1:]), keywords)


HOOKS: dict[str, Callable[[Model], Any]] = {
    "behind a block": lambda model: model.blocks[0].register_forward_hook(steer),
    "before a block": lambda model: model.blocks[1].register_forward_pre_hook(steer_input, with_kwargs=True),
    "before a module": lambda model: (
        model.blocks[1].get_submodule("mlp").register_forward_pre_hook(steer_input, with_kwargs=True)
    ),
    "across tokens, behind a linear map": lambda model: model.module.get_submodule(
        model.bind(Site("mlp.value", 1)).path
    ).register_forward_hook(blend),
    "across tokens, before a block": lambda model: model.blocks[1].register_forward_pre_hook(
        blend_input, with_kwargs=True
    ),
    "across tokens, behind a block": lambda model: model.blocks[1].register_forward_hook(blend),
    "across tokens, before the classifier": lambda model: model.module.get_submodule(
        model.family.tail[-1]
    ).register_forward_hook(blend),
}


@pytest.mark.parametrize("where", HOOKS)
@pytest.mark.parametrize("family_name", ["vit", "llama"])  # one that looks both ways, one that is causal
def test_a_hook_that_changes_the_pass_is_honoured(model: Model, few: Cases, where: str) -> None:
    sites = some_sites(model, 4) + [Site(kind, 1, tokens=(1,)) for kind in ("resid.in", "attn.v", "mlp.key")]
    plain = sweep(model, few, sites, min_gap=0.0)
    handle = HOOKS[where](model)
    found, wanted = sweep(model, few, sites, min_gap=0.0), reference(model, few, sites)
    agree(found, wanted, sites)
    handle.remove()
    assert (found.restored["kl"] - plain.restored["kl"]).abs().amax() > 1e-3, "the hook did not matter"


@pytest.mark.parametrize("family_name", TOKEN_FAMILIES)
def test_eager_attention_gives_the_same(model: Model, few: Cases) -> None:
    sites = some_sites(model, 4)
    found = sweep(model, few, sites, min_gap=0.0)
    module: Any = model.module
    assert found.info["attention"] == ("sdpa" if module._supports_sdpa else "eager")
    module.set_attn_implementation("eager")
    eager, wanted = sweep(model, few, sites, min_gap=0.0), reference(model, few, sites)
    assert eager.info["attention"] == "eager"
    agree(eager, wanted, sites)
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    hooked = sweep(model, few, sites, min_gap=0.0)
    handle.remove()
    agree(hooked, wanted, sites)
    for metric in METRICS:
        torch.testing.assert_close(eager.restored[metric], found.restored[metric], rtol=0, atol=1e-5)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_memory_changes_no_number(model: Model, few: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = some_sites(model, 6)
    found = sweep(model, few, sites, min_gap=0.0)
    same_sweep(sweep(model, few, sites, min_gap=0.0, memory=1), found)
    spied, together = spy(monkeypatch), count_lanes(monkeypatch)
    sweep(model, few, sites, min_gap=0.0)
    assert max(together) > 1
    monkeypatch.setattr(MODULE, "_CPU_LANE_BYTES", 1)  # one lane at a time
    together.clear()
    same_sweep(sweep(model, few, sites, min_gap=0.0), found)
    assert set(together) == {1}
    monkeypatch.setattr(MODULE, "_SMALLEST", 1)  # one case at a time, and of it one noise sample
    spied.clear()
    same_sweep(sweep(model, few, sites, min_gap=0.0, memory=1), found)
    assert spied == [(1, 1)] * (len(few.names) * few.samples)


@pytest.mark.parametrize("family_name", TOKEN_FAMILIES)
def test_many_noise_samples_are_measured_in_slices(
    model: Model, random_pixels: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = EmbeddingNoise(scale=2.0, samples=11, seed=5)
    cases = few_cases(model, random_pixels, noise)
    sites = [site for site in some_sites(model) if site.layer == 1][::2]
    found = sweep(model, cases, sites, min_gap=0.0)
    monkeypatch.setattr(MODULE, "_SMALLEST", 1)
    spied = spy(monkeypatch)
    width = 8 * model.n_layers * cases.tokens(0) * 16 * 4  # what one input of the first case leaves
    same_sweep(sweep(model, cases, sites, min_gap=0.0, memory=4 * width), found)
    assert [held for _, held in spied][:3] == [4, 4, 3]


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_a_long_prompt_behind_a_short_one_keeps_to_the_memory(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = Prompt("short", (4, 9), (0, 1)), Prompt("long", tuple(range(1, 13)), (0, 3))
    cases = PromptCases(model, prompts, EmbeddingNoise(scale=2.0, samples=6, seed=5))
    monkeypatch.setattr(MODULE, "_SMALLEST", 1)
    spied = spy(monkeypatch)
    sweep(model, cases, [Site("resid.out", 0)], min_gap=0.0, memory=8 * model.n_layers * 2 * 16 * 4 * 6)
    assert spied == [(1, 6)] + [(1, 1)] * 6


# --- what must be exact ---------------------------------------------------------------------------------------------


def test_restoring_the_whole_stream_is_the_clean_run_exactly(
    model: Model, few: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuple(range(few.tokens(0)))
    sites = [Site(kind, layer) for kind in ("resid.in", "resid.out") for layer in range(model.n_layers)]
    sites += [Site("resid.out", 0, span=model.n_layers)]
    monkeypatch.setattr(MODULE, "_SMALLEST", 1)
    for memory in (None, 1):  # measured at once, and in slices of noise samples
        found = sweep(model, few, sites, min_gap=0.0, memory=memory)
        for metric in METRICS:
            assert (found.restored[metric] == found.clean[metric][:, None]).all()
            assert (found.effects(metric).normalised().values == 1).all()
    if model.family.reads == "images" and whole:
        named = sweep(model, few, [Site("resid.out", 1, tokens=whole)], min_gap=0.0)
        assert torch.equal(named.restored["kl"][:, 0], named.clean["kl"])
    assert found.info["block_forwards"] <= found.info["naive_block_forwards"]


@pytest.mark.parametrize("family_name", TOKEN_FAMILIES)
def test_what_nothing_reads_has_no_effect_at_all(model: Model, few: Cases) -> None:
    last = model.n_layers - 1
    unread: Any = "patches" if model.family.cls is not None else (2, 3)
    kinds = [kind for kind in WRITTEN if kind not in ("resid.in", "attn.k", "attn.v")]
    sites = [Site(kind, last, tokens=unread) for kind in kinds]
    sites += [Site(kind, last, 1, unread) for kind in ("attn.q", "attn.z")]
    if model.family.cls is not None:
        sites += [Site(kind, last, tokens="last") for kind in kinds]
    read = [Site("attn.v", last, tokens=unread), Site("resid.in", last, tokens=unread)]
    found = sweep(model, few, [*sites, *read], min_gap=0.0)
    for metric in METRICS:
        values = found.effects(metric).values
        rounding = 0 if model.family.parts is not None or model.family.causal else 1e-5  # of whole passes
        assert (values[:, : len(sites)].abs() <= rounding).all()
        assert (values[:, len(sites) :] != 0).all()
    if model.family.cls is not None and model.family.parts is not None:
        assert sweep(model, few, sites, min_gap=0.0).info["block_forwards"] == model.n_layers * len(few.names) * (
            1 + few.samples
        )


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_before_the_subject_nothing_has_an_effect(model: Model) -> None:
    cases = PromptCases(model, (Prompt("a", (3, 8, 6, 6, 11, 4), (2, 4)), Prompt("b", (1, 2, 3, 4, 5), (3, 5))), NOISE)
    before = [site for site in all_sites(model) if site.tokens in ((0,), (1,), (0, 1))]
    found = sweep(model, cases, before, min_gap=0.0)
    severed = sweep(model, cases, before, min_gap=0.0, sever=["mlp.out"])
    measured = [found.effects(metric).values for metric in METRICS] + [severed.effects().values]
    if model.family.name in PARTED:  # they are not run
        assert all((values == 0).all() for values in measured)
        assert found.info["block_forwards"] == model.n_layers * 2 * (1 + NOISE.samples)
    assert all(values.abs().max() < 2e-6 for values in measured)


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_tokens_meant_together_are_exact_in_their_mean(model: Model) -> None:
    """Many tokens of one name: their mean is 0 where each has none."""
    prompts = tuple(Prompt(str(i), tuple((7 * i + k) % 29 for k in range(15)), (1, 2 + i)) for i in range(6, 12))
    cases = PromptCases(model, prompts, EmbeddingNoise(scale=2.0, samples=3, seed=5))
    sites = [Site("resid.out", model.n_layers - 1, tokens=name) for name in ("subject_middle", "after_middle")]
    found = sweep(model, cases, sites, min_gap=0.0)
    for metric in METRICS:
        values = found.effects(metric).values
        assert values[values == values].abs().max() <= (0 if model.family.name in PARTED else 2e-6)
    assert bool(found.restored["kl"].isnan()[-1, 1])
    assert not found.restored["kl"][:, 0].isnan().any()


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_a_name_of_tokens_is_the_mean_over_them(model: Model) -> None:
    cases = PromptCases(
        model, (Prompt("a", (3, 8, 6, 9, 11, 4, 2, 5), (1, 5)), Prompt("b", (1, 2, 3, 4), (3, 4))), NOISE
    )
    names = ["subject_first", "subject_middle", "subject_last", "after_first", "after_middle", "last"]
    found = sweep(model, cases, [Site("resid.out", 0, tokens=name) for name in names], min_gap=0.0)
    each = sweep(model, cases, [Site("resid.out", 0, tokens=(k,)) for k in range(4)], min_gap=0.0).restored["kl"]
    later = sweep(model, select(cases, [0]), [Site("resid.out", 0, tokens=(k,)) for k in range(8)], min_gap=0.0)
    one = later.restored["kl"][0]
    wanted = torch.stack([one[1], one[2:4].mean(), one[4], one[5], one[6], one[7]])
    torch.testing.assert_close(found.restored["kl"][0], wanted, rtol=0, atol=1e-6)
    nothing = torch.tensor(float("nan"), dtype=torch.float64)
    wanted = torch.stack([each[1, 3], nothing, each[1, 3], nothing, nothing, each[1, 3]])
    torch.testing.assert_close(found.restored["kl"][1], wanted, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("family_name", TOKEN_FAMILIES)
def test_a_network_of_one_block(model: Model, few: Cases) -> None:
    """Its first block is its last: what is read of it alone, and restored before it, meet."""
    del model.blocks[1:]
    container: Any = model.module.get_submodule(model.family.blocks)
    del container[1:]
    assert model.n_layers == 1
    sites = all_sites(model)
    agree(sweep(model, few, sites, min_gap=0.0), reference(model, few, sites), sites)


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_a_prompt_of_one_token(model: Model) -> None:
    cases = PromptCases(model, (Prompt("a", (5,), (0, 1)),), NOISE)
    sites = [site for site in all_sites(model) if site.tokens in (None, "last", (0,))]
    agree(sweep(model, cases, sites, min_gap=0.0), reference(model, cases, sites), sites)


@pytest.mark.parametrize("family_name", [name for name in IMAGE_FAMILIES if name not in TOKEN_FAMILIES])
def test_in_a_plain_mlp_every_site_restores_everything(model: Model, few: Cases) -> None:
    kinds = [kind for kind in WRITTEN if kind in model.family.sites]
    sites = [Site(kind, layer) for kind in kinds for layer in range(model.n_layers)]
    found = sweep(model, few, sites)
    for metric in METRICS:
        wanted = found.clean[metric][:, None].expand_as(found.restored[metric])
        torch.testing.assert_close(found.restored[metric], wanted, rtol=0, atol=1e-5)


# --- what is refused ------------------------------------------------------------------------------------------------


def paired(model: Model, pixels: Tensor, corrupted: Tensor) -> ImageCases:
    undecided = torch.full((len(pixels),), UNDECIDED)
    return ImageCases(model, tuple(f"x/{i}" for i in range(len(pixels))), pixels, corrupted, undecided, undecided)


@pytest.mark.parametrize("family_name", IMAGE_FAMILIES)
def test_a_corruption_that_changes_nothing_is_refused(model: Model, random_pixels: Callable[..., Tensor]) -> None:
    pixels, other, sites = (
        random_pixels(4, seed=1),
        random_pixels(4, seed=2),
        [Site("resid.out", 0), Site("mlp.value", 1)],
    )
    with pytest.raises(WeightsmithError, match=r"logit difference of no case by 0\.001 .*largest gap is 0\)") as told:
        sweep(model, paired(model, pixels, pixels), sites, min_gap=0.001)
    one_sentence(told)
    mixed = other.clone()
    mixed[1] = pixels[1]
    found = sweep(model, paired(model, pixels, mixed), sites, min_gap=0.001)
    assert found.refused == (("x/1", 0.0),)
    assert found.samples == ("x/0", "x/2", "x/3")
    assert found.effects().info["refused"] == [["x/1", 0.0]]
    keep = [0, 2, 3]
    alone = sweep(model, select(paired(model, pixels, mixed), keep), sites, min_gap=0.001)
    assert alone.refused == ()
    same_sweep(found, alone)
    assert torch.equal(found.targets, alone.targets)
    taken = sweep(model, paired(model, pixels, mixed), sites, min_gap=0.0)
    assert taken.refused == ()
    assert taken.effects().values[1].abs().max() < 1e-5
    with pytest.raises(WeightsmithError, match="changes nothing of x/1"):
        taken.effects().normalised()


def test_the_first_metric_decides_what_is_refused(model: Model, few: Cases) -> None:
    sites = [Site("resid.out", 0)]
    found = sweep(model, few, sites, min_gap=0.0)
    for metric in METRICS:
        others = [name for name in METRICS if name != metric]
        gaps = (found.clean[metric] - found.corrupted[metric]).abs()
        between = float(gaps.mean())
        kept = sweep(model, few, sites, metrics=[metric, *others], min_gap=between)
        assert kept.samples == tuple(n for n, gap in zip(few.names, gaps.tolist(), strict=True) if gap >= between)
        assert 0 < len(kept.samples) < len(few.names)
        assert list(kept.restored) == [metric, *others]


def test_sites_that_are_not_there_are_told_in_one_sentence(model: Model, few: Cases) -> None:
    wrong = [Site("resid.out", 9), Site("mlp.value", 1, span=9)]
    if model.family.has_tokens:
        wrong += [Site("attn.z", 0, 7), Site("attn.k", 0, 4), Site("resid.out", 1, tokens=(0, 9)), Site("resid.mid", 0)]
    else:
        wrong += [Site("attn.z", 0), Site("resid.out", 0, tokens="cls")]
    wrong += [Site("classifier.value"), Site("classifier.key")]
    for site in wrong:
        with pytest.raises(WeightsmithError) as told:
            sweep(model, few, [Site("resid.out", 0), site])
        one_sentence(told)
        named = str(site) if site.span == 1 else str(site.each()[model.n_layers - 1])
        assert named in str(told.value) or site.kind in str(told.value)


def test_a_window_is_no_single_site(model: Model) -> None:
    with pytest.raises(WeightsmithError, match=r"resid\.out\[0:2\] is a window of 2 blocks") as told:
        model.bind(Site("resid.out", 0, span=2))
    one_sentence(told)
    with pytest.raises(WeightsmithError, match=r"--window 9 does not fit"):
        layers(model, "resid.out", windows=[2, 9])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sites": []}, "no sites to restore"),
        ({"metrics": []}, "one or more different metrics"),
        ({"metrics": ["kl", "kl"]}, "one or more different metrics"),
        ({"metrics": ["kll"]}, "--metric kll is not known: did you mean 'kl'"),
    ],
)
def test_nothing_to_measure_is_told(
    tiny_model: Callable[..., Model], random_pixels: Callable[..., Tensor], options: dict[str, Any], told: str
) -> None:
    model = tiny_model("vit")
    given = {"sites": [Site("resid.out", 0)]} | options
    with pytest.raises(WeightsmithError, match=told):
        sweep(model, few_cases(model, random_pixels, NOISE), given.pop("sites"), **given)
    with pytest.raises(WeightsmithError, match="probability was not measured: known: kl"):
        sweep(model, few_cases(model, random_pixels, NOISE), [Site("resid.out", 0)], metrics=["kl"]).effects(
            "probability"
        )


# --- what is left behind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [ArithmeticError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was(
    model: Model,
    few: Cases,
    hook_count: Callable[[nn.Module], int],
    monkeypatch: pytest.MonkeyPatch,
    failure: type[BaseException],
) -> None:
    before, hooks = weights_hash(model), hook_count(model.module)
    sites = some_sites(model, 6 if model.family.has_tokens else 1)
    found = sweep(model, few, sites, min_gap=0.0)
    assert (weights_hash(model), hook_count(model.module)) == (before, hooks)
    assert not any(parameter.grad is not None for parameter in model.module.parameters())
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise failure("in the middle")

    if Split.fits(model):  # in parts
        tail = Split.tail
        with monkeypatch.context() as patched:
            patched.setattr(Split, "tail", lambda split, hidden: (fail(), tail(split, hidden))[1])
            with pytest.raises(failure):
                sweep(model, few, sites, min_gap=0.0)
        assert calls == 5
        assert hook_count(model.module) == hooks
    calls = 0
    handle = model.blocks[-1].register_forward_hook(fail)  # with hooks
    with pytest.raises(failure):
        sweep(model, few, sites, min_gap=0.0)
    assert hook_count(model.module) == hooks + 1
    handle.remove()
    assert weights_hash(model) == before
    again = sweep(model, few, sites, min_gap=0.0)
    for metric in METRICS:
        assert torch.equal(again.restored[metric], found.restored[metric])


# --- checkpoints ----------------------------------------------------------------------------------------------------


def count_pieces(monkeypatch: pytest.MonkeyPatch, killed_at: int | None = None) -> list[list[int]]:
    """The cases of each piece that is measured from now on; the given one ends in an interrupt."""
    seen: list[list[int]] = []
    piece = MODULE._Run.piece

    def counted(run: Any, which: list[int]) -> Any:
        if len(seen) == killed_at:
            raise KeyboardInterrupt
        seen.append(list(which))
        return piece(run, which)

    monkeypatch.setattr(MODULE._Run, "piece", counted)
    return seen


@pytest.mark.parametrize("family_name", ["vit", "mlp", "gpt2"])
def test_a_killed_sweep_goes_on_where_it_was(
    model: Model, random_pixels: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cases = few_cases(model, random_pixels, NOISE, 4)
    sites = some_sites(model)[::7]
    monkeypatch.setattr(MODULE, "_SMALLEST", 1)
    wanted = sweep(model, cases, sites, min_gap=0.0, memory=1)
    with monkeypatch.context() as patched:
        seen = count_pieces(patched, killed_at=2)
        with pytest.raises(KeyboardInterrupt):
            sweep(model, cases, sites, min_gap=0.0, memory=1, checkpoint=tmp_path / "kept")
        assert seen == [[0], [1]]
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert len(stamps) == 2, "a piece is whole or absent"
    with monkeypatch.context() as patched:
        seen = count_pieces(patched)
        found = sweep(model, cases, sites, min_gap=0.0, memory=1, checkpoint=tmp_path / "kept")
        assert seen == [[2], [3]]
        again = sweep(model, cases, sites, min_gap=0.0, memory=1, checkpoint=tmp_path / "kept")
        assert len(seen) == 2
    assert all((tmp_path / "kept" / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    for one in (found, again):
        assert one.info == wanted.info
        assert (one.samples, one.refused, one.sites) == (wanted.samples, wanted.refused, wanted.sites)
        assert torch.equal(one.targets, wanted.targets)
        assert torch.equal(one.foils, wanted.foils)
        for metric in METRICS:
            assert torch.equal(one.restored[metric], wanted.restored[metric])
            assert torch.equal(one.clean[metric], wanted.clean[metric])
            assert torch.equal(one.corrupted[metric], wanted.corrupted[metric])


def test_a_checkpoint_of_another_sweep_is_refused(
    tiny_model: Callable[..., Model], random_pixels: Callable[..., Tensor], tmp_path: Path
) -> None:
    model, sites = tiny_model("vit"), [Site("resid.out", 0), Site("mlp.out", 1)]
    cases = few_cases(model, random_pixels, NOISE)
    options: dict[str, Any] = {"min_gap": 0.0, "checkpoint": tmp_path}
    sweep(model, cases, sites, **options)
    other = tiny_model("vit", seed=1)
    attempts: list[tuple[Model, Cases, list[Site], dict[str, Any]]] = [
        (model, cases, sites[::-1], options),
        (model, cases, sites, options | {"metrics": ["kl"]}),
        (model, cases, sites, options | {"min_gap": 0.01}),
        (model, cases, sites, options | {"sever": ["mlp.out"]}),
        (model, few_cases(model, random_pixels, EmbeddingNoise(scale=2.0, samples=2, seed=6)), sites, options),
        (model, replace(cases, targets=torch.tensor([0, 0])), sites, options),
        (model, replace(cases, names=("x/0", "x/9")), sites, options),
        (model, select(cases, [1, 0]), sites, options),
        (other, few_cases(other, random_pixels, NOISE), sites, options),
    ]
    for number, (network, given, places, how) in enumerate(attempts):
        with pytest.raises(WeightsmithError, match="cases of another sweep") as told:
            sweep(network, given, places, **how)
        one_sentence(told)
        assert str(tmp_path) in str(told.value), number
    with torch.no_grad():
        next(model.module.parameters()).add_(1e-3)
    with pytest.raises(WeightsmithError, match="cases of another sweep"):
        sweep(model, cases, sites, **options)


def test_a_damaged_checkpoint_is_told_and_measured_again(
    tiny_model: Callable[..., Model], random_pixels: Callable[..., Tensor], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model, sites = tiny_model("vit"), [Site("resid.out", 0)]
    cases = few_cases(model, random_pixels, NOISE)
    undisturbed = sweep(model, cases, sites, min_gap=0.0, checkpoint=tmp_path)
    (piece,) = tmp_path.iterdir()
    whole = piece.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 64
    save_file({"kept": torch.ones(2)}, tmp_path / "other")
    other = (tmp_path / "other").read_bytes()
    (tmp_path / "other").unlink()
    for damage in (whole[:-20], b"", whole[20:], b"nothing of ours", bytes(flipped), other):
        piece.write_bytes(damage)
        caplog.clear()
        again = sweep(model, cases, sites, min_gap=0.0, checkpoint=tmp_path)
        assert "finished cases are measured again" in caplog.text
        assert str(piece) in caplog.text
        assert all(torch.equal(again.restored[name], undisturbed.restored[name]) for name in undisturbed.restored)
        assert piece.read_bytes() == whole


# --- what it costs --------------------------------------------------------------------------------------------------


ROWS = ("queries", "keys", "outputs", "mlps")


@pytest.mark.parametrize("kind", ["resid.out", "mlp.out", "attn.out", "attn.v"])
def test_the_stated_work_is_what_runs(
    tiny_model: Callable[..., Model], random_pixels: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model = tiny_model("vit")
    cases, count = paired(model, random_pixels(4, seed=1), random_pixels(4, seed=2)), model.n_tokens
    stated = sweep(model, cases, tokens(model, kind)).info["block_forwards"]
    macs, lanes = Block.macs, count_lanes(monkeypatch)
    # Torch counts no attention on this device, and embeddings and the classifier are no blocks.
    monkeypatch.setattr(Block, "macs", lambda block, rows, attended=0, **others: macs(block, rows, **others))
    with FlopCounterMode(display=False) as embeddings:
        cases.embedded(range(4))
    with FlopCounterMode(display=False) as counter:
        info = sweep(model, cases, tokens(model, kind)).info
    whole = Block.macs(Split.of(model, torch.zeros(1, count, 16)).blocks[0], count, **dict.fromkeys(ROWS, count))
    ran = (counter.get_total_flops() - embeddings.get_total_flops()) / 2 - (8 + sum(lanes)) * 16 * model.n_classes
    assert info["block_forwards"] == pytest.approx(ran / whole, rel=1e-3)
    assert stated == pytest.approx(ran / whole, rel=0.1), "what attends is a small part of it"
    assert info["naive_block_forwards"] == 4 * 3 * (2 + 3 * count)
    assert info["block_forwards"] < info["naive_block_forwards"] / 2


@pytest.mark.parametrize("kind", ["resid.out", "mlp.out", "attn.k"])
@pytest.mark.parametrize("family_name", [name for name in TEXT_FAMILIES if name in PARTED])
def test_a_later_token_costs_less(model: Model, kind: str) -> None:
    cases = PromptCases(model, (Prompt("a", tuple(range(1, 15)), (0, 2)),), NOISE)
    costs = [sweep(model, cases, [Site(kind, 0, tokens=(k,))]).info["block_forwards"] for k in range(1, 14)]
    runs = model.n_layers * (1 + NOISE.samples)
    assert all(later < earlier for earlier, later in pairwise(costs))
    # Of the block written a few parts, of the middle one the suffix, of the last one what the last token reads.
    assert costs[-1] - runs < NOISE.samples * (1 / 2 if kind != "attn.k" else 1)
    assert costs[0] - runs < NOISE.samples * (model.n_layers - (1 if kind != "attn.k" else 0))
