"""Finished pieces of a sweep, in memory and on disk, so that one that was killed goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.measure.kept import keep_tensors, kept_tensors

_log = logging.getLogger(__name__)
_FORMAT = "weightsmith-sweep-2"


@dataclass(frozen=True, eq=False)
class Piece:
    """What some cases gave: the tensors of a `Sweep` for them, refused ones included, and the work it took."""

    tensors: dict[str, Tensor]


def together(pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """The tensors of several pieces, in their order; those of the ends have their cases along the second axis."""
    return {
        name: torch.cat([piece.tensors[name] for piece in pieces], 1 if name.startswith("ends.") else 0)
        for name in pieces[0].tensors
    }


@dataclass(frozen=True)
class Store:
    """Finished pieces of a sweep on disk."""

    folder: Path
    fingerprint: str

    def path(self, which: Sequence[int]) -> Path:
        return self.folder / f"cases-{which[0]:06d}-{which[-1] + 1:06d}.safetensors"

    def load(self, which: Sequence[int]) -> Piece | None:
        """A finished piece, None where there is none, or one that is damaged, which the log tells.

        Raises:
            WeightsmithError: it belongs to another sweep.
        """
        path = self.path(which)
        if not path.exists():
            return None
        try:
            header, tensors = kept_tensors(path, _FORMAT)
        except WeightsmithError as error:
            _log.warning("finished cases are measured again: %s", error)
            return None
        if header["fingerprint"] != self.fingerprint:
            raise WeightsmithError(
                f"{self.folder} holds cases of another sweep (other model, data, sites or options): give another folder, or "
                "remove it"
            )
        return Piece(tensors)

    def save(self, which: Sequence[int], piece: Piece) -> None:
        header = {"format": _FORMAT, "fingerprint": self.fingerprint}
        keep_tensors(self.path(which), piece.tensors, header, wanted=True)
