"""What colour does inside a vision transformer: 1,000 images, each beside its grey copy, every layer, window and head.

    python examples/colour.py                                   # digits in class-dependent colours; a minute
    python examples/colour.py --data-path DIR/cifar10           # CIFAR-10 as parquet files; trains for about 40 minutes
    python examples/colour.py --data-path DIR/cifar10 --model runs/cifar10

A model is trained unless one is given. Then: activation patching of layers alone and in windows of three, of every head, and
of every token of four images; the same with the MLPs behind the restored place severed; and two gradient screens, of layers
and heads and of every token of the residual stream, with their recall. Tables, figures and a page for each are under
`runs/`; what is finished is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from weightsmith.errors import WeightsmithError
from weightsmith.run.correct.baseline import baseline
from weightsmith.run.locate.command import locate
from weightsmith.run.locate.inputs import EMBEDDED
from weightsmith.run.options.correct import BaselineOptions
from weightsmith.run.options.locate import AttributionOptions, PatchOptions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", default="coloured-digits", help="images, as for `weightsmith run`")
    parser.add_argument("--model", help="a trained model [one is trained]")
    parser.add_argument("--preset", default="cifar", help="what is trained, where it is not the digits [cifar]")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--map-samples", type=int, default=4, help="images of which every token is drawn")
    parser.add_argument("--runs-dir", default="runs")
    given = parser.parse_args(arguments)

    name = Path(given.data_path).stem
    model = given.model or "auto"
    if given.model is None and given.data_path not in EMBEDDED:
        trained = BaselineOptions(
            data_path=given.data_path, model=given.preset, run_name=name, runs_dir=given.runs_dir, resume=True
        )
        model = str(baseline(trained).folder)
    common = {
        "model": model,
        "data_path": given.data_path,
        "max_samples": given.images,
        "corruption": "greyscale",
        "runs_dir": given.runs_dir,
        "resume": True,
    }
    locate(
        PatchOptions(
            **common,
            tokens=("cls", "all"),
            window=(1, 3),
            sever=("mlp.out",),
            map_samples=given.map_samples,
            run_name=f"{name}-colour",
        )
    )
    for method in ("attribution", "integrated"):
        for places, sites, tokens in (
            ("layers", ("attn.out", "mlp.out", "resid.out"), ("cls",)),
            ("tokens", ("resid.out",), ("each",)),
        ):
            run_name = f"{name}-colour-{method}-{places}"
            heads = places == "layers"
            locate(
                AttributionOptions(**common, method=method, sites=sites, tokens=tokens, heads=heads, run_name=run_name)
            )


if __name__ == "__main__":
    try:
        main()
    except WeightsmithError as error:
        raise SystemExit(f"error: {error}") from None
