"""Combining models: `weightsmith merge` and `artificial` (issue 7)."""

from __future__ import annotations

from tests.bad_inputs.rows import Group, Row, flags

ARTIFICIAL = (
    "artificial", "--epochs", "4", "--batch-size", "16", "--runs-dir", "{runs}", "--run-name", "a", "--device", "cpu",
)  # fmt: skip

GROUPS = (
    Group(
        7,
        "merge",
        ("merge", "--base", "{near}/base", "--models", "{near}/one", "{near}/two", "--out", "{out}"),
        flags(
            (["--method", "slerp"], ["--method slerp", "exactly 1"]),
            (["--method", "slerp", "--gamma", "0.1"], ["--gamma", "slerp"]),
            (["--weights", "1"], ["--weights", "2 models"]),
            (["--method", "linear", "--weights", "1", "-1"], ["--weights -1", "task_arithmetic"]),
            (["--method", "ties", "--density", "0"], ["--density"]),
            (["--head", "take:2"], ["--head take:2"]),
            (["--max-shard-size", "many"], ["--max-shard-size"]),
            (["--models", "{near}/one", "{tmp}/nowhere"], ["nowhere", "does not exist"]),
            (["--models", "{near}/one", "{near}/base"], ["--models", "base"]),
            (["--mergekit", "{tmp}/absent.yml"], ["--mergekit", "absent.yml"]),
            (["--out", "{near}/base"], ["--out", "to be merged"]),
        )
        + flags((["--method", "tise"], ["--method", "ties"]), status=2),
    ),
    Group(
        7,
        "merge, what is missing",
        ("merge",),
        flags(
            (["--models", "{near}/one", "--out", "{out}"], ["--base is missing"]),
            (["--base", "{near}/base", "--out", "{out}"], ["--models is missing"]),
            (["--base", "{near}/base", "--models", "{near}/one"], ["--out is missing"]),
        ),
    ),
    Group(
        7,
        "merge, how far",
        (
            "merge",
            "--base",
            "{finished}",
            "--models",
            "{tuned_runs}/rows",
            "{tuned_runs}/columns",
            "--data-path",
            "{tuned_runs}/../rows.npz",
            "{tuned_runs}/../columns.npz",
            "--coefficients",
            "0",
            "0.5",
            "1",
            "--out",
            "{out}",
            "--head",
            "base",
            "--cache-dir",
            "{tmp}/cache",
            "--device",
            "cpu",
        ),
        flags(
            (["--lambda", "0.5"], ["--lambda and --data-path exclude each other"]),
            (["--judging-images", "0"], ["--judging-images must be at least 1"]),
            (["--weights", "-1", "1"], ["--control-data-path"]),
            (["--control-data-path", "digits", "--control-keep", "2"], ["--control-keep must be a share"]),
            (["--control-data-path", "nowhere.npz"], ["nowhere.npz"]),
            (["--data-path", "digits"], ["--data-path names 1 data sets for 2 models"]),
            (["--data-path", "digits", "digits"], ["digits has 10 classes", "3"]),
            (["--head", "merge"], ["different sizes or class counts"]),
            (["--coefficients", "nan"], ["--coefficients must be finite"]),
            (["--device", "cuda:77"], ["--device cuda:77"]),
        ),
    ),
    Group(
        7,
        "artificial",
        ARTIFICIAL,
        flags(
            (["--operations", "substract"], ["subtract", "--operations"]),
            (["--modes", "raw", "raw"], ["--modes", "different"]),
            (["--coefficients", "0.1", "0.1"], ["--coefficients", "different"]),
            (["--coefficients", "nan"], ["--coefficients", "no number"]),
            (["--preset", "plane"], ["plain", "--preset"]),
            (["--lr", "0"], ["--lr", "positive"]),
            (["--epochs", "0"], ["--epochs"]),
            (["--pretrained", "x"], ["--finetuned", "--data-path"]),
            (["--pretrained-data-path", "digits"], ["--pretrained"]),
            (["--held-out-ratio", "2"], ["--held-out-ratio"]),
        )
        + flags((["--coefficients", "much"], ["--coefficients"]), status=2),
        fixtures=("small_tables",),
    ),
    Group(
        7,
        "artificial, a table",
        (*ARTIFICIAL, "--base-data", "{tmp}/bad.csv"),
        tuple(
            Row((), ("bad.csv", *names), text.replace("\n", " / "), {"bad.csv": text})
            for text, names in (
                ("a,b\n1,2\n", ["label", "'b'"]),
                ("a,label\n1,0.5\n2,1\n", ["0.5", "row 1"]),
                ("a,label\n1,-1\n2,1\n", ["-1"]),
                ("a,label\n1,0\nnan,1\n", ["nan", "'a'", "row 2"]),
                ("a,label\n1,0\nred,1\n", ["red"]),
                ("a,label\n1,0\n2\n", ["2 numbers in every row"]),
                ("a,label\n1,0\n2,2\n3,2\n", ["class 1"]),
                ("a,label\n1,0\n2,900000000\n", ["900000000"]),
                ("a,label\n", ["no rows"]),
            )
        ),
        fixtures=("small_tables",),
    ),
)
