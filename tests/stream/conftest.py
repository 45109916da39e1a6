"""A tiny language model with facts to edit one batch after another, and a tiny classifier with errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.edit.conftest import CORPUS, with_tokenizer
from weightsmith.data.texts import TextSet
from weightsmith.edit import AlphaEdit
from weightsmith.models import Model
from weightsmith.request import TextRequest

EDITOR = AlphaEdit(prefix_lengths=())


@pytest.fixture(scope="session")
def _taught(tiny_model: Callable[..., Model]) -> Model:
    return with_tokenizer(tiny_model("gpt2"))


@pytest.fixture
def gpt2(_taught: Model) -> Model:
    """A tiny GPT-2 with a tokenizer, a fresh copy."""
    return replace(_taught, module=copy.deepcopy(_taught.module))


@pytest.fixture
def texts(gpt2: Model) -> TextSet:
    return TextSet.of([CORPUS] * 4, gpt2.tokenize, length=32)


@pytest.fixture
def facts() -> list[list[TextRequest]]:
    """Three batches of two."""
    asked = [
        ("a", "Anna plays the", "Anna", "flute"),
        ("b", "Clara lives in", "Clara", "Oslo"),
        ("c", "The music of Bert is a", "Bert", "rain"),
        ("d", "Dora plays the", "Dora", "joy"),
        ("e", "Clara is a", "Clara", "flute"),
        ("f", "Anna was born in", "Anna", "Rome"),
    ]
    made = [TextRequest(*entries) for entries in asked]
    return [made[first : first + 2] for first in range(0, 6, 2)]
