"""A thousand edits of the fact world, ten at a time, with every editor, with and without replay.

    python benchmarks/edit/stream.py --model runs/facts

At each milestone: efficacy, paraphrase and neighbourhood success of all edits so far, efficacy of the first hundred,
perplexity of text kept aside, and CPU seconds a batch since the milestone before. That text says facts that are never
edited, in the wordings kept aside from training; text about edited facts would have to become less likely. Neighbours
about facts that are edited themselves are left out for the same reason. Prompts by which an edit is judged are never
preserved.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

import weightsmith as ws
from weightsmith.data.texts import TextSet
from weightsmith.evaluate import answer, perplexity
from weightsmith.evaluate.knowledge import KnowledgeScores
from weightsmith.files import read_csv, write_csv, write_json
from weightsmith.run.facts import fact_model
from weightsmith.run.folder import environment
from weightsmith.run.language import Kept
from weightsmith.stream import ReplayOptions, Stream

EDITORS: dict[str, Callable[[], ws.edit.Editor]] = {
    "alphaedit": lambda: ws.edit.AlphaEdit(),
    "alphaedit, layers 2 3": lambda: ws.edit.AlphaEdit(layers=(2, 3)),
    "alphaedit, layers 1 2 3": lambda: ws.edit.AlphaEdit(layers=(1, 2, 3)),
    "memit, layers 1 2 3": lambda: ws.edit.MEMIT(layers=(1, 2, 3)),
    "alphaedit, margin 3": lambda: ws.edit.AlphaEdit(margin=3.0),
    "alphaedit, text": lambda: ws.edit.AlphaEdit(prompt_weight=0.2),
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
                row |= {"cpu_seconds_a_batch": spent / batches}
                rows.append({key: round(v, 5) if isinstance(v, float) else v for key, v in row.items()})
                print(rows[-1], flush=True)
                spent, batches = 0.0, 0
            stream.close()
            keep(rows, given.out / "stream.csv")
    write_json(given.out / "machine.json", environment())
    show(rows)


def keep(rows: list[dict[str, object]], path: Path) -> None:
    """Write the rows; those of an earlier run that this one did not measure stay."""
    measured = {(row["editor"], row["replay"], str(row["seed"])) for row in rows}
    old = list(read_csv(path)) if path.exists() else []
    write_csv(path, [*(row for row in old if (row["editor"], row["replay"], row["seed"]) not in measured), *rows])


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
