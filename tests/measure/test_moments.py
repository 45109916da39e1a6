"""Second moments of keys: what they are, and that the cache and what was put aside never change them."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weightsmith.data import ImageSet, TextSet
from weightsmith.data.seal import evaluation
from weightsmith.delta import Delta, Dense
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.files import default_cache_dir
from weightsmith.measure import Convergence, Moment, key_moment, mixed, moments, reading, sums
from weightsmith.measure.sums import RunningSum
from weightsmith.models import Model, Preprocess, count_blocks, families
from weightsmith.site import Site

Samples = ImageSet | TextSet
SamplesFor = Callable[..., Samples]
TinyModel = Callable[..., Model]
LENGTH = 7

# Tiny networks have few keys: these rules look early and stop soon, or never.
SOON = Convergence(tolerance_trace=0.2, overlap=0.5, rank=2, tokens_per_dimension=2)
NEVER = Convergence(tolerance_trace=1e-12, overlap=1 - 1e-12, rank=2, tokens_per_dimension=0.1)


@pytest.fixture(params=sorted(families()))
def family_name(request: pytest.FixtureRequest) -> str:
    """Each shipped family's name in turn; the room's own fixture has those of images."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def samples_for(random_set: Callable[..., ImageSet]) -> SamplesFor:
    """`samples_for(model, n, seed=0)`: n images, or n windows of text of which the last is shorter."""

    def make(model: Model, n: int, seed: int = 0) -> Samples:
        if model.family.reads == "images":
            return random_set(n, seed=seed, source=f"noise {seed}")
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, model.n_classes, (n * LENGTH - 3,), generator=generator)
        return TextSet(ids.numpy().astype(np.int32), np.arange(n), LENGTH, "ids")

    return make


def key_sites(model: Model) -> list[Site]:
    """Keys of every linear map: at the lookup token, and in the first block at all tokens."""
    found = [
        model.lookup(model.key_of(kind), None if kind.startswith("classifier.") else model.n_layers - 1)
        for kind in model.family.linear
    ]
    return [*found, Site("mlp.key", 0)]


def keys_by_hand(model: Model, samples: Samples, site: Site) -> np.ndarray:
    """(keys, d) float64, one sample at a time through a plain forward hook."""
    taken: list[np.ndarray] = []
    bound = model.bind(site)
    assert bound.side == "in"
    handle = bound.module.register_forward_pre_hook(
        lambda _m, args: taken.append(args[0][0].double().numpy().reshape(-1, args[0].shape[-1]))
    )
    dtype = next(model.module.parameters()).dtype
    with torch.no_grad():
        for batch in samples.batches(1):
            model.module(batch if isinstance(batch, Tensor) else model.preprocess(batch[0]).to(dtype))
    handle.remove()
    chosen = {"cls": slice(1), "last": slice(-1, None), "patches": slice(1, None), None: slice(None)}
    assert site.tokens is None or isinstance(site.tokens, str)
    return np.concatenate([keys[chosen[site.tokens]] for keys in taken])


def by_hand(model: Model, samples: Samples, site: Site) -> np.ndarray:
    keys = keys_by_hand(model, samples, site)
    return np.mean([np.outer(key, key) for key in keys], axis=0)


def forwards(model: Model, samples: Samples, sites: list[Site], cache: Path) -> tuple[int, list[Tensor]]:
    """Block forwards that a call took, and the matrices."""
    with count_blocks(model) as count:
        found = key_moment(model, sites, samples, cache)
    assert list(found) == sites
    return count(), [found[site].matrix for site in sites]


def same(one: dict[Site, Moment], two: dict[Site, Moment]) -> bool:
    """Equal to the bit, and in what is said of them."""
    return list(one) == list(two) and all(
        torch.equal(one[site].matrix, two[site].matrix)
        and {key: value for key, value in vars(one[site]).items() if key != "matrix"}
        == {key: value for key, value in vars(two[site]).items() if key != "matrix"}
        for site in one
    )


# --- what a moment is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [4, None])
def test_a_moment_is_the_mean_outer_product(
    model: Model, samples_for: SamplesFor, tmp_path: Path, batch_size: int | None
) -> None:
    samples = samples_for(model, 7)
    for site, moment in key_moment(model, key_sites(model), samples, tmp_path, batch_size).items():
        keys = keys_by_hand(model, samples, site)
        assert (moment.count, moment.samples, moment.site) == (len(keys), 7, site)
        assert moment.matrix.dtype == torch.float64
        np.testing.assert_allclose(moment.matrix, by_hand(model, samples, site), rtol=1e-4, atol=1e-6)
        assert torch.equal(moment.matrix, moment.matrix.mT)
        assert (moment.stopped, moment.converged, moment.overlap) == ("all 7 samples read", False, None)


def test_every_token_of_a_text_is_a_key_and_no_padding(tiny_model: TinyModel, samples_for: SamplesFor) -> None:
    model = tiny_model("gpt2")
    text = samples_for(model, 5)
    found = key_moment(model, [Site("mlp.key", 1), Site("mlp.key", 1, tokens="last")], text)
    assert [moment.count for moment in found.values()] == [4 * LENGTH + LENGTH - 3, 5]


@pytest.mark.parametrize("family_name", ["vit", "deit"])
@pytest.mark.parametrize("kind", ["mlp.key", "attn.z"])
def test_cls_and_patches_together_are_all_tokens(
    model: Model, random_set: Callable[..., ImageSet], tmp_path: Path, kind: str
) -> None:
    sites = [Site(kind, 1, tokens="cls"), Site(kind, 1, tokens="patches"), Site(kind, 1)]
    cls, patches, every = key_moment(model, sites, random_set(9), tmp_path).values()
    special = model.family.special
    assert (cls.count, patches.count) == (9, 9 * (model.n_tokens - special))
    if special == 1:
        assert cls.count + patches.count == every.count
        joined = mixed([cls, patches], [cls.count, patches.count])
        for found, wanted in (
            (cls.count * cls.matrix + patches.count * patches.matrix, every.count * every.matrix),
            (joined.matrix, every.matrix),
        ):
            assert float((found - wanted).norm() / wanted.norm()) < 1e-6
        assert (joined.site, joined.count, joined.samples) == (every.site, every.count, 9)
    assert not torch.allclose(cls.matrix, patches.matrix, rtol=0.05)


def test_a_mixture_is_the_weighted_mean(tiny_model: TinyModel, random_set: Callable[..., ImageSet]) -> None:
    sites = [Site("mlp.key", 1, tokens="cls"), Site("mlp.key", 1, tokens="patches"), Site("mlp.key", 0)]
    cls, patches, elsewhere = key_moment(tiny_model("vit"), sites, random_set(5)).values()
    found = mixed([cls, patches], [3, 1])
    torch.testing.assert_close(found.matrix, 0.75 * cls.matrix + 0.25 * patches.matrix, rtol=1e-14, atol=0)
    assert "0.75 of mlp.key[1]@cls (all 5 samples read)" in found.stopped
    assert torch.equal(mixed([cls, patches], [1, 0]).matrix, cls.matrix)
    assert mixed([cls, cls], [1, 1]).site == cls.site
    for some, weights, said in [
        ([cls, elsewhere], [1, 1], r"different places .*mlp\.key\[0\], mlp\.key\[1\]"),
        ([cls], [1, 1], "one weight"),
        ([], [], "one weight"),
        ([cls, patches], [0, 0], "not all of them 0"),
        ([cls, patches], [2, -1], "one weight from 0"),
        ([cls, patches], [1, float("nan")], "one weight"),
    ]:
        with pytest.raises(WeightsmithError, match=said):
            mixed(some, weights)


def test_sums_of_wide_keys_are_within_1e_6_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(5000, 700, generator=generator) + torch.randn(700, generator=generator)
    running = RunningSum(Site("mlp.key", 0))
    for batch in keys.split(1777):
        running.add(batch[None], len(batch))
    matrix, wanted = running.matrix(), keys.double().mT @ keys.double() / 5000
    assert torch.equal(matrix, matrix.mT)
    assert float((matrix - wanted).norm() / wanted.norm()) < 1e-6
    scale = wanted.diagonal().sqrt()
    assert float(((matrix - wanted).abs() / scale[:, None] / scale).max()) < 1e-6


def test_a_user_who_allows_coarse_products_gets_the_same_moment(
    tiny_model: TinyModel, samples_for: SamplesFor, tmp_path: Path
) -> None:
    keys, plain, coarse = torch.randn(64, 600), RunningSum(Site("mlp.key", 0)), RunningSum(Site("mlp.key", 0))
    plain.add(keys, 1)
    torch.set_float32_matmul_precision("medium")
    try:
        coarse.add(keys, 1)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(plain.matrix(), coarse.matrix())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family_name", ["vit", "gpt2", "llama"])
def test_models_in_other_precisions(model: Model, samples_for: SamplesFor, tmp_path: Path, dtype: torch.dtype) -> None:
    site, samples = Site("mlp.key", 1), samples_for(model, 6)
    (single,) = key_moment(model, [site], samples, tmp_path).values()
    model.module.to(dtype)
    (moment,) = key_moment(model, [site], samples, tmp_path, batch_size=1).values()
    assert moment.matrix.dtype == torch.float64
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # of the keys as they are; bfloat16's own rounding is in them
    torch.testing.assert_close(
        moment.matrix, torch.from_numpy(by_hand(model, samples, site)), rtol=tolerance, atol=tolerance
    )
    assert not torch.equal(single.matrix, moment.matrix)
    assert float((single.matrix - moment.matrix).norm() / single.matrix.norm()) < 0.03


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_keys_that_are_no_numbers_are_told(model: Model, samples_for: SamplesFor, tmp_path: Path, value: float) -> None:
    path, _, _ = model.linear("mlp.value", 0)
    with torch.no_grad():
        model.module.get_parameter(path)[0, 0] = value
    good = Site("mlp.key", 0)
    (before,) = key_moment(model, [good], samples_for(model, 4), tmp_path).values()
    assert bool(before.matrix.isfinite().all()), "what lies before the damage can be measured"
    with pytest.raises(WeightsmithError, match=r"keys at mlp\.key\[1\] hold NaN"):
        key_moment(model, [good, Site("mlp.key", 1)], samples_for(model, 4), tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_keys_too_large_to_be_squared_are_told(tmp_path: Path) -> None:
    running = RunningSum(Site("mlp.key", 2))
    running.add(torch.ones(3, 4), 1)
    with pytest.raises(WeightsmithError, match=r"mlp\.key\[2\] are too large to be squared"):
        running.add(torch.full((3, 4), 1e30), 1)
    running.save(tmp_path / "sum.partial")
    assert not list(tmp_path.iterdir()), "a sum that was added to by half is not put aside"


def test_an_addition_that_was_interrupted_is_not_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(total: Tensor, keys: Tensor) -> None:
        total[:2] += 1
        raise KeyboardInterrupt

    running, path = RunningSum(Site("mlp.key", 2)), tmp_path / "sum.partial"
    running.add(torch.ones(3, 4), 1)
    running.save(path)
    monkeypatch.setattr(sums, "_add_products", interrupted)
    with pytest.raises(KeyboardInterrupt):
        running.add(torch.ones(3, 4), 1)
    running.save(path)
    found = RunningSum.load(path, running.site, samples=9, batch_size=1)
    assert (found.count, found.samples) == (3, 1), "what was put aside before is still there"
    assert torch.equal(found.matrix(), torch.ones(4, 4).double())


# --- what it costs -------------------------------------------------------------------------------------------------


def test_passes_end_at_the_last_site(model: Model, samples_for: SamplesFor, tmp_path: Path) -> None:
    samples = samples_for(model, 6)
    assert forwards(model, samples, [Site("mlp.key", 0)], tmp_path)[0] == 6
    assert forwards(model, samples, [Site("mlp.key", 1), Site("mlp.key", 0)], tmp_path)[0] == 12


def test_the_second_call_does_not_run_the_model(model: Model, samples_for: SamplesFor, tmp_path: Path) -> None:
    samples, sites = samples_for(model, 6), key_sites(model)
    ran, first = forwards(model, samples, sites, tmp_path)
    assert ran == 6 * model.n_layers, "one pass serves all sites"
    ran, again = forwards(model, samples, sites, tmp_path)
    assert ran == 0
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    shuffled = samples.subset([3, 1, 5, 0, 2, 4])
    assert forwards(model, shuffled, sites, tmp_path)[0] == 0, "a set has no order"
    _, fresh = forwards(model, shuffled, sites, tmp_path / "empty")
    assert all(torch.equal(one, two) for one, two in zip(first, fresh, strict=True)), "not even in the last bit"


def test_what_is_cached_is_not_measured_again_beside_what_is_not(
    model: Model, samples_for: SamplesFor, tmp_path: Path
) -> None:
    samples, sites = samples_for(model, 6), key_sites(model)
    _, (alone,) = forwards(model, samples, sites[:1], tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    ran, both = forwards(model, samples, sites, tmp_path)
    assert ran > 0
    assert torch.equal(both[0], alone)
    assert len(stamps) == 1
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_other_weights_samples_or_sites_are_measured_anew(
    model: Model, samples_for: SamplesFor, tmp_path: Path, tiny_model: TinyModel
) -> None:
    samples, sites = samples_for(model, 6), [model.lookup("mlp.key", model.n_layers - 1)]
    _, (first,) = forwards(model, samples, sites, tmp_path)

    def differs(model: Model, samples: Samples, sites: list[Site]) -> bool:
        ran, (matrix,) = forwards(model, samples, sites, tmp_path)
        _, (fresh,) = forwards(model, samples, sites, tmp_path / "empty")
        return ran > 0 and torch.equal(matrix, fresh) and not torch.equal(matrix, first)

    assert differs(tiny_model(model.family.name, seed=1), samples, sites)
    assert differs(model, samples.subset([0, 1, 2]), sites)
    assert differs(model, samples_for(model, 6, seed=9), sites)
    assert differs(model, samples, [model.lookup("mlp.key", 1)])
    weight, _, _ = model.linear("mlp.value", 0)
    push = Dense(torch.ones_like(model.module.get_parameter(weight)))
    with Delta({weight: push}).on(model):
        ran, _ = forwards(model, samples, sites, tmp_path)
        assert ran > 0
    ran, (again,) = forwards(model, samples, sites, tmp_path)
    assert ran == 0
    assert torch.equal(again, first)


def test_another_part_of_the_same_images_is_measured_anew(
    tiny_model: TinyModel, random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    model, sites = tiny_model("vit"), [Site("mlp.key", 0)]
    assert forwards(model, random_set(4), sites, tmp_path)[0] > 0
    assert forwards(model, random_set(4, seed=9, part="val"), sites, tmp_path)[0] > 0
    assert forwards(model, random_set(4), sites, tmp_path)[0] == 0


def test_another_preprocessing_is_measured_anew(
    tiny_model: TinyModel, random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    model, images, site = tiny_model("vit"), random_set(4), Site("mlp.key", 0)
    brighter = Model(model.module, model.family, Preprocess(8, mean=(0.0,) * 3), model.class_names)
    _, (first,) = forwards(model, images, [site], tmp_path)
    _, (other,) = forwards(brighter, images, [site], tmp_path)
    _, (fresh,) = forwards(brighter, images, [site], tmp_path / "empty")
    assert not torch.equal(first, fresh)
    assert torch.equal(other, fresh)


# --- damage --------------------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _rewritten(path: Path, tensors: dict[str, Tensor], **entries: object) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["weightsmith"])
    save_file(tensors, path, metadata={"weightsmith": json.dumps(header | entries)})


def _other_site(path: Path) -> None:
    _rewritten(path, {name: tensor + 1 for name, tensor in load_file(path).items()}, site="mlp.key[2]")


def _no_header(path: Path) -> None:
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)


def _nan(path: Path) -> None:
    _rewritten(path, {name: tensor.fill_(float("nan")) for name, tensor in load_file(path).items()})


def _other_tensors(path: Path) -> None:
    _rewritten(path, {"other": torch.zeros(1)})


def _not_square(path: Path) -> None:
    _rewritten(path, {name: tensor[:-1].contiguous() for name, tensor in load_file(path).items()})


def _too_many(path: Path) -> None:
    _rewritten(path, load_file(path), samples=10**6)


def _other_batches(path: Path) -> None:
    _rewritten(path, load_file(path), samples=3)


def _one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


ENTRY_DAMAGES = [_truncate, _empty, _other_site, _no_header, _nan, _other_tensors, _not_square, _one_bit]


@pytest.mark.parametrize("damage", ENTRY_DAMAGES)
def test_a_damaged_entry_is_measured_again(
    tiny_model: TinyModel,
    random_set: Callable[..., ImageSet],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    model, images, sites = tiny_model("vit"), random_set(4), [Site("mlp.key", 0)]
    _, first = forwards(model, images, sites, tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    damage(path)
    ran, again = forwards(model, images, sites, tmp_path)
    assert ran > 0
    assert torch.equal(first[0], again[0])
    assert "measured again" in caplog.text
    assert forwards(model, images, sites, tmp_path)[0] == 0, "the entry was mended"


@pytest.mark.parametrize("suffix", [".safetensors", ".partial"])
def test_entries_of_two_models_that_change_places_are_measured_again(
    tiny_model: TinyModel, samples_for: SamplesFor, tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    """Both are whole, of one site and of one size."""
    models, sites = [tiny_model("gpt2"), tiny_model("gpt2", seed=1)], [Site("mlp.key", 0)]
    samples = samples_for(models[0], 8)
    undisturbed = [key_moment(model, sites, samples, tmp_path / "other", 2) for model in models]
    places = []
    for model in models:
        if suffix == ".partial":
            with broken_off(2):
                key_moment(model, sites, samples, tmp_path / "cache", 2)
        else:
            key_moment(model, sites, samples, tmp_path / "cache", 2)
        places += [path for path in (tmp_path / "cache").rglob(f"*{suffix}") if path not in places]
    one, two = places
    aside = one.rename(one.with_name("aside"))
    two.rename(one)
    aside.rename(two)
    for model, expected in zip(models, undisturbed, strict=True):
        with count_blocks(model) as count:
            assert same(key_moment(model, sites, samples, tmp_path / "cache", 2), expected)
        assert count() == 8, "all of it is read again"
    assert caplog.text.count("was kept as") == 2


def test_a_cache_that_cannot_be_written_is_told_and_the_measure_holds(
    tiny_model: TinyModel, samples_for: SamplesFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model, sites = tiny_model("gpt2"), [Site("mlp.key", 0)]
    samples = samples_for(model, 8)
    undisturbed = key_moment(model, sites, samples, tmp_path / "other", 2)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", refuse)
        assert same(key_moment(model, sites, samples, tmp_path / "cache", 2), undisturbed)
    assert not (tmp_path / "cache").exists()
    assert "is not kept" in caplog.text


# --- broken off and taken up again ---------------------------------------------------------------------------------


def break_off(monkeypatch: pytest.MonkeyPatch, after: int, then: Callable[[], object] | None = None) -> None:
    """Interrupt the pass in place of batch `after`, or do something then and go on."""
    record_until, calls = reading.record_until, iter(range(10**6))

    def counted(*arguments: Any) -> dict[Site, Tensor]:
        if next(calls) == after:
            if then is None:
                raise KeyboardInterrupt
            then()
        return record_until(*arguments)

    monkeypatch.setattr(reading, "record_until", counted)


@contextmanager
def broken_off(after: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patching:
        break_off(patching, after)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("until", [None, SOON, NEVER], ids=["all", "soon", "never"])
@pytest.mark.parametrize("after", [1, 4])
def test_a_call_that_was_broken_off_goes_on_with_the_same_bits(
    model: Model, samples_for: SamplesFor, tmp_path: Path, after: int, until: Convergence | None
) -> None:
    samples, sites = samples_for(model, 17), key_sites(model)
    undisturbed = key_moment(model, sites, samples, tmp_path / "other", 3, until)
    with broken_off(after):
        key_moment(model, sites, samples, tmp_path, 3, until)
    put_aside = list((tmp_path / "moments").glob("*.partial"))
    finished = list((tmp_path / "moments").glob("*.safetensors"))
    assert len(put_aside) + len(finished) == len(sites)
    assert put_aside, "the rule may not stop this early in this test"
    with count_blocks(model) as count:
        again = key_moment(model, sites, samples.subset(np.arange(17)[::-1]), tmp_path, 3, until)
    assert same(again, undisturbed)
    assert count() <= (17 - 3 * after) * model.n_layers, "what was read is not read again"
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("until", [None, NEVER], ids=["all", "never"])
def test_a_killed_process_loses_only_what_came_after_the_last_save(
    tiny_model: TinyModel, samples_for: SamplesFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    until: Convergence | None,
) -> None:  # fmt: skip
    model = tiny_model("gpt2")
    samples, sites = samples_for(model, 12), [Site("mlp.key", 0), Site("mlp.key", 1)]
    monkeypatch.setattr(moments, "_SAVE_SECONDS", -1.0)
    monkeypatch.setattr(moments.time, "monotonic", iter(range(10**6)).__next__)  # a second each time it is asked
    killed = tmp_path / "killed"
    break_off(monkeypatch, 5, lambda: shutil.copytree(tmp_path / "whole", killed))  # what a kill would leave
    undisturbed = key_moment(model, sites, samples, tmp_path / "whole", 2, until)
    assert len(list(killed.rglob("*.partial"))) == 2
    with count_blocks(model) as count:
        assert same(key_moment(model, sites, samples, killed, 2, until), undisturbed)
    assert 0 < count() < 12 * 2
    assert not list(killed.rglob("*.partial"))


def test_saving_takes_its_share_of_the_time_and_no_more(
    tiny_model: TinyModel, samples_for: SamplesFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seconds, saves = tiny_model("gpt2"), [0.0], []
    monkeypatch.setattr(moments.time, "monotonic", lambda: seconds[0])
    record_until, save = reading.record_until, RunningSum.save

    def slow_pass(*arguments: Any) -> dict[Site, Tensor]:
        seconds[0] += 10
        return record_until(*arguments)

    def slow_save(self: RunningSum, path: Path) -> None:
        saves.append(seconds[0])
        seconds[0] += 4
        save(self, path)

    monkeypatch.setattr(reading, "record_until", slow_pass)
    monkeypatch.setattr(RunningSum, "save", slow_save)
    key_moment(model, [Site("mlp.key", 0)], samples_for(model, 40), tmp_path, 1)
    assert saves[0] == 40, "the first after 30 seconds"
    assert all(81 <= later - sooner <= 95 for sooner, later in pairwise(saves)), "4 s in 80"
    assert len(saves) >= 4


def test_sites_that_were_put_aside_at_different_places_join(
    tiny_model: TinyModel, samples_for: SamplesFor, tmp_path: Path
) -> None:
    model = tiny_model("vit")
    samples, first, second, third = samples_for(model, 14), Site("mlp.key", 0), Site("mlp.key", 1), Site("attn.z", 2)
    undisturbed = key_moment(model, [first, second, third], samples, tmp_path / "other", 2)
    for site, after in ((first, 5), (second, 2)):
        with broken_off(after):
            key_moment(model, [site], samples, tmp_path, 2)
    with count_blocks(model) as count:
        assert same(key_moment(model, [first, second, third], samples, tmp_path, 2), undisturbed)
    assert count() == 14 * 3
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("damage", [*ENTRY_DAMAGES, _too_many, _other_batches])
def test_a_damaged_sum_is_told_and_started_anew(
    tiny_model: TinyModel,
    random_set: Callable[..., ImageSet],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    model, images, sites = tiny_model("vit"), random_set(8), [Site("mlp.key", 0)]
    undisturbed = key_moment(model, sites, images, tmp_path / "other", 2)
    with broken_off(2):
        key_moment(model, sites, images, tmp_path, 2)
    (path,) = tmp_path.glob("moments/*.partial")
    damage(path)
    with count_blocks(model) as count:
        assert same(key_moment(model, sites, images, tmp_path, 2), undisturbed)
    assert count() == 8
    assert "started anew" in caplog.text


def test_a_sum_of_another_model_is_not_taken_up(tiny_model: TinyModel, samples_for: SamplesFor, tmp_path: Path) -> None:
    model, other = tiny_model("gpt2"), tiny_model("gpt2", seed=1)
    samples, sites = samples_for(model, 8), [Site("mlp.key", 0)]
    with broken_off(2):
        key_moment(model, sites, samples, tmp_path, 2)
    with count_blocks(other) as count:
        found = key_moment(other, sites, samples, tmp_path, 2)
    assert count() == 8
    assert same(found, key_moment(other, sites, samples, tmp_path / "empty", 2))
    assert len(list(tmp_path.glob("moments/*.partial"))) == 1, "the first model's is still there for it"


def test_what_broke_the_call_off_is_told_though_nothing_can_be_saved(
    tiny_model: TinyModel, samples_for: SamplesFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model = tiny_model("gpt2")

    def full(self: RunningSum, path: Path) -> None:
        raise WeightsmithError("the disk is full")

    monkeypatch.setattr(RunningSum, "save", full)
    break_off(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        key_moment(model, [Site("mlp.key", 0)], samples_for(model, 8), tmp_path, 2)
    assert "could not be put aside: the disk is full" in caplog.text


def test_two_processes_share_a_cache(
    tiny_model: TinyModel, samples_for: SamplesFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two networks of the same weights at once, each saving behind every batch."""
    twins = [tiny_model("vit"), tiny_model("vit")]
    samples, sites = samples_for(twins[0], 40), [Site("mlp.key", 0), Site("mlp.key", 2)]
    undisturbed = key_moment(twins[0], sites, samples, tmp_path / "other", 2)
    monkeypatch.setattr(moments, "_SAVE_SECONDS", -1.0)
    clock = iter(range(10**9))
    monkeypatch.setattr(moments.time, "monotonic", lambda: 1000 * next(clock))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda twin: key_moment(twin, sites, samples, tmp_path, 2), twins))
    assert all(same(one, undisturbed) for one in found)
    assert same(key_moment(twins[0], sites, samples, tmp_path, 2), undisturbed)


# --- convergence ---------------------------------------------------------------------------------------------------


def stationary(model: Model, windows: int, seed: int = 0) -> TextSet:
    ids = torch.randint(1, model.n_classes, (windows, LENGTH), generator=torch.Generator().manual_seed(seed))
    return TextSet.from_ids(ids)


def test_a_rule_stops_early_on_text_that_stays_the_same(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, site = tiny_model("gpt2"), Site("mlp.key", 1)  # 24 wide
    text, until = stationary(model, 3000), Convergence(rank=2, tolerance_trace=0.02, overlap=0.9)
    with count_blocks(model) as count:
        (moment,) = key_moment(model, [site], text, tmp_path, 4, until).values()
    (full,) = key_moment(model, [site], text, tmp_path).values()
    assert moment.converged
    assert 240 <= moment.count < full.count / 4
    assert (moment.count, count()) == (moment.samples * LENGTH, moment.samples * 2)
    assert moment.trace_change is not None
    assert moment.overlap is not None
    assert moment.trace_change <= 0.02
    assert moment.overlap >= 0.9
    assert moment.stopped == (
        f"converged after {moment.count:,} tokens: trace moved {moment.trace_change:.1%}, "
        f"top-2 subspace overlap {moment.overlap:.3f}"
    )
    assert not full.converged
    first = moments._ordered(text, until).subset(range(moment.samples))
    (wanted,) = key_moment(model, [site], first, tmp_path).values()
    assert wanted.count == moment.count
    assert float((moment.matrix - wanted.matrix).norm() / wanted.matrix.norm()) < 1e-6, "the windows that were read"
    with count_blocks(model) as count:
        again = key_moment(model, [site], text, tmp_path, 4, until)
    assert count() == 0
    assert same(again, {site: moment}), "the cache keeps why reading ended"


def test_a_rule_does_not_stop_while_keys_drift() -> None:
    generator = torch.Generator().manual_seed(0)
    until = Convergence(rank=2, tolerance_trace=0.05, overlap=0.9)
    growing, turning, steady = (RunningSum(Site("mlp.key", 0)) for _ in range(3))
    for step in range(200):
        keys = torch.randn(50, 8, generator=generator)
        keys[:, :2] *= 4
        steady.add(keys, 1)
        growing.add(keys * (1 + step / 20), 1)
        turning.add(keys.roll(2 * int(math.log2(step + 1)), dims=1), 1)  # other directions lead after each doubling
        assert not growing.converged(until), step
        assert not turning.converged(until), step
        if steady.count <= 80:
            assert not steady.converged(until), "ten keys a dimension at least"
    assert growing.last is not None
    assert growing.last.trace_change is not None
    assert growing.last.trace_change > 0.5
    assert turning.last is not None
    assert turning.last.trace_change is not None
    assert turning.last.trace_change < 0.05, "the trace alone would have stopped it"
    fresh = RunningSum(Site("mlp.key", 0))
    for _ in range(20):
        keys = torch.randn(50, 8, generator=generator)
        keys[:, :2] *= 4
        fresh.add(keys, 1)
        if fresh.converged(until):
            break
    assert 80 <= fresh.count <= 500


def test_the_first_samples_speak_for_a_sorted_file(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Half of the text is one word, the other half another: file order would see the first alone."""
    model, site = tiny_model("gpt2"), Site("mlp.key", 0)
    text = TextSet.from_ids(torch.cat([torch.full((1000, LENGTH), 3), torch.full((1000, LENGTH), 17)]))
    until = Convergence(rank=2, tolerance_trace=0.05, overlap=0.9)
    (early,) = key_moment(model, [site], text, tmp_path, 4, until).values()
    (full,) = key_moment(model, [site], text, tmp_path).values()
    (head,) = key_moment(model, [site], text.subset(range(early.samples)), tmp_path).values()
    assert early.converged
    assert early.samples < 800

    def off(moment: Moment) -> float:
        return float((moment.matrix - full.matrix).norm() / full.matrix.norm())

    assert off(early) < 0.1
    assert off(head) > 3 * off(early)


def test_sites_stop_each_for_itself(model: Model, samples_for: SamplesFor, tmp_path: Path) -> None:
    """What is measured beside a site does not change where it stops; with all of them stopped the pass ends."""
    samples, sites = samples_for(model, 60), key_sites(model)
    together = key_moment(model, sites, samples, tmp_path, 2, SOON)
    assert any(moment.converged for moment in together.values())
    alone = {site: key_moment(model, [site], samples, tmp_path / str(i), 2, SOON)[site] for i, site in enumerate(sites)}
    assert same(together, alone)


def test_all_samples_are_read_where_a_rule_is_never_met(model: Model, samples_for: SamplesFor, tmp_path: Path) -> None:
    samples, site = samples_for(model, 30), Site("mlp.key", 0)
    (moment,) = key_moment(model, [site], samples, tmp_path, 4, NEVER).values()
    (full,) = key_moment(model, [site], samples, tmp_path).values()
    assert (moment.samples, moment.count, moment.converged) == (30, full.count, False)
    assert moment.stopped.startswith(f"all 30 samples read ({full.count:,} tokens) before convergence: trace moved")
    assert float((moment.matrix - full.matrix).norm() / full.matrix.norm()) < 1e-6
    late = Convergence(tokens_per_dimension=10**6)
    (unseen,) = key_moment(model, [site], samples, tmp_path, 4, late).values()
    assert unseen.stopped == f"all 30 samples read ({full.count:,} tokens) before convergence"
    assert (unseen.trace_change, unseen.overlap) == (None, None)


def test_the_top_subspace_of_a_wide_moment_is_that_of_its_eigenvectors() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(900, 900, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.arange(1, 901, dtype=torch.float64).pow(-1.0)
    matrix = directions * spectrum @ directions.mT
    state = torch.random.get_rng_state()
    look = Convergence(rank=16).look(matrix, 10, None)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert look.trace == pytest.approx(float(spectrum.sum()))
    torch.testing.assert_close(look.basis.mT @ look.basis, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-10)
    assert float((directions[:, :16].mT @ look.basis).square().sum()) / 16 > 0.9999
    again = Convergence(rank=16).look(1.5 * matrix, 20, look)
    assert again.trace_change == pytest.approx(0.5)
    assert again.overlap == pytest.approx(1, abs=1e-6)
    other = Convergence(rank=16).look(directions.flip(1) * spectrum @ directions.flip(1).mT, 20, look)
    assert other.overlap is not None
    assert other.overlap < 0.001


@pytest.mark.parametrize(
    "entries", [{"tolerance_trace": 0.0}, {"overlap": 1.0}, {"overlap": 0.0}, {"rank": 0}, {"tokens_per_dimension": 0}]
)
def test_a_rule_that_decides_nothing_is_told(entries: dict[str, Any]) -> None:
    with pytest.raises(WeightsmithError, match="cannot decide anything"):
        Convergence(**entries)


# --- what cannot be measured ---------------------------------------------------------------------------------------


def test_a_sealed_set_stays_sealed_when_its_moments_are_cached(
    model: Model, samples_for: SamplesFor, tmp_path: Path
) -> None:
    samples, site = samples_for(model, 4), Site("mlp.key", 0)
    with pytest.raises(HeldOutError):
        key_moment(model, [site], samples.seal(), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    open_one = key_moment(model, [site], samples, tmp_path)[site]
    with pytest.raises(HeldOutError, match="set of 4"):
        key_moment(model, [site], samples.seal(), tmp_path)
    with evaluation():
        assert torch.equal(key_moment(model, [site], samples.seal(), tmp_path)[site].matrix, open_one.matrix)


def test_the_cache_lies_where_the_library_keeps_its_caches(
    tiny_model: TinyModel, random_set: Callable[..., ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    key_moment(tiny_model("mlp"), [Site("mlp.key", 0)], random_set(4))
    assert list(default_cache_dir().rglob("*.safetensors"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_what_cannot_be_measured_is_told(
    tiny_model: TinyModel, samples_for: SamplesFor, random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    vit, gpt2 = tiny_model("vit"), tiny_model("gpt2")
    images, text = random_set(4), samples_for(gpt2, 4)
    at = Site("mlp.key", 0)
    cases: list[tuple[Model, Site, Samples, str]] = [
        (vit, at, images.subset([]), "no images .* preserve at least one"),
        (gpt2, at, text.subset([]), "no windows of text .* preserve at least one"),
        (vit, Site("mlp.key", 7), images, r"mlp\.key\[7\]"),
        (gpt2, at.at("cls"), text, "no CLS token"),
        (gpt2, at, images, "reads no images"),
        (vit, at, text, "reads no text: give images"),
        (
            gpt2,
            at,
            TextSet.from_ids(torch.ones(2, 17, dtype=torch.int64)),
            "17 tokens are longer than the 16 .*length=16",
        ),
        (gpt2, at, TextSet.from_ids(torch.tensor([[1, 29]])), "token id 29 and .* knows 29 tokens"),
        (gpt2, at.at((1, 5)), text, "a window of 4 tokens does not have"),
    ]
    for model, site, samples, said in cases:
        with pytest.raises(WeightsmithError, match=said):
            key_moment(model, [site], samples, tmp_path)
    assert not list(tmp_path.rglob("*"))
    longest = TextSet.from_ids(torch.ones(2, 16, dtype=torch.int64))
    assert key_moment(gpt2, [at], longest, tmp_path)[at].count == 32


def test_a_trained_model_on_its_own_stories(shared_data: Path, tmp_path: Path) -> None:
    """Real keys: windows of the text that it writes, every token once."""
    from weightsmith import load

    folder = shared_data / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no trained model at {folder}: the data at WEIGHTSMITH_TEST_DATA are not complete")
    model = load(folder)
    ids = json.loads((folder / "greedy_reference.json").read_text(encoding="utf-8"))["greedy_ids"]
    text = TextSet.from_ids(torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32))
    site = Site("mlp.key", 2)
    (moment,) = key_moment(model, [site], text, tmp_path).values()
    np.testing.assert_allclose(moment.matrix, by_hand(model, text, site), rtol=1e-4, atol=1e-6)
    assert moment.count == text.n_tokens
