from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from weightsmith.data.images import ImageSet
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.measure import bootstrap, misclassified, predict, proportion
from weightsmith.measure.intervals import NOTHING
from weightsmith.models import Model, count_blocks

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
