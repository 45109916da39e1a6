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
