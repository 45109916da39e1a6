"""A thousand edits of the fact world, ten at a time, with every editor, with and without replay.

    python benchmarks/edit/stream.py --model runs/facts

At each milestone: efficacy, paraphrase and neighbourhood success of all edits so far, efficacy of the first hundred,
perplexity of text kept aside, how far the weights have moved, and CPU seconds a batch since the milestone before. That
text says facts that are never edited, in the wordings kept aside from training; text about edited facts would have to
become less likely. Neighbours about facts that are edited themselves are left out for the same reason. Prompts by which
an edit is judged are never preserved.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from rich.console import Console
from rich.table import Table
from torch import Tensor

import weightsmith as ws
from weightsmith.data.texts import TextSet
from weightsmith.evaluate import answer, perplexity
from weightsmith.evaluate.knowledge import KnowledgeScores
from weightsmith.files import atomic_path, read_csv, write_csv, write_json
from weightsmith.report.plots import style
from weightsmith.run.folder import environment
from weightsmith.run.knowledge.facts import fact_model
from weightsmith.run.knowledge.language import Kept
from weightsmith.stream import ReplayOptions, Stream

EDITORS: dict[str, Callable[[], ws.edit.Editor]] = {
    "ftm": lambda: ws.edit.FTM(),
    "ftm, kl 15": lambda: ws.edit.FTM(kl=15.0),
    "alphaedit": lambda: ws.edit.AlphaEdit(),
    "memit": lambda: ws.edit.MEMIT(),
    "emmet": lambda: ws.edit.EMMET(),
    "rome": lambda: ws.edit.ROME(),
    "head, closed form": lambda: ws.edit.HeadEdit(closed_form=True, closed_weight=0.1),
    "finetune": lambda: ws.edit.FineTune(lr=1e-3),
    "lora": lambda: ws.edit.LoRA(lr=3e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/facts"))
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of facts")
    parser.add_argument("--milestones", type=int, nargs="+", default=[10, 100, 300, 600, 1000])
    parser.add_argument("--editors", nargs="+", choices=list(EDITORS), default=list(EDITORS))
    parser.add_argument("--replay", nargs="+", choices=["none", "keys", "requests", "both"], default=["none", "keys"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    model, world = fact_model(given.model, 0, resume=True)
    kept = Kept.of(model, (), world)
    requests = world.requests(given.edits, given.seed)
    preserve = kept.without(requests)
    edited = {request.name for request in requests}
    said = [
        f"{prompt} {fact.object}."
        for fact in world.facts
        if fact.name not in edited
        for prompt in world.prompts(fact, kept_aside=True)
    ]
    aside = TextSet.of(said, model.tokenize, length=model.n_tokens)
    before = perplexity(model, aside.batches(16))
    wordings = {fact.name: {*world.prompts(fact), *world.prompts(fact, kept_aside=True)} for fact in world.facts}
    changed = {prompt for request in requests for prompt in wordings[request.name]}
    judged = [
        dataclasses.replace(r, neighbours=tuple(probe for probe in r.neighbours if probe.prompt not in changed))
        for r in requests
    ]
    unedited = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    rows: list[dict[str, object]] = []
    for name in given.editors:
        for kind in given.replay:
            stream = Stream(
                model, EDITORS[name](), preserve, replay=ReplayOptions(kind=kind), cache_dir=given.model / "cache"
            )
            spent, batches = 0.0, 0
            for first in range(0, given.edits, given.batch):
                started = time.process_time()
                stream.add(requests[first : first + given.batch])
                spent, batches = spent + time.process_time() - started, batches + 1
                done = first + given.batch
                if done not in given.milestones:
                    continue
                scores = KnowledgeScores.of(answer(model, judged[:done], free=False))
                early = KnowledgeScores.of(answer(model, judged[: min(done, 100)], free=False))
                row: dict[str, object] = {"editor": name, "replay": kind, "seed": given.seed, "edits": done}
                for measure, interval in zip(("efficacy", "paraphrase", "neighbourhood"), scores.success, strict=True):
                    row |= {measure: interval.value, f"{measure}_low": interval.low, f"{measure}_high": interval.high}
                row |= {
                    "first_100": early.success.rewrite.value,
                    "perplexity_before": before,
                    "perplexity": perplexity(model, aside.batches(16)),
                }
                row |= {"update_norm": moved(model, unedited), "cpu_seconds_a_batch": spent / batches}
                rows.append({key: round(v, 5) if isinstance(v, float) else v for key, v in row.items()})
                print(rows[-1], flush=True)
                spent, batches = 0.0, 0
            stream.close()
            keep(rows, given.out / "stream.csv")
    write_json(given.out / "machine.json", environment())
    draw(given.out / "stream.csv", given.out / "stream.png", given.seed)
    show(rows)


def moved(model: ws.Model, unedited: dict[str, Tensor]) -> float:
    """Frobenius norm of what the edits have added to the weights."""
    parts = [(weight.detach() - unedited[name]).norm() for name, weight in model.module.named_parameters()]
    return float(torch.stack(parts).norm())


def keep(rows: list[dict[str, object]], path: Path) -> None:
    """Write the rows; those of an earlier run that this one did not measure stay."""
    measured = {(row["editor"], row["replay"], str(row["seed"])) for row in rows}
    old = list(read_csv(path)) if path.exists() else []
    write_csv(path, [*(row for row in old if (row["editor"], row["replay"], row["seed"]) not in measured), *rows])


PANELS = {
    "efficacy": "efficacy, all so far, %",
    "first_100": "efficacy, first hundred, %",
    "paraphrase": "paraphrase, %",
    "neighbourhood": "neighbourhood, %",
    "perplexity": "perplexity, after / before",
    "update_norm": "norm of all changes",
}
STROKES = {"none": (":", "no replay"), "keys": ("-", "keys replayed"), "requests": ("--", "requests replayed")}


def draw(rows: Path, figure: Path, seed: int) -> None:
    """Every measured stream of a seed: a panel a measure, a colour an editor, a stroke a kind of replay."""
    kept = [row for row in read_csv(rows) if row["seed"] == str(seed)]
    streams = list(dict.fromkeys((row["editor"], row["replay"]) for row in kept))
    colours = dict(zip(dict.fromkeys(name for name, _ in streams), colormaps["tab10"].colors, strict=False))
    with style():
        drawn = Figure(figsize=(11, 7), layout="constrained")
        for axes, (column, title) in zip(drawn.subplots(2, 3).flat, PANELS.items(), strict=True):
            for name, kind in streams:
                there = [row for row in kept if (row["editor"], row["replay"]) == (name, kind)]
                unit = {"perplexity": lambda row: 1 / float(row["perplexity_before"]), "update_norm": lambda row: 1.0}
                scale = unit.get(column, lambda row: 100.0)
                values = [float(row[column]) * scale(row) for row in there]
                axes.plot(
                    [int(row["edits"]) for row in there],
                    values,
                    STROKES[kind][0],
                    color=colours[name],
                    marker=".",
                    lw=1.4,
                )
            axes.set_title(title)
            axes.set_xlabel("edits")
            if column in ("perplexity", "update_norm"):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            else:
                axes.set_ylim(0, 102)
        handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
        handles += [Line2D([], [], color="black", linestyle=stroke, label=label) for stroke, label in STROKES.values()]
        drawn.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
        with atomic_path(figure) as temporary:
            drawn.savefig(temporary, format="png", dpi=110)


def show(rows: list[dict[str, object]]) -> None:
    """A table in per cent."""
    table = Table(title="edits one batch after another, %")
    shares = ("efficacy", "paraphrase", "neighbourhood", "first_100")
    for column in ("editor", "replay", "edits", *shares, "perplexity", "cpu s a batch"):
        table.add_column(column.replace("_", " "), justify="left" if column in ("editor", "replay") else "right")
    for row in rows:
        cells = [f"{100 * float(str(row[column])):.1f}" for column in shares]
        change = float(str(row["perplexity"])) / float(str(row["perplexity_before"])) - 1
        seconds = f"{float(str(row['cpu_seconds_a_batch'])):.2f}"
        table.add_row(
            str(row["editor"]), str(row["replay"]), str(row["edits"]), *cells, f"{100 * change:+.1f}", seconds
        )
    Console(width=150).print(table)


main()
