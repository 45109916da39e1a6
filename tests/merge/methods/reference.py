"""Every method the slow and obvious way: all tensors in memory, torch, a formula a function."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def floats(tensors: Tensors) -> list[str]:
    return [name for name in sorted(tensors) if tensors[name].is_floating_point()]


def wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def changes(base: Tensors, models: list[Tensors]) -> list[Tensors]:
    return [{name: wide(model[name]) - wide(base[name]) for name in floats(base)} for model in models]


def finished(base: Tensors, total: Tensors, scale: float) -> Tensors:
    return {
        name: (wide(base[name]) + scale * total[name]).to(base[name].dtype) if name in total else base[name]
        for name in base
    }


def linear(base, models, weights, scale=1.0):
    mean = {n: sum(w * wide(m[n]) for w, m in zip(weights, models, strict=True)) / sum(weights) for n in floats(base)}
    return finished(base, {n: mean[n] - wide(base[n]) for n in mean}, scale)


def task_arithmetic(base, models, weights, scale=1.0):
    tasks = changes(base, models)
    return finished(base, {n: sum(w * t[n] for w, t in zip(weights, tasks, strict=True)) for n in tasks[0]}, scale)


def elected(tasks: list[Tensors], weights: list[float]) -> Tensors:
    total = {}
    for name in tasks[0]:
        stack = torch.stack([w * task[name] for w, task in zip(weights, tasks, strict=True)])
        sign = stack.sum(0).sign()
        agrees = (stack.sign() == sign) & (sign != 0)
        column = torch.tensor(weights, dtype=stack.dtype).abs().reshape(-1, *[1] * (stack.ndim - 1))
        share = (agrees * column).sum(0)
        total[name] = torch.where(share > 0, (stack * agrees).sum(0) / share.clamp(min=1e-30), torch.zeros(()))
    return total


def ties(base, models, weights, scale=1.0, density=0.2):
    tasks = changes(base, models)
    for task in tasks:
        flat = torch.cat([task[name].reshape(-1).abs() for name in task])
        limit = flat.sort(descending=True).values[max(1, int(density * len(flat))) - 1]
        for name in task:
            task[name] = torch.where(task[name].abs() >= limit, task[name], torch.zeros((), dtype=task[name].dtype))
    return finished(base, elected(tasks, weights), scale)


def dropped(tasks: list[Tensors], density: float, seed: int) -> None:
    for place, task in enumerate(tasks):
        for name, tensor in task.items():
            key = hashlib.sha256(f"{seed}:{place}:{name}".encode()).digest()
            draws = np.random.PCG64DXSM(int.from_bytes(key[:16], "little")).random_raw((tensor.numel() + 1) // 2)
            kept = np.frombuffer(draws.tobytes(), "<u4")[: tensor.numel()].astype(np.float64) / 2**32 < density
            task[name] = tensor * torch.from_numpy(kept).reshape(tensor.shape) / density


def dare_linear(base, models, weights, scale=1.0, density=0.5, seed=42):
    tasks = changes(base, models)
    dropped(tasks, density, seed)
    return finished(base, {n: sum(w * t[n] for w, t in zip(weights, tasks, strict=True)) for n in tasks[0]}, scale)


def dare_ties(base, models, weights, scale=1.0, density=0.5, seed=42):
    tasks = changes(base, models)
    dropped(tasks, density, seed)
    return finished(base, elected(tasks, weights), scale)


def slerp(base, models, weights, scale=1.0):
    t, out = scale * weights[0], dict(base)
    for name in floats(base):
        a, b = base[name].double(), models[0][name].double()
        norms = a.norm() * b.norm()
        cosine = float((a * b).sum() / norms) if norms > 0 else 1.0
        if abs(cosine) > 0.9995:
            merged = (1 - t) * a + t * b
        else:
            angle = math.acos(cosine)
            merged = (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
        out[name] = merged.to(base[name].dtype)
    return out


def breadcrumbs(base, models, weights, scale=1.0, density=0.15, gamma=0.01):
    tasks = changes(base, models)
    for task in tasks:
        for name, tensor in task.items():
            n = tensor.numel()
            order = tensor.reshape(-1).abs().sort(descending=True).indices
            top = int(gamma * n)
            mask = torch.zeros(n)
            mask[order[top : top + max(1, min(int(density * n), n - top))]] = 1
            task[name] = tensor * mask.reshape(tensor.shape)
    return finished(base, {n: sum(w * t[n] for w, t in zip(weights, tasks, strict=True)) for n in tasks[0]}, scale)


def model_stock(base, models, weights, scale=1.0):
    tasks, n, total = changes(base, models), len(models), {}
    for name in tasks[0]:
        flat = [task[name].reshape(-1).double() for task in tasks]
        cosines = [
            float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in itertools.combinations(flat, 2)
        ]
        cosine = min(max(sum(cosines) / len(cosines), 0), 1)
        total[name] = n * cosine / (1 + (n - 1) * cosine) * sum(task[name] for task in tasks) / n
    return finished(base, total, scale)


def _polar(matrix: Tensor) -> Tensor:
    """M (MᵀM)^(-1/2), another way to the nearest orthogonal matrix."""
    values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
    return matrix @ vectors @ torch.diag(values.clamp(min=1e-18) ** -0.5) @ vectors.mT


def tsv(base, models, weights, scale=1.0):
    tasks, n, total = changes(base, models), len(models), {}
    for name in tasks[0]:
        if tasks[0][name].ndim != 2 or not tasks[0][name].numel():
            total[name] = sum(w * task[name] for w, task in zip(weights, tasks, strict=True)) / n
            continue
        parts = [torch.linalg.svd(task[name].double(), full_matrices=False) for task in tasks]
        rank = max(1, len(parts[0].S) // n)
        left = _polar(torch.cat([part.U[:, :rank] for part in parts], 1))
        right = _polar(torch.cat([part.Vh[:rank].mT for part in parts], 1))
        values = torch.cat([w * part.S[:rank] for w, part in zip(weights, parts, strict=True)])
        total[name] = (left @ torch.diag(values) @ right.mT).float()
    return finished(base, total, scale)


def iso_c(base, models, weights, scale=1.0):
    tasks, n, total = changes(base, models), len(models), {}
    for name in tasks[0]:
        combined = sum(w * task[name] for w, task in zip(weights, tasks, strict=True))
        if combined.ndim == 2 and combined.numel():
            u, s, vh = torch.linalg.svd(combined.double(), full_matrices=False)
            total[name] = (s.mean() * u @ vh).float()
        else:
            total[name] = combined / n
    return finished(base, total, scale)
