"""What a change did, on data that nothing before has seen. Only this room opens the seal on held-out images."""

from weightsmith.evaluate.answers import KnowledgeAnswers, answer
from weightsmith.evaluate.classification import (
    Classification,
    accuracy_change,
    answers_of,
    classify,
    confusion_matrix,
    top,
)
from weightsmith.evaluate.confidence import Confidence, ConfidenceBin, calibration_error, confidence_bins
from weightsmith.evaluate.divergence import divergence
from weightsmith.evaluate.editing import EditReport, editing
from weightsmith.evaluate.examples import Examples, examples, load_examples, save_examples
from weightsmith.evaluate.headline import headline
from weightsmith.evaluate.knowledge import KnowledgeReport, KnowledgeScores, knowledge
from weightsmith.evaluate.language import agreement, drift, perplexity
from weightsmith.evaluate.recommend import Candidate, Recommendation, pareto_front, recommend

__all__ = [
    "Candidate",
    "Classification",
    "Confidence",
    "ConfidenceBin",
    "EditReport",
    "Examples",
    "KnowledgeAnswers",
    "KnowledgeReport",
    "KnowledgeScores",
    "Recommendation",
    "accuracy_change",
    "agreement",
    "answer",
    "answers_of",
    "calibration_error",
    "classify",
    "confidence_bins",
    "confusion_matrix",
    "divergence",
    "drift",
    "editing",
    "examples",
    "headline",
    "knowledge",
    "load_examples",
    "pareto_front",
    "perplexity",
    "recommend",
    "save_examples",
    "top",
]
