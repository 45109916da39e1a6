"""A merge from beginning to end: the gate, the pieces, the shards, the reading back, the report."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from weightsmith import __version__
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import atomic_folder, user_path, write_json
from weightsmith.merge.beside import copy_beside
from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.gate import Plan, check_base_apart, planned, twins
from weightsmith.merge.heads import HeadPolicy
from weightsmith.merge.measured import Measured
from weightsmith.merge.methods import Method, create
from weightsmith.merge.methods.registry import FLAGS, Blend
from weightsmith.merge.pieces import PIECE, is_finite
from weightsmith.merge.readback import check_written, provenance, room_for
from weightsmith.merge.storage.dtypes import BY_TORCH_NAME, Array, Kind
from weightsmith.merge.storage.writer import Shard, Tensor, shard_size, shards, write_header, write_index, write_shard

_log = logging.getLogger(__name__)

REPORT = "merge_report.json"
"""What was merged, and how, in the folder of the merged model."""


@dataclass(frozen=True)
class Merged:
    """A merged model.

    Attributes:
        path: its folder.
        report: what `merge_report.json` holds.
    """

    path: Path
    report: Mapping[str, Any]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of it."""
        return tuple(self.report["notes"])


def merge(
    method: str | Method,
    base: Any,
    models: Sequence[Any],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    head: str = "merge",
    dtype: str | None = None,
    max_shard_size: str | None = None,
    sha256: bool = False,
    overwrite: bool = False,
    notes: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
    beside: Callable[[Path, Mapping[str, Any]], None] | None = None,
) -> Merged:
    """Merge models that were fine-tuned from one base, and write the result as a Hugging Face folder.

    Every source is read a piece at a time and the result is written once; it is read back and compared before the folder
    appears. Arithmetic is in float32, or float64 where a source has that. Integer and boolean tensors are the base's.

    Args:
        method: a name of `weightsmith.merge.methods`, or a method with its hyper-parameters.
        base, models: anything that `Checkpoint.open` takes.
        out: the folder to write.
        weights: one a model; None takes the method's.
        head: "merge", "base", "take:I" or "skip", see `HeadPolicy`.
        dtype: "float32", "float16" or "bfloat16" for the merged tensors; None keeps the base's.
        max_shard_size: "5GB" say; None writes one file.
        sha256: also tell the SHA-256 of every source's weights, as `weightsmith.delta.weights_hash` has it.
        overwrite: replace a folder that an earlier merge wrote.
        notes: sentences that the report is to hold as well.
        more: entries that the report is to hold as well.
        beside: writes what else is to lie in the folder, given that folder and the report, before it appears.

    Raises:
        WeightsmithError: in one sentence: sources that do not fit, NaN, bad options, a folder that exists, a full disk.
    """
    with opened(
        method,
        base,
        models,
        out,
        weights=weights,
        head=head,
        dtype=dtype,
        max_shard_size=max_shard_size,
        sha256=sha256,
        overwrite=overwrite,
        notes=notes,
    ) as (merge, target):
        return merge.written(target, more or {}, beside)


@contextmanager
def opened(
    method: str | Method,
    base: Any,
    models: Sequence[Any],
    out: str | Path,
    *,
    weights: Sequence[float] | None,
    head: str,
    dtype: str | None,
    max_shard_size: str | None,
    sha256: bool,
    overwrite: bool,
    notes: Sequence[str],
) -> Iterator[tuple[Merge, Path]]:
    """The merge that `merge` with these arguments does, and where it goes, while its sources are open. Raises as it does."""
    made = create(method) if isinstance(method, str) else method
    if not models:
        raise WeightsmithError("--models needs at least one model to merge with the base: give its folder")
    counts = made.default_weights(len(models)) if weights is None else tuple(float(weight) for weight in weights)
    if len(counts) != len(models):
        raise WeightsmithError(f"--weights has {len(counts)} numbers for {len(models)} models: give one a model")
    made.check_weights(counts)
    policy = HeadPolicy.parse(head, len(models))
    limit = None if max_shard_size is None else shard_size(max_shard_size)
    kind = _kind(dtype)
    target = user_path(out)
    with ExitStack() as stack:
        first, *others = (stack.enter_context(Checkpoint.open(source)) for source in (base, *models))
        _check_apart(target, (first, *others))
        check_target(target, overwrite)
        check_base_apart(first, others, made.of_base, made.name)
        plan = planned(first, others, counts, policy)
        plan = replace(plan, notes=(*notes, *plan.notes))
        yield Merge(made, plan, policy, kind, limit, sha256), target


class Merge:
    """One merge: what is known before it, and what is found while its pieces go by."""

    def __init__(
        self, method: Method, plan: Plan, head: HeadPolicy, kind: Kind | None, limit: int | None, sha256: bool
    ) -> None:
        old = plan.sources
        self.sources = replace(old, twins=twins(old)) if hasattr(method, "seed") else old
        self.method, self.plan, self.head, self.kind, self.limit, self.sha256 = method, plan, head, kind, limit, sha256
        self.every = (old.base, *old.models)
        self.digests: list[dict[str, str]] = [{} for _ in self.every]
        self.measured = Measured(len(old.models))
        self.notes = list(plan.notes)

    def written(
        self, target: Path, more: Mapping[str, Any], beside: Callable[[Path, Mapping[str, Any]], None] | None
    ) -> Merged:
        """Write the folder, atomically."""
        files = self.files()
        room = room_for(self._known())
        size = sum(tensor.nbytes for shard in files for tensor in shard.tensors)
        with atomic_folder(target) as folder:
            _check_space(folder, size)
            blender = self.method.blender(self.sources)
            digests: dict[str, str] = {}
            for shard in files:
                digests |= write_shard(folder, shard, room, self.pieces(shard.tensors, blender))
            prints = [one.fingerprint(seen) for one, seen in zip(self.every, self.digests, strict=True)]
            for shard in files:
                write_header(folder, shard, provenance(self._known(), prints))
            write_index(folder, files)
            result = check_written(folder, files, digests)
            own, head_of = self.every[0], self.every[1 + self.head.model] if self.head.way == "take" else None
            self.notes += copy_beside(own, folder, self.kind, head_of)
            self.notes += self.measured.notes([model.name for model in self.sources.models])
            report = self._report(prints, result, size, [shard.file for shard in files]) | dict(more)
            write_json(folder / REPORT, report)
            if beside is not None:
                beside(folder, report)
        for note in report["notes"]:
            _log.warning("%s", note)
        return Merged(target, report)

    def files(self) -> list[Shard]:
        """The files that are written, and what goes into each."""
        return shards([self._tensor(name) for name in self.plan.names], self.limit)

    def _tensor(self, name: str) -> Tensor:
        source, place = self.plan.copied.get(name, (0, name))
        kind = self.every[source].kind(place)
        if kind.floating and self.kind is not None:
            kind = self.kind
        return Tensor(name, kind, self.every[source].shape(place))

    def pieces(self, tensors: Sequence[Tensor], blender: Callable[[str], Blend]) -> Iterator[tuple[str, Array]]:
        """The pieces of the merged tensors, in their order."""
        for tensor in tensors:
            if tensor.name in self.plan.copied:
                yield from self._copied(tensor)
                continue
            blend = blender(tensor.name)
            hashes = [xxhash.xxh3_128() for _ in self.every]

            def seen(which: int, bits: Array, hashes: list[Any] = hashes) -> None:
                hashes[which].update(bits.view("u1").data)

            for piece in self.sources.pieces(tensor.name, seen):
                self.measured.see(piece)
                merged = blend(piece)
                stored = tensor.kind.narrowed(merged)
                if not is_finite(tensor.kind.widened(stored) if stored.dtype != merged.dtype else merged):
                    raise WeightsmithError(
                        f"{tensor.name} overflows {tensor.kind.torch_name} when it is merged: give a smaller --lambda, smaller "
                        "--weights, or --dtype float32"
                    )
                self.measured.see_merged(piece, merged, stored, tensor.kind)
                yield tensor.name, stored
            for which, digest in enumerate(hashes):
                place = tensor.name if which == 0 else self.sources.place(which - 1, tensor.name)
                self.digests[which][place] = digest.hexdigest()

    def _copied(self, tensor: Tensor) -> Iterator[tuple[str, Array]]:
        """The pieces of a tensor that is taken as it is from one source; where others have another, that is told."""
        source, place = self.plan.copied[tensor.name]
        checkpoint = self.every[source]
        kind, total = checkpoint.kind(place), int(np.prod(tensor.shape, dtype=np.int64))
        for first in range(0, total, PIECE):
            bits = checkpoint.bits(place, first, np.empty(min(PIECE, total - first), kind.layout))
            if kind.floating and not is_finite(kind.widened(bits)):
                raise WeightsmithError(f"{checkpoint.name} holds NaN or infinity in {place}: give another checkpoint")
            yield tensor.name, bits if kind is tensor.kind else tensor.kind.narrowed(kind.widened(bits))
        if not kind.floating:
            mine = self.digests[0].setdefault(place, checkpoint.digest(place))
            for which, model in enumerate(self.sources.models, 1):
                theirs = self.digests[which].setdefault(place, model.digest(place))
                if theirs != mine or model.kind(place) != kind:
                    self.notes.append(
                        f"{model.name} has other numbers in {place}, which are no weights: the base's are kept"
                    )

    def _known(self) -> dict[str, Any]:
        """What is known of the merge before anything is read; goes into the files' metadata."""
        parameters = {FLAGS.get(key, key).lstrip("-"): value for key, value in asdict(self.method).items()}
        return {
            "format": "weightsmith-merge-1",
            "version": __version__,
            "method": self.method.name,
            "parameters": parameters,
            "head": str(self.head),
            "dtype": self.kind.torch_name if self.kind else "base",
            "base": {"name": self.sources.base.name},
            "architectures": list(self.sources.base.config.get("architectures") or ()),
            "models": [
                {"name": model.name, "weight": weight}
                for model, weight in zip(self.sources.models, self.sources.weights, strict=True)
            ],
        }

    def _report(self, prints: Sequence[str], result: str, size: int, files: Sequence[str]) -> dict[str, Any]:
        """What `merge_report.json` holds."""
        known = self._known()
        entries = [known["base"], *known["models"]]
        for entry, one, mark in zip(entries, self.every, prints, strict=True):
            entry |= {"fingerprint": mark, "tensors": len(one.names), "bytes": one.nbytes}
            if self.sha256:
                entry["sha256"] = one.sha256()
        for entry, ratio in zip(known["models"], self.measured.ratios(), strict=True):
            entry["change_over_base"] = round(ratio, 6) if np.isfinite(ratio) else None
        copied = sorted(self.plan.copied)
        return known | {
            "output": {"fingerprint": result, "tensors": len(self.plan.names), "bytes": size, "files": list(files)},
            "merged_tensors": len(self.sources.names),
            "copied_tensors": copied,
            "left_out": list(self.plan.left_out),
            "lost_to_rounding": round(self.measured.lost(), 6),
            "notes": list(dict.fromkeys(self.notes)),
        }


def _kind(dtype: str | None) -> Kind | None:
    if dtype is None:
        return None
    known = ("float32", "float16", "bfloat16")
    if dtype not in known:
        raise WeightsmithError(
            f"--dtype {dtype} is not known, leave it out for the base's: {did_you_mean(dtype, known)}"
        )
    return BY_TORCH_NAME[dtype]


def check_target(out: str | Path, overwrite: bool) -> None:
    """Raise `WeightsmithError` where something is that the user did not ask to replace."""
    target = user_path(out)
    if target.suffix == ".safetensors":
        raise WeightsmithError(f"--out {target} names a file: give the folder in which model.safetensors is to be")
    if target.exists() and not target.is_dir():
        raise WeightsmithError(f"--out {target} is a file: give a folder that does not exist yet")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise WeightsmithError(f"--out {target} exists: give --overwrite to replace it, or another folder")
        if not (target / REPORT).is_file():
            raise WeightsmithError(f"--out {target} holds something else than a merged model, which --overwrite would delete: "
                                   "give another folder")  # fmt: skip


def _check_apart(target: Path, sources: Sequence[Checkpoint]) -> None:
    """Raise `WeightsmithError` where the folder holds what is to be merged."""
    inside = [path for one in sources for path in one.files() if target.resolve() in path.resolve().parents]
    if inside:
        raise WeightsmithError(f"--out {target} holds {inside[0].name}, which is to be merged: give another folder")


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise WeightsmithError(
            f"the disk that holds {folder.parent} is full: the merged model takes {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are "
            "free, so free some space or give --out on another disk; nothing was written"
        )
