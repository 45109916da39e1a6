"""The obvious ways to sweep activation patching, which the exact sweep of weightsmith is timed against.

Every function computes the same thing: corrupted embeddings enter the first block, the clean activation is written
back at one site, and the logit of `pair[0]` less that of `pair[1]` is read; a mean over the corrupted samples for every
layer and token, or every layer and head. They work on plain `transformers` networks and share no code with weightsmith.

- Hook loops: one full forward pass a site, as most scripts do it; `batch` puts several sites into one pass.
- nnsight (https://nnsight.net, tried with 0.8.1): one trace for `batch` sites. `skip` gives the blocks below the
  restored one their corrupted output instead of running them, which nnsight's own guide to sweeps recommends.

    python benchmarks/locate/peers.py --check
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from shapes import gpt2, noise, vit
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, ViTForImageClassification

TOLERANCE = 1e-5

Entries = tuple[int | slice, int | slice]
"""The tokens and the columns of an activation that one site is."""


@dataclass(frozen=True)
class Sweep:
    """What is restored. Modules may be those of the network or nnsight's envoys of them.

    Attributes:
        network: what a forward pass or a trace is made with.
        embedding: the module whose output enters the first block.
        blocks: the blocks, first to last.
        places: the module at which a layer is restored.
        side: "in" or "out", the side of it.
        sites: the entries of a layer's activation that are restored together.
    """

    network: Any
    embedding: Any
    blocks: Sequence[Any]
    places: Sequence[Any]
    side: str
    sites: Sequence[Entries]


def _tokens(network: Any, tokens: Sequence[int]) -> Sweep:
    """The residual behind a block at one token, in a ViT."""
    blocks = list(network.vit.layers)
    return Sweep(network, network.vit.embeddings, blocks, blocks, "out", [(token, slice(None)) for token in tokens])


def _heads(network: Any, heads: Sequence[int], width: int) -> Sweep:
    """What a head hands to the output projection, at every token, in a ViT."""
    blocks = list(network.vit.layers)
    places = [block.attention.o_proj for block in blocks]
    sites = [(slice(None), slice(head * width, (head + 1) * width)) for head in heads]
    return Sweep(network, network.vit.embeddings, blocks, places, "in", sites)


def _causal(network: Any, tokens: Sequence[int]) -> Sweep:
    """The residual behind a block at one token, in a GPT-2."""
    blocks = list(network.transformer.h)
    embedding = network.transformer.drop
    return Sweep(network, embedding, blocks, blocks, "out", [(token, slice(None)) for token in tokens])


def hook_loop_tokens(
    network: ViTForImageClassification,
    clean: Tensor,
    corrupted: Tensor,
    pair: tuple[int, int],
    *,
    layers: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    batch: int = 1,
) -> Tensor:
    """(layers, tokens) of a ViT, one forward pass with a hook on the block for every layer and `batch` tokens.

    Args:
        clean: (1, T, width) what enters the first block.
        corrupted: (samples, T, width) the same with noise.
        layers: all where none are given; so for tokens.
        batch: sites that share a forward pass; 1 is the plain loop.
    """
    sweep = _tokens(network, _all(tokens, clean.shape[1]))
    return _hook_loop(sweep, clean, corrupted, pair, layers, batch)


def hook_loop_heads(
    network: ViTForImageClassification,
    clean: Tensor,
    corrupted: Tensor,
    pair: tuple[int, int],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    batch: int = 1,
) -> Tensor:
    """(layers, heads) of a ViT, a hook before the output projection for every layer and `batch` heads."""
    sweep = _heads(network, _all(heads, network.config.num_attention_heads), _head_width(network))
    return _hook_loop(sweep, clean, corrupted, pair, layers, batch)


def hook_loop_causal(
    network: GPT2LMHeadModel,
    clean: Tensor,
    corrupted: Tensor,
    pair: tuple[int, int],
    *,
    layers: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    batch: int = 1,
) -> Tensor:
    """(layers, tokens) of a GPT-2, one forward pass with a hook on the block for every layer and `batch` tokens."""
    sweep = _causal(network, _all(tokens, clean.shape[1]))
    return _hook_loop(sweep, clean, corrupted, pair, layers, batch)


def nnsight_tokens(
    network: ViTForImageClassification,
    clean: Tensor,
    corrupted: Tensor,
    pair: tuple[int, int],
    *,
    layers: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    batch: int = 8,
    skip: bool = True,
) -> Tensor:
    """(layers, tokens) of a ViT, one trace for every layer and `batch` tokens.

    Args:
        batch: sites that share a trace; 1 is the plain form.
        skip: do not run the blocks below the restored one, whose outputs are known.
    """
    sweep = _tokens(_wrapped(network), _all(tokens, clean.shape[1]))
    return _nnsight(sweep, clean, corrupted, pair, layers, batch, skip)


def nnsight_heads(
    network: ViTForImageClassification,
    clean: Tensor,
    corrupted: Tensor,
    pair: tuple[int, int],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    batch: int = 8,
    skip: bool = True,
) -> Tensor:
    """(layers, heads) of a ViT, one trace for every layer and `batch` heads."""
    sweep = _heads(_wrapped(network), _all(heads, network.config.num_attention_heads), _head_width(network))
    return _nnsight(sweep, clean, corrupted, pair, layers, batch, skip)


def nnsight_causal(
    network: GPT2LMHeadModel,
    clean: Tensor,
    corrupted: Tensor,
    pair: tuple[int, int],
    *,
    layers: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    batch: int = 8,
    skip: bool = True,
) -> Tensor:
    """(layers, tokens) of a GPT-2, one trace for every layer and `batch` tokens."""
    sweep = _causal(_wrapped(network), _all(tokens, clean.shape[1]))
    return _nnsight(sweep, clean, corrupted, pair, layers, batch, skip)


@torch.inference_mode()
def difference(network: nn.Module, embedding: Tensor, pair: tuple[int, int]) -> Tensor:
    """The metric of embeddings that nothing is restored in, a mean over them."""
    sweep = _causal(network, []) if _reads_text(network) else _tokens(network, [])
    with _hooked(sweep.blocks[0], "in", lambda _: embedding):
        logits = network(**_inputs(network, embedding)).logits
    return _metric(logits, pair, len(embedding))[0]


@torch.inference_mode()
def _hook_loop(
    sweep: Sweep,
    clean: Tensor,
    corrupted: Tensor,
    pair: tuple[int, int],
    layers: Sequence[int] | None,
    batch: int,
) -> Tensor:
    layers = _all(layers, len(sweep.blocks))
    samples, first = len(corrupted), sweep.blocks[0]
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], None]:
        return lambda activation: kept.update({layer: activation})

    handles = [_hook(sweep.places[layer], sweep.side, keep(layer)) for layer in layers]
    try:
        with _hooked(first, "in", lambda _: clean):
            sweep.network(**_inputs(sweep.network, clean))
    finally:
        for handle in handles:
            handle.remove()

    restored = []
    for layer in layers:
        for begin in range(0, len(sweep.sites), batch):
            chosen = sweep.sites[begin : begin + batch]
            entering = corrupted.repeat(len(chosen), 1, 1)

            def restore(activation: Tensor, layer: int = layer, chosen: Sequence[Entries] = chosen) -> None:
                for number, site in enumerate(chosen):
                    activation[number * samples : (number + 1) * samples, *site] = kept[layer][:, *site]

            with (
                _hooked(first, "in", lambda _, entering=entering: entering),
                _hooked(sweep.places[layer], sweep.side, restore),
            ):
                logits = sweep.network(**_inputs(sweep.network, entering)).logits
            restored.append(_metric(logits, pair, samples))
    return torch.cat(restored).view(len(layers), -1)


@torch.inference_mode()
def _nnsight(
    sweep: Sweep,
    clean: Tensor,
    corrupted: Tensor,
    pair: tuple[int, int],
    layers: Sequence[int] | None,
    batch: int,
    skip: bool,
) -> Tensor:
    # nnsight offers to batch with one invoke a site, each of which sees its own rows. A wrapped `transformers` network
    # needs a subclass for that; one invoke that holds the rows of all sites is as fast and needs none.
    import nnsight

    layers = _all(layers, len(sweep.blocks))
    network, samples = sweep.network, len(corrupted)
    with network.trace(**_inputs(network._module, clean)):
        sweep.embedding.skip(clean)
        kept = nnsight.save([place.input if sweep.side == "in" else place.output for place in sweep.places])
    if skip:
        with network.trace(**_inputs(network._module, corrupted)):
            sweep.embedding.skip(corrupted)
            unrestored = nnsight.save([block.output for block in sweep.blocks])

    restored = []
    for layer in layers:
        for begin in range(0, len(sweep.sites), batch):
            chosen = sweep.sites[begin : begin + batch]
            entering = corrupted.repeat(len(chosen), 1, 1)
            below = unrestored[layer - 1].repeat(len(chosen), 1, 1) if skip and layer else None
            with network.trace(**_inputs(network._module, entering)):
                sweep.embedding.skip(entering)
                if below is not None:
                    for block in sweep.blocks[:layer]:
                        block.skip(below)  # only the last of them is read
                activation = sweep.places[layer].input if sweep.side == "in" else sweep.places[layer].output
                for number, site in enumerate(chosen):
                    activation[number * samples : (number + 1) * samples, *site] = kept[layer][:, *site]
                logits = nnsight.save(network.output.logits)
            restored.append(_metric(logits, pair, samples))
    return torch.cat(restored).view(len(layers), -1)


def _wrapped(network: nn.Module) -> Any:
    """nnsight's view of a copy with the same weights: it leaves controllers on modules, which would slow hook loops."""
    from nnsight import NNsight

    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return NNsight(copy.deepcopy(network, shared))


def _all(given: Sequence[int] | None, count: int) -> Sequence[int]:
    return range(count) if given is None else given


def _head_width(network: ViTForImageClassification) -> int:
    return network.config.hidden_size // network.config.num_attention_heads


def _reads_text(network: nn.Module) -> bool:
    return isinstance(network, GPT2LMHeadModel)


def _inputs(network: nn.Module, hidden: Tensor) -> dict[str, Any]:
    """Inputs of the right shape; what they embed to is replaced. Of a text, logits of the last token alone."""
    if _reads_text(network):
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        return {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
    config: Any = network.config
    shape = (len(hidden), config.num_channels, config.image_size, config.image_size)
    return {"pixel_values": torch.zeros(shape, dtype=hidden.dtype, device=hidden.device)}


def _metric(logits: Tensor, pair: tuple[int, int], samples: int) -> Tensor:
    """(sites,) difference of two logits, a mean over the samples of a site."""
    logits = logits.flatten(1)  # a text's (rows, 1, vocabulary)
    return (logits[:, pair[0]] - logits[:, pair[1]]).view(-1, samples).mean(1)


def _hook(module: nn.Module, side: str, look: Callable[[Tensor], Tensor | None]) -> Any:
    """Call `look` with the activation at a side of the module; what it returns, if anything, takes its place."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = look(args[0])
        return None if new is None else (new, *args[1:])

    if side == "in":
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(lambda _, __, output: look(output))


@contextmanager
def _hooked(module: nn.Module, side: str, look: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    handle = _hook(module, side, look)
    try:
        yield
    finally:
        handle.remove()


def check() -> bool:
    """Whether all peers agree on tiny networks; prints how far they are apart."""
    try:
        import nnsight

        print(f"nnsight {nnsight.__version__}, torch {torch.__version__}")
    except ImportError:
        nnsight = None
        print(f"nnsight is not installed and left out, torch {torch.__version__}")
    images = vit(layers=3, width=24, heads=3, tokens=10, classes=4)
    text = gpt2(layers=3, width=24, heads=3, vocabulary=50, positions=16)
    cases = [
        ("tokens", images, noise(images, samples=2), hook_loop_tokens, nnsight_tokens),
        ("heads", images, noise(images, samples=2), hook_loop_heads, nnsight_heads),
        ("causal", text, noise(text, tokens=7, samples=2), hook_loop_causal, nnsight_causal),
    ]
    worst = 0.0
    for name, network, (clean, corrupted), by_hooks, by_nnsight in cases:
        pair = (1, 2)
        plain = by_hooks(network, clean, corrupted, pair)
        ends = [difference(network, embedding, pair).item() for embedding in (clean, corrupted)]
        print(f"{name} {tuple(plain.shape)}: clean {ends[0]:.3f}, corrupted {ends[1]:.3f}", end=", ")
        print(f"restored {plain.min():.3f} to {plain.max():.3f}")
        others = {"hook loop, 4 sites a pass": by_hooks(network, clean, corrupted, pair, batch=4)}
        for batch in (1, 4) if nnsight else ():
            for skip in (False, True):
                told = f"nnsight, {batch} a trace{', skipping' if skip else ''}"
                others[told] = by_nnsight(network, clean, corrupted, pair, batch=batch, skip=skip)
        if name != "heads":
            # Behind the last block only the token that is read out matters, and it is clean or it is not.
            expected = torch.full_like(plain[-1], ends[1])
            expected[0 if name == "tokens" else -1] = ends[0]
            others["what the last layer must be"] = torch.cat([plain[:-1], expected[None]])
        for told, values in others.items():
            apart = (values - plain).abs().max().item()
            worst = max(worst, apart)
            print(f"  {told}: {apart:.1e} from the plain hook loop")
    return worst <= TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="whether all peers agree on tiny networks")
    given = parser.parse_args()
    if not given.check:
        parser.print_help()
    elif not check():
        raise SystemExit(f"the peers are more than {TOLERANCE} apart")


if __name__ == "__main__":
    main()
