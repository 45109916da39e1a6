"""Locate what in a trained transformer causes an error, edit the weights to correct it, and prove what changed.

    import weightsmith as ws

Public names are loaded when first used, so that importing the package, and every command's help, is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Delta": "weightsmith.delta",
    "Dense": "weightsmith.factors",
    "Edge": "weightsmith.edge",
    "Effects": "weightsmith.effects",
    "HeldOutError": "weightsmith.errors",
    "LowRank": "weightsmith.factors",
    "Model": "weightsmith.models",
    "ImageRequest": "weightsmith.request",
    "Kept": "weightsmith.circuit",
    "Probe": "weightsmith.request",
    "Site": "weightsmith.site",
    "TaskVector": "weightsmith.merge.task_vector",
    "TextRequest": "weightsmith.request",
    "Unit": "weightsmith.circuit",
    "UnitScores": "weightsmith.scores",
    "WeightsmithError": "weightsmith.errors",
    "load": "weightsmith.models",
    "misclassified": "weightsmith.measure",
    "patch": "weightsmith.models",
    "predict": "weightsmith.measure",
    "record": "weightsmith.models",
}
_ROOMS = {"data", "edit", "evaluate", "locate", "measure", "models", "prune", "ranks", "report"}

__all__ = [
    "Delta",
    "Dense",
    "Edge",
    "Effects",
    "HeldOutError",
    "ImageRequest",
    "Kept",
    "LowRank",
    "Model",
    "Probe",
    "Site",
    "TaskVector",
    "TextRequest",
]
__all__ += ["Unit", "UnitScores", "WeightsmithError"]
__all__ += ["data", "edit", "evaluate", "load", "locate", "measure", "misclassified", "models", "patch", "predict"]
__all__ += ["prune", "ranks", "record", "report", "views"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"weightsmith.{name}")
    if name == "views":
        return import_module("weightsmith.data.views")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'weightsmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
