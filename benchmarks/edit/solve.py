"""The thin solve beside the d×d systems of the published code: seconds and peak memory, once a layer and once a batch.

    python benchmarks/edit/solve.py                # about five minutes on one thread; at most 6 GB
    python benchmarks/edit/solve.py --width 3072 --editor memit      # the other rows stay as they were measured

Each variant runs in a process of its own, one at a time. Its second moment C has a known spectrum (six powers of ten)
and dense eigenvectors, so that the null space is at hand where an eigendecomposition would take longer than all the rest;
the eigendecomposition itself is timed at the smaller width only. What is timed: once a layer, the factorisation that is
kept (C and the null space's basis are given); once a batch, from keys and residuals to the factors of the update. The
control is the median of every other round over that of the rest, the same code twice (A/A). Peak memory is the largest
resident memory less that with the inputs in place. `difference` is that of the update on random keys, relative, to the
plain LU form of the same editor.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsmith.edit.metric import InverseMoment, NullSpace
from weightsmith.edit.solver import solve
from weightsmith.files import read_csv, write_csv, write_json
from weightsmith.run.folder import environment

RESULTS = Path(__file__).parent / "results"
EDITS, MEMIT_WEIGHT, L2, FREE = 100, 15000.0, 10.0, 0.9
OUTPUTS = {3072: 768, 14336: 4096}
REFERENCES = ("memit", "alphaedit")


@dataclass(frozen=True)
class Problem:
    """C = Q Λ Q with Q = I − 2 U Uᵀ, a reflection: orthonormal, dense and cheap. Keys are drawn with moment C."""

    axes: Tensor
    values: Tensor
    keys: Tensor
    residuals: Tensor
    probes: Tensor

    @classmethod
    def drawn(cls, width: int) -> Problem:
        torch.manual_seed(0)
        axes, _ = torch.linalg.qr(torch.randn(width, 32, dtype=torch.float64))
        values = torch.logspace(-6, 0, width, dtype=torch.float64)
        keys, probes = (cls._turn(axes, values.sqrt()[:, None] * torch.randn(width, n).double()) for n in (EDITS, 16))
        return cls(axes, values, keys, torch.randn(OUTPUTS.get(width, width // 4), EDITS).double(), probes)

    @staticmethod
    def _turn(axes: Tensor, x: Tensor) -> Tensor:
        return x - 2 * axes @ (axes.mT @ x)

    @property
    def free(self) -> int:
        return round(FREE * len(self.values))

    def conjugated(self, values: Tensor) -> Tensor:
        """Q diag(values) Q (d, d), with no second matrix of that size on the way."""
        scaled = values[:, None] * self.axes
        left = torch.cat([-2 * self.axes, 4 * self.axes @ (self.axes.mT @ scaled) - 2 * scaled], 1)
        matrix = left @ torch.cat([scaled, self.axes], 1).mT
        matrix.diagonal().add_(values)
        return matrix

    def eigenvectors(self, columns: slice) -> Tensor:
        """(d, n) columns of Q."""
        vectors = -2 * self.axes @ self.axes[columns].mT
        start = columns.start or 0
        vectors[start : start + vectors.shape[1]].diagonal().add_(1)
        return vectors

    @property
    def projector(self) -> Tensor:
        return self.conjugated((torch.arange(len(self.values)) < self.free).double())


Batch = Callable[[], tuple[Tensor, Tensor]]
"""One batch: left (o, r) and right (r, d) of the update."""


def thin(problem: Problem, metric: Any, ridge: float) -> Batch:
    def batch() -> tuple[Tensor, Tensor]:
        solution = solve(problem.keys, problem.residuals, metric, absolute_ridge=ridge)
        return solution.left, solution.right

    return batch


@dataclass(frozen=True)
class CopyingInverse:
    """The metric as `cholesky_solve` applies it."""

    factor: Tensor

    def times(self, keys: Tensor) -> Tensor:
        return torch.cholesky_solve(keys, self.factor) / MEMIT_WEIGHT


def prepared(name: str, problem: Problem) -> tuple[Callable[[], Any], Callable[[Any], Batch]]:
    """What is done once a layer, and from its result what is done once a batch; inputs are in place on return."""
    k, r = problem.keys, problem.residuals
    if name.startswith("memit"):
        c = problem.conjugated(problem.values)

        def system() -> Tensor:
            return (k @ k.mT).add_(c, alpha=MEMIT_WEIGHT)

        return {
            "memit": (lambda: None, lambda _: lambda: (r, torch.linalg.solve(system(), k).mT)),
            "memit, Cholesky": (
                lambda: None,
                lambda _: lambda: (r, torch.cholesky_solve(k, torch.linalg.cholesky(system())).mT),
            ),
            "memit, thin": (
                lambda: InverseMoment.of(c, MEMIT_WEIGHT),
                lambda metric: thin(problem, metric, 1.0),
            ),
            "memit, thin, cholesky_solve": (
                lambda: CopyingInverse(torch.linalg.cholesky(c)),
                lambda metric: thin(problem, metric, 1.0),
            ),
        }[name]
    if name == "alphaedit, eigendecomposition":
        c = problem.conjugated(problem.values)
        return lambda: NullSpace.of(c, fraction=FREE), lambda metric: thin(problem, metric, L2)
    if name.startswith("alphaedit, thin"):
        inside = name.endswith("basis")
        basis = problem.eigenvectors(slice(0, problem.free) if inside else slice(problem.free, len(problem.values)))
        space = NullSpace(basis, torch.ones(basis.shape[1], dtype=torch.float64), 0.0, complement=not inside)
        return lambda: space, lambda metric: thin(problem, metric, L2)
    p = problem.projector

    def shifted(matrix: Tensor) -> Tensor:
        matrix.diagonal().add_(L2)
        return matrix

    def published() -> tuple[Tensor, Tensor]:
        update = torch.linalg.solve(shifted(p @ (k @ k.mT)), (p @ k) @ r.mT)  # (d, o)
        return update.mT, torch.eye(len(k), dtype=torch.float64)

    def frugal() -> tuple[Tensor, Tensor]:
        inside = p @ k
        return r, torch.linalg.solve(shifted(inside @ k.mT), inside).mT

    return lambda: None, lambda _: published if name == "alphaedit, as published" else frugal


def measure(name: str, width: int, rounds: int, out: Path) -> None:
    """Time one variant in this process; a row to `out`.csv, the update on the probes to `out`.pt."""
    problem = Problem.drawn(width)
    once, then = prepared(name, problem)
    before = _peak()
    clocks = [(time.process_time(), time.perf_counter())]
    batch = then(once())
    clocks.append((time.process_time(), time.perf_counter()))
    for _ in range(rounds):
        left, right = batch()
        clocks.append((time.process_time(), time.perf_counter()))
    peak = _peak()
    spent = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(clocks)]
    cpu = [seconds for seconds, _ in spent[1:]]
    control = statistics.median(cpu[1::2]) / statistics.median(cpu[::2]) if rounds > 2 else None
    row = {
        "width": width,
        "outputs": len(problem.residuals),
        "edits": EDITS,
        "variant": name,
        "layer_cpu_s": f"{spent[0][0]:.3f}",
        "layer_wall_s": f"{spent[0][1]:.3f}",
        "batch_cpu_s_median": f"{statistics.median(cpu):.3f}",
        "batch_cpu_s_min": f"{min(cpu):.3f}",
        "batch_cpu_s_max": f"{max(cpu):.3f}",
        "batch_wall_s_median": f"{statistics.median(wall for _, wall in spent[1:]):.3f}",
        "rounds": rounds,
        "control": "" if control is None else f"{control:.2f}",
        "peak_mb_above_inputs": f"{peak - before:.0f}",
        "inputs_mb": f"{before:.0f}",
    }
    write_csv(out.with_suffix(".csv"), [row])
    torch.save(left @ (right @ problem.probes), out.with_suffix(".pt"))


def _peak() -> float:
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plan(width: int) -> dict[str, int]:
    """Rounds of each variant; the reference of an editor comes first."""
    if width <= 4096:
        return {
            "memit": 6, "memit, Cholesky": 6, "memit, thin, cholesky_solve": 20, "memit, thin": 20,
            "alphaedit": 6, "alphaedit, as published": 4, "alphaedit, thin, basis": 20,
            "alphaedit, thin": 20, "alphaedit, eigendecomposition": 4,
        }  # fmt: skip
    return {
        "memit": 1, "memit, thin": 6, "alphaedit": 1, "alphaedit, thin, basis": 6, "alphaedit, thin": 6,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=list(OUTPUTS))
    parser.add_argument("--editor", choices=REFERENCES, nargs="+", default=list(REFERENCES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=3, metavar=("VARIANT", "ROUNDS", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        measure(given.child[0], given.width[0], int(given.child[1]), Path(given.child[2]))
        return
    table = given.out / "solve.csv"
    rows = {(row["width"], row["variant"]): row for row in (read_csv(table) if table.exists() else [])}
    with tempfile.TemporaryDirectory() as folder:
        for width in given.width:
            updates: dict[str, Tensor] = {}
            for name, rounds in plan(width).items():
                if name.partition(",")[0] not in given.editor:
                    continue
                out = Path(folder) / "child"
                child = ["--width", str(width), "--child", name, str(rounds), str(out)]
                subprocess.run([sys.executable, __file__, *child], check=True)
                row = read_csv(out.with_suffix(".csv"))[0]
                updates[name] = torch.load(out.with_suffix(".pt"), weights_only=True)
                reference = updates[name.partition(",")[0]]
                row["difference"] = f"{float((updates[name] - reference).norm() / reference.norm()):.1e}"
                rows[row["width"], row["variant"]] = row
                print(row, flush=True)
                write_csv(table, list(rows.values()))
    write_json(given.out / "machine.json", environment())


if __name__ == "__main__":
    main()
