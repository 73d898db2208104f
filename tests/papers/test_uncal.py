"The arms of the uncalibrated-teacher paper: what each minimises, who shares what, and rules against numbers made up to be clear."
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from calibkd.calibrators import CutMix, Cutout, MixUp
from calibkd.distillers.contrast import CRD
from calibkd.distillers.logits import KD
from calibkd.distillers.relations import RKD
from calibkd.exhibits import Notebook
from calibkd.networks.core import network, penultimate
from calibkd.objectives import NLL, Batch
from calibkd.papers import uncal
from calibkd.papers.uncal import (ALONE, COMMON, FRAMEWORK, ROWS, ROWS1, THROUGH, about_times_better, arm_run, best_held, best_of_arms, better, effect,
                                  in_both_strata, leads, none_worse, objective_of, on_best_pair, parted, printed_arms, swapped, times_better,
                                  with_best, with_gaps)
from calibkd.runs import cohorts
from calibkd.studies import arrow

P = SimpleNamespace(**COMMON["quick"] | dict(arms=[]))
PAIR = "resnet20>resnet8"


def scaled(**more): return KD(T=50., alpha=.5, reduction="classmean", **more)


@pytest.mark.parametrize("arm, expected", [
    ("S", NLL()), ("Sc", Cutout(8)), ("Sm", MixUp(.4)), ("Sx", CutMix(1., .5)), ("H", KD(alpha=0., gamma=.5)), ("V(.9)", KD(T=50., alpha=.9)),
    ("N", KD(T=50., alpha=.5, squared=False)),
    ("K", scaled()), ("Kc", scaled(clean=True, task=Cutout(8))), ("Km", scaled(clean=True, mixed=2., task=MixUp())),
    ("Kx", scaled(clean=True, mixed=2., task=CutMix())), ("Pc", scaled(task=Cutout(8))), ("Pm", scaled(task=MixUp())), ("RKD", RKD(alpha=1., gamma=1.)),
    ("CRD", CRD(K=256, alpha=.8, gamma=1.)), ("R", RKD(alpha=.5, gamma=.5)), ("Cm", CRD(K=256, alpha=.5, gamma=.5, clean=True, task=MixUp())),
    ("Km(.9)", KD(T=50., alpha=.9, reduction="classmean", clean=True, mixed=2., task=MixUp())), ("K@4", KD(T=4., alpha=.5, reduction="classmean")),
])
def test_arms_by_name(arm, expected): assert objective_of(arm, P) == expected


@pytest.mark.parametrize("arm", ["", "k", "Kq", "Tm", "Vx", "P", "RKDm", "K(.5", "K(1.2.3)", "K@", "KmS"])
def test_what_is_no_arm_is_refused(arm):
    with pytest.raises(ValueError, match="an arm is written"): parted(arm)


def test_one_cohort_of_students_for_a_teacher_and_seed():
    "All that listens to a teacher is one cohort, all that does not another: nothing is trained apart"
    arms = ["S", *ALONE, "H", "V(.9)", "K", "K(.1)", *FRAMEWORK, *THROUGH, "RKD", "CRD", "R", "Cx"]
    runs = [arm_run(PAIR, arm, 1, P) for arm in arms]
    assert [sum(r.teacher is None for r in group) for group in cohorts(runs)] == [4, 0] and len({r.id for r in runs}) == len(arms)
    teacher = arm_run(PAIR, "T", 1, P)
    assert {r.teacher for r in runs} == {None, teacher} and teacher.network == "resnet20"
    assert teacher.recipe == runs[0].recipe and (teacher.recipe.lr, teacher.recipe.epochs) == (.2, 72)


def test_the_scratch_student_belongs_to_no_pair():
    other = SimpleNamespace(**vars(P) | dict(pairs=["WRN-16-2>resnet8"]))
    for arm in ("S", "Sm"): assert arm_run(PAIR, arm, 1, P) == arm_run("WRN-16-2>resnet8", arm, 1, other)


@pytest.mark.parametrize("kind", "cmx")
def test_augmented_views_of_a_seed_are_equal_in_all_arms(kind):
    "T8: partners, shares and boxes, with the framework, with the teacher seeing them, and alone"
    draw = lambda: torch.Generator().manual_seed(3)  # a batch that CutMix mixes
    batch = Batch(torch.randn(8, 3, 16, 16, generator=draw()), torch.arange(8), torch.arange(8))
    views = [objective_of(head + kind, P).views(batch, draw()) for head in "KSPRC"]
    assert all(torch.equal(v.x, views[0].x) and v.lam == views[0].lam for v in views) and not torch.equal(views[0].x, batch.x)


def test_the_papers_settings():
    "Rates of section 4.2: small networks by themselves at a tenth, their teachers not"
    paper = SimpleNamespace(**COMMON["paper"])
    for pair, lr in (("resnet32x4>ShuffleNetV1", .01), ("VGG13>MobileNetV2-0.5", .01), ("ResNet50>VGG8", .1)):
        student, teacher = (arm_run(pair, arm, 0, paper).recipe for arm in ("Km", "T"))
        assert (student.lr, teacher.lr) == (lr, .1) and {(r.epochs, r.batch, r.schedule, r.weight_decay) for r in (student, teacher)} == {(240, 64, "cosine", 5e-4)}
    assert objective_of("Kc", paper).task.length == 16 and objective_of("CRD", paper).K == 16384


def test_a_published_teacher_serves_all_seeds(monkeypatch, tmp_path):
    (tmp_path / "resnet56-4bfd9763.th").write_bytes(b"")
    monkeypatch.setenv("CALIBKD_WEIGHTS", str(tmp_path))
    real = SimpleNamespace(**COMMON["real"] | dict(dataset="textures"))
    teachers = {arm_run("resnet56-A>resnet8", "T", seed, real) for seed in (1, 2, 3)}
    assert len(teachers) == 1 and next(iter(teachers)).epochs == 0
    assert arm_run("resnet56-A>resnet8", "K", 2, real).teacher in teachers


def table(**arms):
    "Three seeds of each arm at top-1 and ECE in %, two pairs"
    return pd.DataFrame([dict(pair=pair, arm=arm, seed=s, top1=(a + s) / 100, ece=(e + .1 * (s - 1)) / 100, val_ece=e / 100)
                         for pair in ("a>b", "c>b") for arm, (a, e) in arms.items() for s in range(3)])


def test_leads_are_positive_for_what_is_better():
    found = table(S=(50, 9), K=(52, 7), Km=(51, 4))
    assert np.allclose(leads(found, "ece", ["Km"], ["S", "K"]), .03) and np.allclose(leads(found, "top1", ["Km"], ["S", "K"]), -.01)
    assert np.allclose(leads(found, "top1", ["K", "Km"], {"K": ["S"], "Km": ["K"]}).loc["a>b"].mean(axis=1), [.02, -.01])
    assert best_of_arms(found, "ece", "a>b", ["S", "K"]).equals(best_of_arms(found, "ece", "a>b", ["K"])) and best_held(found, "c>b", ["S", "K", "Km"]) == "Km"
    assert leads(found, "ece", ["Km"], ["CRD"]).empty and leads(found[found.pair + found.arm != "c>bK"], "ece", ["Km"], ["K"]).empty


@pytest.mark.parametrize("margin, verdict", [(.02, "holds"), (.005, "does not hold")])
def test_none_worse(margin, verdict):
    said = none_worse(table(K=(52, 7), Kc=(51, 6), Km=(54, 4)), "top1", ["Kc", "Km"], ["K"], margin).at()
    one = none_worse(table(K=(52, 7), Kc=(51, 6)), "top1", ["Kc"], ["K"], margin).at()
    assert one.verdict == verdict and one.estimate == pytest.approx(-.01)
    assert said.verdict == verdict, "a good cell does not make up for a bad one"


def test_the_true_error_contradicts():
    found = table(S=(50, 9), Km=(51, 4))
    assert better(found, "ece", ["Km"], ["S"], .005).at().verdict == "holds"
    wrong = better(found.assign(true_ece=.2 - found.ece), "ece", ["Km"], ["S"], .005).at()
    assert wrong.verdict == "undecided" and "true_ece contradicts" in wrong.why


def test_factors_of_what_is_printed_as_zero():
    found = table(S=(50, 9), Km=(51, 4)).assign(oe=lambda t: np.where(t.arm == "S", .02, 0.))
    said = times_better(found, "oe", ["Km"], ["S"], 40).at()
    assert said.verdict == "holds" and said.estimate == pytest.approx(np.log(.02 / .0005))


def two_pairs(first, second, **arms): return pd.concat([table(T=(50, e), **arms).query("pair == @p") for p, e in (("a>b", first), ("c>b", second))])


def test_the_best_arm_is_chosen_on_held_out_images_for_each_pair():
    found = table(S=(50, 9), Kc=(51, 6), Km=(51, 4), Kx=(51, 5)).assign(
        val_ece=lambda t: np.where((t.pair == "c>b") & (t.arm == "Kc"), 0., t.val_ece))
    best = with_best(found).query("arm == 'best'")
    assert (best[best.pair == "a>b"].ece < .045).all() and (best[best.pair == "c>b"].ece > .055).all() and len(best) == 6
    assert "best" not in set(with_best(found[found.arm != "Kx"]).arm)


@pytest.mark.parametrize("teachers, arms, verdict", [
    ((10, 7), (6, 5, 4), "holds"), ((10, 7), (12, 11, 10), "does not hold"), ((10, 11), (6, 5, 4), "undecided"), ((7, 6), (12, 11, 10), "undecided")])
def test_strata_of_pairs(teachers, arms, verdict):
    "Teachers worse than scratch, and better ones; of one stratum nothing is said"
    found = with_best(two_pairs(*teachers, S=(50, 9), **{arm: (51, e) for arm, e in zip(FRAMEWORK, arms)}))
    assert in_both_strata(found, "ece").at().verdict == verdict and in_both_strata(found[found.arm != "S"], "ece").at().verdict == "not run"


@pytest.mark.parametrize("ece, verdict", [(8, "does not hold"), (5, "holds"), (3.3, "holds"), (1, "does not hold")])
def test_about_half(ece, verdict):
    "A factor of at least 1.5 whose interval is not all above 3"
    assert about_times_better(table(S=(50, 9), Km=(51, ece)), "ece", ["Km"], ["S"], 1.5, 3.).at().verdict == verdict


def test_no_oe_without_its_gap():
    found = table(S=(50, 9), Km=(51, 4)).assign(oe=lambda t: np.where(t.arm == "S", .02, 0.), overconfidence=lambda t: np.where(t.arm == "S", .09, -.04))
    assert with_gaps({"OE": times_better(found, "oe", ["Km"], ["S"], 2)}, found, ["S", "Km"]) == "OE × 40.00; gap: scratch +9.0, scaled KD + mixup -4.0"
    assert with_gaps({"OE": times_better(found, "oe", ["Kx"], ["S"], 2)}, found, ["S", "Kx"]) == ""


def test_main_effects():
    "KD takes 1 point of ECE off, the augmentation 3, both together 5: an interaction of 1"
    found = table(S=(50, 9), K=(52, 8), **dict.fromkeys(ALONE, (49, 6)), **dict.fromkeys(FRAMEWORK, (53, 4)))
    assert np.allclose(effect(found, "ece", "KD"), .015) and np.allclose(effect(found, "ece", "augmentation"), .035)
    assert np.allclose(effect(found, "top1", "KD"), .03) and swapped(FRAMEWORK, "P") == {"Kc": ["Pc"], "Km": ["Pm"], "Kx": ["Px"]}


def test_printed_numbers_as_the_catalogue_counts_them():
    lead = lambda t, arms, than, metric="ece": [min(line[r, metric] for r in than) - line[a, metric] for line in t.values() for a in arms]
    first = lead(uncal.TABLE1, ["Km", "Kx"], ["S", "K", "RKD", "CRD"])
    assert (min(first), max(first)) == (pytest.approx(.041), pytest.approx(.097)) and all(x > 0 for x in lead(uncal.TABLE1, FRAMEWORK, ["K"], "oe"))
    assert all(x > 0 for t in (uncal.TABLE2, uncal.TABLE3) for m in ("ece", "oe") for x in lead(t, FRAMEWORK, ["K"], m))
    ratio = np.prod([line["S", "ece"] / line[a, "ece"] for line in uncal.TABLE3.values() for a in ("Km", "Kx")]) ** (1 / 6)
    assert ratio == pytest.approx(2.35, abs=.01) and set(uncal.TABLE6) == {"frost", "snow", "gaussian_blur", "motion_blur"}
    assert sum(uncal.TABLE6[c]["Kx", "top1"] > uncal.TABLE6[c]["K", "top1"] for c in uncal.TABLE6) == 2
    assert all(len(line) == 3 * n for t, n in ((uncal.TABLE1, 8), (uncal.TABLE2, 6), (uncal.TABLE3, 6), (uncal.TABLE4, 6), (uncal.TABLE5, 8), (uncal.TABLE6, 6)) for line in t.values())
    assert set(ROWS) < set(ROWS1) and printed_arms("a 1 2 3", ["K"]) == {"a": {("K", "top1"): 1., ("K", "ece"): 2., ("K", "oe"): 3.}}


def headed(preset, tmp_path, monkeypatch):
    "What the first cells of Table 1 define"
    monkeypatch.setenv("CALIBKD_RESULTS", str(tmp_path))
    book, space = Notebook(Path(__file__).parents[2] / "nbs" / "uncal" / "table1.ipynb"), {}
    for source in (book.head, f"preset = '{preset}'", book.maker): exec(source, space)
    return space["p"]


def test_table1_declares_the_papers_six_pairs_and_all_arms(tmp_path, monkeypatch):
    p = headed("paper", tmp_path, monkeypatch)
    assert p.pairs == [*uncal.TABLE1] and p.arms == [*ROWS1, "H", *ALONE]
    runs = [arm_run(pair, arm, seed, p) for pair in p.pairs for arm in p.arms for seed in p.seeds]
    assert {(r.epochs, r.recipe.batch, r.dataset.name) for r in runs} == {(240, 64, "cifar100")}
    heard = {pair: {arm_run(pair, arm, 0, p).id for arm in p.arms} for pair in p.pairs}
    assert {len(ids) for ids in heard.values()} == {12}
    assert len(set().union(*heard.values())) == 4 + 4 * 4 + 6 * 7, "teachers, and students who need none, are shared"


def test_table1_in_quick_takes_a_second_pair_and_trains_its_controls_once(tmp_path, monkeypatch):
    p = headed("quick", tmp_path, monkeypatch)
    assert p.pairs == [PAIR] and p.seeds == [1, 2, 3] and p.arms == [*ROWS1, "H", *ALONE]
    first, second = ({arm: arm_run(pair, arm, 1, p).id for arm in p.arms} for pair in (PAIR, "WRN-16-2>resnet8"))
    assert {arm for arm in p.arms if first[arm] == second[arm]} == {"S", *ALONE}


@pytest.mark.parametrize("name", dict.fromkeys(net for pair in uncal.TABLE1 for net in arrow(pair)))
def test_the_networks_of_the_six_pairs_answer_at_the_size_of_cifar(name):
    "Logits, and the pooled features that RKD and CRD compare, as wide as the last layer takes them"
    net = network(name, num_classes=100, seed=0).eval()
    with torch.no_grad(): logits, features = net(torch.zeros(2, 3, 32, 32), features=True)
    assert logits.shape == (2, 100) and features["pooled"].shape == (2, penultimate(net).in_features)


def test_the_best_student_is_chosen_on_held_out_images():
    "Of each pair the arm whose held-out ECE is lowest, whatever it is on test; and the pair with the largest held-out factor"
    found = table(S=(50, 9), Kc=(51, 2), Km=(51, 6), Kx=(51, 4))
    held = found.assign(val_ece=lambda t: t.val_ece.where(t.arm != "Km", np.where(t.pair == "a>b", .01, .03)))
    best = with_best(held)
    assert best[best.arm == "best"].groupby("pair").ece.mean().round(6).to_dict() == {"a>b": .06, "c>b": .02}
    assert set(on_best_pair(best, "best", "S").pair) == {"a>b"} and len(with_best(held, ["Kx"])) == len(held) + 6


def test_without_all_augmentations_there_is_no_best_student():
    part = with_best(table(S=(50, 9), Km=(51, 6), Kx=(51, 4)))
    assert "best" not in {*part.arm} and times_better(on_best_pair(part, "best", "S"), "ece", ["best"], ["S"], 2).at().verdict == "not run"
