"""A language model learns texts; a training that is stopped anywhere goes on to the same weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, create_language
from weightsmith.train import LanguageOptions, fit_language, loop, train_tokenizer
from weightsmith.train.language import _LanguageTraining
from weightsmith.train.loop import Training

WORDS = ("apple", "brick", "cloud", "drum", "eagle", "flute", "grape", "house")
TEXTS = tuple(f"The {one} follows the {two} at dawn." for one in WORDS for two in WORDS if one != two)
NETWORK = {"model_type": "gpt2", "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
OPTIONS = LanguageOptions(epochs=3, batch_size=4, lr=1e-2, length=32, seed=5)


def fresh(dropout: float = 0.2, seed: int = 0) -> Model:
    """A small GPT-2 with dropout, so that the random state matters."""
    drops = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout)
    return create_language(NETWORK | drops, train_tokenizer(TEXTS, 300), seed)


@pytest.mark.parametrize("stop_at", [1, 6, 11])
def test_a_training_stopped_at_any_step_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)
    straight = fresh()
    history = fit_language(straight, TEXTS, OPTIONS, tmp_path / "straight.pt")
    steps = 0
    real = Training._step

    def dying(self: Training, epoch: int, step: int) -> None:
        nonlocal steps
        if steps == stop_at:
            raise KeyboardInterrupt
        steps += 1
        real(self, epoch, step)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            fit_language(fresh(), TEXTS, OPTIONS, tmp_path / "stopped.pt")
    with pytest.raises(WeightsmithError, match="--resume"):
        fit_language(fresh(), TEXTS, OPTIONS, tmp_path / "stopped.pt")
    torch.manual_seed(999)  # another process has another random state
    resumed = fresh()
    again = fit_language(resumed, TEXTS, OPTIONS, tmp_path / "stopped.pt", resume=True)
    assert weights_hash(resumed) == weights_hash(straight)
    keys = ("epoch", "train_loss", "train_accuracy", "lr")
    assert [[row[k] for k in keys] for row in again.rows] == [[row[k] for k in keys] for row in history.rows]
    assert (again.best_epoch, again.skipped) == (3, False)


def test_what_is_read_is_learned(tmp_path: Path) -> None:
    sentences = tuple(f"At dawn {one} {two}." for one, two in pairwise(WORDS))
    model = create_language(NETWORK, train_tokenizer(sentences, 400), 0)
    options = LanguageOptions(epochs=2, batch_size=4, lr=1e-2, length=32, seed=0)
    history = fit_language(model, sentences * 300, options, tmp_path / "c.pt")
    assert history.rows[1]["train_loss"] < history.rows[0]["train_loss"]
    for one, two in pairwise(WORDS):
        ids, n = model.tokenize.continued(f"At dawn {one}", two)
        with torch.no_grad():
            foreseen = model.token_logits(torch.tensor([ids]))[0].argmax(-1).tolist()
        assert tuple(foreseen[-n - 1 : -1]) == ids[-n:], f"{one} is followed by {two}"


def test_the_loss_is_the_mean_over_the_texts_of_each_next_token(tmp_path: Path) -> None:
    """Against one row at a time without padding."""
    model = fresh(dropout=0.0)
    training = _LanguageTraining(model, TEXTS, OPTIONS, tmp_path / "c.pt", None)
    batch = training._forward(0, 0)
    rows = [torch.tensor([training._ids(row)]) for row in training.packed[0][: OPTIONS.batch_size]]
    assert len({row.shape[1] for row in rows}) > 1, "padding is at work"
    losses, hits = [], 0
    for row in rows:
        logits = model.token_logits(row)[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none"))
        hits += int((logits.argmax(-1) == row[0, 1:]).sum())
    torch.testing.assert_close(batch.loss, torch.cat(losses).mean())
    assert (batch.hits, batch.seen) == (hits, sum(len(loss) for loss in losses))


def test_an_epoch_reads_every_text_once_and_each_epoch_in_another_order(tmp_path: Path) -> None:
    model = fresh()
    training = _LanguageTraining(model, TEXTS, OPTIONS, tmp_path / "c.pt", None)
    for rows in training.packed:
        assert sorted(text for row in rows for text, _ in row) == list(range(len(TEXTS)))
        assert all(len(training._ids(row)) <= OPTIONS.length for row in rows)
        assert any(end for row in rows for _, end in row)
        assert not all(end for row in rows for _, end in row[1:])
    orders = [[text for row in rows for text, _ in row] for rows in training.packed]
    assert orders[0] != orders[1]
    row = training.packed[0][0]
    read = model.tokenize.tokenizer.decode(training._ids(row))
    assert read.replace("<|endoftext|>", "").split() == " ".join(TEXTS[text] for text, _ in row).split()


def test_a_finished_training_is_loaded_and_other_ones_are_refused(tmp_path: Path) -> None:
    model = fresh()
    fit_language(model, TEXTS, OPTIONS, tmp_path / "c.pt")
    again = fresh()
    assert fit_language(again, TEXTS, OPTIONS, tmp_path / "c.pt").skipped
    assert weights_hash(again) == weights_hash(model)
    slower = LanguageOptions(epochs=3, batch_size=4, lr=5e-3, length=32, seed=5)
    for other, told in (
        ((fresh(), TEXTS, slower), r"lr 0\.01 instead of 0\.005"),
        ((fresh(), TEXTS[1:], OPTIONS), "other texts"),
        ((fresh(seed=1), TEXTS, OPTIONS), "another model"),
    ):
        with pytest.raises(WeightsmithError, match=told):
            fit_language(*other, tmp_path / "c.pt")


def test_bad_input_is_told(tmp_path: Path, tiny_model: Callable[..., Model]) -> None:
    for texts, told in (
        ((), "nothing to train on"),
        (("", "a b"), "text 0 is empty"),
        ((" word" * 90,), "a row holds 32"),
    ):
        with pytest.raises(WeightsmithError, match=told):
            fit_language(fresh(), texts, OPTIONS, tmp_path / "c.pt")
    with pytest.raises(WeightsmithError, match="reads 32"):
        fit_language(fresh(), TEXTS, LanguageOptions(length=33), tmp_path / "c.pt")
    with pytest.raises(WeightsmithError, match="no tokenizer with an end token"):
        fit_language(tiny_model("gpt2"), TEXTS, LanguageOptions(length=8), tmp_path / "c.pt")
    with pytest.raises(WeightsmithError, match="at least 2"):
        LanguageOptions(length=1)
    with pytest.raises(WeightsmithError, match="--epochs"):
        LanguageOptions(epochs=0)
    assert not (tmp_path / "c.pt").exists()
