"""Hypothesis draws matrices of small whole numbers: their sums and halves are exact, so equality needs no tolerance."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weightsmith.delta import Change, Delta, Dense, LowRank, lifted, wears_delta, weights_hash
from weightsmith.errors import WeightsmithError, WrongWeightsError
from weightsmith.models import Model, families

ROWS, COLUMNS = 3, 4


def whole_numbers(*shape: int) -> st.SearchStrategy[Tensor]:
    count = int(np.prod(shape))
    return st.lists(st.integers(-8, 8), min_size=count, max_size=count).map(
        lambda flat: torch.tensor(flat, dtype=torch.float64).reshape(shape)
    )


dense_changes = whole_numbers(ROWS, COLUMNS).map(Dense)
low_rank_changes = st.integers(1, 5).flatmap(
    lambda rank: st.builds(LowRank, whole_numbers(ROWS, rank), whole_numbers(rank, COLUMNS))
)
changes = st.one_of(dense_changes, low_rank_changes)
deltas = st.dictionaries(st.sampled_from(["a.weight", "b.weight", "c.weight"]), changes, max_size=3).map(Delta)


def dense(delta: Delta, name: str) -> Tensor:
    """The change of a parameter, zero where the delta has none."""
    change = delta.changes.get(name)
    return torch.zeros(ROWS, COLUMNS, dtype=torch.float64) if change is None else change.dense()


def same(one: Delta, expected: Callable[[str], Tensor]) -> bool:
    return all(torch.equal(dense(one, name), expected(name)) for name in ("a.weight", "b.weight", "c.weight"))


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in module.state_dict().items()}


def small_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(COLUMNS, ROWS), nn.Linear(ROWS, ROWS), nn.BatchNorm1d(ROWS))
        with torch.no_grad():
            module[0].weight[0, 0] = -0.0
            module[0].weight[1, 1] = 0.0
    return module.eval()


def random_delta(base: nn.Module | None = None, seed: int = 0) -> Delta:
    """Of `small_network`: a low-rank weight, a dense weight and a bias."""
    draw = torch.Generator().manual_seed(seed)
    return Delta(
        {
            "0.weight": LowRank(torch.randn(ROWS, 2, generator=draw), torch.randn(2, COLUMNS, generator=draw)),
            "1.weight": Dense(torch.randn(ROWS, ROWS, generator=draw)),
            "1.bias": Dense(torch.randn(ROWS, generator=draw)),
        },
        weights_hash(base) if base is not None else "",
        {"method": "random"},
    )


# --- algebra -------------------------------------------------------------------------------------------------------


@given(deltas, deltas)
def test_a_sum_is_the_sum_of_the_changes(a: Delta, b: Delta) -> None:
    assert same(a + b, lambda name: dense(a, name) + dense(b, name))
    assert same(a.then(b), lambda name: dense(a, name) + dense(b, name))
    assert set((a + b).changes) == set(a.changes) | set(b.changes)


@given(deltas, st.sampled_from([0.5, -1.0, 0.0, 3.0]))
def test_scaling_scales_the_changes(a: Delta, factor: float) -> None:
    assert same(factor * a, lambda name: factor * dense(a, name))
    assert same(a * factor, lambda name: factor * dense(a, name))
    assert same(-a, lambda name: -dense(a, name))
    assert (factor * a).norm() == pytest.approx(abs(factor) * a.norm(), rel=1e-6, abs=1e-6)


@given(deltas, deltas)
def test_a_difference_is_the_sum_with_the_negative(a: Delta, b: Delta) -> None:
    assert same(a - b, lambda name: dense(a, name) - dense(b, name))
    assert same(a - a, lambda _: torch.zeros(ROWS, COLUMNS, dtype=torch.float64))
    assert same((a + b) - b, lambda name: dense(a, name))


@given(deltas)
def test_the_norm_is_that_of_the_dense_change(a: Delta) -> None:
    expected = float(torch.stack([dense(a, name) for name in ("a.weight", "b.weight", "c.weight")]).norm())
    assert a.norm() == pytest.approx(expected, rel=1e-6, abs=1e-5)


@given(low_rank_changes)
def test_compressing_changes_the_rank_and_nothing_else(change: LowRank) -> None:
    small = change.compressed()
    torch.testing.assert_close(small.dense(), change.dense(), rtol=0, atol=1e-9)
    assert small.left.shape[1] == max(1, int(torch.linalg.matrix_rank(change.dense())))


@given(deltas)
def test_compressing_a_delta_keeps_what_it_is(a: Delta) -> None:
    a = Delta(a.changes, "base", {"method": "m"})
    small = (a + a).compressed()
    assert (a.compressed().base, a.compressed().info) == (a.base, a.info)
    for name, change in a.changes.items():
        torch.testing.assert_close(small.changes[name].dense(), 2 * change.dense(), rtol=0, atol=1e-9)
        assert type(small.changes[name]) is type(change)
        if isinstance(change, LowRank):
            rank = max(1, int(torch.linalg.matrix_rank(change.dense())))
            assert (a + a).changes[name].left.shape[1] == 2 * change.left.shape[1]
            assert small.changes[name].left.shape[1] == rank


def test_a_sum_does_not_change_its_terms() -> None:
    a, b = random_delta(seed=1), random_delta(seed=2)
    before = {name: change.dense().clone() for name, change in a.changes.items()}
    a + b, 0.0 * a, -a, a.compressed()
    assert all(torch.equal(before[name], change.dense()) for name, change in a.changes.items())
    with pytest.raises(TypeError):
        a.changes["more"] = Dense(torch.zeros(1))  # type: ignore[index]


def test_adding_what_is_no_delta_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        random_delta() + 1  # type: ignore[operator]


def test_bases_join_and_exclude_one_another() -> None:
    a, b, free = Delta({}, "A"), Delta({}, "B"), Delta({})
    assert ((a + free).base, (free + a).base, (a + a).base) == ("A", "A", "A")
    assert (a.then(b).base, (-a).base, (2 * a).base) == ("A", "A", "A")
    with pytest.raises(WrongWeightsError, match=r"first\.then\(second\)"):
        a + b
    with pytest.raises(WrongWeightsError):
        a - b


def test_the_info_tells_where_a_delta_comes_from() -> None:
    a = Delta({}, info={"method": "m"})
    assert (0.5 * (0.5 * a)).info == {"method": "m", "scale": 0.25}
    assert (a + 2.0 * a).info == {"sum_of": [{"method": "m"}, {"method": "m", "scale": 2.0}]}
    assert a.info == {"method": "m"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_change_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(WeightsmithError, match="NaN or infinity"):
        Dense(torch.tensor([0.0, bad]))
    for left, right in ((bad, 1.0), (1.0, bad)):
        with pytest.raises(WeightsmithError, match="NaN or infinity"):
            LowRank(torch.full((2, 1), left), torch.full((1, 2), right))
    with pytest.raises(WeightsmithError, match="NaN or infinity"):
        bad * Delta({"a.weight": Dense(torch.ones(2))})


def test_shapes_that_do_not_fit_are_refused() -> None:
    for left, right in (((2, 3), (2, 3)), ((2,), (2, 3)), ((2, 3), (3,))):
        with pytest.raises(WeightsmithError, match="do not multiply"):
            LowRank(torch.zeros(left), torch.zeros(right))
    one, other = Delta({"a": Dense(torch.zeros(2, 3))}), Delta({"a": Dense(torch.zeros(3, 2))})
    with pytest.raises(WeightsmithError, match="cannot be added"):
        one + other


# --- on a model ----------------------------------------------------------------------------------------------------


@given(a=deltas, b=deltas)
@settings(max_examples=30)
def test_a_delta_on_a_model_is_the_weight_plus_the_change(a: Delta, b: Delta) -> None:
    module = nn.ModuleDict({name: nn.Linear(COLUMNS, ROWS, dtype=torch.float64) for name in "abc"})
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with (a + b).on(module):
        for name, tensor in module.state_dict().items():
            change = dense(a, name) + dense(b, name) if name.endswith("weight") else 0.0
            assert torch.equal(tensor, before[name] + change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_change_is_added_in_at_least_float32(dtype: torch.dtype) -> None:
    module = small_network().to(dtype)
    delta = random_delta()
    expected = module[1].weight.to(torch.promote_types(dtype, torch.float32)) + delta.changes["1.weight"].dense()
    delta.apply(module)
    assert module[1].weight.dtype == dtype
    assert torch.equal(module[1].weight, expected.to(dtype))


def test_coefficient_zero_changes_no_bit_of_the_weights() -> None:
    module = small_network()
    before = bits(module)
    assert module[0].weight[0, 0].signbit()
    assert not module[0].weight[1, 1].signbit()
    for factor in (0.0, -0.0):
        with (factor * random_delta(module)).on(module):
            assert bits(module) == before
        (factor * random_delta(module)).apply(module)
        assert bits(module) == before
    sparse = Dense(torch.zeros(ROWS, COLUMNS).index_put((torch.tensor([2]), torch.tensor([3])), torch.tensor(1.0)))
    Delta({"0.weight": sparse}).apply(module)
    assert module[0].weight[0, 0].signbit(), "an element that does not change lost its sign"
    assert bits(module)["1.weight"] == before["1.weight"]
    assert bits(module) != before


def test_taking_a_delta_off_restores_every_bit() -> None:
    module = small_network()
    before, delta = bits(module), random_delta(module)
    big = 1e6 * delta  # (w + d) − d would not be w
    with big.on(module):
        worn = bits(module)
        changed = {name for name in before if worn[name] != before[name]}
        assert changed == {"0.weight", "1.weight", "1.bias"}
        assert wears_delta(module)
    assert bits(module) == before
    assert not wears_delta(module)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_taking_a_delta_off_after_an_exception_restores_every_bit() -> None:
    module = small_network()
    before, delta = bits(module), random_delta(module)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), delta.on(module):
            raise error
        assert bits(module) == before
        assert not wears_delta(module)


def test_nested_deltas_add_up_and_come_off_one_by_one() -> None:
    module = small_network()
    before = bits(module)
    first, second = random_delta(module, 1), random_delta(seed=2)
    with first.on(module):
        between = bits(module)
        with second.on(module):
            torch.testing.assert_close(
                module[1].weight,
                small_network()[1].weight + (first + second).changes["1.weight"].dense(),
            )
        assert bits(module) == between
        assert wears_delta(module)
    assert bits(module) == before


def test_deltas_that_come_off_out_of_order_leave_the_model_as_it_was() -> None:
    """As when two generators, or two callbacks, each hold one."""
    module = small_network()
    before = bits(module)
    first, second = random_delta(module, 1).on(module), random_delta(seed=2).on(module)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert bits(module) == before
    assert not wears_delta(module)


def test_a_delta_that_stays_on_alone_is_still_on() -> None:
    module = small_network()
    second = random_delta(seed=2)
    with second.on(module):
        alone = bits(module)
    outer, inner = random_delta(module, 1).on(module), second.on(module)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    worn = bits(module)
    inner.__exit__(None, None, None)
    assert worn == alone


def test_the_model_as_it_was_is_there_while_deltas_are_lifted() -> None:
    module = small_network()
    before = bits(module)
    with lifted(module):
        assert bits(module) == before
    only_bias = Delta({"1.bias": Dense(torch.ones(ROWS)), "2.weight": Dense(torch.ones(ROWS))})
    with ExitStack() as stack:
        stack.enter_context(random_delta(module, 1).on(module))
        stack.enter_context(only_bias.on(module))
        stack.enter_context(random_delta(seed=2).on(module))
        worn = bits(module)
        with lifted(module):
            assert bits(module) == before
        assert bits(module) == worn
        with pytest.raises(ValueError, match="inside"), lifted(module):
            raise ValueError("inside")
        assert bits(module) == worn
        with lifted(module), lifted(module):
            assert bits(module) == before
        assert bits(module) == worn
    assert bits(module) == before


def test_apply_stays() -> None:
    module = small_network()
    delta = random_delta(module)
    with delta.on(module):
        worn = bits(module)
    delta.apply(module)
    assert bits(module) == worn
    assert not wears_delta(module)


class Breaking(Dense):
    """A change whose computation fails: out of memory, say."""

    def dense(self) -> Tensor:
        raise MemoryError


def test_a_failure_in_the_middle_leaves_the_model_unchanged() -> None:
    module = small_network()
    before = bits(module)
    broken = Delta({**random_delta().changes, "2.weight": Breaking(torch.ones(ROWS))})
    assert list(broken.changes)[-1] == "2.weight"  # the others are written before it fails
    with pytest.raises(MemoryError):
        broken.apply(module)
    assert bits(module) == before
    with pytest.raises(MemoryError), broken.on(module):
        pass
    assert bits(module) == before
    assert not wears_delta(module)


def test_other_weights_are_refused_unless_asked_for() -> None:
    module, other = small_network(0), small_network(1)
    delta, before = random_delta(module), bits(other)
    with pytest.raises(WrongWeightsError, match="check=False"), delta.on(other):
        pass
    with pytest.raises(WrongWeightsError):
        delta.apply(other)
    assert bits(other) == before
    with delta.on(other, check=False):
        assert bits(other) != before
    random_delta().apply(other)  # made for no weights in particular
    assert bits(other) != before
    delta.apply(module)
    with pytest.raises(WrongWeightsError):
        delta.apply(module)  # twice is once too often


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("3.weight", Dense(torch.ones(ROWS, COLUMNS)), "no parameter '3.weight'"),
        ("2.num_batches_tracked", Dense(torch.ones(())), "no parameter '2.num_batches_tracked'"),
        ("0.weight", Dense(torch.ones(COLUMNS, ROWS)), r"0\.weight of shape \(4, 3\), the model has \(3, 4\)"),
        ("0.weight", LowRank(torch.ones(ROWS, 1), torch.ones(1, 1)), r"0\.weight of shape \(3, 1\)"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(name: str, change: Change, told: str) -> None:
    module = small_network()
    before = bits(module)
    delta = Delta({**random_delta().changes, name: change})
    with pytest.raises(WeightsmithError, match=told), delta.on(module):
        pass
    with pytest.raises(WeightsmithError, match=told):
        delta.apply(module)
    assert bits(module) == before


def test_a_wrapped_network_is_as_good_as_the_network(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("mlp")
    assert weights_hash(model) == weights_hash(model.module)
    delta = Delta({"classifier.bias": Dense(torch.ones(4))}, weights_hash(model.module))
    before = bits(model.module)
    with delta.on(model):
        assert wears_delta(model)
        assert wears_delta(model.module)
        with lifted(model):
            assert bits(model.module) == before


def test_the_hash_tells_weights_names_shapes_and_types_apart() -> None:
    def first(linear: nn.Module) -> nn.Module:
        return nn.Sequential(linear)

    base = first(nn.Linear(2, 2))
    flipped, halved, reshaped = copy.deepcopy(base), copy.deepcopy(base).bfloat16(), first(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        flipped[0].weight[0, 0] *= -1
        reshaped[0].weight.copy_(base[0].weight.reshape(1, 4))
    renamed = nn.ModuleDict({"a": copy.deepcopy(base[0])})
    found = [weights_hash(module) for module in (base, flipped, halved, reshaped, renamed)]
    assert len(set(found)) == len(found)
    assert weights_hash(copy.deepcopy(base)) == found[0]
    buffered = small_network()
    plain = weights_hash(buffered)
    buffered[2].running_mean += 1
    assert weights_hash(buffered) != plain


# --- files ---------------------------------------------------------------------------------------------------------


@given(deltas)
@settings(max_examples=20)
def test_save_and_load_are_inverse(tmp_path_factory: pytest.TempPathFactory, delta: Delta) -> None:
    path = tmp_path_factory.mktemp("delta") / "delta.safetensors"
    delta = Delta(delta.changes, "hash", {"rows": [{"x": 1.5, "name": "ü"}]})
    delta.save(path)
    back = Delta.load(path)
    assert (back.base, back.info, set(back.changes)) == (delta.base, delta.info, set(delta.changes))
    for name, change in delta.changes.items():
        assert type(back.changes[name]) is type(change)
        assert torch.equal(back.changes[name].dense(), change.dense())
        assert back.changes[name].dense().dtype == change.dense().dtype


def test_views_and_transposed_factors_are_saved(tmp_path: Path) -> None:
    low = LowRank(torch.randn(2, ROWS).mT, torch.randn(COLUMNS, 5)[:, 1:3].mT)
    delta = Delta({"0.weight": low, "1.bias": Dense(torch.randn(9)[::3])})
    delta.save(tmp_path / "d")
    back = Delta.load(tmp_path / "d")
    assert all(torch.equal(back.changes[n].dense(), c.dense()) for n, c in delta.changes.items())


def test_a_file_that_is_missing_damaged_or_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    with pytest.raises(WeightsmithError, match=r"delta\.safetensors does not exist"):
        Delta.load(path)
    random_delta().save(path)
    whole = path.read_bytes()
    for length in (0, 7, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsmithError, match=r"delta\.safetensors is damaged"):
            Delta.load(path)
    for metadata in (None, {"weightsmith": json.dumps({"format": "weightsmith-effects-1"})}):
        save_file({"0.weight:dense": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(WeightsmithError, match=r"delta\.safetensors is no weightsmith-delta-1 file"):
            Delta.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    random_delta().save(path)
    whole = path.read_bytes()
    with pytest.raises(TypeError):
        Delta({}, info={"not json": object()}).save(path)
    assert path.read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


# --- LoRA ----------------------------------------------------------------------------------------------------------


def lora_delta(model: Model, bias: bool) -> Delta:
    draw = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=draw, dtype=torch.float64)

    family = model.family
    names = [
        model.linear(kind, None if kind.startswith("classifier") else layer)[0]
        for kind in family.linear
        for layer in (0, 1)
    ]
    found: dict[str, Change] = {}
    for place, name in enumerate(dict.fromkeys(names)):
        rows, columns = model.module.get_parameter(name).shape
        rank = place + 1
        found[name] = Dense(randn(rows, columns)) if place == 1 else LowRank(randn(rows, rank), randn(rank, columns))
        if bias and place == 0:
            found[name.removesuffix("weight") + "bias"] = Dense(randn(rows))
    return Delta(found, weights_hash(model))


@pytest.mark.parametrize("family_name", sorted(n for n, family in families().items() if family.reads == "images"))
@pytest.mark.parametrize("bias", [False, True])
def test_the_lora_adapter_works_in_plain_peft(
    model: Model, random_pixels: Callable[..., Tensor], tmp_path: Path, bias: bool
) -> None:
    from peft import PeftModel

    inputs = model.preprocess(random_pixels(4))
    delta = lora_delta(model, bias)
    with torch.no_grad():
        clean = model.logits(inputs)
        with delta.on(model):
            edited = model.logits(inputs)
    delta.to_lora(tmp_path / "adapter", model, base_model="some/model")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "some/model"
    )
    adapted = PeftModel.from_pretrained(copy.deepcopy(model.module), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert (edited - clean).abs().max() > 0.1
        torch.testing.assert_close(adapted(pixel_values=inputs).logits, edited, rtol=1e-5, atol=1e-5)
        with adapted.disable_adapter():
            assert torch.equal(adapted(pixel_values=inputs).logits, clean)


def test_the_adapter_has_no_larger_rank_than_its_matrix(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    model = tiny_model("mlp")
    low = LowRank(torch.randn(4, 30, dtype=torch.float64), torch.randn(30, 10, dtype=torch.float64))
    Delta({"classifier.weight": low}).to_lora(tmp_path / "adapter", model)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    down = tensors["base_model.model.classifier.lora_A.weight"]
    up = tensors["base_model.model.classifier.lora_B.weight"]
    assert down.shape == (4, 10)
    torch.testing.assert_close((up @ down).double(), low.dense(), rtol=1e-5, atol=1e-4)
    assert model.module.classifier.weight.shape == low.shape


@pytest.mark.parametrize(
    "name",
    [
        "vit.embeddings.position_embeddings",
        "vit.embeddings.cls_token",
        "vit.layernorm.weight",
        "vit.embeddings.patch_embeddings.projection.weight",
        "classifier.bias",
    ],
)
def test_what_no_adapter_can_hold_is_named(name: str, tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    model = tiny_model("vit")
    rows, columns = model.module.get_parameter("vit.layers.0.mlp.fc2.weight").shape
    low = LowRank(torch.ones(rows, 1), torch.ones(1, columns))
    change = Dense(torch.ones(model.module.get_parameter(name).shape))
    delta = Delta({"vit.layers.0.mlp.fc2.weight": low, name: change})
    with pytest.raises(WeightsmithError) as told:
        delta.to_lora(tmp_path / "adapter", model)
    assert name in str(told.value)
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_for_another_network_is_not_written(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    delta = Delta({"vit.layers.0.mlp.fc2.weight": LowRank(torch.ones(3, 1), torch.ones(1, 3))})
    for name, words in (("vit", "of shape"), ("mlp", "has no parameter")):
        with pytest.raises(WeightsmithError, match=words):
            delta.to_lora(tmp_path / "adapter", tiny_model(name))
    assert not (tmp_path / "adapter").exists()


def test_an_empty_delta_is_no_adapter(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match="changes nothing"):
        Delta({}).to_lora(tmp_path / "adapter", tiny_model("vit"))
