"""Memory of tensors, counted while they are made."""

from __future__ import annotations

import torch

from weightsmith.run.forecast.live import most_bytes


def test_the_most_at_a_time_is_counted() -> None:
    given = torch.zeros(1000)  # there before, so not counted

    def work() -> torch.Tensor:
        large = given.repeat(8)  # 32 kB
        small = large[:1000].clone()  # 4 kB beside it
        del large
        return small + given  # 8 kB by now

    assert most_bytes(work) == 36_000


def test_views_and_changes_in_place_take_nothing() -> None:
    given = torch.zeros(10, 10)
    assert most_bytes(lambda: given.add_(1).T[2:].view(8, 10)) == 0


def test_a_backward_pass_is_counted() -> None:
    """Gradients of a weight of 40 kB, and what both passes hold of inputs of 400 bytes each."""
    weight = torch.zeros(100, 100, requires_grad=True)

    def work(count: int) -> int:
        inputs = torch.ones(count, 100)

        def both() -> None:
            weight.grad = None
            (inputs @ weight).square().sum().backward()

        return most_bytes(both)

    assert work(1) >= 40_000
    assert 400 <= (work(101) - work(1)) / 100 <= 2000
