"""A small hand-made page of every command, with names from data that would be markup if they were not escaped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tests.report.conftest import evaluation
from tests.report.test_ablation import curve, streams
from tests.report.test_arithmetic import REFERENCES, ROWS
from tests.report.test_comparison import compared
from tests.report.test_compression import PART, WHOLE
from tests.report.test_compression import curve as faithful
from tests.report.test_evaluation import classes, evaluated
from weightsmith.effects import Effects
from weightsmith.evaluate import ConfidenceBin
from weightsmith.measure import proportion
from weightsmith.report import LocateInputs, ReportInputs, build, build_locate, comparison_table
from weightsmith.report.ablation_page import AblationInputs, build_ablation
from weightsmith.report.arithmetic import choices
from weightsmith.report.arithmetic_page import ArithmeticInputs, build_arithmetic
from weightsmith.report.baseline_page import BaselineInputs, build_baseline
from weightsmith.report.comparison_page import ComparisonInputs, build_comparison
from weightsmith.report.compression_charts import divergence_blocks, faithfulness_blocks, frontier_blocks, kept_blocks
from weightsmith.report.edit_page import EditInputs, build_edit
from weightsmith.report.evaluation_page import EvaluationInputs, Section, build_evaluation
from weightsmith.report.located import (
    layer_curve_blocks,
    layer_head_blocks,
    layer_token_blocks,
    patch_weight_blocks,
    screen_blocks,
    token_map_blocks,
)
from weightsmith.report.merge_page import build_merge
from weightsmith.report.page import ChangedImages, EditedBatch
from weightsmith.site import Site

SCRIPT = '<script>window.broken = "yes"</script>'
HANDLER = '" onload="window.broken=1" x="'
TAG = "<img src=x onerror=window.broken=2>'"
CLASSES = (SCRIPT, HANDLER, TAG, "dog")
WHERE = {"commit": "abc", "threads": 1, SCRIPT: HANDLER}
ASKED = {"edit": {"layers": [1, 2], "l2": None}, HANDLER: SCRIPT}


def measured(sites: list[Site], samples: int = 5) -> Effects:
    random = np.random.default_rng(0)
    values = random.normal(size=len(sites)) + 0.2 * random.normal(size=(samples, len(sites)))
    names = (SCRIPT, HANDLER, *(f"val/{place}" for place in range(samples)))[:samples]
    return Effects(tuple(sites), torch.tensor(values), names, "probability", {"target": "predicted"})


def images(count: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def chances(count: int, classes: int = 4) -> np.ndarray:
    return np.random.default_rng(count).dirichlet(np.ones(classes), count)


def tables(classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    before = np.random.default_rng(0).integers(0, 5, (classes, classes)) + 40 * np.eye(classes, dtype=np.int64)
    after = before.copy()
    after[0, 0] += 2
    after[0, 1] = max(after[0, 1] - 2, 0)
    return before, after


def run_page() -> str:
    rows = [
        {
            "sample": f"{HANDLER}{place}",
            "class_before": "0",
            "target": "1",
            "class_after": str(place % 2),
            "success": place % 2,
        }
        | {"residual_norm": "1.5", "update_norm": "0.25", "layers": "1 2"}
        for place in range(4)
    ]
    before, after = tables()
    changed = [
        ChangedImages(method, "held_out", kind, total, [f"{SCRIPT}{n}" for n in range(min(total, 2))], np.arange(2)[:total],
                      images(min(total, 2)), chances(2)[:total], chances(3)[:total])
        for method in ("alphaedit", SCRIPT)
        for kind, total in (("repaired", 5), ("broken", 0))
    ]  # fmt: skip
    return build(
        ReportInputs(
            title=SCRIPT,
            notes=(HANDLER,),
            config=ASKED,
            env=WHERE,
            split_rows=[
                {"part": "train", "class": str(label), "name": name, "count": "10", "share": "0.25"}
                for label, name in enumerate(CLASSES)
            ],
            manifest={
                "train": {"source": TAG, "part": "train", "size": 9, "sha256": "a" * 64, "overlap_with_held_out": 0}
            },
            training_rows=[
                {"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 0.8, "val_loss": 0.5, "val_accuracy": 0.7}
                for epoch in (1, 2)
            ],
            effects=measured([Site("resid.out", layer, tokens="cls") for layer in range(3)]),
            edits=[
                EditedBatch(method, (1, 2), rows, images(4), chances(4), chances(4))
                for method in ("alphaedit", HANDLER)
            ],
            changed=changed,
            evaluation_rows=[*evaluation("alphaedit", "held_out", CLASSES), *evaluation(HANDLER, "held_out", CLASSES)],
            confusions={"held_out": (before, {"alphaedit": after, SCRIPT: before})},
            class_names=CLASSES,
        )
    )


def locate_page() -> str:
    curves = measured(
        [Site(kind, layer, tokens="cls") for kind in ("resid.out", "mlp.out", "attn.out") for layer in range(6)]
    )
    heads = measured([Site("attn.z", layer, head) for layer in range(4) for head in range(3)])
    tokens = measured([Site("resid.out", layer, tokens=(token,)) for token in range(5) for layer in range(3)])
    pixels = images(5, 8)
    return build_locate(
        LocateInputs(
            title=HANDLER,
            command="patch",
            summary=(SCRIPT,),
            notes=(TAG,),
            config=ASKED,
            env=WHERE,
            figures=[
                ("Each layer.", layer_curve_blocks([curves])),
                ("Each head.", layer_head_blocks(heads)),
                (SCRIPT, layer_token_blocks(tokens, [SCRIPT, HANDLER, TAG, "a", "b"]) or []),
                (
                    "Over the image.",
                    token_map_blocks(tokens, pixels, (2, 2), 1, names=[SCRIPT, HANDLER, TAG, "a", "b"]),
                ),
                (
                    "Weights.",
                    patch_weight_blocks(
                        pixels[:2], np.array([[0.1, -0.2, 0.3, 0]] * 2), (2, 2), [[2], [0, 2]], [SCRIPT, TAG]
                    ),
                ),
                ("A screen.", screen_blocks(heads, heads.of([1, 2, 3]), 0.5, 3)),
            ],
            tables=[(SCRIPT, [{HANDLER: TAG, "n": 1}], TAG)],
            refused=[(SCRIPT, HANDLER)],
        )
    )


def edit_page() -> str:
    measures = [
        {"method": "memit", "measure": name, "before": 0.2, "before_low": 0.1, "before_high": 0.3, "after": value}
        | {"after_low": value - 0.1, "after_high": value + 0.1, "n": 6}
        for name, value in (("efficacy", 0.9), ("paraphrase", 0.7), ("fluency", 5.1), (SCRIPT, 0.2))
    ]
    answers = [
        {"method": "memit", "name": f"fact {place}", "subject": SCRIPT, "target": HANDLER, "truth": TAG}
        | {"p_target_before": 0.01, "p_target_after": 0.8, "p_truth_before": 0.7, "p_truth_after": "", "es_before": 0}
        | {"es_after": place % 3 and 1, "ps_after": 0.5, "ns_after": "", "answer_before": TAG, "answer_after": SCRIPT}
        for place in range(6)
    ]
    stream = [
        {"batch": batch, "edits": 2, "reached": 2 - batch % 2, "replayed": batch, "slipped": batch // 2, "trust": 0.9}
        for batch in range(1, 4)
    ]
    return build_edit(
        EditInputs(
            title=SCRIPT,
            summary=[HANDLER],
            notes=[TAG],
            rows=measures,
            answers=answers,
            prompts={"fact 0": SCRIPT},
            batches={f"fact {place}": place // 2 + 1 for place in range(6)},
            stream=stream,
            config=ASKED,
            env=WHERE,
        )
    )


def compare_page() -> str:
    rows = compared([SCRIPT, "AlphaEdit"])
    return build_comparison(
        ComparisonInputs(
            title=HANDLER,
            summary=[TAG],
            notes=[SCRIPT],
            table=comparison_table(rows),
            rows=rows,
            failed=[(SCRIPT, HANDLER)],
            config=ASKED,
            env=WHERE,
        )
    )


def ablate_page() -> str:
    grid = {"buffers": (20, 200), "strategies": ("random", SCRIPT)}
    rows, ages = streams(**grid), curve(**grid)
    return build_ablation(
        AblationInputs(
            title=TAG,
            way="replay",
            summary=[HANDLER],
            notes=[SCRIPT],
            tables={"replay_ablation.csv": rows, "forgetting_curve.csv": ages},
            failed=[(HANDLER, SCRIPT)],
            config=ASKED,
            env=WHERE,
        )
    )


def evaluation_inputs(section: Section | None = None) -> EvaluationInputs:
    names = ["whole", SCRIPT, HANDLER]
    rows = evaluated(names)
    before, after = tables()
    return EvaluationInputs(
        title=SCRIPT,
        recommendations=[TAG],
        rows=rows,
        summary=[HANDLER],
        notes=[SCRIPT],
        config=ASKED,
        env=WHERE,
        section=section,
        by_class=[(name, shares) for name, (_, shares) in zip(CLASSES, classes(names), strict=True)],
        bins={
            name: [ConfidenceBin(0.8, 0.9, 0.81 + place / 30, proportion(30, 40))] for place, name in enumerate(names)
        },
        chosen=[("best accuracy", "whole"), ("best efficiency", SCRIPT)],
        confusions={"whole": before, SCRIPT: after, HANDLER: before},
        class_names=CLASSES,
    )


def evaluate_page() -> str:
    return build_evaluation(evaluation_inputs())


def compress_page() -> str:
    rows = [
        {"model": name, "method": "acdc", "goal": 0.05, "budget_holds": "yes", "macs_kept": share, "kl": 0.03}
        | {"accuracy_change": -0.02, "accuracy_change_low": -0.03, "accuracy_change_high": 0.0, "kl_low": 0.02}
        | {"kl_high": 0.04, "kl_held_out": 0.02 / share, "kl_held_out_low": 0.01, "kl_held_out_high": 0.2}
        for name, share in ((SCRIPT, 0.4), ("larger", 0.8))
    ]
    figures = [
        ("Frontier.", frontier_blocks(rows, [("best efficiency", SCRIPT)])),
        (TAG, divergence_blocks(rows)),
        (HANDLER, kept_blocks([(SCRIPT, PART), (HANDLER, PART)], WHOLE)),
        ("Circuits.", faithfulness_blocks([*faithful(SCRIPT, [0, 0.6, 0.9, 1]), *faithful(HANDLER, [0, -3, -0.5, 1])])),
    ]
    return build_evaluation(evaluation_inputs(Section(TAG, figures=figures)))


def baseline_page() -> str:
    before, after = tables()
    return build_baseline(
        BaselineInputs(
            title=SCRIPT,
            notes=[TAG],
            training_rows=[
                {"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 0.8, "val_loss": 0.5, "val_accuracy": 0.7}
                for epoch in (1, 2)
            ],
            metric_rows=[
                {"part": part, "metric": metric, "value": "0.8", "low": "0.7", "high": "0.9", "n": "40"}
                for part in ("val", "test")
                for metric in ("accuracy", "macro_precision", "macro_recall", "macro_f1")
            ],
            class_rows=[
                {"part": part, "label": str(label), "class": name, "n": "10"}
                | {f"{score}{end}": f"{0.5 + label / 10}" for score in ("recall", "precision", "f1")
                   for end in ("", "_low", "_high")}
                for part in ("val", "test")
                for label, name in enumerate(CLASSES)
            ],
            confusions={"val": before, "test": after},
            class_names=CLASSES,
            split_rows=[
                {"part": "train", "class": str(label), "name": name, "count": "10", "share": "0.25"}
                for label, name in enumerate(CLASSES)
            ],
            manifest={"train": {"size": 9, "sha256": "a" * 64, "overlap_with_held_out": 0}},
            config=ASKED | {"handler": HANDLER},
            env=WHERE,
        )
    )  # fmt: skip


def artificial_page() -> str:
    rows, references = ([{**row, "data": {"one": SCRIPT, "two": "two"}[str(row["data"])]} for row in given]
                        for given in (ROWS, REFERENCES))  # fmt: skip
    return build_arithmetic(
        ArithmeticInputs(
            title=SCRIPT,
            sweep=rows,
            references=references,
            choices=choices(rows),
            chance={SCRIPT: 0.5, "two": 0.25},
            training={
                "base": [{"epoch": epoch, "train_accuracy": 0.5, "val_accuracy": epoch / 9} for epoch in (1, 2, 3)]
            },
            notes=[HANDLER],
            config=ASKED,
            env=WHERE,
        )
    )


MERGED = {
    "format": "weightsmith-merge-1",
    "version": "0.1.0",
    "method": "ties",
    "parameters": {"lambda": 1.0, "density": 0.2},
    "head": "base",
    "dtype": "base",
    "base": {"name": SCRIPT, "fingerprint": "a" * 32, "tensors": 9, "bytes": 1_000_000, "sha256": "b" * 64},
    "models": [
        {
            "name": HANDLER,
            "weight": 1.0,
            "fingerprint": "c" * 32,
            "tensors": 9,
            "bytes": 9,
            "change_over_base": 0.141592,
        },
        {"name": TAG, "weight": -0.5, "fingerprint": "d" * 32, "tensors": 9, "bytes": 9, "change_over_base": None},
    ],
    "output": {"fingerprint": "e" * 32, "tensors": 8, "bytes": 5_000_000, "files": ["model.safetensors"]},
    "merged_tensors": 6,
    "copied_tensors": ["classifier.bias", SCRIPT],
    "left_out": [HANDLER],
    "lost_to_rounding": 0.012,
    "notes": [TAG],
}
"""What `merge_report.json` holds."""


def merge_page() -> str:
    return build_merge(MERGED, SCRIPT)


PAGES: dict[str, Callable[[], str]] = {
    "run": run_page,
    "baseline": baseline_page,
    "locate": locate_page,
    "edit": edit_page,
    "compare": compare_page,
    "ablate": ablate_page,
    "evaluate": evaluate_page,
    "compress": compress_page,
    "artificial": artificial_page,
    "merge": merge_page,
}
"""The page of each command."""
