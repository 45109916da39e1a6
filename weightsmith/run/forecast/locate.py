"""The plan of `weightsmith locate`: sweeps are planned as they are run, and one lane of each form is run to count it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import torch

from weightsmith.data.images import ImageSet
from weightsmith.data.sources import open_data
from weightsmith.files import user_path
from weightsmith.locate import Cases, PromptCases, grids
from weightsmith.locate.astra import FRESH, AstraOptions, PatchGrid, surrogate
from weightsmith.locate.cases import select
from weightsmith.locate.forecast import sweep_cost
from weightsmith.locate.steering import Steering, steered
from weightsmith.models import Model, create, load, presets
from weightsmith.report.curves import line_labels
from weightsmith.report.heatmaps import MOST_CELLS_WITH_TEXT
from weightsmith.report.overlays import MOST_SAMPLES
from weightsmith.run.folder import RunFolder
from weightsmith.run.forecast.pace import HOW, Pace, pace_of
from weightsmith.run.forecast.parts import Drawing, figures, loading, passes, training
from weightsmith.run.forecast.plan import Plan, Step
from weightsmith.run.job import check_device
from weightsmith.run.locate.command import COMMANDS, KIN, check_options
from weightsmith.run.locate.inputs import Chosen, check_auto, image_cases, part_of, prompt_cases, short
from weightsmith.run.locate.places import memory_of, places_of
from weightsmith.run.options.locate import (
    AttributionOptions,
    DrawnOptions,
    LocateOptions,
    PatchAttributionOptions,
    PatchOptions,
    SweepOptions,
)
from weightsmith.run.session import would_fill
from weightsmith.site import Site
from weightsmith.train import TrainOptions

_EXAMPLES = 64
"""Inputs that are read to plan with."""


def locate(options: LocateOptions) -> Plan:
    """What `run.locate.command.locate` would do. Raises as it does, where that shows without running the network."""
    command, _ = COMMANDS[type(options)]
    check_options(options)
    folder = would_fill(options, KIN, f"{user_path(options.data_path).stem}-{command}")
    model, steps, pace = _model(options, folder)
    if isinstance(options, PatchAttributionOptions):
        steps += _astra(options, model, pace)
        return _plan(command, folder, steps, pace, [])
    assert isinstance(options, SweepOptions)
    if model.family.reads == "text":
        if isinstance(options, PatchOptions):
            from weightsmith.run.locate.inputs import cases_of

            cases_of(options, model)  # says that pairs are of images
        examples: Cases = prompt_cases(options, model)
        count, notes = len(examples.names), []
    else:
        part = _images(options, model)
        chosen = _examples(part, min(options.max_samples, _EXAMPLES), model)
        examples = image_cases(options, model, chosen)
        count = min(options.max_samples, len(part))
        if options.select != "all":
            steps.append(passes(pace, "select", f"a pass over {len(part)} images of {options.part}", len(part)))
        notes = [f"Counted with {count} images: fewer are found where the model gets fewer {_kind(options.select)}."]
    steps += _sweeps(options, model, examples, count, pace)
    steps.append(figures(*_drawings(options, model, examples, count)))
    return _plan(command, folder, steps, pace, notes)


def _plan(command: str, folder: RunFolder, steps: Sequence[Step], pace: Pace, notes: Sequence[str]) -> Plan:
    there = len(list(folder.checkpoints.glob("sweep*/**/cases-*.safetensors")))
    if there:
        notes = [*notes, f"{there} finished pieces of sweeps are there; they are not taken off what is counted."]
    return Plan(command=f"locate {command}", steps=steps, folder=folder.path, weights=pace.weights, notes=[*notes, HOW])


def _model(options: LocateOptions, folder: RunFolder) -> tuple[Model, list[Step], Pace]:
    """(the network, trained or as it is before training, the step that trains it, how fast it is)."""
    device = check_device(options.device, stored=options.model != "auto")
    if options.model != "auto":
        started = time.perf_counter()
        model = load(options.model, device=device)
        load_step = loading(started)
        return model, [load_step], pace_of(model, trains=False)
    check_auto(options)
    model, step, pace = embedded(options.data_path, options.seed, folder, device)
    return model, [step], pace


def embedded(data_path: str, seed: int, folder: RunFolder, device: str) -> tuple[Model, Step, Pace]:
    """The digits' preset before its training, the training, and how fast it is."""
    source = open_data(data_path)
    split = source.split(0.2, seed)
    model = create("digits", source.class_names, seed, source.part("train").channels)
    model.module.to(device)
    recipe = TrainOptions(seed=seed, **(presets()["digits"]["training"] | short(data_path)))
    pace = pace_of(model, recipe.batch_size)
    there = (folder.path / "model" / "config.json").exists()
    return model, training(pace, len(split.train), len(split.val), recipe, there=there), pace


def _images(options: LocateOptions, model: Model) -> ImageSet:
    cache = user_path(options.cache_dir) if options.cache_dir else None
    return part_of(options, open_data(options.data_path, model.preprocess.size, cache, blank=True))


def _examples(part: ImageSet, count: int, model: Model) -> Chosen:
    """Images to plan with, evenly over a part; what the model gives them is taken to be right."""
    which = np.unique(np.linspace(0, len(part) - 1, min(count, len(part))).round().astype(int))
    names, labels = list(part.names()), torch.as_tensor(np.asarray(part.labels)[which])
    labels = labels.clamp(max=model.n_classes - 1)
    return Chosen(tuple(names[i] for i in which), part.pixels(which), labels, labels, part.class_names, "")


def _kind(select: str) -> str:
    return {"errors": "wrong", "right": "right"}.get(select, "")


def _sweeps(options: SweepOptions, model: Model, examples: Cases, count: int, pace: Pace) -> list[Step]:
    places = places_of(options, model, isinstance(examples, PromptCases))
    memory = memory_of(options)

    def step(name: str, cases: Cases, sites: Sequence[Site], inputs: int, sever: Sequence[str] = ()) -> Step:
        cost = sweep_cost(model, cases, sites, inputs, sever=sever, memory=memory)
        naive = f"; full passes would be {cost.naive:,.0f} block forwards"
        what = f"{len(sites)} places in {inputs} inputs, {cases.samples} noise samples each{naive}"
        return Step(name=name, what=what, forwards=cost.block_forwards, seconds=cost.seconds, memory=cost.memory)

    if isinstance(options, AttributionOptions):
        sites = [*places["layers"], *places["heads"]]
        points = options.steps if options.method == "integrated" else 1
        best = sites[: options.verify]
        screened = count * examples.samples
        return [
            Step(
                name="screen",
                what=f"gradients at {points} point{'s' * (points > 1)} of {screened} inputs",
                forwards=pace.forwards((2 + 3 * points) * screened),
                seconds=pace.passes(2 * screened) + points * screened * pace.trained,
                memory=32 * pace.kept,
            ),
            step("verify", examples, best, count),
            step("audit", examples, sites, min(options.audit, count)),
        ]
    steps = [step("layers", examples, places["layers"], count)]
    assert isinstance(options, DrawnOptions)
    if options.sever:
        steps.append(step("severed", examples, places["layers"], count, options.sever))
    if places["heads"]:
        steps.append(step("heads", examples, places["heads"], count))
    drawn = min(options.map_samples, count)
    if drawn and isinstance(examples, PromptCases):
        longest = max(range(drawn), key=lambda index: examples.tokens(index))
        sites = grids.tokens(model, options.map_site, count=examples.tokens(longest))
        steps.append(step("maps", select(examples, [longest]), sites, drawn))
    elif drawn and model.family.cls is not None:
        sites = grids.tokens(model, options.map_site, options.token_block)
        steps.append(step("maps", select(examples, list(range(min(drawn, len(examples.names))))), sites, drawn))
    return steps


def _drawings(options: SweepOptions, model: Model, examples: Cases, count: int) -> list[Drawing]:
    """What is drawn: curves over layers, maps of heads and of tokens, and those over the images."""
    if not isinstance(options, DrawnOptions):
        return [Drawing(panels=1)]
    text = isinstance(examples, PromptCases)
    places = places_of(options, model, text)
    lines = [
        {"kind": site.kind, "tokens": str(site.tokens), "window": site.span, "severed": "", "measurement": 1}
        for site in places["layers"]
    ]
    curves = Drawing(panels=len(line_labels(lines)))
    found = [curves, *([curves] if options.sever else [])]
    if text and options.tokens == ("auto",):
        found.append(Drawing(panels=len({line["kind"] for line in lines})))
    if places["heads"]:
        layers, most = model.n_layers, len(places["heads"]) // model.n_layers
        with_text = max(layers, most) <= MOST_CELLS_WITH_TEXT
        found.append(Drawing(panels=1, texts=len(places["heads"]) * with_text))
    drawn = min(options.map_samples, count)
    if drawn and text:
        found += [Drawing(panels=1)] * drawn
    elif drawn and model.family.cls is not None:
        rows = min(drawn, MOST_SAMPLES)
        found += [Drawing(panels=1), Drawing(overlays=rows * (1 + min(model.n_layers, 5)))]
    return found


def _astra(options: PatchAttributionOptions, model: Model, pace: Pace) -> list[Step]:
    part = _images(options, model)
    count = min(options.max_samples, len(part))
    right = min(max(options.max_samples, 64), len(part))
    masks = passes(pace, "masks", f"{options.masks} masks of {count} images", count * (options.masks + FRESH))
    # Vectors take three passes; then a pass is restarted behind each layer with each strength, (L - 1)/2 blocks of it.
    share = len(options.strengths) * (model.n_layers - 1) / 2
    steering = passes(
        pace, "steering", f"{len(options.strengths)} strengths in each layer", 2 * count + right, batch=64
    )
    return [
        passes(pace, "select", f"two passes over {len(part)} images of {options.part}", 2 * len(part)),
        dataclasses.replace(
            masks, what=f"{masks.what}, a regression each", seconds=masks.seconds + count * _regression(options, model)
        ),
        dataclasses.replace(
            steering,
            forwards=steering.forwards + pace.forwards((count + right) * (1 + share)),
            seconds=steering.seconds + len(options.strengths) * sum(_steered(model, pace, n) for n in (count, right)),
        ),
        figures(Drawing(overlays=2 * min(count, MOST_SAMPLES))),
    ]


def _regression(options: PatchAttributionOptions, model: Model) -> float:
    """Seconds of one image's regression on its masks, of logits made up: a line in the patches and noise."""
    given = AstraOptions(masks=options.masks, keep=options.keep, alpha=options.alpha, top=options.top)
    random = np.random.default_rng(0)
    found = []
    for _ in range(3):
        shown = random.random((options.masks + FRESH, PatchGrid.of(model).patches)) < options.keep
        started = time.perf_counter()
        surrogate(shown, shown @ random.normal(size=shown.shape[1]) + random.normal(size=len(shown)), given)
        found.append(time.perf_counter() - started)
    return min(found)


def _steered(model: Model, pace: Pace, images: int) -> float:
    """Seconds of restarting passes of so many images behind every layer, at one strength: fewer are timed, and scaled."""
    most = int(1 / max(model.n_layers / 2 * pace.image, 1e-9))
    count = max(1, min(images, 64, most))
    reads, labels = model.preprocess, torch.zeros(count, dtype=torch.int64)
    blank = torch.zeros(count, reads.channels, reads.size, reads.size, dtype=torch.uint8)
    width = model.embed(reads(blank[:1], model.device)).shape[-1]
    vectors = Steering(
        tuple(range(model.n_layers)), torch.ones(model.n_layers, width), torch.zeros(model.n_layers, width)
    )
    found = []
    for _ in range(2):
        started = time.perf_counter()
        steered(model, blank, labels, labels, vectors, strengths=(1.0,))
        found.append(time.perf_counter() - started)
    return min(found) * images / count
