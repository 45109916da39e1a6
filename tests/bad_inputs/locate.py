"""Locating: `weightsmith locate` (issue 3)."""

from __future__ import annotations

import json

from tests.bad_inputs.rows import Group, Row, flags

FEW = ("--model", "{finished}", "--runs-dir", "{runs}", "--max-samples", "3", "--device", "cpu")
BLUR = ("--data-path", "digits", "--corruption", "blur", "--window", "1")
IDS = (
    "locate", "trace", "--model", "{texts}/llama", "--runs-dir", "{runs}", "--max-samples", "3", "--device", "cpu",
    "--data-path",
)  # fmt: skip

PROMPTS: dict[str, tuple[object, list[str]]] = {
    "no JSON": ("{", ["no JSON file", '"subject": [first, end]']),
    "no list": ({"prompt": "a"}, ["no list of prompts"]),
    "none": ([], ["no list of prompts"]),
    "no record": (["a"], ["record 0"]),
    "no subject": ([{"prompt": "Ada was born in"}], ["record 0", '"subject"']),
    "subject is no text": ([{"prompt": "Ada was born in", "subject": 3}], ["record 0"]),
    "absent subject": ([{"prompt": "Ada was born in", "subject": "Bob"}], ["'Bob'", "'Ada was born in'", "record 0"]),
    "text without a tokenizer": ([{"prompt": "Ada was born in", "subject": "Ada"}], ["tokenizer", "ids"]),
    "no ids": ([{"ids": [], "subject": [0, 1]}], ["record 0", '"ids"']),
    "fractions": ([{"ids": [1.5, 2], "subject": [0, 1]}], ["record 0", "whole numbers"]),
    "digits in a text": ([{"ids": "123", "subject": [0, 1]}], ["record 0", "whole numbers"]),
    "ids without subject": ([{"ids": [1, 2]}], ["record 0", '"subject": [first, end]']),
    "negative id": ([{"ids": [1, -2], "subject": [0, 1]}], ["record 0", "from 0"]),
    "negative target": ([{"ids": [1, 2], "subject": [0, 1], "target": -2}], ["record 0", '"target"']),
    "beyond the vocabulary": ([{"ids": [1, 29], "subject": [0, 1]}], ["29"]),
    "target beyond it": ([{"ids": [1, 2], "subject": [0, 1], "target": 29}], ["29"]),
    "subject outside": ([{"ids": [1, 2], "subject": [0, 3]}], ["0 to 3 of 2"]),
    "empty subject": ([{"ids": [1, 2], "subject": [1, 1]}], ["1 to 1 of 2"]),
    "too long": ([{"ids": [1] * 17, "subject": [0, 1]}], ["17 tokens", "16"]),
}
"""What it is → what the file holds, and what is named."""

GROUPS = (
    Group(
        3,
        "locate patch",
        ("locate", "patch", *FEW, *BLUR),
        flags(
            (["--sites", "resid.uot"], ["--sites resid.uot", "resid.out"]),
            (["--sites", "classifier.key"], ["--sites classifier.key"]),
            (["--sites", "resid.mid"], ["resid.mid", "resid.out"]),
            (["--sites"], ["--sites"]),
            (["--tokens", "9999"], ["--tokens 9999", "0 to 4"]),
            (["--tokens", "foo"], ["--tokens foo", "0,17,4:8"]),
            (["--tokens", "0,2,"], ["--tokens 0,2,"]),
            (["--tokens", "4:2"], ["--tokens 4:2"]),
            (["--tokens", "subject_last"], ["--tokens subject_last", "prompts"]),
            (["--window", "0"], ["--window 0", "4 layers"]),
            (["--window", "5"], ["--window 5", "4 layers"]),
            (["--map-samples", "-1"], ["--map-samples", "-1"]),
            (["--map-site", "nowhere"], ["--map-site nowhere"]),
            (["--map-site", "resid.mid"], ["--map-site resid.mid"]),
            (["--token-block", "0"], ["--token-block"]),
            (["--sever", "mlp.uot"], ["--sever mlp.uot", "mlp.out"]),
            (["--min-gap", "1e9"], ["--min-gap", "largest gap"]),
            (["--min-gap", "-1"], ["--min-gap"]),
            (["--min-gap", "nan"], ["--min-gap"]),
            (["--max-samples", "0"], ["--max-samples"]),
            (["--batch-memory", "0"], ["--batch-memory"]),
            (["--seed", "-1"], ["--seed"]),
            (["--seed", "18446744073709551616"], ["--seed"]),
            (["--part", "tset"], ["--part tset", "train or val"]),
            (["--part", "held_out"], ["--part held_out", "holds out", "train or val"]),
            (["--corruption", "greyscale"], ["--corruption greyscale", "grey"]),
            (["--strength", "0"], ["sigma", "0.1"]),
            (["--corruption", "patch_shuffle", "--strength", "1"], ["--strength", "patch_shuffle"]),
            (["--corruption", "noise", "--strength", "1"], ["--strength", "noise"]),
            (["--corruption", "noise", "--corrupted-from", "digits"], ["--corrupted-from", "--corruption noise"]),
            (["--corrupted-from", "digits", "--strength", "1"], ["--strength", "--corrupted-from"]),
            (["--corrupted-from", "absent.npz"], ["--corrupted-from absent.npz"]),
            (["--data-path", "digist"], ["--data-path", "digist", "digits"]),
            (["--model", "nowhere"], ["nowhere"]),
            (["--model", "auto", "--data-path", "scans.npz"], ["--model", "digits"]),
            (["--model", "auto", "--part", "test"], ["--part test", "val"]),
            (["--device", "abacus"], ["--device abacus"]),
            (["--run-name", "a/b"], ["--run-name", "a/b"]),
            (["--config", "absent.yaml"], ["--config absent.yaml"]),
            (["--resume"], ["--resume", "--run-name"]),
        ),
    ),
    Group(
        3,
        "locate trace",
        ("locate", "trace", *FEW),
        flags(
            (["--num-ablations", "0"], ["--num-ablations"]),
            (["--noise", "0"], ["--noise"]),
            (["--noise", "-1"], ["--noise"]),
            (["--noise", "inf"], ["--noise"]),
        ),
    ),
    Group(
        3,
        "locate attribution",
        ("locate", "attribution", *FEW, *BLUR[:-2]),
        flags(
            (["--steps", "0", "--method", "integrated"], ["--steps"]),
            (["--verify", "0"], ["--verify"]),
            (["--audit", "0"], ["--audit"]),
        ),
    ),
    Group(
        3,
        "locate astra",
        ("locate", "astra", *FEW),
        flags(
            (["--masks", "1"], ["--masks"]),
            (["--keep", "1"], ["--keep"]),
            (["--alpha", "0"], ["--alpha"]),
            (["--top", "0"], ["--top"]),
            (["--strengths", "-1"], ["--strengths"]),
            (["--strengths"], ["--strengths"]),
        ),
    ),
    Group(
        3,
        "locate",
        ("locate",),
        flags(
            (["patch", "--corruption", "blurr"], ["--corruption", "blurr", "blur"]),
            (["patch", "--metric", "klo"], ["--metric", "klo", "kl"]),
            (["patch", "--select", "wrong"], ["--select", "errors"]),
            (["trace", "--target", "both"], ["--target", "label"]),
            (["attribution", "--method", "magic"], ["--method", "integrated"]),
            (["trace", "--max-smaples", "3"], ["--max-smaples", "--max-samples"]),
            (["trac"], ["trace", "patch", "attribution", "astra"]),
            ([], ["trace", "patch", "attribution", "astra"]),
            status=2,
        ),
    ),
    Group(
        3,
        "locate patch, its options in a file",
        ("locate", "patch", *FEW, "--config", "{tmp}/asked.yaml"),
        tuple(
            Row((), ("asked.yaml", *names), text, {"asked.yaml": text})
            for text, names in (
                ("metric: klo", ["kl"]),
                ("corruption: blurr", ["blur"]),
                ("sites: 3", ["sites"]),
                ("epochs: 3", ["epochs"]),
                ("max_samples: few", ["max_samples"]),
            )
        ),
    ),
    Group(
        3,
        "locate trace, prompts",
        (*IDS, "{texts}/ids.json", "--num-ablations", "2"),
        flags(
            (["--tokens", "cls"], ["--tokens cls", "no CLS", "last"]),
            (["--tokens", "patches"], ["--tokens patches", "no CLS"]),
            (["--tokens", "each"], ["--tokens each", "images"]),
            (["--tokens", "0,9"], ["token 9", "0 to 4"]),
            (["--window", "4"], ["--window 4", "3 layers"]),
            (["--map-site", "nowhere"], ["--map-site nowhere"]),
            (["--sever", "attn.z"], ["--sever attn.z"]),
            (["--noise", "1e-9"], ["--min-gap"]),
        ),
    ),
    Group(
        3,
        "locate trace, a file of prompts",
        (*IDS, "{tmp}/prompts.json"),
        tuple(
            Row((), tuple(names), what, {"prompts.json": held if isinstance(held, str) else json.dumps(held)})
            for what, (held, names) in PROMPTS.items()
        ),
    ),
)
