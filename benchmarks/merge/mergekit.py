"""Task arithmetic and TIES on three GPT-2-small-shaped checkpoints: weightsmith beside mergekit and a flat computation.

    pip install -c constraints.txt -e '.[benchmarks]'
    python benchmarks/merge/mergekit.py                         # 3 x 498 MB are made below --work, about 3 GB with the results
    python benchmarks/merge/mergekit.py --layers 1 --vocabulary 500 --rounds 1

Every run is a process of its own, in turn (ours, mergekit, ours, ...), one thread each. CPU seconds and peak memory are what
the kernel says of the process when it ends (wait4), start and imports included; bytes are those of its read and write calls
(/proc/PID/io), which pages of a mapped file are not among: mergekit maps its sources. Afterwards the results are compared
tensor by tensor: task arithmetic with mergekit's, TIES with a flat computation in torch (mergekit trims each tensor by itself).
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
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NAMES = ("base", "one", "two")
WEIGHTS = (0.5, 0.3)
WIDTH = 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-merge")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--methods", nargs="+", choices=["task_arithmetic", "ties"], default=["task_arithmetic", "ties"]
    )
    parser.add_argument(
        "--peers", type=Path, help="a folder that mergekit was installed into with pip install --target"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        {"make": make, "flat": flat_ties}[given.child[0]](given, Path(given.child[1]))
        return
    work = given.work / f"{given.layers}-{given.vocabulary}"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / NAMES[-1] / "config.json").is_file():
        measured(child(given, "make", work), given)
    recipe(work)
    commands = {
        ("weightsmith", "task_arithmetic"): ours(work, "task_arithmetic"),
        ("mergekit", "task_arithmetic"): [
            sys.executable, "-m", "mergekit.scripts.run_yaml", str(work / "task_arithmetic.yml"), str(work / "mergekit"),
        ],
        ("weightsmith in Python", "task_arithmetic"): in_python(work),
        ("weightsmith", "ties"): ours(work, "ties"),
        ("flat", "ties"): child(given, "flat", work),
    }  # fmt: skip
    commands = {key: command for key, command in commands.items() if key[1] in given.methods}
    rows = [
        {"tool": tool, "method": method, "round": turn, **measured(command, given)}
        for turn in range(given.rounds)
        for (tool, method), command in commands.items()
        if cleared(work, tool, method)
    ]
    pairs = {"task_arithmetic": ("ours-task_arithmetic", "mergekit"), "ties": ("ours-ties", "flat")}
    equal = {name: same(work / mine, work / theirs) for name, (mine, theirs) in pairs.items() if name in given.methods}
    for row in rows:
        row["identical_tensors"] = equal[row["method"]][0]
        row["tensors"] = equal[row["method"]][1]
    told(rows)
    from importlib import metadata

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from shared import keep

    if given.peers:
        sys.path.insert(0, str(given.peers))
    keep(rows, given.out, "merge", ("tool", "method", "round"), {"mergekit": metadata.version("mergekit")})


def cleared(work: Path, tool: str, method: str) -> bool:
    """Remove an earlier result, which no tool's time is to hold."""
    places = {
        "weightsmith": f"ours-{method}",
        "weightsmith in Python": "library",
        "mergekit": "mergekit",
        "flat": "flat",
    }
    shutil.rmtree(work / places[tool], ignore_errors=True)
    return True


def ours(work: Path, method: str) -> list[str]:
    """Our command line."""
    models = [str(work / name) for name in NAMES[1:]]
    return [
        sys.executable, "-m", "weightsmith", "merge", "--method", method, "--base", str(work / "base"), "--models", *models,
        "--weights", *map(str, WEIGHTS), "--out", str(work / f"ours-{method}"), "--overwrite",
    ]  # fmt: skip


def in_python(work: Path) -> list[str]:
    """The same merge as a call of the library: without the command line's parser, the page and the card."""
    base, *models = (str(work / name) for name in NAMES)
    given = f"'task_arithmetic', {base!r}, {models!r}, {str(work / 'library')!r}, weights={WEIGHTS!r}"
    call = f"from weightsmith.merge import merge; merge({given})"
    return [sys.executable, "-c", call]


def child(given: argparse.Namespace, what: str, work: Path) -> list[str]:
    """This script once more, as a process of its own."""
    sizes = ["--layers", str(given.layers), "--vocabulary", str(given.vocabulary)]
    return [sys.executable, __file__, *sizes, "--child", what, str(work)]


def measured(command: list[str], given: argparse.Namespace) -> dict[str, float]:
    """Run a command; wall and CPU seconds, peak memory and bytes."""
    paths = [str(given.peers)] if given.peers else []
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its counters are still there
    wall = time.perf_counter() - started
    io = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "user_s": round(usage.ru_utime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
        "read_mb": round(int(io["rchar"]) / 1e6, 1),
        "written_mb": round(int(io["wchar"]) / 1e6, 1),
    }


def recipe(work: Path) -> None:
    """Task arithmetic in mergekit's words."""
    models = [
        {"model": str(work / name), "parameters": {"weight": weight}}
        for name, weight in zip(NAMES[1:], WEIGHTS, strict=True)
    ]
    entries = {
        "merge_method": "task_arithmetic",
        "base_model": str(work / "base"),
        "dtype": "float32",
        "models": models,
    }
    (work / "task_arithmetic.yml").write_text(json.dumps(entries), encoding="utf-8")  # JSON is YAML


def make(given: argparse.Namespace, work: Path) -> None:
    """A random base and two models near it."""
    import torch
    from safetensors.torch import save_file

    shapes = {
        "wte.weight": (given.vocabulary, WIDTH),
        "wpe.weight": (1024, WIDTH),
        "ln_f.weight": (WIDTH,),
        "ln_f.bias": (WIDTH,),
    }
    for layer in range(given.layers):
        for name, shape in {
            "ln_1.weight": (WIDTH,), "ln_1.bias": (WIDTH,), "ln_2.weight": (WIDTH,), "ln_2.bias": (WIDTH,),
            "attn.c_attn.weight": (WIDTH, 3 * WIDTH), "attn.c_attn.bias": (3 * WIDTH,),
            "attn.c_proj.weight": (WIDTH, WIDTH), "attn.c_proj.bias": (WIDTH,),
            "mlp.c_fc.weight": (WIDTH, 4 * WIDTH), "mlp.c_fc.bias": (4 * WIDTH,),
            "mlp.c_proj.weight": (4 * WIDTH, WIDTH), "mlp.c_proj.bias": (WIDTH,),
        }.items():  # fmt: skip
            shapes[f"h.{layer}.{name}"] = shape
    generator = torch.Generator().manual_seed(0)
    base = {f"transformer.{name}": 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": WIDTH, "n_layer": given.layers, "n_head": 12,
        "n_positions": 1024, "vocab_size": given.vocabulary,
    }  # fmt: skip
    for name in NAMES:
        tensors = base
        if name != "base":
            tensors = {
                key: tensor + 0.002 * torch.randn(tensor.shape, generator=generator) for key, tensor in base.items()
            }
        (work / name).mkdir(exist_ok=True)
        save_file(tensors, work / name / "model.safetensors", metadata={"format": "pt"})
        (work / name / "config.json").write_text(json.dumps(config), encoding="utf-8")


def flat_ties(given: argparse.Namespace, work: Path) -> None:
    """TIES with all changes in memory and a sort of each task's magnitudes."""
    import torch
    from safetensors.torch import load_file, save_file

    base, *models = (load_file(work / name / "model.safetensors") for name in NAMES)
    tasks = []
    for model in models:
        change = torch.cat([(model[name] - base[name]).reshape(-1) for name in base])
        limit = change.abs().sort(descending=True).values[max(1, int(0.2 * len(change))) - 1]
        tasks.append(torch.where(change.abs() >= limit, change, torch.zeros(())))
    weighted = torch.stack([weight * task for weight, task in zip(WEIGHTS, tasks, strict=True)])
    sign = weighted.sum(0).sign()
    agrees = (weighted.sign() == sign) & (sign != 0)
    share = (agrees * torch.tensor(WEIGHTS)[:, None]).sum(0)
    merged = torch.where(share > 0, (weighted * agrees).sum(0) / share.clamp(min=1e-30), torch.zeros(()))
    parts = merged.split([tensor.numel() for tensor in base.values()])
    out = {name: base[name] + part.reshape(base[name].shape) for name, part in zip(base, parts, strict=True)}
    (work / "flat").mkdir(exist_ok=True)
    save_file(out, work / "flat" / "model.safetensors")


def same(mine: Path, theirs: Path) -> tuple[int, int]:
    """How many tensors are equal bit by bit, and how many there are."""
    from weightsmith.merge import Checkpoint

    with Checkpoint.open(mine) as one, Checkpoint.open(theirs) as other:
        names = set(one.names) | set(other.names)
        equal = [
            n
            for n in names
            if n in one and n in other and one.kind(n) == other.kind(n) and one.digest(n) == other.digest(n)
        ]
        return len(equal), len(names)


def told(rows: list[dict[str, Any]]) -> None:
    """The table: medians over the rounds, peaks as the largest."""
    from statistics import median

    print(f"{'':28}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}{'read MB':>9}{'wrote MB':>9}  identical")
    for tool, method in dict.fromkeys((row["tool"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["tool"], row["method"]) == (tool, method)]
        middle = {key: median(row[key] for row in mine) for key in ("wall_s", "cpu_s", "read_mb", "written_mb")}
        print(
            f"{method + ' ' + tool:28}{middle['wall_s']:8.2f}{middle['cpu_s']:8.2f}{max(row['peak_mb'] for row in mine):9.1f}"
            f"{middle['read_mb']:9.1f}{middle['written_mb']:9.1f}  {mine[0]['identical_tensors']} of {mine[0]['tensors']}"
        )


if __name__ == "__main__":
    main()
