"""Questions, texts and generation where memory holds few at a time: the same answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.evaluate.test_answers import same
from tests.memory import memory_for
from weightsmith.delta import Delta, LowRank, weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import answer
from weightsmith.evaluate.generation import generate
from weightsmith.evaluate.language import agreement, perplexity
from weightsmith.models import Model
from weightsmith.request import TextRequest


@pytest.fixture
def text_model(language_model: Callable[..., Model]) -> Model:
    return language_model("gpt2")  # with layer norms, which `memory_for` looks at


def test_answers(text_model: Model, facts: list[TextRequest], caplog: pytest.LogCaptureFixture) -> None:
    whole = answer(text_model, facts, new_tokens=12)
    with memory_for(2) as passed:
        found = answer(text_model, facts, new_tokens=12)
    assert max(passed) == 2
    same(whole, found)
    assert caplog.text.count("memory ran out while answers are read") == 1
    with memory_for(0), pytest.raises(WeightsmithError, match="while answers are read, one at a time"):
        answer(text_model, facts)


def test_generated_texts(text_model: Model) -> None:
    draw = np.random.default_rng(0)
    prompts = [tuple(int(i) for i in draw.integers(1, 290, length)) for length in (1, 3, 9, 4, 9)]
    whole = generate(text_model, prompts, [7, 12, 3, 5, 4], top_k=5)
    with memory_for(2):
        assert generate(text_model, prompts, [7, 12, 3, 5, 4], top_k=5) == whole


def test_running_text(text_model: Model) -> None:
    windows = [torch.randint(1, 290, (5, 12), generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    name = text_model.linear("mlp.value", 1)[0]
    rows, columns = text_model.module.get_parameter(name).shape
    change = LowRank(torch.full((rows, 1), 0.3), torch.linspace(-1, 1, columns)[None])
    delta = Delta({name: change}, weights_hash(text_model))
    whole = perplexity(text_model, windows), *agreement(text_model, windows, delta)
    with memory_for(2) as passed:
        found = perplexity(text_model, windows), *agreement(text_model, windows, delta)
    assert max(passed) == 2
    assert found == pytest.approx(whole, rel=1e-6)
    assert whole[2] > 0
