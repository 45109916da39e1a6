"""The gate after a merge: what was written is read again and compared, and says where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsmith.errors import WeightsmithError
from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.storage.writer import Shard

_UNKNOWN = "0" * 64


def provenance(known: Mapping[str, Any], fingerprints: Sequence[str]) -> dict[str, str]:
    """The metadata of every file: what was merged how, and the fingerprints of the base and the models."""
    base = known["base"] | {"fingerprint": fingerprints[0]}
    models = [entry | {"fingerprint": mark} for entry, mark in zip(known["models"], fingerprints[1:], strict=True)]
    return {"format": "pt", "weightsmith": json.dumps({**known, "base": base, "models": models})}


def room_for(known: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as long as `provenance`, while the fingerprints are not known yet."""
    return provenance(known, [_UNKNOWN] * (1 + len(known["models"])))


def check_written(folder: Path, files: Sequence[Shard], digests: Mapping[str, str]) -> str:
    """Read a merged model back and compare it with what was to be written.

    Args:
        digests: XXH3-128 of each tensor's bytes as they were merged.

    Returns:
        Its fingerprint.

    Raises:
        WeightsmithError: a tensor that is not there, or that is not what was merged.
    """
    wanted = {tensor.name: tensor for shard in files for tensor in shard.tensors}
    with Checkpoint.open(folder) as written:
        if set(written.names) != set(wanted):
            lost = sorted(set(wanted) ^ set(written.names))[0]
            raise WeightsmithError(
                f"{lost} was not written as it should be to {folder.parent}: check the disk, and merge again"
            )
        found = {name: written.digest(name) for name in written.names}
        for name, tensor in wanted.items():
            if (written.kind(name), written.shape(name)) != (tensor.kind, tensor.shape) or found[name] != digests[name]:
                raise WeightsmithError(
                    f"{name} cannot be read back from {folder.parent} as it was written: check the disk, and merge again"
                )
        return written.fingerprint(found)
