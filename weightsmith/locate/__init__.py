"""Which places in a network carry a decision: activations are restored or removed, and the effect is measured."""

from weightsmith.locate.trace import causal_trace

__all__ = ["causal_trace"]
