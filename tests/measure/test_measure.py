from __future__ import annotations

import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats

from weightsmith.data.images import ImageSet
from weightsmith.data.seal import evaluation
from weightsmith.delta import Delta, Dense
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.files import default_cache_dir
from weightsmith.measure import bootstrap, key_moment, misclassified, predict, proportion
from weightsmith.measure.intervals import NOTHING
from weightsmith.models import Model, Preprocess, count_blocks
from weightsmith.site import Site

# --- second moments ------------------------------------------------------------------------------------------------


def key_sites(model: Model) -> list[Site]:
    """Keys of every linear map: at the lookup token, and in the first block at all tokens."""
    found = [
        model.lookup(model.key_of(kind), None if kind.startswith("classifier.") else model.n_layers - 1)
        for kind in model.family.linear
    ]
    return [*found, Site("mlp.key", 0)]


def keys_by_hand(model: Model, images: ImageSet, site: Site) -> np.ndarray:
    """(keys, d) float64, one image at a time through a plain forward hook."""
    taken: list[np.ndarray] = []
    bound = model.bind(site)
    assert bound.side == "in"
    handle = bound.module.register_forward_pre_hook(
        lambda _m, args: taken.append(args[0][0].double().numpy().reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for pixels, _ in images.batches(1):
            model.module(pixel_values=model.preprocess(pixels))
    handle.remove()
    return np.concatenate([keys[:1] if site.tokens == "cls" else keys for keys in taken])


def forwards(model: Model, images: ImageSet, sites: list[Site], cache: Path) -> tuple[int, list[torch.Tensor]]:
    """Block forwards that a call took, and the matrices."""
    with count_blocks(model) as count:
        found = key_moment(model, sites, images, cache)
    assert list(found) == sites
    return count(), [found[site].matrix for site in sites]


@pytest.mark.parametrize("batch_size", [4, 100])
def test_a_moment_is_the_mean_outer_product(
    model: Model, random_set: Callable[..., ImageSet], tmp_path: Path, batch_size: int
) -> None:
    images = random_set(7)
    for site, moment in key_moment(model, key_sites(model), images, tmp_path, batch_size).items():
        keys = keys_by_hand(model, images, site)
        wanted = sum(np.outer(key, key) for key in keys) / len(keys)
        assert moment.count == len(keys)
        assert moment.matrix.dtype == torch.float64
        assert moment.site == site
        np.testing.assert_allclose(moment.matrix, wanted, rtol=1e-4, atol=1e-6)
        assert torch.equal(moment.matrix, moment.matrix.mT)


def test_the_second_call_does_not_run_the_model(
    model: Model, random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    images, sites = random_set(6), key_sites(model)
    ran, first = forwards(model, images, sites, tmp_path)
    assert ran == 6 * model.n_layers, "one pass serves all sites"
    ran, again = forwards(model, images, sites, tmp_path)
    assert ran == 0
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    shuffled = images.subset([3, 1, 5, 0, 2, 4])
    assert forwards(model, shuffled, sites, tmp_path)[0] == 0, "a set has no order"


def test_what_is_cached_is_not_measured_again_beside_what_is_not(
    model: Model, random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    images, sites = random_set(6), key_sites(model)
    _, (alone,) = forwards(model, images, sites[:1], tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    ran, both = forwards(model, images, sites, tmp_path)
    assert ran == 6 * model.n_layers
    assert torch.equal(both[0], alone)
    assert len(stamps) == 1
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_other_weights_images_or_sites_are_measured_anew(
    model: Model, random_set: Callable[..., ImageSet], tmp_path: Path, tiny_model: Callable[..., Model]
) -> None:
    images, sites = random_set(6), [model.lookup("mlp.key", model.n_layers - 1)]
    _, (first,) = forwards(model, images, sites, tmp_path)

    def differs(model: Model, images: ImageSet, sites: list[Site]) -> bool:
        ran, (matrix,) = forwards(model, images, sites, tmp_path)
        _, (fresh,) = forwards(model, images, sites, tmp_path / "empty")
        return ran > 0 and torch.equal(matrix, fresh) and not torch.equal(matrix, first)

    assert differs(tiny_model(model.family.name, seed=1), images, sites)
    assert differs(model, images.subset([0, 1, 2]), sites)
    assert differs(model, random_set(6, seed=9, source="elsewhere"), sites)
    assert differs(model, random_set(6, seed=9, part="val"), sites)
    assert differs(model, images, [model.lookup("mlp.key", 1)])
    bias = model.linear("mlp.value", 0)[0].replace("weight", "bias")
    push = Dense(torch.ones_like(model.module.get_parameter(bias)))
    with Delta({bias: push}).on(model):
        ran, _ = forwards(model, images, sites, tmp_path)
        assert ran > 0
    ran, (again,) = forwards(model, images, sites, tmp_path)
    assert ran == 0
    assert torch.equal(again, first)


def test_another_preprocessing_is_measured_anew(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    model, images, site = tiny_model("vit"), random_set(4), Site("mlp.key", 0)
    brighter = Model(model.module, model.family, Preprocess(8, mean=(0.0,) * 3), model.class_names)
    _, (first,) = forwards(model, images, [site], tmp_path)
    _, (other,) = forwards(brighter, images, [site], tmp_path)
    _, (fresh,) = forwards(brighter, images, [site], tmp_path / "empty")
    assert not torch.equal(first, fresh)
    assert torch.equal(other, fresh)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other_header(path: Path) -> None:
    header = {"format": "weightsmith-moment-1", "site": "mlp.key[2]", "count": 3}
    save_file({"matrix": load_file(path)["matrix"] + 1}, path, metadata={"weightsmith": json.dumps(header)})


def _no_header(path: Path) -> None:
    save_file({"matrix": load_file(path)["matrix"] + 1}, path)


def _nan(path: Path) -> None:
    header = {"format": "weightsmith-moment-1", "site": "mlp.key[0]", "count": 3}
    matrix = load_file(path)["matrix"].fill_(float("nan"))
    save_file({"matrix": matrix}, path, metadata={"weightsmith": json.dumps(header)})


def _no_matrix(path: Path) -> None:
    header = {"format": "weightsmith-moment-1", "site": "mlp.key[0]", "count": 3}
    save_file({"other": torch.zeros(1)}, path, metadata={"weightsmith": json.dumps(header)})


@pytest.mark.parametrize("damage", [_truncate, _empty, _other_header, _no_header, _nan, _no_matrix])
def test_a_damaged_entry_is_measured_again(
    tiny_model: Callable[..., Model],
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


def test_a_sealed_set_stays_sealed_when_its_moments_are_cached(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    model, images, site = tiny_model("vit"), random_set(4), Site("mlp.key", 0)
    with pytest.raises(HeldOutError):
        key_moment(model, [site], images.seal(), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    open_one = key_moment(model, [site], images, tmp_path)[site]
    with pytest.raises(HeldOutError, match="train set of 4 images"):
        key_moment(model, [site], images.seal(), tmp_path)
    with evaluation():
        assert torch.equal(key_moment(model, [site], images.seal(), tmp_path)[site].matrix, open_one.matrix)


def test_the_cache_lies_where_the_library_keeps_its_caches(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    key_moment(tiny_model("mlp"), [Site("mlp.key", 0)], random_set(4))
    assert list(default_cache_dir().rglob("*.safetensors"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_no_images_and_unknown_sites_are_told(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    model, images = tiny_model("vit"), random_set(4)
    with pytest.raises(WeightsmithError, match="preserve at least one"):
        key_moment(model, [Site("mlp.key", 0)], images.subset([]), tmp_path)
    with pytest.raises(WeightsmithError, match=r"mlp\.key\[7\]"):
        key_moment(model, [Site("mlp.key", 7)], images, tmp_path)


# --- intervals -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.data())
def test_a_proportion_has_the_interval_that_inverts_the_score_test(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    interval = proportion(hits, n)
    assert (interval.value, interval.n) == (hits / n, n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    z = stats.norm.ppf(0.975)
    for bound, edge in ((interval.low, 0), (interval.high, 1)):
        if bound not in (0.0, 1.0):
            assert abs(interval.value - bound) == pytest.approx(z * sqrt(bound * (1 - bound) / n), rel=1e-6)
        else:
            assert interval.value == edge
    wilson = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert (interval.low, interval.high) == (wilson.low, wilson.high)
    turned = proportion(n - hits, n)
    assert (1 - turned.high, 1 - turned.low) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_nothing_has_no_share() -> None:
    assert proportion(0, 0) is NOTHING
    assert bootstrap(np.zeros((2, 2), dtype=int), lambda tables: tables.sum((1, 2))[:, None]) == [NOTHING]
    assert str(proportion(1, 2)) == "0.5000 [0.0945, 0.9055]"


def _share(tables: np.ndarray) -> np.ndarray:
    return tables[:, :1] / tables.sum(1, keepdims=True)


def test_the_bootstrap_interval_holds_the_truth_about_95_times_in_100() -> None:
    random, held = np.random.default_rng(0), 0
    for number in range(300):
        hits = random.binomial(150, 0.7)
        (interval,) = bootstrap(np.array([hits, 150 - hits]), _share, resamples=400, seed=number)
        assert interval.value == hits / 150
        held += interval.low <= 0.7 <= interval.high
    assert 0.90 <= held / 300 <= 0.985


def test_the_bootstrap_of_counts_is_the_bootstrap_of_samples() -> None:
    """Against drawing the samples themselves, for a statistic of a confusion matrix."""
    confusion = np.array([[30, 10], [5, 55]])

    def recalls(tables: np.ndarray) -> np.ndarray:
        return np.diagonal(tables, axis1=1, axis2=2) / tables.sum(2)

    samples = np.repeat(np.arange(4), confusion.ravel())
    random = np.random.default_rng(1)
    drawn = np.stack(
        [np.bincount(random.choice(samples, len(samples)), minlength=4).reshape(2, 2) for _ in range(4000)]
    )
    low, high = np.quantile(recalls(drawn), [0.025, 0.975], axis=0)
    found = bootstrap(confusion, recalls, resamples=4000)
    assert [one.value for one in found] == [0.75, 55 / 60]
    assert [one.low for one in found] == pytest.approx(low, abs=0.015)
    assert [one.high for one in found] == pytest.approx(high, abs=0.015)


def test_the_bootstrap_repeats_itself_and_leaves_out_what_is_undefined() -> None:
    def first_over_second(tables: np.ndarray) -> np.ndarray:
        return np.where(tables[:, 1:2] > 0, tables[:, :1] / np.maximum(tables[:, 1:2], 1), np.nan)

    cells = np.array([4, 1])
    one, two = (bootstrap(cells, first_over_second, seed=3) for _ in range(2))
    assert one == two
    assert np.isfinite([one[0].low, one[0].high]).all()
    many = np.array([123_457, 76_543])
    assert bootstrap(many, _share, seed=4) != bootstrap(many, _share, seed=3)
    (never,) = bootstrap(np.array([5, 0]), first_over_second)
    assert np.isnan([never.value, never.low, never.high]).all()


# --- predictions ---------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_model(model: Model, random_set: Callable[..., ImageSet]) -> None:
    images = random_set(9).subset([8, 0, 3, 5, 4])
    seen = predict(model, images, batch_size=2)
    with torch.no_grad():
        wanted = torch.cat([model.module(model.preprocess(images.pixels([i]))).logits for i in range(5)])
    torch.testing.assert_close(seen.logits, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(seen.labels, torch.tensor([0, 0, 3, 1, 0]))
    assert seen.names == ("train/8", "train/0", "train/3", "train/5", "train/4")
    assert torch.equal(seen.classes, wanted.argmax(1))
    assert seen.accuracy == pytest.approx(float((wanted.argmax(1) == seen.labels).double().mean()))
    torch.testing.assert_close(seen.probabilities.sum(1), torch.ones(5))


def test_another_number_of_classes_is_told(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet]
) -> None:
    with pytest.raises(WeightsmithError, match="has 4 classes and the data 3"):
        predict(tiny_model("mlp"), random_set(6, classes=3))


def test_no_images_and_sealed_ones_are_told(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet]
) -> None:
    model, images = tiny_model("mlp"), random_set(6)
    with pytest.raises(WeightsmithError, match="train set holds no images"):
        predict(model, images.subset([]))
    for attempt in (predict, misclassified):
        with pytest.raises(HeldOutError):
            attempt(model, images.seal())
    with pytest.raises(HeldOutError):
        misclassified(model, images.seal(), predictions=predict(model, images))


def test_a_request_for_each_image_that_the_model_gets_wrong(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet]
) -> None:
    model, images = tiny_model("vit"), random_set(24).subset(list(range(23, -1, -1)))
    seen = predict(model, images)
    wrong = [i for i in range(24) if int(seen.logits[i].argmax()) != images.labels[i]]
    assert 5 < len(wrong) < 24
    requests = misclassified(model, images)
    assert [one.name for one in requests] == [f"train/{23 - i}" for i in wrong]
    for one, i in zip(requests, wrong, strict=True):
        assert torch.equal(one.image, images.pixels([i])[0])
        assert (one.target, one.predicted, one.source) == (images.labels[i], int(seen.classes[i]), "noise")
    names = [one.name for one in requests]
    assert [one.name for one in misclassified(model, images, limit=3)] == names[:3]
    assert [one.name for one in misclassified(model, images, limit=100, seed=1)] == names
    assert misclassified(model, images, limit=0) == []
    with count_blocks(model) as count:
        again = misclassified(model, images, predictions=seen)
    assert count() == 0
    assert [one.name for one in again] == names


def test_a_random_choice_of_errors_depends_on_its_seed_alone(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet]
) -> None:
    model, images = tiny_model("vit"), random_set(24)
    names = [one.name for one in misclassified(model, images)]
    drawn = [[one.name for one in misclassified(model, images, limit=4, seed=seed)] for seed in range(20)]
    assert drawn == [[one.name for one in misclassified(model, images, limit=4, seed=seed)] for seed in range(20)]
    for some in drawn:
        assert len(set(some)) == 4
        assert some == [name for name in names if name in some]  # in the order of the set
    assert len({tuple(some) for some in drawn}) > 5
    assert {name for some in drawn for name in some} == set(names)


def test_a_model_without_errors_gives_no_requests(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet]
) -> None:
    model, images = tiny_model("mlp"), random_set(12)
    seen = predict(model, images)
    right = images.subset(torch.nonzero(seen.right).flatten().tolist())
    assert misclassified(model, right) == []
