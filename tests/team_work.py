"""What a job of several processes does, and one process alone: both write what it came to, for `test_ranks` to compare.

torchrun --standalone --nproc-per-node 2 tests/team_work.py FOLDER
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from weightsmith import ranks
from weightsmith.cli import main as command
from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.data.images import ArrayStore, ImageSet, PixelStore
from weightsmith.data.npz import open_npz
from weightsmith.data.split import from_arrays
from weightsmith.data.texts import TextSet
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate.answers import likelihoods
from weightsmith.evaluate.generation import generate
from weightsmith.locate import Prompt, PromptCases, error_cases, screen, sweep
from weightsmith.locate.astra import AstraOptions, attribute
from weightsmith.measure import Convergence, key_moment, misclassified, predict
from weightsmith.models import Model, create_language, load, save
from weightsmith.report import plots
from weightsmith.site import Site
from weightsmith.train import (
    DistillOptions,
    LanguageOptions,
    TrainOptions,
    distill,
    fit,
    fit_language,
    loop,
    train_tokenizer,
)
from weightsmith.train.loop import Training

SWEEP = importlib.import_module("weightsmith.locate.sweep")  # the package has a function of that name

TEXTS = tuple(
    f"The {one} follows the {two}." for one in ("apple", "brick", "cloud", "drum") for two in ("eagle", "flute")
)


def vit(seed: int = 0, classes: int = 4) -> Model:
    torch.manual_seed(seed)
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    return load(ViTForImageClassification(ViTConfig(**sizes, intermediate_size=24, num_labels=classes)))


def reader() -> Model:
    """Of the embedded digits."""
    torch.manual_seed(3)
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return load(ViTForImageClassification(ViTConfig(**sizes, intermediate_size=24, num_labels=10, num_channels=1)))


def talker() -> Model:
    sizes = {"model_type": "gpt2", "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    drops = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    return create_language(sizes | drops, train_tokenizer(TEXTS, 300), 0)


def noise_images(n: int, seed: int = 0) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return from_arrays(pixels, np.arange(n) % 4, ("a", "b", "c", "d"), "noise", "train")


@dataclass(frozen=True)
class Watched:
    """A store that writes down which of its images were read, a file a process."""

    inner: PixelStore
    folder: str
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, positions: np.ndarray) -> np.ndarray:
        with (Path(self.folder) / f"read-{os.getpid()}.txt").open("a") as file:
            file.writelines(f"{self.numbers[position]}\n" for position in positions)
        return self.inner.read(positions)

    def only(self, positions: np.ndarray) -> Watched:
        return Watched(self.inner.only(positions), self.folder, tuple(self.numbers[i] for i in positions))


class Unreadable(ArrayStore):
    """A store with one damaged image."""

    def read(self, positions: np.ndarray) -> np.ndarray:
        if (self.array[positions] == 255).all((1, 2, 3)).any():
            raise WeightsmithError("image 900 cannot be read: remove or replace it")
        return super().read(positions)

    def only(self, positions: np.ndarray) -> Unreadable:
        return Unreadable(self.array[positions])


def weights(model: Model, name: str) -> dict[str, Tensor]:
    return {f"{name}.{key}": value.clone() for key, value in model.module.state_dict().items()}


def worked(folder: Path) -> dict[str, Tensor]:
    """Everything that is shared, on small networks."""
    before, SWEEP._CPU_LANE_BYTES = SWEEP._CPU_LANE_BYTES, 1  # so that small sweeps are cut as large ones are
    try:
        return everything(folder)
    finally:
        SWEEP._CPU_LANE_BYTES = before


def everything(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    model, images, cache = vit(), noise_images(1000), folder / "cache"
    watched = replace(images, store=Watched(images.store, str(folder), tuple(range(1000))))
    found["predictions"] = predict(model, watched, 64).logits
    for name, samples, until in (
        ("images", images, None),
        ("rule", images, Convergence(tolerance_trace=0.2, overlap=0.5, rank=4, tokens_per_dimension=8)),
        ("mapped", mapped(folder), None),
    ):
        sites = [Site("mlp.value", 1, tokens="cls"), Site("mlp.key", 2)]
        for site, moment in key_moment(model, sites, samples, cache / name, 16, until).items():
            found[f"moment.{name}.{site}"] = moment.matrix
            found[f"read.{name}.{site}"] = torch.tensor([moment.count, moment.samples])
    errors = misclassified(model, images.subset(range(200)), 24)
    cases = error_cases(model, errors, EmbeddingNoise(3.0, 3, 0))
    sites = [Site(kind, layer, tokens="cls") for kind in ("resid.out", "attn.out", "mlp.out") for layer in range(3)]
    sites += [Site("attn.z", 1, 0), Site("resid.out", 0, tokens=(2,))]
    found["traced"] = sweep(model, cases, sites, min_gap=0.0, checkpoint=folder / "sweep").effects().values
    found["screened"] = screen(model, cases, sites, method="integrated", steps=3).values
    options = AstraOptions(masks=16, batch=64)
    found["attributed"] = attribute(model, cases.pixels, cases.targets, cases.names, options).weights
    for augment in ("none", "natural"):
        network = vit(1)
        options_of = TrainOptions(epochs=2, batch_size=48, lr=1e-3, augment=augment)
        history = fit(
            network, images.subset(range(301)), images.subset(range(301, 400)), options_of, folder / f"{augment}.pt"
        )
        found |= weights(network, augment)
        found[f"{augment}.loss"] = torch.tensor([row["train_loss"] for row in history.rows])
        assert history.rows[-1]["train_accuracy"] > 0.1
    student = vit(1)
    part = images.subset(range(97)), images.subset(range(100, 200))
    distill(
        student, model, *part, DistillOptions(epochs=1, batch_size=48, lr=1e-3, label_weight=0.3), folder / "student.pt"
    )
    found |= weights(student, "student")
    found |= told(folder, cache)
    return found


def told(folder: Path, cache: Path) -> dict[str, Tensor]:
    """The same of a language model."""
    model, trained = talker(), talker()
    fit_language(trained, TEXTS, LanguageOptions(epochs=2, batch_size=3, lr=1e-3, length=24), folder / "talker.pt")
    found = weights(trained, "talker")
    text = TextSet.of(TEXTS * 4, model.tokenize, 12)
    site = Site("mlp.value", 1)
    found["moment.text"] = key_moment(model, [site], text, cache / "text", 4)[site].matrix
    ids = [tuple(model.tokenize(each)) for each in TEXTS]
    prompts = tuple(Prompt(str(i), each, (1, 3)) for i, each in enumerate(ids))
    prompt_cases = PromptCases(model, prompts, EmbeddingNoise(3.0, 2, 0))
    places = [Site("resid.out", 0, tokens="subject_last"), Site("mlp.out", 1, tokens="last")]
    found["traced.text"] = sweep(model, prompt_cases, places, min_gap=0.0).effects().values
    nll, right = likelihoods(model, [(each, 3) for each in ids], batch_size=3)
    found["asked"] = torch.from_numpy(np.stack([nll, right]))
    found["written"] = torch.tensor(generate(model, ids, [6] * len(ids), top_k=5, batch_size=3))
    return found


def mapped(folder: Path) -> ImageSet:
    """Images that stay in a file."""
    images = noise_images(300, 7)
    path = folder / f"noise-{os.getpid()}.npz"
    np.savez(path, train_images=images.store.read(np.arange(300)), train_labels=images.labels[:, None])
    arrays = open_npz(path, folder / "unpacked", memory_limit=0)
    assert isinstance(arrays["train_images"], np.memmap)
    return replace(images, store=ArrayStore(arrays["train_images"]), positions=np.arange(299, 9, -1))


def failing(folder: Path) -> dict[str, str]:
    """What is told when one process meets something, and that all go on behind it."""
    images = noise_images(960)
    pixels = images.store.read(np.arange(960))
    pixels[900] = 255
    damaged = replace(images, store=Unreadable(pixels))
    said: dict[str, str] = {}

    @contextmanager
    def refused(name: str) -> Iterator[None]:
        try:
            yield
        except WeightsmithError as error:
            said[name] = str(error)

    with refused("predict"):
        predict(vit(), damaged, 64)
    with refused("moment"):
        key_moment(vit(), [Site("mlp.value", 1)], damaged, folder / "failing", 16)
    with refused("train"):
        options = TrainOptions(epochs=1, batch_size=960, lr=1e-3)
        fit(vit(), damaged, noise_images(8), options, folder / "failing.pt")
    with refused("full disk"), unwritable():
        fit(vit(), images, noise_images(8), TrainOptions(epochs=2, batch_size=64, lr=1e-3), folder / "full.pt")
    with refused("diverged"):
        fit(vit(), images, noise_images(8), TrainOptions(epochs=3, batch_size=64, lr=1e20), folder / "diverged.pt")
    model = vit()
    alone = predict(model, images, 64).logits
    linear = next(part for part in model.module.modules() if isinstance(part, nn.Linear))
    handle = linear.register_forward_hook(lambda _, __, given: given + 1)
    doubled = predict(model, images, 64).logits
    one, other = vit(), vit()
    options = TrainOptions(epochs=1, batch_size=64, lr=1e-3)
    fit(one, images.subset(range(128)), images.subset(range(64)), options, folder / "one.pt")
    other.module.register_forward_hook(lambda *_: None)
    fit(other, images.subset(range(128)), images.subset(range(64)), options, folder / "other.pt")
    apart = [(a - b).abs().max() for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True)]
    said["trained with a hook"] = str(bool(max(apart) < 1e-5))
    handle.remove()
    said["hooked"] = str(bool((alone != doubled).any(1).all()))  # in the part of every process
    with model_changed(model):
        changed = predict(model, images, 64).logits
    said["changed"] = str(bool((changed != alone).any()))
    said["and back"] = str(bool((alone == predict(model, images, 64).logits).all()))
    return said


@contextmanager
def unwritable() -> Iterator[None]:
    """No checkpoint can be written, and one is due behind every step."""

    def full(_: Training) -> None:
        raise WeightsmithError("the disk is full: free some space")

    before, save_of, loop._SAVE_SECONDS, Training._save = loop._SAVE_SECONDS, Training._save, -1.0, full
    try:
        yield
    finally:
        loop._SAVE_SECONDS, Training._save = before, save_of


@contextmanager
def model_changed(model: Model) -> Iterator[None]:
    weight: Any = next(model.module.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    yield
    with torch.no_grad():
        weight.copy_(before)


def commanded(folder: Path) -> None:
    """A command: rank 0 is in the middle of its job, as it is when it was given on the command line."""
    save(reader(), folder / "model")
    flags = ["--data-path", "digits", "--corruption", "blur", "--window", "1", "--max-samples", "9", "--min-gap", "0"]
    flags += ["--select", "all", "--device", "cpu", "--model", str(folder / "model"), "--runs-dir", str(folder)]
    command(["locate", "patch", *flags, "--run-name", "patched"])


def blank(_: object) -> bytes:
    """A figure that is not drawn, for nobody looks at it."""
    return b""


def main() -> None:
    torch.set_num_threads(1)
    plots._png = blank
    folder = Path(sys.argv[1])
    SWEEP._CPU_LANE_BYTES = 1  # in every process, as in `worked`
    if ranks.helping():
        command(["locate"])  # whatever the command, this process has nothing to say to it
        raise AssertionError("a process that helps exits when all is done")
    folder.mkdir(parents=True, exist_ok=True)
    with ranks.led():
        (folder / "processes.txt").write_text(str(ranks.world()))
        save_file({name: value.contiguous() for name, value in worked(folder).items()}, folder / "found.safetensors")
        (folder / "said.json").write_text(json.dumps(failing(folder)))
        commanded(folder)


if __name__ == "__main__":
    main()
