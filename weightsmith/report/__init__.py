"""What a run is shown as: figures, tables for the terminal, one HTML page, a model card.

Everything here takes plain values (rows of the run's CSV files, counts, `Effects`) and gives back a value: a `Figure`, a
rich renderable, text. Nothing is measured here, nothing is read from a run folder, and only `plots.save` writes.
"""

from weightsmith.report.card import model_card
from weightsmith.report.page import EditedBatch, ReportInputs, build
from weightsmith.report.plots import as_data_uri, confusion_matrices, layer_importance, save, training_curve
from weightsmith.report.terminal import evaluation_table, layer_bars

__all__ = [
    "EditedBatch",
    "ReportInputs",
    "as_data_uri",
    "build",
    "confusion_matrices",
    "evaluation_table",
    "layer_bars",
    "layer_importance",
    "model_card",
    "save",
    "training_curve",
]
