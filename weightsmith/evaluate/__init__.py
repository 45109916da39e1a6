"""What a change did, on data that nothing before has seen. Only this room opens the seal on held-out images."""

from weightsmith.evaluate.classification import Classification, classify, confusion_matrix
from weightsmith.evaluate.editing import EditReport, editing

__all__ = ["Classification", "EditReport", "classify", "confusion_matrix", "editing"]
