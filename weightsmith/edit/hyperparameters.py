"""Hyper-parameters as data: shipped a method and model, or read from files, EasyEdit's and the papers' among them."""

from __future__ import annotations

import json
import math
import re
import types
from dataclasses import fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from weightsmith.edit.contexts import LOOKUPS
from weightsmith.edit.registry import editors
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import cause_of, user_path
from weightsmith.models import families

METHODS = ("rome", "memit", "emmet", "alphaedit")
"""The editors that hyper-parameters are shipped for, and that published files are read for."""

_CALLED = {"r-rome": "rome", "alpha-edit": "alphaedit"}
"""Other values of `alg_name`; EasyEdit's R-ROME is ROME with one key throughout, as it is here anyway."""

_ABOUT = ("method", "model", "names")
"""Entries of our own files that are no hyper-parameters."""

_FIELDS = {
    "layers": "layers",
    "rewrite_module_tmp": "component",
    "v_num_grad_steps": "steps",
    "v_lr": "v_lr",
    "v_weight_decay": "weight_decay",
    "clamp_norm_factor": "clamp",
    "kl_factor": "kl_factor",
    "context_template_length_params": "prefix_lengths",
}
"""Published name → ours, in every method."""

_FIELDS_OF = {
    "rome": {"original_implementation": "compat"},
    "memit": {"mom2_update_weight": "moment_weight"},
    "emmet": {"mom2_update_weight": "moment_weight", "update_norm_lambda": "shift", "emmet_lambda": "edit_ridge"},
    "alphaedit": {"nullspace_threshold": "null_threshold", "L2": "l2"},
}
"""Published name → ours, in one method."""

_FIXED: dict[str, dict[str, Any]] = {
    "rome": {"lookup": "subject_last", "stop_loss": 0.05, "rounds": 1, "prefix_lengths": ((5, 10), (10, 10))},
    "memit": {"lookup": "subject_last", "stop_loss": 0.05, "rounds": 1, "prefix_lengths": ((10, 5),)},
    "emmet": {"lookup": "subject_last", "stop_loss": 0.05, "rounds": 1, "prefix_lengths": ((10, 5),)},
    "alphaedit": {
        "lookup": "subject_last",
        "stop_loss": 0.05,
        "rounds": 1,
        "prefix_lengths": ((10, 5),),
        "null_floor": None,
    },
}
"""What the published code holds fixed, or takes where a file does not say; ours otherwise has other defaults."""

_DEMANDED = {"fact_token": LOOKUPS, "layer_selection": ("all",)}
"""Entries of which some values are known here: with another, a different token or layer would be edited than asked."""

_NOTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "v_loss_layer": ((), "the loss is read at the model's last layer"),
    "mom2_dataset": ((), "statistics are measured on the texts that the editor is to preserve"),
    "mom2_n_samples": (
        (),
        "it counts documents, and statistics are measured on the texts that the editor is to preserve",
    ),
    "enable_prompt_keys": ((False,), "keys are averaged over the prompt alone and behind prefixes"),
    "enable_random_prefix_keys": ((True,), "keys are averaged over the prompt alone and behind prefixes"),
    "use_chat_template": ((False,), "prompts are read as they are"),
    "prob_cutoff": ((0,), "values are not cut off by probability"),
    "norm_control": ((0, False), "norms are not controlled"),
}
"""Entries that are done differently here: the values for which there is no difference, and what is done."""

_UNREAD = (
    "model_name", "stats_dir", "device", "layer_module_tmp", "mlp_module_tmp", "attn_module_tmp", "ln_f_module",
    "lm_head_module", "mom2_dtype", "mom2_adjustment", "P_loc", "max_length", "batch_size", "model_parallel", "fp16",
    "calculate_objective_value", "enable_thinking",
)  # fmt: skip
"""Entries about the program rather than the edit: the model, its modules and the device are known without them."""

_MODULES = {"mlp.fc_out": "mlp.value", "mlp.dense_4h_to_h": "mlp.value", "attention.dense": "attn.value"}
"""Linear maps of published files (GPT-J, GPT-NeoX) beside those of the families."""


def shipped() -> dict[tuple[str, str], Traversable]:
    """The shipped files by (method, model)."""
    folder = resources.files("weightsmith.edit") / "hparams"
    return {
        (method, entry.name.removesuffix(".yaml")): entry
        for method in METHODS
        for entry in sorted((folder / method).iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }


def hyperparameters(method: str, model_name: str) -> dict[str, Any]:
    """The shipped hyper-parameters of an editor for a model, to be given to `make_editor`.

    Args:
        method: "rome", "memit", "emmet" or "alphaedit".
        model_name: as the hub or a folder calls it ("EleutherAI/gpt-j-6B", "meta-llama/Meta-Llama-3-8B-Instruct"); case,
            owner, "Meta-", and what says that it follows instructions do not matter.

    Raises:
        WeightsmithError: another method, or a model that none are shipped for.
    """
    if method not in METHODS:
        raise WeightsmithError(f"no hyper-parameters are shipped for {method!r}: {did_you_mean(method, METHODS)}")
    known: dict[str, Traversable] = {}
    for (of_method, model), file in shipped().items():
        if of_method == method:
            known[model] = file
            if _plain(model_name) in map(_plain, [model, *_entries(file).get("names", [])]):
                return read_hyperparameters(file)[1]
    raise WeightsmithError(
        f"no hyper-parameters of {method} are shipped for {model_name!r}: "
        f"{did_you_mean(_plain(model_name), known)}; take those of a model of like depth, or leave them out"
    )


def read_hyperparameters(path: str | Path | Traversable) -> tuple[str, dict[str, Any], list[str]]:
    """Hyper-parameters from a YAML or JSON file: ours, EasyEdit's, or those of the papers' repositories.

    Ours has `method`, and the editor's fields under their names. The others have `alg_name`, or lie in a folder of that
    name, as the papers' do (ROME/gpt2-xl.json), and `v_num_grad_steps` and the like. What the published code holds fixed
    comes along: it stops at a loss of 0.05 and solves once. Where something else would be edited than the file says (a
    `fact_token` other than subject_last and last, an unknown linear map) it is an error; what is measured otherwise is a note.

    Returns:
        (the editor's name, its fields, notes on what is done differently here or not read).

    Raises:
        WeightsmithError: no such file, no YAML or JSON, another method, an unknown entry or a value of the wrong kind.
    """
    entries = _entries(path)
    if "method" in entries:
        method = str(entries["method"])
        if method not in editors():
            raise WeightsmithError(f"{path} is for the method {method!r}: {did_you_mean(method, editors())}")
        kinds = _kinds(method)
        given = {key: value for key, value in entries.items() if key not in _ABOUT}
        _check_known(given, [*_ABOUT, *kinds], path)
        return method, {key: _converted(value, kinds[key], key, path) for key, value in given.items()}, []
    method = _published_method(entries, path)
    return method, *_published(method, entries, path)


def _published(
    method: str, entries: dict[str, Any], path: str | Path | Traversable
) -> tuple[dict[str, Any], list[str]]:
    kinds, names = _kinds(method), _FIELDS | _FIELDS_OF[method]
    elsewhere = [key for table in _FIELDS_OF.values() for key in table if key not in names]
    _check_known(entries, ["alg_name", *names, *_DEMANDED, *_NOTED, *_UNREAD, *elsewhere], path)
    for key, known in _DEMANDED.items():
        if entries.get(key, known[0]) not in known:
            said = " and ".join(map(repr, known))
            raise WeightsmithError(f"{path} has {key} {entries[key]!r}, and only {said} is known here: change it")
    found: dict[str, Any] = {"lookup": entries["fact_token"]} if "fact_token" in entries else {}
    notes: list[str] = []
    for key, value in entries.items():
        if key == "rewrite_module_tmp":
            found["component"] = _component(value, path)
        elif key in names:
            found[names[key]] = _converted(value, kinds[names[key]], key, path)
        elif key in _NOTED and value not in _NOTED[key][0]:
            notes.append(f"{key} {value!r} is not followed: {_NOTED[key][1]}")
    if method == "rome" and entries.get("mom2_adjustment") is False:
        notes.append("mom2_adjustment False is not followed: the update is measured by the preserved keys' moment")
    unread = [key for key in entries if key in _UNREAD or key in elsewhere]
    if unread:
        notes.append(f"not read: {', '.join(unread)}")
    fixed = {key: value for key, value in _FIXED[method].items() if key not in found}
    notes.append(f"as the published code has it: {', '.join(f'{key} {value}' for key, value in fixed.items())}")
    return found | fixed, notes


def _published_method(entries: dict[str, Any], path: str | Path | Traversable) -> str:
    said = str(entries.get("alg_name", Path(str(path)).parent.name))
    method = _CALLED.get(said.lower(), said.lower())
    if method in METHODS:
        return method
    if "alg_name" not in entries:
        raise WeightsmithError(
            f"{path} does not say what it is for: add alg_name, or method, one of {', '.join(METHODS)}"
        )
    raise WeightsmithError(f"{path} is for {said}, which is not read: {did_you_mean(method, METHODS)}")


def _component(template: Any, path: str | Path | Traversable) -> str:
    """The linear map that a template of module names stands for, "transformer.h.{}.mlp.c_proj" say."""
    known = _MODULES | {
        place.module.removeprefix("/"): kind for family in families().values() for kind, place in family.linear.items()
    }
    module = str(template).rpartition("{}.")[2]
    if module not in known:
        raise WeightsmithError(
            f"{path} edits {template!r}, which is no known linear map: {did_you_mean(module, known)}"
        )
    return known[module]


def _entries(path: str | Path | Traversable) -> dict[str, Any]:
    """What a YAML or JSON file holds."""
    file = user_path(path) if isinstance(path, (str, Path)) else path
    try:
        text = file.read_text(encoding="utf-8")
        entries = json.loads(text) if file.name.endswith(".json") else yaml.safe_load(text)
    except OSError as error:
        raise WeightsmithError(f"{path} cannot be read: give a YAML or JSON file of hyper-parameters") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise WeightsmithError(f"{path} is no YAML or JSON file ({cause_of(error)}): correct it") from error
    if not isinstance(entries, dict) or not entries:
        raise WeightsmithError(f"{path} holds no hyper-parameters: give a file of names and values")
    return {str(key): value for key, value in entries.items()}


def _check_known(entries: dict[str, Any], known: list[str], path: str | Path | Traversable) -> None:
    unknown = [key for key in entries if key not in known]
    if unknown:
        raise WeightsmithError(f"{path} has an unknown entry {unknown[0]!r}: {did_you_mean(unknown[0], known)}")


def _kinds(method: str) -> dict[str, Any]:
    """The editor's fields with their types."""
    cls = editors()[method]
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _converted(value: Any, kind: Any, key: str, path: str | Path | Traversable) -> Any:
    """A value as a field of this type holds it. Raises `WeightsmithError` naming the entry where it is of another kind."""
    try:
        return _as(value, kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise WeightsmithError(f"{path} has {key} {value!r}, which is not {_said(kind)}: correct it") from error


def _as(value: Any, kind: Any) -> Any:
    if get_origin(kind) is types.UnionType:
        (other,) = (part for part in get_args(kind) if part is not types.NoneType)
        return None if value is None else _as(value, other)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, list) or (Ellipsis not in parts and len(value) != len(parts)):
            raise TypeError
        return tuple(_as(item, parts[0]) for item in value)
    if kind in (int, float) and not isinstance(value, bool):
        number = float(value)  # YAML reads 5e-1, which published files write, as text
        if not math.isfinite(number) or number < 0 or (kind is int and number != int(number)):
            raise ValueError
        return kind(number)
    if type(value) is not kind:
        raise TypeError
    return value


def _said(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is types.UnionType:
        return _said(next(part for part in get_args(kind) if part is not types.NoneType))
    if get_origin(kind) is tuple:
        first = get_args(kind)[0]
        return "a list of whole numbers from 0" if first is int else "a list of pairs of whole numbers from 0"
    return {int: "a whole number from 0", float: "a number from 0", bool: "true or false"}.get(kind, "a text")


def _plain(name: str) -> str:
    """A model's name without what does not matter: owner, case, Meta's own name, a number's dash, the tuning."""
    last = re.split(r"[/\\]", name.strip().rstrip("/\\"))[-1].lower().replace("_", "-").removeprefix("meta-")
    return re.sub(r"(?<=[a-z])-(?=\d)", "", re.sub(r"-(instruct|chat|it|hf|base)$", "", last))
