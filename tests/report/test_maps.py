from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.collections import FillBetweenPolyCollection, PathCollection

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.locate.screen import rank_correlation
from weightsmith.report import curves, heatmaps, located, maps, scatter
from weightsmith.site import SUBJECT_TOKENS, Site


def layers(kind="mlp.out", count=6, tokens="cls", span=1):
    return [Site(kind, layer, tokens=tokens, span=span) for layer in range(count - span + 1)]


def heads(count=4, number=3, kind="attn.z"):
    return [Site(kind, layer, head) for layer in range(count) for head in range(number)]


def positions(tokens=5, count=4, kind="resid.out", block=1, span=1):
    return [
        Site(kind, layer, tokens=tuple(range(first, min(first + block, tokens))), span=span)
        for first in range(0, tokens, block)
        for layer in range(count - span + 1)
    ]


def panels(figure):
    """The heat maps: axes that hold an image, without the colour bar's."""
    return [axes for axes in figure.axes if axes.images]


def same(first, second):
    return np.testing.assert_array_equal(np.ma.filled(np.ma.asarray(first, float), np.nan), np.asarray(second, float))


# --- curves


KINDS = ("mlp.out", "attn.out", "resid.out")
MANY = [site for kind in KINDS for span in (1, 3, 5) for site in layers(kind, span=span)]


@pytest.mark.parametrize(
    "given",
    [
        [(layers() + layers("attn.out") + layers(span=3), 6)],
        [(layers(), 6), (layers(span=3), 3)],
        [(layers(tokens=None) + layers(tokens="last") + layers(tokens=(2, 3)), 6)],
        [(layers(count=1), 6)],
        [(layers(), 1)],
        [([site for name in SUBJECT_TOKENS for site in layers(tokens=name, count=48)], 2)],
        [(MANY, 6)],
    ],
    ids=["windows", "two", "tokens", "one layer", "one sample", "subject", "many"],
)
def test_curves_draw_exactly_their_rows(measured, given, laid_out):
    effects = [measured(sites, samples) for sites, samples in given]
    rows = curves.layer_curve_rows(effects)
    figure = curves.layer_curves(effects)
    groups = [
        list(g) for _, g in itertools.groupby(rows, lambda r: (r["kind"], r["tokens"], r["window"], r["measurement"]))
    ]
    lines = [line for axes in figure.axes for line in axes.lines if line.get_marker() != "None"]
    drawn = {(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in lines}
    assert len(lines) == len(groups)
    assert drawn == {(tuple(r["layer"] for r in g), tuple(r["mean"] for r in g)) for g in groups}
    bands = [c for axes in figure.axes for c in axes.collections if isinstance(c, FillBetweenPolyCollection)]
    bounds = {value for r in rows for value in (r["low"], r["high"])}
    for band in bands:
        heights = {y for path in band.get_paths() for y in path.vertices[:, 1]}
        assert heights <= bounds
    assert sum(len(found.sites) for found in effects) == len(rows)
    assert max(laid_out(figure)) < 17


def test_a_window_stands_dashed_at_its_middle_right_after_the_single_layers_of_its_kind(measured):
    effects = measured(layers(span=3) + layers("attn.out") + layers())
    axes = curves.layer_curves([effects]).axes[0]
    lines = [line for line in axes.lines if line.get_marker() != "None"]
    assert [line.get_label() for line in lines] == [
        "mlp.out, single layer",
        "mlp.out, window of 3",
        "attn.out, single layer",
    ]
    single, window, other = lines
    assert (single.get_linestyle(), other.get_linestyle()) == ("-", "-")
    assert window.is_dashed()
    assert list(window.get_xdata()) == [1, 2, 3, 4]
    assert single.get_color() == window.get_color() != other.get_color()


def test_a_window_alone_says_that_the_single_layers_are_missing(measured):
    legend = curves.layer_curves([measured(layers(span=3))]).legends[0]
    assert [text.get_text() for text in legend.texts] == ["mlp.out, window of 3 (single layers not measured)"]


def test_lines_that_differ_in_nothing_else_are_told_apart(measured):
    effects = [measured(layers()), measured(layers(), seed=1), measured(layers(), seed=2, sever=["attn.out"])]
    figure = curves.layer_curves(effects)
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "mlp.out, single layer (measurement 1)",
        "mlp.out, single layer (measurement 2)",
        "mlp.out, single layer, attn.out severed",
    ]
    faces = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() != "None"]
    assert faces[1:] == ["white", "white"] != faces[:2]


def test_many_lines_get_panels_on_one_scale(measured):
    kinds = ("mlp.out", "attn.out", "resid.out", "resid.mid")
    effects = measured([site for kind in kinds for span in (1, 3) for site in layers(kind, span=span)])
    figure = curves.layer_curves([effects])
    assert [axes.get_title() for axes in figure.axes] == list(kinds)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_kinds_have_colours_of_their_own():
    kinds = ("resid.in", "resid.mid", "resid.out", "attn.out", "mlp.key", "mlp.out", "mlp.value")
    lines = curves._looks([curves._Line(kind, "", 1, "", 1) for kind in kinds], tokens_apart=False)
    assert len({look["color"] for look in lines.values()}) == len(kinds)


def test_one_sample_has_no_interval_and_samples_without_the_site_do_not_count(measured):
    one = measured(layers(), samples=1)
    assert all(math.isnan(row["low"]) for row in curves.layer_curve_rows([one]))
    values = measured(layers()).values.clone()
    values[1:, 2] = values[:, 4] = math.nan
    rows = curves.layer_curve_rows([replace(measured(layers()), values=values)])
    assert [math.isnan(row["low"]) for row in rows] == [False, False, True, False, True, False]
    assert [row["n"] for row in rows] == [6, 6, 1, 6, 0, 6]


def test_curves_leave_heads_many_positions_and_the_classifier_to_others(measured):
    sites = [*heads(), *positions(tokens=20), Site("classifier.value"), *layers()]
    assert {row["site"] for row in curves.layer_curve_rows([measured(sites)])} == {str(site) for site in layers()}
    for nothing in ([], heads(), positions(tokens=20)):
        with pytest.raises(WeightsmithError, match="no curves"):
            curves.layer_curves([measured(nothing)] if nothing else [])


def test_different_metrics_share_no_axis(measured):
    effects = measured(layers())
    with pytest.raises(WeightsmithError, match="in probability and in negative KL divergence"):
        curves.layer_curves([effects, replace(effects, metric="kl")])
    shares = replace(effects, info={"normalised": True})
    with pytest.raises(WeightsmithError, match="share"):
        curves.layer_curves([effects, shares])
    assert curves.layer_curves([shares]).axes[0].get_ylabel() == "mean effect (share of the corruption's effect)"


# --- heat maps


RAGGED = [site for site in heads(5, 14) if site.layer % 2 or site.head < 9]
SPARSE = heads()[3:4] + heads()[7:9]
LARGE = heads(48, 1) + heads(1, 64)[1:]


@pytest.mark.parametrize(
    ("sites", "samples"),
    [(heads(), 1), (heads(), 6), (heads(1, 1), 6), (RAGGED, 6), (SPARSE, 6), (LARGE, 6)],
    ids=["one sample", "few", "one", "ragged, without text", "sparse", "large"],
)
def test_the_head_map_draws_exactly_its_rows(measured, sites, samples, laid_out):
    effects = measured(sites, samples)
    figure = maps.layer_head_map(effects)
    rows = maps.layer_head_rows(effects)
    (axes,) = panels(figure)
    labels = [sorted({row[name] for row in rows}) for name in ("layer", "head")]
    cells = np.full([len(found) for found in labels], np.nan)
    for row in rows:
        cells[labels[0].index(row["layer"]), labels[1].index(row["head"])] = row["mean"]
    same(axes.images[0].get_array(), cells)
    assert len(rows) == len(sites)
    norm = axes.images[0].norm
    assert norm.vmax == -norm.vmin == pytest.approx(np.nanmax(np.abs(cells)))
    marked = [row for row in rows if row["marked"]]
    dots = [c for c in axes.collections if isinstance(c, PathCollection)]
    places = {tuple(place) for c in dots for place in c.get_offsets().round().astype(int)}
    assert places == {(labels[1].index(row["head"]), labels[0].index(row["layer"])) for row in marked}
    assert bool(marked) == (samples > 1 and any(row["low"] * row["high"] > 0 for row in rows))
    assert bool(axes.texts) == (max(cells.shape) <= heatmaps.MOST_CELLS_WITH_TEXT)
    assert max(laid_out(figure)) < 17


def test_marked_cells_are_those_whose_interval_excludes_zero():
    values = torch.tensor([[1.0, -1.0, 1.0, 0.0], [1.1, -1.2, -1.0, 0.0]])
    effects = Effects(tuple(heads(1, 4)), values.double(), ("a", "b"), "probability")
    assert [row["marked"] for row in maps.layer_head_rows(effects)] == [True, True, False, False]


def test_cell_numbers_have_digits_at_every_scale_and_no_minus_nought():
    for scale, texts in (
        (1.0, ["1.00", "−0.50", "0.00"]),
        (0.02, ["0.020", "−0.010", "0.000"]),
        (3e-5, ["3.00", "−1.50", "0.00"]),
    ):
        values = scale * torch.tensor([[1.0, -0.5, -1e-9]]).double()
        figure = maps.layer_head_map(Effects(tuple(heads(1, 3)), values, ("a",), "probability"))
        assert [text.get_text() for text in panels(figure)[0].texts] == texts
        assert ("× 10⁻⁵" in figure.axes[-1].get_ylabel()) == (scale < 1e-3)


def test_queries_and_keys_have_a_panel_each_on_one_scale(measured, laid_out):
    effects = measured(
        [*heads(kind="attn.q"), *heads(kind="attn.k"), *[site.at("cls") for site in heads(kind="attn.k")]]
    )
    figure = maps.layer_head_map(effects)
    assert [axes.get_title() for axes in panels(figure)] == ["attn.q", "attn.k", "attn.k at CLS"]
    assert len({(axes.images[0].norm.vmin, axes.images[0].norm.vmax) for axes in panels(figure)}) == 1
    laid_out(figure)


TEXT = ["The", " Space", " Need", "le", "\n"]


@pytest.mark.parametrize(
    ("sites", "labels", "subject"),
    [
        (positions(), TEXT, (0, 4)),
        (positions(), None, None),
        (positions(1, 1), None, None),
        (positions(500, 1) + positions(1, 48)[1:], [f"a long token of the text {i}" for i in range(500)], (100, 103)),
        (positions(50, 12, block=7), None, None),
        (positions() + positions(kind="mlp.out", span=3) + positions(kind="attn.out", span=3), TEXT, (1, 3)),
        ([site for name in (*SUBJECT_TOKENS, "last", "cls") for site in layers(tokens=name)], None, None),
    ],
    ids=["text", "image", "one", "long", "blocks", "windows", "names"],
)
def test_the_token_map_draws_exactly_its_rows(measured, sites, labels, subject, laid_out):
    effects = measured(sites, samples=2)
    figure = maps.layer_token_map(effects, labels, subject)
    rows = maps.layer_token_rows(effects, labels, subject)
    assert {row["site"] for row in rows} == {str(site) for site in sites}
    tokens = list(dict.fromkeys(row["tokens"] for row in rows))
    columns = sorted({row["layer"] for row in rows})
    for axes, panel in zip(panels(figure), dict.fromkeys(row["panel"] for row in rows), strict=True):
        cells = np.full((len(tokens), len(columns)), np.nan)
        for row in rows:
            if row["panel"] == panel:
                cells[tokens.index(row["tokens"]), columns.index(row["layer"])] = row["mean"]
        same(axes.images[0].get_array(), cells)
        assert axes.get_title() == panel
    width, height = laid_out(figure)
    assert width < 17
    assert height < 13
    shown = [label.get_text() for label in panels(figure)[0].get_yticklabels()]
    known = {row["label"] for row in rows}
    assert set(shown) <= known
    if len(tokens) < 50:
        assert len(shown) == len(tokens)
    if subject:
        starred = {row["label"] for row in rows if row["subject"]}
        assert all(label.endswith("*") for label in starred)
        assert starred & set(shown)


def test_token_labels_are_legible_and_in_order(measured):
    rows = maps.layer_token_rows(measured(positions()), TEXT, (1, 4))
    assert list(dict.fromkeys(row["label"] for row in rows)) == ["The", "Space*", "Need*", "le*", r"\n"]
    rows = maps.layer_token_rows(measured(positions(2)), ["x*", "  "], (1, 2))
    assert list(dict.fromkeys((row["label"], row["subject"]) for row in rows)) == [("x*", False), ("␣*", True)]
    names = [Site("resid.out", 0, tokens=tokens) for tokens in ("last", "subject_last", (7,), "cls", (2, 3), (4, 9))]
    rows = maps.layer_token_rows(measured(names))
    assert [row["label"] for row in rows] == ["CLS", "2 to 3", "4, 9", "7", "last subject token", "last token"]
    assert [row["label"] for row in maps.layer_token_rows(measured(positions(2, 1)))] == ["CLS", "1"]


def test_maps_say_what_to_measure_when_there_is_nothing_to_draw(measured):
    with pytest.raises(WeightsmithError, match="single heads"):
        maps.layer_head_map(measured(layers()))
    with pytest.raises(WeightsmithError, match="single tokens"):
        maps.layer_token_map(measured(layers(tokens=None)))
    with pytest.raises(WeightsmithError, match=r"labels for 4 tokens.*resid\.out\[0\]@4"):
        maps.layer_token_map(measured(positions()), TEXT[:4])


# --- screened against exact


def test_the_scatter_draws_exactly_its_rows(measured, laid_out):
    exact = measured(heads(12, 12), seed=1)
    screen = replace(exact, values=exact.values + measured(heads(12, 12), seed=2).values)
    figure = scatter.screen_scatter(screen, exact, 0.7, 10)
    rows = scatter.screen_rows(screen, exact, 10)
    for name, found in (("exact_top", exact), ("screened_top", screen)):
        largest = np.argsort(-np.abs(found.mean().numpy()))[:10]  # by size: a harmful site matters as well
        assert {row["site"] for row in rows if row[name]} == {str(found.sites[i]) for i in largest}
    points = {tuple(p) for c in figure.axes[0].collections for p in c.get_offsets()}
    assert points == {(row["screened"], row["exact"]) for row in rows}
    sizes = [len(c.get_offsets()) for c in figure.axes[0].collections]
    both = sum(row["exact_top"] and row["screened_top"] for row in rows)
    assert sizes == [144 - 20 + both, 10 - both, 10 - both, both]
    assert "Recall of the top 10: 70.0%, rank correlation 0." in figure.axes[0].get_title()
    laid_out(figure)


def test_the_page_says_of_every_site_what_the_scatter_shows(measured):
    screen, exact = measured(heads(), 4), measured(heads(), 4, seed=1)
    rows = scatter.screen_rows(screen, exact, 10)
    (chart,) = located.screen_blocks(screen, exact, 0.7, 10)
    assert chart.title == scatter.screen_title(rows, 0.7, 10)
    diagonal, *groups = chart.lines
    assert diagonal.quiet
    assert all(point.x == point.y for point in diagonal.points)
    assert not any(line.joined for line in groups)
    points = [point for line in groups for point in line.points]
    assert {(p.x, p.y) for p in points} == {(row["screened"], row["exact"]) for row in rows}
    assert [line.name for line in groups] == [
        f"{name} ({len(mine)})" for name, mine in scatter.grouped(rows).items() if mine
    ]
    told = {p.told for p in points}
    assert {
        f"{row['site']}, screened rank {row['screened_rank']}, exact rank {row['exact_rank']}" for row in rows
    } == told
    one = measured(heads()[:1], 1)
    assert located.screen_blocks(replace(one, values=one.values * math.nan), one, math.nan, 1) == []


def test_the_scatter_compares_the_sites_and_samples_that_both_have(measured):
    exact, screen = measured(heads()[:5], 4), measured(heads()[3:], 6)
    exact = replace(exact, samples=("val/5", "val/1", "other", "val/2"))
    rows = scatter.screen_rows(screen, exact, 1)
    assert [row["site"] for row in rows] == [str(site) for site in heads()[3:5]]
    assert [row["screened"] for row in rows] == pytest.approx(screen.values[[1, 2, 5], :2].mean(0).tolist())
    assert [row["exact"] for row in rows] == pytest.approx(exact.values[[0, 1, 3], 3:].mean(0).tolist())
    assert sorted(row["exact_rank"] for row in rows) == [1, 2]
    for other, top in ((measured(layers()), 1), (replace(exact, samples=tuple("abcd")), 1), (exact, 0)):
        with pytest.raises(WeightsmithError, match="at some of its sites"):
            scatter.screen_rows(screen, other, top)


def test_rank_correlation_is_spearmans():
    def correlation(*values):
        return rank_correlation(*(torch.tensor(each, dtype=torch.float64) for each in values))

    assert correlation([1, 2, 3, 4], [1, 4, 9, 100]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486833)  # a tie has the mean rank
    assert correlation([1, 2, math.nan, 3], [1, 2, 0, 3]) == pytest.approx(1)
    assert math.isnan(correlation([1, 1, 1], [1, 2, 3]))
    assert math.isnan(correlation([1], [1]))
