"""calibkd.metrics against independent implementations, closed forms, exact arithmetic, properties and bad input."""
import math
import time
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibkd import metrics as m

BINNED = (m.ece, m.mce, m.oe, m.sce, m.ace, m.ace_classwise)
RANKED = (m.aurc, m.eaurc, m.auroc, m.aupr_error, m.fpr95)
PLAIN = (m.top1, m.nll, m.brier)
ALL = BINNED + RANKED + PLAIN


def sample(n=4000, classes=10, heat=2.0, seed=0):
    "Overconfident float64 logits with their labels and the true posterior."
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal((n, classes))
    q = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return heat * z, (q.cumsum(1) < rng.random((n, 1))).sum(1).clip(0, classes - 1), q


def two(conf, correct):
    "Two-class probabilities and labels with these confidences (above 1/2) and hits."
    conf, correct = np.asarray(conf, float), np.asarray(correct, int)
    return dict(probs=np.c_[conf, 1 - conf], labels=1 - correct)


# ---------------------------------------------------------------- golden vector

GOLD = two([.95, .90, .80, .70, .60, .55], [1, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("metric, n_bins, value", [
    (m.ece, 5, .133333), (m.ece, 10, .233333), (m.ece, 15, .233333),
    (m.oe, 5, .076875), (m.oe, 10, .121042), (m.oe, 15, .121042),
    (m.mce, 5, .25), (m.mce, 10, .8),
])
def test_golden_binned(metric, n_bins, value):
    assert metric(**GOLD, n_bins=n_bins) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("metric, value", [
    (m.aurc, .219444), (m.eaurc, .130556), (partial(m.eaurc, closed_form=True), .156421), (m.auroc, .625),
])
def test_golden_ranked(metric, value):
    assert metric(**GOLD) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("closed_form, optimum", [(False, .088889), (True, .063023)])
def test_golden_optimum(closed_form, optimum):
    assert m.aurc(**GOLD) - m.eaurc(**GOLD, closed_form=closed_form) == pytest.approx(optimum, abs=1e-6)


ESSENCE = {  # table 6: teacher ECE, KD student, DIST student over 11 temperatures; the printed correlations in %
    "resnet56": ("12.04 1.79 10.39 21.33 31.01 38.92 45.03 51.97 57.04 59.92 61.65",
                 "68.09 68.28 68.56 68.57 67.98 67.84 67.46 67.01 67.20 66.75 66.80", -91.82,
                 "67.35 68.19 68.77 68.63 68.92 68.41 68.41 68.9 68.93 68.39 66.97", .46),
    "resnet110": ("14.08 4.70 6.00 16.89 27.12 35.84 42.78 52.93 57.22 59.65 61.12",
                  "67.18 67.72 68.30 67.83 68.42 67.44 67.28 66.77 66.87 67.15 65.98", -76.36,
                  "67.23 68.09 68.20 68.74 68.15 68.88 68.65 68.74 69.35 67.88 67.18", 1.82),
    "wrn-28-1": ("8.70 5.09 17.73 28.59 37.22 43.67 48.34 54.06 57.07 58.78 59.83",
                 "67.76 67.73 67.55 67.48 67.11 67.09 66.9 66.82 66.64 66.28 65.68", -99.09,
                 "67.22 68.26 68.19 68.48 68.84 68.35 68.12 67.99 67.79 67.36 66.33", -50.0),
}


@pytest.mark.parametrize("teacher", ESSENCE)
def test_spearman_of_the_paper(teacher):
    ece, kd, kd_value, dist, dist_value = ESSENCE[teacher]
    x, kd, dist = (np.array(text.split(), float) for text in (ece, kd, dist))
    assert round(100 * m.spearman(x, kd), 2) == kd_value
    assert round(100 * m.spearman(x, dist), 2) == dist_value


# ---------------------------------------------------------------- other implementations

@pytest.mark.parametrize("n_bins", [5, 10, 15])
@pytest.mark.parametrize("classes, heat", [(2, 1.5), (10, 2.0), (10, .4), (50, 3.0)])
def test_netcal(n_bins, classes, heat):
    netcal = pytest.importorskip("netcal.metrics")
    logits, labels, _ = sample(3000, classes, heat)
    probs = torch.tensor(logits).softmax(1).numpy()
    conf, pred = m.confidence(logits)
    hit = (pred == labels).astype(int)
    for metric, theirs in ((m.ece, netcal.ECE), (m.mce, netcal.MCE)):
        ours = metric(logits, labels, n_bins=n_bins)
        assert ours == pytest.approx(theirs(n_bins, detection=True).measure(conf, hit), abs=1e-6)
        if classes > 2: assert ours == pytest.approx(theirs(n_bins).measure(probs, labels), abs=1e-6)


def test_saturated_confidence_belongs_to_the_last_bin():
    "500 right at .995 and 500 at exactly 1.0 of which 120 wrong: |.8800 - .9975| (torchmetrics opens an extra bin for 1.0)."
    probs = np.r_[np.tile([.995, .005], (500, 1)), np.tile([1., 0.], (500, 1))]
    labels = np.r_[np.zeros(500, int), np.ones(120, int), np.zeros(380, int)]
    assert m.ece(probs=probs, labels=labels) == pytest.approx(.1175, abs=1e-12)
    assert m.bins(*[f(probs) for f in (lambda p: p.max(1), lambda p: labels == 0)]).count[-1] == 1000


@pytest.mark.parametrize("n_bins", [10, 15])
@pytest.mark.parametrize("norm, metric", [("l1", m.ece), ("max", m.mce)])
def test_torchmetrics(n_bins, norm, metric):
    f = pytest.importorskip("torchmetrics.functional.classification").multiclass_calibration_error
    logits, labels, _ = sample(3000, 10, 1.)
    probs = torch.tensor(logits).softmax(1)
    assert probs.max() < 1 - 1e-6  # its issue 3510: a confidence of exactly 1.0 goes to an extra bin
    theirs = f(probs, torch.tensor(labels), num_classes=10, n_bins=n_bins, norm=norm).item()
    assert metric(logits, labels, n_bins=n_bins) == pytest.approx(theirs, abs=1e-6)


def assert_ranks_like_sklearn(given, conf, right):
    sk = pytest.importorskip("sklearn.metrics")
    fpr, tpr, _ = sk.roc_curve(right, conf, drop_intermediate=False)
    assert m.auroc(**given) == pytest.approx(sk.roc_auc_score(right, conf), abs=1e-9)
    assert m.aupr_error(**given) == pytest.approx(sk.average_precision_score(~right, -conf), abs=1e-9)
    assert m.fpr95(**given) == pytest.approx(fpr[tpr >= .95 - 1e-12].min(), abs=1e-12)


@pytest.mark.parametrize("digits", [1, 2, 12])
@pytest.mark.parametrize("n", [20, 2000])
def test_sklearn_ranking_with_ties(n, digits):
    rng = np.random.default_rng(n)
    conf = rng.uniform(.5, 1, n).round(digits)
    right = rng.random(n) < conf
    assert_ranks_like_sklearn(two(conf, right), conf, right)


@pytest.mark.parametrize("classes, heat", [(2, 1.), (10, 2.), (30, .5)])
def test_sklearn(classes, heat):
    sk = pytest.importorskip("sklearn.metrics")
    logits, labels, _ = sample(2000, classes, heat)
    probs, one = torch.tensor(logits).softmax(1).numpy(), np.eye(classes)[labels]
    assert_ranks_like_sklearn(dict(logits=logits, labels=labels), probs.max(1), probs.argmax(1) == labels)
    assert m.nll(logits, labels) == pytest.approx(sk.log_loss(labels, probs, labels=range(classes)), abs=1e-9)
    brier = sum(sk.brier_score_loss(one[:, c], probs[:, c]) for c in range(classes))
    assert m.brier(logits, labels) == pytest.approx(brier, abs=1e-9)
    assert m.top1(logits, labels) == sk.accuracy_score(labels, probs.argmax(1))
    if classes > 2: assert m.topk(logits, labels, k=5) == sk.top_k_accuracy_score(labels, probs, k=5, labels=range(classes))


@pytest.mark.parametrize("seed", range(5))
def test_scipy_spearman(seed):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    for x, y in ((rng.random(30), rng.random(30)), (rng.integers(0, 5, 40), rng.integers(0, 4, 40))):
        assert m.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def reference(logits, labels, n_bins):
    "SCE, ACE and class-wise ACE as their formulas read, on a float64 softmax: masks, argsort, loops."
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    edges, n = np.linspace(0, 1, n_bins + 1), len(p)
    def by_width(q, hit): return sum(abs((q - hit)[(q > lo) & (q <= hi)].sum()) for lo, hi in zip(edges, edges[1:]))
    def by_size(q, hit):
        groups = np.split(np.argsort(q), [i * n // n_bins for i in range(1, n_bins)])
        return sum(abs((q - hit)[g].sum()) for g in groups)
    sce, ace = (np.mean([f(p[:, c], labels == c) / n for c in range(p.shape[1])]) for f in (by_width, by_size))
    return sce, by_size(p.max(1), p.argmax(1) == labels) / n, ace


@pytest.mark.parametrize("n, classes, n_bins", [(1000, 10, 15), (1003, 3, 7), (200, 100, 15), (6, 4, 15), (1, 2, 15)])
def test_classwise_and_adaptive_against_loops(n, classes, n_bins):
    logits, labels, _ = sample(n, classes)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 2e-7)):
        z = logits.astype(dtype)
        ours = [f(z, labels, n_bins=n_bins) for f in (m.sce, m.ace, m.ace_classwise)]
        assert ours == pytest.approx(reference(z.astype(float), labels, n_bins), abs=tolerance)


@pytest.mark.parametrize("threshold", [.01, .3, .999])
def test_tace_leaves_out_small_probabilities(threshold):
    logits, labels, q = sample(1000, 7)
    p, total = torch.tensor(logits).softmax(1).numpy(), 0.
    for c in range(7):
        keep = np.flatnonzero(p[:, c] >= threshold)
        keep = keep[np.argsort(p[keep, c])]
        for g in np.split(keep, [i * len(keep) // 15 for i in range(1, 15)]): total += abs((p[g, c] - (labels[g] == c)).sum())
    assert m.ace_classwise(logits, labels, threshold=threshold) == pytest.approx(total / p.size, abs=1e-12)


def test_ace_agrees_with_quantile_edges_to_one_over_n():
    "The public AdaptiveECE code: interpolated quantile edges and (lo, hi], which drops the smallest sample."
    logits, labels, _ = sample(20_000)
    conf, pred = m.confidence(logits)
    edges = np.interp(np.linspace(0, len(conf), 16), np.arange(len(conf)), np.sort(conf))
    inside = [(conf > lo) & (conf <= hi) for lo, hi in zip(edges, edges[1:])]
    theirs = sum(i.mean() * abs(conf[i].mean() - (pred == labels)[i].mean()) for i in inside if i.any())
    assert abs(m.ace(logits, labels) - theirs) < 2 * 15 / len(conf)


# ---------------------------------------------------------------- a million samples, exactly

def dyadic(n=1_000_000, seed=0):
    "Confidences k / 2^20 above 1/2, every tenth exactly on or next to an edge region, and calibrated hits."
    rng = np.random.default_rng(seed)
    k = rng.integers(2**19 + 1, 2**20 + 1, n)
    return k, rng.integers(0, 2**20, n) < k


def test_exact_at_a_million():
    k, hit = dyadic()
    n, one = len(k), 2**20
    given = two(k / one, hit)
    for n_bins in (10, 15, 16):
        uppers = [Fraction(float(e)) * one for e in np.linspace(0, 1, n_bins + 1)]  # the edges as exact rationals
        which = np.searchsorted([math.floor(e) for e in uppers], k) - 1  # k integer: k <= e exactly when k <= floor(e)
        gaps = [int(hit[which == b].sum()) * one - int(k[which == b].sum()) for b in range(n_bins)]
        exact = sum(Fraction(abs(g), n * one) for g in gaps)
        assert abs(m.ece(**given, n_bins=n_bins) - float(exact)) < 1e-13
        assert m.bins(k / one, hit, n_bins).count.tolist() == np.bincount(which, minlength=n_bins).tolist()
    order = np.lexsort((hit, k))
    groups = np.split(order, [i * n // 15 for i in range(1, 15)])
    exact = sum(Fraction(abs(int(hit[g].sum()) * one - int(k[g].sum())), n * one) for g in groups)
    assert abs(m.ace(**given) - float(exact)) < 1e-13


def test_float32_sums_would_not_pass_at_a_million():
    "The reason for float64: the same sums in float32, one by one, are off by far more than the tolerance above."
    k, hit = dyadic()
    gap = (k / 2**20 - hit).astype(np.float32)
    exact = abs(int(k.sum()) - int(hit.sum()) * 2**20) / 2**20 / len(k)
    one_bin = m.ece(**two(k / 2**20, hit), n_bins=1)
    assert abs(one_bin - exact) < 1e-13 < 1e-9 < abs(abs(np.cumsum(gap, dtype=np.float32)[-1]) / len(k) - exact)


def test_logits_at_a_million_against_fsum():
    "From float32 logits, against exactly rounded sums of a float64 softmax."
    rng = np.random.default_rng(3)
    z = (3 * rng.standard_normal((1_000_000, 3))).astype(np.float32)
    e = np.exp(z.astype(float) - z.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    conf, labels = p.max(1), (p.cumsum(1) < rng.random((len(p), 1))).sum(1).clip(0, 2)
    hit = p.argmax(1) == labels
    s, edges = m.scores(z, labels), np.linspace(0, 1, 16)
    inside = [(conf > lo) & (conf <= hi) for lo, hi in zip(edges, edges[1:])]
    assert m.ece(s) == pytest.approx(math.fsum(abs(math.fsum(conf[i] - hit[i])) for i in inside) / len(p), abs=1e-11)
    errors = np.cumsum(~hit[np.argsort(-conf, kind="stable")])
    assert m.aurc(s) == pytest.approx(math.fsum(errors / np.arange(1, len(p) + 1)) / len(p), abs=1e-9)
    assert m.nll(s) == pytest.approx(-math.fsum(np.log(p[np.arange(len(p)), labels])) / len(p), abs=1e-12)
    assert m.brier(s) == pytest.approx(math.fsum(((p - np.eye(3)[labels])**2).sum(1)) / len(p), abs=1e-12)


# ---------------------------------------------------------------- closed forms

@pytest.mark.parametrize("conf, right", [(.9, 60), (.7, 100), (.7, 0), (.51, 51), (1., 25)])
def test_constant_confidence(conf, right):
    given, gap = two([conf] * 100, [1] * right + [0] * (100 - right)), conf - right / 100
    for metric in (m.ece, m.mce, m.sce, m.ace_classwise, partial(m.ece, n_bins=10)):
        if metric is m.ace_classwise: assert metric(**given, n_bins=1) == pytest.approx(abs(gap), abs=1e-12)
        else: assert metric(**given) == pytest.approx(abs(gap), abs=1e-12)
    assert m.oe(**given) == pytest.approx(conf * max(gap, 0), abs=1e-12)
    r = right / 100
    assert m.brier(**given) == pytest.approx(2 * (r * (1 - conf)**2 + (1 - r) * conf**2))
    if conf < 1: assert m.nll(**given) == pytest.approx(-r * math.log(conf) - (1 - r) * math.log(1 - conf))


def test_aurc_limits():
    n, errors = 1000, 300
    conf, best = np.linspace(.99, .51, n), [1] * (n - errors) + [0] * errors
    assert m.eaurc(**two(conf, best)) == pytest.approx(0, abs=1e-12)
    assert m.eaurc(**two(conf, best), closed_form=True) == pytest.approx(0, abs=2e-3)  # the optimum for N to infinity
    assert m.aurc(**two(conf, [0] * n)) == 1 and m.aurc(**two(conf, [1] * n)) == 0
    assert m.eaurc(**two(conf, [0] * n)) == m.eaurc(**two(conf, [0] * n), closed_form=True) == 0
    worst = m.aurc(**two(conf, best[::-1]))
    assert worst == pytest.approx(np.mean([min(i, errors) / i for i in range(1, n + 1)]))
    shuffled = [m.aurc(**two(conf, np.random.default_rng(s).permutation(best))) for s in range(40)]
    assert np.mean(shuffled) == pytest.approx(errors / n, abs=.01)  # a random ranking has the error rate on average


@pytest.mark.parametrize("above, expected", [(95, 0), (94, .5)])
def test_fpr95_at_exactly_95_percent(above, expected):
    "95 of 100 right answers above the first error: accept them, and no error."
    conf = np.linspace(.99, .51, 104)
    right = [1] * above + [0, 0] + [1] * (100 - above) + [0, 0]
    assert m.fpr95(**two(conf, right)) == expected


def test_equals_stay_in_order():
    "AURC of equals follows the input, as a stable sort does."
    rng = np.random.default_rng(0)
    conf = rng.integers(51, 100, 500) / 100
    right = rng.random(500) < conf
    ranked = sorted(zip(conf, right), key=lambda pair: -pair[0])
    risks = [sum(not r for _, r in ranked[:i]) / i for i in range(1, 501)]
    assert m.aurc(**two(conf, right)) == pytest.approx(np.mean(risks), abs=1e-12)
    assert m.aurc(**two([.9] * 4, [1, 1, 0, 0])) < m.aurc(**two([.9] * 4, [0, 0, 1, 1]))


def test_probabilities_rounded_above_one():
    p = np.array([[1.00005, 0], [.5, .5]], np.float32)
    assert m.confidence(probs=p)[0].tolist() == [1, .5] and m.bins(m.confidence(probs=p)[0], [1, 1]).count[-1] == 1


def test_all_right_and_all_wrong():
    sure = 60 * np.eye(5)
    right, wrong = m.evaluate(sure, np.arange(5)), m.evaluate(sure, (np.arange(5) + 1) % 5)
    assert right["top1"] == 1 and wrong["top1"] == 0
    assert all(right[k] == pytest.approx(0, abs=1e-12) for k in "nll brier ece mce oe sce ace ace_classwise aurc eaurc".split())
    assert all(wrong[k] == pytest.approx(1) for k in "ece mce oe ace aurc aupr_error".split())
    assert wrong["eaurc"] == 0 and wrong["brier"] == pytest.approx(2) and wrong["nll"] == pytest.approx(60)
    assert all(math.isnan(d[k]) for d in (right, wrong) for k in ("auroc", "fpr95")) and math.isnan(right["aupr_error"])


def test_batch_of_one():
    found = m.evaluate(np.array([[1., 0, 0]]), [0])
    conf = math.e / (math.e + 2)
    assert [found[k] for k in ("ece", "mce", "ace")] == pytest.approx([1 - conf] * 3)
    assert found["top1"] == found["top5"] == 1 and found["oe"] == found["aurc"] == 0


def test_calibrated_sampler_goes_to_zero():
    few, many = ([f(*sample(n, 10, heat=1., seed=4)[:2]) for f in BINNED] for n in (300, 30_000))
    hot = [f(*sample(30_000, 10, heat=2., seed=4)[:2]) for f in BINNED]
    assert (np.array(many) < np.array(few) / 2).all() and (np.array(many) < np.array(hot) / 3).all()
    assert m.ece(*sample(30_000, 10, heat=1., seed=4)[:2]) < .01


def test_a_class_that_is_missing_still_counts():
    logits, labels, _ = sample(2000, 5)
    kept = labels != 4
    found = m.evaluate(logits[kept], labels[kept])
    sce, ace, ace_classwise = reference(logits[kept], labels[kept], 15)
    assert [found["sce"], found["ace"], found["ace_classwise"]] == pytest.approx([sce, ace, ace_classwise], abs=1e-12)


# ---------------------------------------------------------------- binning

@pytest.mark.parametrize("n_bins", [1, 2, 3, 5, 7, 10, 15, 20, 100])
def test_edges_close_their_bin(n_bins):
    edges = np.linspace(0, 1, n_bins + 1)
    assert np.flatnonzero(np.diff(edges) <= 0).size == 0
    at = [int(np.flatnonzero(m.bins(np.array([e]), np.array([1]), n_bins).count)[0]) for e in edges[1:]]
    above = [int(np.flatnonzero(m.bins(np.array([np.nextafter(e, 2)]), np.array([1]), n_bins).count)[0]) for e in edges[:-1]]
    assert at == above == list(range(n_bins))


@pytest.mark.parametrize("value, expected", [(.3, 2), (.6, 5), (0.30000000000000004, 2), (0.6000000000000001, 5)])
def test_three_and_six_tenths(value, expected):
    "ceil(10 * edge) - 1 puts linspace's edges .3 and .6 one bin too high."
    assert np.flatnonzero(m.bins(np.array([value]), np.array([0]), 10).count).tolist() == [expected]


def test_bins_describe_the_same_numbers():
    logits, labels, _ = sample()
    conf, pred = m.confidence(logits)
    b = m.bins(conf, pred == labels)
    assert (b.ece, b.mce, b.oe) == (m.ece(logits, labels), m.mce(logits, labels), m.oe(logits, labels))
    assert b.count.sum() == len(conf) and b.count.dtype == np.int64 and len(b.edges) == 16
    full = b.count > 0
    assert np.isnan(b.conf[~full]).all() and np.isnan(b.acc[~full]).all() and (~full).any()
    assert (b.count[full] * b.conf[full]).sum() == pytest.approx(conf.sum())
    assert (b.count[full] * b.acc[full]).sum() == pytest.approx((pred == labels).sum())
    assert ((b.conf > b.edges[:-1]) & (b.conf <= b.edges[1:]))[full].all()


# ---------------------------------------------------------------- properties

LOGITS = hnp.arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(2, 6)), elements=st.floats(-30, 30, width=32))
LOGITS = LOGITS.filter(lambda z: len(z) < 4 or np.abs(z.sum(1) - 1).max() > 1e-3 or z.min() < 0)  # what looks like probabilities is refused
light = settings(max_examples=60, deadline=None)


def with_labels(logits, seed): return logits, np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))


@light
@given(LOGITS, st.integers(0, 99), st.integers(1, 20))
def test_ranges_and_order(logits, seed, n_bins):
    z, y = with_labels(logits, seed)
    ece, mce, oe, sce, ace, ace_classwise = (f(z, y, n_bins=n_bins) for f in BINNED)
    tiny = 1e-12
    assert 0 <= oe <= ece + tiny and ece <= mce + tiny and mce <= 1 + tiny
    assert 0 <= sce <= 1 + tiny and 0 <= ace <= 1 + tiny and 0 <= ace_classwise <= 1 + tiny
    assert 0 <= m.aurc(z, y) <= 1 and -tiny <= m.eaurc(z, y) <= 1 and 0 <= m.brier(z, y) <= 2 + tiny and m.nll(z, y) >= 0
    bias = abs(m.confidence(z)[0].mean() - m.top1(z, y))
    assert bias - tiny <= min(ece, ace)  # binning can only add to the overall bias
    assert m.ece(z, y, n_bins=1) == pytest.approx(bias, abs=1e-12) == pytest.approx(m.ace(z, y, n_bins=1), abs=1e-12)


@light
@given(LOGITS, st.integers(0, 99))
def test_order_of_the_samples_does_not_matter(logits, seed):
    z, y = with_labels(logits, seed)
    order = np.random.default_rng(seed + 1).permutation(len(z))
    assert [f(z[order], y[order]) for f in BINNED + PLAIN + RANKED[2:]] == \
        pytest.approx([f(z, y) for f in BINNED + PLAIN + RANKED[2:]], abs=1e-9, nan_ok=True)
    if len(np.unique(m.confidence(z)[0])) == len(z):  # AURC keeps equals in the order of the input
        assert m.aurc(z[order], y[order]) == pytest.approx(m.aurc(z, y), abs=1e-12)


@light
@given(LOGITS, st.integers(0, 99))
def test_names_of_the_classes_do_not_matter(logits, seed):
    z, y = with_labels(logits, seed)
    if (np.sort(z, 1)[:, -1] == np.sort(z, 1)[:, -2]).any(): return  # with equal maxima the first class wins
    names = np.random.default_rng(seed + 2).permutation(z.shape[1])
    relabelled = np.empty_like(z)
    relabelled[:, names] = z
    for f in PLAIN: assert f(relabelled, names[y]) == pytest.approx(f(z, y), abs=1e-9)


def test_names_of_the_classes_do_not_matter_for_binned_metrics():
    "On a sample without equals (sums in another order may split equals, or cross an edge)."
    z, y, _ = sample(3000, 8)
    names = np.random.default_rng(5).permutation(8)
    relabelled = np.empty_like(z)
    relabelled[:, names] = z
    for f in BINNED + RANKED: assert f(relabelled, names[y]) == pytest.approx(f(z, y), abs=1e-9)


@light
@given(LOGITS, st.integers(0, 99), st.floats(.1, 10), st.floats(-100, 100))
def test_temperature_and_shift(logits, seed, T, shift):
    z, y = with_labels(logits.round(3), seed)  # rounded, so that dividing cannot merge two different logits
    assert m.top1(z / T, y) == m.top1(z, y)
    assert (m.confidence(z / T)[1] == m.confidence(z)[1]).all()
    k = min(3, z.shape[1])
    assert m.topk(z / T, y, k=k) == m.topk(z, y, k=k) >= m.top1(z, y) == m.topk(z, y, k=1)
    conf, shifted = m.confidence(z)[0], m.confidence(z + shift)[0]
    assert shifted == pytest.approx(conf, rel=1e-9)
    sharper = m.confidence(z / min(T, 1))[0]
    assert (sharper >= conf - 1e-12).all()


@light
@given(LOGITS, st.integers(0, 99))
def test_logits_and_their_softmax_agree(logits, seed):
    z, y = with_labels(logits, seed)
    p = torch.tensor(z).softmax(1)
    conf, also = m.confidence(z)[0], m.confidence(probs=p)[0]
    assert also == pytest.approx(conf, abs=1e-12)
    for f in (m.nll, m.brier): assert f(probs=p, labels=y) == pytest.approx(f(z, y), abs=1e-9)


def test_logits_and_their_softmax_agree_on_every_metric():
    z, y, _ = sample(3000, 8)
    for f in ALL: assert f(probs=torch.tensor(z).softmax(1), labels=y) == pytest.approx(f(z, y), abs=1e-9)


@pytest.mark.parametrize("classes", [2, 7, 40])
def test_evaluate_is_the_metrics_one_by_one(classes):
    logits, labels, _ = sample(500, classes)
    found = m.evaluate(logits, labels, n_bins=9)
    for f in BINNED: assert found[f.__name__] == f(logits, labels, n_bins=9)
    for f in RANKED + PLAIN: assert found[f.__name__] == f(logits, labels)
    assert found["top5"] == m.topk(logits, labels, k=min(5, classes))
    assert list(found) == "top1 top5 nll brier ece mce oe sce ace ace_classwise overconfidence aurc eaurc auroc aupr_error fpr95".split()
    assert all(type(v) is float for v in found.values())
    assert found == m.evaluate(m.scores(logits, labels), n_bins=9)
    assert found["ece"] == pytest.approx(m.evaluate(probs=torch.tensor(logits).softmax(1), labels=labels, n_bins=9)["ece"])


@pytest.mark.parametrize("cast, tolerance", [
    (lambda z: z.astype(np.float32), 1e-6), (lambda z: np.asfortranarray(z), 1e-12), (lambda z: z[::-1][::-1], 1e-12),
    (lambda z: torch.tensor(z, requires_grad=True), 1e-12), (lambda z: torch.tensor(z, dtype=torch.float32), 1e-6),
    (lambda z: torch.tensor(z).bfloat16(), None), (lambda z: torch.tensor(z).half(), None), (lambda z: z.tolist(), 1e-12),
    (lambda z: np.broadcast_to(z, z.shape), 1e-12),  # read-only
])
def test_kinds_of_input(cast, tolerance):
    logits, labels, _ = sample(300, 6)
    z = cast(logits)
    exact = logits if tolerance else z.double().numpy()  # a half-precision input is taken at its word
    assert [f(z, labels) for f in ALL] == pytest.approx([f(exact, labels) for f in ALL], abs=tolerance or 1e-6)
    for y in (torch.tensor(labels), labels.astype(np.uint8), labels.tolist(), torch.tensor(labels, dtype=torch.int32)):
        assert m.ece(z, y) == m.ece(z, labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_probabilities(dtype):
    "Rows of 16-bit probabilities sum to 1 only roughly; the same rows in float32 are refused as a mistake."
    logits, labels, _ = sample(500, 100, .1)
    probs = torch.tensor(logits).softmax(1).to(dtype)
    off = (probs.float().sum(1) - 1).abs().max()
    assert m.ece(probs=probs, labels=labels) == pytest.approx(m.ece(logits, labels), abs=.01)
    if off > 1e-4:
        with pytest.raises(ValueError, match="expected 1"): m.ece(probs=probs.float(), labels=labels)


def test_input_is_left_alone():
    logits, labels, _ = sample(200, 6)
    for z in (logits.copy(), logits.astype(np.float32)):
        before, y = z.copy(), labels.copy()
        m.evaluate(z, y), m.evaluate(probs=torch.tensor(z).softmax(1), labels=y), m.bootstrap(m.sce, z, y, n=2)
        assert (z == before).all() and (y == labels).all()


# ---------------------------------------------------------------- bootstrap

def test_bootstrap():
    logits, labels, _ = sample(5000)
    start = time.process_time()
    lo, hi = m.bootstrap(m.ece, logits, labels)
    assert time.process_time() - start < 2
    assert 0 < lo < m.ece(logits, labels) < hi < 1
    assert (lo, hi) == m.bootstrap(m.ece, torch.tensor(logits), labels, seed=0)
    assert (lo, hi) != m.bootstrap(m.ece, logits, labels, n=50, seed=1)
    narrow = m.bootstrap(m.ece, logits, labels, level=.5)
    assert lo < narrow[0] < narrow[1] < hi


def test_bootstrap_of_a_mean_covers_as_often_as_it_says():
    truth = m.brier(*sample(300_000, 4, 1., seed=999)[:2])
    intervals = [m.bootstrap(m.brier, *sample(150, 4, 1., seed)[:2], n=150, level=.8, seed=seed) for seed in range(200)]
    assert .7 < np.mean([lo <= truth <= hi for lo, hi in intervals]) < .9  # .8 with a standard error of .028


@pytest.mark.parametrize("level, z", [(.5, .6745), (.8, 1.2816), (.95, 1.96)])
def test_bootstrap_level(level, z):
    logits, labels, _ = sample(5000)
    acc = m.top1(logits, labels)
    se = math.sqrt(acc * (1 - acc) / 5000)
    assert m.bootstrap(m.top1, logits, labels, n=2000, level=level) == pytest.approx((acc - z * se, acc + z * se), abs=.15 * se)


def test_bootstrap_leaves_out_resamples_without_a_value():
    given = two([.9, .8, .7, .6], [1, 1, 1, 0])  # about a third of the resamples have no error
    lo, hi = m.bootstrap(m.auroc, m.scores(**given), n=200)
    assert lo == hi == 1 and all(map(math.isnan, m.bootstrap(m.auroc, m.scores(**two([.9, .8], [1, 1])), n=5)))


def test_bootstrap_of_any_function():
    logits, labels, _ = sample(400, 5)
    def elsewhere(z, y): return (z.argmax(1) == y).double().mean()
    assert m.bootstrap(elsewhere, logits, labels, n=40) == pytest.approx(m.bootstrap(m.top1, logits, labels, n=40))
    for metric in ALL + (partial(m.ece, n_bins=4), m.topk):
        direct = m.bootstrap(lambda z, y: metric(z, y), logits, labels, n=4)
        assert m.bootstrap(metric, m.scores(logits, labels), n=4) == pytest.approx(direct, abs=1e-9)


# ---------------------------------------------------------------- known posterior, slopes

def test_true_calibration_error():
    logits, labels, q = sample(40_000)
    assert m.true_calibration_error(np.log(q), q) < 1e-12 and m.posterior_gap(probs=q, posterior=q) < 1e-12
    assert m.true_calibration_error(logits, q) == pytest.approx(m.ece(logits, labels), abs=.01)
    assert m.true_calibration_error(logits, q) <= m.posterior_gap(logits, q) + 1e-12
    conf, pred = m.confidence(logits)
    assert m.posterior_gap(logits, q) == pytest.approx(np.abs(conf - q[np.arange(len(q)), pred]).mean())
    assert m.true_calibration_error(logits, q, 1) == pytest.approx(abs(conf.mean() - q[np.arange(len(q)), pred].mean()))


@pytest.mark.parametrize("side", ["bottom", "top"])
def test_slope_against_polyfit(side):
    teacher, student = sample(1000, 6, seed=1)[0], sample(1000, 6, seed=2)[0]
    student = .5 * student + teacher
    k = teacher.argmax(1)
    def phi(z): p = torch.tensor(z).softmax(1).numpy()[np.arange(len(k)), k]; return np.log(p / (1 - p))
    x, y = phi(teacher), phi(student)
    part = np.argsort(x)[:250] if side == "bottom" else np.argsort(x)[-250:]
    assert m.slope(student, teacher, side=side) == pytest.approx(np.polyfit(x[part], y[part], 1)[0], rel=1e-6)
    assert m.slope(student, teacher, fraction=1.) == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-6)
    X, Y = m.logit_pairs(student, teacher)
    assert X == pytest.approx(x, rel=1e-6) and Y == pytest.approx(y, rel=1e-6)
    true_class = np.zeros(1000, int)
    assert m.logit_pairs(student, teacher, true_class)[0] == pytest.approx(m.log_odds(teacher, true_class))


def test_slope_of_saturated_logits():
    "float32 probabilities are 1 here; the log odds from logits stay finite."
    rng = np.random.default_rng(0)
    teacher = np.c_[rng.uniform(40, 90, 200), np.zeros(200)].astype(np.float32)
    assert (torch.tensor(teacher).softmax(1).amax(1) == 1).all()
    assert m.slope(1.5 * teacher, teacher) == pytest.approx(1.5)
    assert math.isnan(m.slope(teacher, np.ones_like(teacher)))


# ---------------------------------------------------------------- bad input

Z, Y = np.array([[1., 2, 3], [3, 2, 1]]), np.array([0, 2])
NAN, INF = np.array([[1., 2, 3], [0, math.nan, 1]]), np.array([[1., math.inf, 3], [0, 1, 1]])


@pytest.mark.parametrize("call, words", [
    (lambda: m.ece(), ["neither", "logits", "probs", "exactly one"]),
    (lambda: m.ece(Z, Y, probs=Z), ["both", "exactly one"]),
    (lambda: m.ece(Z), ["labels", "None"]),
    (lambda: m.ece(Z[0], Y), ["(3,)", "(N, C)"]),
    (lambda: m.ece(Z[:, :1], Y), ["(2, 1)", "[0, z]"]),
    (lambda: m.ece(Z[None], Y), ["(1, 2, 3)", "(N, C)"]),
    (lambda: m.ece(Z[:0], Y[:0]), ["empty", "0 samples"]),
    (lambda: m.ece(Z, Y[:1]), ["(1,)", "(2,)"]),
    (lambda: m.ece(Z, np.eye(3)[:2]), ["(2, 3)", "(2,)", "argmax"]),
    (lambda: m.ece(Z, [0, 3]), ["labels[1] is 3", "0..2"]),
    (lambda: m.ece(Z, [-1, 0]), ["labels[0] is -1", "0..2"]),
    (lambda: m.ece(Z, [0., 1.]), ["float64", "integers"]),
    (lambda: m.ece(NAN, Y), ["logits[1]", "nan", "finite"]),
    (lambda: m.ece(INF, Y), ["logits[0]", "inf", "finite"]),
    (lambda: m.ece(probs=NAN, labels=Y), ["probs[1]", "nan"]),
    (lambda: m.ece(probs=Z, labels=Y), ["probs[0] sums to 6", "expected 1"]),
    (lambda: m.ece(probs=[[1.5, -.5]], labels=[0]), ["-0.5", "0..1"]),
    (lambda: m.ece(Z, Y, n_bins=0), ["n_bins is 0", "at least 1"]),
    (lambda: m.sce(Z, Y, n_bins=1.5), ["n_bins is 1.5", "integer"]),
    (lambda: m.ace(Z, Y, n_bins=-3), ["n_bins is -3"]),
    (lambda: m.ace_classwise(Z, Y, n_bins=True), ["n_bins is True"]),
    (lambda: m.topk(Z, Y, k=4), ["k is 4", "1..3"]),
    (lambda: m.topk(Z, Y, k=0), ["k is 0", "1..3"]),
    (lambda: m.ece(m.scores(Z, Y), Y), ["Scores", "alone"]),
    (lambda: m.bins([.5, 2.], [0, 1]), ["conf", "2", "0..1"]),
    (lambda: m.bins([.5, math.nan], [0, 1]), ["conf", "nan"]),
    (lambda: m.bins([.5], [0, 1]), ["(1,)", "(2,)"]),
    (lambda: m.bootstrap(m.ece, Z, Y, level=95), ["level is 95", ".95"]),
    (lambda: m.bootstrap(m.ece, Z, Y, n=0), ["n is 0", "at least 1"]),
    (lambda: m.true_calibration_error(Z), ["posterior", "None"]),
    (lambda: m.posterior_gap(Z, Z), ["posterior[0] sums to 6"]),
    (lambda: m.posterior_gap(Z, np.full((2, 2), .5)), ["posterior", "(2, 2)", "(2, 3)"]),
    (lambda: m.spearman([1, 2], [1]), ["(2,)", "(1,)"]),
    (lambda: m.spearman([1], [1]), ["n >= 2"]),
    (lambda: m.spearman([1, math.nan], [1, 2]), ["nan"]),
    (lambda: m.slope(Z, Z[:, :2]), ["(2, 3)", "(2, 2)"]),
    (lambda: m.slope(Z, Z, side="left"), ["'left'", "'bottom'", "'top'"]),
    (lambda: m.slope(Z, Z, fraction=25), ["fraction is 25", ".25"]),
    (lambda: m.slope(NAN, Z), ["logits[1]", "nan"]),
    (lambda: m.confidence(NAN), ["logits[1]", "nan"]),
    (lambda: m.ece_floor(Z, draws=0), ["draws is 0", "at least 1"]),
    (lambda: m.ece_floor(NAN), ["logits[1]", "nan"]),
    (lambda: m.ece_floor(Z, n_bins=0), ["n_bins is 0"]),
    (lambda: m.rmsce(Z, Y, n_bins=0), ["n_bins is 0"]),
    (lambda: m.agreement(Z, None), ["teacher_logits is None"]),
    (lambda: m.agreement(Z, Z[:1]), ["(2, 3)", "(1, 3)", "same samples"]),
    (lambda: m.predictive_kl(Z, Z[:, :2]), ["(2, 3)", "(2, 2)"]),
    (lambda: m.predictive_kl(NAN, Z), ["logits[1]", "nan"]),
])
def test_bad_input(call, words):
    with pytest.raises(ValueError) as caught: call()
    text = str(caught.value)
    assert all(w in text for w in words), text
    assert "\n" not in text and len(text) < 220 and any(hint in text for hint in ("expected", "pass"))


# ---------------------------------------------------------------- probabilities where logits belong

TAKE_LOGITS = (*ALL, m.evaluate, m.scores, m.top5, m.topk, m.overconfidence, m.ece_floor, m.rmsce, lambda z, y: m.confidence(z), lambda z, y: m.bootstrap(m.ece, z, y, n=2),
               lambda z, y: m.measure(["ece"], z, y), lambda z, y: m.posterior_gap(z, np.full(np.shape(z), .125)))


@pytest.mark.parametrize("f", TAKE_LOGITS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("cast", [np.float64, np.float32, torch.tensor, lambda p: torch.tensor(p).bfloat16()])
def test_probabilities_by_position_are_noticed(f, cast):
    z, y, _ = sample(50, 8)
    with pytest.raises(ValueError, match="probs="): f(cast(torch.tensor(z).softmax(1).numpy()), y)
    f(cast(z), y)


@pytest.mark.parametrize("z", [np.array([[.9, .1], [.2, .8]]), np.full((9, 4), .25), np.r_[np.full((9, 2), .5), [[.5, .51]]], np.random.default_rng(0).random((99, 2)),
                               np.random.default_rng(0).dirichlet([1, 1, 1], 50) - 1e-3, np.log(np.random.default_rng(0).dirichlet([1, 1, 1], 50))])
def test_logits_near_probabilities_are_still_logits(z):
    "A few rows, one row again and again, one row that does not sum to 1, values outside 0..1, log probabilities"
    assert m.confidence(z)[0] == pytest.approx(torch.tensor(z).softmax(1).amax(1).numpy())


# ---------------------------------------------------------------- exact ties

def permuted(n=9, classes=100, seed=0):
    "A row in n orders"
    rng = np.random.default_rng(seed)
    z = 3 * rng.standard_normal(classes)
    return np.stack([rng.permutation(z) for _ in range(n)])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_permutations_of_a_row_have_one_confidence(classes, dtype):
    z = np.concatenate([permuted(9, classes, seed).astype(dtype) for seed in range(40)])
    conf = m.confidence(z)[0].reshape(40, 9)
    assert (conf == conf[:, :1]).all()
    assert conf.ravel() == pytest.approx(torch.tensor(z).double().softmax(1).amax(1).numpy(), rel=1e-14)


def test_permutations_of_a_row_tie_in_rankings():
    "Nine rows of one confidence: no metric can tell the right from the wrong ones"
    for seed in range(200):
        z = permuted(seed=seed)
        y = np.where(np.arange(9) < 5, z.argmax(1), z.argmin(1))
        assert m.auroc(z, y) == .5 and m.fpr95(z, y) == 1 and m.aupr_error(z, y) == pytest.approx(4 / 9)


def test_rows_without_a_tie_keep_their_bits():
    z = sample(5000, 100)[0]
    e = np.exp(z - z.max(1, keepdims=True))
    assert (m.confidence(z)[0] == 1 / e.sum(1)).all()


# ---------------------------------------------------------------- one record per metric

def test_only_the_metrics_asked_for_are_computed(monkeypatch):
    from dataclasses import replace
    def never(*args, **kwargs): raise AssertionError("computed without being asked for")
    for name in m.METRICS.keys() - {"ece", "top1"}: monkeypatch.setitem(m.METRICS, name, replace(m.METRICS[name], function=never))
    logits, labels, _ = sample(300, 6)
    assert m.measure(("ece", "top1"), logits, labels) == {"ece": m.ece(logits, labels), "top1": m.top1(logits, labels)}


def test_every_record_measures():
    logits, labels, q = sample(500, 6)
    found = m.measure(m.METRICS, logits, labels, q, n_bins=9, teacher_logits=2 * logits)
    assert list(found) == list(m.METRICS) and all(type(v) is float for v in found.values())
    assert {k: found[k] for k in m.evaluate(logits, labels)} == m.evaluate(logits, labels, n_bins=9)
    assert found["agreement"] == 1 and found["predictive_kl"] == m.predictive_kl(logits, 2 * logits) > 0
    s = m.scores(logits, labels)
    assert found["true_ece"] == m.true_calibration_error(logits, q, 9) == m.true_calibration_error(s, q, 9) and found["posterior_gap"] == m.posterior_gap(s, q)
    assert m.posterior_gap(s.take(np.arange(9)), q[:9]) == m.posterior_gap(logits[:9], q[:9])


def test_what_a_stored_run_keeps_does_not_grow_by_a_record():
    "`evaluate` is what meta.json holds and `verify` computes again"
    assert list(m.evaluate(*sample(300, 6)[:2])) == ["top1", "top5", "nll", "brier", "ece", "mce", "oe", "sce", "ace", "ace_classwise", "overconfidence",
                                                     "aurc", "eaurc", "auroc", "aupr_error", "fpr95"]


def test_directions_are_those_of_a_better_network():
    "From logits of noise to logits that know the label, every metric goes the way its record calls better"
    logits, labels, q = sample(2000, 6, heat=1.)
    worse, better = (m.measure(m.METRICS, z, labels, q, teacher_logits=logits) for z in (3 * np.random.default_rng(1).standard_normal(logits.shape), logits))
    assert all((better[k] > worse[k]) == metric.higher for k, metric in m.METRICS.items() if k not in ("aupr_error", "ece_floor"))  # the floor knows no labels


def test_an_unknown_metric_is_refused_before_anything_is_computed():
    with pytest.raises(ValueError, match="metric called 'eec'; did you mean 'ece'"): m.measure(["top1", "eec"], None, None)


def test_signatures_take_what_they_say():
    "Two rows that look like probabilities are still logits when passed as logits."
    p = np.array([[.9, .1], [.2, .8]])
    assert m.confidence(p)[0] == pytest.approx(1 / (1 + np.exp([-.8, -.6])))
    assert m.confidence(probs=p)[0] == pytest.approx([.9, .8])


# ---------------------------------------------------------------- noise

def spread(mean, n, seed=0):
    "Ten-class logits whose confidences scatter about a mean"
    conf = np.clip(np.random.default_rng(seed).beta(4 * mean, 4 * (1 - mean), n), .1, 1 - 1e-9)
    return np.c_[np.log(9 * conf / (1 - conf)), np.zeros((n, 9))]


@pytest.mark.parametrize("n, floors", [(500, (5.6, 5.0, 3.0)), (2000, (2.8, 2.4, 1.6)), (5000, (1.7, 1.6, 1.0)), (10_000, (1.25, 1.1, .7)), (20_000, (.9, .8, .5))])
def test_the_floor_of_ece_is_that_of_the_preregistration(n, floors):
    "Per cent at mean confidences .5, .7, .9; the spread there is not said, so to a fifth"
    for mean, floor in zip((.5, .7, .9), floors): assert 100 * m.ece_floor(spread(mean, n)) == pytest.approx(floor, rel=.2)


@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_the_floor_is_the_mean_ece_of_labels_drawn_from_the_softmax(n_bins):
    z, q = (sample(1000, 5, heat=1.)[i] for i in (0, 2))
    rng = np.random.default_rng(1)
    drawn = [m.ece(z, (q.cumsum(1) < rng.random((1000, 1))).sum(1).clip(0, 4), n_bins=n_bins) for _ in range(400)]
    assert m.ece_floor(z, n_bins=n_bins, draws=400) == pytest.approx(np.mean(drawn), abs=5 * np.std(drawn) / 20)


def test_the_floor_with_one_bin_is_the_mean_deviation_of_a_binomial():
    "de Moivre (1730): E|X - np| = 2 v (1 - p)^(n - v + 1) p^v n!/(v - 1)!/(n - v)! with v = floor(np) + 1"
    n, p = 30, .7
    v = math.floor(n * p) + 1
    exact = 2 * v * math.comb(n, v) * p**v * (1 - p)**(n - v + 1) / n
    assert m.ece_floor(probs=np.tile([p, 1 - p], (n, 1)), n_bins=1, draws=40_000) == pytest.approx(exact, rel=.02)


def test_the_floor_does_not_look_at_labels_order_or_kind_of_input():
    z, y, _ = sample(3000, 6)
    floor, order = m.ece_floor(z), np.random.default_rng(0).permutation(3000)
    assert floor == m.ece_floor(z, y) == m.ece_floor(m.scores(z, y)) == m.ece_floor(z[order]) != m.ece_floor(z, seed=1)
    assert m.ece_floor(probs=torch.tensor(z).softmax(1)) == pytest.approx(floor, abs=1e-6)
    assert m.ece_floor(2 * z) < m.ece_floor(z / 3)


def test_the_floor_of_twenty_thousand_samples_is_quick():
    s = m.scores(*sample(20_000, 10)[:2])
    def took():
        start = time.perf_counter()
        m.ece_floor(s)
        return time.perf_counter() - start
    assert min(took() for _ in range(5)) < .25


@pytest.mark.parametrize("given, value", [((3000, 10, 1.3, 0, 15), .10315299026981638), ((3000, 10, 1., 1, 15), .04071288387648725),
                                          ((1500, 10, 1.5, 2, 10), .11652915579293037)])
def test_rmsce_is_that_of_its_authors_code(given, value):
    "lower_bound_scaling_ce(probs, labels, num_bins=…, mode='top-label') of uncertainty-calibration 0.1.4"
    z, y, _ = sample(*given[:4])
    assert m.rmsce(z, y, n_bins=given[4]) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("seed, heat, value", [(0, 1.2, .07610562501570828), (1, 1.3, .09547698501977071), (2, 1.4, .11395820693795826)])
def test_rmsce_of_equal_confidences_is_that_of_its_authors_code(seed, heat, value):
    z, y, _ = sample(900, 4, heat, seed)
    order = np.random.default_rng(0).permutation(900)
    assert m.rmsce(z.round(), y) == pytest.approx(value, rel=1e-12) == m.rmsce(z.round()[order], y[order])


def test_rmsce_by_hand():
    "Two groups of three: ((.6 - 2/3)² - 1/9 + (.9 - 1)²) / 2 is below 0; with all wrong nothing is noise"
    conf = np.array([.5, .6, .7, .85, .9, .95])
    assert m.rmsce(**two(conf, [1, 0, 1, 1, 1, 1]), n_bins=2) == 0
    assert m.rmsce(**two(conf, [0] * 6), n_bins=2) == pytest.approx(math.sqrt((.6**2 + .9**2) / 2))
    assert m.rmsce(**two(conf, [1, 0, 0, 0, 0, 1]), n_bins=1) == pytest.approx(math.sqrt((.75 - 1 / 3)**2 - 2 / 9 / 5))
    assert m.rmsce(**two([.8], [1])) == pytest.approx(.2) and m.rmsce(**two([.8] * 9, [1] * 9)) == pytest.approx(.2)


def test_the_square_of_rmsce_has_no_bias_where_the_plug_in_has():
    "A known gap of .1 between confidence and chance in every one of 15 groups of 20"
    rng, conf = np.random.default_rng(0), np.full(300, .75) + np.arange(300) * 1e-6
    found = np.array([m.rmsce(**two(conf, rng.random(300) < conf - .1))**2 for _ in range(2000)])
    assert found.mean() == pytest.approx(.01, abs=4 * found.std() / 2000**.5 + 1e-4)


# ---------------------------------------------------------------- fidelity

def test_agreement_and_predictive_kl_against_pytorch():
    z, t = (torch.tensor(sample(2000, 7, seed=s)[0]) for s in (0, 1))
    t[:500] = 2 * z[:500]
    kl = torch.nn.functional.kl_div(z.log_softmax(1), t.log_softmax(1), log_target=True, reduction="batchmean")
    assert m.agreement(z, t) == float((z.argmax(1) == t.argmax(1)).double().mean()) > .25
    assert m.predictive_kl(z, t) == pytest.approx(float(kl), rel=1e-12) and m.predictive_kl(z, z) == 0
    y = torch.zeros(2000, dtype=torch.int64)
    assert m.predictive_kl(m.scores(z, y), t.numpy()) == pytest.approx(float(kl), rel=1e-12)
    assert m.predictive_kl(m.scores(labels=y, probs=z.softmax(1)), t) == pytest.approx(float(kl), rel=1e-9)
    assert m.agreement(m.scores(z, y).take(np.arange(500)), t[:500]) == 1


def test_predictive_kl_of_what_is_ruled_out():
    "Nothing where the teacher rules it out, infinite where the student alone does, finite however cold the logits"
    off, even = np.array([[0., -np.inf, 0.]]), np.zeros((1, 3))
    assert m.predictive_kl(even, off) == pytest.approx(math.log(1.5)) and m.predictive_kl(off, off) == 0 and m.predictive_kl(off, even) == math.inf
    assert m.predictive_kl(np.array([[3e4, 0., 0.]]), even) == pytest.approx(2e4 - math.log(3))
    given = m.scores(labels=[0], probs=np.array([[1., 0., 0.]]))
    assert m.predictive_kl(even, given) == pytest.approx(math.log(3)) and m.predictive_kl(given, even) == math.inf
