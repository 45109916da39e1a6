"""What is traced: which tokens a corruption reaches, how wide its noise is, which tokens a name means, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.errors import WeightsmithError
from weightsmith.locate.cases import UNDECIDED, ImageCases, Prompt, PromptCases, select
from weightsmith.models import Model, families
from weightsmith.site import SUBJECT_TOKENS, Site

NOISE = EmbeddingNoise(scale=2.0, samples=3, seed=5)
TEXT_FAMILIES = sorted(name for name, family in families().items() if family.reads == "text")
PATCH_FAMILIES = sorted(name for name, family in families().items() if family.reads == "images" and family.has_tokens)


def image_cases(model: Model, pixels: Tensor, corruption: Any = NOISE, **entries: Any) -> ImageCases:
    count = len(pixels)
    given = {"targets": torch.full((count,), UNDECIDED), "foils": torch.full((count,), UNDECIDED)} | entries
    return ImageCases(model, tuple(f"test/{i}" for i in range(count)), pixels, corruption, **given)


def prompt_cases(model: Model, *prompts: Prompt, noise: EmbeddingNoise = NOISE) -> PromptCases:
    made = prompts or (
        Prompt("a", (4, 9, 2, 22, 7), (1, 3)),
        Prompt("b", (3, 8, 6, 6), (3, 4)),
        Prompt("c", (5, 6), (0, 2)),
    )
    return PromptCases(model, made, noise)


# --- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family_name", PATCH_FAMILIES)
def test_noise_reaches_patches_only(model: Model, random_pixels: Callable[..., Tensor]) -> None:
    cases = image_cases(model, random_pixels(4))
    clean, corrupted = cases.embedded([2, 0])
    assert clean.shape == (2, model.n_tokens, 16)
    assert corrupted.shape == (2, 3, model.n_tokens, 16)
    special = model.family.special
    added = corrupted - clean[:, None]
    assert (added[:, :, :special] == 0).all()
    assert (added[:, :, special:] != 0).all()
    with torch.no_grad():
        torch.testing.assert_close(clean, model.embed(model.preprocess(cases.pixels[[2, 0]])))
    for row, case in enumerate([2, 0]):  # drawn by the case's place, whatever else is asked for
        drawn = NOISE.draw(clean[row, special:], cases.sigma or 0, case)
        torch.testing.assert_close(added[row, :, special:], drawn, rtol=0, atol=1e-5)
    assert torch.equal(cases.embedded([0])[1][0], corrupted[1])
    assert (cases.samples, cases.tokens(1)) == (3, model.n_tokens)


@pytest.mark.parametrize("family_name", PATCH_FAMILIES)
@torch.no_grad()
def test_sigma_is_that_of_the_embeddings_of_all_patches(model: Model, random_pixels: Callable[..., Tensor]) -> None:
    pixels = random_pixels(70)  # more than one batch of them
    embedded = model.embed(model.preprocess(pixels))[:, model.family.special :]
    cases = image_cases(model, pixels)
    assert cases.sigma == pytest.approx(float(embedded.double().std()), rel=1e-6)
    assert cases.describe()["sigma"] == cases.sigma
    assert image_cases(model, pixels, sigma=0.7).sigma == 0.7
    wide = image_cases(model, pixels[:2], EmbeddingNoise(scale=2.0, samples=400, seed=5), sigma=0.7)
    clean, corrupted = wide.embedded([1])
    spread = (corrupted - clean[:, None])[:, :, model.family.special :]
    assert float(spread.std()) == pytest.approx(2.0 * 0.7, rel=0.02)


@pytest.mark.parametrize("family_name", sorted(set(families()) - set(TEXT_FAMILIES)))
@torch.no_grad()
def test_pairs_are_what_they_are(model: Model, random_pixels: Callable[..., Tensor]) -> None:
    pixels, other = random_pixels(3, seed=1), random_pixels(3, seed=2)
    other[1] = pixels[1]
    cases = image_cases(model, pixels, other, how="blur 0.1")
    clean, corrupted = cases.embedded([1, 2])
    assert corrupted.shape == (clean.shape[0], 1, *clean.shape[1:])
    torch.testing.assert_close(clean, model.embed(model.preprocess(pixels[1:])))
    torch.testing.assert_close(corrupted[:, 0], model.embed(model.preprocess(other[1:])))
    assert torch.equal(corrupted[0, 0], clean[0]), "what the corruption leaves alone is the same bit by bit"
    assert (cases.samples, cases.sigma) == (1, None)
    said = cases.describe()
    assert said["corruption"] == "blur 0.1"
    assert said != image_cases(model, pixels, pixels, how="blur 0.1").describe()
    assert said != image_cases(model, other, other, how="blur 0.1").describe()


@pytest.mark.parametrize("family_name", PATCH_FAMILIES)
def test_some_of_the_cases_are_corrupted_as_among_all(model: Model, random_pixels: Callable[..., Tensor]) -> None:
    pixels = random_pixels(4)
    cases = image_cases(model, pixels, targets=torch.tensor([0, 1, 2, 3]), foils=torch.tensor([3, 2, 1, 0]))
    some = select(select(cases, [3, 1, 0]), [1, 0])
    assert some.names == ("test/1", "test/3")
    assert (some.targets.tolist(), some.foils.tolist()) == ([1, 3], [2, 0])
    assert isinstance(some, ImageCases)
    assert some.sigma == cases.sigma, "measured over all of them"
    for mine, theirs in zip(some.embedded([0, 1]), cases.embedded([1, 3]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    assert torch.equal(some.pixels, pixels[[1, 3]])
    pairs = select(image_cases(model, pixels, pixels.flip(0)), [2])
    assert isinstance(pairs, ImageCases)
    assert torch.equal(pairs.corruption, pixels[[1]])
    assert some.describe() != select(cases, [0, 1]).describe()


@pytest.mark.parametrize("family_name", PATCH_FAMILIES)
def test_cases_of_other_noise_are_described_otherwise(model: Model, random_pixels: Callable[..., Tensor]) -> None:
    pixels = random_pixels(2)
    said = [
        image_cases(model, pixels, noise).describe()
        for noise in (NOISE, replace(NOISE, seed=6), replace(NOISE, scale=1.0), replace(NOISE, samples=2))
    ]
    said.append(image_cases(model, pixels, sigma=1.0).describe())
    swapped = select(
        image_cases(model, pixels.flip(0), sigma=1.0), [1, 0]
    )  # the same images, each with the other's noise
    said.append(swapped.describe())
    assert all(one != other for i, one in enumerate(said) for other in said[i + 1 :])


def test_images_that_cannot_be_traced_are_told(
    tiny_model: Callable[..., Model], random_pixels: Callable[..., Tensor]
) -> None:
    model, pixels = tiny_model("vit"), random_pixels(3)
    with pytest.raises(WeightsmithError, match="no images to trace"):
        image_cases(model, pixels[:0])
    for wrong in (pixels[:2], pixels[..., :4], pixels[:, :1]):
        with pytest.raises(WeightsmithError, match="a pair must be of one size") as told:
            image_cases(model, pixels, wrong)
        assert str(tuple(wrong.shape[1:])) in str(told.value)
    with pytest.raises(WeightsmithError, match="test/1 names class 4, beyond the 4"):
        image_cases(model, pixels, targets=torch.tensor([0, 4, 9]))
    with pytest.raises(WeightsmithError, match="test/2 names class -2, beyond the 4"):
        image_cases(model, pixels, pixels, foils=torch.tensor([0, -1, -2]))
    with pytest.raises(WeightsmithError, match="has no patch tokens, so its embeddings cannot be made noisy"):
        image_cases(tiny_model("mlp"), pixels)


# --- prompts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_noise_reaches_the_subject_only(model: Model) -> None:
    cases = prompt_cases(model)
    for index, prompt in enumerate(cases.prompts):
        clean, corrupted = cases.embedded([index])
        first, end = prompt.subject
        added = (corrupted - clean[:, None])[0]
        inside = torch.zeros(len(prompt.ids), dtype=torch.bool)
        inside[first:end] = True
        assert (added[:, ~inside] == 0).all()
        assert (added[:, inside] != 0).all()
        drawn = NOISE.draw(clean[0, first:end], cases.sigma, index)
        torch.testing.assert_close(added[:, inside], drawn, rtol=0, atol=1e-5)
        assert cases.tokens(index) == len(prompt.ids)


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_sigma_is_that_of_the_subjects_token_embeddings(model: Model) -> None:
    """Of the tokens alone, without their positions: as the published code measures it."""
    cases = prompt_cases(model)
    module: Any = model.module
    table = module.get_input_embeddings().weight.detach()
    assert cases.sigma == pytest.approx(float(table[[9, 2, 6, 5, 6]].std()), rel=1e-6)
    assert PromptCases(model, cases.prompts, NOISE, sigma=0.3).sigma == 0.3
    wide = PromptCases(model, cases.prompts, EmbeddingNoise(scale=3.0, samples=600, seed=1), sigma=0.3)
    clean, corrupted = wide.embedded([0])
    assert float((corrupted - clean[:, None])[0, :, 1:3].std()) == pytest.approx(0.9, rel=0.02)


@pytest.mark.parametrize(
    ("count", "subject", "meant"),
    [  # as ROME averages: the first and last token of the subject may be one, and what follows ends before the last
        (9, (2, 6), {"subject_first": [2], "subject_middle": [3, 4], "subject_last": [5], "after_first": [6],
                     "after_middle": [7]}),
        (9, (0, 3), {"subject_first": [0], "subject_middle": [1], "subject_last": [2], "after_first": [3],
                     "after_middle": [4, 5, 6, 7]}),
        (6, (1, 2), {"subject_first": [1], "subject_last": [1], "after_first": [2], "after_middle": [3, 4]}),
        (4, (0, 2), {"subject_first": [0], "subject_last": [1], "after_first": [2]}),
        (4, (1, 3), {"subject_first": [1], "subject_last": [2]}),  # what follows is the last token itself
        (4, (1, 4), {"subject_first": [1], "subject_middle": [2], "subject_last": [3]}),
        (1, (0, 1), {"subject_first": [0], "subject_last": [0]}),
    ],
)  # fmt: skip
def test_what_the_names_of_tokens_mean(
    tiny_model: Callable[..., Model], count: int, subject: tuple[int, int], meant: dict[str, list[int]]
) -> None:
    cases = prompt_cases(tiny_model("gpt2"), Prompt("a", tuple(range(1, count + 1)), subject))
    for name in SUBJECT_TOKENS:
        site = Site("mlp.out", 1, tokens=name, span=2)
        wanted = [Site("mlp.out", 1, tokens=(token,), span=2) for token in meant.get(name, [])]
        assert cases.meant(0, site) == wanted, name
    for site in (Site("resid.out", 0, tokens="last"), Site("attn.z", 0, 1), Site("mlp.out", 0, tokens=(0,))):
        assert cases.meant(0, site) == [site]


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_some_of_the_prompts_are_corrupted_as_among_all(model: Model) -> None:
    cases = prompt_cases(model)
    some = select(select(cases, [2, 1]), [1])
    assert isinstance(some, PromptCases)
    assert some.names == ("b",)
    assert some.sigma == cases.sigma, "measured over all of them"
    for mine, theirs in zip(some.embedded([0]), cases.embedded([1]), strict=True):
        assert torch.equal(mine, theirs)
    assert some.describe() != prompt_cases(model, cases.prompts[1]).describe()


def test_prompts_say_what_they_are_about(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("gpt2")
    cases = prompt_cases(model, Prompt("a", (4, 9, 2), (1, 2), target=7), Prompt("b", (4, 9, 2), (1, 2)))
    assert cases.targets.tolist() == [7, UNDECIDED]
    assert cases.foils.tolist() == [UNDECIDED, UNDECIDED]
    said = cases.describe()
    for other in (Prompt("a", (4, 9, 2), (1, 3), target=7), Prompt("a", (4, 9, 2), (1, 2), target=8)):
        assert prompt_cases(model, other, cases.prompts[1]).describe() != said


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"ids": ()}, "the prompt a needs token ids from 0, at least one"),
        ({"ids": (4, -1)}, "the prompt a needs token ids from 0"),
        ({"subject": (2, 2)}, "tokens 2 to 2 of 3"),
        ({"subject": (1, 4)}, "tokens 1 to 4 of 3"),
        ({"subject": (-1, 1)}, "tokens -1 to 1 of 3"),
        ({"target": -3}, "the prompt a has the target -3"),
    ],
)
def test_a_prompt_that_contradicts_itself_is_told(entries: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"ids": (1, 2, 3), "subject": (0, 1)} | entries
    with pytest.raises(WeightsmithError, match=told):
        Prompt("a", **given)


def test_prompts_that_cannot_be_traced_are_told(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(WeightsmithError, match="no prompts to trace"):
        PromptCases(model, (), NOISE)
    fine = Prompt("fine", (1, 2), (0, 1))
    for wrong in (Prompt("far", (1, 29), (0, 1)), Prompt("far", (1, 2), (0, 1), target=29)):
        with pytest.raises(WeightsmithError, match="the prompt far has a token beyond the 29"):
            prompt_cases(model, fine, wrong)
    with pytest.raises(WeightsmithError, match=r"the prompt long has 17 tokens and .* reads 16"):
        prompt_cases(model, fine, Prompt("long", (1,) * 17, (0, 1)))
    prompt_cases(model, fine, Prompt("full", (1,) * 15 + (2,), (14, 16)))
    with pytest.raises(WeightsmithError, match="reads no text: give a language model"):
        prompt_cases(tiny_model("vit"), fine)
