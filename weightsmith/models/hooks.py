"""Read and patch activations at sites. Hooks live inside a context and are gone after it, whatever happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weightsmith.errors import WeightsmithError
from weightsmith.models.bound import BoundSite
from weightsmith.models.model import Model
from weightsmith.site import Site

Patch = Tensor | Callable[[Tensor], Tensor]
"""What a site becomes: a value of the shape that `record` gives (or broadcast to it), or a function of the old one."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Logits of a forward pass and the activations that it left at sites."""

    logits: Tensor
    activations: dict[Site, Tensor]

    def __getitem__(self, site: Site) -> Tensor:
        return self.activations[site]


def record(model: Model, inputs: Tensor, sites: Iterable[Site], start: int | None = None) -> Recording:
    """Run the model and keep the activation at each site, (n, tokens, width) or (n, width) where there are no tokens.

    Gradients flow as the caller's context says; wrap in `torch.no_grad()` to save memory.

    Args:
        inputs: preprocessed images; with `start`, what enters that block (see `Model.run_from`).

    Raises:
        WeightsmithError: a site that the model does not have, or that the pass did not reach.
    """
    with _keeping(model, sites) as (bounds, kept):
        logits = model.logits(inputs) if start is None else model.run_from(start, inputs)
    _check_reached(bounds, kept)
    return Recording(logits, kept)


def record_until(model: Model, inputs: Tensor, sites: Iterable[Site]) -> dict[Site, Tensor]:
    """The activations that `record` gives, bit for bit, from a pass that ends as soon as the last of them is there.

    Raises:
        WeightsmithError: a site that the model does not have, or that the pass did not reach.
    """
    with _keeping(model, sites, stop=True) as (bounds, kept), suppress(_AllKept):
        model.module(inputs)
    _check_reached(bounds, kept)
    return kept


class _AllKept(Exception):  # noqa: N818  (no error: it ends a pass that has given what was wanted)
    """Every site has been read."""


@contextmanager
def _keeping(
    model: Model, sites: Iterable[Site], stop: bool = False
) -> Iterator[tuple[list[BoundSite], dict[Site, Tensor]]]:
    """Keep what passes at the sites inside the block; with `stop`, raise `_AllKept` when everything has passed."""
    kept: dict[Site, Tensor] = {}
    bounds = [model.bind(site) for site in dict.fromkeys(sites)]

    def keep(bound: BoundSite) -> Callable[[Tensor], None]:
        def look(activation: Tensor) -> None:
            kept[bound.site] = bound.read(activation)
            if stop and len(kept) == len(bounds):
                raise _AllKept

        return look

    with ExitStack() as stack:
        for bound in bounds:
            stack.enter_context(_hooked(bound, keep(bound)))
        yield bounds, kept


def _check_reached(bounds: Iterable[BoundSite], kept: Mapping[Site, Tensor]) -> None:
    missing = [str(bound.site) for bound in bounds if bound.site not in kept]
    if missing:
        raise WeightsmithError(
            f"the forward pass never reached {missing[0]}: the family table does not fit this model, correct "
            "its module paths"
        )


@contextmanager
def patch(model: Model, patches: Mapping[Site, Patch]) -> Iterator[None]:
    """Replace activations at sites in every forward pass inside the block.

    Raises:
        WeightsmithError: a site that cannot be written, or that no pass inside the block reached.
    """
    fired: set[Site] = set()

    def change(bound: BoundSite, new: Patch) -> Callable[[Tensor], Tensor]:
        def rewrite(activation: Tensor) -> Tensor:
            fired.add(bound.site)
            return bound.write(activation, new if isinstance(new, Tensor) else new(bound.read(activation)))

        return rewrite

    with ExitStack() as stack:
        for site, new in patches.items():
            bound = model.bind(site)
            if not bound.writable:
                raise WeightsmithError(f"{site} can be recorded but not patched: patch resid.in or resid.out instead")
            stack.enter_context(_hooked(bound, change(bound, new)))
        yield
    silent = [str(site) for site in patches if site not in fired]
    if silent:
        raise WeightsmithError(f"no forward pass reached {silent[0]} while it was patched: run the model inside")


@contextmanager
def count_blocks(model: Model) -> Iterator[Callable[[], int]]:
    """Count block forwards (one image through one block is one) while the block runs.

    Examples:
        >>> with count_blocks(model) as count:            # doctest: +SKIP
        ...     model.logits(pixel_values)
        >>> count() == len(pixel_values) * model.n_layers  # doctest: +SKIP
    """
    total = 0

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal total
        hidden = args[0] if args else kwargs["hidden_states"]
        total += len(hidden)

    handles = [block.register_forward_pre_hook(add, with_kwargs=True) for block in model.blocks]
    try:
        yield lambda: total
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _hooked(bound: BoundSite, look: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `look` with the activation at the module's side; what it returns, if anything, takes its place."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        new = look(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if bound.item is None or isinstance(output, Tensor):  # newer versions give the tensor that older ones wrap
            return look(output)
        new = look(output[bound.item])
        return None if new is None else (*output[: bound.item], new, *output[bound.item + 1 :])

    if bound.side == "in":
        handle = bound.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = bound.module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
