"""A site of one network: which module to hook, and how to read and write the site in its activation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from weightsmith.errors import WeightsmithError
from weightsmith.site import Site


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear map, an adapter's base included; GPT-2's Conv1D holds its weight the other way round."""
    base = getattr(module, "get_base_layer", None)  # what PEFT puts around a layer
    module = base() if callable(base) else module
    rows, columns = module.get_parameter("weight").shape
    return (int(columns), int(rows)) if isinstance(module, nn.Linear) else (int(rows), int(columns))


@dataclass(frozen=True)
class BoundSite:
    """A site of one network: the module to hook, and how to read and write the site in its activation."""

    site: Site
    path: str
    module: nn.Module
    side: str
    item: int | None
    columns: slice | None
    tokens: Tensor | None
    writable: bool

    def read(self, activation: Tensor) -> Tensor:
        """The site in the module's activation: (batch, tokens, width), or (batch, width) where there are no tokens."""
        if self.tokens is not None:
            activation = activation[:, self._positions(activation)]
        return activation if self.columns is None else activation[..., self.columns]

    def write(self, activation: Tensor, value: Tensor) -> Tensor:
        """The activation with the site replaced by `value` (shape as `read` gives it, or broadcast to it)."""
        columns = slice(None) if self.columns is None else self.columns
        value = value.to(activation.device, activation.dtype)
        if self.tokens is None and self.columns is None:
            return value.expand_as(activation).contiguous()  # GPT-2's Conv1D takes a view of it
        written = activation.clone()
        if self.tokens is None:
            written[..., columns] = value
        else:
            written[:, self._positions(activation), columns] = value
        return written

    def _positions(self, activation: Tensor) -> Tensor:
        """Where the tokens are in this pass; a text's length is known only here."""
        assert self.tokens is not None
        if int(self.tokens.max()) >= activation.shape[1]:
            raise WeightsmithError(
                f"the site {self.site} asks for token {int(self.tokens.max())}: there are 0 to "
                f"{activation.shape[1] - 1}, name one of them"
            )
        return self.tokens.to(activation.device)
