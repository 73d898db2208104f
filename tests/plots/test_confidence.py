"Accuracy against confidence, by groups: against loops, exact expectations and a simulation."
import numpy as np
import pytest
import torch

from calibkd.metrics import overconfidence, top1
from calibkd.plots import GROUPS, accuracy_confidence_data, squared_distance


def drawn(seed, n=3000, C=12):
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, C, generator=g, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=g).squeeze(1)


@pytest.mark.parametrize("by", GROUPS)
def test_groups_against_a_loop(by):
    logits, labels = drawn(0)
    conf, pred = (t.numpy() for t in logits.softmax(1).max(1))
    order = np.random.default_rng(7).permutation(3000)
    members = {"class": [np.flatnonzero(labels == c) for c in range(12)], "predicted": [np.flatnonzero(pred == c) for c in range(12)],
               "batch": np.split(order, range(250, 3000, 250))}[by]
    found = accuracy_confidence_data(logits, labels, by=by, batch=250, seed=7)
    assert found.n.tolist() == [len(m) for m in members] and found.index.name == by
    np.testing.assert_allclose(found.conf, [conf[m].mean() for m in members])
    np.testing.assert_allclose(found.acc, [(pred == labels.numpy())[m].mean() for m in members])
    by_hand = np.mean([(conf[m].mean() - h) ** 2 - h * (1 - h) / len(m) for m in members if [h := (pred == labels.numpy())[m].mean()]])
    assert squared_distance(found) == pytest.approx(by_hand)


@pytest.mark.parametrize("by", GROUPS)
def test_the_groups_together_are_the_whole(by):
    logits, labels = drawn(1)
    found = accuracy_confidence_data(logits, labels, by=by, batch=100)
    assert np.average(found.acc, weights=found.n) == pytest.approx(top1(logits, labels))
    assert np.average(found.conf - found.acc, weights=found.n) == pytest.approx(overconfidence(logits, labels))
    assert (len(accuracy_confidence_data(logits, labels, by=by, batch=700)), found.n.sum()) == (4 if by == "batch" else 12, 3000)


def test_a_class_that_nobody_meets_is_no_point():
    logits, labels = drawn(2)
    keep = labels != 3
    assert 3 not in accuracy_confidence_data(logits[keep], labels[keep]).index


def test_the_noise_is_exact_for_one_group_of_equal_confidence():
    "E[D²] = (c − p)² + p(1 − p)/n² by the binomial moments: only the variance of an estimate of p(1 − p) is left"
    n, c, p = 6, .8, .65
    logits = torch.tensor([c, 1 - c], dtype=torch.float64).log().repeat(n, 1)
    total = 0.
    for bits in range(2 ** n):
        labels = torch.tensor([bits >> i & 1 for i in range(n)])
        wrong = int(labels.sum())
        total += p ** (n - wrong) * (1 - p) ** wrong * squared_distance(accuracy_confidence_data(logits, labels, by="predicted"))
    assert total == pytest.approx((c - p) ** 2 + p * (1 - p) / n ** 2)


def test_mini_batches_depend_on_the_seed_alone():
    logits, labels = drawn(3)
    data = lambda seed: accuracy_confidence_data(logits, labels, by="batch", seed=seed)
    assert data(1).equals(data(1)) and not data(1).equals(data(2))


def test_a_calibrated_network_is_on_the_diagonal_by_prediction():
    "And further off the more its confidences are spoilt"
    logits, labels = drawn(4, n=60_000)
    at = lambda T: squared_distance(accuracy_confidence_data(logits / T, labels, by="predicted"))
    assert abs(at(1.)) < 1e-4 < 1e-3 < at(.7) < at(.5) and at(1.5) > 1e-3
