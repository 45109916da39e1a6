"""The model card: what a folder with an edited model says about itself to somebody who finds it without its run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from weightsmith.measure import Interval
from weightsmith.report.headline import Block, Measure, blocks
from weightsmith.report.plots import best_epoch
from weightsmith.report.words import Row, bounds, flat, number, part_title, percent

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MARKUP = re.compile(r"([\\`*{}\[\]<>|#$~]|(?<!\w)_|_(?!\w))")
_LOADING = """\
```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

folder = "."  # where this card lies
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModelForImageClassification.from_pretrained(folder).eval()

image = Image.open("image.png").convert("{mode}")
label = model(**processor(image, return_tensors="pt")).logits.argmax(-1).item()
name = model.config.id2label[label]
```"""
_LOADING_FEATURES = """\
```python
import torch
from transformers import AutoModelForImageClassification

folder = "."  # where this card lies
model = AutoModelForImageClassification.from_pretrained(folder).eval()

rows = torch.zeros(4, {features})  # the features of four rows, as they are in the table
labels = model(rows).logits.argmax(-1).tolist()
```"""
_LIMITS_OF_EDITS = (
    "The corrections were chosen from the errors of this model on this data; on data of another kind they may help less, "
    "or harm.",
    "An edit can change answers on images that nobody asked about. The table shows how often that happened on images "
    "that were held out, not that it never happens.",
    "Values that rest on few images have wide intervals: read the interval before the value.",
)
_LIMITS = (
    "A model that is right on average can still be poor on a rare class; look at the scores by class in the report of "
    "the run.",
    "This is research software's output. It is not validated for clinical or other safety-critical decisions.",
)


def model_card(
    *,
    title: str,
    base_model: str = "",
    architecture: str = "",
    data: str = "",
    class_names: Sequence[str] = (),
    channels: int = 3,
    features: int = 0,
    split_rows: Sequence[Row] = (),
    training_rows: Sequence[Row] = (),
    edits: Sequence[Mapping[str, Any]] = (),
    evaluation_rows: Sequence[Row] = (),
    provenance: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
    licence: str = "",
    registered_by: str = "",
) -> str:
    """A Hugging Face model card in Markdown.

    Args:
        title: heading.
        base_model: what the training began with; a hub name also goes into the header.
        architecture: a few words, "ViT-B/16, 86 M parameters".
        data: name of the data set.
        channels: of the images; decides how the example opens one.
        features: of the rows, of a network that reads rows of numbers in place of images.
        split_rows: the rows of `data_split_info.csv`, for the size of each part.
        training_rows: the rows of `training_metrics.csv`; none when the model came trained.
        edits: a mapping each with method, layers (none for the classifier), corrections (how many were asked for) and,
            where known, reached (how many of them the edited model gets right).
        evaluation_rows: the rows of `evaluation_report.csv`.
        provenance: hashes, versions, seed; name → value, nested or not.
        notes: sentences that a user must know.
        licence: identifier of the hub's list, "apache-2.0"; left out when empty.
        registered_by: the module that must be imported before transformers knows the architecture,
            "weightsmith.models.mlp"; empty for an architecture of transformers itself.
    """
    sections = [
        _header(base_model, licence, bool(edits), features),
        f"# {_plain(title)}",
        _what(base_model, architecture, class_names, bool(edits), features),
        _data(data, class_names, split_rows, "Rows" if features else "Images"),
        _training(training_rows),
        _edits(edits),
        _metrics(blocks(evaluation_rows)),
        _how_to_load(channels, features, registered_by),
        _bullets("Notes", notes),
        _bullets("Limits", (_LIMITS_OF_EDITS if edits else ()) + _LIMITS),
        _provenance(provenance or {}),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(base_model: str, licence: str, edited: bool, features: int) -> str:
    entries: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "tabular-classification" if features else "image-classification",
        "tags": ["weightsmith", "model-editing"] if edited else ["weightsmith"],
    }
    if licence:
        entries["license"] = licence
    if _HUB_NAME.fullmatch(base_model):  # the hub refuses a card whose base model is a path
        entries["base_model"] = base_model
    return f"---\n{yaml.safe_dump(entries, sort_keys=False)}---"


def _what(base_model: str, architecture: str, class_names: Sequence[str], edited: bool, features: int) -> str:
    kinds = f" of {len(class_names)} classes" if class_names else ""
    network = f" ({_plain(architecture)})" if architecture else ""
    origin = f", trained from {_plain(base_model)}" if base_model else ""
    what = f"A classifier of rows of {features} numbers" if features else "An image classifier"
    sentence = f"{what}{kinds}{network}{origin}."
    if edited:
        sentence += " Some of its errors were corrected by editing its weights directly, with weightsmith."
    return sentence


def _data(data: str, class_names: Sequence[str], split_rows: Sequence[Row], samples: str) -> str:
    totals = [row for row in split_rows if str(row["class"]) == "all"]
    lines: list[str] = []
    if data:
        lines.append(f"Data set: {_plain(data)}.")
    if class_names:
        lines.append(f"Classes: {', '.join(_plain(name) for name in class_names)}.")
    if totals:
        parts = ", ".join(f"{part_title(str(row['part']))} {row['count']}" for row in totals)
        lines.append(f"{samples}: {_plain(parts)}.")
    return "## Data\n\n" + "\n\n".join(lines) if lines else ""


def _training(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    best = best_epoch(rows)
    kept = rows[-1] if best is None else rows[best]
    lines = [
        "## Training",
        f"{len(rows)} epoch{'' if len(rows) == 1 else 's'}; the weights of epoch {number(kept['epoch']):g} are kept, "
        "the one of best validation accuracy.",
        _table(
            ["", "loss", "accuracy"],
            [
                [
                    label,
                    f"{number(kept.get(part + '_loss', '')):.4f}",
                    percent(number(kept.get(part + "_accuracy", ""))),
                ]
                for part, label in (("train", "training"), ("val", "validation"))
            ],
        ),
    ]
    return "\n\n".join(lines)


def _edits(edits: Sequence[Mapping[str, Any]]) -> str:
    if not edits:
        return ""
    rows = [
        [
            _plain(str(edit["method"])),
            ", ".join(str(layer) for layer in edit.get("layers") or ()) or "classifier",
            str(edit.get("corrections", "")),
            str(edit.get("reached", "")),
        ]
        for edit in edits
    ]
    header = ["method", "layers changed (from 0)", "corrections asked for", "reached"]
    if not any("reached" in edit for edit in edits):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return "## Edits\n\n" + _table(header, rows)


def _metrics(found: Sequence[Block]) -> str:
    if not found:
        return ""
    lines = ["## What the edits did", "95% intervals in brackets; n is the number of images behind a value."]
    for block in found:
        rows = [[measure.label, *(_cell(cell, measure) for cell in cells)] for measure, cells in block.lines]
        lines += [f"### {_plain(part_title(block.part).capitalize())}", _table(["measure", *block.methods], rows)]
    meanings = [f"- **{measure.label}**: {measure.meaning}" for measure, _ in found[0].lines]
    return "\n\n".join([*lines, "\n".join(meanings)])


def _cell(value: Interval | None, measure: Measure) -> str:
    if value is None:
        return "–"
    if math.isnan(value.value):
        return "n/a"
    signed = measure.is_change
    return f"{percent(value.value, signed=signed)} ({bounds(value, signed=signed)}; n = {value.n})"


def _provenance(provenance: Mapping[str, object]) -> str:
    if not provenance:
        return ""
    rows = [[_plain(name), _plain(value)] for name, value in flat(provenance)]
    return "## Provenance\n\n" + _table(["name", "value"], rows)


def _how_to_load(channels: int, features: int, registered_by: str) -> str:
    words, code = "In plain transformers; weightsmith is not needed.", _LOADING_FEATURES if features else _LOADING
    if registered_by:
        words = f"The architecture is not one of transformers: importing {_plain(registered_by)} makes it known."
        code = code.replace("\nfolder =", f"\nimport {registered_by}  # makes the architecture known\n\nfolder =")
    return f"## How to load it\n\n{words}\n\n" + code.replace("{mode}", "L" if channels == 1 else "RGB").replace(
        "{features}", str(features)
    )


def _bullets(title: str, sentences: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {_plain(sentence)}" for sentence in sentences) if sentences else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[_plain(name) for name in header], ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
    """Text from data on one line, with what Markdown or HTML would act on escaped."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
