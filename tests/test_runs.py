"Runs: recipes against torch's own schedulers, identities, and what may be given in short."
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from calibkd.calibrators import MDCA, Focal
from calibkd.data import Dataset
from calibkd.distillers import KD
from calibkd.networks.core import network
from calibkd.objectives import NLL, Objective
from calibkd.places import checksum
from calibkd.runs import RECIPES, Recipe, Run, Weights, canonical, learning_rate, named_recipe, objective, pretrained
from calibkd.runs import float_fields, renew, short
from calibkd.sweep import train
from calibkd.training import make_optimiser

DIGITS, ONE = Dataset("digits", train=200), Recipe(epochs=1, batch=64)


def of_torch(make, steps, lr=.1):
    "The learning rates that a scheduler of torch's gives, step by step"
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    scheduler, seen = make(optimiser), []
    for _ in range(steps):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step(), scheduler.step()
    return seen


def warm(then, steps, up=5):
    "A rise over some steps, then another scheduler"
    rise = lambda o: schedulers.LambdaLR(o, lambda step: (step + 1) / up)
    return lambda o: schedulers.SequentialLR(o, [rise(o), then(o)], [up])


SCHEDULES = {  # a recipe of 20 steps in 10 epochs, and what torch has for it
    "constant": (Recipe(schedule="constant"), lambda o: schedulers.ConstantLR(o, 1.)),
    "step": (Recipe(milestones=(.5, .75)), lambda o: schedulers.MultiStepLR(o, [10, 15])),
    "cosine": (Recipe(schedule="cosine", lr_end=.01), lambda o: schedulers.CosineAnnealingLR(o, 20, .01)),
    "linear": (Recipe(schedule="linear", lr_end=.01), lambda o: schedulers.LinearLR(o, 1., .1, 20)),
    "a share to warm up": (Recipe(schedule="cosine", warmup=.25), warm(lambda o: schedulers.CosineAnnealingLR(o, 15), 20)),
    "steps to warm up": (Recipe(schedule="cosine", warmup_steps=5), warm(lambda o: schedulers.CosineAnnealingLR(o, 15), 20)),
    "linear after warm steps": (Recipe(schedule="linear", warmup_steps=5), warm(lambda o: schedulers.LinearLR(o, 1., 0., 15), 20)),
    "linear beyond its end": (Recipe(schedule="linear", lr_end=.01, horizon=6), lambda o: schedulers.LinearLR(o, 1., .1, 12)),
    "step beyond its end": (Recipe(horizon=6), lambda o: schedulers.MultiStepLR(o, [6, 9])),
    "a longer plan": (Recipe(schedule="cosine", horizon=30), lambda o: schedulers.CosineAnnealingLR(o, 60)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_are_those_of_torch(name):
    recipe, make = SCHEDULES[name]
    ours = [learning_rate(replace(recipe, epochs=10), step, 20) for step in range(20)]
    assert ours == pytest.approx(of_torch(make, 20), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("recipe", [Recipe(schedule="cosine", horizon=6, lr_end=.01), Recipe(schedule="linear", horizon=6, lr_end=.01),
                                    Recipe(schedule="cosine", horizon=1, warmup_steps=5, lr_end=.01)])
def test_beyond_its_end_a_schedule_stays_there(recipe):
    ours = [learning_rate(replace(recipe, epochs=10), step, 20) for step in range(20)]
    assert ours[12:] == [.01] * 8 and max(ours) <= .1


def test_a_plan_of_as_many_epochs_is_no_plan():
    for schedule in ("step", "cosine", "linear"):
        recipe = Recipe(epochs=7, schedule=schedule, warmup=.3)
        rates = [[learning_rate(r, step, 35) for step in range(35)] for r in (recipe, replace(recipe, horizon=7))]
        assert rates[0] == rates[1]


def test_adamw_is_torchs(monkeypatch):
    layer = nn.Linear(2, 2)
    made = make_optimiser(Recipe(optimiser="adamw", lr=.01, weight_decay=.2), [layer])
    assert type(made) is torch.optim.AdamW and made.param_groups[0]["weight_decay"] == .2 and len(made.param_groups[0]["params"]) == 2
    run = Run(DIGITS, "resnet8", recipe=replace(ONE, optimiser="adamw", schedule="linear", lr=.01, warmup_steps=2))
    assert train([run], workers=1).trained == 1


def test_recipes_have_names_and_stand_on_the_class():
    assert {name: named_recipe(name) for name in RECIPES} == {name: getattr(Recipe, name) for name in RECIPES}
    papers = {"kdc_cifar", "kdc_large", "kdc_tiny", "crd", "crd_mobile", "review", "pskd", "uncal", "essence", "essence_few"}
    papers |= {"uncal_small", "uncal_cinic", "uncal_cinic_small", "uncal_tiny"}
    assert set(RECIPES) == papers | {"quick", "quick_steps", "uncal_quick"}
    tiny = Recipe.uncal_tiny
    assert [round(learning_rate(tiny, e, tiny.epochs), 6) for e in (0, 149, 150, 179, 180, 199)] == [.1, .1, .01, .01, .001, .001]
    assert (tiny.batch, tiny.weight_decay, Recipe.uncal_cinic_small.batch, Recipe.uncal_cinic_small.lr) == (128, 1e-4, 256, .01)
    assert Recipe.uncal_quick == replace(Recipe.quick, epochs=72, lr=.2) and Recipe.uncal_small == replace(Recipe.uncal, lr=.01)
    rates = {e: learning_rate(Recipe.pskd, e, 300) for e in (0, 149, 150, 224, 225, 299)}
    assert [*rates.values()] == pytest.approx([.1, .1, .01, .01, .001, .001]) and Recipe.crd_mobile == replace(Recipe.crd, lr=.01)


def test_options_that_nobody_sets_play_no_part():
    assert not {"warmup_steps", "horizon"} & canonical(Recipe()).keys() and canonical(Recipe(horizon=3))["horizon"] == 3


NUMPY = {
    "seed": (dict(seed=np.int64(3)), dict(seed=3)), "T": (dict(objective=KD(T=np.float64(2))), dict(objective=KD(T=2.))),
    "an integer for T": (dict(objective=KD(T=np.int32(2))), dict(objective=KD(T=2.))),
    "a task": (dict(objective=KD(task=MDCA(task=Focal(np.float32(3))))), dict(objective=KD(task=MDCA(task=Focal(3.))))),
    "sizes": (dict(dataset=Dataset("digits", train=np.int64(200), val=np.float64(.1))), dict()),
    "a recipe": (dict(recipe=Recipe(epochs=np.int16(1), batch=np.int64(64), lr=np.float64(.1), milestones=[np.float64(.5), .75])), dict()),
    "stop": (dict(stop=np.int64(0)), dict(stop=0)), "a name": (dict(network=np.str_("resnet8")), dict()),
}


@pytest.mark.parametrize("name", NUMPY)
def test_numbers_of_numpy_are_numbers(name):
    usual = dict(dataset=DIGITS, network="resnet8", objective=KD(), recipe=ONE, teacher=Run(DIGITS, "resnet8"))
    theirs, ours = (Run(**usual | change) for change in NUMPY[name])
    assert theirs == ours and theirs.id == ours.id and json.dumps(theirs.definition) == json.dumps(ours.definition)
    numbers = [*vars(theirs.recipe).values(), *vars(theirs.objective).values(), *vars(theirs.dataset).values(), theirs.seed, theirs.stop]
    assert not any(isinstance(n, np.generic) for n in numbers)


def test_a_run_with_numbers_of_numpy_is_trained():
    run = Run(Dataset("digits", train=np.int64(200)), "resnet8", MDCA(beta=np.float32(2)), replace(ONE, epochs=np.int64(1)), seed=np.int64(2))
    assert train([run], workers=1).trained == 1


def test_what_is_obvious_may_be_given_in_short():
    assert Run("digits", "resnet8", "MDCA", "quick") == Run(Dataset("digits"), "resnet8", MDCA(), Recipe.quick)


def test_a_trained_module_may_be_the_teacher():
    net = network("resnet8", 10, 1, seed=0)
    student = Run(DIGITS, "resnet8", KD(), ONE, teacher=net)
    assert student.teacher == Run(DIGITS, net, recipe=Recipe(epochs=0)) and student.teacher.epochs == 0
    results = train([student], workers=1)
    kept = results.store.weights(student.teacher)
    assert results.trained == 2 and all(torch.equal(kept[k], v) for k, v in net.state_dict().items())


def test_a_teacher_of_other_data_serves_where_classes_and_sizes_agree():
    more = Run(Dataset("digits", train=300), "resnet8", recipe=ONE)
    assert train([Run(DIGITS, "resnet8", KD(), ONE, teacher=more)], workers=1).trained == 2
    other = Run(Dataset("textures:4x3", train=120, test=60), "resnet8", recipe=ONE)
    for wrong in (Run(DIGITS, "resnet8", KD(), ONE, teacher=other), Run(DIGITS, "resnet8", recipe=ONE, init=other)):
        with pytest.raises(ValueError, match=r"10 classes of 1×8×8 samples, but .* 12 classes of 3×16×16") as error: train([wrong], workers=1)
        assert "\n" not in str(error.value)


def test_a_run_stopped_at_its_end_is_the_run():
    run = Run(DIGITS, "resnet8", recipe=Recipe(epochs=4))
    assert run.at(4) == run == run.at(2).at(np.int64(4)) and run.at(4).id == run.id != run.at(np.int32(3)).id == run.at(3).id
    for wrong in (5, -1, 2.5, "2"):
        with pytest.raises(ValueError, match="stop must"): run.at(wrong)


@dataclass(frozen=True)
class Needy(Objective):
    margin: float
    power: int = 2

    def loss(self, seen): return seen.logits.abs().pow(self.power).mean() + self.margin


def test_a_required_field_is_shown():
    assert short(Needy(2)) == "Needy(margin=2)" and "Needy(margin=1, power=3)" in repr(Run(DIGITS, "resnet8", Needy(1, 3)))
    assert short(KD(T=2, task=MDCA(beta=5))) == "KD(task=MDCA(beta=5), T=2)"


FUTURE = '''
from __future__ import annotations
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional
from calibkd.distillers import KD
from calibkd.objectives import Objective
if TYPE_CHECKING: import nowhere
Share = float
@dataclass(frozen=True)
class Alias(KD):
    share: Share = .5
    maybe: Optional[Share] = None
    floats_named: int = 1
@dataclass(frozen=True)
class Unknown(Objective):
    share: float = .5
    what: nowhere.Thing = None
'''


def test_what_is_a_float_does_not_hang_on_the_text_of_an_annotation(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "in_future.py").write_text(FUTURE)
    import in_future
    ids = {Run(DIGITS, "resnet8", in_future.Alias(share=s, maybe=m, T=t), teacher=Run(DIGITS, "resnet8")).id
           for s, m, t in [(1, 2, 3), (1., 2., 3.), (1, 2., 3)]}
    assert len(ids) == 1 and float_fields(in_future.Alias) == float_fields(KD) | {"share", "maybe"}
    assert Run(DIGITS, "resnet8", in_future.Unknown(1)).id == Run(DIGITS, "resnet8", in_future.Unknown(1.)).id
    del sys.modules["in_future"]


def test_a_checkpoint_is_known_by_its_content_and_read_once(tmp_path, monkeypatch):
    first, second = tmp_path / "net.pt", tmp_path / "elsewhere" / "other.pt"
    torch.save({"state_dict": network("resnet8", 10, 1, seed=0).state_dict()}, first)
    second.parent.mkdir()
    shutil.copy(first, second)
    reads = []
    monkeypatch.setattr("calibkd.runs.checksum", lambda path: reads.append(path) or checksum(path))
    runs = [pretrained(DIGITS, "resnet8", path) for path in (first, second)]
    for run in runs * 5: renew([run]); run.id
    assert runs[0].id == runs[1].id and len(reads) == 2 and str(tmp_path) not in json.dumps(runs[0].definition)
    torch.save({"state_dict": network("resnet8", 10, 1, seed=1).state_dict()}, first)
    assert pretrained(DIGITS, "resnet8", first).id != runs[1].id and len(reads) == 3


def test_fields_that_are_no_numbers_are_identified_or_refused():
    @dataclass(frozen=True)
    class Holding(Objective):
        what: object = None
        def loss(self, seen): return seen.logits.sum()
    ident = lambda what: Run(DIGITS, "resnet8", Holding(what)).id
    assert ident(torch.zeros(2)) == ident(torch.zeros(2)) != ident(torch.ones(2))
    assert len({ident(lambda x: x), ident(lambda x: x + 1), ident(abs), ident(None), ident({"a": (1, 2)}), ident(np.arange(3))}) == 6
    with pytest.raises(ValueError, match="nothing identifies"): ident(threading.Lock())


def test_attributes_of_an_own_init_count():
    class Odd(NLL):
        def __init__(self, power): object.__setattr__(self, "power", power)
        def loss(self, seen): return super().loss(seen) ** self.power
    assert len({Run(DIGITS, "resnet8", o).id for o in (Odd(1), Odd(2), Odd(np.int64(2)), NLL())}) == 3


def test_a_class_of_the_same_name_elsewhere_is_another():
    class MDCA(NLL):
        def loss(self, seen): return 2 * super().loss(seen)
    assert type(objective("Focal")) is Focal and Run(DIGITS, "resnet8", MDCA()).id != Run(DIGITS, "resnet8", NLL()).id
    assert canonical(MDCA())["type"] == "MDCA" and canonical(MDCA()).keys() == {"type", "its code"}


def test_another_process_reads_the_same_identity():
    "Nothing of an identity hangs on addresses, on the order of a set, or on the seed of hashes"
    code = "from test_runs import DIGITS, Needy; from calibkd.runs import Run; print(Run(DIGITS, 'resnet8', Needy(1)).id)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7",
                          "PYTHONPATH": f"{__file__.rpartition('/')[0]}:{os.environ.get('PYTHONPATH', '')}"})
    assert done.stdout.split() == [Run(DIGITS, "resnet8", Needy(1)).id], done.stderr


def test_a_name_of_the_library_stays_the_librarys():
    "A class of the same name elsewhere is reached through its module, or as an object"
    from calibkd import calibrators
    other = type("MDCA", (calibrators.MDCA,), {"loss": lambda self, seen: 0 * seen.logits.sum()})
    assert type(objective("MDCA")) is calibrators.MDCA is not other


def test_a_checkpoint_is_found_by_its_name_and_moving_it_changes_no_run(tmp_path, monkeypatch):
    "Here, then in CALIBKD_WEIGHTS; a name with a folder only there"
    here, root = tmp_path / "here", tmp_path / "weights"
    for folder in (here, root): folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("CALIBKD_WEIGHTS", str(root))
    torch.save(network("resnet8", 10, 1, seed=1).state_dict(), root / "theirs.th")
    torch.save(network("resnet8", 10, 1, seed=2).state_dict(), here / "other.th")
    run = lambda name: pretrained(DIGITS, "resnet8", name)
    first = run("theirs.th")
    assert first.init.file == root / "theirs.th" and first.id == run(str(root / "theirs.th")).id != run("other.th").id
    assert train([first]).logits(first)[0].isfinite().all(), "and it is read there"
    shutil.move(root / "theirs.th", here / "renamed.th")
    assert run("renamed.th").id == first.id
    with pytest.raises(FileNotFoundError): run("weights/theirs.th")


def test_where_a_published_checkpoint_was_looked_for_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBKD_WEIGHTS", str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError) as caught: Weights("resnet56-4bfd9763.th")
    assert all(words in str(caught.value) for words in ("here", str(tmp_path / "mine"), "akamaster/pytorch_resnet_cifar10"))
    with pytest.raises(FileNotFoundError) as caught: Weights(str(tmp_path / "x.th"))
    assert "mine" not in str(caught.value) and "akamaster" not in str(caught.value)
