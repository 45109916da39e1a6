"""A network run in parts is the network: whole passes, single parts, and modules that are not what they seem."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from weightsmith.models import Model, Split, families, load, record
from weightsmith.site import Site

PARTED = sorted(name for name, family in families().items() if family.parts is not None)
CAUSAL = [name for name in PARTED if families()[name].causal]
KEPT = ("resid.in", "attn.q", "attn.k", "attn.v", "attn.z", "attn.out", "resid.mid", "mlp.out", "resid.out")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def entering(model: Model, random_inputs: Callable[..., Tensor]) -> Tensor:
    """What enters the first block, of three inputs."""
    return model.embed(random_inputs(model, 3))


def assert_run_is_the_pass(model: Model, entering: Tensor, within: float = 2e-6) -> None:
    """Logits, and every activation that `record` sees."""
    sites = [Site(kind, layer) for kind in KEPT for layer in range(model.n_layers)]
    whole = record(model, entering, sites, start=0)
    split = Split.of(model, entering)
    trace = split.run(entering, KEPT)
    assert set(trace.kept) == set(KEPT)
    for site in sites:
        assert site.layer is not None
        torch.testing.assert_close(trace.at(site.kind, site.layer), whole[site], rtol=1e-5, atol=within, msg=str(site))
    torch.testing.assert_close(trace.logits, whole.logits, rtol=1e-6, atol=within)


@pytest.mark.parametrize("family_name", PARTED)
def test_a_run_in_parts_is_the_whole_pass(model: Model, entering: Tensor) -> None:
    assert Split.fits(model)
    assert_run_is_the_pass(model, entering)
    assert_run_is_the_pass(model, entering[:1])
    split = Split.of(model, entering)
    assert (split.tokens, len(split.blocks)) == (entering.shape[1], model.n_layers)
    assert split.read_at == (entering.shape[1] - 1 if model.family.reads == "text" else 0)
    assert split.run(entering, ()).kept == {}


@pytest.mark.parametrize("family_name", CAUSAL)
def test_texts_of_any_length(model: Model, random_inputs: Callable[..., Tensor]) -> None:
    for count in (1, 2, 16):
        ids = torch.randint(1, model.n_classes, (2, count), generator=torch.Generator().manual_seed(count))
        assert_run_is_the_pass(model, model.embed(ids))


@pytest.mark.parametrize("family_name", PARTED)
def test_eager_attention_is_the_same(model: Model, entering: Tensor) -> None:
    module: Any = model.module
    module.set_attn_implementation("eager")
    assert_run_is_the_pass(model, entering, within=1e-5)


@pytest.mark.parametrize("options", [{"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}], ids=str)
def test_the_attentions_own_scale_is_kept(options: dict[str, bool]) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 29, "n_positions": 16, "n_embd": 16, "n_layer": 3, "n_head": 2, "initializer_range": 0.5}
    model = load(GPT2LMHeadModel(GPT2Config(**sizes, **options)))
    assert_run_is_the_pass(model, model.embed(torch.randint(1, 29, (2, 7))))


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_stretched_rotary_positions_are_kept(kind: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    rope: dict[str, Any] = {"rope_type": kind, "factor": 4.0, "rope_theta": 10.0}
    if kind in ("yarn", "llama3"):
        rope["original_max_position_embeddings"] = 8
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        vocab_size=29, max_position_embeddings=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5, rope_parameters=rope,
    )  # fmt: skip
    model = load(LlamaForCausalLM(config))
    assert_run_is_the_pass(model, model.embed(torch.randint(1, 29, (2, 12))))


# --- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family_name", PARTED)
def test_rows_projected_alone_are_those_of_all(model: Model, entering: Tensor) -> None:
    for block in Split.of(model, entering).blocks:
        whole = block.project(entering)
        assert [part.shape[-1] for part in whole] == list(block.widths)
        some = block.project(entering[:, [4, 1]])
        for part, of_some in zip(whole, some, strict=True):
            torch.testing.assert_close(of_some, part[:, [4, 1]], rtol=1e-5, atol=1e-6)
        for row in (0, 2, entering.shape[1] - 1):
            query, key, value = block.project_one(entering, row)
            assert query.shape == (3, 1, block.widths[0])
            for found, wanted in ((query, whole[0][:, row : row + 1]), (key, whole[1]), (value, whole[2])):
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family_name", PARTED)
def test_rows_that_attend_alone_give_what_they_give_among_all(model: Model, entering: Tensor) -> None:
    split = Split.of(model, entering)
    count = entering.shape[1]
    for block in split.blocks:
        query, key, value = block.project(entering)
        query, key = split.rotate(query), split.rotate(key)
        whole = block.attend(query, key, value, 0 if block.causal else None)
        assert whole.shape == query.shape
        for first in range(count):
            for end in {first + 1, count}:
                found = block.attend(query[:, first:end], key, value, first if block.causal else None)
                torch.testing.assert_close(found, whole[:, first:end], rtol=1e-5, atol=1e-6)
        if block.causal:  # and what is later does not matter
            key[:, 3:], value[:, 3:] = 9.0, 9.0
            torch.testing.assert_close(block.attend(query, key, value, 0)[:, :3], whole[:, :3], rtol=1e-5, atol=1e-6)


def test_rotation_is_that_of_transformers(
    tiny_model: Callable[..., Model], random_inputs: Callable[..., Tensor]
) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = tiny_model("llama")
    entering = model.embed(random_inputs(model, 3))
    split = Split.of(model, entering)
    query, key, _ = split.blocks[1].project(entering)
    assert split.rotation is not None
    cos, sin = split.rotation

    def by_heads(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (-1, 4)).transpose(1, 2)

    turned = apply_rotary_pos_emb(by_heads(query), by_heads(key), cos[None], sin[None])
    for rows, wanted in zip((query, key), turned, strict=True):
        wanted = wanted.transpose(1, 2).flatten(2)
        torch.testing.assert_close(split.rotate(rows), wanted, rtol=1e-6, atol=1e-6)
        places = torch.tensor([5, 0, 2])
        torch.testing.assert_close(split.rotate(rows[:, places], places), wanted[:, places], rtol=1e-6, atol=1e-6)
        each = torch.tensor([[1, 6], [0, 3], [4, 4]])  # other positions in each lane
        lanes = torch.arange(3)[:, None]
        torch.testing.assert_close(split.rotate(rows[lanes, each], each), wanted[lanes, each], rtol=1e-6, atol=1e-6)
        assert (wanted[:, 1:] - rows[:, 1:]).abs().max() > 0.1
        torch.testing.assert_close(wanted[:, 0], rows[:, 0])
    assert Split.of(tiny_model("gpt2"), torch.zeros(1, 7, 16)).rotate(query) is query


@pytest.mark.parametrize("family_name", PARTED)
def test_the_tail_reads_one_row(model: Model, entering: Tensor) -> None:
    split = Split.of(model, entering)
    logits = split.tail(entering[:, split.read_at])
    torch.testing.assert_close(logits, model.run_from(model.n_layers, entering), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("family_name", PARTED)
def test_multiply_adds_by_hand(model: Model, entering: Tensor) -> None:
    block = Split.of(model, entering).blocks[0]
    query, key, value = block.widths
    macs = block.macs
    assert macs(7, queries=3) == 3 * 16 * query
    assert macs(7, keys=3) == 3 * 16 * (key + value)
    assert macs(7, outputs=2) == 2 * query * 16
    assert macs(7, attended=2) == 2 * 2 * 7 * query
    assert macs(7, mlps=5) == 5 * (3 if hasattr(block.mlp, "gate_proj") else 2) * 16 * 24
    assert macs(7, queries=3, keys=3, mlps=1) == macs(7, queries=3) + macs(7, keys=3) + macs(7, mlps=1)
    assert macs(7) == 0


# --- what cannot be taken apart, or only as it is ---------------------------------------------------------------------


def test_what_fits(model: Model) -> None:
    assert Split.fits(model) == (model.family.parts is not None)
    for module in (model.module, model.blocks[0], next(iter(model.blocks[-1].children()))):
        for hang in (module.register_forward_hook, module.register_forward_pre_hook):
            handle = hang(lambda *_: None)
            assert not Split.fits(model)
            handle.remove()
    assert Split.fits(model) == (model.family.parts is not None)


def adapted(model: Model, targets: list[str]) -> Model:
    """The model with LoRA adapters that add something."""
    torch.manual_seed(3)
    fused = model.family.name == "gpt2"
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, fan_in_fan_out=fused)
    plain = copy.deepcopy(model.module)
    module = load(peft.inject_adapter_in_model(config, plain)).module
    weights = [p for name, p in module.named_parameters() if "lora_B" in name]
    assert weights
    for weight in weights:
        weight.copy_(0.5 * torch.randn_like(weight))
    return load(module)


ADAPTED = {
    "vit": ["q_proj", "v_proj", "o_proj", "fc1", "fc2"],
    "timm_vit": ["qkv", "attn.proj", "fc1", "fc2"],
    "deit": ["k_proj", "fc2"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "o_proj", "up_proj"],
    "mistral": ["k_proj", "v_proj", "gate_proj"],
    "qwen2": ["q_proj", "k_proj", "down_proj"],
    "narrow_vit": ["q_proj", "o_proj", "fc1"],
}


@pytest.mark.parametrize("family_name", PARTED)
def test_adapters_are_part_of_the_network(model: Model, random_inputs: Callable[..., Tensor]) -> None:
    inputs = random_inputs(model, 3)
    with_adapters = adapted(model, ADAPTED[model.family.name])
    entering = with_adapters.embed(inputs)
    plain = Split.of(model, entering).run(entering, ()).logits
    assert_run_is_the_pass(with_adapters, entering)
    assert (with_adapters.logits(inputs) - plain).abs().max() > 0.1, "the adapters add nothing"
    for block in Split.of(with_adapters, entering).blocks:
        whole, one = block.project(entering), block.project_one(entering, 3)
        torch.testing.assert_close(one[0], whole[0][:, 3:4], rtol=1e-5, atol=1e-5)
        for found, wanted in zip(one[1:], whole[1:], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_fused_projection_of_another_kind(
    tiny_model: Callable[..., Model], random_inputs: Callable[..., Tensor], bias: bool
) -> None:
    """Its weight the other way round, or without a bias."""
    model = tiny_model("gpt2")
    inputs = random_inputs(model, 3)
    before = model.logits(inputs)
    for block in model.blocks:
        fused = block.get_submodule("attn.c_attn")
        linear = nn.Linear(16, 48, bias=bias)
        linear.weight.copy_(fused.get_parameter("weight").mT)
        if bias:
            linear.bias.copy_(fused.get_parameter("bias"))
        setattr(block.get_submodule("attn"), "c_attn", linear)  # noqa: B010
    entering = model.embed(inputs)
    assert_run_is_the_pass(model, entering)
    assert torch.allclose(model.logits(inputs), before, atol=1e-5) == bias
    for block in Split.of(model, entering).blocks:
        for found, wanted in zip(block.project_one(entering, 0), block.project(entering), strict=True):
            torch.testing.assert_close(found, wanted[:, : found.shape[1]], rtol=1e-5, atol=1e-6)
