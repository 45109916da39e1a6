"""Laws that hold in every family. What cannot apply is read from the family's table, never from its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.models import Family, Model, count_blocks, families, patch, record
from weightsmith.site import KINDS, Site


def tokens_of(model: Model) -> tuple[str | tuple[int, ...], ...]:
    """Every way to name tokens of this model."""
    return ("last", (0, 2)) if model.family.cls is None else ("cls", "patches", "last", (0, 2))


@pytest.fixture
def inputs(model: Model, random_inputs: Callable[..., Tensor]) -> Tensor:
    """Three preprocessed images, or texts."""
    made: Tensor = random_inputs(model, 3)
    return made


def n_tokens(model: Model, inputs: Tensor) -> int:
    """Tokens of the inputs."""
    return inputs.shape[1] if model.family.reads == "text" else model.n_tokens


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def parts(model: Model, site: Site) -> list[Site]:
    """A site with its heads and token subsets."""
    found = [site]
    if model.family.sites[site.kind].heads:
        assert site.layer is not None
        heads = model.n_heads(site.layer, site.kind)
        assert heads > 1
        found += [Site(site.kind, site.layer, head) for head in range(heads)]
    if model.family.has_tokens and model.family.sites[site.kind].tokens:
        found += [place.at(tokens) for place in tuple(found) for tokens in tokens_of(model)]
    return found


def whole(model: Model) -> list[Site]:
    """Every site that can be written."""
    return [site for site in model.sites() if model.bind(site).writable]


def having(wanted: Callable[[Family], bool]) -> list[str]:
    """The families whose table a law is about; never none, so that no law is lost by a slip in a table."""
    names = [name for name, family in sorted(families().items()) if wanted(family)]
    assert names
    return names


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


def test_the_tiny_model_has_several_layers_and_every_site_is_recorded(model: Model, inputs: Tensor) -> None:
    assert 2 <= model.n_layers <= 4
    run = record(model, inputs, model.sites())
    assert same_bits(run.logits, model.logits(inputs))
    for site in model.sites():
        place = model.family.sites[site.kind]
        batch_and_tokens = (3, n_tokens(model, inputs)) if model.family.has_tokens and place.tokens else (3,)
        assert tuple(run[site].shape[:-1]) == batch_and_tokens, str(site)
        assert run[site].std() > 1e-3, f"{site} is constant: the other laws would hold by accident"


def test_sites_of_the_table_are_all_listed(model: Model) -> None:
    listed = {site.kind for site in model.sites()}
    assert listed == set(model.family.sites)
    assert {site.layer for site in model.sites() if site.layer is not None} == set(range(model.n_layers))


def test_patching_a_site_with_its_own_activation_changes_no_bit(model: Model, inputs: Tensor) -> None:
    places = [part for site in whole(model) for part in parts(model, site)]
    run = record(model, inputs, places)
    clean = model.logits(inputs)
    for part in places:
        with patch(model, {part: run[part].clone()}):
            assert same_bits(model.logits(inputs), clean), str(part)
        with patch(model, {part: lambda old: old.clone()}):
            assert same_bits(model.logits(inputs), clean), f"{part} through a function"


def test_patching_everything_at_once_with_itself_changes_no_bit(model: Model, inputs: Tensor) -> None:
    places = [part for site in whole(model) for part in parts(model, site)]
    run = record(model, inputs, places)
    with patch(model, {place: run[place] for place in places}):
        assert same_bits(model.logits(inputs), run.logits)


def test_zeroing_any_site_changes_the_output(model: Model, inputs: Tensor) -> None:
    clean = model.logits(inputs)
    for site in whole(model):
        with patch(model, {site: torch.zeros(())}):
            change = (model.logits(inputs) - clean).abs().amax(1)
        assert (change > 1e-6).all(), f"{site} does not reach the output: {change.tolist()}"


def test_a_patch_writes_the_part_it_names_and_nothing_beside_it(model: Model, inputs: Tensor) -> None:
    for site in whole(model):
        clean = record(model, inputs, [site])[site]
        for part in parts(model, site):
            with patch(model, {part: torch.full((), 7.0)}):
                seen = record(model, inputs, [site, part])
            expected = clean.clone()
            inside = torch.zeros_like(expected, dtype=torch.bool)
            bound = model.bind(part)
            rows = slice(None) if bound.tokens is None else bound.tokens
            columns = slice(None)
            if bound.columns is not None:  # counted in the whole site, which may itself be a part of its module
                first = model.bind(site).columns
                start = bound.columns.start - (0 if first is None else first.start)
                columns = slice(start, start + bound.columns.stop - bound.columns.start)
            if inside.ndim == 3:
                inside[:, rows, columns] = True
            else:
                inside[:, columns] = True
            expected[inside] = 7.0
            assert same_bits(seen[site], expected), str(part)
            assert (seen[part] == 7).all(), str(part)


def test_heads_share_a_site_out_among_themselves(model: Model, inputs: Tensor) -> None:
    kinds = [kind for kind, place in model.family.sites.items() if place.heads]
    assert bool(kinds) == (model.family.attention is not None)
    for kind in kinds:
        for layer in range(model.n_layers):
            heads = [Site(kind, layer, head) for head in range(model.n_heads(layer, kind))]
            run = record(model, inputs, [Site(kind, layer), *heads])
            assert same_bits(torch.cat([run[head] for head in heads], -1), run[Site(kind, layer)])


@pytest.mark.parametrize("family_name", having(lambda family: family.attention is not None))
def test_heads_are_as_many_as_the_config_says(model: Model) -> None:
    config: Any = model.module.config
    by_layer = getattr(config, "attention_heads", [config.num_attention_heads] * model.n_layers)
    for layer, heads in enumerate(by_layer):
        grouped = getattr(config, "num_key_value_heads", heads)
        wanted = {"q": heads, "k": grouped, "v": grouped, "z": heads}
        assert {kind: model.n_heads(layer, f"attn.{kind}") for kind in "qkvz"} == wanted


@pytest.mark.parametrize("family_name", having(lambda family: not family.has_tokens))
def test_a_network_without_tokens_counts_none(model: Model) -> None:
    assert model.n_tokens == 0


@pytest.mark.parametrize("family_name", having(lambda family: family.has_tokens))
def test_token_names_mean_what_the_table_says(model: Model, inputs: Tensor) -> None:
    site = Site("resid.out", 1)
    run = record(model, inputs, [site, *(site.at(tokens) for tokens in tokens_of(model))])
    assert run[site].shape[1] == n_tokens(model, inputs)
    assert torch.equal(run[site.at("last")], run[site][:, -1:])
    assert torch.equal(run[site.at((0, 2))], run[site][:, [0, 2]])
    if model.family.cls is None:
        for tokens in ("cls", "patches"):
            with pytest.raises(WeightsmithError, match="has no CLS token"):
                model.bind(site.at(tokens))
        return
    assert torch.equal(run[site.at("cls")], run[site][:, [model.family.cls]])
    assert torch.equal(run[site.at("patches")], run[site][:, model.family.special :])
    patches = model.n_tokens - model.family.special
    assert patches == round(patches**0.5) ** 2, "special tokens were counted as patches"


@pytest.mark.parametrize("family_name", having(lambda family: family.residual))
def test_a_block_adds_attention_and_mlp_to_the_residual_stream(model: Model, inputs: Tensor) -> None:
    for layer in range(model.n_layers):
        kinds = ("resid.in", "attn.out", "mlp.out", "resid.out")
        run = record(model, inputs, [Site(kind, layer) for kind in kinds])
        before, attention, mlp, after = (run[Site(kind, layer)] for kind in kinds)
        torch.testing.assert_close(before + attention + mlp, after, rtol=1e-5, atol=1e-5)
        if "resid.mid" in model.family.sites:
            middle = record(model, inputs, [Site("resid.mid", layer)])[Site("resid.mid", layer)]
            torch.testing.assert_close(before + attention, middle, rtol=1e-5, atol=1e-5)


def test_a_block_that_adds_nothing_passes_the_stream_on_where_there_is_one(model: Model, inputs: Tensor) -> None:
    adds = ("attn.out", "mlp.out") if model.family.residual else ("mlp.value",)
    for layer in range(model.n_layers):
        entering, leaving = Site("resid.in", layer), Site("resid.out", layer)
        with patch(model, {Site(kind, layer): torch.zeros(()) for kind in adds}):
            run = record(model, inputs, [entering, leaving])
        assert torch.equal(run[entering], run[leaving]) == model.family.residual


@pytest.mark.parametrize("family_name", having(lambda family: family.residual))
def test_the_mlp_reads_what_attention_wrote_unless_they_run_side_by_side(model: Model, inputs: Tensor) -> None:
    for layer in range(model.n_layers):
        out = Site("mlp.out", layer)
        clean = record(model, inputs, [out])[out]
        with patch(model, {Site("attn.out", layer): torch.zeros(())}):
            without = record(model, inputs, [out])[out]
        assert torch.equal(without, clean) == ("resid.mid" not in model.family.sites)


def test_blocks_follow_one_another(model: Model, inputs: Tensor) -> None:
    for layer in range(model.n_layers - 1):
        out, entering = Site("resid.out", layer), Site("resid.in", layer + 1)
        run = record(model, inputs, [out, entering])
        assert same_bits(run[out], run[entering])


@pytest.mark.parametrize(
    "family_name",
    having(lambda family: {"attn.z", "attn.out"} <= set(family.sites) and "attn.value" in family.linear),
)
def test_what_the_heads_write_and_the_bias_are_the_attention_output(model: Model, inputs: Tensor) -> None:
    for layer in range(model.n_layers):
        name, transposed, has_bias = model.linear("attn.value", layer)
        weight = model.module.get_parameter(name)
        weight = weight.mT if transposed else weight
        heads = [Site("attn.z", layer, head) for head in range(model.n_heads(layer))]
        value, out = Site("attn.value", layer), Site("attn.out", layer)
        run = record(model, inputs, [*heads, value, out])
        columns = torch.split(weight, [run[head].shape[-1] for head in heads], dim=1)
        written = sum(run[head] @ piece.mT for head, piece in zip(heads, columns, strict=True))
        bias = model.module.get_parameter(name.removesuffix("weight") + "bias") if has_bias else 0.0
        torch.testing.assert_close(written + bias, run[value], rtol=1e-5, atol=1e-5)
        scales = [part for part in model.module.modules() if type(part).__name__ == "LayerScale"]
        by_channel = torch.ones(run[value].shape[-1])
        if scales:  # between the projection and the stream lies a factor a channel, of all tokens and images alike
            by_channel = (run[value] * run[out]).sum((0, 1)) / run[value].square().sum((0, 1))
        torch.testing.assert_close(run[value] * by_channel, run[out], rtol=1e-5, atol=1e-5)


def test_every_linear_map_takes_its_key_to_its_value(model: Model, inputs: Tensor) -> None:
    assert model.family.linear
    for kind, entry in model.family.linear.items():
        layers: list[int | None] = [None] if kind.startswith("classifier.") else list(range(model.n_layers))
        for layer in layers:
            key, value = Site(model.key_of(kind), layer), Site(kind, layer)
            assert key.kind == entry.key
            name, transposed, has_bias = model.linear(kind, layer)
            weight = model.module.get_parameter(name)
            weight = weight.mT if transposed else weight
            bias = model.module.get_parameter(name.removesuffix("weight") + "bias") if has_bias else 0.0
            run = record(model, inputs, [key, value])
            torch.testing.assert_close(run[key] @ weight.mT + bias, run[value], rtol=1e-5, atol=1e-5)


def test_the_lookup_key_and_value_are_one_vector_an_image(model: Model, inputs: Tensor) -> None:
    for kind in model.family.linear:
        layer = None if kind.startswith("classifier.") else 0
        site = model.lookup(kind, layer)
        assert (
            record(model, inputs, [site])[site].flatten(1).shape[1]
            == model.module.get_parameter(model.linear(kind, layer)[0]).shape[model.linear(kind, layer)[1]]
        )


def test_run_from_any_layer_is_the_full_pass_bit_for_bit(model: Model, inputs: Tensor) -> None:
    entering = [Site("resid.in", layer) for layer in range(model.n_layers)]
    leaving = Site("resid.out", model.n_layers - 1)
    run = record(model, inputs, [*entering, leaving])
    starts = [*(run[site] for site in entering), run[leaving]]
    for layer, hidden in enumerate(starts):
        assert same_bits(model.run_from(layer, hidden), run.logits), f"from layer {layer}"
        with count_blocks(model) as count:
            model.run_from(layer, hidden)
        assert count() == len(inputs) * (model.n_layers - layer)


def test_recording_from_a_layer_sees_what_the_full_pass_sees(model: Model, inputs: Tensor) -> None:
    start, later = Site("resid.in", 1), Site("mlp.value", model.n_layers - 1)
    run = record(model, inputs, [start, later])
    again = record(model, run[start], [later], start=1)
    assert same_bits(again[later], run[later])
    assert same_bits(again.logits, run.logits)
    with pytest.raises(WeightsmithError, match=r"never reached mlp\.value\[0\]"):
        record(model, run[start], [Site("mlp.value", 0)], start=1)


def test_nothing_is_left_of_a_pass_that_raises(
    model: Model, inputs: Tensor, hook_count: Callable[[nn.Module], int]
) -> None:
    clean, before, hooks = model.logits(inputs), weights_hash(model), hook_count(model.module)

    def fail(_: Tensor) -> Tensor:
        raise ArithmeticError("in the middle")

    for site in whole(model):
        others = {other: torch.zeros(()) for other in whole(model) if other != site}
        with pytest.raises(ArithmeticError, match="in the middle"), patch(model, others | {site: fail}):
            model.logits(inputs)
        assert hook_count(model.module) == hooks, str(site)
        with pytest.raises(ArithmeticError), patch(model, {site: fail}):
            record(model, inputs, model.sites())
        assert hook_count(model.module) == hooks, f"{site} while it was recorded"
    with pytest.raises(ArithmeticError), count_blocks(model):
        raise ArithmeticError
    assert hook_count(model.module) == hooks
    assert weights_hash(model) == before
    assert same_bits(model.logits(inputs), clean)


def test_hooks_of_the_user_stay_and_are_called(
    model: Model, inputs: Tensor, hook_count: Callable[[nn.Module], int]
) -> None:
    calls: list[str] = []
    user = [
        module.register_forward_hook(lambda *_, path=path: calls.append(path))
        for path, module in model.module.named_modules()
        if any(model.bind(site).path == path for site in model.sites())
    ]
    hooks = hook_count(model.module)
    model.logits(inputs)
    expected, calls[:] = list(calls), []
    run = record(model, inputs, model.sites())
    assert calls == expected
    calls.clear()
    with patch(model, {site: run[site] for site in whole(model)}):
        model.logits(inputs)
    assert calls == expected
    assert hook_count(model.module) == hooks
    for handle in user:
        handle.remove()


def test_a_hook_of_the_user_that_changes_the_pass_is_seen(model: Model, inputs: Tensor) -> None:
    handle = model.blocks[0].register_forward_hook(
        lambda _m, _a, output: (output[0] + 1, *output[1:]) if isinstance(output, tuple) else output + 1
    )
    try:
        changed = model.logits(inputs)
        run = record(model, inputs, [Site("resid.out", 0), Site("resid.in", 1)])
        assert same_bits(run[Site("resid.out", 0)], run[Site("resid.in", 1)])
        assert same_bits(run.logits, changed)
    finally:
        handle.remove()
    assert not torch.equal(model.logits(inputs), changed)


def test_sites_that_are_not_there_are_refused_by_name(model: Model, inputs: Tensor) -> None:
    missing = [kind for kind in KINDS if kind not in model.family.sites]
    wrong = [Site(kind, None if kind.startswith("classifier.") else 0) for kind in missing]
    too_deep = [Site(kind, model.n_layers) for kind in model.family.sites if not kind.startswith("classifier.")]
    heads = [Site(kind, 0, model.n_heads(0, kind)) for kind, place in model.family.sites.items() if place.heads]
    if model.family.has_tokens:
        tokens = [Site("resid.out", 0, tokens=(0, model.n_tokens)), Site("classifier.value", tokens="cls")]
        if model.family.reads == "text":
            tokens.append(Site("resid.out", 0, tokens=(inputs.shape[1],)))
    else:
        tokens = [Site("resid.out", 0, tokens="cls"), Site("resid.out", 0, tokens=(0,))]
    assert missing or heads

    def pass_with(site: Site) -> None:
        with patch(model, {site: torch.zeros(())}):
            model.logits(inputs)

    for site in [*wrong, *too_deep, *heads, *tokens]:
        name = site.kind if site in wrong else str(site)
        for attempt in (
            lambda site=site: record(model, inputs, [site]),
            lambda site=site: pass_with(site),
        ):
            with pytest.raises(WeightsmithError) as told:
                attempt()
            assert name in str(told.value)


def test_a_site_that_is_only_a_copy_cannot_be_patched(
    model: Model, inputs: Tensor, hook_count: Callable[[nn.Module], int]
) -> None:
    copies = [site for site in model.sites() if not model.bind(site).writable]
    hooks = hook_count(model.module)
    for site in copies:
        both = {Site("resid.out", 0): torch.zeros(()), site: torch.zeros(())}
        with pytest.raises(WeightsmithError) as told, patch(model, both):
            pass
        assert str(site) in str(told.value)
        assert hook_count(model.module) == hooks
    assert all(not model.family.sites[site.kind].patch for site in copies)


def test_a_patch_that_no_pass_reached_is_told(model: Model) -> None:
    told = pytest.raises(WeightsmithError, match=r"no forward pass reached resid\.out\[1\]")
    with told, patch(model, {Site("resid.out", 1): torch.zeros(())}):
        pass


def test_gradients_flow_through_patches_and_records(model: Model, inputs: Tensor) -> None:
    with torch.enable_grad():
        for site in whole(model):
            own = record(model, inputs, [site])[site].detach().requires_grad_()
            with patch(model, {site: own}):
                (gradient,) = torch.autograd.grad(model.logits(inputs).square().sum(), own)
            assert gradient.abs().max() > 0, str(site)
