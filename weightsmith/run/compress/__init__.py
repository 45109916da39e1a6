"""`weightsmith compress`: a baseline, the smaller models that it is made into, and what they are worth."""

from weightsmith.run.compress.command import compress

__all__ = ["compress"]
