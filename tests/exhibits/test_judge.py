"The judge against simulation: its level, its power, how many seeds it says are needed, and what it refuses."
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from calibkd.exhibits.judge import (LEVEL, NOT_RUN, Estimate, Verdict, both, estimate, every, factor, k_of_n, more, most, not_worse,
                                    partial_rank, pooled, rank, same, spread)

DRAWS = 10_000


def verdicts(rule, data):
    return np.array([rule(row).verdict for row in data])


def noise(*size, seed=0):
    return np.random.default_rng(seed).normal(size=(DRAWS, *size))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_without_an_effect_at_most_one_in_twenty_is_decided(n):
    wrong = (verdicts(lambda d: more(d, 0.), noise(n)) != "undecided").mean()
    assert wrong <= .05 + 3 * math.sqrt(.05 * .95 / DRAWS) and wrong > .04, "the interval is neither too short nor too long"


@pytest.mark.parametrize("name, rule, shape", [
    ("every", every, (6, 3)), ("pooled", pooled, (3, 4)), ("most", most, (5, 4)), ("spread", lambda d: spread(*d), (2, 8)),
    ("rank", lambda d: rank(d[0], d[1]), (2, 4, 12)),
])
def test_the_other_rules_keep_their_level_too(name, rule, shape):
    "What noise says that holds; ranks and factors may rightly say that a stated effect is absent"
    data = noise(*shape)[:4000]
    said = verdicts(rule, data)
    decided = said == "holds" if name in ("rank", "most") else said != "undecided"
    assert decided.mean() <= .06, (name, decided.mean())


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_looking_often_keeps_the_level(looks):
    level, data = 1 - .05 / looks, noise(3 * looks)
    decided = [any(more(row[:3 * (i + 1)], 0., level=level).verdict != "undecided" for i in range(looks)) for row in data]
    assert np.mean(decided) <= .05 + 3 * math.sqrt(.05 * .95 / DRAWS)


@pytest.mark.parametrize("effect, n", [(1., 5), (2., 5), (1., 12)])
def test_power_is_that_of_the_t_test(effect, n):
    "With an effect of so many paired standard deviations"
    held = (verdicts(lambda d: more(d, 0.), effect + noise(n)) == "holds").mean()
    computed = stats.nct.sf(stats.t.ppf(.975, n - 1), n - 1, effect * math.sqrt(n))
    assert abs(held - computed) < .02


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 3), st.floats(.05, 3), st.integers(3, 12), st.sampled_from(["more", "more by 1", "same", "not worse"]))
def test_the_seeds_needed_decide_and_one_less_does_not(mean, sd, n, name):
    rules = {"more": lambda d: more(d, 0.), "more by 1": lambda d: more(d, 0., 1.), "same": lambda d: same(d, 0., 1.), "not worse": lambda d: not_worse(d, 0., .5)}
    like_these = lambda m: mean + sd * exactly(m)
    found = rules[name](like_these(n))
    if found.needed is None: return
    assert found.verdict == "undecided" and found.needed > n
    assert rules[name](like_these(found.needed)).verdict != "undecided"
    assert rules[name](like_these(found.needed - 1)).verdict == "undecided"


def exactly(n):
    "n numbers of mean 0 and standard deviation 1"
    x = np.arange(n) - (n - 1) / 2
    return x / x.std(ddof=1)


def test_rules_agree_with_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    t = stats.ttest_rel(a, b).confidence_interval(LEVEL)
    assert np.allclose((more(a, b).low, more(a, b).high), (t.low, t.high))
    ratio = np.var(a, ddof=1) / np.var(b, ddof=1)
    assert np.isclose(spread(a, b).low, ratio / stats.f.ppf(.975, 6, 6)) and np.isclose(spread(a, b).high, ratio / stats.f.ppf(.025, 6, 6))
    x, y = np.random.default_rng(1).normal(size=(2, 5, 9))
    assert np.isclose(rank(x, y).estimate, np.mean([stats.spearmanr(*r).statistic for r in zip(x, y)]))
    one = [pooled([a]), more(a, 0.)]
    assert np.isclose(one[0].low, one[1].low) and one[0].seeds == 7


@pytest.mark.parametrize("rule, said", [
    (more([2, 2.1, 1.9], [1, 1, 1]), "holds"), (more([2, 2.1, 1.9], 0, delta=3), "does not hold"), (more([0, 3, .5], 0, delta=2), "undecided"),
    (more([1.5, 1.6, 1.4], 0, delta=1), "holds"), (more([-1, -1.1, -.9], 0), "does not hold"), (more([1, 1, 1], 0), "holds"), (more([0, 0, 0], 0), "undecided"),
    (not_worse([-.5, -.4, -.6], 0, 1), "holds"), (not_worse([-3, -3.1, -2.9], 0, 1), "does not hold"),
    (same([.1, 0, -.1], 0, 1), "holds"), (same([5, 5.1, 4.9], 0, 1), "does not hold"), (same([.5, 1.5, 1], 0, 1), "undecided"),
    (factor([6, 6.1, 5.9], [2, 2, 2], 2), "holds"), (factor([2.1, 2.2, 2], [2, 2, 2], 3), "does not hold"),
    (every([[1, 1.1, .9], [2, 2.1, 1.9]]), "holds"), (every([[1, 1.1, .9], [-2, -2.1, -1.9]]), "does not hold"), (every([[9, 9.1, 8.9], [-.1, .1, -.05]]), "undecided"),
    (most([[1, 1, 1], [1, 1, 1], [-1, -1, -1]]), "holds"), (most([[1, 1, 1], [-1, -1, -1], [-1, -1, -1]]), "does not hold"),
    (rank(np.arange(6) + np.zeros((3, 1)), np.arange(6) + np.zeros((3, 1))), "holds"), (both(NOT_RUN, more([1, 1.1, .9], 0)), "not run"),
    (k_of_n([NOT_RUN, more([1, 1.1, .9], 0)], 1), "holds"), (k_of_n([NOT_RUN, more([1, 1.1, .9], 0)], 2), "not run"),
])
def test_verdicts(rule, said):
    assert rule.verdict == said, rule


def test_partial_ranks_see_through_a_common_cause():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(5, 60))
    x, y = z + rng.normal(0, .5, z.shape), z + rng.normal(0, .5, z.shape)
    assert rank(x, y).verdict == "holds" and partial_rank(x, y, z).verdict == "does not hold" and partial_rank(x, x + y, z).verdict == "holds"


def test_what_cannot_be_judged_is_said_in_a_sentence():
    assert more([1., 2.], 0.).why == "fewer than 3 seeds" and spread([1, 2, 3], [1, 2, 3]).why == "fewer than 5 seeds"
    for call in (lambda: more([1., 2., 3.], [1., 2.]), lambda: more([1., math.nan, 3.], 0.), lambda: most([[1, 1, 1]]), lambda: rank([[1, 2]] * 3, [[1, 2]] * 3),
                 lambda: every([1, 2, 3]), lambda: Verdict("maybe")):
        with pytest.raises(ValueError) as caught: call()
        assert "\n" not in str(caught.value)


def test_more_seeds_narrow_the_interval():
    found = estimate([1., 2., 4.])
    widths = [np.diff(found.with_seeds(n).ends())[0] for n in (3, 4, 10, 100)]
    assert widths == sorted(widths, reverse=True) and Estimate(1., 0., 2, 3).ends() == (1., 1.)
