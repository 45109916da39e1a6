"""The restarted sweep against the slow reference: one full hooked pass a site and noise sample."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from weightsmith.data.views import EmbeddingNoise
from weightsmith.delta import weights_hash
from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.locate.trace import causal_trace
from weightsmith.models import Model, Split, families, patch, record
from weightsmith.request import ImageRequest
from weightsmith.site import Site

NOISE = EmbeddingNoise(scale=2.0, samples=3, seed=5)
KINDS = ("resid.out", "mlp.out", "attn.out", "attn.z")


@pytest.fixture(
    params=[n for n, family in sorted(families().items()) if family.has_tokens and family.reads == "images"]
)
def traced(request: pytest.FixtureRequest, tiny_model: Callable[..., Model]) -> Model:
    model: Model = tiny_model(request.param)
    return model


@pytest.fixture
def requests(random_pixels: Callable[..., Tensor]) -> list[ImageRequest]:
    pixels = random_pixels(3, seed=1)
    return [ImageRequest(f"val/{i}", pixels[i], target=i, predicted=3 - i) for i in range(3)]


@torch.no_grad()
def reference(
    model: Model, requests: list[ImageRequest], kind: str, tokens: str | None, target: str, metric: str
) -> Tensor:
    """(requests, layers): every site by its own full pass from the pixels, one noise sample at a time."""

    def score(logits: Tensor, one: ImageRequest) -> float:
        first, second = (one.predicted, one.target) if target == "predicted" else (one.target, one.predicted)
        if metric == "probability":
            return float(logits.softmax(-1)[0, first])
        return float(logits[0, first] - logits[0, second])

    inputs = [model.preprocess(one.image[None]) for one in requests]
    start, special = Site("resid.in", 0), model.family.special
    embedded = torch.cat([record(model, pixels, [start])[start] for pixels in inputs])
    sigma = float(embedded[:, special:].std())
    table = torch.zeros(len(requests), model.n_layers, dtype=torch.float64)
    for i, (one, pixels) in enumerate(zip(requests, inputs, strict=True)):
        for noise in NOISE.draw(embedded[i, special:], sigma, i):
            corrupted = embedded[i : i + 1].clone()
            corrupted[0, special:] += noise
            with patch(model, {start: corrupted}):
                base = score(model.logits(pixels), one)
            for layer in range(model.n_layers):
                site = Site(kind, layer, tokens=tokens)
                clean = record(model, pixels, [site])[site]
                with patch(model, {start: corrupted, site: clean}):
                    table[i, layer] += (score(model.logits(pixels), one) - base) / NOISE.samples
    return table


@pytest.mark.parametrize("tokens", ["cls", None, "patches"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_effect_is_that_of_a_full_pass_for_each_site(
    traced: Model, requests: list[ImageRequest], kind: str, tokens: str | None
) -> None:
    effects = causal_trace(traced, requests, NOISE, kind=kind, tokens=tokens)
    wanted = reference(traced, requests, kind, tokens, "predicted", "probability")
    assert wanted.abs().max() > 1e-3, "nothing to compare"
    torch.testing.assert_close(effects.values, wanted, rtol=0, atol=1e-6)
    assert effects.sites == tuple(Site(kind, layer, tokens=tokens) for layer in range(traced.n_layers))
    assert effects.samples == ("val/0", "val/1", "val/2")


@pytest.mark.parametrize("target", ["predicted", "label"])
@pytest.mark.parametrize("metric", ["probability", "logit_difference"])
def test_every_target_and_metric(traced: Model, requests: list[ImageRequest], target: str, metric: str) -> None:
    effects = causal_trace(traced, requests, NOISE, target=target, metric=metric)
    wanted = reference(traced, requests, "resid.out", "cls", target, metric)
    torch.testing.assert_close(effects.values, wanted, rtol=0, atol=1e-5 if metric == "logit_difference" else 1e-6)
    assert effects.metric == metric
    assert effects.info["target_classes"] == [r.predicted if target == "predicted" else r.target for r in requests]


@pytest.mark.parametrize("kind", KINDS)
def test_the_stated_cost_is_what_runs_and_less_than_the_naive(
    traced: Model, requests: list[ImageRequest], kind: str
) -> None:
    if traced.family.parts is None:
        pytest.skip("a family that cannot be taken apart has whole passes only")
    block = Split.of(traced, torch.zeros(1, traced.n_tokens, 16)).blocks[0]
    tokens = traced.n_tokens
    whole = block.macs(
        tokens, queries=tokens, keys=tokens, outputs=tokens, mlps=tokens
    )  # torch counts no attention here
    with FlopCounterMode(display=False) as counter:
        info = causal_trace(traced, requests, NOISE, kind=kind).info
    ran = counter.get_total_flops() / 2 / whole
    layers, n = traced.n_layers, len(requests)
    assert info["naive_block_forwards"] == n * (layers + NOISE.samples * layers * (1 + layers))
    # Embeddings, measured twice, and the classifier are no blocks; attention is left out of torch's count.
    assert 0.8 * ran < info["block_forwards"] < 1.2 * ran
    again = layers * (layers - 1) / 2  # behind the written block, the last block for one row only
    assert info["block_forwards"] < n * (layers + NOISE.samples * (layers + again)) < info["naive_block_forwards"]


def test_two_calls_are_equal_and_another_seed_is_not(traced: Model, requests: list[ImageRequest]) -> None:
    one, two = (causal_trace(traced, requests, NOISE) for _ in range(2))
    assert torch.equal(one.values, two.values)
    assert one.info == two.info
    other = causal_trace(traced, requests, EmbeddingNoise(scale=2.0, samples=3, seed=6))
    assert not torch.equal(one.values, other.values)


def test_all_sites_see_the_same_noise(traced: Model, requests: list[ImageRequest]) -> None:
    """Restoring the whole last block brings back what all the noise took, in every sweep alike."""
    for kind in ("resid.out", "mlp.out"):
        effects = causal_trace(traced, requests, NOISE, kind=kind, tokens=None)
        lost = torch.tensor(effects.info["clean"]) - torch.tensor(effects.info["corrupted"])
        whole = causal_trace(traced, requests, NOISE, tokens=None)
        assert effects.info["corrupted"] == whole.info["corrupted"]
        for layer in range(traced.n_layers):
            torch.testing.assert_close(whole.values[:, layer], lost.double(), rtol=0, atol=1e-6)


def test_what_nothing_reads_has_no_effect(traced: Model, requests: list[ImageRequest]) -> None:
    """Behind the last block only CLS is read."""
    effects = causal_trace(traced, requests, NOISE, tokens="patches")
    whole = traced.family.parts is None  # whole passes of other batch sizes differ in their last bits
    assert (effects.values[:, -1].abs() <= (1e-12 if whole else 0)).all()
    assert (effects.values[:, 0] != 0).any()


def test_the_effects_can_be_saved(traced: Model, requests: list[ImageRequest], tmp_path: object) -> None:
    effects = causal_trace(traced, requests, NOISE)
    effects.save(f"{tmp_path}/effects.safetensors")
    assert Effects.load(f"{tmp_path}/effects.safetensors").info == effects.info
    assert effects.info["corruption"] == {"noise": 2.0, "samples": 3, "seed": 5}


def test_the_model_is_left_alone(
    traced: Model, requests: list[ImageRequest], hook_count: Callable[[nn.Module], int]
) -> None:
    weights, hooks = weights_hash(traced), hook_count(traced.module)
    for kind in KINDS:
        causal_trace(traced, requests, NOISE, kind=kind)
    wrong = [ImageRequest("val/9", requests[0].image, target=0, predicted=99)]
    with pytest.raises(Exception):  # noqa: B017  (whatever it is, nothing may be left)
        causal_trace(traced, wrong, NOISE)
    assert hook_count(traced.module) == hooks
    assert weights_hash(traced) == weights


def test_a_class_that_the_model_has_not_is_told(traced: Model, requests: list[ImageRequest]) -> None:
    with pytest.raises(WeightsmithError, match="val/9"):
        causal_trace(traced, [ImageRequest("val/9", requests[0].image, target=0, predicted=99)], NOISE)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"metric": "probabilty"}, r"--trace-metric probabilty is not known: did you mean 'probability'\?"),
        ({"target": "labels"}, r"--trace-target labels is not known: did you mean 'label'\?"),
        ({"kind": "mlp.oot"}, r"no site 'mlp.oot': did you mean 'mlp.out'\?"),
        ({"kind": "classifier.value"}, "takes no layer"),
        ({"kind": "resid.mid"}, r"resid\.mid"),
        ({"tokens": "clss"}, "no tokens named 'clss'"),
    ],
)
def test_unknown_names_are_told(
    tiny_model: Callable[..., Model], requests: list[ImageRequest], options: dict[str, str], told: str
) -> None:
    with pytest.raises(WeightsmithError, match=told):
        causal_trace(tiny_model("vit"), requests, NOISE, **options)


def test_nothing_to_trace_is_told(tiny_model: Callable[..., Model]) -> None:
    with pytest.raises(WeightsmithError, match="no misclassified images to trace"):
        causal_trace(tiny_model("vit"), [], NOISE)


@pytest.mark.parametrize("family_name", [name for name, family in families().items() if not family.has_tokens])
def test_a_network_without_patches_cannot_be_traced(model: Model, requests: list[ImageRequest]) -> None:
    with pytest.raises(WeightsmithError, match="no patch tokens"):
        causal_trace(model, requests, NOISE)


@pytest.mark.parametrize("options", [{"samples": 0}, {"scale": 0.0}, {"scale": -1.0}])
def test_noise_that_is_none_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(WeightsmithError, match="at least one sample"):
        EmbeddingNoise(**options)  # type: ignore[arg-type]
