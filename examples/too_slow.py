"""The model is too slow for its machine: half of its measured time is taken out without training, and a faster file is written.

    python examples/too_slow.py --checkpoint runs/scans --data-path scans.npz --held-out-from test
    python examples/too_slow.py                                       # a small network on digits, trained first

Heads, neurons and blocks leave the weights; what they did is folded into what stays. `report.html` has what stays and what it
costs on images that no search saw; `optimized_models/` has folders that plain transformers loads, and ONNX files.
"""

from __future__ import annotations

import argparse

from weightsmith.errors import WeightsmithError
from weightsmith.run.compress import compress
from weightsmith.run.options.compress import CompressOptions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="the classifier [one is trained on digits]")
    parser.add_argument("--data-path", default="digits")
    parser.add_argument("--held-out-from", default="auto", help="test, where the classifier's run held that part out")
    parser.add_argument("--time", type=float, default=0.5, help="share of the time that may stay")
    parser.add_argument("--rounds", type=int, default=30, help="times that each model is timed")
    parser.add_argument("--runs-dir", default="runs")
    given = parser.parse_args(arguments)
    compress(
        CompressOptions(
            checkpoint=given.checkpoint,
            data_path=given.data_path,
            held_out_from=given.held_out_from,
            method="acdc",
            acdc_thresholds=(0.05,),
            latency_ratios=(given.time,),
            onnx=True,
            rounds=given.rounds,
            run_name="too-slow",
            runs_dir=given.runs_dir,
            resume=True,
        )
    )


if __name__ == "__main__":
    try:
        main()
    except WeightsmithError as error:
        raise SystemExit(f"error: {error}") from None
