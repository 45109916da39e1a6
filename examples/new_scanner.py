"""The scanner changed: a classifier meets patients whom it was not trained on, and 30 errors of the new site correct it.

    python examples/new_scanner.py --data-path histology.npz         # MedMNIST layout, the test part is the new site
    python examples/new_scanner.py --data-path home.npz --site site.npz:train --checkpoint runs/home

Without --checkpoint a small vision transformer is trained on the home site first (8 epochs; minutes). One random half of the
new site's images is where the corrections come from; the other half is sealed and tells what they were worth.
"""

from __future__ import annotations

import argparse

from weightsmith.errors import WeightsmithError
from weightsmith.run.correct.baseline import baseline
from weightsmith.run.correct.pipeline import run
from weightsmith.run.options.correct import BaselineOptions, RunOptions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", required=True, help="images of the home site")
    parser.add_argument("--site", help="images of the new site [the test part of --data-path]")
    parser.add_argument("--checkpoint", help="the classifier [one is trained]")
    parser.add_argument("--model", default="small", help="what is trained")
    parser.add_argument("--epochs", type=int, help="of that training [the preset's]")
    parser.add_argument("--max-edits", type=int, default=30)
    parser.add_argument("--runs-dir", default="runs")
    given = parser.parse_args(arguments)

    checkpoint = given.checkpoint or str(
        baseline(
            BaselineOptions(
                data_path=given.data_path, model=given.model, epochs=given.epochs, run_name="home", runs_dir=given.runs_dir,
                resume=True,
            )
        ).folder
    )  # fmt: skip
    run(
        RunOptions(
            data_path=given.data_path,
            checkpoint=checkpoint,
            edit_from=given.site or f"{given.data_path}:test",
            held_out_from="none",
            max_edits=given.max_edits,
            run_name="new-scanner",
            runs_dir=given.runs_dir,
            resume=True,
        )
    )


if __name__ == "__main__":
    try:
        main()
    except WeightsmithError as error:
        raise SystemExit(f"error: {error}") from None
