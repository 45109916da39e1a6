"""What statistics of keys cost beside the bare forward passes, and after how many tokens they have converged.

    python benchmarks/edit/key_statistics.py cost                                         # about 5 minutes of one core
    python benchmarks/edit/key_statistics.py convergence --model FOLDER --text FILE       # a trained model, a UTF-8 text

Cost: MLP keys of three middle layers at all tokens, on GPT-2 small's and ViT-B/16's shape with random weights, in CPU
seconds of one thread; everything counts: hashing weights and samples, the passes, the sums, the files. Beside it stand the
bare passes of the whole network, timed twice as their own control (A/A), and bare passes that end at the last block that
is needed. Runs are interleaved. Convergence: tokens read before the rule stopped, and how far its moment is from the
moment over the whole text.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, ViTConfig, ViTForImageClassification

from weightsmith.data import ImageSet, TextSet
from weightsmith.data.split import from_arrays
from weightsmith.files import read_csv, write_csv, write_json
from weightsmith.measure import Convergence, Moment, key_moment
from weightsmith.models import Model, load
from weightsmith.models.hooks import record_until
from weightsmith.models.store import wrap
from weightsmith.run.folder import environment
from weightsmith.site import Site

RESULTS = Path(__file__).parent / "results"
LAYERS = (5, 6, 7)
BARE_BATCH = {"gpt2": 8, "vit": 8}
"""Samples in a bare pass; larger ones are slower, for the logits of 50,257 words leave every cache."""

WINDOW = 128
TOP = 16


def subject(shape: str, samples: int) -> tuple[Model, ImageSet | TextSet]:
    """A network in the shape, and that many windows of 128 random tokens or random images of 224 pixels."""
    torch.manual_seed(0)
    if shape == "gpt2":
        ids = torch.randint(50257, (samples, WINDOW), generator=torch.Generator().manual_seed(0))
        return load(GPT2LMHeadModel(GPT2Config()).eval()), TextSet.from_ids(ids)
    pixels = np.random.default_rng(0).integers(0, 256, (samples, 224, 224, 3), dtype=np.uint8)
    images = from_arrays(pixels, np.arange(samples) % 2, ("one", "other"), "noise", "train")
    return load(ViTForImageClassification(ViTConfig()).eval()), images


def inputs(model: Model, samples: ImageSet | TextSet, size: int) -> Iterator[Tensor]:
    """What the network reads, in batches."""
    if isinstance(samples, TextSet):
        yield from samples.batches(size)
    else:
        for pixels, _ in samples.batches(size):
            yield model.preprocess(pixels)


@torch.no_grad()
def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of the process."""
    started = time.process_time()
    run()
    return time.process_time() - started


def cost(shape: str, samples: int, rounds: int) -> dict[str, object]:
    """One row: medians over the rounds, and the ratio to the bare passes with its range over rounds."""
    model, data = subject(shape, samples)
    sites = [Site("mlp.key", layer) for layer in LAYERS]

    def bare() -> None:
        for batch in inputs(model, data, BARE_BATCH[shape]):
            model.module(batch)

    def shortened() -> None:
        for batch in inputs(model, data, BARE_BATCH[shape]):
            record_until(model, batch, sites)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            key_moment(model, sites, data, Path(folder))

    runs = {"bare": bare, "statistics": ours, "bare_again": bare, "bare_to_last_site": shortened}
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds):
        for name, run in runs.items():
            seen[name].append(seconds(run))
            print(f"{shape} round {round_}: {name} {seen[name][-1]:.2f} CPU s", flush=True)
    middle = {name: statistics.median(times) for name, times in seen.items()}
    ratios = [one / two for one, two in zip(seen["statistics"], seen["bare"], strict=True)]
    controls = [one / two for one, two in zip(seen["bare_again"], seen["bare"], strict=True)]
    keys = samples * (WINDOW if shape == "gpt2" else model.n_tokens)
    return {
        "shape": shape,
        "layers": " ".join(map(str, LAYERS)),
        "width": 3072,
        "samples": samples,
        "keys_a_site": keys,
        **{f"{name}_cpu_s": round(value, 2) for name, value in middle.items()},
        "times_bare": round(middle["statistics"] / middle["bare"], 3),
        "times_bare_low": round(min(ratios), 3),
        "times_bare_high": round(max(ratios), 3),
        "times_bare_to_last_site": round(middle["statistics"] / middle["bare_to_last_site"], 3),
        "control": round(statistics.median(controls), 3),
        "control_low": round(min(controls), 3),
        "control_high": round(max(controls), 3),
        "rounds": rounds,
    }


def distance(found: Moment, full: Moment) -> dict[str, object]:
    """How far a moment is from the one over everything."""
    tops = [torch.linalg.eigh(moment.matrix)[1][:, -TOP:] for moment in (found, full)]
    return {
        "trace_off": f"{abs(float(found.matrix.trace() / full.matrix.trace()) - 1):.2e}",
        "frobenius_off": f"{float((found.matrix - full.matrix).norm() / full.matrix.norm()):.2e}",
        "top_overlap": round(float((tops[0].mT @ tops[1]).square().sum()) / TOP, 4),
    }


def random_reader(text: Path) -> Model:
    """A GPT-2 of 4 blocks, 256 wide, with random weights, and a tokenizer of 8,192 tokens made from the text."""
    trained = ByteLevelBPETokenizer()
    trained.train([str(text)], vocab_size=8192, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8192, n_positions=WINDOW, n_embd=256, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return wrap(GPT2LMHeadModel(config).eval(), None, {}, "random weights", tokenizer)


def convergence(folder: Path | None, text: Path, name: str) -> list[dict[str, object]]:
    """One row a block: tokens read, why reading ended, the distance to the whole text's moment."""
    model = random_reader(text) if folder is None else load(folder)
    data = TextSet.read(text, model.tokenize, length=min(WINDOW, model.n_tokens))
    sites = [Site("mlp.key", layer) for layer in range(model.n_layers)]
    with tempfile.TemporaryDirectory() as cache:
        full = key_moment(model, sites, data, Path(cache))
        early = key_moment(model, sites, data, Path(cache), until=Convergence())
    rows: list[dict[str, object]] = []
    for site in sites:
        found = early[site]
        row = {"model": name, "text": text.name, "site": str(site), "width": len(found.matrix)}
        row |= {"tokens": found.count, "tokens_of_the_text": full[site].count}
        row |= {"tokens_a_dimension": round(found.count / len(found.matrix), 1), "stopped": found.stopped}
        rows.append(row | distance(found, full[site]))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "convergence"))
    parser.add_argument("--shapes", nargs="+", default=["gpt2", "vit"], choices=("gpt2", "vit"))
    parser.add_argument("--samples", type=int, default=32, help="windows of text, or images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--model", type=Path, help="a trained language model's folder with its tokenizer; none takes random weights"
    )
    parser.add_argument("--model-name", default="", help="what the table calls it; by default its folder's name")
    parser.add_argument("--text", type=Path, help="a UTF-8 text")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "cost":
        costs: list[dict[str, object]] = []
        for shape in given.shapes:
            costs.append(cost(shape, given.samples, given.rounds))
            write_csv(given.out / "statistics.csv", costs)
    else:
        if given.text is None:
            parser.error("convergence needs --text")
        name = given.model_name or (given.model.name if given.model else "random weights, 4 x 256")
        kept = given.out / "statistics_convergence.csv"
        others = [row for row in (read_csv(kept) if kept.exists() else []) if row["model"] != name]
        write_csv(kept, [*others, *convergence(given.model, given.text, name)])
    write_json(given.out / "machine.json", environment())


if __name__ == "__main__":
    main()
