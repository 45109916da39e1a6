"""`weightsmith merge`: the command, and the search for the coefficient that suits data of the user's own."""

from weightsmith.run.merge.command import merge

__all__ = ["merge"]
