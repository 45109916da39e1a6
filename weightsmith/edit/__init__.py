"""Editors: from requests to a `Delta` that corrects them and leaves the rest.

Every closed-form editor is a choice of metric and ridge for one solver (`solver`), carried out by one batch procedure
(`spread`); the baselines are gradient descents. Each returns a value, none changes the model.
"""

from weightsmith.edit.alphaedit import AlphaEdit
from weightsmith.edit.finetune import FineTune
from weightsmith.edit.head import HeadEdit
from weightsmith.edit.preserved import default_layers
from weightsmith.edit.registry import Editor, editor, editors, make_editor

__all__ = ["AlphaEdit", "Editor", "FineTune", "HeadEdit", "default_layers", "editor", "editors", "make_editor"]
