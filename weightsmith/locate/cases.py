"""What is traced: inputs, each with what it becomes when it is corrupted, and the decision whose recovery is measured."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.errors import WeightsmithError
from weightsmith.locate.metrics import Decision
from weightsmith.models import Model
from weightsmith.site import SUBJECT_TOKENS, Site

UNDECIDED = -1
"""A target or foil that the runs decide: the clean run's class, and the corrupted run's strongest other one."""

_BATCH = 64


class Cases(Protocol):
    """Inputs with their corrupted counterparts."""

    @property
    def names(self) -> tuple[str, ...]:
        """One a case."""
        ...

    @property
    def targets(self) -> Tensor:
        """(n,) class whose recovery is measured, `UNDECIDED` where the runs decide."""
        ...

    @property
    def foils(self) -> Tensor:
        """(n,) class that it is compared with, `UNDECIDED` where the runs decide."""
        ...

    @property
    def samples(self) -> int:
        """Corrupted inputs a case."""
        ...

    def tokens(self, index: int) -> int:
        """Tokens of a case; cases of equal number can run together. 0 where there are none."""
        ...

    def embedded(self, which: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(n, tokens, width) clean and (n, samples, tokens, width) corrupted: what enters the first block."""
        ...

    def describe(self) -> dict[str, object]:
        """What was done to the inputs, and a hash of them."""
        ...


@dataclass(frozen=True, eq=False)
class ImageCases:
    """Images and their corruption, of pixels or of embeddings.

    Attributes:
        model: that reads them.
        pixels: (n, channels, height, width) uint8.
        corruption: noise on the embeddings, or the corrupted images, of the same shape as `pixels`.
        how: what was done to the pixels, in words, where `corruption` is images.
        sigma: standard deviation of the clean embeddings at the noisy positions; None measures it over all of them.
        describes: what the target class is: "predicted", "label".
        places: the number by which the noise of each image is drawn; () is its place.

    Raises:
        WeightsmithError: no images, pairs of different size, a network without patch tokens under embedding noise.
    """

    model: Model
    names: tuple[str, ...]
    pixels: Tensor
    corruption: EmbeddingNoise | Tensor
    targets: Tensor
    foils: Tensor
    how: str = "images"
    sigma: float | None = None
    describes: str = "predicted"
    places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.pixels):
            raise WeightsmithError("there are no images to trace: give a part of the data that holds some")
        check_classes(self.model, self.names, self.targets, self.foils)
        if isinstance(self.corruption, Tensor):
            if self.corruption.shape != self.pixels.shape:
                raise WeightsmithError(
                    f"a pair must be of one size: the clean images are {tuple(self.pixels.shape[1:])} and there are "
                    f"{len(self.pixels)}, the corrupted ones {tuple(self.corruption.shape[1:])} and {len(self.corruption)}"
                )
        else:
            if not self.model.family.has_tokens:
                raise WeightsmithError(
                    f"{self.model.name} has no patch tokens, so its embeddings cannot be made noisy: corrupt the pixels"
                )
            if self.sigma is None:
                object.__setattr__(self, "sigma", self._measured_sigma())
        object.__setattr__(self, "places", self.places or tuple(range(len(self.pixels))))

    @property
    def samples(self) -> int:
        return self.corruption.samples if isinstance(self.corruption, EmbeddingNoise) else 1

    def tokens(self, index: int) -> int:  # noqa: ARG002  (all images have as many)
        return self.model.n_tokens

    @torch.no_grad()
    def embedded(self, which: Sequence[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(which)
        if isinstance(self.corruption, Tensor):
            # One pass for both, so that what the corruption leaves alone is equal bit by bit.
            both = self._embed(torch.cat([self.pixels[index], self.corruption[index]]))
            return both[: len(index)], both[len(index) :][:, None]
        clean = self._embed(self.pixels[index])
        corrupted = clean[:, None].repeat(1, self.corruption.samples, 1, 1)
        special = self.model.family.special
        assert self.sigma is not None
        for row, case in enumerate(which):
            corrupted[row, :, special:] += self.corruption.draw(clean[row, special:], self.sigma, self.places[case])
        return clean, corrupted

    def describe(self) -> dict[str, object]:
        said: dict[str, object] = {"target": self.describes, "images_sha256": digest(self.pixels)}
        if isinstance(self.corruption, EmbeddingNoise):
            return said | {"corruption": _drawn(self.corruption, self.places), "sigma": self.sigma}
        return said | {"corruption": self.how, "corrupted_sha256": digest(self.corruption)}

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.model.embed(self.model.preprocess(pixels, self.model.device))

    @torch.no_grad()
    def _measured_sigma(self) -> float:
        """Standard deviation over all images, positions and entries, streamed."""
        count, total, squares = 0, 0.0, 0.0
        for piece in torch.split(self.pixels, _BATCH):
            values = self._embed(piece)[:, self.model.family.special :].double()
            count += values.numel()
            total += float(values.sum())
            squares += float(values.square().sum())
        return math.sqrt(max((squares - total**2 / count) / (count - 1), 0.0))


@dataclass(frozen=True)
class Prompt:
    """A text whose continuation is traced to its subject.

    Attributes:
        name: identifies it.
        ids: its tokens.
        subject: (first, end) the tokens of the subject.
        target: the token whose recovery is measured; None takes the one that the model gives.
    """

    name: str
    ids: tuple[int, ...]
    subject: tuple[int, int]
    target: int | None = None

    def __post_init__(self) -> None:
        first, end = self.subject
        if not self.ids or min(self.ids) < 0:
            raise WeightsmithError(f"the prompt {self.name} needs token ids from 0, at least one: correct the record")
        if self.target is not None and self.target < 0:
            raise WeightsmithError(
                f"the prompt {self.name} has the target {self.target}: token ids count from 0, correct the record"
            )
        if not 0 <= first < end <= len(self.ids):
            raise WeightsmithError(
                f"the subject of the prompt {self.name} is given as tokens {first} to {end} of {len(self.ids)}: "
                "give first and end within them"
            )


@dataclass(frozen=True, eq=False)
class PromptCases:
    """Prompts with noise on the embeddings of their subject's tokens (Meng et al., ROME, 2022, §2.1).

    σ is the standard deviation of the token embeddings of all subjects, as the published code measures it.

    Attributes:
        model: a language model.
        prompts: of any lengths.
        noise: 3σ by default.
        places: the number by which the noise of each prompt is drawn; () is its place.

    Raises:
        WeightsmithError: no prompts, token ids beyond the vocabulary, a prompt too long for the model.
    """

    model: Model
    prompts: tuple[Prompt, ...]
    noise: EmbeddingNoise
    sigma: float = 0.0
    places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts:
            raise WeightsmithError("there are no prompts to trace: give some with --data-path")
        self.model.tokenize  # noqa: B018  (an image classifier is refused here)
        for prompt in self.prompts:
            if max(*prompt.ids, prompt.target or 0) >= self.model.n_classes:
                raise WeightsmithError(
                    f"the prompt {prompt.name} has a token beyond the {self.model.n_classes} of {self.model.name}: "
                    "use the model's own tokenizer"
                )
            if len(prompt.ids) > self.model.n_tokens:
                raise WeightsmithError(
                    f"the prompt {prompt.name} has {len(prompt.ids)} tokens and {self.model.name} reads "
                    f"{self.model.n_tokens}: shorten it"
                )
        if not self.sigma:
            object.__setattr__(self, "sigma", self._measured_sigma())
        object.__setattr__(self, "places", self.places or tuple(range(len(self.prompts))))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(prompt.name for prompt in self.prompts)

    @property
    def targets(self) -> Tensor:
        return torch.tensor([UNDECIDED if prompt.target is None else prompt.target for prompt in self.prompts])

    @property
    def foils(self) -> Tensor:
        return torch.full((len(self.prompts),), UNDECIDED)

    @property
    def samples(self) -> int:
        return self.noise.samples

    def tokens(self, index: int) -> int:
        return len(self.prompts[index].ids)

    def meant(self, index: int, site: Site) -> list[Site]:
        """The sites of a prompt that a site stands for: itself, or one for each of the subject's tokens that it names."""
        if site.tokens not in SUBJECT_TOKENS:
            return [site]
        first, end = self.prompts[index].subject
        last = len(self.prompts[index].ids) - 1
        tokens = {
            "subject_first": [first],
            "subject_middle": range(first + 1, end - 1),
            "subject_last": [end - 1],
            "after_first": [end] if end < last else [],
            "after_middle": range(end + 1, last),
        }[str(site.tokens)]
        return [site.at((token,)) for token in tokens]

    @torch.no_grad()
    def embedded(self, which: Sequence[int]) -> tuple[Tensor, Tensor]:
        clean = self.model.embed(torch.tensor([self.prompts[i].ids for i in which], device=self.model.device))
        corrupted = clean[:, None].repeat(1, self.noise.samples, 1, 1)
        for row, case in enumerate(which):
            first, end = self.prompts[case].subject
            corrupted[row, :, first:end] += self.noise.draw(clean[row, first:end], self.sigma, self.places[case])
        return clean, corrupted

    def describe(self) -> dict[str, object]:
        text = repr([(prompt.ids, prompt.subject, prompt.target) for prompt in self.prompts])
        return {
            "corruption": _drawn(self.noise, self.places),
            "sigma": self.sigma,
            "prompts_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }

    @torch.no_grad()
    def _measured_sigma(self) -> float:
        module: Any = self.model.module
        table = module.get_input_embeddings()
        ids = torch.tensor([number for p in self.prompts for number in p.ids[slice(*p.subject)]])
        return float(table(ids.to(self.model.device)).std())


def select(cases: Cases, which: Sequence[int]) -> Cases:
    """Some of the cases, with the noise that each has among all."""
    index = torch.as_tensor(which)
    if isinstance(cases, ImageCases):
        corruption = cases.corruption[index] if isinstance(cases.corruption, Tensor) else cases.corruption
        return replace(
            cases,
            names=tuple(cases.names[i] for i in which),
            pixels=cases.pixels[index],
            corruption=corruption,
            targets=cases.targets[index],
            foils=cases.foils[index],
            places=tuple(cases.places[i] for i in which),
        )
    assert isinstance(cases, PromptCases)
    places = tuple(cases.places[i] for i in which)
    return replace(cases, prompts=tuple(cases.prompts[i] for i in which), places=places)


def _drawn(noise: EmbeddingNoise, places: Sequence[int]) -> dict[str, object]:
    """The noise, and where cases are not numbered by their places also their numbers."""
    said: dict[str, object] = {"noise": noise.scale, "samples": noise.samples, "seed": noise.seed}
    return said if list(places) == list(range(len(places))) else said | {"places": list(places)}


def check_classes(model: Model, names: Sequence[str], *classes: Tensor) -> None:
    """Raise `WeightsmithError` naming the first case with a class that the model has not."""
    for values in classes:
        beyond = torch.nonzero((values >= model.n_classes) | (values < UNDECIDED)).flatten().tolist()
        if beyond:
            raise WeightsmithError(
                f"{names[beyond[0]]} names class {int(values[beyond[0]])}, beyond the {model.n_classes} of {model.name}: "
                "give classes that it has"
            )


def digest(pixels: Tensor) -> str:
    """SHA-256 of images."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def decided(cases: Cases, which: Sequence[int], clean: Tensor, corrupted: Tensor) -> Decision:
    """The decisions of some cases; those that the cases leave open are the runs': the clean run's class against the
    corrupted run's strongest other one.

    Args:
        clean, corrupted: (n, classes) logits of the unpatched runs, the corrupted ones as means over noise samples.
    """
    index = torch.as_tensor(which)
    target, foil = (values[index].to(clean.device) for values in (cases.targets, cases.foils))
    target = torch.where(target == UNDECIDED, clean.argmax(1), target)
    others = corrupted.scatter(1, target[:, None], -torch.inf)
    return Decision(target, torch.where(foil == UNDECIDED, others.argmax(1), foil), clean.log_softmax(-1))
