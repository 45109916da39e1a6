"""Trust scores and replay buffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from weightsmith.data.images import ImageSet
from weightsmith.data.texts import TextSet
from weightsmith.delta import Delta, Dense
from weightsmith.errors import WeightsmithError
from weightsmith.measure import misclassified
from weightsmith.models import Model
from weightsmith.request import TextRequest
from weightsmith.stream import ReplayBuffer, ReplayOptions, Trust, TrustOptions
from weightsmith.stream.trust import PARTS, largest


def nothing(model: Model) -> Delta:
    name, _, _ = model.linear("mlp.value", model.n_layers - 1)
    return Delta({name: Dense(torch.zeros_like(model.module.get_parameter(name)))})


def noise(model: Model, size: float) -> Delta:
    name, _, _ = model.linear("mlp.value", model.n_layers - 1)
    weight = model.module.get_parameter(name)
    generator = torch.Generator().manual_seed(0)
    return Delta({name: Dense(size * torch.randn(weight.shape, generator=generator))})


def test_a_change_of_nothing_moves_nothing(gpt2: Model, texts: TextSet, facts: list[list[TextRequest]]) -> None:
    trust = Trust(TrustOptions(), texts)
    score, parts = trust.score(gpt2, nothing(gpt2), facts[0], facts[1])
    assert parts["locality"] == parts["drift"] == parts["norm"] == 1.0
    assert parts["efficacy"] == parts["retention"] == 0.0
    assert score == pytest.approx(0.4)  # of the default weights, what locality, drift and norm have
    assert tuple(name for name in PARTS if name in parts) == PARTS


def test_the_score_falls_with_the_noise(tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet]) -> None:
    model, images = tiny_model("vit"), random_set(100)
    trust = Trust(TrustOptions(), images)
    request = misclassified(model, images, limit=1)
    parts = [trust.score(model, noise(model, size), request, [])[1] for size in (0.0, 0.1, 1.0, 10.0)]
    for name in ("locality", "drift", "norm"):
        values = [part[name] for part in parts]
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.9
    assert "retention" not in parts[0]


def test_samples_that_judge_are_not_edited(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet]
) -> None:
    model, images = tiny_model("vit"), random_set(100)
    trust = Trust(TrustOptions(heldout_samples=100), images)
    with pytest.raises(WeightsmithError, match="among the samples that judge"):
        trust.check_apart(model, misclassified(model, images, limit=3))


def test_text_that_says_what_is_edited_judges_nothing(gpt2: Model, caplog: pytest.LogCaptureFixture) -> None:
    said = ["Anna plays the oboe.", "Bert plays the flute.", "Clara lives in Rome. Anna was born in Oslo."]
    each = TextSet.of(said, gpt2.tokenize, length=12)
    trust = Trust(TrustOptions(heldout_samples=100), each)
    before = len(trust.aside)
    trust.check_apart(gpt2, [fact("dora", "Dora")])
    assert len(trust.aside) == before
    assert not caplog.records
    asked = TextRequest("anna", "Anna plays the", "Anna", "rain")
    trust.check_apart(gpt2, [asked])
    assert len(trust.aside) < before
    assert "judge nothing" in caplog.text
    alone = Trust(TrustOptions(), TextSet.of([said[0]], gpt2.tokenize, length=32))
    with pytest.raises(WeightsmithError, match="keep other text aside"):
        alone.check_apart(gpt2, [asked])


@pytest.mark.parametrize("edge", [0.993, 0.95, 0.77, 0.4, 0.11])
def test_the_largest_factor_is_found(edge: float) -> None:
    assert edge - 0.012 <= largest(lambda factor: factor <= edge) <= edge
    assert largest(lambda factor: False) == 0.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threshold": 1.2}, "--trust-threshold"),
        ({"weights": (1.0,)}, "--trust-weights needs 5"),
        ({"weights": (0.0,) * 5}, "--trust-weights"),
        ({"heldout_samples": 0}, "--trust-heldout-samples"),
    ],
)
def test_trust_options_out_of_range(given: dict[str, object], words: str) -> None:
    with pytest.raises(WeightsmithError, match=words):
        TrustOptions(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rate": -1}, "--replay-rate"),
        ({"buffer_size": 0}, "--replay-buffer-size"),
        ({"weight": 0}, "--replay-weight"),
    ],
)
def test_replay_options_out_of_range(given: dict[str, object], words: str) -> None:
    with pytest.raises(WeightsmithError, match=words):
        ReplayOptions(**given)  # type: ignore[arg-type]


def fact(name: str, subject: str | None = None, target: str = "oboe") -> TextRequest:
    subject = subject or name
    return TextRequest(name, f"{subject} plays the", subject, target)


def names(buffer: ReplayBuffer) -> list[str]:
    return [memory.request.name for memory in buffer.memories()]


def test_fifo_forgets_the_oldest_and_lru_what_was_not_replayed() -> None:
    for eviction, left in (("fifo", ["b", "c", "d"]), ("lru", ["a", "c", "d"])):
        buffer = ReplayBuffer(ReplayOptions(kind="requests", buffer_size=3, eviction=eviction))  # type: ignore[arg-type]
        for batch, name in enumerate("abc", 1):
            buffer.add([fact(name)], batch)
        buffer.replayed({"a": True}, 4)
        buffer.add([fact("d")], 5)
        assert names(buffer) == left


def test_one_memory_a_subject() -> None:
    buffer = ReplayBuffer(ReplayOptions(kind="requests"))
    buffer.add([fact("a", "Anna"), fact("b", "Bert")], 1)
    buffer.add([fact("again", "Anna", "flute")], 2)
    assert names(buffer) == ["b", "again"]
    buffer.forget(fact("b", "Bert"))
    assert names(buffer) == ["again"]


def test_what_is_drawn_in_each_step() -> None:
    buffer = ReplayBuffer(ReplayOptions(kind="requests", rate=2.0, strategy="priority", adaptive=False))
    buffer.add([fact(name, name) for name in "abcdefgh"], 1, {"c": 50.0}, failed=["d"])
    assert [memory.priority for memory in buffer.memories()] == [1, 1, 50, 2, 1, 1, 1, 1]
    new = [fact("new", "a")]
    steps = [[request.name for request in buffer.draw(new, 2, step)] for step in range(40)]
    assert steps == [[request.name for request in buffer.draw(new, 2, step)] for step in range(40)]
    assert all(len(names) == len(set(names)) == 2 and "a" not in names for names in steps)
    counts = {name: sum(name in names for names in steps) for name in "bcdefgh"}
    assert counts["c"] >= 35
    assert all(count > 0 for count in counts.values())  # in proportion: nobody is left out for good
    recent = ReplayBuffer(ReplayOptions(kind="requests", rate=2.0, strategy="recent", adaptive=False))
    recent.add([fact(name, name) for name in "bcd"], 1)
    assert {tuple(r.name for r in recent.draw(new, 2, step)) for step in range(3)} == {("c", "d")}


def test_what_is_replayed() -> None:
    new = [fact("new", "a")]

    def drawn(**given: object) -> list[str]:
        buffer = ReplayBuffer(ReplayOptions(kind="requests", **{"rate": 3.0, **given}))  # type: ignore[arg-type]
        for batch, name in enumerate("abcdef", 1):
            buffer.add([fact(name)], batch, {"c": 9.0})
        buffer.replayed({"b": False, "d": True}, 7)
        return [request.name for request in buffer.sample(new, 8)]

    assert drawn(strategy="recent", adaptive=False) == ["d", "e", "f"]  # never "a", which is new
    assert drawn(strategy="priority", adaptive=False) == ["c", "b", "e"]  # important, slipped; d held, and comes last
    assert len(drawn(strategy="random", adaptive=True)) == 5  # half of those replayed last had slipped: 3 · 1.5
    assert drawn(strategy="random") == drawn(strategy="random")
    assert drawn(rate=0.0) == []
    several = {tuple(drawn(strategy="random", seed=seed, adaptive=False)) for seed in range(8)}
    assert len(several) > 2
