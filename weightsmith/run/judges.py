"""Who judges a backbone: a data set, with the head that was trained on it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from weightsmith.data.images import ImageSet
from weightsmith.data.sources import open_data
from weightsmith.data.split import Source
from weightsmith.data.tables import open_table
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import answers_of
from weightsmith.files import user_path
from weightsmith.measure import Interval, Predictions, predict, proportion
from weightsmith.models import Model, load
from weightsmith.models.heads import backbone_names
from weightsmith.run.recorded import recorded_split


@dataclass(frozen=True, eq=False)
class Judge:
    """One data set.

    Attributes:
        name: what tables call it.
        model: a network whose head was trained on it.
        val: what coefficients are chosen on; test: sealed, what is reported.
    """

    name: str
    model: Model
    val: ImageSet
    test: ImageSet

    def digests(self) -> dict[str, str]:
        """Part → hash of which samples it holds."""
        return {"val": self.val.digest(), "test": self.test.digest()}


class Cut(Protocol):
    """The options that say how a data set is cut where nobody has recorded it, and where large files are unpacked."""

    @property
    def held_out_ratio(self) -> float: ...
    @property
    def val_ratio(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def cache_dir(self) -> str | None: ...


def on_validation(one: Judge) -> Interval:
    """Accuracy of the judge's network on validation samples, with Wilson's 95% interval."""
    return _accuracy(predict(one.model, one.val))


def on_test(one: Judge) -> Interval:
    """The same on the sealed test samples."""
    return _accuracy(answers_of(one.model, one.test, title="test"))


def columns(part: str, found: Interval) -> dict[str, object]:
    """An accuracy as columns of a table: `val_accuracy`, `val_low`, `val_high`, `val_n`."""
    return {
        f"{part}_accuracy": round(found.value, 6),
        f"{part}_low": round(found.low, 6),
        f"{part}_high": round(found.high, 6),
        f"{part}_n": found.n,
    }


def _accuracy(seen: Predictions) -> Interval:
    """Logits that are no numbers name no class: such an answer is wrong."""
    right = seen.right & torch.isfinite(seen.logits).all(-1)
    return proportion(int(right.sum()), len(right))


def with_backbone(one: Judge, backbone: Model) -> Judge:
    """The judge with another network's backbone under its head."""
    module = copy.deepcopy(one.model.module)
    tensors = backbone.module.state_dict()
    names = [name for name in backbone_names(one.model) if name in tensors]
    module.load_state_dict(module.state_dict() | {name: tensors[name] for name in names})
    return replace(one, model=replace(one.model, module=module))


def named_apart(judges: list[Judge], marks: list[str]) -> list[Judge]:
    """The judges, with a mark behind the names where two data sets have one."""
    if len({one.name for one in judges}) == len(judges):
        return judges
    return [replace(one, name=f"{one.name} ({mark})") for one, mark in zip(judges, marks, strict=True)]


def classifier(path: str, flag: str, device: str) -> Model:
    """The image classifier at a path. Raises `WeightsmithError` naming the flag."""
    try:
        model = load(path, device=device)
    except WeightsmithError as error:
        raise WeightsmithError(f"{flag} {path} cannot be read: {error}") from error
    if model.family.reads != "images":
        raise WeightsmithError(
            f"{flag} {path} is a {model.family.title}: only image classifiers are measured, give one"
        )
    return model


def judge_of(
    cut: Cut, model: Model, path: str, spec: str, flag: str, notes: list[str], *, blank: bool = False
) -> Judge:
    """The judge of a classifier's own data set.

    Args:
        path: where the classifier lies; spec: the data set, as `--data-path` names it, or a CSV table.
        notes: is told where nobody knows what the classifier has seen.

    Raises:
        WeightsmithError: naming the flag: no data set, or other classes than the classifier has.
    """
    cache = user_path(cut.cache_dir) if cut.cache_dir else None
    source = open_table(spec) if spec.endswith(".csv") else open_data(spec, model.preprocess.size, cache, blank=blank)
    if source.n_classes != model.n_classes:
        raise WeightsmithError(
            f"{flag} {spec} has {source.n_classes} classes and {path} {model.n_classes}: give the data set of that classifier"
        )
    val, test = _parts(cut, path, source, notes)
    return Judge(source.name, model, val, test)


def _parts(cut: Cut, path: str, source: Source, notes: list[str]) -> tuple[ImageSet, ImageSet]:
    """(validation, sealed test) as the run of the model recorded them, else the data set's own, else cut here."""
    recorded = recorded_split(path, source)
    if recorded is not None and recorded.held() and "val" in recorded.entries:
        return recorded.part("val", source), recorded.part(recorded.held()[0], source)
    split = source.split("test" if "test" in source.parts else cut.held_out_ratio, cut.seed, cut.val_ratio)
    if "test" not in source.parts:
        notes.append(
            f"What {path} was trained on is not recorded: the test part of {source.name} was cut here, and the classifier may "
            "have seen it."
        )
    return split.val, split.held_out
