"""A trained language model: what it continues with, and a sweep over what it wrote itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from weightsmith import load
from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.locate.cases import Prompt, PromptCases
from weightsmith.locate.metrics import METRICS, Decision
from weightsmith.locate.sweep import sweep
from weightsmith.models import Model, Split, patch, record
from weightsmith.site import Site

NOISE = EmbeddingNoise(scale=3.0, samples=2, seed=5)
SUBJECT = (3, 6)


@pytest.fixture
def stories(shared_data: Path) -> tuple[Model, list[int]]:
    """The model, and the ids that it generates greedily."""
    folder = shared_data / "models" / "stories260K"
    reference = json.loads((folder / "greedy_reference.json").read_text(encoding="utf-8"))
    return load(folder), reference["greedy_ids"]


def places(model: Model, kinds: tuple[str, ...], tokens: range) -> list[Site]:
    return [Site(kind, layer, tokens=(token,)) for kind in kinds for layer in range(model.n_layers) for token in tokens]


@torch.no_grad()
def test_it_goes_on_as_it_is_known_to(stories: tuple[Model, list[int]]) -> None:
    model, ids = stories
    assert model.tokenize.tokenizer is None
    assert (model.n_layers, model.n_heads(0), model.n_heads(0, "attn.k"), model.n_classes) == (5, 8, 4, 512)
    for count in range(1, 20):
        assert int(model.logits(torch.tensor([ids[:count]])).argmax()) == ids[count], f"after {count} tokens"
        entering = model.embed(torch.tensor([ids[:count]]))
        assert int(Split.of(model, entering).run(entering, ()).logits.argmax()) == ids[count], (
            f"in parts, after {count}"
        )


@torch.no_grad()
def test_the_sweep_is_that_of_full_passes(stories: tuple[Model, list[int]]) -> None:
    model, ids = stories
    cases = PromptCases(model, (Prompt("story", tuple(ids[:12]), SUBJECT),), NOISE)
    sites = places(model, ("resid.out", "mlp.out"), range(2, 12))
    sites += [Site("attn.z", layer, head) for layer in range(model.n_layers) for head in range(8)]
    sites += [Site("attn.v", layer, head, tokens=(5,)) for layer in range(model.n_layers) for head in range(4)]
    found = sweep(model, cases, sites)
    assert found.targets.tolist() == [ids[12]], "what the clean run goes on with"
    clean_in, corrupted_in = cases.embedded([0])
    clean = record(model, clean_in, sites, start=0)
    base = [model.run_from(0, one[None]) for one in corrupted_in[0]]
    foil = int(torch.stack(base).mean(0)[0].index_fill(0, torch.tensor(ids[12]), -torch.inf).argmax())
    asked = Decision(torch.tensor([ids[12]]), torch.tensor([foil]), clean.logits.log_softmax(-1))
    logits = [torch.cat([restored(model, one, {site: clean[site]}) for one in corrupted_in[0]]) for site in sites]
    rows = torch.zeros(NOISE.samples, dtype=torch.long)
    for metric in METRICS:
        wanted = torch.stack([asked.at(rows).measure(metric, each).mean() for each in logits])
        torch.testing.assert_close(found.restored[metric][0], wanted, rtol=1e-5, atol=1e-5)
        corrupted = asked.at(rows).measure(metric, torch.cat(base)).mean()
        assert (wanted - corrupted).abs().max() > 0.1 * (found.clean[metric] - corrupted).abs(), "nothing came back"
    assert found.info["block_forwards"] < found.info["naive_block_forwards"] / 4


def restored(model: Model, one: Tensor, writes: dict[Site, Tensor]) -> Tensor:
    with patch(model, writes):
        return model.run_from(0, one[None])


def test_before_the_subject_nothing_has_an_effect(stories: tuple[Model, list[int]]) -> None:
    model, ids = stories
    cases = PromptCases(model, (Prompt("story", tuple(ids[:12]), SUBJECT),), NOISE)
    kinds = ("resid.in", "attn.k", "attn.z", "mlp.out", "resid.out")
    found = sweep(model, cases, places(model, kinds, range(SUBJECT[0])))
    for metric in METRICS:
        assert (found.effects(metric).values == 0).all()
    assert found.info["block_forwards"] == model.n_layers * (1 + NOISE.samples), "nothing was run for them"
    at_it = sweep(model, cases, places(model, ("resid.out",), range(*SUBJECT)))
    assert (at_it.effects().values[:, :-3] != 0).all()


def test_a_severed_story(stories: tuple[Model, list[int]]) -> None:
    """With the MLPs severed, restoring the residual stream of the subject early brings less back."""
    model, ids = stories
    cases = PromptCases(model, (Prompt("story", tuple(ids[:12]), SUBJECT),), NOISE)
    sites = [Site("resid.out", layer, tokens=tuple(range(*SUBJECT))) for layer in range(model.n_layers)]
    whole, severed = (sweep(model, cases, sites, sever=sever).restored["kl"][0] for sever in ((), ("mlp.out",)))
    assert (whole[:-1] > severed[:-1]).all()
    assert whole[-1] == severed[-1]
