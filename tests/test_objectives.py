"Objectives compose, a new one is one cell, and whatever they remember survives a kill."
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from torch import nn

from calibkd.calibrators import CPC, CRL, LS, MDCA, MMCE, PSKD, TS, AdaFocal, CutMix, Cutout, Focal, MbLS, MixUp, fit_temperature
from calibkd.data import Dataset
from calibkd.distillers import KD
from calibkd.networks.core import network
from calibkd.objectives import NLL, Objective, Setting, memory, wants
from calibkd.runs import Recipe, Run, identity, objective, objectives
from calibkd.store import Store
from calibkd.sweep import train, traits
from calibkd.places import device
from calibkd.batches import Batches
from calibkd.checkpoints import write_checkpoint
from calibkd.inference import Teacher, fixed_threads
from calibkd.training import Member, fit, one_epoch

DATA, ONE = Dataset("digits", train=200), Recipe(epochs=1, batch=64, precision="fp64")
TASKS = [NLL(), LS(), Focal(), MDCA(beta=5), MDCA(beta=5, task=Focal()), MixUp(), CutMix(p=1.), Cutout(3), MixUp(task=MDCA(task=LS())),
         MMCE(), MMCE(weighted=False, normalise="paper"), CPC(), MbLS(margin=1.), CRL(), PSKD(), AdaFocal(), CRL(task=MixUp(task=PSKD()))]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_any_distiller_with_any_calibrator_and_mixing(task):
    coach = network("resnet8", 10, 1, seed=1)
    run = Run(DATA, "resnet8", KD(T=2, alpha=.5, task=task), ONE, teacher=Run(DATA, "resnet8", recipe=ONE))
    member, = fit([run], DATA.load(), coach.double())
    assert all(p.isfinite().all() for p in member.net.parameters()) and member.history[0]["loss"] > 0


def test_a_cohort_of_eight_equals_each_alone():
    "Different networks, objectives and mixings side by side give what each gives alone: float64, bit by bit"
    data, t = DATA.load(), Run(DATA, "resnet14", recipe=ONE)
    coach = network("resnet14", 10, 1, seed=1).double()
    objectives = [KD(T=T, alpha=a, task=task) for T, (a, task) in product((1, 4), ((.1, NLL()), (.9, MDCA()), (1., NLL()), (.5, MixUp())))]
    runs = [Run(DATA, n, o, replace(ONE, epochs=2), seed=5, teacher=t) for o, n in zip(objectives, ["resnet8", "WRN-10-1"] * 4)]
    for run, together in zip(runs, fit(runs, data, coach)):
        alone, = fit([run], data, coach)
        assert all(torch.equal(a, b) for a, b in zip(alone.net.state_dict().values(), together.net.state_dict().values()))


@dataclass(frozen=True)
class Counting(Objective):
    "Made up: counts how often each training sample was right, and weighs the loss by it"
    def state(self, setting):
        memory = nn.Module()
        memory.register_buffer("count", torch.zeros(setting.num_samples))
        return memory

    def loss(self, seen):
        each = nn.functional.cross_entropy(seen.logits, seen.labels, reduction="none")
        return (each / (1 + seen.state["Counting"].count[seen.batch.index])).mean()

    def remember(self, state, seen): state.count[seen.batch.index] += (seen.logits.argmax(1) == seen.labels).float()


@dataclass(frozen=True)
class Watching(NLL):
    "Made up: keeps the held-out accuracy of every epoch"
    wants_heldout = True

    def state(self, setting):
        memory = nn.Module()
        memory.register_buffer("seen", torch.zeros(1))
        return memory

    def epoch_end(self, state, logits, labels): state.seen += (logits.argmax(1) == labels).float().mean()


REMEMBERING = [Counting(), CRL(), PSKD(), AdaFocal(), MDCA(task=CRL(task=PSKD())), MixUp(task=PSKD()), KD(T=2, alpha=.5, task=Counting()),
               KD(T=2, alpha=.5, task=Watching()), KD(T=2, alpha=.5, task=AdaFocal())]


@pytest.mark.parametrize("task", REMEMBERING, ids=str)
def test_memory_survives_a_kill(task, tmp_path):
    data, recipe = DATA.load(), replace(ONE, epochs=3)
    teacher = Run(DATA, "resnet8", recipe=ONE) if wants(task, "teacher") else None
    coach = network("resnet8", 10, 1, seed=1).double() if teacher else None
    run, path = Run(DATA, "resnet8", task, recipe, teacher=teacher), tmp_path / "checkpoint.safetensors"
    whole, = fit([run], data, coach)
    half = Member(run, data, device())
    with fixed_threads():
        one_epoch([half], Batches(data, recipe, 0, device(), torch.float64), 0, data, Teacher(coach, recipe, device()) if coach else None)
    write_checkpoint(half, path)
    resumed, = fit([run], data, coach, checkpoints=[path])
    assert all(torch.equal(a, b) for a, b in zip(whole.net.state_dict().values(), resumed.net.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(whole.state.state_dict().values(), resumed.state.state_dict().values()))


def test_a_method_with_a_memory_can_be_inherited_from():
    @dataclass(frozen=True)
    class Slower(CRL):
        "Made up: CRL with another default"
        weight: float = .5

    member, = fit([Run(DATA, "resnet8", Slower(), ONE)], DATA.load())
    assert member.state["Slower"].counts.sum() > 0


def test_two_memories_of_one_name_are_refused():
    with pytest.raises(ValueError, match="CRL.*only once"): memory(CRL(task=MDCA(task=CRL())), Setting(10, 20))


CELL = """
from dataclasses import dataclass
import torch
from calibkd.data import Dataset
from calibkd.distillers import Distiller
from calibkd.runs import Recipe, Run
from calibkd.sweep import train, traits

@dataclass(frozen=True)
class LogitMatch(Distiller):
    def distil(self, seen): return (seen.logits - seen.teacher.logits).square().mean()

if __name__ == "__main__":
    data, recipe = Dataset("digits", train=200), Recipe(epochs=1, batch=64)
    teacher = Run(data, "resnet8", recipe=recipe)
    runs = [Run(data, "resnet8", LogitMatch(alpha=a), recipe, teacher=teacher) for a in (.5, 1.)]
    print(train(runs, workers=2).table("top1").objective.tolist())
"""


def test_a_method_made_in_one_cell_goes_through_the_pool(tmp_path):
    (tmp_path / "cell.py").write_text(CELL)
    done = subprocess.run([sys.executable, str(tmp_path / "cell.py")], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "['LogitMatch', 'LogitMatch']" in done.stdout, done.stderr


def test_by_name():
    assert objective("MDCA", beta=5) == MDCA(beta=5) and {"NLL", "LS", "Focal", "MDCA", "MixUp", "CutMix", "TS", "KD", "MMCE", "CRL", "CPC", "MbLS", "PSKD", "AdaFocal"} <= objectives().keys()


def test_temperature_scaling_against_netcal():
    netcal = pytest.importorskip("netcal.scaling")
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2500, 10, generator=g, dtype=torch.float64) * 2
    y = torch.multinomial(z.softmax(1), 1, generator=g).squeeze(1)
    theirs = netcal.TemperatureScaling()
    theirs.fit((3 * z).softmax(1).numpy(), y.numpy())
    assert abs(fit_temperature(3 * z, y) * float(theirs.temperature[0]) - 1) < 2e-3 or abs(fit_temperature(3 * z, y) / float(theirs.temperature[0]) - 1) < 2e-3


def test_temperature_scaled_teacher(tmp_path):
    "CE+TS as a run: no training of its own, the same predictions, a better held-out NLL, and students may learn from it"
    recipe = Recipe(epochs=4, batch=64)
    plain = Run(DATA, "resnet8", recipe=recipe)
    scaled = Run(DATA, "resnet8", TS(), replace(recipe, epochs=0), init=plain)
    results = train([plain, scaled, Run(DATA, "resnet8", KD(T=1), Recipe(epochs=1, batch=64), teacher=scaled)], Store(tmp_path), workers=1)
    nll = [nn.functional.cross_entropy(*results.logits(r, "val")) for r in (plain, scaled)]
    assert results.trained == 3 and nll[1] <= nll[0] and results.numbers(plain, ["top1"]) == results.numbers(scaled, ["top1"])


@pytest.mark.parametrize("T", [0, -1.9, float("nan"), float("inf")])
def test_a_temperature_that_cannot_divide_is_refused(T):
    with pytest.raises(ValueError, match=f"TS: T must be positive, or None to fit it, got {T}"): TS(T=T)


def test_a_temperature_that_was_not_given_is_no_part_of_identity_and_no_column():
    run = lambda o: Run(DATA, "resnet8", o, Recipe(epochs=0))
    assert run(TS()).id == run(TS(T=None)).id and run(TS(T=2)).id == run(TS(2.)).id not in (run(TS()).id, run(TS(3)).id)
    assert "T" not in traits(run(TS())) and traits(run(TS(2)))["T"] == 2


def test_identity_does_not_drift():
    "Whoever trained this run yesterday must find it today; raise runs.VERSION when its meaning changes"
    data = Dataset("textures", train=2000)
    teacher = Run(data, "resnet20", MDCA(beta=10, task=Focal(3)), Recipe.quick)
    run = Run(data, "resnet8", KD(T=2, alpha=.9), Recipe.quick, seed=1, teacher=teacher)
    assert identity(run) == identity(replace(run, objective=KD(T=2.0, alpha=.9))) == "6047bbe5439bdb24"


def test_one_class_missing_and_odd_batches():
    "A data set without samples of a class in training, and a last batch of one image"
    from calibkd.inference import logits_of
    data = DATA.load()
    keep = data.train.labels != 3
    few = replace(data, train=data.train.at(keep.nonzero().squeeze(1)[:65]))
    member, = fit([Run(DATA, "resnet8", recipe=ONE)], few)
    assert logits_of(member.net, few, few.test)[0].isfinite().all()
    assert len(Batches(few, ONE, 0, device())) == 1
