"The binary setting of KD(C)'s proofs against SciPy, NumPy, automatic differentiation and the statements themselves."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import brentq, minimize
from scipy.special import expit
from torch.testing import assert_close

from calibkd.distillers import kd
from calibkd.metrics import ece
from calibkd.theory import (Binary, balance, binary, closed_form, compare, descend, gap, gradient, in_span, kd_gradient, kd_loss, least_norm,
                            residual, sigmoid_difference, student, student_logits, total_loss, two_class)

settings.register_profile("shared", deadline=None, derandomize=True)  # timings mean nothing on shared cores
settings.load_profile("shared")
logits = st.floats(-30, 30)
temperatures = st.floats(.2, 1e4)
weights = st.floats(.01, 1)


def tensor(*values): return torch.tensor(values, dtype=torch.float64)


@given(logits, logits)
def test_sigmoid_difference_keeps_its_digits(a, b):
    import mpmath
    mpmath.mp.dps = 400
    exact = 1 / (1 + mpmath.exp(-mpmath.mpf(a))) - 1 / (1 + mpmath.exp(-mpmath.mpf(b)))
    assert float(sigmoid_difference(tensor(a), tensor(b))) == pytest.approx(float(exact), rel=1e-12, abs=1e-300)


@given(logits, logits, st.floats(.5, 100))
def test_lemma_2_is_the_derivative_at_every_temperature(s, t, T):
    assert_close(kd_gradient(tensor(s), tensor(t), T), gradient(lambda z: kd_loss(z, tensor(t), T), tensor(s)), rtol=1e-6, atol=1e-6)


def test_the_limit_is_a_quarter_of_the_logits_difference_and_not_that_of_the_probabilities():
    s, t = tensor(1.3), tensor(-.4)
    assert_close(kd_gradient(s, t, 1000.), tensor(.4250), rtol=1e-4, atol=0)
    assert float(kd_gradient(s, t, 1.)) == pytest.approx(.3845, abs=5e-5) == expit(1.3) - expit(-.4)
    errors = [abs(float(kd_gradient(s, t, T)) - .425) for T in (10., 100., 1000.)]
    assert errors[0] / errors[1] == pytest.approx(100, rel=.02) and errors[1] / errors[2] == pytest.approx(100, rel=.02)  # 1 / T²


@pytest.mark.parametrize("classes", [2, 7])
def test_many_classes_tend_to_centred_logits(classes):
    s, t = torch.randn(2, 9, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    centred = (s - t) - (s - t).mean(1, keepdim=True)
    assert_close(gradient(lambda z: kd(z, t, 1e4), s), centred / (9 * classes), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("T", [1., 4., 50.])
def test_lemma_3(T):
    b, rng = binary(seed=1), torch.Generator().manual_seed(9)
    w = 2 * torch.randn(200, generator=rng, dtype=torch.float64)
    true = gradient(lambda w: total_loss(b.X.T @ w, b.z_t, b.labels, T, .7), w)
    paper = b.X @ (torch.sigmoid(b.X.T @ w) - (.7 * torch.sigmoid(b.z_t) + .3 * b.labels))
    assert_close(in_span(b.X, true), true)
    assert (compare(paper, true)["error"] < 1e-12) == (T == 1)
    assert_close(b.X @ residual(b.X.T @ w, b.z_t, b.labels, T, .7), true)


@given(logits, st.sampled_from([0., 1.]), temperatures, weights)
@settings(max_examples=60)
def test_the_exact_student_is_scipys_root(t, y, T, alpha):
    f = lambda z: (1 - alpha) * (expit(z) - y) + alpha * T * (expit(z / T) - expit(t / T))
    found = float(student_logits(tensor(t), tensor(y), T, alpha))
    root = brentq(f, min(t, -2e4) - 1, max(t, 2e4) + 1, xtol=1e-12, rtol=1e-14) if f(-2e4) < 0 < f(2e4) else None
    assert (found - t) * (2 * y - 1) >= -1e-9  # never away from the label
    if root is not None: assert found == pytest.approx(root, rel=1e-4, abs=1e-4) or abs(f(found)) <= abs(f(root)) + 1e-13


@given(st.lists(logits, min_size=1, max_size=20), weights, st.randoms())
def test_at_temperature_1_the_sum_is_a_mixture(z, alpha, random):
    z, y = tensor(*z), tensor(*(random.choice([0., 1.]) for _ in z))
    s = student_logits(z, y, 1., alpha)
    assert_close(torch.sigmoid(s), alpha * torch.sigmoid(z) + (1 - alpha) * y, rtol=0, atol=1e-12)
    assert gap(s, y) == pytest.approx(alpha * gap(z, y), abs=1e-10)


def test_alpha_1_copies_the_teacher_and_signs_do_not_matter():
    z, y = tensor(-3., 0., 8.), tensor(1., 0., 0.)
    assert_close(student_logits(z, y, 4., 1.), z)
    assert_close(student_logits(-z, 1 - y, 4., .3), -student_logits(z, y, 4., .3))


@pytest.mark.parametrize("T, alpha", [(1., .9), (4., .5)])
def test_scipy_and_gradient_descent_find_the_same_weights(T, alpha):
    b = binary(60, 12, 1., seed=4)
    def loss(w):
        w = torch.from_numpy(w)
        return float(total_loss(b.X.T @ w, b.z_t, b.labels, T, alpha)), (b.X @ residual(b.X.T @ w, b.z_t, b.labels, T, alpha)).numpy()
    scipys = torch.from_numpy(minimize(loss, np.zeros(60), jac=True, method="L-BFGS-B", options=dict(maxiter=5000, ftol=0, gtol=1e-10)).x)
    exact = student(b, T, alpha)
    assert_close(scipys, exact, rtol=1e-5, atol=1e-6)
    assert_close(descend(b, T, alpha, 5000), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("T", [1., 4., 20., 100.])
@pytest.mark.parametrize("std", [.1, .5])
@pytest.mark.parametrize("alpha", [.9, .99])
def test_theorem_1_holds_for_a_strong_teacher_and_small_logits(T, std, alpha):
    for seed in range(4):
        b = binary(200, 40, std, seed=seed)
        score = compare(closed_form(b, alpha), student(b, T, alpha))
        assert score["cosine"] > .999 and score["error"] < .05


TABLE = {  # std, alpha: relative errors at T = 1, 4, 100 of one draw by an independent implementation; how it drew its labels is not known
    (.1, .5): (.090, .044, .041), (.1, .9): (.006, .001, .001), (.5, .5): (.126, .060, .056), (.5, .9): (.027, .007, .006),
    (1., .5): (.219, .110, .105), (1., .9): (.114, .018, .019), (2., .5): (.316, .221, .219), (2., .9): (.123, .043, .044),
    (2., .99): (.019, .004, .004)}


def mean_error(std, alpha, T, truth):
    draws = [binary(200, 40, std, truth=truth, seed=seed) for seed in range(4)]
    return np.mean([compare(closed_form(b, alpha), student(b, T, alpha))["error"] for b in draws])


@pytest.mark.parametrize("setting", TABLE, ids=str)
def test_theorem_1_errs_as_much_as_it_should(setting):
    "Labels from the teacher (truth 1) and from a fair coin (truth 0) are the two ends; half as much again is left to the draw"
    for T, expected in zip((1., 4., 100.), TABLE[setting]):
        ends = [mean_error(*setting, T, truth) for truth in (0., 1.)]
        assert min(ends) / 1.5 - 5e-4 < expected < max(ends) * 1.5 + 5e-4


def test_theorem_1_outside_the_span():
    b = binary(seed=2, std=.3, outside=2.)
    seen = Binary(b.X, in_span(b.X, b.w_t), b.labels)
    ours, found = closed_form(b, .9), descend(b, 20., .9, 500)
    shortest = least_norm(b.X, .9 * b.z_t + .4 * (b.labels - .5))
    assert_close(b.X.T @ shortest, b.X.T @ ours)
    assert shortest.norm() < .6 * ours.norm() and compare(ours, found)["error"] > 1
    assert compare(closed_form(seen, .9), found)["error"] < .01
    assert compare(ours, descend(b, 20., .9, 500, start=.9 * b.w_t))["error"] < .01
    numpys = np.linalg.lstsq(b.X.T.numpy(), (b.X.T @ ours).numpy(), rcond=None)[0]
    assert_close(shortest, torch.from_numpy(numpys))


def population(mean, n=4000):
    rng = torch.Generator().manual_seed(0)
    z = mean + torch.randn(n, generator=rng, dtype=torch.float64)
    return z, (torch.rand(n, generator=rng, dtype=torch.float64) < torch.sigmoid(z)).double()


def test_theorem_2_is_exact_at_temperature_1_only():
    z, y = population(1.5)
    z = z + balance(z, y.sum())
    assert abs(gap(z, y)) < 1e-8
    assert abs(gap(student_logits(z, y, 1., .5), y)) < 1e-8
    assert gap(student_logits(z, y, 4., .5), y) / len(y) < -.005
    student_balanced = brentq(lambda shift: gap(student_logits(z + shift, y, 4., .5), y), -2, 2)
    assert abs(gap(z + student_balanced, y)) / len(y) > .005  # an uncalibrated teacher of a calibrated student


def test_calibrated_in_the_large_is_not_calibrated():
    z, y = population(0.)
    sure = 3 * z + balance(3 * z, y.sum())
    for logits in (sure, student_logits(sure, y, 1., .99)):
        assert abs(gap(logits, y)) < 1e-8 and ece(probs=two_class(logits), labels=y.long()) > .1
    assert ece(probs=two_class(z), labels=y.long()) < .03


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.floats(.01, .99))
def test_balance(z, share):
    z = tensor(*z)
    assert float(torch.sigmoid(z + balance(z, share * len(z))).sum()) == pytest.approx(share * len(z), rel=1e-9)


@pytest.mark.parametrize("call, words", [
    (lambda: student_logits(tensor(1.), tensor(1.), 0.), "T=0.0"), (lambda: student_logits(tensor(1.), tensor(1.), 1., 0.), "alpha=0.0"),
    (lambda: student_logits(tensor(1.), tensor(.5)), "0 and 1"), (lambda: binary(10, 20), "n=20, d=10"), (lambda: balance(tensor(1.), 2), "total=2")])
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words): call()


def test_the_same_seed_is_the_same_setting():
    assert torch.equal(binary(seed=5).X, binary(seed=5).X) and not torch.equal(binary(seed=5).X, binary(seed=6).X)
    assert_close(binary(seed=5, outside=3.).z_t, binary(seed=5).z_t)
