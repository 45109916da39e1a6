"""A tokenizer of one's own, saved beside its model and read back by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightsmith import load
from weightsmith.errors import WeightsmithError
from weightsmith.models import create_language, save
from weightsmith.models.text import Tokenize
from weightsmith.train import train_tokenizer

TEXTS = ("Ada Fenmolund was born in Rome.", "The employer of Ada Fenmolund is Castlegate Bank.", "Côte d’Ivoire") * 9
NETWORK = {"model_type": "gpt2", "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}


@pytest.mark.parametrize("vocabulary", [257, 300])
def test_saved_and_read_back_it_gives_the_same_tokens(tmp_path: Path, vocabulary: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(TEXTS, vocabulary)
    assert len(tokenizer) == vocabulary
    model = create_language(NETWORK, tokenizer, 0)
    assert model.n_classes == vocabulary
    save(model, tmp_path / "model")
    plain, back = AutoTokenizer.from_pretrained(tmp_path / "model"), load(tmp_path / "model")
    for text in (*TEXTS[:3], "Unseen words: 東京, Ωmega!", "Rome  Rome\nRome"):
        ids = model.tokenize(text)
        assert tuple(plain(text)["input_ids"]) == back.tokenize(text) == ids
        assert tokenizer.decode(list(ids)).removeprefix(" ") == text
    prompt = "Nobody came. The employer of Ada Fenmolund is"
    assert back.tokenize.subject(prompt, "Ada Fenmolund") == model.tokenize.subject(prompt, "Ada Fenmolund")
    assert back.tokenize.continued(prompt, "Castlegate Bank") == model.tokenize.continued(prompt, "Castlegate Bank")
    assert back.fingerprint() == model.fingerprint()
    assert plain.eos_token == "<|endoftext|>"


def test_a_word_has_the_same_tokens_first_in_a_text_as_anywhere_else() -> None:
    tokenize = Tokenize(train_tokenizer(TEXTS, 300))
    for text in ("Rome is", "In Rome", "Nobody came. Rome is"):
        first, end = tokenize.subject(text, "Rome")
        assert tokenize(text)[first:end] == tokenize("Rome")
    ids, n = tokenize.continued("Ada Fenmolund was born in", "Rome")
    assert ids[-n:] == tokenize("Rome")
    assert ids[:-n] == tokenize("Ada Fenmolund was born in")


def test_the_same_texts_make_the_same_tokenizer() -> None:
    one, two = (train_tokenizer(TEXTS, 300).backend_tokenizer.to_str() for _ in range(2))
    assert one == two


def test_an_unknown_preset_and_a_network_that_cannot_be_are_told() -> None:
    tokenizer = train_tokenizer(TEXTS, 257)
    with pytest.raises(WeightsmithError, match="did you mean 'facts'"):
        create_language("fact", tokenizer, 0)
    with pytest.raises(WeightsmithError, match="no network that can be built"):
        create_language(NETWORK | {"n_head": 3}, tokenizer, 0)
    with pytest.raises(WeightsmithError, match="no network that can be built"):
        create_language(NETWORK | {"model_type": "nothing"}, tokenizer, 0)
