"""Task vectors of one small ViT that was fine-tuned on MNIST, traffic signs, CIFAR-10 and histology: added, and taken away.

    python benchmarks/merge/images.py --data FOLDER --tiny-imagenet FOLDER       # about 25 minutes a seed on one thread
    python benchmarks/merge/images.py --train ...                                # the networks alone

The base is trained on Tiny-ImageNet's images at 32 pixels. Each task then gets a head of its own on the base as it is (the
base's own answer to the task, as the zero-shot head is that of CLIP in Ilharco et al. 2023), and is fine-tuned under that head,
which stays. The networks are run folders: `weightsmith merge --models WORK/mnist-0 WORK/cifar10-0 --data-path ...` reads them.

Four questions, each with the coefficient that validation images choose and test images that are looked at once: all four tasks
added, and the three without histology, by every method; each pair, by task arithmetic; each task taken away, with the base's
own task as the control and all validation images as judges.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

from weightsmith.data.sources import open_data
from weightsmith.data.split import Source, Split, sample
from weightsmith.files import read_csv, write_csv, write_json
from weightsmith.merge import create as method_of
from weightsmith.models import create, save
from weightsmith.models.heads import head_names
from weightsmith.run.job import save_indices
from weightsmith.run.merge.search import Bench, Search
from weightsmith.train import TrainOptions, fit

NETWORK = {
    "model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
    "intermediate_size": 384, "num_channels": 3,
}  # fmt: skip
BASE = TrainOptions(epochs=24, batch_size=64, lr=1e-3, weight_decay=0.05, augment="natural", label_smoothing=0.1)
HEAD = TrainOptions(epochs=3, batch_size=64, lr=3e-3, weight_decay=0.0)


@dataclass(frozen=True)
class Task:
    """One data set: its file below --data, and how it is fine-tuned on."""

    name: str
    path: str
    images: int
    recipe: TrainOptions


_FINE = TrainOptions(epochs=4, batch_size=64, lr=3e-4, weight_decay=0.0)
TASKS = (
    Task("mnist", "npz/mnist.npz", 12_000, replace(_FINE, epochs=2)),
    Task("gtsrb", "npz/gtsrb32.npz", 12_000, replace(_FINE, epochs=6)),
    Task("cifar10", "cifar10", 20_000, replace(_FINE, augment="natural")),
    Task("histology", "medmnist/histology_27.npz", 12_000, replace(_FINE, epochs=6, augment="dihedral")),
)
VALIDATION, TEST = 1_000, 4_000
"""Images of a task that are its validation part, and that are reported."""
METHODS = (
    "task_arithmetic",
    "linear",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "model_stock",
    "tsv",
    "iso_c",
)
COEFFICIENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cut:
    """How data are cut that no run has recorded: none here."""

    held_out_ratio: float = 0.2
    val_ratio: float = 0.2
    seed: int = 0
    cache_dir: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("WEIGHTSMITH_TEST_DATA", "../shared/data")))
    parser.add_argument("--tiny-imagenet", type=Path, required=True, help="its folder, of 50 classes or of 200")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-task-vectors")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of heads, images and fine-tuning")
    parser.add_argument("--train", action="store_true", help="train what is missing, and no more")
    parser.add_argument("--judging-images", type=int, default=500, help="validation images a data set that choose")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    for seed in given.seeds:
        base, tuned = networks(given, seed)
        if not given.train:
            rows += measured(given, seed, base, tuned)
            kept_rows(rows, given.out)
    if rows:
        told(rows)


def measured(given: argparse.Namespace, seed: int, base: Path, tuned: list[Path]) -> list[dict[str, object]]:
    """A row for each question, data set and method of one seed."""
    rows: list[dict[str, object]] = []
    every = list(range(len(TASKS)))
    for method in METHODS:
        rows += asked(given, seed, base, tuned, "add four", method, every, 1.0)
    for method in METHODS:
        rows += asked(given, seed, base, tuned, "add three", method, every[:3], 1.0)
    for pair in combinations(every, 2):
        rows += asked(given, seed, base, tuned, "add two", "task_arithmetic", list(pair), 1.0)
    for one in every:
        rows += asked(given, seed, base, tuned, "take away", "task_arithmetic", [one], -1.0)
    return rows


def asked(
    given: argparse.Namespace,
    seed: int,
    base: Path,
    tuned: list[Path],
    what: str,
    name: str,
    which: list[int],
    weight: float,
) -> list[dict[str, object]]:
    """One search: what validation chose, and the test accuracies of the base, of each task's own model and of the merge."""
    models = tuple(str(tuned[index]) for index in which)
    data = [str(given.data / TASKS[index].path) for index in which]
    control = str(given.tiny_imagenet) if weight < 0 else None
    judging = None if control else given.judging_images
    bench = Bench.of(Cut(), str(base), models, data, control, judging, "cpu")
    method = method_of(name, seed=seed)
    found = Search(
        method=method,
        base=str(base),
        models=models,
        weights=tuple(weight * one for one in method.default_weights(len(models))),
        head="base",
        bench=bench,
        coefficients=COEFFICIENTS,
        keep=0.95,
        cache=given.work / "cache",
    ).done()
    tasks = [TASKS[index].name for index in which]
    rows = []
    for number, judge in enumerate(bench.judges):
        test = {row["backbone"]: row for row in found.test if row["data"] == judge.name}
        own = test.get("own", test["base"])
        rows.append(
            {
                "seed": seed, "question": what, "tasks": "+".join(tasks), "method": name, "coefficient": found.best.coefficient,
                "data": "tiny-imagenet" if judge is bench.control else tasks[number],
                "role": "control" if judge is bench.control else "task",
                **{key: test["merged"][f"test_{key}"] for key in ("accuracy", "low", "high", "n")},
                "base": test["base"]["test_accuracy"], "own": own["test_accuracy"],
                "normalised": round(float(test["merged"]["test_accuracy"]) / float(own["test_accuracy"]), 6),
            }
        )  # fmt: skip
    print(what, "+".join(tasks), name, found.best.coefficient, [row["accuracy"] for row in rows], flush=True)
    return rows


def kept_rows(rows: list[dict[str, object]], folder: Path) -> None:
    """Write the rows; those of seeds that were not measured now stay."""
    path = folder / "images.csv"
    seeds = {str(row["seed"]) for row in rows}
    old = [row for row in read_csv(path) if row["seed"] not in seeds] if path.exists() else []
    write_csv(path, [*old, *rows])


def told(rows: list[dict[str, object]]) -> None:
    """Means over the seeds."""
    print(f"{'':44}{'coefficient':>14}{'base':>8}{'own':>8}{'merged':>8}{'normalised':>12}")
    for key in dict.fromkeys((row["question"], row["tasks"], row["method"], row["role"]) for row in rows):
        mine = [row for row in rows if (row["question"], row["tasks"], row["method"], row["role"]) == key]
        middle = {
            name: 100 * fmean(float(str(row[name])) for row in mine)
            for name in ("base", "own", "accuracy", "normalised")
        }
        spots = sorted({float(str(row["coefficient"])) for row in mine})
        spot = f"{spots[0]:g}" if len(spots) == 1 else f"{spots[0]:g} to {spots[-1]:g}"
        name = f"{key[0]} {key[2] if key[0] in ('add four', 'add three') else key[1]} ({key[3]})"
        print(
            f"{name:44}{spot:>14}"
            + "".join(f"{middle[one]:8.1f}" for one in ("base", "own", "accuracy"))
            + f"{middle['normalised']:12.1f}"
        )


def networks(given: argparse.Namespace, seed: int) -> tuple[Path, list[Path]]:
    """The base's run folder and those of the fine-tuned networks, trained where they are not there yet."""
    base = given.work / "base"
    if not (base / "model").is_dir():
        source = open_data(str(given.tiny_imagenet), NETWORK["image_size"])
        split = source.split("val", 0, 0.1)
        write_json(given.work / "network.json", NETWORK)
        model = create(str(given.work / "network.json"), source.class_names, 0)
        kept(base, split)
        fit(model, split.train, split.val, BASE, base / "checkpoint.pt", resume=True)
        save(model, base / "model")
    tuned = []
    for task in TASKS:
        folder = given.work / f"{task.name}-{seed}"
        if not (folder / "model").is_dir():
            fine_tuned(base, folder, task, drawn(task, open_data(str(given.data / task.path)), seed), seed)
        tuned.append(folder)
    return base, tuned


def drawn(task: Task, source: Source, seed: int) -> Split:
    """The task's images: validation cut from train where the source has none, the source's test part sealed."""
    split = source.split("test", seed, 0.1)
    held = source.part("test")
    return replace(
        split,
        train=sample(split.train, task.images, seed),
        val=sample(split.val, VALIDATION, seed),
        sealed_part=sample(held, TEST, seed).seal(),
    )


def fine_tuned(base: Path, folder: Path, task: Task, split: Split, seed: int) -> None:
    """A head on the base as it is, then the rest under that head."""
    model = create(str(base), split.train.class_names, seed)
    kept(folder, split)
    head = set(head_names(model))
    accuracies = {}
    for part, recipe, learns in (("head", HEAD, True), ("backbone", task.recipe, False)):
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_((name in head) == learns)
        history = fit(model, split.train, split.val, replace(recipe, seed=seed), folder / f"{part}.pt", resume=True)
        accuracies[part] = history.rows[history.best_epoch - 1]["val_accuracy"]
    write_json(folder / "validation.json", accuracies)
    save(model, folder / "model")


def kept(folder: Path, split: Split) -> None:
    """Record what is held out, as a run does, so that a command that is given the network knows it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_indices(folder, split.parts())
    write_json(folder / "data_split.json", split.manifest())


if __name__ == "__main__":
    main()
