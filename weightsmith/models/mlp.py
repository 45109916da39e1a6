"""A plain MLP classifier in Hugging Face's clothes, so that it saves, loads and is edited like any other model."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class MLPConfig(PretrainedConfig):
    """Sizes of a plain MLP: flattened image → hidden widths with ReLU → classes.

    `head_layers` is how many of its linear maps, the classifier among them, belong to the classes rather than to the
    backbone. With `reads` "features" it takes rows of `num_channels` numbers as they are, in place of images.
    """

    model_type = "weightsmith_mlp"

    def __init__(
        self,
        image_size: int = 8,
        num_channels: int = 1,
        hidden_sizes: tuple[int, ...] = (64, 64),
        head_layers: int = 1,
        reads: str = "images",
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.num_channels = num_channels
        self.hidden_sizes = list(hidden_sizes)
        self.head_layers = head_layers
        self.reads = reads
        super().__init__(**kwargs)


class MLPForImageClassification(PreTrainedModel):
    """logits = classifier(block_L(… block_1(flatten(pixel_values)))), block_l(x) = ReLU(W_l x + b_l)."""

    config_class = MLPConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        widths = [config.num_channels * config.image_size**2, *config.hidden_sizes]
        self.blocks = nn.ModuleList(
            nn.Sequential(OrderedDict(linear=nn.Linear(n_in, n_out), activation=nn.ReLU()))
            for n_in, n_out in pairwise(widths)
        )
        self.classifier = nn.Linear(widths[-1], config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # He initialisation keeps a deep ReLU stack's signal alive
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        """Logits (batch, classes) of pixel values (batch, channels, size, size)."""
        hidden = torch.flatten(pixel_values, 1)
        for block in self.blocks:
            hidden = block(hidden)
        return ImageClassifierOutput(logits=self.classifier(hidden))


AutoConfig.register(MLPConfig.model_type, MLPConfig, exist_ok=True)
AutoModelForImageClassification.register(MLPConfig, MLPForImageClassification, exist_ok=True)
