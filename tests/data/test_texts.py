"""Running text in windows: read from files, packed from short texts, or given as ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from weightsmith.data import TextSet, texts
from weightsmith.data.seal import evaluation
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.models.text import Tokenize

END = 256


def byte_tokenizer(start: bool = False, end: bool = True) -> Tokenize:
    """One token a byte; 256 ends a text, and with `start` also begins it."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)} | {"<s>": END}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair=None, special_tokens=[("<s>", END)]
        )
    return Tokenize(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>" if end else None))


@pytest.fixture(scope="module")
def tokenize() -> Tokenize:
    return byte_tokenizer()


def flat(windows: TextSet, size: int = 3) -> list[int]:
    return list(chain.from_iterable(row for batch in windows.batches(size) for row in batch.tolist()))


def spoken(windows: TextSet, tokenize: Tokenize) -> str:
    tokenizer: Any = tokenize.tokenizer
    return str(tokenizer.decode(flat(windows)))


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@given(n=st.integers(1, 60), length=st.integers(1, 20), size=st.integers(1, 7))
def test_windows_hold_every_token_once_and_nothing_else(n: int, length: int, size: int) -> None:
    tokenize = byte_tokenizer()
    text = "".join(chr(97 + i % 26) for i in range(n))
    windows = TextSet.of([text], tokenize, length)
    batches = list(windows.batches(size))
    assert spoken(windows, tokenize) == text
    assert len(windows) == sum(len(batch) for batch in batches) == -(-n // length)
    assert all(batch.dtype == torch.int64 and len(batch) <= size for batch in batches)
    assert all(batch.shape[1] == length for batch in batches[:-1])
    assert (windows.n_tokens, windows.longest) == (n, min(n, length))
    assert windows.shortest == (n % length or length)
    assert windows.largest_id == max(flat(windows))


def test_short_texts_are_packed_with_the_end_token_between(tokenize: Tokenize) -> None:
    windows = TextSet.of(["ab", "c", "def"], tokenize, length=4)
    a, b, c, d, e, f = (tokenize(sign)[0] for sign in "abcdef")
    assert [batch.tolist() for batch in windows.batches(2)] == [[[a, b, END, c], [END, d, e, f]]]
    without = TextSet.of(["ab", "c"], byte_tokenizer(end=False), length=9)
    assert flat(without) == [a, b, c]
    assert flat(TextSet.of("ab", tokenize)) == [a, b], "one text is one text, not its letters"
    begun = TextSet.of(["ab", "c"], byte_tokenizer(start=True), length=9)
    assert flat(begun) == [END, a, b, END, END, c]


def test_files_are_read_one_after_another(tmp_path: Path, tokenize: Tokenize) -> None:
    one, two = write(tmp_path / "one.txt", "Erste Zeile\nÄ 東京\n"), write(tmp_path / "two.txt", "zwei", "utf-8-sig")
    windows = TextSet.read([one, str(two)], tokenize, length=5)
    assert spoken(windows, tokenize) == "Erste Zeile\nÄ 東京\n<s>zwei"
    assert windows.name == "one.txt, two.txt"
    assert spoken(TextSet.read(two, tokenize), tokenize) == "zwei"


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("piece", [1, 2, 7, 50, 10**6])
def test_a_file_in_pieces_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, start: bool) -> None:
    tokenize = byte_tokenizer(start=start)
    text = "Paris is in France.\n\n Rome, 東京.\nno end of line: " + "x" * 60 + "\ny"
    monkeypatch.setattr(texts, "PIECE", piece)
    assert spoken(TextSet.read(write(tmp_path / "a.txt", text), tokenize, 8), tokenize) == "<s>" * start + text


def test_reading_ends_when_the_limit_is_reached(tmp_path: Path, tokenize: Tokenize, monkeypatch: Any) -> None:
    path = write(tmp_path / "long.txt", "abcdefgh\n" * 100)
    monkeypatch.setattr(texts, "PIECE", 9)
    taken: list[str] = []
    pieces = texts._pieces

    def counted(file: Path) -> Any:
        for piece in pieces(file):
            taken.append(piece)
            yield piece

    monkeypatch.setattr(texts, "_pieces", counted)
    whole = TextSet.read(path, tokenize, 6)
    assert len(taken) == 100
    taken.clear()
    windows = TextSet.read(path, tokenize, 6, limit=3)
    assert (len(windows), windows.n_tokens) == (3, 18)
    assert flat(windows) == flat(whole)[:18]
    assert len(taken) == 2, "18 tokens are two lines"
    assert len(TextSet.read(path, tokenize, 6, limit=10**6)) == len(whole)


def test_ids_are_windows_as_they_are() -> None:
    ids = torch.tensor([[5, 1, 2], [3, 4, 0]])
    windows = TextSet.from_ids(ids)
    assert [batch.tolist() for batch in windows.batches(1)] == [[[5, 1, 2]], [[3, 4, 0]]]
    assert torch.equal(next(iter(windows.batches(5))), ids)
    for wrong in (ids[0], ids.float(), ids[:0], ids - 1):
        with pytest.raises(WeightsmithError, match="whole numbers from 0"):
            TextSet.from_ids(wrong)


def test_a_subset_is_the_windows_meant_in_their_order(tokenize: Tokenize) -> None:
    windows = TextSet.of(["abcdefghijklm"], tokenize, length=5)  # the last window has three tokens
    assert [spoken(windows.subset([i]), tokenize) for i in range(3)] == ["abcde", "fghij", "klm"]
    assert spoken(windows.subset([2, 0]), tokenize) == "abcdeklm", "a shorter window follows those of its batch"
    assert [batch.shape[1] for batch in windows.subset([2, 0]).batches(1)] == [3, 5]
    some = windows.subset([2, 1]).subset([0])
    assert (some.n_tokens, some.longest, some.shortest) == (3, 3, 3)


def test_a_digest_tells_contents_apart_and_not_orders(tokenize: Tokenize) -> None:
    windows = TextSet.of(["abcdefghijklm"], tokenize, length=5)
    assert windows.digest() == TextSet.of(["abcdefghijklm"], tokenize, length=5).digest()
    assert windows.digest() == windows.subset([2, 0, 1]).digest() == replace(windows, name="elsewhere").digest()
    others = [
        windows.subset([0, 1]),
        TextSet.of(["abcdefghijklx"], tokenize, length=5),
        TextSet.of(["abcdefghijklm"], tokenize, length=4),
        TextSet.of(["abcdefghijklm"], tokenize, length=6),
        TextSet.from_ids(torch.tensor([flat(windows)])),
    ]
    assert len({windows.digest(), *(other.digest() for other in others)}) == 6


def test_a_sealed_text_is_read_by_an_evaluation_alone(tokenize: Tokenize) -> None:
    windows = TextSet.of(["abcdef"], tokenize, length=4)
    windows.check_open()
    sealed = windows.seal()
    with pytest.raises(HeldOutError, match="text set of 2 windows"):
        sealed.check_open()
    with pytest.raises(HeldOutError):
        next(iter(sealed.subset([0]).batches(1)))
    with evaluation():
        assert flat(sealed) == flat(windows)


@pytest.mark.parametrize("content", [b"", b" \n\t\n"])
def test_a_file_without_text_is_told(tmp_path: Path, tokenize: Tokenize, content: bytes) -> None:
    (tmp_path / "blank.txt").write_bytes(content)
    with pytest.raises(WeightsmithError, match=r"blank\.txt holds no text"):
        TextSet.read(tmp_path / "blank.txt", tokenize)


def test_bad_texts_are_told(tmp_path: Path, tokenize: Tokenize) -> None:
    good = write(tmp_path / "good.txt", "good")
    (tmp_path / "latin.txt").write_bytes("später".encode("latin-1"))
    cases: list[tuple[Callable[[], TextSet], str]] = [
        (lambda: TextSet.read(tmp_path / "none.txt", tokenize), r"none\.txt cannot be read \(No such file"),
        (lambda: TextSet.read(tmp_path, tokenize), "cannot be read"),
        (lambda: TextSet.read([good, tmp_path / "latin.txt"], tokenize), r"latin\.txt is no UTF-8 text"),
        (lambda: TextSet.read([], tokenize), "there is no text"),
        (lambda: TextSet.read(good, tokenize, length=0), "a length and a limit of 1 or more"),
        (lambda: TextSet.read(good, tokenize, limit=0), "a length and a limit of 1 or more"),
        (lambda: TextSet.of([], tokenize), "there is no text"),
        (lambda: TextSet.of(["one", " "], tokenize), "text 1 is empty"),
        (lambda: TextSet.of(["one"], Tokenize()), "without a tokenizer"),
    ]
    for attempt, said in cases:
        with pytest.raises(WeightsmithError, match=said):
            attempt()


def test_ids_are_kept_at_four_bytes_a_token(tmp_path: Path, tokenize: Tokenize) -> None:
    windows = TextSet.read(write(tmp_path / "a.txt", "abc " * 500), tokenize)
    assert windows.ids.dtype == np.int32
    assert windows.ids.nbytes == 4 * 2000
