"""A vocabulary of its own for a language model that is trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

END = "<|endoftext|>"
"""The token that stands between two texts, as in GPT-2."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer as GPT-2 has it, with merges learned from these texts.

    Unlike GPT-2's it puts a space before a text, so that a word has the same tokens first in a text as anywhere else.
    Saved beside a model, transformers' `AutoTokenizer` reads it back.

    Args:
        vocabulary: tokens at most, the 256 bytes and the end token among them; fewer where the texts give fewer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)
