from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from weightsmith import Delta
from weightsmith.data.images import ImageSet
from weightsmith.delta import Dense
from weightsmith.evaluate import editing, headline, knowledge
from weightsmith.measure import misclassified
from weightsmith.models import Model
from weightsmith.request import TextRequest


def noise(model: Model, ending: str) -> Delta:
    generator = torch.Generator().manual_seed(1)
    name, parameter = next((n, p) for n, p in model.module.named_parameters() if n.endswith(ending))
    return Delta({name: Dense(0.3 * torch.randn(parameter.shape, generator=generator))})


def test_images_and_language_have_the_same_headline(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet], taught_model: Model, facts: list[TextRequest]
) -> None:
    vit, images = tiny_model("vit"), random_set(60)
    requests = misclassified(vit, images, limit=5)
    seen = editing(vit, requests, random_set(40, seed=1, source="other"), noise(vit, "classifier.weight"))
    seen = replace(seen, efficacy=replace(seen.efficacy, value=0.5, low=0.25, high=1.0))
    of_images = headline(seen)
    report = knowledge(
        taught_model,
        facts,
        noise(taught_model, "wte.weight" if "GPT2" in taught_model.name else "embed_tokens.weight"),
        new_tokens=2,
    )
    of_language = headline(report)
    assert list(of_images) == list(of_language) == ["efficacy", "paraphrase", "neighbourhood", "composite"]
    parts = (seen.efficacy, seen.generalisation, seen.locality)
    assert tuple(of_images.values())[:3] == parts
    for end in ("value", "low", "high"):
        ends = [getattr(part, end) for part in parts]
        expected = 3 / sum(1 / one for one in ends) if all(ends) else 0
        assert getattr(of_images["composite"], end) == pytest.approx(expected)
    assert of_images["composite"].n == 5
    assert tuple(of_language.values()) == (report.efficacy, report.paraphrase, report.neighbourhood, report.score)


def test_where_no_truth_is_known_the_accuracy_stands_in(taught_model: Model, facts: list[TextRequest]) -> None:
    unknown = [replace(request, target=request.truth or "Seattle", truth="") for request in facts]
    report = knowledge(
        taught_model,
        unknown,
        noise(taught_model, "norm.weight" if "Llama" in taught_model.name else "ln_f.weight"),
        new_tokens=2,
    )
    assert report.efficacy.n == 0
    found = headline(report)
    accuracy = report.scores_after.accuracy
    assert (found["efficacy"], found["paraphrase"]) == (accuracy.rewrite, accuracy.paraphrase)
    assert found["neighbourhood"] == report.neighbourhood
    values = [found[key].value for key in ("efficacy", "paraphrase", "neighbourhood")]
    assert not np.isnan(values).any()
    expected = 3 / sum(1 / value for value in values) if all(values) else 0
    assert found["composite"].value == pytest.approx(expected)
