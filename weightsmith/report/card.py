"""The model card: what a folder with an edited model says about itself to somebody who finds it without its run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.measure import Interval
from weightsmith.report import markdown
from weightsmith.report.edits import edits_section
from weightsmith.report.headline import Block, Measure, blocks
from weightsmith.report.markdown import bullets, front_matter, plain, short, table
from weightsmith.report.plots import best_epoch
from weightsmith.report.words import Row, bounds, number, part_title, percent

MOST_CLASSES = 100
"""Names of classes that a card lists; the model's config has all of them."""
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
    needs: Sequence[str] = (),
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
        edits: as `edits_section` takes them.
        evaluation_rows: the rows of `evaluation_report.csv`.
        provenance: hashes, versions, seed; name → value, nested or not.
        notes: sentences that a user must know.
        licence: identifier of the hub's list, "apache-2.0"; left out when empty.
        needs: packages that must be installed beside transformers to load it.
        registered_by: the module that must be imported before transformers knows the architecture,
            "weightsmith.models.mlp"; empty for an architecture of transformers itself.
    """
    sections = [
        front_matter(
            "tabular-classification" if features else "image-classification", base_model, licence, bool(edits)
        ),
        f"# {plain(title)}",
        _what(base_model, architecture, class_names, bool(edits), features),
        _data(data, class_names, split_rows, "Rows" if features else "Images"),
        _training(training_rows),
        edits_section(edits),
        _metrics(blocks(evaluation_rows)),
        _how_to_load(channels, features, needs, registered_by),
        bullets("Notes", notes),
        bullets("Limits", (_LIMITS_OF_EDITS if edits else ()) + _LIMITS),
        markdown.provenance(provenance or {}),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what(base_model: str, architecture: str, class_names: Sequence[str], edited: bool, features: int) -> str:
    kinds = f" of {len(class_names)} classes" if class_names else ""
    network = f" ({plain(architecture)})" if architecture else ""
    origin = f", trained from {plain(base_model)}" if base_model else ""
    what = f"A classifier of rows of {features} numbers" if features else "An image classifier"
    sentence = f"{what}{kinds}{network}{origin}."
    if edited:
        sentence += " Some of its errors were corrected by editing its weights directly, with weightsmith."
    return sentence


def _data(data: str, class_names: Sequence[str], split_rows: Sequence[Row], samples: str) -> str:
    totals = [row for row in split_rows if str(row["class"]) == "all"]
    lines: list[str] = []
    if data:
        lines.append(f"Data set: {plain(data)}.")
    if class_names:
        more = len(class_names) - MOST_CLASSES
        listing = ", ".join(short(name) for name in class_names[:MOST_CLASSES])
        lines.append(f"Classes: {listing}" + (f" and {more} more, which config.json has." if more > 0 else "."))
    if totals:
        parts = ", ".join(f"{part_title(str(row['part']))} {row['count']}" for row in totals)
        lines.append(f"{samples}: {plain(parts)}.")
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
        table(
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


def _metrics(found: Sequence[Block]) -> str:
    if not found:
        return ""
    lines = ["## What the edits did", "95% intervals in brackets; n is the number of images behind a value."]
    for block in found:
        rows = [[measure.label, *(_cell(cell, measure) for cell in cells)] for measure, cells in block.lines]
        lines += [f"### {plain(part_title(block.part).capitalize())}", table(["measure", *block.methods], rows)]
    meanings = [f"- **{measure.label}**: {measure.meaning}" for measure, _ in found[0].lines]
    return "\n\n".join([*lines, "\n".join(meanings)])


def _cell(value: Interval | None, measure: Measure) -> str:
    if value is None:
        return "–"
    if math.isnan(value.value):
        return "n/a"
    signed = measure.is_change
    return f"{percent(value.value, signed=signed)} ({bounds(value, signed=signed)}; n = {value.n})"


def _how_to_load(channels: int, features: int, needs: Sequence[str], registered_by: str) -> str:
    beside = f" with {' and '.join(needs)} installed" if needs else ""
    words, code = (
        f"In plain transformers{beside}; weightsmith is not needed.",
        _LOADING_FEATURES if features else _LOADING,
    )
    if registered_by:
        words = f"The architecture is not one of transformers: importing {plain(registered_by)} makes it known."
        code = code.replace("\nfolder =", f"\nimport {registered_by}  # makes the architecture known\n\nfolder =")
    return f"## How to load it\n\n{words}\n\n" + code.replace("{mode}", "L" if channels == 1 else "RGB").replace(
        "{features}", str(features)
    )
