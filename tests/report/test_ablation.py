from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from weightsmith.errors import WeightsmithError
from weightsmith.report import save
from weightsmith.report.ablation import (
    by_age,
    forgetting_curves,
    lora_rank_vs_metrics,
    of_first_batch,
    replay_figure,
)

Rows = list[dict[str, object]]
LaidOut = Callable[[Figure], tuple[float, float]]
LORA = ("efficacy", "paraphrase", "neighbourhood", "reconstruction_error")
REPLAY = ("retention_all", "neighbourhood")


def measured(names: Sequence[str], random: np.random.Generator) -> dict[str, object]:
    values = {name: random.uniform(0.3, 0.7) for name in names}
    ends = (("", 0.0), ("_low", -0.1), ("_high", 0.1))
    return {name + end: f"{value + by:.6f}" for name, value in values.items() for end, by in ends}


def adapters(ranks: Sequence[int] = (1, 4, 16), steps: Sequence[int] = (0, 5), seeds: int = 1) -> Rows:
    """Rows as a CSV file gives them."""
    random = np.random.default_rng(0)
    settings = [("raw", "", "")]
    settings += [("svd", count, rank) for count in steps for rank in ranks]
    settings += [("lora", count, rank) for count in steps if count for rank in ranks]
    return [
        {"start": start, "rank": str(rank), "fit_steps": str(count), "seed": str(seed), **measured(LORA, random)}
        for seed in range(seeds)
        for start, count, rank in settings
    ]


def settings_of(
    rates: Sequence[float], buffers: Sequence[int], strategies: Sequence[str]
) -> list[tuple[str, object, object, str]]:
    return [
        ("none", "", "", ""),
        ("keys", "", "", ""),
        *(("requests", f"{rate}", f"{buffer}", name) for buffer, rate, name in product(buffers, rates, strategies)),
    ]


def streams(
    rates: Sequence[float] = (0.5, 2),
    buffers: Sequence[int] = (20, 500),
    strategies: Sequence[str] = ("random", "recent"),
    seeds: int = 1,
) -> Rows:
    random = np.random.default_rng(0)
    names = ("kind", "rate", "buffer_size", "strategy")
    return [
        dict(zip(names, setting, strict=True)) | {"seed": str(seed)} | measured(REPLAY, random)
        for seed in range(seeds)
        for setting in settings_of(rates, buffers, strategies)
    ]


def curve(batches: int = 4, seeds: int = 1, **grid: Sequence[object]) -> Rows:
    random = np.random.default_rng(0)
    names = ("kind", "rate", "buffer_size", "strategy")
    chosen = {"rates": (0.5, 2), "buffers": (20, 500), "strategies": ("random", "recent")} | grid
    return [
        dict(zip(names, setting, strict=True))
        | {"seed": str(seed), "batch": str(batch), "after_batch": str(after), "edits": "10"}
        | {"held": str(random.integers(3, 11))}
        for setting in settings_of(**chosen)  # type: ignore[arg-type]
        for seed in range(seeds)
        for after in range(1, batches + 1)
        for batch in range(1, after + 1)
    ]


def line(axes: Axes, name: str) -> np.ndarray:
    """(points, 2) of the line of a name."""
    (found,) = [line for line in axes.lines if line.get_label() == name]
    return np.array(found.get_xydata())


def numbers(rows: Rows, name: str) -> list[float]:
    return [float(str(row[name])) for row in rows]


def test_adapters_have_a_line_a_start_and_number_of_steps_and_the_raw_edit_is_dashed() -> None:
    rows = adapters()
    for axes, measure in zip(lora_rank_vs_metrics(rows).axes, LORA, strict=True):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "16"]
        for start, steps, name in (
            ("svd", "0", "SVD, 0 fit steps"), ("svd", "5", "SVD, 5 fit steps"), ("lora", "5", "LoRA start, 5 fit steps"),
        ):  # fmt: skip
            mine = [row for row in rows if (row["start"], row["fit_steps"]) == (start, steps)]
            assert line(axes, name)[:, 1] == pytest.approx(numbers(mine, measure))
            assert np.log2(line(axes, name)[:, 0]) == pytest.approx([0, 2, 4], abs=0.1)
        (raw,) = [drawn for drawn in axes.lines if drawn.get_label() == "raw edit"]
        assert raw.is_dashed()
        assert raw.get_ydata()[0] == pytest.approx(float(str(rows[0][measure])))
        ends = [segment[:, 1].tolist() for segment in axes.collections[0].get_segments()]
        assert ends[0] == pytest.approx([float(str(rows[1][measure + end])) for end in ("_low", "_high")])


def test_several_draws_are_averaged() -> None:
    rows = adapters(seeds=3)
    figure = lora_rank_vs_metrics(rows)
    mine = [row for row in rows if (row["start"], row["rank"], row["fit_steps"]) == ("svd", "4", "0")]
    assert line(figure.axes[0], "SVD, 0 fit steps")[1, 1] == pytest.approx(np.mean(numbers(mine, "efficacy")))
    assert "mean of 3 draws" in str(figure.get_suptitle())


def test_replay_has_a_panel_a_buffer_and_its_references() -> None:
    rows = streams()
    figure = replay_figure(rows)
    panels = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        f"{title}, buffer of {size}" for size in (20, 500) for title in ("Edits that hold at the end", "Neighbourhood")
    ]
    mine = [row for row in rows if (row["buffer_size"], row["strategy"]) == ("500", "recent")]
    assert line(panels[2], "recent")[:, 1] == pytest.approx(numbers(mine, "retention_all"))
    assert line(panels[3], "recent")[:, 1] == pytest.approx(numbers(mine, "neighbourhood"))
    for place, name in enumerate(("no replay", "keys guarded")):
        (reference,) = [drawn for drawn in panels[0].lines if drawn.get_label() == name]
        assert reference.is_dashed()
        assert reference.get_ydata()[0] == pytest.approx(numbers(rows, "retention_all")[place])


def test_forgetting_is_over_the_age_of_all_edits_and_of_the_first_batch() -> None:
    rows = [row for row in curve(batches=3) if row["kind"] == "none"]
    held = {(str(row["batch"]), str(row["after_batch"])): int(str(row["held"])) for row in rows}
    assert by_age(rows) == [
        (0, pytest.approx((held["1", "1"] + held["2", "2"] + held["3", "3"]) / 30)),
        (1, pytest.approx((held["1", "2"] + held["2", "3"]) / 20)),
        (2, pytest.approx(held["1", "3"] / 10)),
    ]
    assert of_first_batch(rows) == [(after, pytest.approx(held["1", str(after)] / 10)) for after in (1, 2, 3)]
    figure = forgetting_curves(curve(batches=3))
    assert len(figure.axes) == 4
    drawn = figure.axes[0].lines[-2]
    assert list(zip(*drawn.get_data(), strict=True)) == by_age(rows)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [
        "random, rate 0.5", "random, rate 2", "recent, rate 0.5", "recent, rate 2", "no replay", "keys guarded",
    ]  # fmt: skip


def test_edits_that_were_overruled_are_not_counted() -> None:
    rows = [
        {"batch": 1, "after_batch": 1, "edits": 0, "held": 0},
        {"batch": 1, "after_batch": 2, "edits": 2, "held": 1},
    ]
    assert by_age(rows) == [(1, 0.5)]


@pytest.mark.parametrize("many", [False, True])
def test_few_and_many_find_room_and_are_no_blank_sheets(many: bool, laid_out: LaidOut, tmp_path) -> None:
    grid = {"rates": (0.25, 0.5, 1, 2), "buffers": (5, 20, 500), "strategies": ("random", "priority", "recent")}
    few: dict[str, Sequence[object]] = {"rates": (1,), "buffers": (9,), "strategies": ("random",)}
    chosen = grid if many else few
    figures = [
        lora_rank_vs_metrics(adapters([2**i for i in range(9)], (0, 1, 5, 20, 100)) if many else adapters([2], [0])),
        replay_figure(streams(**chosen)),  # type: ignore[arg-type]
        forgetting_curves(curve(30 if many else 2, **chosen)),
    ]
    for place, figure in enumerate(figures):
        width, height = laid_out(figure)
        assert width < 12
        assert height < 12
        if many:
            continue  # drawing takes long, and shows nothing new
        save(figure, tmp_path / f"{place}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{place}.png").convert("L"))
        assert pixels.min() < 128
        assert (pixels[[0, -1]] == 255).all()
        assert (pixels[:, [0, -1]] == 255).all()


def test_what_was_not_measured_is_left_open(tmp_path) -> None:
    rows = adapters()
    for row in rows:
        row |= {name + end: "" for name in LORA for end in ("", "_low", "_high")}
    save(lora_rank_vs_metrics(rows), tmp_path / "lora.png")  # a warning would be an error
    found = streams()
    for row in found[2:5]:
        row |= {name + end: "" for name in REPLAY for end in ("", "_low", "_high")}
    save(replay_figure(found), tmp_path / "replay.png")
    save(forgetting_curves([row for row in curve() if row["kind"] == "none"]), tmp_path / "curve.png")
    for name in ("lora", "replay", "curve"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).min() < 128  # axes and what was measured


def test_nothing_to_draw_is_told() -> None:
    with pytest.raises(WeightsmithError, match="no adapter"):
        lora_rank_vs_metrics(adapters()[:1])
    with pytest.raises(WeightsmithError, match="no replay"):
        replay_figure(streams()[:2])
    with pytest.raises(WeightsmithError, match="no forgetting curve"):
        forgetting_curves([])
