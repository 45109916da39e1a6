"""Reasons for what a model says of an image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.run.bench import why
from weightsmith.run.bench.session import Session
from weightsmith.run.bench.why import Reasons

Bench = Callable[..., Session]


def test_the_nearest_are_those_of_the_largest_cosine(bench: Bench) -> None:
    """Beside a loop over every training image."""
    session = bench()
    reasons = Reasons(session)
    index = session.listed("wrong")[0]
    found = reasons.nearest(index, count=5)
    model, train = session.model, session.held.job.split.train

    def features(pixels: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        head = model.module.get_submodule(model.family.classifier)
        handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        with torch.no_grad():
            model.logits(model.preprocess(pixels))
        handle.remove()
        return seen[0]

    own, others = features(session.pixels(index)[None]), features(train.pixels())
    cosine = torch.nn.functional.cosine_similarity(own, others)
    assert [near.position for near in found] == cosine.topk(5).indices.tolist()
    assert [near.likeness for near in found] == pytest.approx(cosine.topk(5).values.tolist(), abs=1e-5)
    assert [near.label for near in found] == [int(train.labels[near.position]) for near in found]


def test_the_nearest_do_not_move_with_edits(bench: Bench) -> None:
    session = bench(reach="alike")
    index = next(i for i in session.listed("wrong") if not session.picture(i).locked)
    before = Reasons(session).nearest(index)
    session.keep(session.preview({index: int(session.labels[index])}))
    assert Reasons(session).nearest(index) == before


def test_the_trace_is_between_what_is_said_and_what_is_wanted(bench: Bench) -> None:
    session = bench()
    index = session.listed("wrong")[0]
    seen = session.picture(index)
    found = Reasons(session).trace(index, seen.label)
    assert f"speak for {seen.now} rather than {seen.label}" in found.words
    assert "row " in found.words
    titles = [axes.get_title() for axes in found.figure.axes]
    assert sum(title.startswith("layer") for title in titles) == 3  # of four; behind the last nothing reads patches
    right = next(i for i in session.listed("all") if session.picture(i).right)
    second = session.likely(right, 2)[1][0]
    told = Reasons(session).trace(right, session.picture(right).now).words
    assert f"speak for {session.picture(right).now} rather than {second}" in told


def test_a_large_model_is_traced_in_stretches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    session = bench()
    assert why._affordable(session.model) == (1, 8)
    monkeypatch.setattr(why, "_WORK", {"cpu": 1.0})
    assert why._affordable(session.model) == (2, 1)
    index = session.listed("wrong")[0]
    assert "Stretches of 2 patches were restored together" in Reasons(session).trace(index, 0).words


def test_attention_is_drawn_over_the_image(bench: Bench) -> None:
    session = bench()
    found = Reasons(session).attention(session.listed("wrong")[0])
    assert "Most of what reaches the decision comes from the patches at row" in found.words
    assert [axes.get_title() for axes in found.figure.axes][1].startswith("block 3")


def test_a_model_without_patches_says_so(bench: Bench, tiny_model: Callable[..., Model]) -> None:
    session = bench()
    session.model = tiny_model("mlp", classes=10)
    reasons = Reasons(session)
    for act in (lambda: reasons.trace(0, 1), lambda: reasons.attention(0)):
        with pytest.raises(WeightsmithError, match="which has no"):
            act()
