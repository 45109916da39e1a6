"""`weightsmith locate attribution` and `astra`: gradient screens, and the patches that make a class."""

from __future__ import annotations

from dataclasses import replace

from weightsmith import report
from weightsmith.locate import PromptCases, astra, screened, steering
from weightsmith.models import Model
from weightsmith.report import located
from weightsmith.run.findings import Findings
from weightsmith.run.folder import RunFolder
from weightsmith.run.locate.inputs import cases_of, chosen_images
from weightsmith.run.locate.places import add_sweep, goes_on, memory_of, places_of
from weightsmith.run.options.locate import AttributionOptions, PatchAttributionOptions


def screen_findings(options: AttributionOptions, model: Model, folder: RunFolder) -> Findings:
    """Every place by gradients, the best exactly, and what the screen missed."""
    cases, _, told = cases_of(options, model)
    plan = places_of(options, model, isinstance(cases, PromptCases))
    sites = [*plan["layers"], *plan["heads"]]
    with goes_on(folder.checkpoints / "sweep"):
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
            memory=memory_of(options),
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
    add_sweep(found, options, result.verified, "verified")
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
        blocks = located.screen_blocks(audited, audit, result.recall[top], top)
        found.figure("screen", caption, figure, report.screen_rows(audited, audit, top), blocks)
    found.summary = [
        f"Screened {len(sites)} places by {options.method} in {told}, and measured the best {len(verified.sites)} exactly"
        + (f"; {len(found.refused)} inputs were refused." if found.refused else "."),
        f"On {len(audit.samples)} inputs where every place was measured exactly, the rank correlation of screen and truth is "
        f"{result.rank_correlation:.2f}"
        + "".join(f"; of the true top {top} the screen found {share:.0%}" for top, share in result.recall.items())
        + ".",
    ]
    found.terminal.append(report.site_table(verified))
    return found


def attribute_findings(options: PatchAttributionOptions, model: Model, folder: RunFolder) -> Findings:
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
        found.figure(
            "patch_weights",
            caption,
            figure,
            report.patch_weight_rows(weights, (side, side), tops, names),
            located.patch_weight_blocks(chosen.pixels[shown].numpy(), weights, (side, side), tops, names),
        )
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
