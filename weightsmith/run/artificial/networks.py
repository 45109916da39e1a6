"""The networks of `weightsmith artificial`: a base trained on one table, and the same backbone fine-tuned on another."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from weightsmith import report
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.files import DAMAGED, atomic_folder, user_path, write_csv, write_json
from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.models import Model, load, registered_by, save
from weightsmith.models.heads import backbone_names, head_names
from weightsmith.models.store import wrap
from weightsmith.run.artificial.data import Task
from weightsmith.run.cells import key_of
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.artificial import ArtificialOptions
from weightsmith.train import TrainOptions, fit

_log = logging.getLogger(__name__)

BASE, FINETUNED = "base", "finetuned"
BACKBONE, HEAD, RECORD = "backbone.safetensors", "head.safetensors", "record.json"
_FORMAT = "weightsmith-artificial-1"
LEAST_WIDTH = 8
"""Features below which the head would have no neuron left."""


def network(width: int, classes: int, seed: int, device: str) -> Model:
    """The MLP of the experiment, with fresh weights.

    Ten ReLU layers are the backbone: five of `width` neurons, then five of half as many, the first of which is the
    transition. The head has three linear maps: to a quarter and to an eighth of the width, with ReLU, and to the classes.
    """
    from weightsmith.models.mlp import MLPConfig, MLPForImageClassification

    if width < LEAST_WIDTH:
        raise WeightsmithError(
            f"a table of {width} features is too narrow for this network: give one of {LEAST_WIDTH} or more"
        )
    hidden = (width,) * 5 + (width // 2,) * 5 + (width // 4, width // 8)
    config = MLPConfig(
        image_size=1, num_channels=width, hidden_sizes=hidden, head_layers=3, reads="features", num_labels=classes
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = MLPForImageClassification(config)
    return wrap(module.to(device).eval(), None, {}, "mlp")


def make_base(options: ArtificialOptions, folder: RunFolder, task: Task, device: str) -> None:
    """`base/`: trained on the first table, or taken from `--base-model`."""
    model = network(task.width, task.source.n_classes, options.seed, device)
    recipe = _recipe(options, options.epochs, options.lr)
    if options.base_model is None:
        _trained(options, folder, BASE, task, model, recipe, [])
        return
    notes = [f"Nothing was trained: the base is {options.base_model}.", *take_base(model, options.base_model)]
    key = key_of({"data": task.digests(), "weights": weights_hash(model)})
    if not _is_finished(folder.path / BASE, key):
        _keep(folder, BASE, task, model, key, (), notes)


def make_finetuned(options: ArtificialOptions, folder: RunFolder, task: Task, device: str) -> None:
    """`finetuned/`: the base's backbone under a new head, trained on the second table."""
    base = stored(folder, BASE, device)
    model = network(task.width, task.source.n_classes, options.seed + 1, device)
    take_backbone(model, base.module.state_dict(), str(folder.path / BASE))
    notes = [f"The backbone comes from {BASE}/, the head of {task.source.n_classes} classes is new."]
    if options.freeze_backbone:
        names = set(head_names(model))
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_(name in names)
        notes.append("Only the head was trained (--freeze-backbone).")
    recipe = _recipe(options, options.finetune_epochs or options.epochs, options.finetune_lr)
    _trained(options, folder, FINETUNED, task, model, recipe, notes, frozen=options.freeze_backbone)


def take_base(model: Model, source: str) -> list[str]:
    """Load a base's tensors into `model`; what a reader must know of it.

    Raises:
        WeightsmithError: nothing there that can be read, a base of another width, or one that matches no layer.
    """
    tensors = _tensors(source)
    count = take_backbone(model, tensors, f"--base-model {source}")
    own = model.module.state_dict()
    head = [name for name in head_names(model) if name in tensors and tensors[name].shape == own[name].shape]
    complete = len(head) == len(head_names(model))
    if complete:
        model.module.load_state_dict(own | {name: tensors[name] for name in head})
    missing = len(backbone_names(model)) - count
    notes = [f"{missing} of the backbone's tensors are not in it and keep fresh weights."] if missing else []
    return notes if complete else [*notes, "It has no head of these classes: the base's head is fresh, and at chance."]


def take_backbone(model: Model, tensors: Mapping[str, Tensor], called: str) -> int:
    """Load the backbone's tensors that match in name and shape; how many did. Raises `WeightsmithError` where none does."""
    own = model.module.state_dict()
    wanted = backbone_names(model)
    fitting = {name: tensors[name] for name in wanted if name in tensors and tensors[name].shape == own[name].shape}
    if not fitting:
        first = wanted[0]
        there = tensors.get(first)
        why = (
            f"its {first} is {_shape(there)} and the data ask for {_shape(own[first])}: "
            f"give a base of {own[first].shape[1]} features"
            if there is not None
            else f"it has no tensor {first}: give a base that `weightsmith artificial` has trained"
        )
        raise WeightsmithError(f"{called} matches no layer of the network: {why}")
    model.module.load_state_dict(own | fitting)
    return len(fitting)


def stored(folder: RunFolder, which: str, device: str) -> Model:
    """A network that an earlier stage left. Raises `WeightsmithError` naming that stage."""
    place = folder.path / which
    if not (place / RECORD).is_file():
        stage = "base" if which == BASE else "finetune"
        raise WeightsmithError(f"{place} is missing: run --stage {stage} first")
    return load(place, device=device)


def notes_of(folder: RunFolder, which: str) -> list[str]:
    """What a reader must know of a network."""
    found: list[str] = json.loads((folder.path / which / RECORD).read_text(encoding="utf-8"))["notes"]
    return found


def _tensors(source: str) -> dict[str, Tensor]:
    """The tensors of a base that is there. Raises `WeightsmithError` naming the flag."""
    place = user_path(source)
    if (place / BASE / RECORD).is_file():  # the folder of a whole run
        place = place / BASE
    try:
        with Checkpoint.open(place) as checkpoint:
            return {name: checkpoint.read(name) for name in checkpoint.names}
    except WeightsmithError as error:
        raise WeightsmithError(f"--base-model {source} cannot be taken: {error}") from error


def _recipe(options: ArtificialOptions, epochs: int, lr: float) -> TrainOptions:
    return TrainOptions(
        epochs=epochs, batch_size=options.batch_size, lr=lr, weight_decay=options.weight_decay, seed=options.seed
    )


def _trained(
    options: ArtificialOptions,
    folder: RunFolder,
    which: str,
    task: Task,
    model: Model,
    recipe: TrainOptions,
    notes: list[str],
    frozen: bool = False,
) -> None:
    """Train, unless what is there was trained so; a training that was stopped goes on."""
    key = key_of({"data": task.digests(), "start": weights_hash(model), "recipe": asdict(recipe), "frozen": frozen})
    if _is_finished(folder.path / which, key):
        return
    table = folder.results / f"{which}_training.csv"
    # The name says what is trained, so that a checkpoint of the other kind is never gone on with.
    checkpoint = folder.checkpoints / f"{which}{'_head' if frozen else ''}.pt"
    history = fit(
        model,
        task.split.train,
        task.split.val,
        recipe,
        checkpoint,
        resume=options.resume,
        on_epoch=lambda rows: write_csv(table, rows),
    )
    write_csv(table, history.rows)
    report.save(report.training_curve(history.rows), folder.figures / f"{which}_training.png")
    _keep(folder, which, task, model, key, history.rows, notes)


def _keep(folder: RunFolder, which: str, task: Task, model: Model, key: str, rows: Any, notes: list[str]) -> None:
    """Write a network: the whole as a folder that `weightsmith.load` reads, and backbone and head apart."""
    card = report.model_card(
        title=f"{task.source.name} classifier ({which})",
        architecture="MLP: ten ReLU layers, a head of three",
        data=task.source.name,
        class_names=task.source.class_names,
        features=task.width,
        split_rows=task.split.info(),
        training_rows=rows,
        notes=notes,
        registered_by=registered_by(model),
    )
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.module.state_dict().items()}
    with atomic_folder(folder.path / which) as temporary:
        save(model, temporary, card)
        for file, names in ((BACKBONE, backbone_names(model)), (HEAD, head_names(model))):
            save_file({name: state[name] for name in names}, temporary / file, metadata={"format": "pt"})
        write_json(temporary / RECORD, {"format": _FORMAT, "key": key, "notes": notes})
    folder.log_event("artificial", which, epochs=len(rows))


def _is_finished(place: Path, key: str) -> bool:
    """Whether the network of this key is there. Raises `WeightsmithError` where another one is."""
    if not place.exists():
        return False
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        same = record["key"] == key
    except DAMAGED as error:
        raise WeightsmithError(f"{place / RECORD} is damaged: give --overwrite to train again") from error
    if not same:
        raise WeightsmithError(
            f"{place} was made with other options or data: give --overwrite to replace it, or another --run-name"
        )
    _log.info("%s is there already", place.name)
    return True


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape)
