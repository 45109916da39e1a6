"""What a run is shown as: figures, tables for the terminal, HTML pages, a model card.

Everything here takes plain values (rows of the run's CSV files, counts, `Effects`) and gives back a value: a `Figure`, a
rich renderable, text. Nothing is measured here, nothing is read from a run folder, and only `plots.save` writes. Names are
loaded when first used: a merge has a page as well, and does without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightsmith.report.card import model_card
    from weightsmith.report.comparison import by_batch_size, by_method, comparison_figures, comparison_table
    from weightsmith.report.curves import layer_curve_rows, layer_curves
    from weightsmith.report.edits import edit_entry
    from weightsmith.report.fact_card import language_card
    from weightsmith.report.locate_page import LocateInputs, build_locate
    from weightsmith.report.maps import layer_head_map, layer_head_rows, layer_token_map, layer_token_rows
    from weightsmith.report.overlays import attention_maps, patch_weight_rows, patch_weights, token_map_rows, token_maps
    from weightsmith.report.page import ChangedImages, EditedBatch, ReportInputs, build
    from weightsmith.report.plots import as_data_uri, confusion_matrices, layer_importance, save, training_curve
    from weightsmith.report.scatter import screen_rows, screen_scatter
    from weightsmith.report.terminal import evaluation_table, layer_bars, site_table

_HOMES = {
    "card": ("model_card",),
    "comparison": ("by_batch_size", "by_method", "comparison_figures", "comparison_table"),
    "curves": ("layer_curve_rows", "layer_curves"),
    "edits": ("edit_entry",),
    "fact_card": ("language_card",),
    "locate_page": ("LocateInputs", "build_locate"),
    "maps": ("layer_head_map", "layer_head_rows", "layer_token_map", "layer_token_rows"),
    "overlays": ("attention_maps", "patch_weight_rows", "patch_weights", "token_map_rows", "token_maps"),
    "page": ("ChangedImages", "EditedBatch", "ReportInputs", "build"),
    "plots": ("as_data_uri", "confusion_matrices", "layer_importance", "save", "training_curve"),
    "scatter": ("screen_rows", "screen_scatter"),
    "terminal": ("evaluation_table", "layer_bars", "site_table"),
}

__all__ = [
    "ChangedImages",
    "EditedBatch",
    "LocateInputs",
    "ReportInputs",
    "as_data_uri",
    "attention_maps",
    "build",
    "build_locate",
    "by_batch_size",
    "by_method",
    "comparison_figures",
    "comparison_table",
    "confusion_matrices",
    "edit_entry",
    "evaluation_table",
    "language_card",
    "layer_bars",
    "layer_curve_rows",
    "layer_curves",
    "layer_head_map",
    "layer_head_rows",
    "layer_importance",
    "layer_token_map",
    "layer_token_rows",
    "model_card",
    "patch_weight_rows",
    "patch_weights",
    "save",
    "screen_rows",
    "screen_scatter",
    "site_table",
    "token_map_rows",
    "token_maps",
    "training_curve",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"weightsmith.report.{home}"), name)
    raise AttributeError(f"module 'weightsmith.report' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
