"Calibrators against implementations that share nothing with ours: loops, NumPy, the published algorithms, golden numbers."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from calibkd.calibrators import (CPC, CRL, MMCE, PSKD, AdaFocal, MbLS, adaptive_focal, bin_gaps, correctness_ranking, cpc, equal_mass_edges, fit_temperature, focal,
                                 label_smoothing, margin_penalty, mdca, mmce_unweighted, mmce_weighted, scaled_history, soft_cross_entropy, updated_gamma)
from calibkd.objectives import Batch, Output, Seen, Setting, memory

CONF = torch.tensor([.95, .90, .80, .70, .60, .55], dtype=torch.float64)
RIGHT = torch.tensor([1, 1, 0, 1, 0, 1]).bool()


def drawn(seed, B=32, C=10):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, C, generator=g, dtype=torch.float64) * 3, torch.randint(C, (B,), generator=g)


def test_mmce_golden_numbers():
    assert round(mmce_unweighted(CONF, RIGHT).item(), 7) == .0114102 and round(mmce_unweighted(CONF, RIGHT, "paper").item(), 7) == .1068187
    assert round(mmce_weighted(CONF, RIGHT, "paper").item(), 7) == .4596303
    assert mmce_weighted(CONF, RIGHT).item() == pytest.approx(.2710841, abs=1e-6)  # the published code adds 1e-5 to its divisors


def published_mmce(conf, right):
    "The published algorithm: sort the right and the wrong out, mean over their pairs, divide by their number again"
    a, b = conf[right], conf[~right]
    m, n = len(a), len(b)
    if not m or not n: return 0.
    k = lambda x, y: np.exp(-np.abs(x[:, None] - y[None, :]) / .4)
    cc = (k(a, a) * np.outer(1 - a, 1 - a)).mean() / (m * m + 1e-5)
    ww = (k(b, b) * np.outer(b, b)).mean() / (n * n + 1e-5)
    cw = (k(a, b) * np.outer(1 - a, b)).mean() / (m * n + 1e-5)
    return math.sqrt(max(cc + ww - 2 * cw, 0) + 1e-10)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(.01, 1), st.booleans()), min_size=1, max_size=20))
def test_weighted_mmce_is_the_published_one(samples):
    conf, right = (torch.tensor(x) for x in zip(*samples))
    conf = conf.double()
    assert mmce_weighted(conf, right).item() == pytest.approx(published_mmce(conf.numpy(), right.numpy()), abs=2e-6)
    assert mmce_weighted(conf, right, "paper") >= 0 and mmce_unweighted(conf, right) >= 0


@pytest.mark.parametrize("label", [0, 1])
def test_mmce_of_a_batch_all_right_or_all_wrong_has_a_finite_gradient(label):
    z = torch.tensor([[2., 0.], [3., 0.]], dtype=torch.float64, requires_grad=True)
    y = torch.full((2,), label)
    seen = Seen(Output(z), Batch(torch.zeros(2, 1, 1, 1), y, torch.arange(2)))
    for objective in (MMCE(), MMCE(weighted=False), MMCE(weighted=False, normalise="paper")):
        grad, = torch.autograd.grad(objective.loss(seen), z)
        assert grad.isfinite().all()


@pytest.mark.parametrize("C", [3, 4, 10, 25])
def test_cpc_with_loops(C):
    z, y = drawn(C, 6, C)
    bdc = bec = 0.
    for b in range(6):
        for k in range(C):
            if k != y[b]: bdc += math.log1p(math.exp(-(z[b, y[b]] - z[b, k]))) / (6 * (C - 1))
            for j in range(C):
                if k != j and y[b] not in (j, k): bec += math.log1p(math.exp(-(z[b, k] - z[b, j]))) / (12 * (C - 1) * (C - 2))
    ours = cpc(z, y)
    assert ours[0].item() == pytest.approx(bdc) and ours[1].item() == pytest.approx(bec)


def test_cpc_needs_three_classes():
    with pytest.raises(ValueError, match="at least 3 classes"): cpc(torch.zeros(2, 2), torch.tensor([0, 1]))


def test_margin_penalty_with_numpy():
    z, _ = drawn(1)
    a = z.numpy()
    assert margin_penalty(z, 2.).item() == pytest.approx(np.maximum(0, a.max(1, keepdims=True) - a - 2).mean())


def test_ranking_is_the_published_margin_ranking_loss():
    "PyTorch's MarginRankingLoss with the margin moved into the second input, as the published code does"
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        conf, history = torch.rand(16, generator=g), torch.randint(5, (16,), generator=g) / 4
        target, margin = (history - history.roll(-1)).sign(), (history - history.roll(-1)).abs()
        shifted = conf.roll(-1) + margin / torch.where(target == 0, 1., target)
        theirs = F.margin_ranking_loss(conf * (target != 0), shifted * (target != 0), target)
        torch.testing.assert_close(correctness_ranking(conf, history), theirs)


def test_histories_are_scaled_as_published():
    counts = torch.tensor([0., 2., 4., 3.])
    assert scaled_history(counts, torch.tensor([1, 2]), 4).tolist() == [.5, 1.]
    assert scaled_history(counts, torch.tensor([0]), 0).tolist() == [0.] and scaled_history(counts + 1, torch.tensor([2]), 5).tolist() == [1.]


def test_crl_counts_what_was_right():
    z, y = drawn(2)
    crl, state = CRL(), memory(CRL(), Setting(10, 100))
    seen = Seen(Output(z), Batch(torch.zeros(32, 1, 1, 1), y, torch.arange(50, 82)), state=state)
    for _ in range(3): crl.remember(state["CRL"], seen)
    counts = state["CRL"].counts
    assert counts[50:82].tolist() == (3. * (z.argmax(1) == y)).tolist() and counts[:50].sum() == counts[82:].sum() == 0


def test_pskd_starts_as_cross_entropy_and_ends_mostly_in_its_own_past():
    z, y = drawn(3)
    state = memory(PSKD(), Setting(10, 32))
    def at(epoch): return Seen(Output(z), Batch(torch.zeros(32, 1, 1, 1), y, torch.arange(32), epoch, 5), state=state)
    assert PSKD().loss(at(0)).item() == pytest.approx(F.cross_entropy(z, y).item())
    PSKD().remember(state["PSKD"], at(0))
    for epoch in range(1, 5):
        alpha = .8 * (epoch + 1) / 5
        target = (1 - alpha) * np.eye(10)[y.numpy()] + alpha * z.softmax(1).float().numpy()
        assert PSKD().loss(at(epoch)).item() == pytest.approx(-(target * z.log_softmax(1).numpy()).sum(1).mean(), rel=1e-5)


def test_adafocal_state_machine():
    "The golden case, both clips, and a sign that comes back"
    step = lambda gamma, gap: updated_gamma(torch.tensor([gamma]), torch.tensor([gap])).item()
    assert step(.21, -.1) == pytest.approx(-.2) and step(-.21, .1) == pytest.approx(.2) and step(-.2, -.1) == pytest.approx(-.2 * math.exp(.1))
    assert step(19.9, 1.) == 20 and step(-1.9, -1.) == -2 and step(1., 0.) == 1


def test_adafocal_bins_are_those_of_the_published_code():
    "numpy.interp over the sorted confidences; gaps by a loop over bins"
    g = torch.Generator().manual_seed(0)
    conf, right = torch.rand(500, generator=g, dtype=torch.float64), torch.rand(500, generator=g) < .5
    edges = np.interp(np.linspace(0, 500, 16), np.arange(500), np.sort(conf.numpy()))
    ours = equal_mass_edges(conf)
    np.testing.assert_allclose(ours.numpy(), edges, atol=1e-12)
    for b, gap in enumerate(bin_gaps(conf, right, ours).tolist()):
        inside = (conf > edges[b]) & (conf <= edges[b + 1]) if b else conf <= edges[1]  # the published code drops the smallest sample
        assert gap == pytest.approx((conf[inside].mean() - right[inside].double().mean()).item())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0., .3, .9, 1.]), min_size=1, max_size=40))
def test_adafocal_survives_ties_and_few_samples(values):
    conf = torch.tensor(values, dtype=torch.float64)
    gaps = bin_gaps(conf, torch.ones(len(conf)).bool(), equal_mass_edges(conf))
    assert gaps.isfinite().all() and (gaps <= 0).all()


def test_inverse_focal_with_numpy():
    z, y = drawn(4)
    gamma = torch.linspace(-2, 3, 32, dtype=torch.float64)
    p = z.softmax(1).gather(1, y[:, None]).squeeze(1).numpy()
    expected = np.where(gamma > 0, (1 - p) ** abs(gamma.numpy()), (1 + p) ** abs(gamma.numpy())) * -np.log(p)
    assert adaptive_focal(z, y, gamma).item() == pytest.approx(expected.mean())


def test_adafocal_needs_a_held_out_split():
    with pytest.raises(ValueError, match="held-out"): AdaFocal().epoch_end(memory(AdaFocal(), Setting(3, 5))["AdaFocal"], torch.zeros(0, 3), torch.zeros(0).long())


@pytest.mark.parametrize("make", [lambda: MMCE(beta=-1), lambda: MMCE(normalise="papr"), lambda: CPC(bdc=-1), lambda: MbLS(lam=-1), lambda: MbLS(margin=-1),
                                  lambda: CRL(weight=-1), lambda: CRL(confidence="maximum"), lambda: PSKD(alpha=2), lambda: AdaFocal(lam=0), lambda: AdaFocal(bins=0)])
def test_bad_hyper_parameters_get_a_sentence(make):
    with pytest.raises(ValueError) as error: make()
    assert len(str(error.value)) > 20 and "\n" not in str(error.value)


# gradients where p rounds to 1

def slopes(loss, dtype):
    "Gradients of a loss for logit gaps from 0 to 200, label ahead"
    lead = torch.linspace(0, 200, 401).to(dtype).requires_grad_()
    z = torch.stack([lead, torch.zeros_like(lead), torch.zeros_like(lead)], 1)
    return torch.autograd.grad(loss(z, torch.zeros(401, dtype=torch.int64)) * 401, lead)[0].double()


@pytest.mark.parametrize("gamma", [.01, .2, .5, .99, 1., 3.])
def test_focal_gradients_are_finite_and_those_of_float64(gamma):
    each = torch.full((401,), gamma)
    for loss in (lambda z, y: focal(z, y, gamma), lambda z, y: adaptive_focal(z, y, each.to(z))):
        single, double = slopes(loss, torch.float32), slopes(loss, torch.float64)
        assert single.isfinite().all() and double.isfinite().all()
        torch.testing.assert_close(single, double, rtol=2e-3, atol=2e-7)


def test_adafocal_lives_on_where_the_training_used_to_die():
    "A network that is sure of each label, in a bin whose exponent lies between 0 and 1"
    z = (F.one_hot(torch.arange(8), 8) * 30.).requires_grad_()
    state = memory(AdaFocal(), Setting(8, 8))
    state["AdaFocal"].gamma.fill_(.3)
    seen = Seen(Output(z), Batch(torch.zeros(8, 1, 1, 1), torch.arange(8), torch.arange(8)), state=state)
    grad, = torch.autograd.grad(AdaFocal().loss(seen), z)
    assert grad.isfinite().all()


# temperature

def nll_at(z, y, T): return F.cross_entropy(z.double() / T, y).item()


@pytest.mark.parametrize("factor", [1e-3, .02, 1., 3., 50., 1e3])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_fitted_temperature_is_the_minimum_of_a_dense_grid(classes, factor):
    from scipy.optimize import minimize_scalar
    g = torch.Generator().manual_seed(classes)
    true = 2 * torch.randn(400, classes, generator=g, dtype=torch.float64)
    y = torch.multinomial(true.softmax(1), 1, generator=g)[:, 0]
    z, grid = factor * true, np.geomspace(1e-4, 1e4, 400)
    best = grid[int(np.argmin([nll_at(z, y, T) for T in grid]))]
    theirs = minimize_scalar(lambda u: nll_at(z, y, math.exp(u)), bounds=(math.log(best) - .1, math.log(best) + .1), method="bounded", options={"xatol": 1e-10}).x
    T = fit_temperature(z, y)
    assert T == pytest.approx(math.exp(theirs), rel=1e-6)
    beta = torch.tensor(1 / T, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(F.cross_entropy(z * beta, y), beta)
    assert abs(slope.item()) < 1e-12 * factor


def test_a_temperature_without_a_finite_optimum_is_an_end_of_the_range():
    z, y = drawn(0)
    assert fit_temperature(z, z.argmax(1)) == 1e-4 and fit_temperature(z, z.argmin(1)) == 1e4
    assert fit_temperature(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype_fit_a_temperature(dtype):
    z, y = drawn(5)
    assert fit_temperature(z.float(), y.to(dtype)) == fit_temperature(z.float(), y)


Z, Y, CONF_OK = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]), torch.rand(6)


@pytest.mark.parametrize("call, words", [
    (lambda: fit_temperature(torch.full((6, 4), math.nan), Y), ["nan or inf"]),
    (lambda: fit_temperature(torch.full((6, 4), math.inf), Y), ["nan or inf"]),
    (lambda: fit_temperature(Z, Y.float()), ["float32", "int64"]),
    (lambda: fit_temperature(Z, Y > 1), ["bool", "int64"]),
    (lambda: fit_temperature(Z, Y + 1), ["1..4", "0..3"]),
    (lambda: fit_temperature(Z, Y[:5]), ["(6, 4)", "(5,)"]),
    (lambda: fit_temperature(Z[:0], Y[:0]), ["empty split"]),
    *[(lambda f=f: f(Z[0], Y), ["(4,)", "(B, C)"]) for f in (label_smoothing, focal, mdca, cpc)],
    *[(lambda f=f: f(Z, Y[:5]), ["(6, 4)", "(5,)"]) for f in (label_smoothing, focal, mdca, cpc)],
    *[(lambda f=f: f(Z, F.one_hot(Y, 4)), ["(6, 4)", "(B,)"]) for f in (label_smoothing, focal, mdca, cpc)],
    *[(lambda f=f: f(Z, Y.int()), ["int32", "int64"]) for f in (label_smoothing, focal, mdca, cpc)],
    *[(lambda f=f: f(Z.long(), Y), ["int64", "floating"]) for f in (label_smoothing, focal, mdca, cpc)],
    (lambda: label_smoothing(Z, Y, 1.), ["eps is 1.0", "[0, 1)"]),
    (lambda: focal(Z, Y, -1.), ["gamma is -1.0"]),
    (lambda: adaptive_focal(Z, Y, torch.ones(5)), ["gamma (5,)", "labels (6,)"]),
    (lambda: mmce_unweighted(CONF_OK, Y[:5] == 0), ["conf (6,)", "correct (5,)"]),
    (lambda: mmce_weighted(CONF_OK, Y), ["int64", "torch.bool"]),
    (lambda: mmce_weighted(CONF_OK, Y == 0, "papr"), ["'papr'", "'paper'"]),
    (lambda: margin_penalty(Z[0]), ["(4,)", "(B, C)"]),
    (lambda: margin_penalty(Z, -1.), ["margin -1.0"]),
    (lambda: correctness_ranking(CONF_OK, CONF_OK[:5]), ["(6,)", "(5,)"]),
    (lambda: soft_cross_entropy(Z, Y), ["(6, 4)", "(6,)"]),
])
def test_bad_input_of_a_free_function_gets_a_sentence(call, words):
    with pytest.raises(ValueError) as error: call()
    assert all(w in str(error.value) for w in words) and "\n" not in str(error.value), error.value
