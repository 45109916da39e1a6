"""What `--dry-run` says beside what the command then takes: processor seconds, and memory, of every command that has it.

    python benchmarks/forecast/estimates.py                          # about half an hour on one thread
    python benchmarks/forecast/estimates.py --sets "held out" --commands run compress
    python benchmarks/forecast/estimates.py --sizes                  # memory at three sizes of a vision transformer

Small networks on the embedded digits, coloured images made here, a fact world's model, and merges. The estimates were worked on
while the rows of the set "fitted" were looked at, and not changed after those of the set "held out" were. Plan and run are
processes of their own. Seconds are of the processor, for both, so that a busy machine is no part of the comparison; imports are
left out. Memory is by how much the process grew, at its peak, over what it held when torch, transformers and the command were
imported and had once been used: what had been freed till then was given back, and the peak begun anew (/proc/self/clear_refs).
Caches are empty but for the fact world's model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.files import read_csv

os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULTS = Path(__file__).parent / "results"
VIT = {
    "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3,
    "intermediate_size": 384,
}  # fmt: skip
_WIDE = {
    "model_type": "vit", "image_size": 28, "patch_size": 7, "hidden_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 4, "intermediate_size": 384,
}  # fmt: skip
"""Of the held-out rows: wider, deeper, and of colour images that the digits are not."""
_ERRORS = "--select all --max-samples 20"
FITTED = {
    "run": "run --data-path digits --model {vit} --epochs 6 --lr 2e-3 --val-ratio 0.3 --max-samples 10",
    "run alphaedit": "run --data-path digits --model {vit} --epochs 6 --lr 2e-3 --val-ratio 0.3 --max-samples 10 "
    "--edit-method alphaedit --max-edits 10",
    "baseline": "baseline --data-path digits --model {vit} --epochs 8 --lr 1e-3",
    "compress": "compress --checkpoint {one} --data-path digits --method eap --no-study",
    "compress acdc": "compress --checkpoint {one} --data-path digits --method acdc --acdc-thresholds 0.05 --no-study",
    "evaluate": "evaluate --model-paths {one} {two} --data-path digits --rounds 20",
    "artificial": "artificial --epochs 3 --coefficients 0 0.3 0.6 0.9",
    "facts": "facts",
    "edit memit": "edit --edit-method memit --max-edits 10",
    "edit stream": "edit --edit-method memit --max-edits 12 --batch-size 4",
    "compare": "compare --data-path digits --model {one} --methods alphaedit head --batch-sizes 1 4 --seeds 0 1",
    "compare facts": "compare --methods memit rome --batch-sizes 1 4 --seeds 0",
    "locate trace": f"locate trace --model {{one}} --data-path digits {_ERRORS}",
    "locate patch": f"locate patch --model {{one}} --data-path digits --corruption blur {_ERRORS} --min-gap 0",
    "locate attribution": f"locate attribution --model {{one}} --data-path digits --corruption blur {_ERRORS} --min-gap 0",
    "locate astra": f"locate astra --model {{one}} --data-path digits {_ERRORS}",
    "ablate lora": "ablate lora --data-path digits --model {one} --max-edits 4 --ranks 1 4 --seeds 0",
    "ablate replay": "ablate replay --edit-method ftm --max-edits 8 --batch-size 4 --rates 1 --buffers 20 --strategies random "
    "--seeds 0",
    "merge": "merge --method ties --base {large} --models {large1} {large2} --out {out}",
    "merge, searched": "merge --base {one} --models {two} --data-path digits --head base --out {out}",
}  # fmt: skip
"""What a row is called → the command. While the estimates were worked on, these rows were looked at."""
HELD_OUT = {
    "run": "run --data-path {shapes} --model {wide} --epochs 4 --lr 1e-3 --max-samples 6 --num-ablations 5 --edit-method head "
    "--max-edits 20",
    "run alphaedit": "run --data-path {shapes} --checkpoint {red} --max-samples 16 --edit-method alphaedit head --max-edits 4",
    "baseline": "baseline --data-path {shapes} --model {wide} --epochs 5 --batch-size 32 --augment dihedral",
    "compress": "compress --checkpoint {red} --data-path {shapes} --method eap --eap-keep-ratios 0.6 --no-study "
    "--recover-epochs 1 --rounds 8",
    "compress acdc": "compress --checkpoint {red} --data-path {shapes} --method acdc --acdc-thresholds 0.2 --no-study "
    "--rounds 8",
    "evaluate": "evaluate --model-paths {red} {green} --data-path {shapes} --rounds 8",
    "artificial": "artificial --preset informative --epochs 8 --operations add subtract --modes raw --coefficients 0 0.5 1",
    "edit memit": "edit --edit-method rome head --max-edits 5",
    "edit stream": "edit --edit-method alphaedit --max-edits 9 --batch-size 3",
    "compare": "compare --data-path {shapes} --model {red} --methods alphaedit patcher --batch-sizes 2 6 --seeds 1",
    "compare facts": "compare --methods alphaedit emmet --batch-sizes 2 --seeds 3",
    "locate trace": "locate trace --model {red} --data-path {shapes} --select right --max-samples 8 --num-ablations 4 "
    "--map-samples 2 --min-gap 0",
    "locate patch": "locate patch --model {red} --data-path {shapes} --corruption pixel_noise --select right --max-samples 32 "
    "--window 1 --map-samples 1 --min-gap 0",
    "locate attribution": "locate attribution --model {red} --data-path {shapes} --corruption patch_shuffle --select right "
    "--max-samples 24 --method integrated --steps 4 --verify 8 --min-gap 0",
    "locate astra": "locate astra --model {red} --data-path {shapes} --select right --max-samples 10 --masks 32",
    "ablate lora": "ablate lora --data-path {shapes} --model {red} --edit-method finetune --max-edits 6 --ranks 2 "
    "--fit-steps 0 10 --seeds 2",
    "ablate replay": "ablate replay --data-path {shapes} --model {red} --edit-method alphaedit --max-edits 6 --batch-size 3 "
    "--rates 0.5 --buffers 10 30 --strategies recent --seeds 0",
    "merge": "merge --method dare_ties --base {large} --models {large1} {large2} --dtype bfloat16 --out {out}",
    "merge, searched": "merge --base {red} --models {green} --data-path {shapes} --head base --coefficients 0.2 0.6 1 "
    "--out {out}",
}  # fmt: skip
"""The same for settings that nothing was fitted to. They are measured once, when the estimates are done."""
SETS = {"fitted": FITTED, "held out": HELD_OUT}


SIZES = {
    "4 blocks of 96, 8 px": VIT,
    "12 blocks of 192, 64 px": {
        "model_type": "vit", "image_size": 64, "patch_size": 8, "hidden_size": 192, "num_hidden_layers": 12,
        "num_attention_heads": 3, "intermediate_size": 768,
    },
    "12 blocks of 384, 64 px": {
        "model_type": "vit", "image_size": 64, "patch_size": 8, "hidden_size": 384, "num_hidden_layers": 12,
        "num_attention_heads": 6, "intermediate_size": 1536,
    },
}  # fmt: skip
AT_SIZES = {
    "run": "run --data-path {data} --model {net} --epochs 1 --max-samples 4 --num-ablations 4 --edit-method head --max-edits 8",
    "locate trace": "locate trace --model {net} --data-path {data} --select all --max-samples 4 --num-ablations 4 "
    "--map-samples 1 --min-gap 0",
    "compress": "compress --checkpoint {net} --data-path {data} --method eap --eap-keep-ratios 0.7 --analysis-batches 4 "
    "--judging-images 64 --no-study --rounds 2",
}  # fmt: skip
"""Commands whose memory is compared at each size, on 400 coloured images of that size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-estimates")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--commands", nargs="+", default=list(FITTED), choices=list(FITTED))
    parser.add_argument("--sizes", action="store_true", help="memory at three sizes, instead")
    parser.add_argument("--plan-only", action="store_true", help="plan anew, and compare with what was measured before")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(told(given.child[0], given.child[1:])))
        return
    import torch

    from benchmarks.shared import keep

    places = made(given.work)
    torch.set_num_threads(1)
    warmed()
    rows: list[dict[str, object]] = []
    if given.sizes:
        for size, name in product(SIZES, AT_SIZES):
            key = {"network": size, "command": name}
            before = measured(given.out / "sizes.csv", key) if given.plan_only else None
            row = compared(AT_SIZES[name], {**places, **sized(given.work, size)}, given.work, before)
            rows.append({**key, **row})
            print(rows[-1], flush=True)
            keep(rows, given.out, "sizes", keys=("network", "command"))
        return
    for which, name in product(given.sets, given.commands):
        if name not in SETS[which]:
            continue  # `facts` has nothing that could be set otherwise
        key = {"command": name, "set": which}
        before = measured(given.out / "estimates.csv", key) if given.plan_only else None
        rows.append({**key, **compared(SETS[which][name], places, given.work, before)})
        print(rows[-1], flush=True)
        keep(rows, given.out, "estimates", keys=("command", "set"))


def measured(path: Path, key: dict[str, str]) -> dict[str, float]:
    """What a command took when it was measured before. Raises `SystemExit` where it was not."""
    rows = read_csv(path) if path.is_file() else []
    found = next((row for row in rows if all(row[name] == value for name, value in key.items())), None)
    if found is None:
        raise SystemExit(f"{path} has no {key}: measure it first, without --plan-only")
    return {"seconds": float(found["took_s"]), "memory": 1e6 * float(found["took_mb"])}


def compared(
    command: str, places: dict[str, Path], work: Path, real: dict[str, float] | None = None
) -> dict[str, object]:
    """A row: what is said of a command, and what it took; `real` where that is known."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        words = command.format(**places, out=Path(folder) / "out").split()
        if words[0] != "merge":
            words += ["--runs-dir", folder, "--run-name", "measured"]
        cache = Path(folder) / "cache"
        if words[0] != "facts":
            shutil.copytree(work / "fact-model", cache / "fact-model")
        plan = planned(words, cache)
        real = real or ran(words, cache)
    return {
        "said_s": round(plan["seconds"], 2),
        "took_s": round(real["seconds"], 2),
        "time_ratio": round(real["seconds"] / plan["seconds"], 2),
        "said_mb": round(plan["memory"] / 1e6, 1),
        "took_mb": round(real["memory"] / 1e6, 1),
        "memory_ratio": round(real["memory"] / plan["memory"], 2),
        "forwards": round(plan["forwards"]),
        "planning_s": round(plan["planning"], 2),
    }


def planned(words: list[str], cache: Path) -> dict[str, float]:
    """What is said of a command, by a process that is forked from this one: what is imported already is."""
    reads, writes = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            os.environ["WEIGHTSMITH_CACHE"] = str(cache)
            os.write(writes, json.dumps(told("plan", words)).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        raise SystemExit(f"weightsmith {' '.join(words)} --dry-run failed")
    found: dict[str, float] = json.loads(said)
    return found


def ran(words: list[str], cache: Path) -> dict[str, float]:
    """What a command took in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", "run", *words],
        env=os.environ | {"WEIGHTSMITH_CACHE": str(cache), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise SystemExit(f"weightsmith {' '.join(words)}: {done.stdout}") from error
    return found


def told(how: str, words: list[str]) -> dict[str, float]:
    """Plan or run a command in this process: what it said or took."""
    time.perf_counter = time.process_time  # what the estimates are made from
    import torch

    from benchmarks.shared import held, peak
    from weightsmith.cli.parsing import parse

    torch.set_num_threads(1)
    call = parse(words)
    function: Any = call.command.planner() if how == "plan" else call.command.function()
    warmed()
    before, started = held(), time.process_time()
    found = function(call.options)
    spent = time.process_time() - started
    if how == "plan":
        return {"seconds": found.seconds, "memory": found.memory, "forwards": found.forwards, "planning": spent}
    return {"seconds": spent, "memory": peak() - before}


def warmed() -> None:
    """Use what is imported or loaded only when it is wanted first: by a network, its training, the digits, figures."""
    import torch
    import transformers

    from weightsmith.data.sources import open_data
    from weightsmith.models import create
    from weightsmith.run.forecast import parts
    from weightsmith.run.forecast.pace import pace_of

    _ = (transformers.ViTModel, transformers.GPT2LMHeadModel)
    pace_of(create("digits", [str(i) for i in range(10)], 0, 1))
    open_data("digits").split(0.2, 0)
    parts.figures(parts.Drawing(panels=1, overlays=1, texts=1))
    for known in (parts._panel, parts._text, parts._overlays, parts.scoring):
        known.cache_clear()  # a plan measures for itself
    torch.linalg.eigh(torch.eye(8, dtype=torch.float64))


def made(work: Path) -> dict[str, Path]:
    """The data and networks that commands are given, made once: small trained ViTs, three large state dicts, the fact model."""
    import torch
    from safetensors.torch import save_file

    from weightsmith.cli import main as command

    work.mkdir(parents=True, exist_ok=True)
    names = ("one", "two", "red", "green")
    places = {name: work / name for name in names} | {name: work / f"{name}.json" for name in ("vit", "wide")}
    places["vit"].write_text(json.dumps(VIT))
    places["wide"].write_text(json.dumps(_WIDE))
    places["shapes"] = shapes(work / "shapes.npz", 28, 1200)
    for name, start, data, net in (
        ("one", None, "digits", "vit"),
        ("two", "one", "digits", "vit"),
        ("red", None, "shapes", "wide"),
        ("green", "red", "shapes", "wide"),
    ):
        if not (places[name] / "model" / "config.json").is_file():
            given = places.get(data, data)
            flags = f"--data-path {given} --model {places[start or net]} --lr 2e-3 --runs-dir {work} --run-name {name}"
            for stage in ("data", "train"):
                command(["run", "--stage", stage, *flags.split(), "--epochs", "6", "--overwrite"])
    for number, name in enumerate(("large", "large1", "large2")):
        places[name] = work / f"{name}.safetensors"
        if not places[name].is_file():
            torch.manual_seed(number)
            tensors = {f"block.{i}.weight": torch.randn(2048, 1024) for i in range(10)}
            save_file(tensors, places[name])
    if not (work / "fact-model" / "recall.json").is_file():
        from weightsmith.run.knowledge.facts import fact_model

        (work / "fact-model").mkdir(exist_ok=True)
        fact_model(work / "fact-model", resume=True)  # about nine minutes on one thread
    return places


def shapes(path: Path, side: int, count: int) -> Path:
    """Colour images of seven classes, a hue each, that overlap: blobs on noise, a MedMNIST-layout file."""
    if not path.is_file():
        random = np.random.RandomState(0)
        labels = random.randint(0, 7, count)
        rows, columns = np.mgrid[0:side, 0:side] / side
        spots = 0.3 + 0.4 * random.random_sample((2, count, 1, 1))
        blobs = np.exp(-((rows - spots[0]) ** 2 + (columns - spots[1]) ** 2) / 0.03)
        angle = 2 * np.pi * labels / 7 + random.normal(0, 0.35, count)
        hues = 0.5 + 0.4 * np.stack([np.cos(angle + turn) for turn in (0, 2.1, 4.2)], 1)
        images = blobs[..., None] * hues[:, None, None] + random.normal(0.2, 0.12, (count, side, side, 3))
        pixels = np.rint(255 * images.clip(0, 1)).astype(np.uint8)
        np.savez(path, train_images=pixels, train_labels=labels[:, None])
    return path


def sized(work: Path, size: str) -> dict[str, Path]:
    """An untrained network of a size, and images of its side."""
    from weightsmith.models import create, save

    entries = SIZES[size]
    side = int(str(entries["image_size"]))
    place = work / f"sized-{list(SIZES).index(size)}"
    if not (place / "config.json").is_file():
        description = work / "sized.json"
        description.write_text(json.dumps(entries))
        save(create(str(description), [f"class {i}" for i in range(7)], 0, 3), place)
    return {"net": place, "data": shapes(work / f"shapes-{side}.npz", side, 400)}


if __name__ == "__main__":
    main()
