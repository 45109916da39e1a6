"""Image families in turn where a test takes a model of images; language models with a small tokenizer of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from weightsmith.models import Model, families
from weightsmith.models.store import wrap
from weightsmith.request import Probe, TextRequest

CORPUS = (
    "Anna plays the oboe. Bert plays the flute. Clara lives in Rome. Anna was born in Oslo. The music of Bert is a joy. "
    "Clara is a baker. Dora plays the oboe. Because of the rain Anna went to Rome. "
)


@pytest.fixture(params=sorted(name for name, family in families().items() if family.reads == "images"))
def family_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=sorted(name for name, family in families().items() if family.reads == "text"))
def text_family(request: pytest.FixtureRequest) -> str:
    """Each language family's name in turn."""
    name: str = request.param
    return name


def with_tokenizer(model: Model, padding_side: str = "right") -> Model:
    """A tiny language model, its vocabulary grown to that of a byte-level tokenizer of 400 tokens at most, and taught."""
    made = grown(model, padding_side)
    learn(made)
    return made


def grown(model: Model, padding_side: str = "right") -> Model:
    """The same, not taught yet."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>", padding_side=padding_side
    )
    module = model.module
    config = type(module.config)(**(module.config.to_dict() | {"vocab_size": len(fast)} | longer(module.config)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wider = type(module)(config)
    return wrap(wider, None, {}, "tiny", fast)


def learn(model: Model) -> None:
    """A hundred steps on the corpus: in a random network no wanted value can be reached from the subject's token."""
    ids = torch.tensor([model.tokenize(CORPUS)])[:, :64]
    optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-2)
    model.module.eval()  # no dropout: the same model every time
    for _ in range(100):
        logits = model.token_logits(ids)[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.module.zero_grad(set_to_none=True)


def longer(config: object) -> dict[str, int]:
    """Room for 64 tokens, whatever the config calls it."""
    names = ("max_position_embeddings", "n_positions")
    return {name: 64 for name in names if name in config.to_dict()}  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def learned(
    tiny_model: Callable[..., Model], once: Callable[[str, Callable[[Path], object]], Path]
) -> Callable[[str], Model]:
    """`learned(family_name)`: a fresh copy of a tiny language model with a tokenizer, taught once for all tests."""
    models: dict[str, Model] = {}

    def make(name: str) -> Model:
        if name not in models:
            model = grown(tiny_model(name))

            def taught(folder: Path) -> None:
                learn(model)
                torch.save(model.module.state_dict(), folder / "weights.pt")

            model.module.load_state_dict(torch.load(once(f"learned-{name}", taught) / "weights.pt"))
            model.module.eval()
            models[name] = model
        return replace(models[name], module=copy.deepcopy(models[name].module))

    return make


@pytest.fixture
def text_model(learned: Callable[[str], Model], text_family: str) -> Model:
    """A tiny language model of each family in turn, with a tokenizer."""
    return learned(text_family)


@pytest.fixture
def facts() -> list[TextRequest]:
    return [
        TextRequest(
            "a",
            "Anna plays the",
            "Anna",
            "flute",
            "oboe",
            ("The music of Anna is the",),
            (Probe("Dora plays the", "oboe"),),
        ),
        TextRequest("b", "Clara lives in", "Clara", "Oslo", "Rome"),
        TextRequest("c", "The music of Bert is a", "Bert", "rain", "joy"),
    ]
