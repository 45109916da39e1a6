"""Running text as a value: token ids cut into windows, what an `ImageSet` is for images."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weightsmith.data import seal
from weightsmith.errors import WeightsmithError
from weightsmith.files import user_path

if TYPE_CHECKING:
    from weightsmith.models.text import Tokenize

PIECE = 2**18
"""Characters of a file that are tokenized at a time; a piece ends with its line where the line is not longer still."""


@dataclass(frozen=True, eq=False)
class TextSet:
    """Windows of token ids: a value that other values are cut from (`subset`), never changed.

    No window is padded, so whatever is counted over a set is text. The last window is as long as what was left for it.

    Attributes:
        ids: (N,) int32, all tokens one after another; window w is `ids[w * length : (w + 1) * length]`.
        windows: (n,) which windows these are.
        length: tokens of a window.
        tokenizer: what made the ids, for the digest; "ids" where they were given.
        name: where the text came from, for people.
        part: "text", or the name of the part that it plays ("train", say).
        sealed: held out; reading raises `HeldOutError` outside an evaluation.
    """

    ids: np.ndarray
    windows: np.ndarray
    length: int
    tokenizer: str
    name: str = "text"
    part: str = "text"
    sealed: bool = False

    @classmethod
    def read(
        cls, paths: str | Path | Sequence[str | Path], tokenize: Tokenize, length: int = 128, limit: int | None = None
    ) -> TextSet:
        """The text of UTF-8 files, one after another, the tokenizer's end token between two where it has one.

        Files are read in pieces and only token ids are kept, 4 bytes each; reading ends when `limit` windows are full.

        Args:
            limit: at most this many windows: the first ones.

        Raises:
            WeightsmithError: a file that is missing, empty or not UTF-8; a length or limit below 1; no tokenizer.
        """
        files = [user_path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        name = ", ".join(file.name for file in files)
        return cls._joined((_pieces(file) for file in files), tokenize, length, limit, name)

    @classmethod
    def of(cls, texts: Iterable[str], tokenize: Tokenize, length: int = 128) -> TextSet:
        """Short texts packed one after another, the tokenizer's end token between two where it has one.

        Raises:
            WeightsmithError: no text at all, an empty one, a length below 1, no tokenizer.
        """
        each = [texts] if isinstance(texts, str) else texts
        return cls._joined((_whole(text, number) for number, text in enumerate(each)), tokenize, length, None, "texts")

    @classmethod
    def from_ids(cls, ids: torch.Tensor, name: str = "token ids") -> TextSet:
        """Windows that are token ids already, for a model without a tokenizer.

        Args:
            ids: (n, T) integers from 0, one window a row.

        Raises:
            WeightsmithError: another shape, none at all, numbers that are no ids.
        """
        if ids.ndim != 2 or ids.numel() == 0 or ids.is_floating_point() or bool((ids < 0).any()):
            raise WeightsmithError(
                f"token ids must be (windows, tokens) whole numbers from 0, not {tuple(ids.shape)} {ids.dtype}"
            )
        flat = ids.detach().cpu().numpy().astype(np.int32).reshape(-1)
        return cls(flat, np.arange(len(ids)), ids.shape[1], "ids", name)

    @classmethod
    def _joined(
        cls, texts: Iterable[Iterable[str]], tokenize: Tokenize, length: int, limit: int | None, name: str
    ) -> TextSet:
        """Windows of texts that come in pieces."""
        if length < 1 or (limit is not None and limit < 1):
            raise WeightsmithError(
                f"windows of {length} tokens, at most {limit} of them: give a length and a limit of 1 or more"
            )
        ids = array("i")
        wanted = None if limit is None else length * limit
        for tokens in _tokens(texts, tokenize):
            ids.extend(tokens)
            if wanted is not None and len(ids) >= wanted:
                del ids[wanted:]
                break
        if not ids:
            raise WeightsmithError("there is no text to cut into windows: give at least one file or one text")
        made_by = json.dumps(tokenize.describe(), sort_keys=True)
        return cls(np.frombuffer(ids, dtype=np.int32), np.arange(-(-len(ids) // length)), length, made_by, name)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def n_tokens(self) -> int:
        """Tokens of all windows."""
        return int(self._ends().sum() - self.length * self.windows.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return int((self._ends() - self.length * self.windows).max())

    @property
    def shortest(self) -> int:
        """Tokens of the shortest window."""
        return int((self._ends() - self.length * self.windows).min())

    @property
    def largest_id(self) -> int:
        """The largest token id of the whole text, to hold against a vocabulary."""
        return int(self.ids.max())

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """Token ids (b, T) int64, in order; a window that is shorter than the others is a batch of its own."""
        self.check_open()
        short = len(self.ids) // self.length if len(self.ids) % self.length else -1
        for start in range(0, len(self), size):
            piece = self.windows[start : start + size]
            full = piece[piece != short]
            if len(full):
                places = full[:, None] * self.length + np.arange(self.length)
                yield torch.from_numpy(self.ids[places].astype(np.int64))
            for _ in range(len(piece) - len(full)):
                yield torch.from_numpy(self.ids[None, short * self.length :].astype(np.int64))

    def subset(self, which: Sequence[int] | np.ndarray) -> TextSet:
        """The windows at these places of this set, in the given order."""
        return replace(self, windows=self.windows[np.asarray(which, dtype=np.int64)])

    def alone(self) -> TextSet:
        """The same windows without the rest of the text, and without a seal: what is sent to another process.

        Raises:
            HeldOutError: the set is sealed.
        """
        self.check_open()
        if (
            len(self) > 1
            and int(self._ends()[:-1].max()) == len(self.ids) < self.windows.max() * self.length + self.length
        ):
            return replace(self, sealed=False)  # a short window that is not the last one would run into the next
        pieces = [self.ids[window * self.length : (window + 1) * self.length] for window in self.windows]
        ids = np.concatenate([self.ids[:0], *pieces])
        return replace(self, ids=ids, windows=np.arange(len(self)), sealed=False)

    def seal(self) -> TextSet:
        """The same text, readable only inside an evaluation."""
        return replace(self, sealed=True)

    def digest(self) -> str:
        """SHA-256 over tokenizer, window length and the ids of each window, in the text's order."""
        digest = hashlib.sha256(json.dumps(["text", self.tokenizer, self.length, len(self)]).encode())
        for window in np.sort(self.windows):
            digest.update(self.ids[window * self.length : (window + 1) * self.length].astype("<i4").tobytes())
        return digest.hexdigest()

    def check_open(self) -> None:
        """Raise `HeldOutError` when the set is sealed and no evaluation is under way."""
        if self.sealed:
            seal.check_open(f"the {self.part} set of {len(self)} windows of text")

    def _ends(self) -> np.ndarray:
        ends: np.ndarray = np.minimum((self.windows + 1) * self.length, len(self.ids))
        return ends


def _tokens(texts: Iterable[Iterable[str]], tokenize: Tokenize) -> Iterator[list[int]]:
    """Token ids of each piece of each text; what the tokenizer puts before a text stands before its first piece."""
    if tokenize.tokenizer is None:
        tokenize("")  # says what to do
    tokenizer: Any = tokenize.tokenizer
    for number, pieces in enumerate(texts):
        if number and tokenizer.eos_token_id is not None:
            yield [tokenizer.eos_token_id]
        for place, piece in enumerate(pieces):
            # Not `verbose`: a text longer than the model's positions is what windows are for.
            yield tokenizer(piece, add_special_tokens=place == 0, verbose=False)["input_ids"]


def _whole(text: str, number: int) -> list[str]:
    if not text.strip():
        raise WeightsmithError(f"text {number} is empty: leave it out")
    return [text]


def _pieces(file: Path) -> Iterator[str]:
    """The text of a file in pieces of whole lines, at most 2 * PIECE characters."""
    seen = False
    try:
        with file.open(encoding="utf-8-sig") as handle:  # an editor may have put a byte order mark before the text
            while piece := handle.read(PIECE):
                seen = seen or not piece.isspace()
                yield piece if piece.endswith("\n") else piece + handle.readline(PIECE)
    except UnicodeDecodeError as error:
        raise WeightsmithError(f"{file} is no UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise WeightsmithError(f"the text file {file} cannot be read ({error.strerror}): check the path") from error
    if not seen:
        raise WeightsmithError(f"{file} holds no text: give a file with text in it")


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What a language model should keep: running text, and prompts that it answers well.

    Where facts are edited, the token that matters is the one behind which an answer is read, and that is a population of
    its own: a moment over all tokens of a text hardly knows it.

    Attributes:
        texts: running text.
        prompts: texts that end where an answer begins; empty where none are known.
    """

    texts: TextSet
    prompts: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 over the text and the prompts."""
        return hashlib.sha256(json.dumps([self.texts.digest(), *self.prompts]).encode()).hexdigest()

    def apart_from(self, subjects: Iterable[str]) -> tuple[str, ...]:
        """The prompts that name none of these subjects: what is to change is not to be kept."""
        named = tuple(subjects)
        return tuple(prompt for prompt in self.prompts if not any(subject in prompt for subject in named))
