"The judge against simulation: its level, its power, how many seeds it says are needed, and what it refuses."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from calibkd.exhibits.judge import (LEVEL, NOT_RUN, Estimate, Rule, Verdict, always, bootstrap_rank, both, by_ece, cannot, estimate, every, factor, k_of_n, more,
                                    most, not_worse, partial_rank, partly, pooled, rank, same, side, spread)

DRAWS = 10_000

UNRUN = more([], 0.)


def verdicts(rule, data):
    return np.array([rule(row).at().verdict for row in data])


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


@pytest.mark.parametrize("n", [8, 15, 30])
@pytest.mark.parametrize("alike", [False, True], ids=["a number", "another quantity"])
def test_ranks_by_bootstrap_keep_their_level(n, alike):
    "x and y are unrelated; or y and z are equally close to x"
    data = np.random.default_rng(n).normal(size=(600, 3, n))
    rule = (lambda x, y, z: bootstrap_rank(x, x + y, x + z, draws=400)) if alike else lambda x, y, z: bootstrap_rank(x, y, draws=400)
    wrong = np.mean([rule(*d).at().verdict != "undecided" for d in data])
    assert wrong <= .05 + 2 * math.sqrt(.05 * .95 / 600)


def test_ranks_by_bootstrap():
    rng, n = np.random.default_rng(5), 15
    x = rng.normal(size=n)
    near, far = x + rng.normal(0, .3, n), x + rng.normal(0, 3., n)
    found = bootstrap_rank(x, near).at()
    assert found.verdict == "holds" and found.estimate == pytest.approx(stats.spearmanr(x, near).statistic) and found.low < found.estimate <= found.high and found.seeds == n
    assert bootstrap_rank(x, -near).at().verdict == "does not hold" and bootstrap_rank(x, near, .99).at().verdict != "holds"
    lead = bootstrap_rank(x, near, far).at()
    assert lead.verdict == "holds" and bootstrap_rank(x, far, near).at().verdict == "does not hold"
    assert lead.estimate == pytest.approx(stats.spearmanr(x, near).statistic - stats.spearmanr(x, far).statistic)
    assert bootstrap_rank(x, near).at(.99).low < found.low and bootstrap_rank(x, near).at() == found, "the same draws each time"
    assert bootstrap_rank([], []).at().verdict == "not run" and bootstrap_rank(x[:4], near[:4]).at().why == "fewer than 5 networks"
    with pytest.raises(ValueError, match="finite"): bootstrap_rank([1., math.nan, 3., 4., 5.], range(5))


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_looking_often_keeps_the_level(looks):
    level, data = 1 - .05 / looks, noise(3 * looks)
    decided = [any(more(row[:3 * (i + 1)], 0.).at(level).verdict != "undecided" for i in range(looks)) for row in data]
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
    found = rules[name](like_these(n)).at()
    if found.needed is None: return
    assert found.verdict == "undecided" and found.needed > n
    assert rules[name](like_these(found.needed)).at().verdict != "undecided"
    assert rules[name](like_these(found.needed - 1)).at().verdict == "undecided"


def exactly(n):
    "n numbers of mean 0 and standard deviation 1"
    x = np.arange(n) - (n - 1) / 2
    return x / x.std(ddof=1)


def test_rules_agree_with_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    t = stats.ttest_rel(a, b).confidence_interval(LEVEL)
    assert np.allclose((more(a, b).at().low, more(a, b).at().high), (t.low, t.high))
    ratio = np.var(a, ddof=1) / np.var(b, ddof=1)
    assert np.isclose(spread(a, b).at().low, ratio / stats.f.ppf(.975, 6, 6)) and np.isclose(spread(a, b).at().high, ratio / stats.f.ppf(.025, 6, 6))
    x, y = np.random.default_rng(1).normal(size=(2, 5, 9))
    assert np.isclose(rank(x, y).at().estimate, np.mean([stats.spearmanr(*r).statistic for r in zip(x, y)]))
    one = [pooled([a]).at(), more(a, 0.).at()]
    assert np.isclose(one[0].low, one[1].low) and one[0].seeds == 7 and pooled([a], unit="number").at().unit == "number"


@pytest.mark.parametrize("rule, said", [
    (more([2, 2.1, 1.9], [1, 1, 1]), "holds"), (more([2, 2.1, 1.9], 0, delta=3), "does not hold"), (more([0, 3, .5], 0, delta=2), "undecided"),
    (more([1.5, 1.6, 1.4], 0, delta=1), "holds"), (more([-1, -1.1, -.9], 0), "does not hold"), (more([1, 1, 1], 0), "holds"), (more([0, 0, 0], 0), "undecided"),
    (not_worse([-.5, -.4, -.6], 0, 1), "holds"), (not_worse([-3, -3.1, -2.9], 0, 1), "does not hold"),
    (same([.1, 0, -.1], 0, 1), "holds"), (same([5, 5.1, 4.9], 0, 1), "does not hold"), (same([.5, 1.5, 1], 0, 1), "undecided"),
    (factor([6, 6.1, 5.9], [2, 2, 2], 2), "holds"), (factor([2.1, 2.2, 2], [2, 2, 2], 3), "does not hold"),
    (every([[1, 1.1, .9], [2, 2.1, 1.9]]), "holds"), (every([[1, 1.1, .9], [-2, -2.1, -1.9]]), "does not hold"), (every([[9, 9.1, 8.9], [-.1, .1, -.05]]), "undecided"),
    (most([[1, 1, 1], [1, 1, 1], [-1, -1, -1]]), "holds"), (most([[1, 1, 1], [-1, -1, -1], [-1, -1, -1]]), "does not hold"),
    (rank(np.arange(6) + np.zeros((3, 1)), np.arange(6) + np.zeros((3, 1))), "holds"), (both(UNRUN, more([1, 1.1, .9], 0)), "not run"),
    (k_of_n([UNRUN, more([1, 1.1, .9], 0)], 1), "holds"), (k_of_n([UNRUN, more([1, 1.1, .9], 0)], 2), "not run"),
])
def test_verdicts(rule, said):
    assert rule.at().verdict == said, rule.at()


def test_partial_ranks_see_through_a_common_cause():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(5, 60))
    x, y = z + rng.normal(0, .5, z.shape), z + rng.normal(0, .5, z.shape)
    assert rank(x, y).at().verdict == "holds" and partial_rank(x, y, z).at().verdict == "does not hold" and partial_rank(x, x + y, z).at().verdict == "holds"


def test_what_cannot_be_judged_is_said_in_a_sentence():
    assert more([1., 2.], 0.).at().why == "fewer than 3 seeds" and spread([1, 2, 3], [1, 2, 3]).at().why == "fewer than 5 seeds"
    line, flat = [[1, 2, 3, 4, 5]] * 3, [[1] * 5] * 3
    for rule, why in ((most([[1, 1, 1]]), "fewer than 3 cells"), (rank([[1, 2]] * 3, [[1, 2]] * 3), "fewer than 5 points"), (rank(line, flat), "ranks that coincide"),
                      (partial_rank(line, line, line), "ranks that coincide"), (partial_rank(line, line, flat), "ranks that coincide")):
        assert str(rule.at()) == f"cannot be judged ({why})"
    for call in (lambda: more([1., 2., 3.], [1., 2.]), lambda: more([1., math.nan, 3.], 0.), lambda: every([1, 2, 3]), lambda: Verdict("maybe")):
        with pytest.raises(ValueError) as caught: call()
        assert "\n" not in str(caught.value)


def test_more_seeds_narrow_the_interval():
    found = estimate([1., 2., 4.])
    widths = [np.diff(found.with_seeds(n).ends())[0] for n in (3, 4, 10, 100)]
    assert widths == sorted(widths, reverse=True) and Estimate(1., 0., 2, 3).ends() == (1., 1.)


@pytest.mark.parametrize("rule, said", [
    (more(3., 2.), "holds"), (same(1e-9, 0, 1e-6), "holds"), (same(.2, 0, .1), "does not hold"), (factor(2., 1.79, 2), "does not hold"),
    (always([True, True]), "undecided"), (always([True] * 3), "holds"), (always([True, False, True]), "does not hold"), (always(True), "holds"),
    (always([]), "not run"), (most([]), "not run"), (every(np.empty((0, 3))), "not run"), (every([[1, 2, 3], [math.nan] * 3]), "not run"), (rank([], []), "not run"),
    (both(UNRUN, Rule(lambda level: cannot("nobody knows the posterior"))), "cannot be judged"),
])
def test_exact_numbers_and_what_was_not_run(rule, said):
    assert rule.at().verdict == said, rule.at()


def a_table(**gaps):
    rows = [dict(teacher=t, T=T, seed=s, ece=e + .001 * s * T) for t, e in (("NLL", .06), ("MDCA", .02)) for T in (1., 4.) for s in (3, 4, 5)]
    return pd.DataFrame(rows).assign(**{k: lambda t, v=v: t.ece + t.teacher.map({"NLL": 0., "MDCA": v}) for k, v in gaps.items()})


def test_a_side_is_whole_or_empty_and_pairs_by_seed():
    table = a_table()
    uc, c = side(table, teacher="NLL", T=[1., 4.]), side(table[table.seed != 4], teacher="MDCA")
    assert more(uc["ece"], c["ece"]).at().seeds == 2 and more(uc["ece"], .01).at().seeds == 3
    assert side(table, teacher="NLL", T=[1., 10.])["ece"].empty and side(table, teacher="LS")["ece"].empty
    assert (uc.cells("ece", "T") - side(table, teacher="MDCA").cells("ece", "T")).shape == (2, 3)


def test_contradicting_measures_of_calibration_leave_a_claim_open():
    rule = lambda table: by_ece(lambda m: more(side(table, teacher="NLL")[m], side(table, teacher="MDCA")[m]), *(side(table, teacher=t) for t in ("NLL", "MDCA"))).at()
    assert rule(a_table()).verdict == rule(a_table(true_ece=0.)).verdict == "holds"
    assert rule(a_table(true_ece=.1)).why == "true_ece contradicts" and rule(a_table(true_ece=.1)).verdict == "undecided"
    high, low = a_table(rmsce=.1).assign(ece_floor=.01), a_table(rmsce=.1).assign(ece_floor=.06)
    assert rule(high).verdict == "holds" and rule(low).why == "rmsce contradicts", "the debiased error is asked only where all sides lie at the floor"


@pytest.mark.parametrize("d, whole, part", [([1., 1.1, .9], "holds", "not run"), ([-1., -1.1, -.9], "does not hold", "does not hold"),
                                            ([1., -.5, .8], "undecided", "not run"), ([], "not run", "not run")])
def test_a_part_of_a_claim_can_only_fail(d, whole, part):
    "Its numbers are told all the same, with what is missing; where nothing is, it is the rule itself"
    rule = more(d, 0.)
    found = partly(rule, "no arrow up").at()
    assert rule.at().verdict == partly(rule, "").at().verdict == whole and found.verdict == part
    assert found.seeds == len(d) and (found.why == "no arrow up") == (part == "not run" and len(d) > 0) and found.needed is None
    assert np.array_equal(found.estimate, rule.at().estimate, equal_nan=True)
