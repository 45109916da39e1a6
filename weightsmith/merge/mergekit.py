"""mergekit's YAML as input: what it says in our words, and what of it we do not do, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import cause_of

METHODS = {
    "linear": "linear",
    "task_arithmetic": "task_arithmetic",
    "ties": "ties",
    "dare_linear": "dare_linear",
    "dare_ties": "dare_ties",
    "slerp": "slerp",
    "breadcrumbs": "breadcrumbs",
    "model_stock": "model_stock",
}
"""mergekit's names of the methods that we have."""
_TOP = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "name")
_SHARED = ("lambda", "t", "normalize", "rescale", "int8_mask", "weight", "density", "gamma")
_OF_MODEL = ("weight", "density", "gamma")
_NORMALIZED = ("linear", "ties", "dare_ties")
"""Methods that divide by a sum of weights here; mergekit's `normalize` must say the same, or weights mean something else."""


@dataclass(frozen=True)
class Recipe:
    """What a file asks for.

    Attributes:
        options: fields of `MergeOptions`.
        notes: where our result will differ from mergekit's.
    """

    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def read_recipe(path: Path) -> Recipe:
    """Read a file of mergekit's.

    Raises:
        WeightsmithError: naming the file and the entry: not readable, or something that is not supported.
    """
    import yaml  # a merge without a recipe does without it

    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsmithError(
            f"--mergekit {path} cannot be read ({cause_of(error)}): give a YAML file of mergekit's"
        ) from error
    if not isinstance(entries, dict):
        raise WeightsmithError(f"--mergekit {path} must hold a mapping such as `merge_method: ties`")
    return _Reading(f"--mergekit {path}", entries).recipe()


class _Reading:
    """One file on its way to a recipe."""

    def __init__(self, where: str, entries: dict[str, Any]) -> None:
        self.where, self.entries = where, entries
        self.notes: list[str] = []

    def recipe(self) -> Recipe:
        self._known(self.entries, _TOP, "")
        method = str(self.entries.get("merge_method"))
        if method not in METHODS:
            raise WeightsmithError(
                f"{self.where} asks for the merge_method {method}, which is not supported: {did_you_mean(method, METHODS)}"
            )
        shared = self._parameters(self.entries.get("parameters"), _SHARED, "parameters")
        base = self.entries.get("base_model")
        models, own = self._models(base if method != "linear" else None)
        if base is None:
            if method != "linear":
                raise WeightsmithError(
                    f"{self.where} has no base_model: name the model that the others were fine-tuned from"
                )
            base = models[0]
            self.notes.append(
                f"mergekit's linear needs no base: {base}, the first model, is where config and tokenizer come from"
            )
        options: dict[str, Any] = {"method": METHODS[method], "base": str(base), "models": tuple(models)}
        options |= self._weights(method, shared, own)
        for name in ("density", "gamma"):
            values = {entry.get(name, shared.get(name)) for entry in own}
            if len(values) > 1:
                raise WeightsmithError(
                    f"{self.where} gives each model a {name} of its own, which is not supported: give one for all"
                )
            if (value := values.pop()) is not None:
                options[name] = value
        if shared.get("lambda") is not None:
            options["lambda_"] = shared["lambda"]
        self._told(method, shared, options)
        dtype = self.entries.get("out_dtype") or self.entries.get("dtype")
        if dtype is not None:
            known = ("float32", "float16", "bfloat16")
            if dtype not in known:
                raise WeightsmithError(
                    f"{self.where} asks for the dtype {dtype}, which is not supported: {did_you_mean(str(dtype), known)}"
                )
            options["dtype"] = dtype
        return Recipe(options, tuple(self.notes))

    def _models(self, base: Any) -> tuple[list[str], list[dict[str, Any]]]:
        """The models and the parameters of each; the base among them is left out, as its change is 0."""
        listed = self.entries.get("models")
        if not isinstance(listed, list) or not listed:
            raise WeightsmithError(
                f"{self.where} has no list of models: slices and modules are not supported, write `models:` "
                "with an entry each"
            )
        names, own = [], []
        for entry in listed:
            if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
                raise WeightsmithError(f"{self.where}: every entry of models must be like `model: DIR`")
            self._known(entry, ("model", "parameters"), f"models: {entry['model']}: ")
            if entry["model"] == base:
                continue
            names.append(entry["model"])
            own.append(self._parameters(entry.get("parameters"), _OF_MODEL, f"models: {entry['model']}: parameters"))
        if not names:
            raise WeightsmithError(f"{self.where} lists no model beside the base: add the fine-tuned ones")
        return names, own

    def _weights(self, method: str, shared: dict[str, Any], own: list[dict[str, Any]]) -> dict[str, Any]:
        if method == "slerp":
            if shared.get("t") is None:
                raise WeightsmithError(f"{self.where} has no parameters: t, which slerp needs: add one, 0.5 say")
            return {"weights": (shared["t"],) * len(own)}
        weights = [entry.get("weight", shared.get("weight")) for entry in own]
        if method == "model_stock" or all(weight is None for weight in weights):
            return {}
        if any(weight is None for weight in weights):
            raise WeightsmithError(f"{self.where} gives some models a weight and others none: give every one a weight")
        return {"weights": tuple(weights)}

    def _told(self, method: str, shared: dict[str, Any], options: dict[str, Any]) -> None:
        """What mergekit's switches would do otherwise."""
        mean = method in _NORMALIZED
        stated = "normalize" in shared
        asked = shared.get("normalize", method in ("linear", "ties"))  # mergekit's default
        if asked != mean:
            raise WeightsmithError(
                f"{self.where} {'asks for' if stated else 'leaves'} normalize: {str(asked).lower()}, which is not supported "
                f"for {method}: give normalize: {str(mean).lower()}"
            )
        if "rescale" in shared and shared["rescale"] != method.startswith("dare"):
            raise WeightsmithError(
                f"{self.where} asks for rescale: {str(shared['rescale']).lower()}, not supported for {method}: leave it out"
            )
        if method == "ties":
            self.notes.append(
                "TIES trims over all tensors together, as its paper does; mergekit trims each tensor by itself"
            )
        if method.startswith("dare"):
            self.notes.append(
                "DARE draws by tensor and seed and divides by the density; mergekit draws otherwise and scales to a norm"
            )
        if method in ("ties", "dare_linear", "dare_ties", "breadcrumbs"):
            options.setdefault("density", 1.0)  # mergekit's default

    def _parameters(self, entries: Any, known: tuple[str, ...], where: str) -> dict[str, Any]:
        if entries is None:
            return {}
        if not isinstance(entries, dict):
            raise WeightsmithError(f"{self.where}: {where} must be a mapping such as `weight: 0.5`")
        self._known(entries, known, f"{where}: ")
        found: dict[str, Any] = {}
        for name, value in entries.items():
            if name in ("normalize", "rescale", "int8_mask"):
                found[name] = bool(value)
            elif isinstance(value, bool) or not isinstance(value, int | float):
                raise WeightsmithError(
                    f"{self.where}: {where}: {name} is {value!r}; gradients and filters are not supported, give a number"
                )
            else:
                found[name] = float(value)
        return found

    def _known(self, entries: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
        for name in entries:
            if name not in known:
                raise WeightsmithError(
                    f"{self.where}: {where}{name} is not supported: {did_you_mean(str(name), known)}"
                )
