"""Packages: those that weightsmith needs, torchvision, which breaks others where it fits no torch, and optional parts."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from importlib.util import find_spec

from weightsmith.run.doctor.check import Check
from weightsmith.run.doctor.child import Answer

NEEDED_PYTHON = (3, 11)

TRANSFORMERS = (
    "import json, transformers, peft; from transformers import ViTForImageClassification, GPT2LMHeadModel; "
    "print(json.dumps({'transformers': transformers.__version__, 'peft': peft.__version__}))"
)
TORCHVISION = (
    "import json, torch, torchvision; from torchvision.ops import nms; "
    "nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5); "
    "print(json.dumps({'torchvision': torchvision.__version__}))"
)
"""It is compiled against one torch; beside another its operators are missing, and so is every import that passes it."""

OPTIONAL = {
    "parquet": (("pyarrow",), "data sets in parquet files", 'pip install "weightsmith[parquet]"'),
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "export to ONNX", 'pip install "weightsmith[onnx]"'),
    "app": (("gradio",), "the bench, a page to correct a model by clicking", 'pip install "weightsmith[app]"'),
    "cluster": (("ray", "distributed"), "sweeps on a Ray or Dask cluster", 'pip install "weightsmith[cluster]"'),
    "timm": (("timm",), "vision transformers of timm", "pip install timm"),
}
"""Extra → (its packages, what it is for, what installs it)."""


def python() -> Check:
    """The interpreter."""
    found = f"Python {platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < NEEDED_PYTHON:
        return Check(name="python", state="broken", found=found, remedy="make an environment with Python 3.11 or newer")
    return Check(name="python", state="fine", found=found)


def needed() -> list[Check]:
    """Every package that weightsmith asks for, against what is installed."""
    try:
        asked = metadata.requires("weightsmith") or []
    except metadata.PackageNotFoundError:
        remedy = "pip install . in its folder"
        return [Check(name="packages", state="broken", found="weightsmith itself is not installed", remedy=remedy)]
    found: list[Check] = []
    good: list[str] = []
    for line in asked:
        if "extra ==" in line:
            continue
        match = re.match(r"([A-Za-z0-9_.-]+)\s*(?:>=\s*([0-9.]+))?", line)
        assert match is not None
        name, least = match[1], match[2] or "0"
        there = installed(name)
        if there is None:
            told, remedy = "not installed", f'pip install "{name}>={least}"'
            found.append(Check(name=name, state="broken", found=told, remedy=remedy))
        elif _numbers(there) < _numbers(least):
            told = f"{there} is installed and {least} or newer is needed"
            found.append(
                Check(name=name, state="broken", found=told, remedy=f'pip install --upgrade "{name}>={least}"')
            )
        else:
            good.append(f"{name} {there}")
    return found or [Check(name="packages", state="fine", found=", ".join(good))]


def transformers(answer: Answer) -> Check:
    """Whether the models' library can be imported, which other packages can prevent."""
    if answer.error:
        remedy = "mend what the message names (torchvision, where it is broken); else pip install --upgrade transformers peft"
        return Check(name="transformers", state="broken", found=f"cannot be imported: {answer.error}", remedy=remedy)
    return Check(name="transformers", state="fine", found="ViT, GPT-2 and peft can be imported")


def torchvision(answer: Answer | None) -> Check:
    """Whether torchvision, which weightsmith does without, is such that others can pass it.

    Args:
        answer: None where it is not installed.
    """
    if answer is None:
        return Check(name="torchvision", state="fine", found="not installed, and not needed")
    if answer.error:
        both = f"torchvision {installed('torchvision')} beside torch {installed('torch')}"
        remedy = "pip uninstall torchvision (nothing here needs it), or install the one that was made for this torch"
        return Check(name="torchvision", state="broken", found=f"{both}: {answer.error}", remedy=remedy)
    return Check(name="torchvision", state="fine", found=f"{answer.entries['torchvision']} fits torch")


def optional() -> list[Check]:
    """Parts that nobody needs who does not use them."""
    found = []
    for name, (packages, what, remedy) in OPTIONAL.items():
        absent = [package for package in packages if find_spec(package) is None]
        if absent:
            told = f"{', '.join(absent)} not installed: no {what}"
            found.append(Check(name=f"extra {name}", state="absent", found=told, remedy=remedy))
        else:
            there = ", ".join(f"{package} {installed(package)}" for package in packages)
            found.append(Check(name=f"extra {name}", state="fine", found=there))
    return found


def installed(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (2, 6) of "2.6.0+cpu", trailing zeros left out."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else [0]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
