"""From the flags of `run` to an editor: its hyper-parameters, and the layers that it edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from weightsmith.edit import Patcher, default_layers, editors, make_editor
from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.run.findings import layers_of
from weightsmith.run.job import TRAIN_DEFAULTS, Job, train_options
from weightsmith.run.options.correct import RunOptions

AUTO = "auto"
"""The word for the editor that suits the model best."""

_CLOSED_FORM_FLAGS = ("edit_layers", "layers_from", "null_fraction", "null_threshold", "ridge", "l2")


def methods_for(job: Job) -> tuple[str, ...]:
    """The methods of --edit-method; `auto` is the patcher, and alphaedit where there is none or the user speaks of layers,
    ridges or null spaces, which the patcher has not. The choice was made on validation data: docs/edit.md.
    """
    options = job.options
    if options.edit_method != (AUTO,):
        return options.edit_method
    asked = [name for name in _CLOSED_FORM_FLAGS if getattr(options, name) is not None]
    if not Patcher.suits(job.trained):
        return ("alphaedit",)
    return ("alphaedit",) if asked or not options.whiten else ("patcher",)


def check_layer_flags(methods: Sequence[str], **given: object) -> None:
    """Refuse flags that name layers where every method takes none, such as the patcher and the head."""
    if any("layers" in editors()[method].__dataclass_fields__ for method in methods):
        return
    for name, value in given.items():
        if value is not None:
            flag = name.replace("_", "-")
            raise WeightsmithError(f"--{flag} is not for {' '.join(methods)}, which choose no layers: leave it out")


def layers_for(job: Job, method: str) -> tuple[int, ...]:
    """The layers that a method edits: none where it has none, and a single one where it takes no more by itself."""
    if "layers" not in editors()[method].__dataclass_fields__:
        return ()
    taken = getattr(make_editor(method), "default_layers", default_layers)(job.trained)
    return edit_layers(job, 1 if len(taken) == 1 else job.options.num_edit_layers)


def edit_layers(job: Job, count: int) -> tuple[int, ...]:
    """The user's layers, else those of --layers-from, else the traced ones, else the last; which, is noted.

    Args:
        count: how many, where the user names none.
    """
    options, model = job.options, job.trained
    if options.edit_layers is not None:
        model.check_layers(options.edit_layers)
        return tuple(sorted(options.edit_layers))
    if options.layers_from is not None:
        layers = layers_of(options.layers_from, count, model.n_layers)
        job.note(f"Layers {list(layers)} are edited, those of largest effect in {options.layers_from}.")
        return layers
    traced = job.folder.results / "effects.safetensors"
    if options.astra_layers and traced.exists():
        effects = Effects.load(traced)
        if not 1 <= options.num_edit_layers <= len(effects.sites):
            raise WeightsmithError(
                f"--num-edit-layers {options.num_edit_layers}: {len(effects.sites)} layers were traced, give 1 to that many"
            )
        layers = effects.top_layers(count)
        job.note(f"Layers {list(layers)} are edited, the traced ones of largest effect.")
        return layers
    layers = default_layers(model)
    layers = layers[-count:] if count == 1 else layers
    job.note(f"Layers {list(layers)} are edited, the last ones of the model: none were given or traced.")
    return layers


EDITOR_FLAGS = (
    "margin", "null_fraction", "null_threshold", "ridge", "l2", "head_lr", "head_steps", "ewc_strength", "ewc_lambda",
    "closed_form", "seed",
)  # fmt: skip
"""Flags that are hyper-parameters of an editor under the same name; others, such as --lr, are of the training."""


def editor_options(options: RunOptions, method: str, layers: tuple[int, ...]) -> dict[str, Any]:
    """Hyper-parameters of one editor from the flags; a flag that was not given leaves the editor's own default."""
    cls = editors().get(method)
    fields = {field.name for field in dataclasses.fields(cls)} if cls is not None else set()
    known = [name for name in EDITOR_FLAGS if name in fields]
    given = {name: getattr(options, name) for name in known if getattr(options, name) is not None}
    if "layers" in fields:
        given["layers"] = layers
    if "null_floor" in fields and not options.whiten:
        given["null_floor"] = None
    if "new_site" in fields:
        given["new_site"] = options.edit_from not in ("train", "val")
        given["view"] = _trained_view(options)
    return given


def _trained_view(options: RunOptions) -> str:
    """The views that the model was trained on: those change nothing that it should tell apart."""
    view = str(train_options(options, TRAIN_DEFAULTS).augment)
    return view if view != "none" else "light"
