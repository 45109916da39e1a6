"""Two fine-tunes are to be one model: their task vectors are added to the base that both came from, as far as data say.

    python examples/two_into_one.py --base runs/base --models runs/signs runs/cells --data-path signs.npz cells.npz

Every method of merging is tried at its best coefficient, each data set under its own model's head; the best of them, by
validation images, is written to --out, and test images are looked at for that one alone.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from rich.console import Console

from weightsmith.errors import WeightsmithError
from weightsmith.merge import create
from weightsmith.run.merge import merge
from weightsmith.run.merge.search import COEFFICIENTS, Bench, Search
from weightsmith.run.options.merge import MergeOptions

METHODS = ("task_arithmetic", "ties", "dare_ties", "breadcrumbs", "tsv", "iso_c")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--models", nargs=2, required=True)
    parser.add_argument("--data-path", nargs=2, required=True)
    parser.add_argument("--judging-images", type=int, default=500)
    parser.add_argument("--coefficients", nargs="+", type=float, default=COEFFICIENTS)
    parser.add_argument("--out", default="runs/two-into-one")
    parser.add_argument("--cache-dir", help="where accuracies are kept [the platform's cache folder]")
    given = parser.parse_args(arguments)

    options = MergeOptions(
        base=given.base,
        models=tuple(given.models),
        data_path=tuple(given.data_path),
        coefficients=tuple(given.coefficients),
        judging_images=given.judging_images,
        head="base",
        out=given.out,
        cache_dir=given.cache_dir,
        overwrite=True,
    )
    bench = Bench.of(options, given.base, given.models, given.data_path, None, given.judging_images, "cpu")
    scores: dict[str, float] = {}
    for name in METHODS:
        judged = Search.of(options, create(name), bench).judged()
        best = judged.best()
        scores[name] = judged.goal.score(best)
        told = f"{scores[name]:.3f} of the models' own accuracy on validation images, at {best.coefficient:g}"
        Console().print(f"{name:16} {told}")
    merge(replace(options, method=max(scores, key=lambda name: scores[name])))


if __name__ == "__main__":
    try:
        main()
    except WeightsmithError as error:
        raise SystemExit(f"error: {error}") from None
