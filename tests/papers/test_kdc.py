"What the exhibits of KD(C) rest on: shared runs, networks that were handed over, answers elsewhere."
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torchvision

from calibkd.calibrators import TS, fit_temperature
from calibkd.data import Dataset
from calibkd.diagnostics import project_network, separation
from calibkd.distillers import KD
from calibkd.papers.kdc import (CALIBRATORS, COMMON, activations, calibrators_of, flat_separation, kin_triples, on_fit, pair_of, presets, separations,
                                triple)
from calibkd.networks.core import network
from calibkd.objectives import NLL
from calibkd.runs import Recipe, Run
from calibkd.store import Store
from calibkd.studies import Rescaled, along, by_temperature, calibrator, over_grid, set_aside, study, taught_by, teach
from calibkd.sweep import train
from calibkd.inference import logits_of
from calibkd.training import fit

TINY, ONE = Dataset("textures:2x2", train=80, test=60), Recipe(epochs=1, batch=32)


def small(**changes):
    p = COMMON["smoke"] | dict(dataset="textures:2x2", images=80, teacher_epochs=1, student_epochs=1, teacher="resnet8", Ts=[1., 2.]) | changes
    return SimpleNamespace(**p)


def test_ten_calibrators_teach_and_a_setting_is_chosen_on_held_out_data():
    p = small()
    made = teach(study(p), [calibrator(c, p) for c in CALIBRATORS], p)
    table = made.table("top1", "ece")
    assert table.groupby("role").size().to_dict() == {"teacher": 10, "student": 10} and table.ece.between(0, 1).all()
    assert all(setting in {(1., .9), (2., .9)} for setting in made.settings.values())
    assert len(made.table("ece", choose=False)) == 10 + 20, "where nothing is chosen, all students are kept"
    assert made.students.trained == 9 + 1 + 20, "nine teachers, a temperature, twenty students"
    again = teach(study(p), [calibrator(c, p) for c in CALIBRATORS], p)
    assert again.students.trained == 0 and again.table("ece").equals(made.table("ece"))


def test_exhibits_share_their_teachers():
    p = small()
    s = study(p)
    first = teach(s, [NLL()], p)
    other = over_grid(s, [NLL()], small(Ts=[1., 4.]))
    assert first.students.trained == 3 and other.trained == 1


def test_a_temperature_is_fitted_on_held_out_data_only():
    s = study(small())
    run, changed = s.teacher_run(TS()), replace(s, data=replace(s.data, test=30)).teacher_run(TS())
    results = train([run, changed])
    T, T2 = (results.store.weights(r)["T"] for r in (run, changed))
    assert torch.equal(T, T2), "another test split must not change the temperature"


def test_a_published_teacher_and_its_tempered_twin(tmp_path):
    "One network each whatever the seed, never trained; the twin's logits are the network's divided by T, without a held-out sample"
    torch.save(network("resnet8", 4, seed=7).state_dict(), tmp_path / "theirs.pt")
    s = replace(study(small(checkpoint=str(tmp_path / "theirs.pt"))), data=replace(TINY, val=0))
    theirs, twin, fitted = (s.teacher_run(c, 5) for c in (NLL(), TS(T=1.9), TS()))
    assert twin.init == theirs and (twin.seed, twin.epochs, twin) == (0, 0, s.teacher_run(TS(1.9), 6)) and twin != s.teacher_run(TS(T=2))
    assert fitted == s.teacher_run(TS(T=None), 3) and "T" not in fitted.definition["objective"]
    results = train([theirs, twin, s.student_run(KD(T=2), TS(T=1.9), 5)], workers=1)
    assert results.trained == 3 and torch.equal(results.logits(twin)[0], results.logits(theirs)[0] / torch.tensor(1.9))
    assert results.numbers(twin, ["top1", "aurc"]) != results.numbers(theirs, ["top1", "aurc"]) and results.numbers(twin, ["top1"]) == results.numbers(theirs, ["top1"])
    assert results.store.run(twin.id).id == twin.id and results.table("ece")["T"].tolist()[1:] == [1.9, 2]


def test_the_twin_of_a_published_teacher_is_fitted_on_images_set_aside(tmp_path):
    "Not on the held-out ones, which it has seen; both teachers have a row for each seed of their students, the same one"
    torch.save({k: 3 * v for k, v in network("resnet8", 4, seed=7).state_dict().items()}, tmp_path / "theirs.pt")
    p = small(tests=90, checkpoint=str(tmp_path / "theirs.pt"), calibrated="TS", fit=40, seeds=[3, 4], Ts=[1.])
    s = study(p)
    logits, labels = train([s.teacher_run(NLL())]).logits(s.teacher_run(NLL()))
    aside, rest = set_aside(s.data, p.fit)
    nll, twin = calibrators_of(s, pair_of(p), p)
    assert (nll, twin) == (NLL(), TS(T=round(fit_temperature(logits[aside], labels[aside]), 4))) and twin.T != 1 and len(rest) == 50
    students = over_grid(s, [nll, twin], p)
    table = taught_by(students, "top1", "ece", fit=p.fit)
    assert table[["kind", "seed"]].values.tolist() == [["NLL", 3], ["NLL", 4], ["TS", 3], ["TS", 4]]
    assert (table.groupby("kind")[["top1", "ece", "fit_ece"]].nunique() == 1).all(axis=None) and table.top1.nunique() == 1
    numbers = students.numbers(s.teacher_run(NLL()), ["ece"], part=aside), students.numbers(s.teacher_run(NLL()), ["ece"], part=rest)
    assert (table.fit_ece[0], table.ece[0]) == (numbers[0]["ece"], numbers[1]["ece"])
    assert on_fit(table).ece.tolist() == table.fit_ece.tolist() and on_fit(on_fit(table)).equals(on_fit(table))


def test_the_twin_of_a_trained_teacher_is_fitted_on_held_out_images():
    p = small(calibrated="TS", fit=20, tests=60)
    assert by_temperature(study(p), p.fit) == TS() and calibrators_of(study(small()), ["TS", "MDCA"], small()) == [TS(), calibrator("MDCA", small())]


def test_teachers_in_a_row_for_each_seed_are_those_that_were_trained():
    p = small(seeds=[0, 1])
    students = over_grid(study(p), [NLL(), TS()], p)
    table = taught_by(students, "top1")
    assert table[["kind", "seed"]].values.tolist() == [["NLL", 0], ["NLL", 1], ["TS", 0], ["TS", 1]] and not any(c.startswith("fit_") for c in table)


def test_teachers_may_see_other_views_than_their_students():
    s = study(small(augment="crop", teacher_augment="none"))
    run = s.student_run(KD(T=2), NLL())
    assert (run.recipe.augment, run.teacher.recipe.augment, s.scratch().recipe.augment) == ("crop", "none", "crop")
    assert study(small(augment="crop")).teacher_run(NLL()).recipe.augment == "crop"


def test_real_images_are_for_exhibits_that_ask_for_them():
    assert set(presets()) == {"smoke", "quick", "paper"} and "checkpoint" not in presets()["quick"]
    asked = presets(real=dict(seeds=[3]), all=dict(own=1))
    assert asked["real"].items() >= dict(seeds=[3], own=1, checkpoint="resnet56-4bfd9763.th", calibrated="TS", fit=2000).items()
    assert all(asked[name]["checkpoint"] is asked[name]["fit"] is None for name in ("smoke", "quick", "paper"))


def test_the_tempered_twin_of_a_trained_teacher_has_its_seed():
    s = study(small())
    for seed in (0, 3):
        twin = s.teacher_run(TS(T=3.), seed)
        assert twin.seed == seed == twin.init.seed and twin.init == s.teacher_run(NLL(), seed) and s.teacher_run(TS(), seed).seed == seed


def test_two_triples_of_classes_are_disjoint_super_classes():
    data = replace(TINY, name="textures:4x3", train=200)
    results = train([Run(data, "resnet8", recipe=ONE)])
    names = data.load().classes
    a, b = (triple(results.runs[0], results.store, which) for which in (0, 1))
    kin = lambda three: {names[c].rpartition("c")[0] for c in three[:2]}
    assert len(kin(a)) == len(kin(b)) == 1 and kin(a) != kin(b) and len(set(a)) == len(set(b)) == 3
    every = kin_triples(results.runs[0], results.store)
    assert len({t[:2] for t in every}) == 4 * 3 and all(len(kin(t)) == 1 and not kin(t) & kin(t[2:]) for t in every) and a in every


def test_triples_without_super_classes():
    data = Dataset("digits", train=200)
    results = train([Run(data, "resnet8", recipe=replace(ONE, batch=64))])
    a, b = (triple(results.runs[0], results.store, which) for which in (0, 1))
    assert not set(a[:2]) & set(b[:2]) and len(set(a)) == len(set(b)) == 3
    assert kin_triples(results.runs[0], results.store) == []


def test_similar_classes_are_nearer_in_features_than_others():
    p = small(dataset="textures:4x3", images=400, student_epochs=3, Ts=[1.])
    students = over_grid(study(p), [NLL()], p)
    seen, data = activations(students), students[0].dataset.load()
    pairs = separations(seen, dict(enumerate(data.supers)))
    three = separations(seen, {0: "similar", 1: "similar", 5: "dissimilar"})
    assert (pairs.R < 1).all() and (pairs.R == pairs.near / pairs.far).all() and pairs.near.item() != pairs.near_train.item()
    f, labels = seen[students[0]]["test"]
    assert three.R.item() == pytest.approx(separation(f, labels, (0, 1, 5)))
    flat = flat_separation(students.network(students[0]), seen[students[0]], [(0, 1, 5)])
    shown = project_network(students.network(students[0]), data, (0, 1, 5), "qr-pca")
    assert flat == pytest.approx(separation(torch.tensor(shown.test), torch.tensor(shown.test_labels), (0, 1, 5)))


@pytest.mark.parametrize("net", [lambda: torchvision.models.resnet18(num_classes=4), lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=4)])
def test_a_torchvision_network_is_handed_over_as_teacher_and_student(net):
    torch.manual_seed(0)
    theirs = net()
    before = [p.clone() for p in theirs.parameters()]
    gentle = replace(ONE, lr=.01)
    teacher = Run(TINY, theirs, recipe=gentle)
    students = [Run(TINY, "resnet8", KD(T=2), gentle, teacher=teacher), Run(TINY, net(), KD(T=2), gentle, teacher=teacher)]
    results = train(students, workers=1)
    assert results.trained == 3 and results.table("top1").network.tolist()[1] == type(theirs).__name__
    assert all(torch.equal(a, b) for a, b in zip(before, theirs.parameters())), "the original is left as it is"
    logits, _ = results.logits(teacher)
    data = TINY.load()
    torch.testing.assert_close(logits_of(results.network(teacher), data, data.test)[0], logits, atol=1e-4, rtol=1e-4)
    assert Store().runs()[0]["network"] == type(theirs).__name__


def test_a_network_that_was_handed_over_goes_through_a_pool():
    runs = [Run(TINY, network("resnet8", 4, seed=s), recipe=ONE) for s in (0, 1)]
    assert len({r.id for r in runs}) == 2
    assert train(runs, workers=2).trained == 2 and train(runs, workers=1).trained == 0


def test_dropout_is_a_matter_of_the_seed():
    "Dropout draws from PyTorch's global generator; two trainings, the global state in between elsewhere, give the same bits"
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(.5), torch.nn.Linear(3 * 16 * 16, 4))
    data, run = TINY.load(), Run(TINY, net, recipe=replace(ONE, precision="fp64"))
    first, = fit([run], data)
    torch.rand(7)
    second, other = fit([run], data)[0], fit([replace(run, seed=1)], data)[0]
    assert torch.equal(first.net.net[2].weight, second.net.net[2].weight) and not torch.equal(first.net.net[2].weight, other.net.net[2].weight)


def test_a_network_that_diverged_is_not_stored(tmp_path):
    run = Run(TINY, "resnet8", recipe=ONE)
    member, = fit([run], TINY.load())
    with torch.no_grad(): member.net.linear.bias[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"): Store(tmp_path).put(member, TINY.load())
    assert not Store(tmp_path).holds(run)


def test_a_network_with_other_classes_is_refused():
    with pytest.raises(ValueError, match="7 classes, the data set 4"): train([Run(TINY, network("resnet8", 7), recipe=ONE)], workers=1)


def test_answers_elsewhere_are_kept_and_corruption_hurts():
    run = Run(replace(TINY, train=400), "resnet8", recipe=replace(ONE, epochs=6))
    results = train([run])
    shifts = [replace(run.dataset, test=400), *(replace(run.dataset, test=400, corruption="gaussian_noise", severity=v) for v in (1, 5))]
    table = results.elsewhere(shifts, "top1", "ece", "auroc")
    assert table.severity.isna().tolist() == [True, False, False] and table.top1[0] > table.top1[2]
    kept = sorted((results.store.root / "answers").rglob("*.safetensors"))
    stamps = [k.stat().st_mtime_ns for k in kept]
    assert len(kept) == 3 and results.elsewhere(shifts, "top1", workers=1).top1.equals(table.top1)
    assert [k.stat().st_mtime_ns for k in kept] == stamps


def test_each_network_of_an_arrow_has_its_own_recipe_and_epochs():
    arrows = dict(epochs={"resnet8": 2, "resnet14": 3}, recipes={"resnet14": "kdc_large"}, back_Ts=None, back_alphas=None)
    s = study(along("resnet14>resnet8", small(**arrows, recipe="kdc_cifar")))
    teacher, direct = s.teacher_run(NLL()), s.direct_run(TS())
    assert (teacher.recipe.batch, teacher.recipe.epochs, s.scratch().recipe.epochs) == (Recipe.kdc_large.batch, 3, 2)
    assert s.scratch().recipe.batch == Recipe.kdc_cifar.batch != teacher.recipe.batch
    assert direct.init == s.scratch() and direct.network == "resnet8"
    with pytest.raises(ValueError, match="epochs has nothing for resnet20"): along("resnet20>resnet8", small(**arrows))


def test_a_temperature_on_top_is_fitted_on_held_out_samples_and_serves_other_data():
    runs = train([study(small()).scratch(seed) for seed in (0, 1)])
    top = Rescaled(runs.runs, runs.store)
    T = fit_temperature(*runs.logits(runs[0], "val"))
    assert T != 1 and torch.allclose(top.logits(runs[0])[0], runs.logits(runs[0])[0].double() / T)
    there = [replace(runs[0].dataset, corruption="fog", severity=5)]
    plain, scaled = (r.elsewhere(there, "top1", "nll") for r in (runs, top))
    assert plain.top1.equals(scaled.top1) and not plain.nll.equals(scaled.nll)
