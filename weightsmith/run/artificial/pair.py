"""A pair of image classifiers of the user's own in the place of the experiment's networks, and who judges it."""

from __future__ import annotations

from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.models.heads import backbone_names
from weightsmith.run.judges import Judge, classifier, judge_of, named_apart
from weightsmith.run.options.artificial import ArtificialOptions


def pair_of(options: ArtificialOptions, device: str) -> tuple[Model, Model, list[Judge], list[str]]:
    """The pair that the user names, its judges, and what a reader must know.

    Raises:
        WeightsmithError: naming the flag: no classifiers, other classes than the data, networks of other sizes.
    """
    assert options.pretrained is not None
    assert options.finetuned is not None
    assert options.data_path is not None
    base = classifier(options.pretrained, "--pretrained", device)
    fine = classifier(options.finetuned, "--finetuned", device)
    _check_alike(base, fine)
    notes: list[str] = []
    judges, marks = [], []
    if options.pretrained_data_path is not None:
        own = judge_of(options, base, options.pretrained, options.pretrained_data_path, "--pretrained-data-path", notes)
        judges, marks = [own], ["base"]
    judges.append(judge_of(options, fine, options.finetuned, options.data_path, "--data-path", notes))
    return base, fine, named_apart(judges, [*marks, "fine-tuned"]), notes


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
