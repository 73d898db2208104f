"The KD loss against arithmetic with 50 digits, at any temperature, and what it refuses"
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from calibkd.distillers import kd, KD

mp = pytest.importorskip("mpmath")


def pair(scale=3., dtype=torch.float32, B=4, C=10):
    g = torch.Generator().manual_seed(0)
    return [(scale * torch.randn(B, C, generator=g)).to(dtype) for _ in range(2)]


def exact(student, teacher, T):
    "T² · KL(teacher ‖ student), and its gradient by the student's logits, as their formulas read"
    with mp.workdps(80):
        T, total, slope = mp.mpf(T), mp.mpf(0), []
        for s, t in zip(student.tolist(), teacher.tolist()):
            p, q = ([mp.e ** (mp.mpf(z) / T) for z in row] for row in (t, s))
            p, q = ([x / sum(row) for x in row] for row in (p, q))
            total += T * T * sum(a * mp.log(a / b) for a, b in zip(p, q)) / len(student)
            slope.append([float(T * (b - a) / len(student)) for a, b in zip(p, q)])
    return float(total), torch.tensor(slope, dtype=torch.float64)


@pytest.mark.parametrize("T", [.5, 1, 2, 4, 20, 100, 100.5, 1e3, 1e5, 1e8, 1e15, 1e200])
@pytest.mark.parametrize("scale", [1., 30.])
def test_exact_at_any_temperature(T, scale):
    student, teacher = pair(scale)
    if T > 1e100: value, slope = exact(student, teacher, 1e30)  # 80 digits do not reach further; the limit is as good
    else: value, slope = exact(student, teacher, T)
    for dtype, eps in ((torch.float32, 6e-8), (torch.float64, 1.1e-16)):
        s = student.to(dtype).requires_grad_()
        loss = kd(s, teacher.to(dtype), T)
        lost = 4 * T * T * eps if T <= 100 else 0  # the plain formula magnifies rounding by T²
        assert loss.item() == pytest.approx(value, rel=8 * eps, abs=lost)
        grad, = torch.autograd.grad(loss, s)
        assert (grad.double() - slope).abs().max() <= (64 * eps + (T if T <= 100 else 0) * eps) * slope.abs().max()


def test_up_to_a_hundred_the_bits_are_those_of_the_formula():
    student, teacher = pair()
    for T in (1., 2., 4., 20., 100.):
        plain = T * T * F.kl_div((student / T).log_softmax(1), (teacher / T).log_softmax(1), reduction="batchmean", log_target=True)
        assert torch.equal(kd(student, teacher, T), plain)


def test_far_logits_above_a_hundred():
    student, teacher = pair(300.)
    for T in (150., 1e3): assert kd(student, teacher, T).item() == pytest.approx(exact(student, teacher, T)[0], rel=1e-6)


def test_any_real_number_is_a_temperature():
    student, teacher = pair()
    for T in (4, np.float32(4), np.float64(4), np.int64(4)): assert torch.equal(kd(student, teacher, T), kd(student, teacher, 4.))


S, T_LOGITS = pair()


@pytest.mark.parametrize("change, words", [
    *[(dict(T=T), ["T must be positive", str(T)]) for T in (0, -1., math.inf, math.nan, "4", None, True)],
    (dict(reduction="batchmeen"), ["'batchmeen'", "did you mean 'batchmean'"]),
    (dict(reduction="mean"), ["'mean'", "classmean"]),
    (dict(teacher_logits=T_LOGITS[:, :5]), ["(4, 10)", "(4, 5)"]),
    (dict(teacher_logits=T_LOGITS[:1]), ["(4, 10)", "(1, 10)"]),
    (dict(student_logits=S[0], teacher_logits=S[0]), ["(10,)", "(B, C)"]),
    (dict(student_logits=S[None], teacher_logits=S[None]), ["(1, 4, 10)", "(B, C)"]),
    (dict(teacher_logits=T_LOGITS.long()), ["torch.int64", "floating"]),
    (dict(student_logits=S.bool()), ["torch.bool", "floating"]),
])
def test_bad_input_gets_a_sentence(change, words):
    with pytest.raises(ValueError) as error: kd(**dict(student_logits=S, teacher_logits=T_LOGITS) | change)
    assert all(w in str(error.value) for w in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("T", [0, -1., math.inf, math.nan, "4"])
def test_the_dataclass_refuses_the_same_temperatures(T):
    with pytest.raises(ValueError, match="T must be positive"): KD(T=T)
