"""`weightsmith edit --edit-mode lora_native`: the run's adapter, in plain PEFT."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from weightsmith.models import load


def asked(knowing: Path, runs: Path, *more: object) -> list[object]:
    given = (
        "--max-edits",
        4,
        "--runs-dir",
        runs,
        "--run-name",
        "lora",
        "--device",
        "cpu",
        "--edit-mode",
        "lora_native",
    )
    return ["edit", "--model", knowing, *given, *more]


@pytest.mark.parametrize("stream", [False, True])
def test_the_adapter_of_a_run_is_its_edited_model(weightsmith, knowing: Path, tmp_path: Path, stream: bool) -> None:
    from peft import PeftModel

    outcome = weightsmith(*asked(knowing, tmp_path, "--lora-rank", 24, *(["--batch-size", 2] if stream else [])))
    assert outcome.status == 0, outcome.err
    run = tmp_path / "lora"
    base, edited = load(knowing), load(run / "edited")
    ids = torch.tensor([base.tokenize("The")])
    wearing = PeftModel.from_pretrained(copy.deepcopy(base.module), run / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(wearing(ids).logits, edited.token_logits(ids), rtol=0, atol=1e-4)
        assert (edited.token_logits(ids) - base.token_logits(ids)).abs().max() > 1e-3
        with wearing.disable_adapter():
            assert torch.equal(wearing(ids).logits, base.token_logits(ids))


def test_a_rank_that_does_not_hold_the_edit(weightsmith, knowing: Path, tmp_path: Path) -> None:
    outcome = weightsmith(*asked(knowing, tmp_path, "--lora-rank", 1))
    assert outcome.status == 0, outcome.err
    assert "rank" in outcome.err
    outcome = weightsmith(*asked(knowing, tmp_path / "strict", "--lora-rank", 1, "--no-allow-fallback"))
    assert outcome.status == 1
    assert "--lora-rank" in outcome.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora-rank", 0], "--lora-rank"),
        (["--lora-alpha", -1], "--lora-alpha"),
        (["--lora-fit-steps", -1], "--lora-fit-steps"),
        (["--no-lora-use-svd"], "--lora-fit-steps"),
    ],
)
def test_bad_options(flags: list[object], words: str, weightsmith, knowing: Path, tmp_path: Path) -> None:
    outcome = weightsmith(*asked(knowing, tmp_path, *flags))
    assert outcome.status == 1
    assert words in outcome.err
    assert not (tmp_path / "lora").exists()
