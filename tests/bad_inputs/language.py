"""Editing facts: `weightsmith edit`, `compare` and `ablate` (issues 4 and 5)."""

from __future__ import annotations

import json
from typing import Any

from tests.bad_inputs.rows import Group, Row, flags
from tests.run.conftest import SPOKEN

TALKER = (
    "--model", "{talker}/model", "--data-path", "{talker}/facts.json", "--preserve", "{talker}/text.txt", "--runs-dir",
    "{runs}", "--device", "cpu", "--cache-dir", "{runs}/cache",
)  # fmt: skip
ABLATE = ("--edit-method", "memit", "--hparams", "{talker}/memit.yaml", "--run-name", "a", *TALKER)


def fact(number: int = 0, **entries: Any) -> str:
    """A file of two facts, of which one has other entries."""
    facts = [dict(one) for one in SPOKEN[:2]]
    facts[number].update(entries)
    return json.dumps(facts)


FACTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a subject that is not in its prompt": (fact(subject="Zoe"), ("Zoe", "not in its prompt")),
    "an empty target": (fact(target=" "), ("target", "empty")),
    "contradictory requests": (fact(1, prompt="Anna plays the", subject="Anna", name="z"), ("contradict", "z")),
    "a prompt that is too long": (fact(prompt="Anna " * 80 + "plays the"), ("tokens", "64")),
    "prompts of tracing": (
        json.dumps([{name: entry for name, entry in one.items() if name != "target"} for one in SPOKEN[:2]]),
        ("known-1000", "target"),
    ),
}

GROUPS = (
    Group(
        4,
        "edit, a file of facts",
        ("edit", *TALKER, "--edit-method", "finetune", "--data-path", "{tmp}/facts.json"),
        tuple(Row((), names, what, {"facts.json": held}) for what, (held, names) in FACTS.items()),
    ),
    Group(
        4,
        "edit",
        ("edit", *TALKER, "--max-edits", "2"),
        flags(
            (["--edit-layers", "40"], ["--edit-layers names layer 40", "0 to 2"]),
            (["--edit-method", "head", "--edit-layers", "1"], ["--edit-layers", "head"]),
            (["--edit-method", "alphaedti"], ["--edit-method alphaedti", "alphaedit"]),
            (["--edit-method", "memit", "memit"], ["--edit-method", "different"]),
            (
                ["--edit-method", "rome", "--hparams", "{talker}/memit.yaml"],
                ["memit.yaml", "is for memit", "--edit-method"],
            ),
            (["--edit-method", "memit", "--hparams", "gpt2-xl"], ["--hparams gpt2-xl", "layer 1"]),
            (["--edit-method", "memit", "--hparams", "gpt9"], ["--hparams gpt9", "gpt2"]),
            (["--edit-method", "lora", "--hparams", "gpt2"], ["--hparams gpt2", "lora", "memit"]),
            (["--edit-method", "rome", "--edit-layers", "0", "1"], ["ROME", "one layer"]),
            (["--max-edits", "0"], ["--max-edits", "at least 1"]),
            (["--seed", "-1"], ["--seed"]),
            (["--preserve", "absent.txt"], ["absent.txt", "cannot be read"]),
            (["--data-path", "absent.json"], ["absent.json"]),
            (["--data-path", "facts"], ["--data-path facts", "--model auto"]),
            (["--model", "nowhere"], ["nowhere"]),
            (["--device", "abacus"], ["--device abacus"]),
            (["--resume"], ["--resume", "--run-name"]),
            (["--run-name", "a/b"], ["--run-name"]),
        ),
    ),
    Group(
        4,
        "compare",
        (
            "compare",
            *TALKER,
            "--methods",
            "memit",
            "finetune",
            "--hparams",
            "{talker}/memit.yaml",
            "{talker}/finetune.yaml",
            "--batch-sizes",
            "1",
            "3",
            "--seeds",
            "0",
            "1",
        ),
        flags(
            (["--methods", "memti"], ["--methods memti", "memit"]),
            (["--methods", "memit", "memit"], ["--methods", "different"]),
            (["--methods", "finetune"], ["memit.yaml", "is for memit", "--methods says finetune"]),
            (["--batch-sizes", "0"], ["--batch-sizes", "at least 1"]),
            (["--batch-sizes", "50"], ["--batch-sizes 50", "6 facts"]),
            (["--seeds", "-1"], ["--seeds"]),
            (["--seeds", "1", "1"], ["--seeds", "different"]),
            (["--n-views", "0"], ["--n-views"]),
            (["--data-path", "digits"], ["--data-path digits", "facts"]),
            (["--data-path", "facts"], ["--data-path facts", "--model auto"]),
            (["--model", "auto", "--data-path", "scans.npz"], ["--model", "scans.npz"]),
            (["--requests", "nowhere"], ["--requests nowhere", "comparison.json"]),
            (["--preserve", "absent.txt"], ["absent.txt"]),
            (["--resume"], ["--resume", "--run-name"]),
        ),
    ),
    Group(
        5,
        "ablate lora",
        ("ablate", "lora", "--ranks", "1", "64", "--fit-steps", "0", "3", "--max-edits", "3", *ABLATE),
        flags(
            (["--edit-method", "memti"], ["--edit-method memti", "memit"]),
            (["--edit-method", "memit", "rome"], ["--edit-method memit rome", "give one"]),
            (["--ranks", "0"], ["--ranks", "at least 1"]),
            (["--ranks", "4", "4"], ["--ranks", "different"]),
            (["--fit-steps", "-1"], ["--fit-steps", "at least 0"]),
            (["--fit-steps", "5", "5"], ["--fit-steps", "different"]),
            (["--lora-alpha", "0"], ["--lora-alpha"]),
            (["--max-edits", "0"], ["--max-edits", "at least 1"]),
            (["--max-edits", "50"], ["--max-edits 50 is asked for", "6 facts"]),
            (["--seeds", "-1"], ["--seeds"]),
            (["--seeds", "1", "1"], ["--seeds", "different"]),
            (["--seeds", "4294967296"], ["--seeds"]),
            (["--n-views", "0"], ["--n-views"]),
            (["--data-path", "digits"], ["--data-path digits", "facts"]),
            (["--preserve", "absent.txt"], ["absent.txt"]),
        ),
    ),
    Group(
        5,
        "ablate replay",
        (
            "ablate",
            "replay",
            "--max-edits",
            "6",
            "--batch-size",
            "2",
            "--buffers",
            "2",
            "--strategies",
            "random",
            "recent",
            *ABLATE,
        ),
        flags(
            (["--edit-method", "alphaedit"], ["memit.yaml", "is for memit", "--edit-method says alphaedit"]),
            (["--rates", "0"], ["--rates", "positive"]),
            (["--rates", "nan"], ["--rates", "positive"]),
            (["--rates", "1", "1"], ["--rates", "different"]),
            (["--buffers", "0"], ["--buffers", "at least 1"]),
            (["--buffers", "9", "9"], ["--buffers", "different"]),
            (["--strategies", "random", "random"], ["--strategies", "different"]),
            (["--batch-size", "0"], ["--batch-size", "at least 1"]),
            (["--batch-size", "7"], ["--batch-size 7", "--max-edits 6"]),
            (["--max-edits", "50"], ["--max-edits 50", "6 facts"]),
        ),
    ),
    Group(
        5,
        "edit, a stream",
        (
            "edit",
            "--model",
            "{knowing}",
            "--runs-dir",
            "{runs}",
            "--run-name",
            "s",
            "--max-edits",
            "6",
            "--batch-size",
            "2",
        ),
        flags(
            (["--batch-size", "0"], ["--batch-size must be at least 1"]),
            (["--edit-method", "memit", "rome"], ["--batch-size makes one journal"]),
            (["--replay-rate", "-1"], ["--replay-rate must be 0 or more"]),
            (["--edit-method", "ftm", "--replay", "keys"], ["ftm solves for no keys"]),
            (["--trust-action", "scale"], ["--trust-action does nothing alone: give --trust-enable"]),
            (["--trust-enable", "--trust-threshold", "2"], ["--trust-threshold must be from 0 to 1"]),
            (["--trust-enable", "--trust-weights", "1"], ["--trust-weights needs 5 numbers"]),
        ),
    ),
)
