"""Task vectors: the four operations against their formulae, the algebra, and coefficient 0 bit for bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file
from torch import Tensor, nn

import weightsmith as ws
from weightsmith.delta import Delta
from weightsmith.errors import WeightsmithError
from weightsmith.merge.task_vector import TaskVector, analogy
from weightsmith.merge.vectors.operations import MODES, OPERATIONS, Guards
from weightsmith.models import Model
from weightsmith.models.heads import backbone_names, head_names

WAYS = [(operation, mode) for operation in OPERATIONS for mode in MODES]
Tensors = dict[str, Tensor]


def pair(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensors, Tensors]:
    """A base and a fine-tuned model near it, with a counter beside the weights."""
    random = torch.Generator().manual_seed(seed)
    w: Tensors = {"a.weight": torch.randn(7, 5, generator=random), "a.bias": torch.randn(7, generator=random)}
    f = {name: tensor + 0.2 * torch.randn(tensor.shape, generator=random) for name, tensor in w.items()}
    w, f = ({name: tensor.to(dtype) for name, tensor in one.items()} for one in (w, f))
    return w | {"steps": torch.tensor([3])}, f | {"steps": torch.tensor([9])}


def expected(operation: str, mode: str, w: float, f: float, coefficient: float, rms: float) -> float:
    """One element, slowly, as the table in `operations.vector` has it."""
    small = abs(w) < 1e-3 * rms or w == 0
    if mode == "raw":
        if operation == "divide":
            return w + coefficient * (0.0 if small else max(-10.0, min(10.0, f / w)))
        return w + coefficient * {"subtract": f - w, "add": f + w, "multiply": f * w}[operation]
    if operation == "divide":
        return w if small or f * w < 0 else w * max(0.1, min(10.0, f / w)) ** coefficient
    mean = math.copysign(math.sqrt(abs(w * f)), w) if w else 0.0
    target = {"subtract": f, "add": (w + f) / 2, "multiply": mean}[operation]
    return w + coefficient * (target - w)


@pytest.mark.parametrize(("operation", "mode"), WAYS)
@pytest.mark.parametrize("coefficient", [0.3, 1.0, -0.5])
def test_every_operation_is_its_formula(operation: Any, mode: Any, coefficient: float) -> None:
    w, f = pair(dtype=torch.float64)
    w["a.weight"][0, :3] = torch.tensor([0.0, 1e-6, -1e-3])  # nothing, next to nothing, and a factor out of bounds
    made = TaskVector(w, f, operation, mode).apply_to(w, coefficient)
    for name in ("a.weight", "a.bias"):
        rms = float(w[name].square().mean().sqrt())
        elements = zip(w[name].flatten().tolist(), f[name].flatten().tolist(), strict=True)
        slow = [expected(operation, mode, one, other, coefficient, rms) for one, other in elements]
        assert made[name].flatten().tolist() == pytest.approx(slow, rel=1e-12, abs=1e-12)
    assert torch.equal(made["steps"], w["steps"])


@pytest.mark.parametrize("operation", ["subtract", "divide"])
def test_anchored_coefficient_1_reaches_the_fine_tuned_weights(operation: Any) -> None:
    w, f = pair()
    f["a.weight"] = w["a.weight"] * 1.3
    made = TaskVector(w, f, operation, "anchored").apply_to(w, 1.0)
    torch.testing.assert_close(made["a.weight"], f["a.weight"], rtol=1e-6, atol=1e-7)


SPECIAL = [0.0, -0.0, 1e-40, -1e-40, 1.0, -1.0, 3e-5, 250.0, -250.0]


@settings(max_examples=120)
@given(
    way=st.sampled_from(WAYS),
    dtypes=st.tuples(*[st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])] * 2),
    values=st.lists(
        st.tuples(*[st.one_of(st.sampled_from(SPECIAL), st.floats(-250, 250))] * 2), min_size=1, max_size=12
    ),
    factor=st.sampled_from([1.0, -2.5, 0.0]),
)
def test_coefficient_0_gives_the_base_bit_for_bit(way: Any, dtypes: Any, values: Any, factor: float) -> None:
    w, f = (torch.tensor([pair[i] for pair in values], dtype=dtype) for i, dtype in enumerate(dtypes))
    base = {"x": w, "count": torch.tensor(7), "mask": torch.tensor([True, False])}
    vector = factor * TaskVector(base, base | {"x": f, "count": torch.tensor(8)}, *way)
    made = vector.apply_to(base, 0.0)
    assert made["x"].dtype == w.dtype
    assert torch.equal(made["x"].view(torch.uint8), w.view(torch.uint8))
    assert int(made["count"]) == 7
    assert torch.equal(made["mask"], base["mask"])


def test_what_the_guards_did_is_counted() -> None:
    w = {"x": torch.tensor([1.0, 0.0, 1e-5, 1.0, 1.0, -1.0])}
    f = {"x": torch.tensor([2.0, 5.0, 5.0, 30.0, -2.0, 30.0])}
    raw = TaskVector(w, f, "divide")
    assert raw.info["guards"] == {"x": {"guarded": 2, "clipped": 2}}
    assert raw.delta.changes["x"].dense().tolist() == [2.0, 0.0, 0.0, 10.0, -2.0, -10.0]
    anchored = TaskVector(w, f, "divide", "anchored")
    assert anchored.info["guards"] == {"x": {"guarded": 2, "clipped": 1, "sign_changed": 2}}
    assert anchored.apply_to(w)["x"].tolist() == pytest.approx([2.0, 0.0, 1e-5, 10.0, 1.0, -1.0])
    loose = TaskVector(w, f, "divide", guards=Guards(epsilon=0, r_max=100))
    assert loose.info["guards"] == {"x": {"guarded": 1, "clipped": 1}}
    assert TaskVector(w, f).info["guards"] == {}


def test_sums_differences_and_scaling_are_those_of_the_changes() -> None:
    w, f = pair(0)
    g = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in w.items()}
    one, two = TaskVector(w, f), TaskVector(w, g)
    both = sum([one, two, -0.5 * one])
    assert isinstance(both, TaskVector)
    made = both.apply_to(w, 2.0)
    torch.testing.assert_close(made["a.bias"], w["a.bias"] + (f["a.bias"] - w["a.bias"]) + 2)
    assert (one - one).norm() == 0
    chained = one.then(TaskVector(f, g))
    torch.testing.assert_close(chained.apply_to(w)["a.weight"], g["a.weight"])


def test_vectors_of_anchored_division_multiply_and_do_not_mix() -> None:
    w = {"x": torch.tensor([1.0, -2.0, 4.0])}
    one = TaskVector(w, {"x": torch.tensor([2.0, -2.0, 2.0])}, "divide", "anchored")
    two = TaskVector(w, {"x": torch.tensor([3.0, -4.0, 4.0])}, "divide", "anchored")
    assert (one + two).apply_to(w)["x"].tolist() == pytest.approx([6.0, -4.0, 2.0])
    assert (-one).apply_to(w)["x"].tolist() == pytest.approx([0.5, -2.0, 8.0])
    assert one.apply_to(w, 0.5)["x"].tolist() == pytest.approx([2**0.5, -2.0, 8**0.5])
    with pytest.raises(WeightsmithError, match="anchored division"):
        one + TaskVector(w, w)


def test_negation_of_the_vector_takes_it_off() -> None:
    w, f = pair(dtype=torch.float64)
    vector = TaskVector(w, f)
    made = (-vector).apply_to(vector.apply_to(w))
    torch.testing.assert_close(made["a.weight"], w["a.weight"])


def test_an_analogy_is_c_plus_b_minus_a() -> None:
    a, b = pair(0)
    c, _ = pair(5)
    made = analogy(a, b, c, 0.5)
    torch.testing.assert_close(made["a.bias"], c["a.bias"] + 0.5 * (b["a.bias"] - a["a.bias"]))
    assert torch.equal(made["steps"], c["steps"])


@pytest.mark.parametrize(("operation", "mode"), WAYS)
def test_a_saved_vector_is_read_back_the_same(tmp_path: Path, operation: Any, mode: Any) -> None:
    w, f = pair()
    vector = TaskVector(w, f, operation, mode)
    vector.save(tmp_path / "v.safetensors")
    again = TaskVector.load(tmp_path / "v.safetensors")
    assert again.info == vector.info
    ours, theirs = vector.apply_to(w, 0.7), again.apply_to(w, 0.7)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert Delta.load(tmp_path / "v.safetensors").norm() == pytest.approx(vector.norm())


@pytest.mark.parametrize(("operation", "mode"), WAYS)
def test_on_a_model_is_apply_to_and_comes_off_bit_by_bit(
    tiny_model: Callable[..., Model], operation: Any, mode: Any
) -> None:
    base, fine = tiny_model("vit"), tiny_model("vit", seed=1)
    before = {name: tensor.clone() for name, tensor in base.module.state_dict().items()}
    vector = TaskVector(base, fine, operation, mode)
    made = vector.apply_to(base, 0.4)
    with vector.on(base, 0.4):
        worn = {name: tensor.clone() for name, tensor in base.module.state_dict().items()}
    assert set(made) == set(worn)
    assert all(torch.equal(made[name], worn[name]) for name in worn)
    after = base.module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not all(torch.equal(worn[name], before[name]) for name in before)


def test_running_means_change_too_and_counters_do_not() -> None:
    base, fine = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    fine.running_mean += 2
    fine.num_batches_tracked += 5
    vector = TaskVector(base, fine)
    assert vector.info["integers_differ"] == ["num_batches_tracked"]
    with vector.on(base, 0.5):
        assert base.running_mean.tolist() == [1.0] * 3
        assert int(base.num_batches_tracked) == 0
    assert base.running_mean.tolist() == [0.0] * 3


class Tied(nn.Module):
    """Two names for one tensor."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.two = nn.Linear(2, 2)
        self.two.weight = self.one.weight
        nn.init.constant_(self.one.weight, value)


def test_a_tensor_under_two_names_changes_once() -> None:
    base, fine = Tied(1.0), Tied(3.0)
    vector = TaskVector(base, fine, "subtract")
    with vector.on(base, 0.5):
        assert base.two.weight.flatten().tolist() == [2.0] * 4
    made = vector.apply_to(base, 0.5)
    assert made["one.weight"].tolist() == made["two.weight"].tolist() == [[2.0, 2.0]] * 2


def test_files_and_memory_give_the_same(tmp_path: Path) -> None:
    w, f = pair(dtype=torch.bfloat16)
    save_file(w, tmp_path / "w.safetensors")
    torch.save(f, tmp_path / "f.pt")
    vector = TaskVector(tmp_path / "w.safetensors", str(tmp_path / "f.pt"), "multiply", "anchored")
    ours, theirs = (
        vector.apply_to(tmp_path / "w.safetensors", 0.6),
        TaskVector(w, f, "multiply", "anchored").apply_to(w, 0.6),
    )
    assert ours["a.weight"].dtype == torch.bfloat16
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_half_precision_is_computed_in_float32() -> None:
    w, f = pair(dtype=torch.bfloat16)
    made = TaskVector(w, f).apply_to(w, 0.3)
    wide = w["a.weight"].float()
    assert torch.equal(made["a.weight"], (wide + 0.3 * (f["a.weight"].float() - wide)).bfloat16())


def test_heads_of_other_classes_are_left_out_by_role(tiny_model: Callable[..., Model]) -> None:
    base, fine = tiny_model("vit", classes=4), tiny_model("vit", seed=1, classes=6)
    heads = {*head_names(base), *head_names(fine)}
    assert heads == {"classifier.weight", "classifier.bias"}
    with pytest.raises(WeightsmithError, match=r"classifier.*same sizes, or leave a head"):
        TaskVector(base, fine)
    vector = TaskVector(base, fine, without=heads)
    assert set(vector.delta.changes) == set(backbone_names(base))
    made = vector.apply_to(base, 0.5)
    assert torch.equal(made["classifier.weight"], base.module.state_dict()["classifier.weight"])


def test_a_pair_of_no_lineage_is_told_and_a_near_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    w, f = pair()
    other, _ = pair(9)
    with caplog.at_level(logging.WARNING, logger="weightsmith"):
        logging.getLogger("weightsmith").propagate = True
        near = TaskVector(w, f)
        assert not caplog.records
        far = TaskVector(w, other, "multiply")
        assert "lineage" in caplog.text
    floats = [name for name in w if w[name].is_floating_point()]
    apart = math.sqrt(sum(float((w[name] - f[name]).square().sum()) for name in floats))
    length = math.sqrt(sum(float(w[name].square().sum()) for name in floats))
    assert near.info["distance"] == pytest.approx(apart / length, rel=1e-5)
    assert near.info["distance"] < 0.5 < far.info["distance"]
    near.apply_to(other)  # meant for others as well


BAD_NUMBERS = [float("nan"), float("inf"), "much", None]


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_a_coefficient_that_is_no_number_is_refused(value: Any) -> None:
    w, f = pair()
    with pytest.raises(WeightsmithError, match=r"0.3 say"):
        TaskVector(w, f).apply_to(w, value)
    with pytest.raises(WeightsmithError, match=r"0.3 say"):
        TaskVector(w, f) * value


def test_pairs_that_do_not_fit_are_refused() -> None:
    w, f = pair()
    less = {name: tensor for name, tensor in f.items() if name != "a.bias"}
    nan = f | {"a.bias": f["a.bias"] * float("nan")}
    cases: list[tuple[Tensors, Tensors, str]] = [
        (w, less, "'a.bias'.*has not"),
        (less, f, "'a.bias'.*has not"),
        (w, f | {"a.weight": torch.ones(5, 7)}, r"a.weight is \(7, 5\)"),
        (w, {"b": torch.ones(2)}, "share no tensor"),
        (w, f | {"steps": torch.tensor([9.0])}, r"steps is torch\.int64"),
        (w, nan, "a.bias.*NaN"),
        (nan, f, "a.bias.*NaN"),
    ]
    for one, other, words in cases:
        with pytest.raises(WeightsmithError, match=words):
            TaskVector(one, other)
    with pytest.raises(WeightsmithError, match="did you mean 'subtract'"):
        TaskVector(w, f, "substract")  # type: ignore[arg-type]
    with pytest.raises(WeightsmithError, match="known: raw, anchored"):
        TaskVector(w, f, mode="cooked")  # type: ignore[arg-type]
    with pytest.raises(WeightsmithError, match="'head'"):
        TaskVector(w, f, without=["head"])


def test_weights_that_a_vector_does_not_fit_are_refused() -> None:
    w, f = pair()
    vector = TaskVector(w, f)
    with pytest.raises(WeightsmithError, match=r"no tensor 'a\.bias'"):
        vector.apply_to({"b": torch.ones(3)})
    with pytest.raises(WeightsmithError, match="of its sizes"):
        vector.apply_to(w | {"a.bias": torch.ones(3)})
    with pytest.raises(WeightsmithError, match="NaN"):
        vector.apply_to(w | {"a.bias": w["a.bias"] * float("nan")})
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in w.items()}
    with pytest.raises(WeightsmithError, match="smaller coefficient"):
        vector.apply_to(half, 1e7)


def test_numbers_that_leave_float32_are_refused() -> None:
    w = {"x": torch.tensor([1e30])}
    with pytest.raises(WeightsmithError, match="leaves the range"):
        TaskVector(w, w, "multiply")
    big = {"x": torch.tensor([1e38])}
    assert TaskVector(big, big, "multiply", "anchored").delta.changes["x"].dense().item() == pytest.approx(0, abs=1e32)


def test_it_is_a_public_name() -> None:
    assert ws.TaskVector is TaskVector
