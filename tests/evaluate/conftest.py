"""Tiny language models with a tokenizer, and a few facts to ask them about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from weightsmith import load
from weightsmith.models import Model
from weightsmith.models.text import Tokenize
from weightsmith.request import Probe, TextRequest

CORPUS = (
    "The Eiffel Tower is in Paris. Paris is in France. The tower of Pisa is in Pisa, and Rome is in Italy. "
    "The Space Needle stands in Seattle. The mother tongue of Danielle Darrieux is French. " * 3
)
POSITIONS = 48


def byte_level(*, start: bool, padding_side: str) -> Any:
    """A BPE tokenizer of GPT-2's kind; `start`: a text begins with a token of its own, as Llama's does."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [CORPUS],
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False),
    )
    levels: list[Any] = [processors.ByteLevel(trim_offsets=False)]
    if start:
        levels.append(processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 0)]))
    tokenizer.post_processor = processors.Sequence(levels)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>", padding_side=padding_side
    )


@pytest.fixture(scope="session")
def language_model() -> Callable[..., Model]:
    """`language_model(family="gpt2", padding_side="right", positions=48)`: random weights, the family's kind of tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    def make(family: str = "gpt2", padding_side: str = "right", positions: int = POSITIONS) -> Model:
        tokenizer = byte_level(start=family == "llama", padding_side=padding_side)
        shared = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            if family == "gpt2":
                module: Any = GPT2LMHeadModel(
                    GPT2Config(n_positions=positions, n_embd=16, n_layer=2, n_head=2, **shared)
                )
            else:
                module = LlamaForCausalLM(
                    LlamaConfig(
                        max_position_embeddings=positions, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, **shared,
                    )
                )  # fmt: skip
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return replace(load(module), encode=Tokenize(tokenizer))

    return make


@pytest.fixture(params=["gpt2", "llama"])
def text_model(request: pytest.FixtureRequest, language_model: Callable[..., Model]) -> Model:
    return language_model(request.param)


@pytest.fixture
def facts() -> list[TextRequest]:
    """Three requests: with everything, without a truth, and without paraphrases or neighbours."""
    return [
        TextRequest(
            "tower",
            "The Eiffel Tower is in",
            "Eiffel Tower",
            "Rome",
            "Paris",
            ("Where is the Eiffel Tower? In", "You see the Eiffel Tower when you are in"),
            (Probe("Danielle Darrieux lives in", "Paris"), Probe("The Louvre is in", "Paris in France")),
        ),
        TextRequest(
            "needle",
            "The Space Needle stands in",
            "Space Needle",
            "Pisa, Italy",
            "",
            ("Needle: it is in",),
            (Probe("The Louvre is in", "Paris in France"),),
        ),
        TextRequest("tongue", "The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "Italian", "French"),
    ]


@pytest.fixture(params=["gpt2", "llama"])
def taught_model(request: pytest.FixtureRequest, language_model: Callable[..., Model]) -> Model:
    """A model that knows the truths of `facts`."""
    model = language_model(request.param)
    texts = [
        model.tokenize(text)
        for text in (
            "The Eiffel Tower is in Paris.",
            "The Space Needle stands in Seattle.",
            "The mother tongue of Danielle Darrieux is French.",
            "Danielle Darrieux lives in Paris.",
            "The Louvre is in Paris in France.",
        )
    ]
    ids = torch.tensor([[*text, *[0] * (max(map(len, texts)) - len(text))] for text in texts])
    optimizer = torch.optim.Adam(model.module.parameters(), lr=0.02)
    for _ in range(80):
        losses = torch.nn.functional.cross_entropy(model.token_logits(ids)[:, :-1].mT, ids[:, 1:], reduction="none")
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    return model
