"""A vision transformer whose blocks differ in width: what is left of a ViT when heads, neurons and blocks are removed.

`save_pretrained` copies this file into the model's folder, so that plain transformers can load it there
(`trust_remote_code=True`): it imports torch and transformers only, and its modules have the names that transformers' ViT
has in memory.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import (
    ViTAttention,
    ViTEmbeddings,
    ViTLayer,
    ViTMLP,
    ViTModel,
    ViTPreTrainedModel,
    eager_attention_forward,
)


class NarrowViTConfig(ViTConfig):
    """A ViT's config with widths block by block.

    Attributes:
        attention_heads: heads of each block; 0 where it has no attention.
        mlp_widths: neurons of each block's MLP; 0 where it has no MLP.
        head_dim: width of every head, the one that the attention's scores are scaled by; 0 takes that of the uniform ViT.
        cls_only: from the last attention on, compute the CLS row only: the other rows never reach the classifier.

    Raises:
        ValueError: lists that are not one entry a block, negative entries, a block with neither attention nor MLP.
    """

    model_type = "weightsmith_vit"

    attention_heads: list[int] | None = None
    mlp_widths: list[int] | None = None
    head_dim: int = 0
    cls_only: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what a uniform ViT would have, and check the lists against one another."""
        if self.head_dim == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.attention_heads is None:
            self.attention_heads = [self.num_attention_heads] * self.num_hidden_layers
        if self.mlp_widths is None:
            self.mlp_widths = [self.intermediate_size] * self.num_hidden_layers
        for name, entries in (("attention_heads", self.attention_heads), ("mlp_widths", self.mlp_widths)):
            if len(entries) != self.num_hidden_layers or min(entries, default=0) < 0:
                raise ValueError(
                    f"{name} is {entries} in the config of a model of {self.num_hidden_layers} blocks: give one number "
                    "from 0 for each"
                )
        both = zip(self.attention_heads, self.mlp_widths, strict=True)
        empty = [layer for layer, (heads, neurons) in enumerate(both) if heads == 0 and neurons == 0]
        if empty:
            raise ValueError(f"block {empty[0]} of the config has neither attention nor MLP: leave it out")
        super().__post_init__(**kwargs)


class NarrowViTAttention(ViTAttention):
    """A ViT's attention with a number of heads of its own; with `rows` only the first ones ask, all are asked."""

    def __init__(self, config: NarrowViTConfig, heads: int) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.num_attention_heads = heads
        self.head_dim = config.head_dim
        self.attention_dropout = config.attention_probs_dropout_prob
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        inner = heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, inner, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, inner, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=True)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, rows: int | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """(what is added to the first `rows` rows, attention weights) of normed rows (batch, tokens, width)."""
        asking = hidden_states if rows is None else hidden_states[:, :rows]
        if attention_mask is not None and rows is not None:
            attention_mask = attention_mask[:, :, :rows]
        shape = (hidden_states.shape[0], -1, self.num_attention_heads, self.head_dim)
        query = self.q_proj(asking).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        given, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(given.flatten(2).contiguous()), weights


class NarrowViTMLP(ViTMLP):
    """A ViT's MLP with a number of neurons of its own."""

    def __init__(self, config: NarrowViTConfig, neurons: int) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, neurons)
        self.fc2 = nn.Linear(neurons, config.hidden_size)


class NarrowViTLayer(ViTLayer):
    """A pre-norm block that has an attention, an MLP, or both: x + attention(norm(x)), then + mlp(norm(.)).

    Where the config says `cls_only`, the last block with attention gives the CLS row alone, and later ones take it.
    """

    def __init__(self, config: NarrowViTConfig, layer: int) -> None:
        GradientCheckpointingLayer.__init__(self)
        assert config.attention_heads is not None
        assert config.mlp_widths is not None
        heads, neurons = config.attention_heads[layer], config.mlp_widths[layer]
        self.has_attention, self.has_mlp = heads > 0, neurons > 0
        last = not any(config.attention_heads[layer + 1 :])
        self.rows = 1 if config.cls_only and last else None
        if self.has_attention:
            self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.attention = NarrowViTAttention(config, heads)
        if self.has_mlp:
            self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.mlp = NarrowViTMLP(config, neurons)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """What leaves the block: (batch, tokens, width), or (batch, 1, width) from where only CLS is computed."""
        residual = hidden_states if self.rows is None else hidden_states[:, : self.rows]
        if self.has_attention:
            normed = self.layernorm_before(hidden_states)
            added, _ = self.attention(normed, attention_mask, rows=self.rows, **kwargs)
            residual = self.dropout(added) + residual
        if self.has_mlp:
            added = self.mlp(self.layernorm_after(residual))
            residual = self.dropout(added) + residual
        return residual


class NarrowViTModel(ViTModel):
    """A ViT without its classifier, of `NarrowViTLayer`s."""

    config_class = NarrowViTConfig

    def __init__(self, config: NarrowViTConfig) -> None:
        ViTPreTrainedModel.__init__(self, config)
        self.config = config
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList([NarrowViTLayer(config, layer) for layer in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = None
        self.post_init()


class NarrowViTForImageClassification(ViTForImageClassification):
    """A ViT image classifier of `NarrowViTLayer`s: logits = classifier(layernorm(stream)[CLS])."""

    config_class = NarrowViTConfig

    def __init__(self, config: NarrowViTConfig) -> None:
        ViTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.vit = NarrowViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but weights that do not fit the config raise instead of becoming random.

        Raises:
            ValueError: tensors that are missing, left over, or of another shape.
        """
        asked = kwargs.pop("output_loading_info", False)
        if kwargs.pop("ignore_mismatched_sizes", False):
            raise ValueError(
                f"ignore_mismatched_sizes would give the weights of {source} random values: leave it out, and replace "
                "the classifier after loading"
            )
        model, report = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            wrong = sorted(str(key) for key in report.get(what) or ())
            if wrong:
                said = what.replace("_keys", "")
                raise ValueError(
                    f"the weights of {source} do not fit its config.json: {len(wrong)} tensors are {said}, {wrong[0]} "
                    "first; save the model again"
                )
        return (model, report) if asked else model


NarrowViTConfig.register_for_auto_class()
NarrowViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
if __name__.startswith("weightsmith."):  # a copy in a model's folder must not take the place of this one
    AutoConfig.register(NarrowViTConfig.model_type, NarrowViTConfig, exist_ok=True)
    AutoModelForImageClassification.register(NarrowViTConfig, NarrowViTForImageClassification, exist_ok=True)
