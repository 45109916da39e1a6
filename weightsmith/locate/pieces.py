"""Finished pieces of a sweep, in memory and on disk, so that one that was killed goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.files import atomic_path, read_tensors

_FORMAT = "weightsmith-sweep-1"


@dataclass(frozen=True, eq=False)
class Piece:
    """What some cases gave: the tensors of a `Sweep` for them, refused ones included, and the work it took."""

    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Store:
    """Finished pieces of a sweep on disk."""

    folder: Path
    fingerprint: str

    def path(self, which: Sequence[int]) -> Path:
        return self.folder / f"cases-{which[0]:06d}-{which[-1] + 1:06d}.safetensors"

    def load(self, which: Sequence[int]) -> Piece | None:
        """A finished piece, None where there is none.

        Raises:
            WeightsmithError: it belongs to another sweep.
        """
        path = self.path(which)
        if not path.exists():
            return None
        header, tensors = read_tensors(path, _FORMAT)
        if header["fingerprint"] != self.fingerprint:
            raise WeightsmithError(
                f"{self.folder} holds cases of another sweep (other model, data, sites or options): give another folder, or "
                "remove it"
            )
        return Piece(tensors)

    def save(self, which: Sequence[int], piece: Piece) -> None:
        header = {"format": _FORMAT, "fingerprint": self.fingerprint}
        tensors = {name: tensor.contiguous() for name, tensor in piece.tensors.items()}
        with atomic_path(self.path(which)) as temporary:
            save_file(tensors, temporary, metadata={"weightsmith": json.dumps(header)})
