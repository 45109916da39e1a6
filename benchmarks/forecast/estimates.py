"""What `--dry-run` says beside what the command then takes: processor seconds, and memory, of every command that has it.

    python benchmarks/forecast/estimates.py                          # about half an hour on one thread
    python benchmarks/forecast/estimates.py --commands facts edit

Small networks on the embedded digits, a fact world's model, and merges. Plan and run are processes of their own. Seconds are of
the processor, for both, so that a busy machine is no part of the comparison; imports are left out. Memory is by how much the
process grew, at its peak, over what it held when torch, transformers and the command were imported.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULTS = Path(__file__).parent / "results"
VIT = {
    "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3,
    "intermediate_size": 384,
}  # fmt: skip
_ERRORS = "--select all --max-samples 20"
COMMANDS = {
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
"""What a row is called → the command."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-estimates")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], given.child[1:])
        return
    from benchmarks.shared import keep

    places = made(given.work)
    rows: list[dict[str, object]] = []
    for name in given.commands:
        with tempfile.TemporaryDirectory(dir=given.work) as folder:
            words = COMMANDS[name].format(**places, out=Path(folder) / "out").split()
            if words[0] != "merge":
                words += ["--runs-dir", folder, "--run-name", "measured"]
            plan, real = (asked(how, words, given.work / "cache") for how in ("plan", "run"))
        row = {
            "command": name,
            "said_s": round(plan["seconds"], 2),
            "took_s": round(real["seconds"], 2),
            "time_ratio": round(real["seconds"] / plan["seconds"], 2),
            "said_mb": round(plan["memory"] / 1e6, 1),
            "took_mb": round(real["memory"] / 1e6, 1),
            "memory_ratio": round(real["memory"] / plan["memory"], 2),
            "forwards": round(plan["forwards"]),
            "planning_s": round(plan["planning"], 2),
        }
        print(row, flush=True)
        rows.append(row)
        keep(rows, given.out, "estimates", keys=("command",))


def asked(how: str, words: list[str], cache: Path) -> dict[str, float]:
    """What a process of its own says of the command."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", how, *words],
        env=os.environ | {"WEIGHTSMITH_CACHE": str(cache), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise SystemExit(f"weightsmith {' '.join(words)}: {done.stdout}") from error
    return told


def child(how: str, words: list[str]) -> None:
    """Plan or run a command in this process, and write what it said or took as a line of JSON."""
    time.perf_counter = time.process_time  # what the estimates are made from
    import torch
    import transformers

    from weightsmith.cli.parsing import parse
    from weightsmith.data.sources import open_data
    from weightsmith.models import create
    from weightsmith.models.store import presets
    from weightsmith.run.forecast.parts import figures

    _ = (transformers.ViTModel, transformers.GPT2LMHeadModel, presets)
    torch.set_num_threads(1)
    call = parse(words)
    function: Any = call.command.planner() if how == "plan" else call.command.function()
    # What is imported only when it is wanted first: by a network, by the digits, by figures.
    create("digits", [str(i) for i in range(10)], 0, 1)
    open_data("digits").split(0.2, 0)
    figures(1)
    before, started = _held(), time.process_time()
    found = function(call.options)
    spent = time.process_time() - started
    if how == "plan":
        told = {"seconds": found.seconds, "memory": found.memory, "forwards": found.forwards, "planning": spent}
    else:
        told = {"seconds": spent, "memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}
    print(json.dumps(told))


def _held() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def made(work: Path) -> dict[str, Path]:
    """The networks that commands are given, made once: two small trained ViTs, and three large ones."""
    import torch
    from safetensors.torch import save_file

    from weightsmith.cli import main as command

    work.mkdir(parents=True, exist_ok=True)
    places = {name: work / name for name in ("one", "two")} | {"vit": work / "vit.json"}
    places["vit"].write_text(json.dumps(VIT))
    for name in ("one", "two"):
        if not (places[name] / "model" / "config.json").is_file():
            flags = f"--data-path digits --model {places['vit']} --lr 2e-3 --runs-dir {work} --run-name {name}"
            start = [] if name == "one" else ["--model", str(places["one"])]
            for stage in ("data", "train"):
                command(["run", "--stage", stage, *flags.split(), *start, "--epochs", "6", "--overwrite"])
    for number, name in enumerate(("large", "large1", "large2")):
        places[name] = work / f"{name}.safetensors"
        if not places[name].is_file():
            torch.manual_seed(number)
            tensors = {f"block.{i}.weight": torch.randn(2048, 1024) for i in range(10)}
            save_file(tensors, places[name])
    return places


if __name__ == "__main__":
    main()
