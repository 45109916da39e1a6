"""`weightsmith locate trace` and `patch`: layers, heads and maps, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weightsmith import report
from weightsmith.effects import Effects
from weightsmith.locate import METRICS, Cases, PromptCases, Sweep, grids, sweep
from weightsmith.locate.cases import select
from weightsmith.locate.plan import targets
from weightsmith.models import Model
from weightsmith.report import located
from weightsmith.run.findings import Findings
from weightsmith.run.folder import RunFolder
from weightsmith.run.locate.inputs import Chosen, cases_of
from weightsmith.run.locate.places import add_sweep, goes_on, memory_of, of_flag, places_of
from weightsmith.run.options.locate import PatchOptions, TraceOptions
from weightsmith.site import Site


def swept(options: TraceOptions | PatchOptions, model: Model, folder: RunFolder) -> Findings:
    """Layers, heads and maps, exactly."""
    cases, chosen, told = cases_of(options, model)
    text = isinstance(cases, PromptCases)
    found = Findings()
    plan = places_of(options, model, text)
    # What would be refused only after the first sweep is refused before it.
    targets(model, [], 1, sever=options.sever)
    if options.map_samples and model.family.has_tokens:
        with of_flag(f"--map-site {options.map_site}"):
            targets(model, [Site(options.map_site, 0, tokens=(0,))], 1)
    layers = _sweep(options, model, cases, plan["layers"], folder, "layers")
    refused = {name for name, _ in layers.refused}
    add_sweep(found, options, layers, "layers")
    effects = layers.effects(options.metric)
    found.effects["effects"] = effects
    found.refused = [(name, f"gap of {gap:+.3g}") for name, gap in layers.refused]
    rows = [_sample_row(effects, i) for i in range(len(effects.samples))]
    found.tables["layer_importance.csv"] = rows
    curves = [effects]
    if options.sever:
        severed = _sweep(options, model, cases, plan["layers"], folder, "severed", sever=options.sever)
        found.effects["effects_severed"] = severed.effects(options.metric)
        add_sweep(found, options, severed, "severed")
        caption = (
            f"The same with {' and '.join(options.sever)} held at their corrupted values behind the restored place."
        )
        drawn = [severed.effects(options.metric)]
        found.figure(
            "layer_curves_severed",
            caption,
            report.layer_curves(drawn),
            report.layer_curve_rows(drawn),
            located.layer_curve_blocks(drawn),
        )
    if text and any(site.tokens is not None for site in effects.sites):
        caption = "Mean effect of restoring each layer at the subject's tokens and behind it."
        found.figure(
            "layer_tokens",
            caption,
            report.layer_token_map(effects),
            report.layer_token_rows(effects),
            located.layer_token_blocks(effects),
        )
    caption = "Mean effect of restoring each layer, with 95% bootstrap intervals" + (
        "; a window restores more than any of its layers, so its curve lies higher." if max(options.window) > 1 else "."
    )
    found.figure(
        "layer_curves",
        caption,
        report.layer_curves(curves),
        report.layer_curve_rows(curves),
        located.layer_curve_blocks(curves),
    )
    if plan["heads"]:
        heads = _sweep(options, model, cases, plan["heads"], folder, "heads")
        add_sweep(found, options, heads, "heads")
        found.effects["effects_heads"] = of_heads = heads.effects(options.metric)
        caption = "Mean effect of restoring what each attention head gives, at all tokens."
        found.figure(
            "layer_heads",
            caption,
            report.layer_head_map(of_heads),
            report.layer_head_rows(of_heads),
            located.layer_head_blocks(of_heads),
        )
    clear = [i for i, name in enumerate(cases.names) if name not in refused]
    if options.map_samples > 0:  # evenly over all: data sets are often sorted by class
        places = np.linspace(0, len(clear) - 1, min(options.map_samples, len(clear))).round().astype(int)
        drawn_cases = [clear[i] for i in places]
        _maps(found, options, model, cases, drawn_cases, chosen, folder)
    best = sorted(effects.table(), key=lambda row: row["rank"])[:3]
    found.summary = [
        f"Restored {len(plan['layers'])} places in layers"
        + (f" and {len(plan['heads'])} heads" if plan["heads"] else "")
        + f" in {told}.",
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


def _sweep(
    options: TraceOptions | PatchOptions,
    model: Model,
    cases: Cases,
    sites: Sequence[Site],
    folder: RunFolder,
    name: str,
    sever: Sequence[str] = (),
) -> Sweep:
    place = folder.checkpoints / f"sweep-{name}"
    with goes_on(place):
        return sweep(
            model,
            cases,
            sites,
            metrics=[options.metric, *(metric for metric in METRICS if metric != options.metric)],
            min_gap=options.min_gap,
            sever=sever,
            memory=memory_of(options),
            checkpoint=place,
            title=f"restoring {name}",
        )


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
    options: TraceOptions | PatchOptions,
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
                located.layer_token_blocks(effects, words, prompt.subject),
            )
        return
    assert chosen is not None
    if model.family.cls is None:
        return
    sites = grids.tokens(model, options.map_site, options.token_block)
    effects = _sweep(options, model, select(cases, which), sites, folder, "tokens").effects(options.metric)
    found.effects["effects_tokens"] = effects
    caption = f"Mean effect of restoring {options.map_site} at each token of {len(effects.samples)} images."
    found.figure(
        "layer_tokens",
        caption,
        report.layer_token_map(effects),
        report.layer_token_rows(effects),
        located.layer_token_blocks(effects),
    )
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
        located.token_map_blocks(effects, images, (side, side), special, layers, names),
    )
