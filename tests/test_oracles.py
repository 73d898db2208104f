"Teachers made from the posterior: calibrated whatever their distance, put where one wants them, the same alone and in a stack."
import pytest
import torch
from torch.nn import functional as F

from calibkd.metrics import measure
from calibkd.mixtures import gaussian_mixture
from calibkd.oracles import SPOILT, oracle, oracle_at, permuted_within
from calibkd.toys import fit_stack, stack_logits

MIXTURE = gaussian_mixture(6, 4, bayes=.75)
X, LABELS = MIXTURE.sample(4000, 8)
Q = MIXTURE.posterior(X)


def numbers(log_p): return measure(["true_ece", "posterior_gap"], log_p, LABELS, Q)


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("sd", [.05, .3, 1.])
def test_a_spoilt_posterior_is_calibrated_and_a_temperature_below_1_makes_it_overconfident(kind, sd):
    found, sharp = numbers(oracle(MIXTURE, X, kind, sd)), numbers(oracle(MIXTURE, X, kind, sd, .5))
    assert found["true_ece"] < .02 and found["posterior_gap"] > found["true_ece"] and sharp["true_ece"] > found["true_ece"] + .05


def test_no_noise_is_the_posterior_and_a_doubtful_one_keeps_its_best_class_and_proportions():
    for kind in SPOILT: torch.testing.assert_close(oracle(MIXTURE, X, kind, 0.).exp(), Q, atol=1e-9, rtol=0)
    p = oracle(MIXTURE, X, "confidence", 1.).exp()
    assert (p.argmax(1) == Q.argmax(1)).double().mean() > .99
    first, second, third = Q.argsort(1, descending=True)[:, :3].T
    ratio = lambda v: v.gather(1, third[:, None]) / v.gather(1, second[:, None])
    plain = (Q.gather(1, third[:, None]) > 1e-6)[:, 0]
    torch.testing.assert_close(ratio(p)[plain], ratio(Q)[plain])


def test_answers_depend_on_seed_and_place_alone_and_are_finite_far_from_the_data():
    for kind in SPOILT:
        one, again, other = (oracle(MIXTURE, X, kind, .5, seed=s) for s in (1, 1, 2))
        assert torch.equal(one, again) and not torch.allclose(one, other)
        assert oracle(MIXTURE, 1e3 * X[:50], kind, .5, .3).isfinite().all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="posterior gap of 0.05: the gap must lie above the error"): oracle_at(MIXTURE, "sight", .1, .05, 500)
    with pytest.raises(ValueError, match="no teacher with confidence spoilt"): oracle_at(MIXTURE, "confidence", .02, .6, 500)
    with pytest.raises(ValueError, match="sight"): oracle(MIXTURE, X, "sigt", 1.)


def test_permuted_answers_have_the_mean_of_each_class_and_no_sample_keeps_its_own():
    place = permuted_within(LABELS, 3)
    assert torch.equal(LABELS[place], LABELS) and (place != torch.arange(4000)).all()
    for c in range(6): torch.testing.assert_close(Q[place][LABELS == c].mean(0), Q[LABELS == c].mean(0))


def test_a_student_of_stored_answers_is_the_same_alone_and_beside_others():
    x, labels = X[:150].float(), LABELS[:150]
    answers = [oracle(MIXTURE, X[:150], kind, .3, .7).exp().float() for kind in SPOILT]
    targets = torch.stack([F.one_hot(labels, 6).float(), *answers, answers[0][permuted_within(labels)]])
    say = lambda which: stack_logits(fit_stack(x, targets, which, [5] * len(which), (16,), epochs=3), x)
    together = say([0, 1, 2, 3])
    for i in range(4): torch.testing.assert_close(say([i])[0], together[i], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(say([2, 0])[0], together[2], atol=1e-5, rtol=1e-5)
