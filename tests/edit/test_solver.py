"""The thin solve against the d×d formulas of the papers, its laws, and what it says when there is no answer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightsmith.edit.metric import Identity, InverseMoment, NullSpace
from weightsmith.edit.solver import Solution, solve
from weightsmith.errors import WeightsmithError


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(seed: int, d: int, n: int = 200) -> Tensor:
    """A second moment with eigenvalues over three powers of ten."""
    turn, _ = torch.linalg.qr(draw(seed + 1, d, d))
    keys = draw(seed, n, d) * torch.logspace(0, -1.5, d, dtype=torch.float64) @ turn
    return keys.mT @ keys / n


def projector(c: Tensor, free: int) -> Tensor:
    """P of the published code: eigenvectors of the smallest eigenvalues, from an SVD."""
    u, _, _ = torch.linalg.svd(c)
    return u[:, len(c) - free :] @ u[:, len(c) - free :].mT


def dense(solution: Solution) -> Tensor:
    return solution.left @ solution.right


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


problems = st.builds(
    lambda seed, d, o, edits: (draw(seed, d, edits), draw(seed + 1, o, edits), moment(seed + 2, d)),
    st.integers(0, 10_000),
    st.integers(2, 12),
    st.integers(1, 6),
    st.integers(1, 15),  # also more edits than dimensions
)


# --- the papers' formulas ------------------------------------------------------------------------------------------


@given(problems, st.sampled_from([0.1, 1.0, 30.0]))
@settings(max_examples=50)
def test_memit(problem: tuple[Tensor, Tensor, Tensor], weight: float) -> None:
    """ΔW = R Kᵀ (λC + K Kᵀ)⁻¹ (Meng et al. 2023, eq. 14)."""
    k, r, c = problem
    wanted = torch.linalg.solve(weight * c + k @ k.mT, k @ r.mT).mT
    assert relative(dense(solve(k, r, InverseMoment.of(c, weight), absolute_ridge=1.0)), wanted) < 1e-8


@given(problems, st.sampled_from([0.01, 1.0, 10.0]), st.data())
@settings(max_examples=50)
def test_alphaedit(problem: tuple[Tensor, Tensor, Tensor], l2: float, data: st.DataObject) -> None:
    """ΔW = solve(P K Kᵀ + L2·I, P K Rᵀ)ᵀ (the published code's form of Fang et al. 2025, eq. 14)."""
    k, r, c = problem
    free = data.draw(st.integers(1, len(c)))
    p = projector(c, free)
    wanted = torch.linalg.solve(p @ k @ k.mT + l2 * torch.eye(len(c), dtype=c.dtype), p @ k @ r.mT).mT
    space = NullSpace.of(c, fraction=free / len(c))
    assert space.dimension == free
    assert relative(dense(solve(k, r, space, absolute_ridge=l2)), wanted) < 1e-8


@given(problems)
@settings(max_examples=50)
def test_alphaedit_with_replayed_keys(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    """Old keys with a residual of zero are the cache K_p K_pᵀ of the published code."""
    k, r, c = problem
    d = len(c)
    old = draw(99, d, 5)
    p = projector(c, (d + 1) // 2)
    wanted = torch.linalg.solve(p @ (k @ k.mT + old @ old.mT) + 2 * torch.eye(d, dtype=c.dtype), p @ k @ r.mT).mT
    space = NullSpace.of(c, fraction=((d + 1) // 2) / d)
    assert relative(dense(solve(k, r, space, absolute_ridge=2.0, replayed=old)), wanted) < 1e-8
    joined = solve(torch.cat([k, old], 1), torch.cat([r, r.new_zeros(len(r), 5)], 1), space, absolute_ridge=2.0)
    assert relative(dense(joined), wanted) < 1e-8


@given(st.integers(0, 1000), st.integers(1, 6))
@settings(max_examples=30)
def test_without_ridge_every_edit_is_met(seed: int, edits: int) -> None:
    """ρ = 0 is the equality-constrained form: of all ΔW with ΔW K = R the one of least tr(ΔW C ΔWᵀ)."""
    k, r, c = draw(seed, 9, edits), draw(seed + 1, 4, edits), moment(seed + 2, 9)
    change = dense(solve(k, r, InverseMoment.of(c, 1.0), ridge=0.0))
    assert relative(change @ k, r) < 1e-7
    cost = float((change @ c * change).sum())
    null = torch.eye(9, dtype=c.dtype) - k @ torch.linalg.pinv(k)  # directions in which ΔW K stays what it is
    for number in range(5):
        other = change + 0.1 * float(change.norm()) * draw(seed + 3 + number, 4, 9) @ null
        assert relative(other @ k, r) < 1e-7
        assert float((other @ c * other).sum()) > cost * (1 - 1e-9)


def test_one_edit_without_ridge_is_rome() -> None:
    """ΔW = (v* − W k) (C⁻¹k)ᵀ / (kᵀ C⁻¹ k) (Meng et al. 2022, eq. 2)."""
    k, r, c = draw(0, 8, 1), draw(1, 3, 1), moment(2, 8)
    u = torch.linalg.solve(c, k)
    wanted = r @ u.mT / (k.mT @ u)
    solution = solve(k, r, InverseMoment.of(c, 5.0), ridge=0.0)
    assert relative(dense(solution), wanted) < 1e-9
    assert solution.division == pytest.approx(float(u.mT @ k / u.norm()), rel=1e-9)
    assert solution.norm() == pytest.approx(float(r.norm()) / solution.division, rel=1e-9)
    assert solution.alignment == pytest.approx(solution.division / float(k.norm()), rel=1e-9)


@given(problems)
@settings(max_examples=30)
def test_an_edit_of_weight_four_counts_like_four(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    k, r, c = problem
    metric, weights = InverseMoment.of(c, 1.0), torch.ones(k.shape[1])
    weights[0] = 4
    weighted = dense(solve(k, r, metric, absolute_ridge=0.7, weights=weights))
    repeated = dense(
        solve(torch.cat([k, *[k[:, :1]] * 3], 1), torch.cat([r, *[r[:, :1]] * 3], 1), metric, absolute_ridge=0.7)
    )
    assert relative(weighted, repeated) < 1e-8
    plain = dense(solve(k, r, metric, absolute_ridge=0.7))
    assert relative(dense(solve(k, r, metric, absolute_ridge=0.7, weights=torch.ones(k.shape[1]))), plain) < 1e-12
    assert (weighted @ k - r)[:, 0].norm() < (plain @ k - r)[:, 0].norm()


@given(problems)
@settings(max_examples=30)
def test_the_weights_are_those_of_a_weighted_least_squares(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    """ΔW = R Ω Kᵀ (ρ M⁻¹ + K Ω Kᵀ)⁻¹."""
    k, r, c = problem
    omega = draw(7, k.shape[1]).exp()
    wanted = torch.linalg.solve(0.3 * c + (k * omega) @ k.mT, (k * omega) @ r.mT).mT
    assert relative(dense(solve(k, r, InverseMoment.of(c, 1.0), absolute_ridge=0.3, weights=omega)), wanted) < 1e-8


def test_keys_of_residual_zero_are_protected() -> None:
    k, r, c = draw(0, 10, 3), draw(1, 4, 3), moment(2, 10)
    kept = draw(3, 10, 4)
    metric = InverseMoment.of(c, 1.0)
    keys, residuals = torch.cat([k, kept], 1), torch.cat([r, torch.zeros(4, 4)], 1)
    alone, together = dense(solve(k, r, metric, ridge=0.0)), dense(solve(keys, residuals, metric, ridge=0.0))
    assert (alone @ kept).norm() > 0.1 * r.norm()
    assert (together @ kept).norm() < 1e-9 * r.norm()
    assert relative(together @ k, r) < 1e-9
    leaks = [float((dense(solve(keys, residuals, metric, ridge=ridge)) @ kept).norm()) for ridge in (1e-2, 1e-4, 1e-6)]
    assert leaks == sorted(leaks, reverse=True)
    assert leaks[0] < 0.5 * float((alone @ kept).norm())
    assert leaks[2] < 1e-3 * float((alone @ kept).norm())


@given(problems, st.sampled_from([1e-3, 10.0, 1e4]))
@settings(max_examples=30)
def test_a_relative_ridge_has_no_scale(problem: tuple[Tensor, Tensor, Tensor], scale: float) -> None:
    """Keys (and their moment) ten times as long make ΔW a tenth, so that the values change alike."""
    k, r, c = problem
    for metric, scaled_metric in (
        (InverseMoment.of(c, 1.0), InverseMoment.of(scale**2 * c, 1.0)),
        (NullSpace.of(c, fraction=0.5), NullSpace.of(scale**2 * c, fraction=0.5)),
        (Identity(), Identity()),
    ):
        plain = dense(solve(k, r, metric, ridge=0.1))
        assert relative(scale * dense(solve(scale * k, r, scaled_metric, ridge=0.1)), plain) < 1e-6
        assert relative(dense(solve(k, scale * r, metric, ridge=0.1)) / scale, plain) < 1e-9
    weighted = dense(solve(k, r, InverseMoment.of(c, 123.0), ridge=0.1))
    assert relative(weighted, dense(solve(k, r, InverseMoment.of(c, 1.0), ridge=0.1))) < 1e-9


def test_the_absolute_ridge_is_reported() -> None:
    k, r = draw(0, 6, 3), draw(1, 2, 3)
    relative_one = solve(k, r, Identity(), ridge=0.2)
    assert relative_one.ridge == pytest.approx(0.2 * float((k**2).sum(0).mean()))
    assert torch.allclose(dense(relative_one), dense(solve(k, r, Identity(), absolute_ridge=relative_one.ridge)))
    assert solve(k, r, Identity(), absolute_ridge=0.0).ridge == 0.0


def test_the_relative_ridge_of_memit_is_its_weight() -> None:
    """(λC)⁻¹ with ρ = 1 is C⁻¹ with ρ = λ; β of the mean diagonal meets a lone edit to 1/(1 + β)."""
    k, r, c = draw(0, 6, 1), draw(1, 2, 1), moment(2, 6)
    solution = solve(k, r, InverseMoment.of(c), ridge=0.25)
    assert relative(dense(solution) @ k, 0.8 * r) < 1e-9
    published = solve(k, r, InverseMoment.of(c, solution.ridge), absolute_ridge=1.0)
    assert relative(dense(published), dense(solution)) < 1e-9


@given(problems, st.sampled_from(["memit", "alphaedit", "identity"]))
@settings(max_examples=30)
def test_more_ridge_makes_a_smaller_change(problem: tuple[Tensor, Tensor, Tensor], name: str) -> None:
    """In the metric's own norm, tr(ΔW M⁺ ΔWᵀ), which the ridge weighs; for M = I that is the Frobenius norm."""
    k, r, c = problem
    cost = c if name == "memit" else torch.eye(len(c), dtype=c.dtype)
    metric = {"memit": InverseMoment.of(c), "alphaedit": NullSpace.of(c, fraction=0.5), "identity": Identity()}[name]
    found = [dense(solve(k, r, metric, ridge=ridge)) for ridge in (0.01, 0.1, 1.0, 10.0)]
    sizes = [float((change @ cost * change).sum()) for change in found]
    misses = [float((change @ k - r).norm()) for change in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]
    assert all(one <= other * (1 + 1e-12) for one, other in itertools.pairwise(misses))


@given(problems, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_edits_does_not_matter(problem: tuple[Tensor, Tensor, Tensor], random: Random) -> None:
    k, r, c = problem
    order = random.sample(range(k.shape[1]), k.shape[1])
    weights, metric = torch.arange(1.0, k.shape[1] + 1), InverseMoment.of(c)
    plain = solve(k, r, metric, ridge=0.3, weights=weights)
    shuffled = solve(k[:, order], r[:, order], metric, ridge=0.3, weights=weights[order])
    assert relative(dense(shuffled), dense(plain)) < 1e-9
    assert relative(shuffled.left, plain.left[:, order]) < 1e-7


@given(problems, st.integers(2, 5))
@settings(max_examples=30)
def test_a_whole_weight_counts_like_as_many_replays(problem: tuple[Tensor, Tensor, Tensor], times: int) -> None:
    k, r, c = problem
    old, metric = draw(11, len(c), 2), NullSpace.of(c, fraction=0.5)
    weighted = solve(k, r, metric, ridge=0.4, replayed=old, replay_weights=torch.full((2,), float(times)))
    assert relative(dense(weighted), dense(solve(k, r, metric, ridge=0.4, replayed=old.repeat(1, times)))) < 1e-8


@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([1e14, float("inf")]))
@settings(max_examples=30)
def test_replayed_keys_of_infinite_weight_do_not_move(seed: int, count: int, weight: float) -> None:
    k, r, c, old = draw(seed, 10, 4), draw(seed + 1, 3, 4), moment(seed + 2, 10), draw(seed + 3, 10, count)
    heavy = solve(
        k, r, InverseMoment.of(c), ridge=0.1, replayed=old, replay_weights=torch.full((count,), weight).double()
    )
    free = solve(k, r, InverseMoment.of(c), ridge=0.1)
    assert (dense(heavy) @ old).norm() < 1e-9 * (dense(free) @ old).norm()
    assert heavy.ridge == pytest.approx(free.ridge)  # the ridge is relative to the edits alone
    assert (dense(heavy) @ k).norm() > 0.1 * r.norm()
    inside = NullSpace.of(c, fraction=0.5)  # a key outside the null space does not move, and is no constraint either
    outside = old - inside.times(old)
    kept = solve(k, r, inside, ridge=0.1, replayed=outside, replay_weights=torch.full((count,), float("inf")))
    assert relative(dense(kept), dense(solve(k, r, inside, ridge=0.1))) < 1e-6


@given(problems, st.floats(0.1, 0.9))
@settings(max_examples=30)
def test_an_edit_in_the_null_space_moves_nothing_outside(
    problem: tuple[Tensor, Tensor, Tensor], fraction: float
) -> None:
    k, r, c = problem
    free = max(1, round(fraction * len(c)))
    space = NullSpace.of(c, fraction=free / len(c))
    solution = solve(k, r, space, ridge=0.1)
    outside = draw(12, len(c), 7)
    outside -= space.times(outside)
    assert (dense(solution) @ outside).norm() < 1e-9 * solution.norm() * draw(12, len(c), 7).norm()
    preserved = c - space.times(space.times(c).mT)  # what a moment without energy in the null space would be
    assert solution.leakage(preserved) < 1e-6 * (solution.leakage(torch.eye(len(c))) + 1e-12)


# --- what a solution knows of itself -------------------------------------------------------------------------------


@given(problems)
@settings(max_examples=30)
def test_norm_and_change_on_are_those_of_the_dense_matrix(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    k, r, c = problem
    solution = solve(k, r, InverseMoment.of(c, 1.0), ridge=0.1)
    change = dense(solution)
    assert solution.left.shape == (len(r), k.shape[1])
    assert solution.right.shape == (k.shape[1], len(k))
    assert solution.left.dtype == solution.right.dtype == torch.float64
    assert solution.norm() == pytest.approx(float(change.norm()), rel=1e-6)
    preserved = draw(5, len(k), 30)
    per_key = (change @ preserved).norm(dim=0)
    assert solution.change_on(preserved @ preserved.mT / 30) == pytest.approx(
        float(per_key.square().mean().sqrt()), rel=1e-6
    )


def test_the_condition_number_is_that_of_the_system() -> None:
    k, r = draw(0, 6, 3), draw(1, 2, 3)
    solution = solve(k, r, Identity(), absolute_ridge=0.5)
    system = k.mT @ k + 0.5 * torch.eye(3, dtype=k.dtype)
    assert solution.condition == pytest.approx(float(np.linalg.cond(system.numpy())), rel=1e-9)


# --- trouble -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, -2.0, 1 + 1e-7])
def test_equal_keys_with_equal_wishes_are_one_edit(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    k, r = draw(0, 8, 3), draw(1, 4, 3)
    noise = 1e-7 * draw(2, 8, 1)  # what batching does to a float32 key
    doubled, residuals = torch.cat([k, factor * k[:, :1] + noise], 1), torch.cat([r, factor * r[:, :1]], 1)
    solution = solve(doubled, residuals, Identity(), ridge=0.0)
    assert solution.merged == ((0, 3),)
    assert solution.contradictory == ()
    assert (solution.rank, solution.left.shape, solution.right.shape, solution.ridge) == (3, (4, 3), (3, 8), 0.0)
    assert relative(dense(solution), dense(solve(k, r, Identity(), ridge=0.0))) < 1e-6
    assert solve(doubled, residuals, Identity(), ridge=0.1).merged == ((0, 3),)
    assert caplog.text == ""
    assert solve(k, r, Identity(), ridge=0.0).merged == ()


@pytest.mark.parametrize("weight", [1.0, 3.0, float("inf")])
def test_equal_keys_with_other_wishes_are_named_and_get_their_mean(
    weight: float, caplog: pytest.LogCaptureFixture
) -> None:
    k, r = draw(0, 8, 3), draw(1, 4, 4)
    keys, weights = torch.cat([k, k[:, 1:2]], 1), torch.tensor([1.0, 1.0, 1.0, weight]).double()
    solution = solve(keys, r, Identity(), ridge=0.0, weights=weights)
    assert solution.contradictory == ((1, 3),)
    assert solution.merged == ()
    assert "columns 1 and 3" in caplog.text
    mean = r[:, 3] if weight == float("inf") else (r[:, 1] + weight * r[:, 3]) / (1 + weight)
    assert relative((dense(solution) @ k)[:, 1], mean) < 1e-9
    nearly = solve(keys, r, Identity(), ridge=1e-9, weights=weights)  # the limit of a ridge that vanishes
    assert nearly.contradictory == ((1, 3),)
    assert relative(dense(nearly), dense(solution)) < 1e-6


def test_an_edit_of_a_replayed_key_is_named() -> None:
    k, r = draw(0, 8, 3), draw(1, 4, 3)
    old = torch.cat([draw(2, 8, 1), k[:, 2:], draw(2, 8, 1)], 1)  # two equal replayed keys are no news
    solution = solve(k, r, Identity(), ridge=0.1, replayed=old)
    assert (solution.merged, solution.contradictory) == ((), ((2, 4),))
    assert solution.residual == pytest.approx(float(r.norm()) / 3**0.5)
    protected = solve(
        k[:, :2], r[:, :2], Identity(), ridge=0.1, replayed=old, replay_weights=torch.full((3,), float("inf"))
    )
    assert protected.rank == protected.left.shape[1] == 4
    assert (dense(protected) @ old).norm() < 1e-12 * r.norm()


def test_more_edits_than_room_are_refused_without_ridge(caplog: pytest.LogCaptureFixture) -> None:
    k, r, c = draw(0, 8, 5), draw(1, 4, 5), moment(2, 8)
    with pytest.raises(WeightsmithError, match="5 different keys cannot all be met exactly, because only 3"):
        solve(k, r, NullSpace.of(c, fraction=3 / 8), ridge=0.0)
    with pytest.raises(WeightsmithError, match="only 3"):  # a ridge that float64 loses is none
        solve(k, r, NullSpace.of(c, fraction=3 / 8), ridge=1e-14)
    with pytest.raises(WeightsmithError, match=r"9 different keys .* only 8"):
        solve(draw(0, 8, 9), draw(1, 4, 9), InverseMoment.of(c), ridge=0.0)
    with pytest.raises(WeightsmithError, match=r"3 different keys .* only 2"):
        solve(torch.stack([k[:, 0], k[:, 1], k[:, 0] + k[:, 1]], 1), r[:, :3], Identity(), absolute_ridge=0.0)
    assert caplog.text == ""
    solution = solve(k, r, NullSpace.of(c, fraction=3 / 8), ridge=0.1)
    assert "5 different keys, only 3 independent" in caplog.text
    assert solution.rank == 3


def test_a_key_without_room_among_others() -> None:
    c = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]).double())
    space, r = NullSpace.of(c, fraction=0.5), draw(0, 2, 2)
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])  # the first lies in what is preserved
    with pytest.raises(WeightsmithError, match=r"2 different keys .* only 1"):
        solve(k, r, space, ridge=0.0)
    solution = solve(k, r, space, ridge=0.1)
    assert solution.rank == 1
    assert solution.alignment == 0
    assert (dense(solution) @ k.double())[:, 0].norm() < 1e-12


def test_a_metric_with_a_negative_side_is_refused() -> None:
    @dataclass(frozen=True)
    class Saddle:
        def times(self, keys: Tensor) -> Tensor:
            return keys.flip(0)

    with pytest.raises(WeightsmithError, match="not positive semi-definite"):
        solve(torch.tensor([[1.0, 1.0], [1.0, 0.1]]), draw(0, 2, 2), Saddle(), ridge=1e-6)


def test_keys_beyond_float64_are_refused() -> None:
    with pytest.raises(WeightsmithError, match="too large"):
        solve(1e200 * draw(0, 4, 2), draw(1, 3, 2), Identity(), ridge=0.1)


def test_replayed_keys_that_do_not_fit_are_refused() -> None:
    k, r = draw(0, 4, 2), draw(1, 3, 2)
    with pytest.raises(WeightsmithError, match="replayed keys"):
        solve(k, r, Identity(), ridge=0.1, replayed=draw(2, 5, 2))
    for weights in (torch.ones(2), torch.zeros(3)):
        with pytest.raises(WeightsmithError, match="3 edits or replayed keys"):
            solve(k, r, Identity(), ridge=0.1, replayed=draw(2, 4, 3), replay_weights=weights)
    with pytest.raises(WeightsmithError, match="0 edits or replayed keys"):
        solve(k, r, Identity(), ridge=0.1, replay_weights=torch.ones(3))
    with pytest.raises(WeightsmithError, match="NaN or infinity"):
        solve(k, r, Identity(), ridge=0.1, replayed=torch.full((4, 1), float("nan")))
    none = solve(k, r, Identity(), ridge=0.1, replayed=torch.empty(4, 0))
    assert torch.equal(dense(none), dense(solve(k, r, Identity(), ridge=0.1)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    k, r = draw(0, 4, 2), draw(1, 3, 2)
    with pytest.raises(WeightsmithError, match="NaN or infinity"):
        solve(torch.full_like(k, bad), r, Identity(), ridge=0.1)
    with pytest.raises(WeightsmithError, match="NaN or infinity"):
        solve(k, torch.full_like(r, bad), Identity(), ridge=0.1)


@pytest.mark.parametrize(("keys", "residuals"), [((4, 2), (3, 3)), ((4,), (3,)), ((4, 0), (3, 0)), ((4, 2), (2,))])
def test_shapes_that_do_not_fit_are_refused(keys: tuple[int, ...], residuals: tuple[int, ...]) -> None:
    with pytest.raises(WeightsmithError, match="do not fit"):
        solve(torch.ones(keys), torch.ones(residuals), Identity(), ridge=0.1)


def test_weights_of_another_number_are_refused() -> None:
    with pytest.raises(WeightsmithError):
        solve(draw(0, 4, 2), draw(1, 3, 2), Identity(), ridge=0.1, weights=torch.ones(3))


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_that_are_not_positive_are_refused(weight: float) -> None:
    with pytest.raises(WeightsmithError):
        solve(draw(0, 4, 2), draw(1, 3, 2), Identity(), ridge=0.1, weights=torch.tensor([1.0, weight]))


def test_a_negative_ridge_is_refused() -> None:
    with pytest.raises(WeightsmithError):
        solve(draw(0, 4, 2), draw(1, 3, 2), Identity(), ridge=-0.1)


@pytest.mark.parametrize("ridges", [{}, {"ridge": 0.1, "absolute_ridge": 1.0}])
def test_exactly_one_ridge(ridges: dict[str, float]) -> None:
    with pytest.raises(WeightsmithError, match="exactly one of ridge"):
        solve(draw(0, 4, 2), draw(1, 3, 2), Identity(), **ridges)


def test_keys_that_vanish_under_the_metric_are_refused() -> None:
    with pytest.raises(WeightsmithError, match="vanish under the metric"):
        solve(torch.zeros(4, 2), draw(1, 3, 2), Identity(), ridge=0.1)


# --- metrics -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(2, 10), st.floats(0.1, 50))
@settings(max_examples=30)
def test_the_inverse_moment_is_the_inverse(seed: int, d: int, weight: float) -> None:
    c, k = moment(seed, d), draw(seed + 9, d, 3)
    assert relative(weight * c @ InverseMoment.of(c, weight).times(k), k) < 1e-7


@given(st.integers(0, 1000), st.integers(2, 10), st.floats(0.1, 50), st.floats(1e-3, 10))
@settings(max_examples=30)
def test_a_shift_is_that_of_emmet(seed: int, d: int, weight: float, shift: float) -> None:
    """(w C + μ I)⁻¹, μ absolute or relative to w tr(C)/d."""
    c, k = moment(seed, d), draw(seed + 9, d, 3)
    shifted = InverseMoment.of(c, weight, shift=shift)
    assert relative(weight * c @ shifted.times(k) + shift * shifted.times(k), k) < 1e-7
    assert (shifted.weight, shifted.shift) == (weight, shift)
    same = InverseMoment.of(c, weight, relative_shift=shift / (weight * float(c.diagonal().mean())))
    assert same.shift == pytest.approx(shift)
    assert relative(same.times(k), shifted.times(k)) < 1e-9
    # A shift is enough for a moment of few keys: nothing else is added.
    few = k @ k.mT
    assert (
        relative((few + shift * torch.eye(d, dtype=few.dtype)) @ InverseMoment.of(few, shift=shift).times(k), k) < 1e-9
    )


@pytest.mark.parametrize(
    "given",
    [
        {"weight": 0.0},
        {"weight": -1.0},
        {"shift": -1.0},
        {"relative_shift": -0.1},
        {"shift": 1.0, "relative_shift": 1.0},
    ],
)
def test_weights_and_shifts_that_make_no_sense_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(WeightsmithError, match="shift"):
        InverseMoment.of(moment(0, 4), **given)


def test_moments_that_are_not_finite_or_square_are_refused() -> None:
    for bad in (torch.full((3, 3), float("nan")), torch.ones(3, 2), torch.ones(3)):
        with pytest.raises(WeightsmithError, match="second moment"):
            InverseMoment.of(bad)
        with pytest.raises(WeightsmithError, match="second moment"):
            NullSpace.of(bad, fraction=0.5)


@pytest.mark.parametrize("rank", [1, 5, 11])
def test_a_moment_of_fewer_keys_than_dimensions_is_regularised(rank: int) -> None:
    """Whether the plain Cholesky happens to go through (noise pivots) or not, the answer is that of the jitter."""
    for seed in range(10):
        few = draw(seed, 12, rank)
        c, k = few @ few.mT / rank, draw(seed + 50, 12, 2)
        jittered = c + 1e-6 * c.diagonal().mean() * torch.eye(12, dtype=c.dtype)
        assert relative(InverseMoment.of(c, 1.0).times(k), torch.linalg.solve(jittered, k)) < 1e-6


def test_no_keys_at_all_still_give_a_finite_metric() -> None:
    assert torch.isfinite(InverseMoment.of(torch.zeros(3, 3), 1.0).factor).all()


@given(st.integers(0, 1000), st.integers(2, 12), st.data())
@settings(max_examples=40)
def test_the_null_space_is_a_projector_away_from_what_is_preserved(seed: int, d: int, data: st.DataObject) -> None:
    c, k = moment(seed, d), draw(seed + 9, d, 4)
    free = data.draw(st.integers(1, d))
    space = NullSpace.of(c, fraction=free / d)
    assert space.dimension == free
    assert relative(space.times(k), projector(c, free) @ k) < 1e-7
    assert relative(space.times(space.times(k)), space.times(k)) < 1e-10
    assert float((k * space.times(k)).sum(0).min()) >= 0
    p = projector(c, free)
    assert space.leaked == pytest.approx(float((p @ c @ p).trace() / c.trace()), abs=1e-9)
    assert space.complement == (3 * free > 2 * d)
    assert space.basis.shape == (d, d - free if space.complement else free)
    assert not NullSpace.of(c, fraction=free / d, floor=1e12).complement


def test_rounding_leaves_nothing_outside_a_null_space_kept_as_its_complement() -> None:
    c = moment(6, 60)
    space = NullSpace.of(c, fraction=0.9)
    assert space.complement
    k = space.basis @ draw(7, 6, 20) + 1e-6 * draw(8, 60, 20)  # nearly all of it in what is preserved
    inside = space.times(k)
    assert float((space.basis.mT @ inside).norm() / inside.norm()) < 1e-12


def test_the_null_space_by_energy_leaks_no_more_than_asked() -> None:
    c = moment(3, 20)
    values = torch.linalg.eigvalsh(c)
    for energy in (1e-6, 1e-4, 1e-2, 0.5):
        largest = max((n for n in range(21) if values[:n].sum() <= energy * values.sum()), default=0)
        if largest == 0:
            with pytest.raises(WeightsmithError, match="0 of 20 dimensions"):
                NullSpace.of(c, energy=energy)
        else:
            space = NullSpace.of(c, energy=energy)
            assert space.dimension == largest
            assert space.leaked <= energy
    assert NullSpace.of(c, energy=0.5).dimension > NullSpace.of(c, energy=1e-2).dimension


def test_the_null_space_by_threshold_counts_small_eigenvalues() -> None:
    c = torch.diag(torch.tensor([3.0, 0.01, 1.0, 0.02, 0.03], dtype=torch.float64))
    space = NullSpace.of(c, threshold=0.02)
    assert space.dimension == 1  # below, not at, the threshold
    assert torch.equal(space.times(torch.ones(5, 1).double()).round(decimals=12), torch.eye(5)[:, 1:2].double())
    assert NullSpace.of(c, threshold=0.025).dimension == 2


def test_a_floor_weighs_each_direction_by_its_energy() -> None:
    c, k = moment(4, 8), draw(5, 8, 3)
    values, vectors = torch.linalg.eigh(c)
    for floor in (1e-3, 1.0):
        gains = 1 / (1 + values[:4] / (floor * values.mean()))
        wanted = (vectors[:, :4] * gains) @ vectors[:, :4].mT @ k
        assert relative(NullSpace.of(c, fraction=0.5, floor=floor).times(k), wanted) < 1e-9
    assert relative(NullSpace.of(c, fraction=0.5, floor=1e12).times(k), NullSpace.of(c, fraction=0.5).times(k)) < 1e-9
    for floor in (0.0, -1.0):
        with pytest.raises(WeightsmithError, match="must be positive"):
            NullSpace.of(c, fraction=0.5, floor=floor)


@pytest.mark.parametrize("rules", [{}, {"fraction": 0.5, "energy": 0.1}, {"energy": 0.1, "threshold": 1.0}])
def test_exactly_one_rule_makes_a_null_space(rules: dict[str, float]) -> None:
    with pytest.raises(WeightsmithError, match="exactly one of null_fraction, null_energy and null_threshold"):
        NullSpace.of(moment(0, 4), **rules)


@pytest.mark.parametrize(
    "rule", [{"fraction": 0.0}, {"fraction": 0.1}, {"fraction": 1.5}, {"energy": 0.0}, {"threshold": 0.0}]
)
def test_a_null_space_without_a_dimension_is_refused(rule: dict[str, float]) -> None:
    with pytest.raises(WeightsmithError, match="of 4 dimensions"):
        NullSpace.of(moment(0, 4), **rule)


@pytest.mark.parametrize(("apart", "told"), [(1e-8, True), (1e-2, False)])
def test_keys_that_are_nearly_one_are_told(apart: float, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    one, off, residual = (torch.randn(6, 1, generator=generator, dtype=torch.float64) for _ in range(3))
    keys = torch.cat([one, one + apart * off], 1)
    stretched = Scaled(torch.tensor([1e6, 1, 1, 1, 1, 1], dtype=torch.float64))
    solve(
        keys, residual.expand(-1, 2), stretched, absolute_ridge=3e-5 * float(stretched.times(one).mul(one).sum()) / 1e6
    )
    assert ("ill-conditioned" in caplog.text) == told


@dataclass(frozen=True)
class Scaled:
    """M = diag(gains)."""

    gains: torch.Tensor

    def times(self, keys: torch.Tensor) -> torch.Tensor:
        return self.gains[:, None] * keys


@pytest.mark.parametrize("off", [1e-5, 1e-3])
def test_a_moment_of_few_keys_whose_zeros_are_off_by_rounding_is_inverted(off: float) -> None:
    """One direction that is far larger than the mean, and eigenvalues of others a little below zero."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64))[0]
    values = torch.zeros(24, dtype=torch.float64)
    values[0], values[1:6], values[6:] = 24.0, 0.1, -off
    metric = InverseMoment.of((basis * values) @ basis.mT)
    k, r = torch.randn(24, 2, generator=generator), torch.randn(5, 2, generator=generator)
    change = dense(solve(k, r, metric, ridge=0.0))
    assert relative(change @ k.double(), r.double()) < 1e-6
    with pytest.raises(WeightsmithError, match="preserve more images or text"):
        InverseMoment.of(basis @ torch.diag(torch.linspace(-2, 3, 24, dtype=torch.float64)) @ basis.mT)
