"""The card of a merged model, as the hub reads it."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from weightsmith.merge.card import merged_card

REPORT: dict[str, Any] = {
    "version": "0.1.0",
    "method": "ties",
    "parameters": {"lambda": 1.0},
    "head": "merge",
    "base": {"name": "a|base", "fingerprint": "0" * 64},
    "models": [{"name": "<b>birds", "weight": 1.0, "change_over_base": 0.5, "fingerprint": "1" * 64}],
    "output": {"tensors": 3, "bytes": 12, "fingerprint": "2" * 64},
    "merged_tensors": 3,
    "copied_tensors": [],
    "left_out": [],
    "notes": [],
}


@pytest.mark.parametrize(
    ("architectures", "does"),
    [
        (["ViTForImageClassification"], "image-classification"),
        (["GPT2LMHeadModel"], "text-generation"),
        (["LlamaForCausalLM"], "text-generation"),
        (["BertModel"], None),
        (None, None),
    ],
)
def test_the_header_says_what_the_model_does(architectures: list[str] | None, does: str | None) -> None:
    text = merged_card(REPORT | ({"architectures": architectures} if architectures else {}))
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.tags) == ("transformers", does, ["weightsmith", "merge"])
    assert r"\<b\>birds" in text
    assert r"a\|base" in text
