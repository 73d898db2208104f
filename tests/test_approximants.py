"""Padé and Taylor approximants of the exponential against SciPy, closed forms and properties."""
from fractions import Fraction
from math import exp, factorial

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.interpolate import approximate_taylor_polynomial
from scipy.interpolate import pade as scipy_pade

from calibkd.approximants import (approximant, better_range, error, pade, pade_coefficients, poles, taylor,
                                  taylor_coefficients)

settings.register_profile("shared", deadline=None, derandomize=True)  # timings mean nothing on shared cores
settings.load_profile("shared")
orders = st.integers(0, 6)
reals = st.floats(-4, 4)


@given(orders, orders)
@settings(max_examples=40)
def test_coefficients_agree_with_scipys_linear_system(m, n):
    series = [1 / factorial(k) for k in range(m + n + 1)]
    p, q = scipy_pade(series, n, m)
    ours_p, ours_q = (np.array(c, dtype=float) for c in pade_coefficients(m, n))
    x = np.linspace(-1, 1, 9)
    np.testing.assert_allclose(np.polyval(ours_p[::-1], x), p(x), rtol=1e-6)
    np.testing.assert_allclose(np.polyval(ours_q[::-1], x), q(x), rtol=1e-6)


@given(orders, orders)
def test_series_agrees_to_the_promised_order_and_no_further(m, n):
    P, Q = pade_coefficients(m, n)
    residue = [sum(q * Fraction(1, factorial(k - j)) for j, q in enumerate(Q) if j <= k) - (P[k] if k <= m else 0)
               for k in range(m + n + 2)]
    assert not any(residue[:-1]) and residue[-1] != 0


@given(orders, orders, reals)
def test_reciprocal_symmetry(m, n, x):
    """1 / [m/n](x) = [n/m](-x), as 1 / exp(x) = exp(-x)."""
    P, Q = pade_coefficients(m, n)
    flipped = pade_coefficients(n, m)
    assert [c * (-1) ** k for k, c in enumerate(P)] == flipped[1] and [c * (-1) ** k for k, c in enumerate(Q)] == flipped[0]
    value, inverse = pade(x, m, n), pade(-x, n, m)
    if 1e-3 < abs(value) < 1e3:
        torch.testing.assert_close(value * inverse, torch.ones((), dtype=torch.float64), rtol=1e-8, atol=0)


@given(orders, reals)
def test_taylor_is_the_partial_sum(order, x):
    assert taylor(x, order).item() == pytest.approx(sum(x ** k / factorial(k) for k in range(order + 1)), rel=1e-9, abs=1e-9)
    torch.testing.assert_close(taylor(x, order), pade(x, order, 0), rtol=0, atol=0)


def test_taylor_agrees_with_scipy():
    polynomial = approximate_taylor_polynomial(np.exp, 0, 4, 1, order=8)
    np.testing.assert_allclose([float(c) for c in taylor_coefficients(4)], polynomial.coef[::-1], rtol=1e-4)


@pytest.mark.parametrize("x, closest", [(-2, (.135, 1.135, .865)), (-1, (.034, .368, .132)), (.5, (.018, .149, .024)),
                                        (1, (.282, .718, .218)), (1.5, (2.52, 1.98, .857))])
def test_known_errors(x, closest):
    found = [error(x, order).abs().item() for order in ((1, 1), 1, 2)]
    assert found == pytest.approx([abs((1 + x / 2) / (1 - x / 2) - exp(x)), abs(1 + x - exp(x)), abs(1 + x + x * x / 2 - exp(x))])
    assert found == pytest.approx(closest, rel=5e-3, abs=1e-3)


@pytest.mark.parametrize("rival, crossing", [(2, .781), (1, 1.410)])
def test_range_of_pade_11(rival, crossing):
    low, high = better_range((1, 1), rival)
    assert low == -6 and high == pytest.approx(crossing, abs=1e-3)
    for x in (-6, -1, -.01, .01, high - 1e-6):
        assert error(x, (1, 1)).abs() < error(x, rival).abs()
    assert error(high + 1e-6, (1, 1)).abs() > error(high + 1e-6, rival).abs()


@pytest.mark.parametrize("a, b", [((2, 2), (1, 1)), (4, 3), ((0, 1), 1), ((2, 1), (1, 2))])
def test_range_edges_are_where_the_errors_cross(a, b):
    ends = better_range(a, b, -3, 3)
    for x, limit in zip(ends, (-3, 3)):
        assert x in (0, limit) or error(x, a).abs().item() == pytest.approx(error(x, b).abs().item(), rel=1e-6)
    inside = torch.linspace(*ends, 100, dtype=torch.float64)[1:-1]
    assert (error(inside, a).abs() < error(inside, b).abs()).all() or ends == (0, 0)


@pytest.mark.parametrize("better, worse", [((4, 4), (3, 3)), ((5, 5), (4, 4)), (9, 8)])
def test_rounding_near_zero_does_not_decide(better, worse):
    """Close to 0 both errors drown in rounding; which is better shows further out."""
    low, high = better_range(better, worse, -2, 2)
    assert (low, high) == (-2, 2) and better_range(worse, better, -2, 2) == (0, 0)


def test_nothing_is_better_than_itself():
    assert better_range((2, 1), (2, 1)) == (0, 0)


@pytest.mark.parametrize("m, n", [(1, 1), (0, 3), (2, 4), (5, 2)])
def test_poles_are_where_the_denominator_vanishes(m, n):
    found, denominator = poles(m, n), [float(c) for c in pade_coefficients(m, n)[1]]
    assert len(found) == n and (found.abs().diff() >= -1e-9).all()
    np.testing.assert_allclose(np.polyval(denominator[::-1], found.numpy()), 0, atol=1e-9)


def test_no_poles_without_a_denominator():
    assert len(poles(4, 0)) == 0


@given(st.floats(-1.99, 50))
def test_sigmoid_with_pade_is_its_first_order_taylor(z):
    assert (1 / (1 + pade(-z, 1, 1))).item() == pytest.approx(.5 + z / 4, rel=1e-9)


@pytest.mark.parametrize("order", [3, (2, 2)])
def test_gradients_flow(order):
    x = torch.tensor([.1, -.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(approximant(order), (x,))


def test_shape_and_dtype():
    for value in (taylor(torch.zeros(2, 3), 2), pade(torch.zeros(2, 3), 1, 1), error(torch.zeros(2, 3, dtype=torch.int64), 1)):
        assert value.shape == (2, 3) and value.dtype == torch.float64
    assert taylor(0., 5) == 1 and pade(0., 3, 2) == 1


@pytest.mark.parametrize("call, word", [(lambda: taylor(1., -1), "order=-1"), (lambda: pade(1., 1.5, 1), "m=1.5"),
                                        (lambda: pade(1., 1, "2"), "n='2'"), (lambda: better_range(low=1.), "low=1.0")])
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word.replace(".", r"\.")):
        call()
