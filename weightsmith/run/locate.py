"""`weightsmith locate`: trace, patch, screen or attribute, and write tables, figures and a page."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.markup import escape

from weightsmith import report
from weightsmith.delta import weights_hash
from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.files import disk_is_full, user_path, write_csv, write_json, write_text
from weightsmith.locate import METRICS, Cases, PromptCases, Sweep, astra, grids, screened, steering, sweep
from weightsmith.locate.cases import select
from weightsmith.locate.metrics import FLOORS
from weightsmith.locate.plan import targets
from weightsmith.models import Model
from weightsmith.run.findings import Findings
from weightsmith.run.folder import RunFolder, existing_runs, new_name
from weightsmith.run.inputs import Chosen, cases_of, chosen_images, trained_model
from weightsmith.run.options import (
    AttributionOptions,
    LocateOptions,
    PatchAttributionOptions,
    PatchOptions,
    SweepOptions,
    TraceOptions,
    to_yaml,
)
from weightsmith.site import SUBJECT_TOKENS, Site

_log = logging.getLogger(__name__)


def locate(options: LocateOptions) -> Path:
    """Run one of the ways to locate, and return the run's folder.

    Raises:
        WeightsmithError: bad options or data, in one sentence; a run that exists without `resume` or `overwrite`.
    """
    command, find = _COMMANDS[type(options)]
    _check(options)
    name = new_name(options, f"{user_path(options.data_path).stem}-{command}")
    folder = RunFolder.named(options, name)
    fresh, before = not folder.path.exists(), _measured(folder)
    try:
        with folder.in_use(), folder.logged():
            folder.recover()
            stored = folder.config_text()
            if stored is not None:
                _check_same(options, folder, stored)
            folder.log_event(command, "start")
            redone = _results(folder) if stored is not None and options.overwrite else []
            try:
                with folder.set_aside(redone), _cleared(folder, bool(redone)):
                    folder.write_config(options)
                    model = trained_model(options, folder)
                    found = find(options, model, folder)
                    page = _write(options, command, model, folder, found)
            except BaseException as error:
                if isinstance(error, WeightsmithError):
                    folder.restore_config(stored)  # options that were refused must not become those of the run
                interrupted = isinstance(error, KeyboardInterrupt)
                folder.log_event(
                    command, "interrupted" if interrupted else "failed", why=str(error) or type(error).__name__
                )
                raise
            folder.log_event(command, "done")
    except WeightsmithError as error:
        # What a full disk stopped can be gone on with; options that were refused leave nothing, but a model that was trained.
        refused = error.__cause__ is None or isinstance(error.__cause__, WeightsmithError)
        if fresh and (refused or not any(folder.path.glob("checkpoints/*"))):
            folder.remove(*(path for path in _measured(folder) if path not in before))
            folder.remove(folder.path / "config.yaml")
            if not (folder.path / "model").exists():
                folder.discard()
        raise
    console = Console()
    for shown in found.terminal:
        console.print(shown)
    for sentence in found.summary:
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    where, read = escape(str(folder.path)), escape(str(page))
    console.print(f"[bold]{where}[/] holds everything; the page to read is {read}", soft_wrap=True)
    return folder.path


_LEAST = {
    "seed": 0, "max_samples": 1, "batch_memory": 1, "num_ablations": 1, "map_samples": 0, "token_block": 1, "steps": 1,
    "verify": 1, "audit": 1,
}  # fmt: skip
"""The least that an option may be."""

_FREE = (
    "device", "resume", "overwrite", "run_name", "timestamp", "runs_dir", "checkpoint_dir", "log_dir", "results_dir",
    "cache_dir", "config", "batch_memory",
)  # fmt: skip
"""Options that may differ when a run is gone on with: they say where and how, not what."""


def _check(options: LocateOptions) -> None:
    """Everything that can be known to be wrong before any work is done."""
    for name, least in _LEAST.items():
        value = getattr(options, name, None)
        if value is not None and value < least:
            raise WeightsmithError(f"{_flag(name)} must be at least {least}, not {value}")
    if options.seed >= 2**32 - 1:  # what the splits of scikit-learn take, the one after it included
        raise WeightsmithError(f"--seed must be below {2**32 - 1}, not {options.seed}")
    noise, min_gap = getattr(options, "noise", 1.0), getattr(options, "min_gap", None)
    if not 0 < noise < math.inf:
        raise WeightsmithError(f"--noise must be a positive number, not {noise:g}: 3 is usual")
    if min_gap is not None and not 0 <= min_gap < math.inf:
        raise WeightsmithError(f"--min-gap must be a number from 0, not {min_gap:g}")
    if isinstance(options, AttributionOptions) and options.sever:
        raise WeightsmithError("--sever is of locate trace and patch: a screen leaves all paths open")
    if options.resume and options.run_name is None:
        runs = existing_runs(options.runs_dir)
        there = f"runs there are: {', '.join(runs[:8])}" if runs else f"there are none in {options.runs_dir} yet"
        raise WeightsmithError(f"--resume goes on with an existing run: name it with --run-name ({there})")


def _check_same(options: LocateOptions, folder: RunFolder, stored: str) -> None:
    """Refuse an existing run unasked, the folder of another kind of run, and to mix what was measured with other options."""
    if not (options.resume or options.overwrite):
        raise WeightsmithError(
            f"the run {folder.path} exists: give --resume to go on with it, --overwrite to redo it, or another --run-name"
        )
    ours = {name for name, _ in _COMMANDS.values()}
    if any(event.get("stage") not in ours for event in folder.events()):
        raise WeightsmithError(f"{folder.path} holds a run of another command than locate: give another --run-name")
    if options.overwrite or not _measured(folder):
        return
    try:
        theirs = yaml.safe_load(stored)
    except yaml.YAMLError:
        theirs = None
    mine = yaml.safe_load(to_yaml(options))
    if not isinstance(theirs, dict) or set(theirs) != set(mine):
        raise WeightsmithError(
            f"{folder.path} holds what another way to locate measured: give --overwrite to replace it, or another --run-name"
        )
    other = [name for name in mine if name not in _FREE and theirs[name] != mine[name]]
    if other:
        asked = ", ".join(_said(name, theirs[name]) for name in other)
        raise WeightsmithError(
            f"{folder.path} was measured with other options ({asked}): give the same to go on, --overwrite to measure anew, "
            "or another --run-name"
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _said(name: str, value: Any) -> str:
    """An option as one would type it."""
    if isinstance(value, bool) or value in (None, []):
        return _flag(name) if value is True else _flag(f"no_{name}") if value is False else f"no {_flag(name)}"
    return f"{_flag(name)} {' '.join(map(str, value)) if isinstance(value, list) else value}"


@contextmanager
def _cleared(folder: RunFolder, redone: bool) -> Iterator[None]:
    """When a run that is redone fails, none of its new files may stay among the old ones, which come back."""
    try:
        yield
    except BaseException:
        if redone:
            folder.remove(*_results(folder))
        raise


def _swept(options: SweepOptions, model: Model, folder: RunFolder) -> Findings:
    """Layers, heads and maps, exactly."""
    cases, chosen, told = cases_of(_with_target(options), model)
    text = isinstance(cases, PromptCases)
    found = Findings()
    plan = _grids(options, model, text)
    # What would be refused only after the first sweep is refused before it.
    targets(model, [], 1, sever=options.sever)
    if options.map_samples and model.family.has_tokens:
        with _of(f"--map-site {options.map_site}"):
            targets(model, [Site(options.map_site, 0, tokens=(0,))], 1)
    layers = _sweep(options, model, cases, plan["layers"], folder, "layers")
    refused = {name for name, _ in layers.refused}
    _add_sweep(found, options, layers, "layers")
    effects = layers.effects(options.metric)
    found.effects["effects"] = effects
    found.refused = [(name, f"gap of {gap:+.3g}") for name, gap in layers.refused]
    rows = [_sample_row(effects, i) for i in range(len(effects.samples))]
    found.tables["layer_importance.csv"] = rows
    curves = [effects]
    if options.sever:
        severed = _sweep(options, model, cases, plan["layers"], folder, "severed", sever=options.sever)
        found.effects["effects_severed"] = severed.effects(options.metric)
        _add_sweep(found, options, severed, "severed")
        caption = (
            f"The same with {' and '.join(options.sever)} held at their corrupted values behind the restored place."
        )
        drawn = [severed.effects(options.metric)]
        found.figure("layer_curves_severed", caption, report.layer_curves(drawn), report.layer_curve_rows(drawn))
    if text and any(site.tokens is not None for site in effects.sites):
        caption = (
            "Mean effect of restoring each layer at the subject's tokens and behind it (windows restore more, always)."
        )
        found.figure("layer_tokens", caption, report.layer_token_map(effects), report.layer_token_rows(effects))
    caption = "Mean effect of restoring each layer, with 95% bootstrap intervals; windows restore more and peak higher."
    found.figure("layer_curves", caption, report.layer_curves(curves), report.layer_curve_rows(curves))
    if plan["heads"]:
        heads = _sweep(options, model, cases, plan["heads"], folder, "heads")
        _add_sweep(found, options, heads, "heads")
        found.effects["effects_heads"] = of_heads = heads.effects(options.metric)
        caption = "Mean effect of restoring what each attention head gives, at all tokens."
        found.figure("layer_heads", caption, report.layer_head_map(of_heads), report.layer_head_rows(of_heads))
    clear = [i for i, name in enumerate(cases.names) if name not in refused]
    if options.map_samples > 0:  # evenly over all: data sets are often sorted by class
        places = np.linspace(0, len(clear) - 1, min(options.map_samples, len(clear))).round().astype(int)
        drawn_cases = [clear[i] for i in places]
        _maps(found, options, model, cases, drawn_cases, chosen, folder)
    best = sorted(effects.table(), key=lambda row: row["rank"])[:3]
    found.summary = [
        f"Restored {len(plan['layers'])} places in layers"
        + (f" and {len(plan['heads'])} heads" if plan["heads"] else "")
        + f" in {len(effects.samples)} of {told}.",
        f"Largest mean effect on the {options.metric.replace('_', ' ')}: "
        + ", ".join(f"{row['site']} {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" for row in best)
        + f"; the corruption takes {float(effects.gaps.mean()):.3f} on average.",
        f"The sweep of layers took {layers.info['block_forwards']:,.0f} block forwards; one full pass a place and noise "
        f"sample would take {layers.info['naive_block_forwards']:,}.",
    ]
    if found.refused:
        found.summary.append(
            f"{len(found.refused)} inputs were refused: the corruption changes their {options.metric.replace('_', ' ')} by "
            f"less than {layers.info['min_gap']:g}."
        )
    found.terminal.append(report.site_table(effects))
    return found


def _screened(options: AttributionOptions, model: Model, folder: RunFolder) -> Findings:
    """Every place by gradients, the best exactly, and what the screen missed."""
    cases, _, told = cases_of(options, model)
    plan = _grids(options, model, isinstance(cases, PromptCases))
    sites = [site for site in (*plan["layers"], *plan["heads"]) if site.span == 1]
    with _goes_on(folder.checkpoints / "sweep"):
        result = screened(
            model,
            cases,
            sites,
            method=options.method,
            metric=options.metric,
            steps=options.steps,
            verify=options.verify,
            audit=options.audit,
            min_gap=options.min_gap,
            memory=_memory(options),
            checkpoint=folder.checkpoints / "sweep",
        )
    found = Findings()
    verified, audit = result.verified.effects(options.metric), result.audit.effects(options.metric)
    found.effects = {"effects": verified, "screen": result.screen, "audit": audit}
    found.refused = [(name, f"gap of {gap:+.3g}") for name, gap in result.verified.refused]
    guess = {row["site"]: row for row in result.screen.table()}
    rows = [
        {"site": row["site"], "screened": guess[row["site"]]["mean"], "exact": row["mean"], "low": row["low"],
         "high": row["high"], "screened_rank": guess[row["site"]]["rank"], "exact_rank": row["rank"], "n": row["n"]}
        for row in sorted(verified.table(), key=lambda row: row["rank"])
    ]  # fmt: skip
    found.table("verified.csv", "Places that the screen ranks first, measured exactly", rows)
    _add_sweep(found, options, result.verified, "verified")
    place = {name: i for i, name in enumerate(result.screen.samples)}
    audited = result.screen.of([place[name] for name in audit.samples])
    recalls = [{"top": top, "recall": share, "samples": len(audit.samples)} for top, share in result.recall.items()]
    found.table("recall.csv", "Share of the exact top places that the screen found", recalls)
    if result.recall:
        top = min(result.recall, key=lambda count: abs(count - 10))
        caption = (
            f"Screened against exact effect of every place, on {len(audit.samples)} inputs where both were measured."
        )
        figure = report.screen_scatter(audited, audit, result.recall[top], top)
        found.figure("screen", caption, figure, report.screen_rows(audited, audit, top))
    found.summary = [
        f"Screened {len(sites)} places by {options.method} in {len(verified.samples)} of {told}, and measured the best "
        f"{len(verified.sites)} exactly.",
        f"On {len(audit.samples)} inputs where every place was measured exactly, the rank correlation of screen and truth is "
        f"{result.rank_correlation:.2f}"
        + "".join(f"; of the true top {top} the screen found {share:.0%}" for top, share in result.recall.items())
        + ".",
    ]
    found.terminal.append(report.site_table(verified))
    return found


def _attributed(options: PatchAttributionOptions, model: Model, folder: RunFolder) -> Findings:
    """ASTRA: patches and steering."""
    chosen = chosen_images(options, model)
    right = chosen_images(replace(options, select="right", max_samples=max(options.max_samples, 64)), model)
    targets = chosen.predicted if options.target == "predicted" else chosen.labels
    given = astra.AstraOptions(
        masks=options.masks, keep=options.keep, alpha=options.alpha, top=options.top, seed=options.seed
    )
    attribution = astra.attribute(model, chosen.pixels, targets, chosen.names, given)
    found = Findings()
    rows = attribution.rows()
    found.table("patch_weights_all.csv", "Weight of each patch", rows)
    found.refused = [(name, "no patch of positive weight") for name in attribution.uninformative]
    informative = [i for i, top in enumerate(attribution.top) if top]
    side = round((model.n_tokens - model.family.special) ** 0.5)
    shown = informative[:6]
    if shown:
        weights = attribution.weights[shown].numpy()
        tops, names = [attribution.top[i] for i in shown], [chosen.names[i] for i in shown]
        caption = "Weight of each patch for the logit of its class; the patches that count as evidence have an outline."
        figure = report.patch_weights(chosen.pixels[shown].numpy(), weights, (side, side), tops, names)
        found.figure("patch_weights", caption, figure, report.patch_weight_rows(weights, (side, side), tops, names))
    vectors = steering.steering_vectors(model, chosen.pixels, attribution, right.pixels)
    vectors.save(folder.results / "steering.safetensors")
    attribution.save(folder.results / "attribution.safetensors")
    table = [
        {"images": what, **row}
        for what, group in (("attributed", chosen), ("right", right))
        for row in steering.steered(
            model, group.pixels, group.predicted, group.labels, vectors, strengths=options.strengths
        )
    ]
    found.table("steering.csv", "What adaptive steering away from the class does", table)
    fit = attribution.fit_fresh[attribution.fit_fresh.isfinite()]
    found.summary = [
        f"Attributed the class of {chosen.told} to patches with {options.masks} masks an image; on masks not fitted the "
        f"surrogate explains {float(fit.mean()) if len(fit) else float('nan'):.2f} of the variance on average.",
    ]
    found.notes.append(
        "Steering was tried on the images that it was made from, and on right ones of the same part: choose layer and "
        "strength here, and prove them on other images."
    )
    return found


_COMMANDS: dict[type[LocateOptions], tuple[str, Callable[[Any, Model, RunFolder], Findings]]] = {
    TraceOptions: ("trace", _swept),
    PatchOptions: ("patch", _swept),
    AttributionOptions: ("attribution", _screened),
    PatchAttributionOptions: ("astra", _attributed),
}


def _with_target(options: SweepOptions) -> TraceOptions | PatchOptions:
    assert isinstance(options, TraceOptions | PatchOptions)
    return options


def _grids(options: SweepOptions, model: Model, text: bool) -> dict[str, list[Site]]:
    """The places that the options name: "layers" and "heads"."""
    if not options.sites or not options.tokens:
        raise WeightsmithError("--sites and --tokens need at least one entry each, resid.out and cls say")
    layers: list[Site] = []
    for kind, tokens in product(dict.fromkeys(options.sites), dict.fromkeys(options.tokens)):
        with _of(f"--sites {kind}"):
            model.bind(Site(kind, 0))
        if text and tokens == "auto":
            layers += grids.subject(model, kind, options.window)
            continue
        if tokens == "each":
            if text:
                raise WeightsmithError("--tokens each is for images, whose tokens are always as many: leave it out for prompts")
            layers += grids.tokens(model, kind, options.token_block)
            continue
        at = _tokens(tokens, model)
        layers += grids.layers(model, kind, at, options.window)
        if not (text and at in SUBJECT_TOKENS):
            with _of(f"--tokens {tokens}"):
                model.bind(Site(kind, 0, tokens=at))
    layers = list(dict.fromkeys(layers))
    has_heads = options.heads and model.family.attention is not None
    return {"layers": layers, "heads": grids.heads(model) if has_heads else []}


@contextmanager
def _of(flag: str) -> Iterator[None]:
    """What is wrong with the value of a flag is told with the flag."""
    try:
        yield
    except WeightsmithError as error:
        raise WeightsmithError(f"{flag} does not fit: {error}") from error


def _tokens(named: str, model: Model) -> str | tuple[int, ...] | None:
    """What one entry of `--tokens` says."""
    if named == "all":
        return None
    if named == "auto":
        return model.family.lookup
    try:
        return Site.parse(f"resid.out[0]@{named}").tokens
    except WeightsmithError as error:
        raise WeightsmithError(f"--tokens {named} is not understood ({error}): give cls, all, each or 0,17,4:8") from error


def _memory(options: LocateOptions) -> int | None:
    return None if options.batch_memory is None else options.batch_memory * 2**20


def _sweep(
    options: SweepOptions,
    model: Model,
    cases: Cases,
    sites: Sequence[Site],
    folder: RunFolder,
    name: str,
    sever: Sequence[str] = (),
) -> Sweep:
    place = folder.checkpoints / f"sweep-{name}"
    with _goes_on(place):
        return sweep(
            model,
            cases,
            sites,
            metrics=[options.metric, *(metric for metric in METRICS if metric != options.metric)],
            min_gap=options.min_gap,
            sever=sever,
            memory=_memory(options),
            checkpoint=place,
            title=f"restoring {name}",
        )


@contextmanager
def _goes_on(place: Path) -> Iterator[None]:
    """Say what to do with finished cases that do not fit, because the model or the data changed meanwhile, or are damaged."""
    if finished := len(list(place.rglob("cases-*.safetensors"))):
        _log.info("%s: %d finished pieces are there already", place.name, finished)
    try:
        yield
    except WeightsmithError as error:
        cause = error.__cause__
        if (
            str(place) not in str(error)
            or isinstance(cause, OSError)
            or (isinstance(cause, Exception) and disk_is_full(cause))
        ):
            raise  # what is there is right, it is the disk that is not
        raise WeightsmithError(f"{error}; --overwrite measures anew") from error


def _add_sweep(found: Findings, options: SweepOptions, swept: Sweep, name: str) -> None:
    """Statistics of every place in every metric, raw and normalised."""
    rows: list[dict[str, Any]] = []
    for metric in swept.restored:
        effects = swept.effects(metric)
        rows += _statistics(effects, "raw")
        clear = [i for i, gap in enumerate(effects.gaps.abs().tolist()) if gap >= FLOORS[metric]]
        if clear:
            rows += _statistics(effects.of(clear).normalised(), "share of the gap")
    found.tables[f"{name}_statistics.csv"] = rows
    main = [row for row in rows if row["metric"] == options.metric and row["form"] == "raw"]
    title = {"layers": "Effect of layers", "heads": "Effect of heads", "severed": "Effect of layers, paths severed"}
    found.shown.append((title.get(name, f"Effect, {name}"), f"{name}_statistics.csv"))
    found.tables[f"{name}_statistics.csv"] = main + [row for row in rows if row not in main]


def _statistics(effects: Effects, form: str) -> list[dict[str, Any]]:
    rows = []
    for site, row in zip(effects.sites, effects.table(), strict=True):
        numbers = {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
        place = {"site": numbers.pop("site"), "kind": site.kind, "layer": numbers.pop("layer"), "window": site.span}
        place |= {"head": site.head, "tokens": str(Site("resid.out", 0, tokens=site.tokens)).partition("@")[2] or "all"}
        rows.append({"metric": effects.metric, "form": form, **place, **numbers})
    return rows


def _sample_row(effects: Effects, index: int) -> dict[str, Any]:
    info = effects.info
    return {
        "sample": effects.samples[index],
        "target_class": info["target_classes"][index],
        "foil_class": info["foil_classes"][index],
        "clean": round(info["clean"][index], 6),
        "corrupted": round(info["corrupted"][index], 6),
        **{str(site): round(float(effects.values[index, k]), 6) for k, site in enumerate(effects.sites)},
    }


def _maps(
    found: Findings,
    options: SweepOptions,
    model: Model,
    cases: Cases,
    which: Sequence[int],
    chosen: Chosen | None,
    folder: RunFolder,
) -> None:
    """Every layer and token of a few inputs, drawn over the image or beside the prompt's words."""
    if isinstance(cases, PromptCases):
        for number, index in enumerate(which):
            prompt = cases.prompts[index]
            sites = grids.tokens(model, options.map_site, count=len(prompt.ids))
            one = select(cases, [index])
            effects = _sweep(options, model, one, sites, folder, f"prompt-{index}").effects(options.metric)
            words = model.tokenize.words(prompt.ids)
            found.effects[f"effects_prompt_{number}"] = effects
            found.figure(
                f"prompt_{number}",
                f"Effect of restoring {options.map_site} at each token of prompt {prompt.name}; the subject has a star.",
                report.layer_token_map(effects, words, prompt.subject),
                report.layer_token_rows(effects, words, prompt.subject),
            )
        return
    assert chosen is not None
    if model.family.cls is None:
        return
    sites = grids.tokens(model, options.map_site, options.token_block)
    effects = _sweep(options, model, select(cases, which), sites, folder, "tokens").effects(options.metric)
    found.effects["effects_tokens"] = effects
    caption = f"Mean effect of restoring {options.map_site} at each token of {len(effects.samples)} images."
    found.figure("layer_tokens", caption, report.layer_token_map(effects), report.layer_token_rows(effects))
    special = model.family.special
    side = round((model.n_tokens - special) ** 0.5)
    layers = sorted({round(i * (model.n_layers - 1) / 4) for i in range(5)})
    place = {name: i for i, name in enumerate(chosen.names)}
    images: np.ndarray = chosen.pixels[[place[name] for name in effects.samples]].numpy()
    given, right = ([chosen.class_names[int(c)] for c in classes] for classes in (chosen.predicted, chosen.labels))
    names = [f"{name}: {given[place[name]]}, is {right[place[name]]}" for name in effects.samples]
    found.figure(
        "token_maps",
        f"Effect of restoring {options.map_site} at each patch, over the image; the title has the effect at CLS.",
        report.token_maps(effects, images, (side, side), special, layers, names),
        report.token_map_rows(effects, (side, side), special, layers, names),
    )


def _results(folder: RunFolder) -> list[Path]:
    """What a run of any of the commands leaves, a model that it trained first included; what else lies there stays."""
    made = ("config.yaml", "env.json", "model", "data_split.json", "data_split_indices.npz")
    there = [path for name in made if (path := folder.path / name).exists()]
    return [*there, *folder.checkpoints.glob("checkpoint.pt"), *_measured(folder)]


def _measured(folder: RunFolder) -> list[Path]:
    """What a run measured, finished or not."""
    patterns = ("*.safetensors", "*.csv", "figures", "summary.json", "report.html")
    there = [path for pattern in patterns for path in folder.results.glob(pattern)]
    return [*there, *folder.checkpoints.glob("sweep*")]


def _write(options: LocateOptions, command: str, model: Model, folder: RunFolder, found: Findings) -> Path:
    out = folder.results
    for stem, effects in found.effects.items():
        effects.save(out / f"{stem}.safetensors")
    for name, rows in found.tables.items():
        if rows:
            write_csv(out / name, rows, list(dict.fromkeys(column for row in rows for column in row)))
    for stem, (_, figure) in found.figures.items():
        report.save(figure, folder.figures / f"{stem}.png")
    write_csv(out / "refused.csv", [{"sample": name, "why": why} for name, why in found.refused], ("sample", "why"))
    folder.write_env(device=str(model.device), weights=weights_hash(model), seed=options.seed)
    write_json(out / "summary.json", {"command": command, "summary": found.summary, "notes": found.notes})
    inputs = report.LocateInputs(
        title=f"{folder.path.name}: where the decision is made",
        command=command,
        summary=found.summary,
        config=asdict(options),
        env=json.loads(json.dumps(folder.env())),
        figures=list(found.figures.values()),
        tables=[(title, found.tables[name], name) for title, name in found.shown],
        refused=found.refused,
        notes=found.notes,
    )
    page = out / "report.html"
    write_text(page, report.build_locate(inputs))
    return page
