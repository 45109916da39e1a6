"""What a run is shown as: figures, tables for the terminal, one HTML page, a model card.

Everything here takes plain values (rows of the run's CSV files, counts, `Effects`) and gives back a value: a `Figure`, a
rich renderable, text. Nothing is measured here, nothing is read from a run folder, and only `plots.save` writes.
"""

from weightsmith.report.card import model_card
from weightsmith.report.comparison import by_batch_size, by_method, comparison_figures, comparison_table
from weightsmith.report.edits import edit_entry
from weightsmith.report.language_card import language_card
from weightsmith.report.locate_page import LocateInputs, build_locate
from weightsmith.report.maps import (
    layer_curve_rows,
    layer_curves,
    layer_head_map,
    layer_head_rows,
    layer_token_map,
    layer_token_rows,
    screen_rows,
    screen_scatter,
)
from weightsmith.report.overlays import attention_maps, patch_weight_rows, patch_weights, token_map_rows, token_maps
from weightsmith.report.page import EditedBatch, ReportInputs, build
from weightsmith.report.plots import as_data_uri, confusion_matrices, layer_importance, save, training_curve
from weightsmith.report.terminal import evaluation_table, layer_bars, site_table

__all__ = [
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
