"""What lies beside the weights of a Hugging Face folder: config, tokenizer, processor; the base's go with the merged model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.storage.dtypes import Kind

_ENDINGS = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_OURS = ("merge_report.json", "env.json", "data_split.json", "notes.json")
_LABELS = ("id2label", "label2id", "num_labels")


def copy_beside(base: Checkpoint, folder: Path, kind: Kind | None, head_of: Checkpoint | None) -> list[str]:
    """Copy what the base has beside its weights.

    Args:
        kind: of the merged tensors, which the config then tells; None where it is the base's.
        head_of: the model whose head was taken: the class names are its.

    Returns:
        Sentences that a user must know.
    """
    notes: list[str] = []
    config = dict(base.config)
    if base.folder is not None:
        for path in sorted(base.folder.iterdir()):
            weights = path.name.endswith(".index.json") or path.name.startswith("adapter_")
            if path.is_file() and path.suffix in _ENDINGS and not weights and path.name not in (*_OURS, "config.json"):
                shutil.copyfile(path, folder / path.name)
            if path.suffix == ".py":
                notes.append(f"{path.name} is code that lies beside the base; it was copied, and nothing of it was run")
    if config:
        if kind is not None:
            config["dtype"] = kind.torch_name
            config.pop("torch_dtype", None)
        if head_of is not None:
            config |= {key: head_of.config[key] for key in _LABELS if key in head_of.config}
        (folder / "config.json").write_text(_json(config), encoding="utf-8")
    else:
        notes.append(
            f"{base.name} has no config.json beside its weights, so there is none beside the merged ones: copy the one of the "
            "architecture before the model is loaded"
        )
    return notes


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
