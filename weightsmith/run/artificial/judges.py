"""Who judges a backbone: a data set, with the head that was trained on it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

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
from weightsmith.run.options import ArtificialOptions
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


def judge(one: Judge) -> dict[str, object]:
    """Accuracy of the judge's network with Wilson's 95% interval: on validation samples, and on the sealed test samples."""
    measured: dict[str, object] = {}
    for part, seen in (("val", predict(one.model, one.val)), ("test", answers_of(one.model, one.test, title="test"))):
        found = _accuracy(seen)
        measured |= {f"{part}_accuracy": round(found.value, 6), f"{part}_low": round(found.low, 6)}
        measured |= {f"{part}_high": round(found.high, 6), f"{part}_n": found.n}
    return measured


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


def pair_of(options: ArtificialOptions, device: str) -> tuple[Model, Model, list[Judge], list[str]]:
    """The pair that the user names, its judges, and what a reader must know.

    Raises:
        WeightsmithError: naming the flag: no classifiers, other classes than the data, networks of other sizes.
    """
    assert options.pretrained is not None
    assert options.finetuned is not None
    assert options.data_path is not None
    base = _classifier(options.pretrained, "--pretrained", device)
    fine = _classifier(options.finetuned, "--finetuned", device)
    _check_alike(base, fine)
    notes: list[str] = []
    judges = []
    if options.pretrained_data_path is not None:
        judges.append(
            _judge(options, base, options.pretrained, options.pretrained_data_path, "--pretrained-data-path", notes)
        )
    judges.append(_judge(options, fine, options.finetuned, options.data_path, "--data-path", notes))
    if len({one.name for one in judges}) < len(judges):
        judges = [
            replace(one, name=f"{one.name} ({which})")
            for one, which in zip(judges, ("base", "fine-tuned"), strict=True)
        ]
    return base, fine, judges, notes


def _classifier(path: str, flag: str, device: str) -> Model:
    try:
        model = load(path, device=device)
    except WeightsmithError as error:
        raise WeightsmithError(f"{flag} {path} cannot be read: {error}") from error
    if model.family.reads != "images":
        raise WeightsmithError(f"{flag} {path} is a {model.family.title}: give an image classifier")
    return model


def _check_alike(base: Model, fine: Model) -> None:
    ours, theirs = (
        {name: tuple(model.module.state_dict()[name].shape) for name in backbone_names(model)} for model in (base, fine)
    )
    wrong = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if wrong:
        raise WeightsmithError(
            f"--pretrained and --finetuned are no pair: {wrong[0]} is {ours.get(wrong[0], 'missing')} in the one and "
            f"{theirs.get(wrong[0], 'missing')} in the other; give a classifier and one that was fine-tuned from it"
        )


def _judge(options: ArtificialOptions, model: Model, path: str, spec: str, flag: str, notes: list[str]) -> Judge:
    cache = user_path(options.cache_dir) if options.cache_dir else None
    source = open_table(spec) if spec.endswith(".csv") else open_data(spec, model.preprocess.size, cache)
    if source.n_classes != model.n_classes:
        raise WeightsmithError(
            f"{flag} {spec} has {source.n_classes} classes and {path} {model.n_classes}: give the data set of that classifier"
        )
    val, test = _parts(options, path, source, notes)
    return Judge(source.name, model, val, test)


def _parts(options: ArtificialOptions, path: str, source: Source, notes: list[str]) -> tuple[ImageSet, ImageSet]:
    """(validation, sealed test) as the run of the model recorded them, else the data set's own, else cut here."""
    recorded = recorded_split(path, source)
    if recorded is not None and recorded.held() and "val" in recorded.entries:
        return recorded.part("val", source), recorded.part(recorded.held()[0], source)
    split = source.split("test" if "test" in source.parts else options.held_out_ratio, options.seed, options.val_ratio)
    if "test" not in source.parts:
        notes.append(
            f"What {path} was trained on is not recorded: the test part of {source.name} was cut here, and the classifier may "
            "have seen it."
        )
    return split.val, split.held_out
