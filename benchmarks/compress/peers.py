"""Other ways to make a vision transformer smaller without training: Torch-Pruning, weight norms, and chance.

    python benchmarks/compress/peers.py --check    # on a tiny network

Torch-Pruning (Fang et al., DepGraph, 2023) comes by `pip install torch-pruning -c constraints.txt`; it is no requirement of
weightsmith. Every peer is given the same calibration images and asked for the same multiply-adds, as `Cost` counts them.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from weightsmith.circuit import Kept, Shape
from weightsmith.data.images import ImageSet
from weightsmith.data.split import from_arrays
from weightsmith.errors import WeightsmithError
from weightsmith.measure import Cost
from weightsmith.measure.cost import still_image
from weightsmith.models import Model, create, load
from weightsmith.prune import removed, shape_of

STEPS = 12
"""Of a bisection of a ratio: 1/4096 of the units, less than one neuron of the networks here."""


@dataclass(frozen=True)
class Variant:
    """How Torch-Pruning is asked to prune.

    Attributes:
        cuts: "heads" whole heads and neurons; "bottleneck" entries of every head and neurons, its example's `--bottleneck`;
            "width" these and the residual stream, what its examples do where nothing else is said.
        over_blocks: rank the units of all blocks together, its `global_pruning`; otherwise every block loses the same share,
            which its examples do where nothing else is said.
    """

    cuts: str
    over_blocks: bool


VARIANTS = {
    "heads, MLP": Variant("heads", over_blocks=False),
    "heads, MLP, global": Variant("heads", over_blocks=True),
    "bottleneck": Variant("bottleneck", over_blocks=False),
    "bottleneck, global": Variant("bottleneck", over_blocks=True),
    "width": Variant("width", over_blocks=False),
    "width, global": Variant("width", over_blocks=True),
}


@torch.enable_grad()
def torch_pruned(
    model: Model, images: ImageSet, macs_share: float, variant: Variant, multiple: int | None = None
) -> Model:
    """Torch-Pruning with its group Taylor score, Σ |w ∂L/∂w| of a unit's weights, L the cross-entropy over the images.

    This is what its readme calls a good choice for ViTs, in one step. Nothing in it is drawn. One ratio is asked of heads
    and widths alike and bisected; where a head is too large a step, widths are then given back as far as fits.

    Args:
        multiple: of which the widths are to be, its `round_to`.

    Raises:
        WeightsmithError: no ratio reaches so few multiply-adds.
    """
    gradients = _gradients(model, images)
    most = macs_share * Cost.of(model).macs
    there = sum(shape_of(model).heads) if variant.over_blocks else shape_of(model).heads[0]

    def of_heads(ratio: float) -> float:
        # Torch-Pruning leaves an attention whole whose heads would all go.
        return min(round(there * ratio), there - 1) / there

    def at(ratio: float, heads: float | None = None) -> Model:
        return _torch_pruned(model, gradients, variant, ratio, of_heads(ratio) if heads is None else heads, multiple)

    ratio, made = least(at, most)
    if variant.cuts != "heads" or ratio == 0.0:
        return made
    # With no width to prune Torch-Pruning leaves the heads alone too, so this may be further from the goal.
    _, filled = least(lambda other: at(other, of_heads(ratio)), most)
    return max(made, filled, key=lambda one: Cost.of(one).macs)


def least(at: Callable[[float], Model], most_macs: float, steps: int = STEPS) -> tuple[float, Model]:
    """The least ratio in [0, 1) whose model has at most so many multiply-adds, and that model.

    Raises:
        WeightsmithError: none has.
    """
    made = at(0.0)
    if Cost.of(made).macs <= most_macs:
        return 0.0, made
    low, high, found = 0.0, 1.0, None
    for _ in range(steps):
        middle = (low + high) / 2
        made = at(middle)
        if Cost.of(made).macs <= most_macs:
            high, found = middle, made
        else:
            low = middle
    if found is None:
        raise WeightsmithError(f"no ratio leaves {most_macs:,.0f} multiply-adds or fewer: ask for a larger --share")
    return high, found


def _gradients(model: Model, images: ImageSet, batch_size: int = 64) -> list[Tensor]:
    """∂L/∂w of every parameter, summed over batches as Torch-Pruning's examples do."""
    network = copy.deepcopy(model.module).requires_grad_(True)
    for pixels, labels in images.batches(batch_size):
        logits = network(model.preprocess(pixels, model.device)).logits
        torch.nn.functional.cross_entropy(logits, labels.to(logits.device)).backward()
    return [parameter.grad for parameter in network.parameters()]


def _torch_pruned(
    model: Model, gradients: Sequence[Tensor], variant: Variant, ratio: float, heads: float, multiple: int | None
) -> Model:
    """Pruned in one step, with so large a share of the widths and of the heads gone."""
    import torch_pruning

    network = copy.deepcopy(model.module)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.requires_grad_(True).grad = gradient.clone()
    attentions = [block.attention for block in network.vit.layers]
    projections = {one: a.num_attention_heads for a in attentions for one in (a.q_proj, a.k_proj, a.v_proj)}
    fixed = [network.classifier] + ([] if variant.cuts == "width" else [a.o_proj for a in attentions])
    with warnings.catch_warnings():
        # It says that it will prune the CLS token and the positions along their width, which is right.
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        pruner = torch_pruning.pruner.BasePruner(
            network,
            still_image(model, 1),
            importance=torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=variant.over_blocks,
            pruning_ratio=ratio,
            ignored_layers=fixed,
            output_transform=lambda out: out.logits.sum(),
            num_heads=projections,
            prune_num_heads=variant.cuts == "heads",
            prune_head_dims=variant.cuts != "heads",
            round_to=multiple,
            head_pruning_ratio=max(0.0, heads - 1e-9),  # it rounds up in one place and down in another
            in_channel_groups={},  # its defaults are one dictionary for all pruners, which keeps every network alive
            out_channel_groups={},
        )
    for group in pruner.step(interactive=True):
        group.prune()
    for attention in attentions if variant.cuts != "heads" else ():
        # As in its example, scores are scaled by the new width; left as they were, accuracy is lower still.
        attention.head_dim = attention.q_proj.out_features // attention.num_attention_heads
        attention.scaling = attention.head_dim**-0.5
    network.zero_grad(set_to_none=True)
    return replace(load(network.eval()), encode=model.encode, class_names=model.class_names, name=model.name)


def randomly_removed(model: Model, images: ImageSet, macs_share: float, seed: int, fold: str) -> Model:
    """Heads and neurons drawn by lot from all blocks, the same share of both."""
    shape, random = shape_of(model), np.random.default_rng(seed)
    lots = [[random.random(count).tolist() for count in counts] for counts in (shape.heads, shape.neurons)]
    kept = best_scored(shape, lots[0], lots[1], macs_share)
    return removed(model, kept, None if fold == "none" else images, fold=fold)


@torch.no_grad()
def magnitude(model: Model, images: ImageSet, macs_share: float, fold: str) -> Model:
    """Heads and neurons with the largest weights stay: their squares, summed over a unit, relative to the block's mean."""
    shape, heads, neurons = shape_of(model), [], []
    for block in model.module.vit.layers:
        attention, mlp = block.attention, block.mlp
        rows = sum(one.weight.square().sum(1) for one in (attention.q_proj, attention.k_proj, attention.v_proj))
        entries = rows + attention.o_proj.weight.square().sum(0)
        heads.append(_relative(entries.view(-1, shape.head_width).sum(1)))
        neurons.append(_relative(mlp.fc1.weight.square().sum(1) + mlp.fc2.weight.square().sum(0)))
    kept = best_scored(shape, heads, neurons, macs_share)
    return removed(model, kept, None if fold == "none" else images, fold=fold)


def _relative(scores: Tensor) -> list[float]:
    return (scores / scores.mean()).tolist()


def best_scored(
    shape: Shape, heads: Sequence[Sequence[float]], neurons: Sequence[Sequence[float]], macs_share: float
) -> Kept:
    """The best heads and neurons of all blocks, the same share of both, in at most so large a share of the multiply-adds.

    Raises:
        WeightsmithError: what cannot be removed and one head need more.
    """
    none = (0,) * len(shape.heads)
    fixed = replace(shape, heads=none, neurons=none).macs()
    head = (replace(shape, neurons=none).macs() - fixed) // sum(shape.heads)
    neuron = (replace(shape, heads=none).macs() - fixed) // sum(shape.neurons)
    room = macs_share * shape.macs() - fixed
    count = max(1, round(sum(shape.heads) * room / (shape.macs() - fixed)))
    if room < count * head:
        raise WeightsmithError(f"a share of {macs_share} has no room for {count} heads: ask for a larger --share")
    return Kept(_best(heads, count), _best(neurons, int((room - count * head) // neuron)))


def _best(scores: Sequence[Sequence[float]], count: int) -> tuple[tuple[int, ...], ...]:
    """The places of the `count` largest of all scores, block by block."""
    places = [(layer, one) for layer, row in enumerate(scores) for one in range(len(row))]
    chosen = frozenset(sorted(places, key=lambda place: -scores[place[0]][place[1]])[:count])
    return tuple(tuple(one for one in range(len(row)) if (layer, one) in chosen) for layer, row in enumerate(scores))


def noise_images(model: Model, count: int, seed: int = 0) -> ImageSet:
    """Images of noise, every class as often as the others, for what does not depend on what is seen."""
    random, reads = np.random.default_rng(seed), model.preprocess
    pixels = random.integers(0, 256, (count, reads.size, reads.size, reads.channels), dtype=np.uint8)
    labels = np.arange(count) % model.n_classes
    return from_arrays(pixels, labels, model.class_names, "noise", "train")


def check() -> None:
    """Raise unless every peer returns the model itself at a share of 1, meets its share, and cuts whole heads."""
    model = create("digits", tuple("0123456789"), seed=0, channels=1)
    images, whole = noise_images(model, 128), Cost.of(model).macs
    inputs = model.preprocess(images.pixels(), model.device)
    with torch.no_grad():
        expected = model.logits(inputs)
    peers: dict[str, Callable[[float], Model]] = {
        f"Torch-Pruning, {name}": lambda share, variant=variant: torch_pruned(model, images, share, variant)
        for name, variant in VARIANTS.items()
    }
    for fold in ("none", "ridge"):
        peers[f"magnitude, {fold}"] = lambda share, fold=fold: magnitude(model, images, share, fold)
        peers[f"random, {fold}"] = lambda share, fold=fold: randomly_removed(model, images, share, 0, fold)
    for name, peer in peers.items():
        with torch.no_grad():
            same = torch.equal(peer(1.0).logits(inputs), expected)
            smaller = peer(0.45)
            finite = bool(smaller.logits(inputs).isfinite().all())
        share = Cost.of(smaller).macs / whole
        print(f"{name}: the model itself at a share of 1: {same}; asked for 0.45, gave {share:.4f}")
        # Where the stream's width is cut, one of 64 channels is a step of 3%.
        if not same or not finite or not 0.45 - (0.04 if "width" in name else 0.005) < share <= 0.45:
            raise SystemExit(f"{name} does not do what it is asked")
        if name.startswith("Torch-Pruning, heads"):
            _check_heads(model, smaller)


def _check_heads(model: Model, smaller: Model) -> None:
    """Raise unless the rows that are left are heads of the model, whole and in order, the same ones in q, k, v and output."""
    for old, new in zip(model.module.vit.layers, smaller.module.vit.layers, strict=True):
        width, found = old.attention.head_dim, []
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            was, now = (getattr(block.attention, name).weight for block in (old, new))
            was, now = (was.mT, now.mT) if name == "o_proj" else (was, now)
            heads = was.unflatten(0, (-1, width))
            found.append([i for one in now.unflatten(0, (-1, width)) for i in range(len(heads)) if heads[i].equal(one)])
            if len(found[-1]) * width != len(now) or found[-1] != found[0]:
                raise SystemExit(f"Torch-Pruning left {name} other rows than whole heads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="whether every peer does what it is asked")
    if parser.parse_args().check:
        check()
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
