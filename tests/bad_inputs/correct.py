"""Correcting a classifier: `weightsmith run` (issue 2)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bad_inputs.rows import Group, Row, flags
from tests.run.conftest import TINY

RNG = np.random.default_rng(0)


def arrays(n: int = 60, classes: int = 3) -> dict[str, np.ndarray]:
    labels = np.arange(n, dtype=np.uint8) % classes
    return {
        "train_images": RNG.integers(0, 256, (n, 8, 8), dtype=np.uint8),
        "train_labels": labels[:, None],
    }


def npz(path: Path, **changes: np.ndarray) -> Path:
    np.savez_compressed(path, **(arrays() | changes))
    return path


def truncated(path: Path) -> Path:
    npz(path)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def corrupt(path: Path) -> Path:
    np.savez(path, **arrays())
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


def renamed(path: Path) -> Path:
    np.savez(path, images=arrays()["train_images"], labels=arrays()["train_labels"])
    return path


FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "truncated": truncated,
    "corrupt": corrupt,
    "other names": renamed,
    "not a zip": lambda path: path.write_text("hello"),
    "float images": lambda path: npz(path, train_images=arrays()["train_images"] / 255.0),
    "four channels": lambda path: npz(path, train_images=np.zeros((60, 8, 8, 4), np.uint8)),
    "fewer labels": lambda path: npz(path, train_labels=np.zeros((59, 1), np.uint8)),
    "negative label": lambda path: npz(path, train_labels=np.full((60, 1), -1, np.int8)),
    "label out of range": lambda path: npz(path, train_labels=np.array([0] * 59 + [250], np.uint8)),
    "no images": lambda path: npz(path, train_images=np.zeros((0, 8, 8), np.uint8), train_labels=np.zeros(0, np.uint8)),
    "pickle": lambda path: npz(path, train_labels=np.array([{}] * 60, dtype=object)),
}


def few(path: Path) -> Path:
    """Two images a class, of which none is left for a part."""
    return npz(path, train_images=np.zeros((6, 8, 8), np.uint8), train_labels=np.arange(6) % 3)


DIGITS = (
    "run", "--data-path", "digits", "--val-ratio", "0.3", "--model", "{tmp}/tiny.json", "--epochs", "6", "--lr", "3e-3",
    "--batch-size", "64", "--max-samples", "4", "--num-ablations", "4", "--max-edits", "12", "--runs-dir", "{runs}",
    "--device", "cpu",
)  # fmt: skip

GROUPS = (
    Group(
        2,
        "run, a file",
        ("run", "--data-path", "{tmp}/scans.npz", "--model", "small", "--runs-dir", "{runs}", "--stage", "data"),
        (
            *(Row((), ("scans.npz",), what, {"scans.npz": makes}) for what, makes in FILES.items()),
            Row((), ("--held-out-ratio",), "an empty split", {"scans.npz": few}),
        ),
    ),
    Group(
        2,
        "run",
        DIGITS,
        flags(
            *((["--held-out-ratio", ratio], ["--held-out-ratio", "0.2"]) for ratio in ("0", "1", "-0.5", "2")),
            (["--edit-method", "alphaedti"], ["--edit-method", "alphaedit"]),
            (["--edit-method", "head", "head"], ["--edit-method"]),
            (["--data-path", "digist"], ["--data-path", "digits"]),
            (["--device", "abacus"], ["--device", "abacus"]),
            (["--max-edits", "0"], ["--max-edits"]),
            (["--num-ablations", "0"], ["--num-ablations"]),
            (["--epochs", "0"], ["--epochs"]),
            (["--lr", "-1"], ["--lr"]),
            (["--label-smoothing", "1"], ["--label-smoothing"]),
            (["--held-out-from", "none"], ["--held-out-from", "--edit-from"]),
            (["--held-out-from", "test"], ["test"]),
            (["--held-out-from", "val"], ["val"]),
            (["--run-name", "a/b"], ["--run-name"]),
            (["--config", "absent.yaml"], ["--config", "absent.yaml"]),
            (["--stage", "edit"], ["--run-name"]),
            (["--stage", "edit", "--run-name", "nothing"], ["--run-name", "nothing"]),
            (["--model", "digtis"], ["--model", "digits"]),
            (["--checkpoint", "nowhere"], ["nowhere"]),
        )
        + flags(
            (["--stage", "edti"], ["--stage", "edti", "edit"]),
            (["--epocs", "3"], ["--epocs", "--epochs"]),
            status=2,
        ),
        {"tiny.json": json.dumps(TINY)},
    ),
    Group(
        2,
        "run, its options in a file",
        ("run", "--config", "{tmp}/options.yaml"),
        tuple(
            Row((), ("options.yaml", word), text, {"options.yaml": text})
            for text, word in (
                ("epochs: many", "epochs"),
                ("epocs: 3", "epochs"),
                ("- 1", "mapping"),
                ("stage: edti", "edit"),
                ("a: [", "YAML"),
            )
        ),
    ),
)
