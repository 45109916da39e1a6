"""Tables of numbers: written and read back exactly, split and sealed like images; the artificial tasks have their sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import make_classification

from weightsmith.data.artificial import PRESETS, ArtificialTask, tasks
from weightsmith.data.tables import open_table, write_table
from weightsmith.errors import HeldOutError, WeightsmithError


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    features[0] = [1e-38, 3.4e38, -0.0]
    write_table(tmp_path / "t.csv", features, np.arange(50) % 4)
    source = open_table(tmp_path / "t.csv")
    rows = source.part("train")
    assert rows.pixels().shape == (50, 3, 1, 1)
    assert np.array_equal(rows.pixels().numpy()[:, :, 0, 0].view(np.int32), features.view(np.int32))
    assert rows.labels.tolist() == (np.arange(50) % 4).tolist()
    assert source.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == "feature_0,feature_1,feature_2,label"


def test_a_table_is_split_and_its_test_part_sealed(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", np.ones((50, 3), np.float32), np.arange(50) % 2)
    split = open_table(tmp_path / "t.csv").split(0.2, 42)
    assert [len(rows) for rows in split.parts().values()] == [32, 8, 10]
    with pytest.raises(HeldOutError):
        split.held_out.pixels()


def test_another_number_gives_another_digest(tmp_path: Path) -> None:
    digests = set()
    for number in (1.0, 2.0):
        write_table(tmp_path / "t.csv", np.full((4, 1), number, np.float32), np.arange(4) % 2)
        digests.add(open_table(tmp_path / "t.csv").part("train").digest())
    assert len(digests) == 2


def test_a_header_of_quoted_names_and_a_single_row_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"a","label"\n1.5,0\n')
    assert open_table(tmp_path / "t.csv").part("train").pixels().item() == 1.5


@pytest.mark.parametrize("text", ["", "label\n0\n", "label,label\n1,0\n", "a,b,Label\n1,2,0\n"])
def test_other_headers_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(WeightsmithError, match=r"t\.csv must have a header.*'label'"):
        open_table(tmp_path / "t.csv")


def test_presets_have_the_sizes_and_seeds_that_are_known() -> None:
    for first, second in PRESETS.values():
        sizes = [(one.n_samples, one.n_features, one.n_classes, one.n_informative, one.seed) for one in (first, second)]
        assert sizes == [(10_000, 512, 10, 50, 42), (8_000, 512, 15, 60, 123)]
    plain, informative = tasks("plain")[0], tasks("informative")[1]
    assert (plain.n_clusters_per_class, plain.class_sep) == (2, 1.0)
    assert (informative.n_clusters_per_class, informative.class_sep) == (1, 2.0)
    with pytest.raises(WeightsmithError, match="did you mean 'plain'"):
        tasks("plane")


def test_a_task_is_what_scikit_learn_makes() -> None:
    features, labels = ArtificialTask(n_samples=60, n_features=9, n_classes=3, n_informative=5, seed=7).make()
    theirs, classes = make_classification(60, 9, n_informative=5, n_classes=3, random_state=7)
    assert np.array_equal(features, theirs.astype(np.float32))
    assert np.array_equal(labels, classes)
