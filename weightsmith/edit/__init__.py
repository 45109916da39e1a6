"""Editors: from requests to a `Delta` that corrects them and leaves the rest.

Every closed-form editor is a choice of metric and ridge for one solver (`solver`), carried out by one batch procedure
(`spread`) on requests of images or of text (`corrections`); the baselines are gradient descents. Each returns a value,
none changes the model.
"""

from weightsmith.edit.alphaedit import AlphaEdit
from weightsmith.edit.closed_form import ClosedForm
from weightsmith.edit.finetune import FineTune, LoRA
from weightsmith.edit.ftm import FTM
from weightsmith.edit.head import HeadEdit
from weightsmith.edit.memit import EMMET, MEMIT
from weightsmith.edit.patcher import Patcher
from weightsmith.edit.preserved import default_layers
from weightsmith.edit.registry import Editor, editor, editors, make_editor
from weightsmith.edit.rome import ROME

__all__ = [
    "EMMET", "FTM", "MEMIT", "ROME", "AlphaEdit", "ClosedForm", "Editor", "FineTune", "HeadEdit", "LoRA", "Patcher",
    "default_layers", "editor", "editors", "make_editor",
]  # fmt: skip
