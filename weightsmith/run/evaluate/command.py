"""`weightsmith evaluate`: trained image classifiers side by side, on images that none of them has learned from."""

from __future__ import annotations

from dataclasses import asdict, replace

from weightsmith.errors import WeightsmithError
from weightsmith.files import user_path
from weightsmith.measure.latency import LEAST_ROUNDS
from weightsmith.report.evaluation_page import CLASSES
from weightsmith.run.evaluate.evaluation import FIGURE, METRICS, PAGE, TABLE, evaluated
from weightsmith.run.options.evaluate import EvaluateOptions
from weightsmith.run.outcome import Outcome
from weightsmith.run.session import Kin, at_least, distinct, session

KIN = Kin(
    commands=("evaluate",),
    called="evaluate",
    another="another command",
    results=(FIGURE, METRICS, TABLE, CLASSES, PAGE),
    inside=("cells",),
    worth=("cells/*",),
    free=("output_dir", "tolerance", "batch_size"),
)


def evaluate(options: EvaluateOptions) -> Outcome:
    """Measure every classifier on the same held-out images.

    What a model says of the images is kept when it is known, and so are the times, so an evaluation that was stopped goes
    on where it was.

    Raises:
        WeightsmithError: bad options, models or data, in one sentence; a run that exists without `resume` or `overwrite`.
    """
    options = placed(options)
    check_options(options)
    with session(options, "evaluate", KIN, f"{user_path(options.data_path).stem}-evaluate") as folder:
        done = evaluated(options, folder, [])
        page = done.write(folder, f"{folder.path.name}: classifiers side by side", asdict(options))
    return done.outcome(folder, page, "evaluate")


def placed(options: EvaluateOptions) -> EvaluateOptions:
    """`--output-dir` as the folder of the run."""
    if options.output_dir is None:
        return options
    place = user_path(options.output_dir).absolute()
    if options.run_name not in (None, place.name):
        raise WeightsmithError(
            f"--output-dir {options.output_dir} is the run's folder itself: leave --run-name {options.run_name} out"
        )
    if place.is_dir() and any(place.iterdir()) and not (place / "config.yaml").exists():
        raise WeightsmithError(
            f"--output-dir {options.output_dir} holds other files: give an empty folder, or one that is not there yet"
        )
    return replace(options, runs_dir=str(place.parent), run_name=place.name, output_dir=None)


def check_options(options: EvaluateOptions) -> None:
    """Everything that can be known to be wrong before any work is done."""
    at_least(options, {"batch_size": 1, "rounds": LEAST_ROUNDS, "tolerance": 0})
    if options.tolerance != options.tolerance:
        raise WeightsmithError("--tolerance must be a number of percentage points, 1 say")
    if options.model_paths:
        distinct("model_paths", options.model_paths, "runs/one runs/two")
    elif options.auto_find is None and options.baseline is None:
        raise WeightsmithError(
            "--model-paths needs one or more trained classifiers, or --auto-find a folder of some: give one"
        )
