"""Model cards from what lies in a run folder: of `weightsmith run` and of `weightsmith edit`, for the run and for exports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from weightsmith import report
from weightsmith.delta import Delta
from weightsmith.files import read_csv, user_path
from weightsmith.models import Model, registered_by, wrapper_of
from weightsmith.request import TextRequest
from weightsmith.run.folder import RunFolder
from weightsmith.run.job import start_of
from weightsmith.run.options.correct import RunOptions
from weightsmith.run.options.knowledge import EditOptions

Rows = Sequence[Mapping[str, Any]]


def classifier_card(
    folder: RunFolder, options: RunOptions, model: Model, delta: Delta | None = None, rows: Rows = (), licence: str = ""
) -> str:
    """The card of the trained classifier, or with a delta of the edited one.

    Args:
        rows: of `evaluation_report.csv`, of the method that the delta is of.
        licence: None of its own takes that of the model that training began with, where its card names one.
    """
    base = options.checkpoint or start_of(options)
    split, training = (folder.results / name for name in ("data_split_info.csv", "training_metrics.csv"))
    return report.model_card(
        title=f"{_data_name(options)} classifier" + (", corrected" if delta is not None else ""),
        base_model=base,
        data=_data_name(options),
        class_names=model.class_names,
        channels=model.preprocess.channels,
        split_rows=read_csv(split) if split.exists() else [],
        training_rows=read_csv(training) if training.exists() else [],
        edits=[] if delta is None else [report.edit_entry(delta.info, delta.norm(), model.class_names)],
        evaluation_rows=rows,
        provenance=_provenance(folder, delta),
        notes=folder.notes(),
        licence=licence or licence_of(base),
        needs=wrapper_of(model),
        registered_by=registered_by(model),
    )


def facts_card(
    folder: RunFolder,
    options: EditOptions,
    delta: Delta | None,
    requests: Sequence[TextRequest],
    rows: Rows = (),
    licence: str = "",
) -> str:
    """The card of a language model whose facts were edited.

    Args:
        requests: what was asked, for the prompts; rows: of `knowledge_report.csv`, of the method that the delta is of.
    """
    asked = {request.name: request.prompt for request in requests}
    base = "" if options.model == "auto" else options.model
    return report.language_card(
        title=f"{Path(base).name or 'Small GPT-2 of made facts'}" + (", edited" if delta is not None else ""),
        base_model=base,
        data=Path(options.data_path).name,
        edits=[] if delta is None else [report.edit_entry(delta.info, delta.norm(), asked=asked)],
        rows=rows,
        provenance=_provenance(folder, delta),
        licence=licence or licence_of(base),
    )


def licence_of(name: str) -> str:
    """The licence that the card of a model in a folder here names, "" where it names none."""
    place = user_path(name) if name else None
    for card in () if place is None else (place / "README.md", place / "model" / "README.md"):
        try:
            header = yaml.safe_load(card.read_text(encoding="utf-8").split("---")[1])
        except (OSError, ValueError, IndexError, yaml.YAMLError):
            continue
        if isinstance(header, dict) and isinstance(header.get("license"), str):
            return str(header["license"])
    return ""


def _data_name(options: RunOptions) -> str:
    return user_path(options.data_path).resolve().stem if options.data_path else ""


def _provenance(folder: RunFolder, delta: Delta | None) -> dict[str, object]:
    """What `env.json` has: versions, machine, seed, hashes of data and weights; and the base and recipe of an edit."""
    if delta is None:
        return folder.env()
    recipe = {key: delta.info[key] for key in ("options", "scale") if key in delta.info}
    recipe = json.loads(json.dumps(recipe, default=str))  # as the file of the delta has it
    return folder.env() | {"weights before the edit": delta.base, "editor": recipe or "as the method has it by itself"}
