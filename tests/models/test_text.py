"""From text to tokens and to the tokens of a subject, with byte-level tokenizers as language models have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from weightsmith import load
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, families, save
from weightsmith.models.text import Tokenize

TEXT_FAMILIES = sorted(name for name, family in families().items() if family.reads == "text")
CORPUS = (
    "The Eiffel Tower is in Paris. Paris is in France. The tower of Pisa is in Pisa, and Rome is in Italy. "
    "São Paulo is in Brazil. 東京 is in Japan. The mother tongue of Danielle Darrieux is French. " * 3
)


def byte_level(path: Path, trim: bool = False, prefix: bool = False, start: bool = False) -> Any:
    """A BPE tokenizer of GPT-2's kind, saved and read again as transformers does.

    Args:
        trim: offsets leave out the space before a word. prefix: a space is put before the text.
        start: the text begins with a token of its own, as Llama's does.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    levels: list[Any] = [processors.ByteLevel(trim_offsets=trim)]
    if start:
        levels.append(processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 0)]))
    tokenizer.post_processor = processors.Sequence(levels)
    tokenizer.save(str(path / "tokenizer.json"))
    return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), bos_token="<s>", eos_token="<s>")


@pytest.fixture(
    params=[{}, {"trim": True}, {"prefix": True}, {"start": True}, {"start": True, "trim": True, "prefix": True}],
    ids=lambda options: "+".join(options) or "plain",
)
def tokenize(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenize:
    return Tokenize(byte_level(tmp_path, **request.param))


def of_subject(tokenize: Tokenize, text: str, subject: str) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """The bytes of the tokens before the subject, of its own, and behind it."""
    ids = tokenize(text)
    first, end = tokenize.subject(text, subject)
    letters = {letter: code for code, letter in _bytes_to_letters().items()}
    pieces = [
        b"" if piece == "<s>" else bytes(letters[letter] for letter in piece)
        for piece in tokenize.tokenizer.convert_ids_to_tokens(list(ids))
    ]
    assert 0 <= first < end <= len(ids)
    return pieces[:first], pieces[first:end], pieces[end:]


def _bytes_to_letters() -> dict[int, str]:
    """GPT-2's printable letter of each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [code for code in range(256) if code not in plain]
    return {code: chr(code) for code in plain} | {code: chr(256 + i) for i, code in enumerate(others)}


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("The Eiffel Tower is in", "Eiffel Tower"),
        ("Paris is in", "Paris"),
        ("The mother tongue of Danielle Darrieux", "Danielle Darrieux"),
        ("Rome is in", "Rome"),
        ("Paris", "Paris"),
        ("The city of São Paulo is", "São Paulo"),
        ("The city of 東京 is in", "東京"),
        ("Ωmega Ψ is in", "Ωmega Ψ"),  # letters that were never seen: each byte a token
        ("What, Xzqvw?", "Xzqvw"),
        ("Rome  is in", "Rome  is"),
    ],
)
def test_the_tokens_of_a_subject_hold_it_and_no_word_beside_it(tokenize: Tokenize, text: str, subject: str) -> None:
    before, inside, after = of_subject(tokenize, text, subject)
    start = text.rindex(subject)
    assert b"".join([*before, *inside, *after]).decode().strip() == text.strip()
    assert b"".join(inside).decode().strip() == subject, "nothing of the words beside it"
    assert b"".join(before).decode().strip() == text[:start].strip()
    assert b"".join(after).decode().strip() == text[start + len(subject) :].strip()


def test_of_several_the_last_one_is_meant(tokenize: Tokenize) -> None:
    text = "Paris is Paris, and Paris is"
    before, inside, _ = of_subject(tokenize, text, "Paris")
    assert b"".join(before).decode().strip() == "Paris is Paris, and"
    assert b"".join(inside).decode().strip() == "Paris"


def test_a_subject_within_a_token_is_that_token(tokenize: Tokenize) -> None:
    _, inside, _ = of_subject(tokenize, "Paris is in France", "ranc")
    assert b"ranc" in b"".join(inside)
    assert b"".join(inside).decode().strip() in "France"
    _, inside, _ = of_subject(tokenize, "The 東京 is", "京")  # a letter shares no token with the one before it
    assert "京".encode() in b"".join(inside)


def test_a_subject_that_begins_with_a_space(tokenize: Tokenize) -> None:
    _, inside, after = of_subject(tokenize, "The Eiffel Tower is", " Eiffel")
    assert b"".join(inside).decode() == " Eiffel"
    assert b"".join(after).decode() == " Tower is"


@pytest.mark.parametrize("subject", ["London", "paris", "", "Paris  is"])
def test_a_subject_that_is_not_there_is_told(tokenize: Tokenize, subject: str) -> None:
    with pytest.raises(WeightsmithError, match="is not in the prompt 'Paris is in'") as told:
        tokenize.subject("Paris is in", subject)
    assert repr(subject) in str(told.value)


def test_a_subject_that_no_token_holds_is_told() -> None:
    class Blind:
        def __call__(self, text: str, **_: Any) -> dict[str, Any]:
            return {"input_ids": [1, 2], "offset_mapping": [(0, 0), (0, 3)]}

    with pytest.raises(WeightsmithError, match="no token of 'The Tower' holds the subject 'Tower'"):
        Tokenize(Blind()).subject("The Tower", "Tower")


def test_tokens_there_and_back(tokenize: Tokenize) -> None:
    text = "The Eiffel Tower is in 東京"
    ids = tokenize(text)
    assert isinstance(ids, tuple)
    words = tokenize.words(ids)
    assert len(words) == len(ids)
    read = "".join(words).removeprefix("<s>").strip()
    assert read.startswith("The Eiffel Tower is in ")  # the bytes of a letter may be tokens apart, and no letter alone
    assert Tokenize().words((3, 17)) == ["3", "17"]


def test_without_a_tokenizer_text_is_told(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("gpt2")
    assert model.tokenize.tokenizer is None
    for attempt in (lambda: model.tokenize("Paris"), lambda: model.tokenize.subject("Paris", "Paris")):
        with pytest.raises(WeightsmithError, match="came without a tokenizer: give token ids instead of text"):
            attempt()
    with pytest.raises(WeightsmithError, match="reads no text"):
        tiny_model("vit").tokenize  # noqa: B018


def test_what_a_tokenizer_says_of_itself(tmp_path: Path) -> None:
    said = Tokenize(byte_level(tmp_path)).describe()
    assert said != Tokenize().describe()
    assert json.loads(json.dumps(said)) == said
    assert said["vocabulary"] == 340


# --- with its model ---------------------------------------------------------------------------------------------------


def language_model(tokenizer: Any, path: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer) if tokenizer else 29, n_positions=32, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    module = GPT2LMHeadModel(config)
    module.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    return path


def test_a_model_comes_and_goes_with_its_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = byte_level(tmp_path, start=True)
    model = load(language_model(tokenizer, tmp_path / "one"))
    text, subject = "The Eiffel Tower is in São Paulo", "São Paulo"
    ids = tuple(tokenizer(text)["input_ids"])
    assert model.tokenize(text) == ids
    save(model, tmp_path / "two")
    back = load(tmp_path / "two")
    assert back.tokenize(text) == ids
    assert back.tokenize.subject(text, subject) == model.tokenize.subject(text, subject)
    assert back.fingerprint() == model.fingerprint()
    assert model.n_classes == len(tokenizer)
    with torch.no_grad():
        inputs = torch.tensor([ids])
        assert torch.equal(back.logits(inputs), model.logits(inputs))
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
        assert tuple(AutoTokenizer.from_pretrained(tmp_path / "two")(text)["input_ids"]) == ids
        assert torch.equal(plain(inputs).logits[:, -1], model.logits(inputs))
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_every_language_model_comes_back_bit_for_bit(
    model: Model, random_inputs: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    save(model, tmp_path / "model")
    back, inputs = load(tmp_path / "model"), random_inputs(model, 3)
    assert (back.family, back.n_layers, back.n_tokens) == (model.family, model.n_layers, model.n_tokens)
    assert weights_hash(back) == weights_hash(model)
    assert back.fingerprint() == model.fingerprint()
    with torch.no_grad():
        assert torch.equal(back.logits(inputs), model.logits(inputs))
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        assert torch.equal(plain(inputs).logits, model.token_logits(inputs))


@pytest.mark.parametrize("family_name", ["gpt2", "gptj"])
def test_masks_that_old_checkpoints_hold_are_passed_by(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(model, folder)
    tensors = load_file(folder / "model.safetensors")
    masks = {
        f"transformer.h.{layer}.attn.{name}": value
        for layer in range(model.n_layers)
        for name, value in {"bias": torch.ones(1, 1, 16, 16).tril().byte(), "masked_bias": torch.tensor(-1e9)}.items()
    }
    save_file(tensors | masks, folder / "model.safetensors", metadata={"format": "pt"})
    assert weights_hash(load(folder)) == weights_hash(model)
    extra = {"transformer.h.0.attn.out_proj.scale": torch.ones(1)}
    save_file(tensors | masks | extra, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsmithError, match=r"hold 1 tensors .*attn\.out_proj\.scale first"):
        load(folder)


def test_a_model_without_a_tokenizer_is_loaded_and_told_when_text_is_given(tmp_path: Path) -> None:
    model = load(language_model(None, tmp_path / "one"))
    save(model, tmp_path / "two")
    back = load(tmp_path / "two")
    assert back.tokenize.tokenizer is None
    with pytest.raises(WeightsmithError, match="came without a tokenizer"):
        back.tokenize("Paris")


def test_a_damaged_tokenizer_is_told(tmp_path: Path) -> None:
    folder = language_model(byte_level(tmp_path), tmp_path / "one")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(WeightsmithError, match=r"the tokenizer in .*one cannot be loaded") as told:
        load(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("answer", ["Paris", " Paris", "'s capital", "Paris in France"])
def test_an_answer_is_tokenized_where_it_stands(tokenize: Tokenize, answer: str) -> None:
    prompt = "The Space Needle is in"
    ids, count = tokenize.continued(prompt, answer)
    assert 0 < count < len(ids)
    assert ids[:-count] == tokenize(prompt)[: len(ids) - count]
    assert tokenize.tokenizer.decode(list(ids[-count:])).strip() == answer.strip()


def test_an_empty_answer_is_refused(tokenize: Tokenize) -> None:
    with pytest.raises(WeightsmithError, match="answer"):
        tokenize.continued("The Space Needle is in", "  ")
