"The KD loss against arithmetic with 50 digits, at any temperature, and what it refuses; DIST and DKD against published code"
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from calibkd.distillers import DIST, DKD, KD, dist, dkd, kd
from calibkd.objectives import Batch, Output, Seen
from calibkd.runs import Recipe, Run
from calibkd.sweep import traits

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


# published code, run on these tensors in float64: the value, the first row of the gradient by the student's logits, its length

def published():
    g = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 5, generator=g, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.tensor([0, 1, 2, 3, 4, 0])


PUBLISHED = {
    "dist": (lambda s, t, y: dist(s, t),  # dist_kd.py of hunto/DIST_KD, on logits divided by 4, times 4²
             37.03240592661323, [-.215464832598, .097976462515, .240096841003, .18997381021, -.31258228113], 1.3970830639152385),
    "dkd": (lambda s, t, y: dkd(s, t, y),  # DKD.py of megvii-research/mdistiller: alpha 1, beta 8, temperature 4
            82.20779052203508, [-.100539721763, .219568528038, .546363779257, 2.097122467952, -2.762515053484], 7.793116045099555)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name):
    loss, value, first, length = PUBLISHED[name]
    student, teacher, labels = published()
    found = loss(student, teacher, labels)
    grad, = torch.autograd.grad(found, student)
    assert found.item() == pytest.approx(value, rel=1e-9) and grad.norm().item() == pytest.approx(length, rel=1e-9)
    assert grad[0].tolist() == pytest.approx(first, abs=1e-9)


def test_dkd_of_a_certain_teacher_is_finite():
    "Where the published code takes the logarithm of a probability that has become 0"
    student, teacher, labels = (300 * pair()[0]).requires_grad_(), 300 * pair()[1], torch.arange(4)
    loss = dkd(student, teacher, labels, 1.)
    assert loss.isfinite() and torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize("call, words", [
    (lambda: dist(S[:1], T_LOGITS[:1]), ["(1, 10)", "two samples"]), (lambda: dist(S, T_LOGITS[:, :5]), ["(4, 10)", "(4, 5)"]),
    (lambda: dist(S, T_LOGITS, T=0), ["T must be positive"]), (lambda: DIST(T=0), ["T must be positive"]),
    (lambda: dkd(S, T_LOGITS, torch.arange(3)), ["labels (3,)", "(4, 10)"]), (lambda: dkd(S, T_LOGITS, torch.ones(4)), ["torch.float32", "torch.int64"]),
    (lambda: DKD(warmup=20), ["warmup", "share", "20"]), (lambda: KD(mixed=-1.), ["mixed", "-1"]), (lambda: KD(squared=2), ["squared", "2"]),
])
def test_the_others_refuse_in_a_sentence(call, words):
    with pytest.raises(ValueError) as error: call()
    assert all(w in str(error.value) for w in words) and "\n" not in str(error.value)


def seen(labels_b=None):
    batch = Batch(torch.zeros(4, 1, 1, 1), torch.arange(4), torch.arange(4), labels_b=labels_b)
    return Seen(Output(S), batch, Output(T_LOGITS))


def test_the_factor_is_for_mixed_batches():
    twice, mixed = KD(alpha=1., mixed=2.), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(twice.loss(seen(mixed)), 2 * kd(S, T_LOGITS)) and torch.equal(twice.loss(seen()), kd(S, T_LOGITS))
    shared = replace(seen(mixed), teacher=None, clean=seen())  # the term sees the unmixed images, the factor is that of the mixed ones
    assert torch.equal(replace(twice, clean=True).loss(shared), 2 * kd(S, T_LOGITS))


def test_what_leaves_kd_as_it_was_leaves_its_identity():
    from calibkd.data import Dataset
    data = Dataset("digits", train=200)
    run = lambda o: Run(data, "resnet8", o, Recipe(epochs=1), teacher=Run(data, "resnet14", recipe=Recipe(epochs=1)))
    assert run(KD(squared=True, mixed=1)).id == run(KD()).id not in (run(KD(squared=False)).id, run(KD(mixed=2)).id)
    assert not {"squared", "mixed"} & traits(run(KD())).keys() and traits(run(KD(squared=False, mixed=2)))["mixed"] == 2
