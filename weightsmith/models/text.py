"""From text to token ids, and from a subject to the tokens that it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weightsmith.errors import WeightsmithError


@dataclass(frozen=True, eq=False)
class Tokenize:
    """A language model's tokenizer.

    Attributes:
        tokenizer: of transformers, a fast one; None where the model came without, and only token ids can be given.
    """

    tokenizer: Any | None = None

    def __call__(self, text: str) -> tuple[int, ...]:
        """The token ids of a text, with what the tokenizer puts before it. Raises `WeightsmithError` without one."""
        return tuple(self._there()(text)["input_ids"])

    def subject(self, text: str, subject: str) -> tuple[int, int]:
        """(first, end) the tokens of `text` that hold any character of the last occurrence of `subject`.

        Raises:
            WeightsmithError: the subject is not in the text, or no token holds it.
        """
        start = text.rfind(subject) if subject else -1
        if start < 0:
            raise WeightsmithError(
                f"the subject {subject!r} is not in the prompt {text!r}: give a prompt that names it"
            )
        offsets = self._there()(text, return_offsets_mapping=True)["offset_mapping"]
        # A token's characters begin with the space before a word, so they may start one before the subject does.
        inside = [i for i, (low, high) in enumerate(offsets) if low < start + len(subject) and high > start]
        if not inside:
            raise WeightsmithError(f"no token of {text!r} holds the subject {subject!r}: check the tokenizer")
        return inside[0], inside[-1] + 1

    def continued(self, prompt: str, answer: str) -> tuple[tuple[int, ...], int]:
        """The token ids of a prompt with its answer, a space between them, and how many of them are the answer's.

        The answer is tokenized where it stands, so that tokenizers that treat a text's first word differently give the
        tokens that the model would write. An answer that begins with white space or punctuation is joined as it is.

        Raises:
            WeightsmithError: an empty answer, or one that shares its first token with the prompt.
        """
        if not answer.strip():
            raise WeightsmithError(f"the answer to {prompt!r} is empty: give the text that the model should go on with")
        joined = answer if answer[0].isspace() or prompt.endswith(" ") or not answer[0].isalnum() else f" {answer}"
        encoded = self._there()(prompt + joined, return_offsets_mapping=True)
        ids, offsets = tuple(encoded["input_ids"]), encoded["offset_mapping"]
        behind = [i for i, (_, high) in enumerate(offsets) if high > len(prompt)]  # what ends a text holds no character
        if not behind or ids[: behind[0]] != self(prompt)[: behind[0]]:
            raise WeightsmithError(f"no token of {prompt + joined!r} is the answer's alone: check the tokenizer")
        return ids[: behind[-1] + 1], behind[-1] + 1 - behind[0]

    def words(self, ids: tuple[int, ...]) -> list[str]:
        """Each token as people read it; its number where there is no tokenizer."""
        if self.tokenizer is None:
            return [str(number) for number in ids]
        return [str(self.tokenizer.decode([number])) for number in ids]

    def describe(self) -> dict[str, object]:
        """What decides the numbers that come out, for a fingerprint."""
        if self.tokenizer is None:
            return {"tokenizer": None}
        return {"tokenizer": type(self.tokenizer).__name__, "vocabulary": len(self.tokenizer)}

    def _there(self) -> Any:
        if self.tokenizer is None:
            raise WeightsmithError(
                "the model came without a tokenizer: give token ids instead of text, or save one beside it"
            )
        return self.tokenizer
