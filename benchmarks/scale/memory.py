"""Editing a language model larger than memory: what is said of its memory beforehand, and what it takes.

    python benchmarks/scale/memory.py                  # three sizes, some twenty minutes on two cores
    python benchmarks/scale/memory.py --limit 1.5      # the largest of them in a control group of so many GB (as root)

GPT-2's published shapes with random weights (an edit of such a network is of no use, and takes what any takes). Each edit
runs in a process of its own, once with its weights in memory and once with `--device disk`; what is compared with the plan is
the most memory that it held at a time beside what Python and its packages held before. The deltas of both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.shared import held, keep, peak

RESULTS = Path(__file__).parent / "results"
SIZES = {"gpt2": (12, 768), "gpt2-medium": (24, 1024), "gpt2-large": (36, 1280), "gpt2-xl": (48, 1600)}
"""Blocks and width; heads are 64 wide, as published (25 of XL's included), the vocabulary is 50,257."""
LAYERS = 4
"""The last ones, all of which are edited."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["gpt2", "gpt2-medium", "gpt2-large"], choices=list(SIZES))
    parser.add_argument("--edits", type=int, default=1)
    parser.add_argument("--limit", type=float, help="GB of a control group in which the largest is edited from disk")
    parser.add_argument("--devices", nargs="+", default=["disk", "cpu"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-memory")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(told(*given.child)))
        return
    if given.limit:
        limited(given.work, given.sizes[-1], given.edits, given.limit)
        return
    rows: list[dict[str, object]] = []
    for name in given.sizes:
        place = made(given.work, name)
        found: dict[str, dict[str, Any]] = {}
        for device in given.devices:
            words = words_of(place, given.work / "runs", given.edits, device, SIZES[name][0])
            plan, real = (asked(how, words) for how in ("plan", "run"))
            found[device] = real
            rows.append(
                {
                    "model": name,
                    "device": device,
                    "weights_mb": round((place / "model" / "model.safetensors").stat().st_size / 1e6),
                    "said_mb": round(plan["memory"] / 1e6),
                    "took_mb": round(real["memory"] / 1e6),
                    "ratio": round(real["memory"] / plan["memory"], 2),
                    "said_s": round(plan["seconds"], 1),
                    "took_s": round(real["seconds"], 1),
                    "planning_s": round(plan["planning"], 1),
                    "planning_mb": round(plan["planning_memory"] / 1e6),
                    "apart": "",
                }
            )
            if len(found) == 2:
                rows[-1]["apart"] = f"{apart(*(Path(one['delta']) for one in found.values())):.1e}"
            print(rows[-1], flush=True)
    keep(rows, given.out, "memory", keys=("model", "device"))


def words_of(place: Path, runs: Path, edits: int, device: str, blocks: int) -> list[str]:
    """The command that is measured: its last layers, one round, few steps, statistics of little text."""
    layers = [str(layer) for layer in range(blocks - LAYERS, blocks)]
    return [
        "edit", "--model", str(place / "model"), "--data-path", str(place / "facts.json"),
        "--preserve", str(place / "text.txt"),
        "--hparams", str(place / "memit.yaml"), "--edit-method", "memit", "--edit-layers", *layers, "--max-edits", str(edits),
        "--runs-dir", str(runs), "--run-name", f"{place.name}-{device}", "--overwrite", "--device", device,
        "--cache-dir", str(runs / f"cache-{place.name}-{device}"),
    ]  # fmt: skip


def made(work: Path, name: str) -> Path:
    """A network of that shape with a small tokenizer, facts and text; made once."""
    import torch
    import yaml
    from transformers import GPT2Config, GPT2LMHeadModel

    from weightsmith.data.facts import write_facts
    from weightsmith.data.factworld import fact_world
    from weightsmith.train import train_tokenizer

    place = work / name
    if (place / "memit.yaml").exists():
        return place
    world = fact_world(0)
    tokenizer = train_tokenizer(world.texts(), 2000)
    blocks, width = SIZES[name]
    torch.manual_seed(0)
    module = GPT2LMHeadModel(
        GPT2Config(n_layer=blocks, n_embd=width, n_head=width // 64, bos_token_id=0, eos_token_id=0)
    )
    module.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    write_facts(place / "facts.json", world.requests(16, 0))
    (place / "text.txt").write_text("\n".join(world.texts()[:40]), encoding="utf-8")
    quick = {"method": "memit", "rounds": 1, "steps": 5, "prefix_lengths": [[4, 1]]}
    (place / "memit.yaml").write_text(yaml.safe_dump(quick), encoding="utf-8")
    return place


def asked(how: str, words: list[str]) -> dict[str, Any]:
    """What a process of its own plans or does."""
    command = [sys.executable, __file__, "--child", how, *words]
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def told(how: str, *words: str) -> dict[str, Any]:
    """Plan or run the command in this process: what it said, or took."""
    import torch
    import transformers

    from weightsmith.cli.parsing import parse
    from weightsmith.run.forecast import parts

    torch.set_num_threads(1)
    _ = (transformers.GPT2LMHeadModel, transformers.AutoTokenizer, parts)
    torch.linalg.eigh(torch.eye(8, dtype=torch.float64))
    call = parse(list(words))
    function: Any = call.command.planner() if how == "plan" else call.command.function()
    before, started = held(), time.perf_counter()
    found = function(call.options)
    seconds, memory = time.perf_counter() - started, peak() - before
    if how == "plan":
        return {"seconds": found.seconds, "memory": found.memory, "planning": seconds, "planning_memory": memory}
    return {"seconds": seconds, "memory": memory, "delta": str(found.folder / "delta.safetensors")}


def apart(first: Path, second: Path) -> float:
    """Largest relative distance between two deltas' changes."""
    from weightsmith.delta import Delta

    one, other = (Delta.load(path) for path in (first, second))
    assert set(one.changes) == set(other.changes)
    pairs = [(one.changes[name].dense(), other.changes[name].dense()) for name in one.changes]
    return max(float((a - b).norm() / a.norm()) for a, b in pairs)


def limited(work: Path, name: str, edits: int, limit: float) -> None:
    """Edit in a control group that has less memory than the weights take, and say what it held."""
    place = made(work, name)
    group = Path("/sys/fs/cgroup/memory/weightsmith")
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(str(int(limit * 1e9)))
    words = words_of(place, work / "runs", edits, "disk", SIZES[name][0])
    join = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "weightsmith", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=join,
        check=False,
    )
    most = int((group / "memory.max_usage_in_bytes").read_text())
    size = (place / "model" / "model.safetensors").stat().st_size
    print(
        f"{name}: weights of {size / 1e9:.2f} GB edited within {limit:g} GB: status {done.returncode}, "
        f"{time.perf_counter() - started:.0f} s, the group held {most / 1e9:.2f} GB at most"
    )


if __name__ == "__main__":
    main()
