"""What a change did, on data that nothing before has seen. Only this room opens the seal on held-out images."""

from weightsmith.evaluate.answers import KnowledgeAnswers, answer
from weightsmith.evaluate.classification import Classification, classify, confusion_matrix
from weightsmith.evaluate.editing import EditReport, editing
from weightsmith.evaluate.headline import headline
from weightsmith.evaluate.knowledge import KnowledgeReport, KnowledgeScores, knowledge
from weightsmith.evaluate.language import agreement, drift, perplexity

__all__ = [
    "Classification",
    "EditReport",
    "KnowledgeAnswers",
    "KnowledgeReport",
    "KnowledgeScores",
    "agreement",
    "answer",
    "classify",
    "confusion_matrix",
    "drift",
    "editing",
    "headline",
    "knowledge",
    "perplexity",
]
