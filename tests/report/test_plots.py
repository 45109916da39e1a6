from __future__ import annotations

import base64
import io
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from weightsmith.errors import WeightsmithError
from weightsmith.report import plots


def pixels(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_training_curve_marks_the_first_epoch_of_best_validation_accuracy(training_rows):
    tied = [*training_rows, {**training_rows[1], "epoch": "4"}]  # training keeps the earlier one
    figure = plots.training_curve(tied)
    labels = [
        text.get_text() for axes in figure.axes for legend in [axes.get_legend()] if legend for text in legend.texts
    ]
    assert labels == ["training", "validation", "best validation accuracy (epoch 2)"]
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    marked = next(line for line in figure.axes[1].lines if line.get_linestyle() == "None")
    assert (list(marked.get_xdata()), list(marked.get_ydata())) == ([2.0], [0.9])


def test_training_curve_takes_one_epoch_without_validation(laid_out):
    figure = plots.training_curve([{"epoch": 0, "train_loss": 1.0, "train_accuracy": 0.5, "val_accuracy": ""}])
    assert max(laid_out(figure)) < 12


def test_layer_importance_draws_mean_and_interval_of_every_layer(effects):
    axes = plots.layer_importance(effects).axes[0]
    table = effects.table()
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([row["mean"] for row in table])
    segments = axes.collections[0].get_segments()
    assert [segment[:, 1].tolist() for segment in segments] == [
        pytest.approx([row["low"], row["high"]]) for row in table
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "3", "4", "5"]
    assert axes.get_title() == "Effect on the probability of the class that the model gives, 20 samples"
    axes = plots.layer_importance(replace(effects, metric="kl")).axes[0]
    assert axes.get_title().startswith("Effect on the negative KL divergence of the class")
    assert axes.get_ylabel() == "mean effect (negative KL divergence)"


@pytest.mark.parametrize("classes", [4, 40])
def test_confusion_matrices_stay_legible(confusion, classes, laid_out):
    before, after = confusion(classes)
    names = [f"a class with a long name {i}" for i in range(classes)]
    figure = plots.confusion_matrices(before, after, names)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title().split("\n")[0] for axes in panels] == ["before", "after alphaedit", "after head"]
    assert all(bool(axes.texts) == (classes <= plots.MOST_CELLS_WITH_TEXT) for axes in panels)
    assert max(laid_out(figure)) < 26


def test_a_figure_is_drawn_again_when_something_in_it_changed(confusion, tmp_path):
    figure = plots.confusion_matrices(*confusion(2), ["a", "b"])
    plots.save(figure, tmp_path / "one.png")
    first = plots.as_data_uri(figure)
    assert base64.b64decode(first.partition(",")[2]) == (tmp_path / "one.png").read_bytes()
    figure.axes[0].images[0].set_data(np.array([[0.1, 0.9], [0.5, 0.5]]))
    second = plots.as_data_uri(figure)
    assert second != first
    figure.axes[0].set_title("another")
    assert plots.as_data_uri(figure) not in (first, second)


def test_nothing_is_cut_off_in_the_file(confusion):
    before, after = confusion(2)
    figure = plots.confusion_matrices(before, {"head": after["head"]}, ["a class with a long name", "b"])
    image = pixels(plots.as_data_uri(figure))
    edge = np.asarray(image.convert("L"))[[0, 1, -2, -1]]
    assert (edge == 255).all(), "nothing may be cut off at the top or bottom"


def test_confusion_matrices_mark_exactly_the_cells_that_changed(confusion):
    before, after = confusion(3)
    figure = plots.confusion_matrices(before, after, ["a", "b", "c"])
    first, second, _ = [axes for axes in figure.axes if axes.images]
    assert not first.collections
    marked = {tuple(path.vertices[:4].mean(0).round().astype(int)[::-1]) for path in second.collections[0].get_paths()}
    assert marked == {tuple(cell) for cell in np.argwhere(before != after["alphaedit"])}
    assert f"{after['alphaedit'][0, 0]}\n+3" in [text.get_text() for text in second.texts]


def test_confusion_matrix_colours_are_shares_of_the_true_class():
    counts = np.array([[3, 1], [0, 0]])  # the second class has no images
    figure = plots.confusion_matrices(counts, {}, ["a", "b"])
    assert figure.axes[0].images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]


def test_class_names_are_drawn_as_they_are():
    names = ["from $5", "to $6_x", "日本"]  # neither formulas nor a reason for warnings
    figure = plots.confusion_matrices(np.eye(3, dtype=int), {}, names)
    plots.as_data_uri(figure)
    label = figure.axes[0].get_xticklabels()[0]
    assert (label.get_text(), label.get_parse_math()) == ("from $5", False)


def test_equal_data_gives_equal_bytes_and_no_settings_stay(tmp_path, effects):
    settings = dict(matplotlib.rcParams)
    for name in ("one.png", "two.png"):
        plots.save(plots.layer_importance(effects), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.info.keys() == {"dpi"}
    assert dict(matplotlib.rcParams) == settings
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_save_tells_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr("weightsmith.files.move_into_place", refuse)
    with pytest.raises(WeightsmithError, match="cannot be written"):
        plots.save(Figure(figsize=(1, 1)), tmp_path / "x.png")
