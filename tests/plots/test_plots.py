"""Figures: the numbers behind them, what they say where runs are missing, and that nothing leaks or is cut off."""
import io
import itertools
import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from calibkd import metrics, plots
from calibkd.plots import heatmap, made_up_runs, paper_ready


def invented(Ts=(1, 2.5, 10), alphas=(0.1, 0.9), teachers=("NLL", "MDCA"), seeds=(0, 1, 2)) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [dict(T=T, alpha=a, teacher=t, seed=s) for T, a, t, s in itertools.product(Ts, alphas, teachers, seeds)]
    return pd.DataFrame(rows).assign(ece=rng.uniform(0.01, 0.2, len(rows)), top1=rng.uniform(0.5, 0.7, len(rows)))


def predictions(n=500, classes=5, sharpen=1.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=g, dtype=torch.float64)
    return sharpen * logits, torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]


HALF = {"sd": 1.0, "interval": 4.302653 / 3**0.5}  # of three seeds, in standard deviations


def printed(ax) -> list[str]: return [t.get_text() for t in ax.texts]


@pytest.fixture(autouse=True)
def nothing_leaks():
    import matplotlib.pyplot as plt
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []


# reliability

@pytest.mark.parametrize("n_bins", [1, 10, 15])
@pytest.mark.parametrize("sharpen", [0.3, 1.0, 5.0])
def test_reliability_numbers_are_the_metrics(n_bins, sharpen):
    logits, labels = predictions(sharpen=sharpen)
    data = plots.reliability_data(logits, labels, n_bins=n_bins)
    assert data.ece == pytest.approx(metrics.ece(logits, labels, n_bins=n_bins), abs=1e-12)
    assert data.acc == pytest.approx(metrics.top1(logits, labels)) and data.table().n.sum() == len(labels)
    assert data.conf == pytest.approx(logits.softmax(1).amax(1).mean().item())
    full = data.bins.count > 0
    assert (data.low <= data.bins.acc)[full].all() and (data.bins.acc <= data.high)[full].all() and np.isnan(data.low[~full]).all()


def test_the_drawn_gaps_weighted_by_the_drawn_histogram_are_the_ece():
    logits, labels = predictions(sharpen=3)
    _, (diagram, histogram) = plots.reliability(logits, labels)
    gaps = np.array([b.get_height() for b in diagram.containers[1]])
    shares = np.array([b.get_height() for b in histogram.containers[0]])
    assert np.nansum(abs(gaps) * shares) == pytest.approx(metrics.ece(logits, labels))
    assert f"ECE {100 * metrics.ece(logits, labels):.2f} %" in diagram.get_title()


def test_the_band_is_seeded_and_agrees_with_resampling_the_samples():
    logits, labels = predictions(n=4000)
    a, b, c = (plots.reliability_data(logits, labels, n_bins=4, seed=s) for s in (0, 0, 1))
    assert np.array_equal(a.low, b.low, equal_nan=True) and not np.array_equal(a.low, c.low, equal_nan=True)
    conf, pred = metrics.confidence(logits)
    hits, rng = (pred == labels.numpy())[(conf > 0.5) & (conf <= 0.75)], np.random.default_rng(0)
    slow = np.quantile([rng.choice(hits, len(hits)).mean() for _ in range(1000)], [0.025, 0.975])
    assert abs(slow - [a.low[2], a.high[2]]).max() < 0.015


def test_reliability_draws_where_it_is_told():
    logits, labels = predictions()
    fig, axes = plots.subplots(1, 2)
    got, pair = plots.reliability(logits, labels, ax=axes[0, 0], title="here")
    assert got is fig and pair[0] is axes[0, 0] and len(fig.axes) == 3 and paper_ready(fig)
    assert plots.reliability(probs=logits.softmax(1), labels=labels)[1].shape == (2,)
    with pytest.raises(ValueError, match="two"): plots.reliability(logits, labels, ax=list(fig.axes))
    with pytest.raises(ValueError, match="level"): plots.reliability_data(logits, labels, level=95)


def test_reliability_grid_shares_its_scales():
    fig, axes = plots.reliability_grid({f"panel {i}": predictions(sharpen=i) for i in (1, 2, 4)}, ncols=2)
    assert axes.shape == (4, 2) and len({ax.get_ylim() for ax in (axes[1, 0], axes[1, 1], axes[3, 0])}) == 1
    assert paper_ready(fig) and not axes[2, 1].axison


# the numbers behind curves and heat maps

@pytest.mark.parametrize("band", HALF)
def test_cells_print_the_mean_and_the_spread_of_the_table(band):
    table = invented()
    fig, axes = heatmap(table, "T", "alpha", ["top1", "ece"], row="teacher", band=band)
    assert axes.shape == (2, 2) and paper_ready(fig)
    for (i, teacher), (j, metric) in itertools.product(enumerate(("NLL", "MDCA")), enumerate(("top1", "ece"))):
        cells = 100 * table[table.teacher == teacher].groupby(["alpha", "T"])[metric].agg(["mean", "std"])
        assert printed(axes[i, j]) == [t for c in cells.itertuples() for t in (f"{c.mean:.2f}", f"±{HALF[band] * c.std:.2f}")]


def test_one_colour_scale_for_the_panels_of_a_metric():
    table = invented(seeds=(0,))
    _, axes = plots.heatmap(table, "T", "alpha", "ece", col="teacher")
    faces = {t.get_text(): p.get_facecolor() for ax in axes.flat for t, p in zip(ax.texts, ax.patches)}
    lightness = [plots.heatmaps._luminance(faces[f"{100 * v:.2f}"]) for v in sorted(table.ece)]
    assert np.all(np.diff(lightness) < 0)  # a lower ECE is brighter, across both panels


def test_missing_cells_say_not_run_and_one_seed_has_no_sd():
    table = invented(teachers=("NLL",), seeds=(0,))
    table = table[~((table["T"] == 10) & (table.alpha == 0.9))]
    fig, axes = plots.heatmap(table, "T", "alpha", "ece", order={"T": [1, 2.5, 10, 20]})
    assert printed(axes[0, 0]).count("not run") == 3 and not any("±" in t for t in printed(axes[0, 0])) and paper_ready(fig)
    assert [t.get_text() for t in axes[0, 0].get_xticklabels()] == ["1", "2.5", "10", "20"]
    _, axes = plots.heatmap(table.assign(ece=np.nan), "T", "alpha", "ece")
    assert set(printed(axes[0, 0])) == {"not run"}
    _, axes = plots.heatmap(table, "T", "alpha", "ece", row="teacher", order={"teacher": ["NLL", "MDCA"]})
    assert set(printed(axes[1, 0])) == {"not run"}


def test_rows_without_the_setting_are_left_out():
    table = pd.concat([invented(), pd.DataFrame([{"teacher": "NLL", "seed": 0, "ece": 0.9, "top1": 0.1}])])
    assert plots.summary(table, ["T", "alpha", "teacher"], "ece")["mean"].max() < 21


def test_a_mean_over_two_different_things_is_refused():
    table = invented()
    for draw in (lambda t: plots.heatmap(t, "T", "alpha", "ece"), lambda t: plots.curves(t, "T", "ece", hue="alpha")):
        with pytest.raises(ValueError, match="differ in teacher"): draw(table)
        draw(table[table.teacher == "NLL"])
    assert plots.summary(pd.concat([table, table]), ["T", "alpha", "teacher"], "ece").n.eq(3).all()  # the same run twice is one
    assert plots.summary(table, ["T"], "ece", over=["seed", "teacher", "alpha"]).n.eq(12).all()


@pytest.mark.parametrize("name, expected", [("ece", "ECE (%)"), ("student_ece", "student ECE (%)"), ("top1", "top-1 (%)"), ("nll", "NLL"),
                                            ("T", "T"), ("alpha", "α"), ("eaurc", "E-AURC (×10³)"), ("spice", "spice")])
def test_labels(name, expected): assert plots.label(name) == expected


def test_words_units_and_directions_are_those_of_the_metrics_records():
    for name, metric in metrics.METRICS.items():
        unit = {100.0: " (%)", 1000.0: " (×10³)", 1.0: ""}[metric.unit]
        assert plots.label(name) == metric.words + unit and plots.scale(f"teacher_{name}") == metric.unit
    assert plots.LOWER_IS_BETTER == {name for name, metric in metrics.METRICS.items() if not metric.higher}
    assert plots.scale("accuracy") == plots.scale("confidence") == 100 and plots.label("confidence") == "confidence (%)"


def test_percent_false_shows_fractions():
    table = invented(teachers=("NLL",))
    assert plots.heatmap_data(table, "T", "alpha", "ece", percent=False)[0].to_numpy().max() < 0.2
    fig, axes = plots.curves(table, "T", "ece", hue="alpha", percent=False, band="sd")
    assert axes[0, 0].get_ylabel() == "ECE" and axes[0, 0].get_ylim()[1] < 0.3


# curves

@pytest.mark.parametrize("band", HALF)
def test_lines_are_the_means_and_bands_their_interval_or_the_sd(band):
    table = invented()
    fig, axes = plots.curves(table, "T", ["ece", "top1"], hue="alpha", col="teacher", logx=True, band=band)
    assert axes.shape == (2, 2) and paper_ready(fig)  # metrics go down where a column goes across
    one = 100 * table[(table.teacher == "MDCA") & (table.alpha == 0.9)].groupby("T").ece.agg(["mean", "std"])
    assert np.allclose(axes[0, 1].lines[1].get_ydata(), one["mean"])
    drawn = axes[0, 1].collections[1].get_paths()[0].vertices[:, 1]
    assert drawn.max() == pytest.approx((one["mean"] + HALF[band] * one["std"]).max())
    assert axes[0, 0].get_ylim() == axes[0, 1].get_ylim() != axes[1, 0].get_ylim()


@pytest.mark.parametrize("table, kwargs", [
    (invented(Ts=(4,)), dict(hue="alpha", row="teacher")),                                   # one x value
    (invented(seeds=(0,)), dict(hue="alpha", row="teacher", logx=True)),                     # one seed: no sd
    (invented(Ts=(4,), alphas=(0.5,), teachers=("NLL",), seeds=(0,)), {}),                   # one run
    (invented(teachers=("NLL",)).assign(ece=lambda d: d.ece.where(d["T"] != 2.5)), dict(hue="alpha")),  # a hole
    (invented(Ts=("a long name", "another long name", "a third long name"), teachers=("NLL",)), dict(hue="alpha")),  # names
])
def test_small_runs_are_no_error(table, kwargs):
    fig, axes = plots.curves(table, "T", "ece", **kwargs)
    assert paper_ready(fig) and all(len(ax.lines) + len(ax.containers) for ax in axes.flat)
    assert np.isfinite([ax.get_ylim() for ax in axes.flat]).all()


@pytest.mark.parametrize("band", HALF)
def test_one_x_value_has_bars(band):
    table = invented(Ts=(4,), alphas=(0.5,), teachers=("NLL",))
    _, axes = plots.curves(table, "T", "ece", band=band)
    (low, high), = [s[:, 1] for s in axes[0, 0].containers[0].lines[2][0].get_segments()]
    assert (low + high) / 2 == pytest.approx(100 * table.ece.mean()) and (high - low) / 2 == pytest.approx(100 * HALF[band] * table.ece.std())
    assert [t.get_text() for t in axes[0, 0].get_xticklabels()] == ["4"]


def test_a_method_has_its_colour_and_marker_in_every_kind_of_figure():
    "Whatever its place among the levels, as a teacher, a student or a reference"
    table = invented(teachers=("KD(UC)", "KD+LS"))
    lines = plots.curves(table, "T", "ece", hue="teacher", over=["seed", "alpha"], reference={"LS teacher": 0.1})[1][0, 0].lines
    points = plots.scatter(table[::-1], "top1", "ece", hue="teacher")[1][0, 0].lines
    seen = {line.get_label(): (line.get_color(), line.get_marker()) for line in (*lines, *points) if line.get_marker() != ""}
    assert seen == {"KD(UC)": plots.METHODS["NLL"], "KD+LS": plots.METHODS["LS"]}
    assert {line.get_color() for line in lines if line.get_label() == "LS teacher"} == {plots.METHODS["LS"][0]}
    mixed = plots.looks(["MDCA", *"abcdefgh", "KD(C)", "MDCA teacher"])
    assert len({str(d) for d in mixed}) == 10 and mixed[0] == mixed[-1]


def test_a_figure_without_bands():
    table = invented(Ts=(4,), alphas=(0.5,), teachers=("NLL",))
    (_, _, (bars,)) = plots.curves(table, "T", "ece", band=None)[1][0, 0].containers[0]
    assert not any(len(s) for s in bars.get_segments())
    with pytest.raises(ValueError, match="interval, sd"): plots.curves(table, "T", "ece", band="se")


def test_references_and_levels_that_were_not_run():
    table, scratch = invented(), invented(Ts=(1,), alphas=(0.1,), teachers=("none",)).drop(columns=["T", "alpha"])
    fig, axes = plots.curves(table, "T", ["top1", "ece"], hue="teacher", over=["seed", "alpha"], order={"teacher": ["MDCA", "NLL", "LS"]},
                             reference={"scratch": scratch, "chance": 0.2})
    assert axes[0, 0].lines[0].get_ydata()[0] == pytest.approx(100 * scratch.top1.mean()) and axes[0, 1].lines[1].get_ydata()[0] == 20
    assert [t.get_text() for t in fig.legends[0].texts] == ["MDCA", "NLL", "LS (not run)", "scratch", "chance"]


@pytest.mark.parametrize("letters", [1, 3, 4, 5, 7, 20, 60])
def test_a_legend_fills_its_rows_evenly(letters):
    fig, axes = plots.subplots(1, 2)
    names = [f"{i}{'m' * letters}" for i in range(10)]
    for name in names: axes.ravel()[0].plot([0, 1], [0, 1], label=name)
    plots.legend(fig, axes)
    (drawn,) = fig.legends
    assert sorted(t.get_text() for t in drawn.texts) == names
    assert drawn._ncols == math.ceil(10 / math.ceil(10 / drawn._ncols))
    assert drawn._ncols == 1 or drawn.get_window_extent().width < fig.bbox.width


def test_many_temperatures_get_round_ticks():
    fig, axes = plots.curves(invented(Ts=(.1, .2, *np.arange(.5, 5.1, .25))), "T", ["ece", "top1"], hue="teacher", over=["seed", "alpha"])
    shown = [float(t) for t in axes[0, 0].get_xticks()]
    assert len(shown) < 9 and all(t == round(t) for t in shown) and paper_ready(fig)


# scatter, watermark, files

def test_scatter_draws_every_pair_and_their_rank_correlation():
    table = invented(seeds=(0,)).rename(columns={"top1": "teacher_ece"})
    fig, axes = plots.scatter(table, "teacher_ece", "ece", hue="teacher", fit=True, diagonal=True)
    assert f"ρ = {metrics.spearman(table.teacher_ece.to_numpy(), table.ece.to_numpy()):.2f}" in axes[0, 0].get_title() and paper_ready(fig)
    assert sum(len(line.get_xdata()) for line in axes[0, 0].lines[:2]) == len(table)
    relations = plots.scatter_data(table.assign(ece=0.1 + 2 * table.teacher_ece), "teacher_ece", "ece", hue="teacher")
    assert np.allclose(relations[["spearman", "slope", "intercept"]].astype(float), [1, 2, 10]) and relations.n["all"] == len(table)
    fig, axes = plots.scatter(table[:2], "teacher_ece", "ece")
    assert axes[0, 0].get_title() == ""  # two points have no rank correlation


@pytest.mark.parametrize("band", HALF)
def test_scatter_of_means_shows_their_spread(band):
    table = invented().query("T == 1 and alpha == .1")
    fig, axes = plots.scatter(table, "top1", "ece", hue="teacher", over="seed", band=band)
    nll, found = 100 * table[table.teacher == "NLL"][["top1", "ece"]], axes[0, 0]
    assert np.allclose([*found.lines[0].get_xdata(), *found.lines[0].get_ydata()], nll.mean())
    across, up = (c.get_segments()[0] for c in found.collections[:2])
    assert np.allclose([np.ptp(across[:, 0]), np.ptp(up[:, 1])], 2 * HALF[band] * nll.std()) and paper_ready(fig)
    with pytest.raises(ValueError, match="differ in T, alpha"): plots.scatter(invented(), "top1", "ece", hue="teacher", over="seed")


def test_watermark_once_and_inside():
    fig, _ = plots.watermark(plots.watermark(plots.curves(invented(), "T", "ece", hue="alpha", col="teacher")[0])[0], "smoke")
    assert [t.get_text() for t in fig.texts] == ["smoke"] and paper_ready(fig)


@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_equal_figures_are_equal_files(kind):
    files = io.BytesIO(), io.BytesIO()
    for file in files: plots.heatmap(invented(), "T", "alpha", "ece", col="teacher")[0].savefig(file, format=kind)
    assert files[0].getvalue() == files[1].getvalue()
    assert kind != "pdf" or b"/Type3" not in files[0].getvalue()  # TrueType fonts, as publishers ask for


def test_readable_in_grey():
    fig, axes = plots.heatmap(invented(seeds=(0,)), "T", "alpha", "ece", row="teacher")
    for ax in axes.flat:
        for text, cell in zip(ax.texts, ax.patches):
            ink, face = sorted([plots.heatmaps._luminance(text.get_color()), plots.heatmaps._luminance(cell.get_facecolor())])
            assert (face + 0.05) / (ink + 0.05) >= 4.5  # WCAG 2.2, AA
    assert fig.get_figwidth() in (plots.COLUMN, plots.WIDE)
    assert Image.open(io.BytesIO(fig._repr_png_())).size[0] == round(150 * fig.get_figwidth())


@pytest.mark.parametrize("call, words", [
    (lambda t: plots.heatmap(t, "t", "alpha", "ece"), "no column 't'"),
    (lambda t: plots.curves(t, "T", "ecee"), "did you mean 'ece'"),
    (lambda t: plots.scatter(t[:0], "top1", "ece"), "no rows"),
    (lambda t: plots.curves(t.assign(alpha=np.nan), "T", "ece", hue="alpha"), "no row of the table has a value in all of alpha, T"),
    (lambda t: plots.curves(t.assign(T=-t["T"]), "T", "ece", hue="alpha", row="teacher", logx=True), "logx needs positive"),
    (lambda t: plots.style(fontsize=3), "did you mean 'font_size'"),
])
def test_bad_input_gets_one_sentence(call, words):
    with pytest.raises(ValueError) as error: call(invented())
    assert words in str(error.value) and "\n" not in str(error.value)


def test_titles_of_a_narrow_heat_map_stay_beside_the_colour_bars():
    "One temperature, two metrics, long names of teachers: what `-p T 2` makes of figure S7"
    table = made_up_runs(Ts=(2,), teachers=("uncalibrated (NLL)", "calibrated (MDCA)"))
    fig, axes = heatmap(table, "T", "alpha", ["top1", "ece"], row="teacher")
    assert paper_ready(fig)
    axes[0, 0].set_title("teacher: uncalibrated (NLL), as wide as no panel")
    assert not paper_ready(fig)


# dots

def test_dots_stand_in_their_intervals_and_printed_numbers_are_hollow():
    table = invented(Ts=(1,), alphas=(.9,)).assign(method=lambda d: d.teacher)
    fig, axes = plots.dots(table, "method", "ece", reference=pd.DataFrame({"ece": {"MDCA": .05}}), order={"method": ["MDCA", "NLL"]})
    ours = table[table.method == "NLL"].ece * 100
    bar = axes[0, 0].collections[1].get_segments()[0]
    assert bar[1, 0] - bar[0, 0] == pytest.approx(2 * 4.302653 * ours.std() / 3 ** .5) and bar[:, 0].mean() == pytest.approx(ours.mean())
    hollow = [line for line in axes[0, 0].lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in hollow] == [(5, 0)] and paper_ready(fig)


def test_dots_of_many_metrics_stand_in_several_rows_of_panels():
    table = invented(Ts=(1,), alphas=(.9,)).assign(nll=1., brier=.5)
    printed = pd.DataFrame({"NLL": {"ece": .1}, "MDCA": {}}, index=["top1", "ece", "nll", "brier", "posterior"]).T.dropna(how="all")
    fig, axes = plots.dots(table.assign(posterior=.2), "teacher", [*printed], reference=printed, ncols=2)
    assert axes.shape == (3, 2) and [ax.axison for ax in axes.flat] == [True] * 5 + [False] and paper_ready(fig)
    hollow = [line for line in axes[0, 1].lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in hollow] == [10.]


def test_one_seed_has_a_dot_without_a_bar():
    fig, axes = plots.dots(invented(Ts=(1,), alphas=(.9,), seeds=(0,)), "teacher", ["ece", "top1"], sort=True)
    assert all(np.isnan(c.get_segments()).all() for c in axes[0, 0].collections) and paper_ready(fig)


def test_variants_of_one_distiller_are_told_apart_by_colour():
    from calibkd.plots.page import looks
    variants, mixed = looks(["IPWD", "IPWD†", "IPWD raw"]), looks(["KD", "IPWD"])
    assert len({d["color"] for d in variants}) == 3 and mixed[1]["color"] not in {d["color"] for d in variants}
    among = looks(["KD", "KD without T²", "DIST", "NLL"])
    assert len({d["color"] for d in among}) == 4 and among[3] == looks(["NLL"])[0], "beside names that are no methods', too"


def test_kd_and_dist_are_told_apart_by_colour_among_any_losses():
    from calibkd.plots.page import looks
    kd, _, dist = looks(["KD", "KD without T²", "DIST"])
    assert kd["color"] != dist["color"]
