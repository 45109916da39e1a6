"""Networks with random weights in the shapes that locating is timed on, and embeddings with noise on them.

No weights are trained or fetched: what a sweep costs depends on the shape alone. Biases and norm weights are random as
well, for a method that forgets one of them would otherwise agree with one that does not.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

Network = TypeVar("Network", bound=nn.Module)

PATCH = 16
ENDS_A_BRANCH = ("o_proj", "fc2", "c_proj")
"""Modules whose output is added to the residual; scaled down with depth, as GPT-2 does, to keep the residual in range."""


def vit(
    layers: int = 12, width: int = 192, heads: int = 3, tokens: int = 197, classes: int = 10, seed: int = 0
) -> ViTForImageClassification:
    """A ViT with patches of 16 pixels; the defaults are ViT-Tiny at 224 pixels.

    Args:
        tokens: CLS and a square number of patches.
    """
    side = math.isqrt(tokens - 1)
    if side * side != tokens - 1:
        raise ValueError(f"{tokens} tokens are no square image and CLS: give 1 + n * n")
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=PATCH * side,
        patch_size=PATCH,
        num_labels=classes,
    )
    return _random(ViTForImageClassification(config), layers, seed)


def gpt2(
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = 50257,
    positions: int = 1024,
    seed: int = 0,
) -> GPT2LMHeadModel:
    """A GPT-2; the defaults are GPT-2 small."""
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=positions,
        bos_token_id=vocabulary - 1,
        eos_token_id=vocabulary - 1,
    )
    return _random(GPT2LMHeadModel(config), layers, seed)


@torch.no_grad()
def noise(
    network: nn.Module,
    tokens: int | None = None,
    scale: float = 3.0,
    samples: int = 1,
    seed: int = 0,
    where: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """(1, T, width) what enters the first block for a random input, and (samples, T, width) the same with noise on it.

    Args:
        tokens: length of the text, for GPT-2 alone; as many as fit where none is given.
        scale: standard deviation of the noise, in standard deviations of the embedding.
        where: the tokens that get noise.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(network, ViTForImageClassification):
        size = network.config.image_size
        clean = network.vit.embeddings(torch.rand(1, 3, size, size, generator=generator) * 2 - 1)
    else:
        count = network.config.n_positions if tokens is None else tokens
        ids = torch.randint(network.config.vocab_size, (1, count), generator=generator)
        clean = network.transformer.wte(ids) + network.transformer.wpe(torch.arange(count))
    corrupted = clean.repeat(samples, 1, 1)
    drawn = torch.randn(corrupted.shape, generator=generator)
    corrupted[:, where] += scale * clean.std() * drawn[:, where]
    return clean, corrupted


@torch.no_grad()
def _random(network: Network, layers: int, seed: int) -> Network:
    """Draw every parameter anew."""
    generator = torch.Generator().manual_seed(seed)
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            drawn = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, nn.LayerNorm) and name == "weight":
                drawn = 1 + 0.2 * drawn
            elif parameter.ndim == 1:
                drawn = 0.1 * drawn
            elif isinstance(module, nn.Embedding):
                drawn = 0.14 * drawn  # the spread of GPT-2's own
            elif path.endswith("embeddings"):
                drawn = 0.5 * drawn
            else:
                # GPT-2's Conv1D holds its weight (inputs, outputs), the others (outputs, inputs ...).
                stored_out_first = isinstance(module, nn.Linear | nn.Conv2d)
                drawn = drawn / math.sqrt(parameter[0].numel() if stored_out_first else len(parameter))
                if path.endswith(ENDS_A_BRANCH):
                    drawn = drawn / math.sqrt(2 * layers)
            parameter.copy_(drawn)
    return network.eval().requires_grad_(False)
