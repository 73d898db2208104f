"What the exhibits of KD(C) rest on: shared runs, networks that were handed over, answers elsewhere."
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torchvision

from calibkd.calibrators import TS
from calibkd.data import Dataset
from calibkd.distillers import KD
from calibkd.papers.kdc import CALIBRATORS, COMMON, calibrator, triple
from calibkd.networks.core import network
from calibkd.objectives import NLL
from calibkd.runs import Recipe, Run
from calibkd.store import Store
from calibkd.studies import over_grid, study, teach
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


def test_two_triples_of_classes_are_disjoint_super_classes():
    data = replace(TINY, name="textures:4x3", train=200)
    results = train([Run(data, "resnet8", recipe=ONE)])
    names = data.load().classes
    a, b = (triple(results.runs[0], results.store, which) for which in (0, 1))
    kin = lambda three: {names[c].rpartition("c")[0] for c in three[:2]}
    assert len(kin(a)) == len(kin(b)) == 1 and kin(a) != kin(b) and len(set(a)) == len(set(b)) == 3


def test_triples_without_super_classes():
    data = Dataset("digits", train=200)
    results = train([Run(data, "resnet8", recipe=replace(ONE, batch=64))])
    a, b = (triple(results.runs[0], results.store, which) for which in (0, 1))
    assert not set(a[:2]) & set(b[:2]) and len(set(a)) == len(set(b)) == 3


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
