"""Memory that runs out is answered by smaller batches, wherever batches run; results are those of the smaller batches."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.memory import NO_MEMORY, memory_for
from weightsmith.batches import Fitting, out_of_memory, tried
from weightsmith.cli.running import _told
from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.data.images import ImageSet
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.locate.cases import UNDECIDED, ImageCases
from weightsmith.locate.grids import layers
from weightsmith.locate.screen import screen
from weightsmith.locate.sweep import sweep
from weightsmith.measure import key_moment, predict
from weightsmith.models import Model, create_language
from weightsmith.site import Site
from weightsmith.train import LanguageOptions, TrainOptions, fit, fit_language, train_tokenizer


@pytest.mark.parametrize("error", NO_MEMORY)
def test_what_says_that_memory_ran_out(error: Exception) -> None:
    assert out_of_memory(error)
    told = _told(error)
    assert told is not None
    assert told[1] == 1
    assert "memory ran out" in told[0]
    assert "--batch-size" in told[0]


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("out of memory"), OSError(28, "No space")]
)
def test_what_does_not(error: Exception) -> None:
    assert not out_of_memory(error)
    with pytest.raises(type(error)):
        list(Fitting("working").parts(lambda _: (_ for _ in ()).throw(error), 4))


def test_halves_until_it_fits_and_stays_there(caplog: pytest.LogCaptureFixture) -> None:
    fitting, asked = Fitting("working"), []

    def work(which: slice) -> list[int]:
        asked.append(which.stop - which.start)
        if asked[-1] > 3:
            raise MemoryError
        return list(range(which.start, which.stop))

    for count in (13, 5):
        assert list(chain.from_iterable(fitting.parts(work, count))) == list(range(count))
    assert asked == [13, 6, 3, 3, 3, 3, 1, 3, 2]
    assert caplog.text.count("memory ran out while working, 13 at a time") == 1
    assert list(fitting.parts(work, 0)) == []
    with pytest.raises(WeightsmithError, match="one at a time: give a smaller model"):
        list(Fitting("working").parts(lambda _: (_ for _ in ()).throw(MemoryError), 4))


def test_what_failed_holds_no_memory_when_it_is_tried_again() -> None:
    class Large:
        pass

    held: list[weakref.ref[Large]] = []

    def work() -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise MemoryError

    gc.disable()
    try:
        assert tried(work) is None
        assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", NO_MEMORY[:2])
def test_predictions(
    tiny_model: Callable[..., Model],
    random_set: Callable[..., ImageSet],
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, images = tiny_model("vit"), random_set(21)
    smaller = predict(model, images, 2)
    with memory_for(2, error) as passed:
        found = predict(model, images, 8)
    assert max(passed) == 2
    assert torch.equal(found.logits, smaller.logits)
    assert caplog.text.count("memory ran out") == 1
    with memory_for(0, error), pytest.raises(WeightsmithError, match="memory ran out while predicting, one at a time"):
        predict(model, images, 8)


def test_key_statistics(
    tiny_model: Callable[..., Model],
    random_set: Callable[..., ImageSet],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, images, sites = tiny_model("vit"), random_set(21), [Site("mlp.key", 0), Site("mlp.key", 2)]
    smaller = key_moment(model, sites, images, tmp_path / "a", 2)
    with memory_for(2):
        found = key_moment(model, sites, images, tmp_path / "b", 8)
    assert all(torch.equal(found[site].matrix, smaller[site].matrix) for site in sites)
    assert [found[site].samples for site in sites] == [21, 21]
    assert caplog.text.count("memory ran out") == 1
    with memory_for(0), pytest.raises(WeightsmithError, match="memory ran out while key statistics are taken, one"):
        key_moment(model, sites, images, tmp_path / "c", 8)


def cases_of(model: Model, pixels: Tensor) -> ImageCases:
    undecided = torch.full((len(pixels),), UNDECIDED)
    names = tuple(f"image {number}" for number in range(len(pixels)))
    return ImageCases(model, names, pixels, EmbeddingNoise(scale=2.0, samples=3, seed=5), undecided, undecided)


@pytest.mark.parametrize("most", [9, 3, 1])
def test_a_sweep(
    tiny_model: Callable[..., Model], random_pixels: Callable[..., Tensor], most: int, caplog: pytest.LogCaptureFixture
) -> None:
    """15 corrupted inputs and their lanes: fewer lanes, then fewer cases, then fewer noise samples at a time."""
    model = tiny_model("vit")
    cases, sites = (
        cases_of(model, random_pixels(5)),
        [*layers(model, "resid.out"), *layers(model, "mlp.out", windows=[2])],
    )
    whole = sweep(model, cases, sites, min_gap=0.0)
    with memory_for(most) as passed:
        found = sweep(model, cases, sites, min_gap=0.0)
    assert max(passed) <= most
    assert found.samples == whole.samples
    for name in whole.restored:
        assert torch.allclose(found.restored[name], whole.restored[name], atol=1e-6)
        assert torch.allclose(found.clean[name], whole.clean[name], atol=1e-6)
        assert torch.allclose(found.corrupted[name], whole.corrupted[name], atol=1e-6)
    told = [record.message.partition(", ")[0] for record in caplog.records]
    assert 1 <= len(told) == len(set(told)), "each once"
    assert torch.equal(found.targets, whole.targets)


def test_a_sweep_without_room_for_one(tiny_model: Callable[..., Model], random_pixels: Callable[..., Tensor]) -> None:
    model = tiny_model("vit")
    with memory_for(0), pytest.raises(WeightsmithError, match="memory ran out"):
        sweep(model, cases_of(model, random_pixels(5)), layers(model, "resid.out"), min_gap=0.0)


def test_a_screen(
    tiny_model: Callable[..., Model], random_pixels: Callable[..., Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("vit")
    cases, sites = cases_of(model, random_pixels(5)), layers(model, "mlp.out")
    whole = screen(model, cases, sites)
    with memory_for(6):
        found = screen(model, cases, sites)
    assert found.samples == whole.samples
    assert torch.allclose(found.values, whole.values, atol=1e-6)
    assert found.info["target_classes"] == whole.info["target_classes"]
    assert caplog.text.count("memory ran out while cases are screened, 5 at a time") == 1
    with memory_for(2), pytest.raises(WeightsmithError, match="memory ran out while cases are screened, one at a time"):
        screen(model, cases, sites)


def assert_near(one: Model, other: Model) -> None:
    """The same but for rounding; keys' biases change nothing, so that theirs is all that their gradient is."""
    for name, weight in one.module.state_dict().items():
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(weight, other.module.state_dict()[name], atol=2e-5), name


def test_a_training_takes_the_same_steps(
    tiny_model: Callable[..., Model],
    random_set: Callable[..., ImageSet],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = random_set(58)
    train, val = images.subset(range(44)), images.subset(range(44, 58))
    options = TrainOptions(epochs=2, batch_size=16, lr=1e-3, augment="light", label_smoothing=0.1)
    whole, limited = tiny_model("vit"), tiny_model("vit")
    before = weights_hash(whole)
    expected = fit(whole, train, val, options, tmp_path / "whole.pt")
    with memory_for(5) as passed:
        found = fit(limited, train, val, options, tmp_path / "limited.pt")
    assert max(passed) <= 5
    assert weights_hash(whole) != before
    assert_near(whole, limited)
    for one, other in zip(found.rows, expected.rows, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert one["train_accuracy"] == other["train_accuracy"]
    assert caplog.text.count("memory ran out in a training step of 16 samples") == 1
    with memory_for(0), pytest.raises(WeightsmithError, match="memory ran out while training, one sample at a time"):
        fit(tiny_model("vit"), train, val, options, tmp_path / "none.pt")


def test_memory_that_runs_out_on_the_way_back(
    tiny_model: Callable[..., Model],
    random_set: Callable[..., ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The forward pass of a step fits, its backward pass does not."""
    images, options = random_set(40), TrainOptions(epochs=1, batch_size=10, lr=1e-3)
    train, val = images.subset(range(30)), images.subset(range(30, 40))
    whole, limited = tiny_model("vit"), tiny_model("vit")
    fit(whole, train, val, options, tmp_path / "whole.pt")
    backward, asked = Tensor.backward, []

    def failing(self: Tensor, *rest: object, **more: object) -> None:
        asked.append(1)
        backward(self, *rest, **more)  # type: ignore[arg-type]
        if len(asked) == 2:  # that of the second step
            raise NO_MEMORY[0]

    monkeypatch.setattr(Tensor, "backward", failing)
    fit(limited, train, val, options, tmp_path / "limited.pt")
    assert len(asked) == 2 + 2 + 2
    assert_near(whole, limited)
    assert caplog.text.count("memory ran out in a training step") == 1


def test_a_training_of_a_language_model_takes_the_same_steps(tmp_path: Path) -> None:
    """Parts of a step decide different numbers of tokens."""
    words = ("apple", "brick", "cloud", "drum")
    texts = [f"The {one} follows the {two}" + " at dawn" * (len(one) % 3) for one in words for two in words]
    drops = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    network = {"model_type": "gpt2", "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, **drops}
    tokenizer = train_tokenizer(texts, 290)
    models = [create_language(network, tokenizer, 0) for _ in range(2)]
    options = LanguageOptions(epochs=2, batch_size=3, lr=1e-3, length=32, seed=5)
    fit_language(models[0], texts, options, tmp_path / "whole.pt")
    with memory_for(1) as passed:
        fit_language(models[1], texts, options, tmp_path / "limited.pt")
    assert max(passed) == 1
    assert_near(*models)


def test_a_resumed_training_may_have_more_memory(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    images, options = random_set(40), TrainOptions(epochs=2, batch_size=10, lr=1e-3)
    train, val = images.subset(range(30)), images.subset(range(30, 40))
    whole, limited = tiny_model("vit"), tiny_model("vit")
    fit(whole, train, val, options, tmp_path / "whole.pt")

    def stop(rows: list[dict[str, float]]) -> None:
        raise KeyboardInterrupt

    with memory_for(5), pytest.raises(KeyboardInterrupt):
        fit(limited, train, val, options, tmp_path / "limited.pt", on_epoch=stop)
    again = tiny_model("vit")
    fit(again, train, val, options, tmp_path / "limited.pt", resume=True)
    assert_near(whole, again)
