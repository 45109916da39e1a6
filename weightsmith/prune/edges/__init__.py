"""What each part of a vision transformer reads of each other part: edges scored, and the network run with some of them."""

from weightsmith.prune.edges.corruption import CORRUPTIONS
from weightsmith.prune.edges.graph import EdgeGraph
from weightsmith.prune.edges.scores import EDGE_METHODS, EdgeScores, edge_scores, run_edges

__all__ = ["CORRUPTIONS", "EDGE_METHODS", "EdgeGraph", "EdgeScores", "edge_scores", "run_edges"]
