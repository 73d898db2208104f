"The step's contract, each clause with a made-up method that needs it."
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from calibkd import training
from calibkd.batches import Batches, generator
from calibkd.calibrators import TS, CutMix, Cutout, MixUp
from calibkd.checkpoints import read_note
from calibkd.data import Dataset
from calibkd.data.splits import Loaded, Split
from calibkd.distillers import KD
from calibkd.distillers.logits import Distiller
from calibkd.inference import Teacher, logits_of
from calibkd.networks.core import named, network
from calibkd.objectives import NLL, Around, Objective, Seen, Setting, memory, wants
from calibkd.places import device
from calibkd.runs import Recipe, Run
from calibkd.training import Member, fit, trainings

DATA, RECIPE = Dataset("digits", train=200), Recipe(epochs=4, batch=64, precision="fp32")  # three steps an epoch
COACH = Run(DATA, "resnet14", recipe=RECIPE)


@cache
def data(): return DATA.load()


def coach(): return network("resnet14", 10, 1, seed=1)


def student(objective, recipe=RECIPE, **more):
    teacher = COACH if wants(objective, "teacher") else None
    return Run(DATA, "resnet8", objective, recipe, seed=5, teacher=teacher, **more)


def same(a, b):
    "Weights, states and what is kept, bit by bit"
    tensors = lambda m: {**m.net.state_dict(), **{f"state.{k}": v for k, v in m.state.state_dict().items()}, **m.kept}
    return tensors(a).keys() == tensors(b).keys() and all(torch.equal(v, tensors(b)[k]) for k, v in tensors(a).items())


def one_step(objective, recipe=RECIPE, teacher=True):
    "A member that is about to step, the batch that its cohort shares, and the teacher"
    asked = Teacher(coach(), recipe, device(), wants(objective, "features")) if wants(objective, "teacher") else None
    member = Member(student(objective, recipe), data(), device(), teacher=asked)
    return member, next(Batches(data(), recipe, 5, device(), member.kind).epoch(0, recipe.epochs)), asked


@dataclass(frozen=True)
class Contrast(Distiller):
    "Made up: two embeddings to train, a bank of random codes, contrasts drawn by the step, losses that should last"
    wants_features = True

    def state(self, setting):
        sizes = [shapes["pooled"][0] for shapes in (setting.student, setting.teacher)]
        own = nn.ModuleList([nn.Sequential(nn.Linear(n, 8), nn.BatchNorm1d(8)) for n in sizes])
        own.register_buffer("bank", F.normalize(torch.randn(setting.num_samples, 8)))
        own.register_buffer("worst", torch.zeros(setting.num_samples))
        return own

    def codes(self, seen, state):
        return [F.normalize(e(o.features["pooled"])) for e, o in zip(state, (seen.student, seen.teacher))]

    def distil(self, seen):
        own = seen.state["Contrast"]
        s, t = self.codes(seen, own)
        others = own.bank[torch.randint(len(own.bank), (len(s), 4), generator=seen.generator)].to(s)
        scores = torch.cat([(s * t).sum(1, keepdim=True), (others * s[:, None]).sum(2)], 1) / .1
        return F.cross_entropy(scores, torch.zeros(len(s), dtype=torch.int64))

    def remember(self, state, seen):
        seen = seen.clean or seen
        state.bank[seen.batch.index] = self.codes(seen, state)[1].to(state.bank)
        state.worst[seen.batch.index] = F.cross_entropy(seen.logits, seen.labels, reduction="none").to(state.worst)

    def record(self, state, epoch, epochs): return {"worst": state.worst} if epoch in (2, epochs) else {}


WHOLE = [Contrast(clean=True, alpha=.5, task=MixUp()), Contrast(alpha=.5, task=CutMix(p=1.)), Contrast(clean=True),
         KD(T=2, alpha=.5, clean=True, task=MixUp())]


# 1. a state comes from the seed alone

def test_equal_runs_have_equal_modules_whatever_was_drawn_before():
    first, _, _ = one_step(Contrast())
    torch.rand(7)
    second, _, _ = one_step(Contrast())
    before = torch.get_rng_state()
    other, _, _ = one_step(MixUp(task=Contrast()))
    assert same(first, second) and torch.equal(before, torch.get_rng_state())
    around = zip(first.state.parameters(), other.state.parameters())
    assert all(torch.equal(a, b) for a, b in around)  # whatever stands around the method


def test_states_differ_between_seeds_and_methods():
    class Other(Contrast): pass
    setting = Setting(10, 20, {"pooled": (16,)}, {"pooled": (16,)})
    bank = lambda o, **more: memory(o, replace(setting, **more))[o.name].bank
    first = bank(Contrast())
    assert not torch.equal(first, bank(Contrast(), seed=1)) and not torch.equal(first, bank(Other()))


def test_what_a_method_wraps_around_the_network_comes_from_the_seed():
    class Head(nn.Module):
        def __init__(self, net): super().__init__(); self.net, self.head = net, nn.Linear(10, 10)
        def forward(self, x): return self.head(self.net(x))

    @dataclass(frozen=True)
    class Headed(NLL):
        "Made up: another layer on the logits"
        def wrap(self, net): return Head(net)

    assert same(one_step(Headed())[0], one_step(Headed())[0])


@pytest.mark.parametrize("o", WHOLE, ids=str)
def test_a_cohort_gives_what_each_gives_alone(o, together=[]):
    if not together: together.extend(fit([student(o) for o in WHOLE], data(), coach()))  # in float32, once
    alone, = fit([student(o)], data(), coach())
    assert same(alone, together[WHOLE.index(o)])


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_modules_are_trained_in_any_precision(precision):
    recipe = replace(RECIPE, epochs=2, precision=precision)
    member, = fit([student(Contrast(clean=True, task=MixUp()), recipe)], data(), coach())
    assert next(member.state.parameters()).dtype == member.kind and member.kept["Contrast.worst@2"].isfinite().all()


# 2. two views

@dataclass(frozen=True)
class Looking(Distiller):
    "Made up: keeps what its term sees"
    def distil(self, seen):
        SIGHT.append(seen)
        return seen.logits.square().mean()


SIGHT = []


@pytest.fixture(autouse=True)
def blind(): SIGHT.clear()


def test_the_term_sees_the_shared_images_and_the_task_its_own():
    member, batch, teacher = one_step(Looking(clean=True, alpha=.5, task=MixUp()))
    seen = member.see(batch, generator(5), teacher)
    assert seen.batch.x is not batch.x and seen.batch.labels_b is not None and seen.teacher is None
    member.run.objective.loss(seen)
    assert SIGHT[0].batch is batch and SIGHT[0].teacher is teacher(batch.x)
    assert SIGHT[0].student.logits.shape == seen.logits.shape and not torch.equal(SIGHT[0].logits, seen.logits)


def test_one_view_for_all_is_the_default():
    member, batch, teacher = one_step(Looking(alpha=.5, task=MixUp()))
    seen = member.see(batch, generator(5), teacher)
    member.run.objective.loss(seen)
    assert seen.clean is None and SIGHT == [seen] and seen.batch.x is not batch.x
    torch.testing.assert_close(seen.teacher.logits, teacher(seen.batch.x).logits)
    assert Looking(clean=False) == Looking() and not wants(Looking(clean=False), "clean")


def test_a_term_that_is_no_distillation_may_ask_too():
    @dataclass(frozen=True)
    class Agreeing(Around):
        "Made up: both views should be answered alike"
        wants_clean = True
        def loss(self, seen): return self.task.loss(seen) + (seen.logits - seen.clean.logits).square().mean()

    member, batch, _ = one_step(Agreeing(task=MixUp()))
    seen = member.see(batch, generator(5), None)
    assert seen.clean.batch is batch and seen.clean.teacher is None
    apart = (seen.logits - seen.clean.logits).square().mean()
    torch.testing.assert_close(member.run.objective.loss(seen), MixUp().loss(seen) + apart)
    plain, batch, _ = one_step(Agreeing())
    seen = plain.see(batch, generator(5), None)
    assert seen.clean.student is seen.student  # the task's view is the shared one


def test_nested_distillers_see_each_what_they_ask_for():
    member, batch, teacher = one_step(Looking(alpha=.5, task=KD(alpha=.5, clean=True, task=MixUp())))
    seen = member.see(batch, generator(5), teacher)
    member.run.objective.loss(seen)
    assert SIGHT[0].batch.x is seen.batch.x is not batch.x and SIGHT[0].teacher is not None
    assert seen.clean.teacher is teacher(batch.x)


def test_passes_are_counted(monkeypatch):
    "A second pass of the student only where its view is another; one of the teacher for all who see the shared images"
    passes = {"student": 0, "teacher": 0}
    ask = training.ask
    def counted(*a):
        passes["student"] += 1
        return ask(*a)
    monkeypatch.setattr(training, "ask", counted)
    objectives = {KD(clean=True, task=MixUp()): 2, KD(task=MixUp()): 1, KD(clean=True): 1, KD(): 1, NLL(): 1,
                  KD(clean=True, task=CutMix(p=0.)): 1, KD(T=2, clean=True, task=MixUp()): 2, KD(clean=True, task=Cutout(3)): 2}
    asked, steps = Teacher(coach(), RECIPE, device()), 3
    asked.net.register_forward_hook(lambda *_: passes.update(teacher=passes["teacher"] + 1))
    members = [Member(student(o), data(), device(), teacher=asked) for o in objectives]
    training.one_epoch(members, Batches(data(), RECIPE, 5, device()), 0, data(), asked)
    assert passes["student"] == steps * sum(objectives.values())
    assert passes["teacher"] == steps * 2  # the shared images, and the mixed ones of the second


def test_the_holes_of_a_step_belong_to_the_run_and_not_to_the_distiller():
    "The framework, the augmentation alone and the teacher seeing holes too: one seed, one step, the same holes; the clean images stay whole"
    batches, cut = [], Cutout(3)
    for objective in (KD(alpha=.5, clean=True, task=cut), cut, KD(alpha=.5, task=cut), KD(alpha=.5, clean=True, task=MixUp())):
        member, batch, asked = one_step(objective)
        batches.append(member.see(batch, torch.Generator().manual_seed(3), asked).batch)
    ours, alone, shown, other = (b.x for b in batches)
    assert torch.equal(ours, alone) and torch.equal(ours, shown) and not torch.equal(ours, batch.x) and not torch.equal(ours, other)
    assert ((ours == batch.x) | (ours == 0)).all() and batches[0].labels_b is None


def test_without_mixing_both_arms_are_one():
    "Where the task's view is the shared batch, clean or not is the same training"
    a, b = fit([student(KD(T=2, alpha=.5)), student(KD(T=2, alpha=.5, clean=True))], data(), coach())
    assert same(a, b)


# 3. steps, a generator, labels, float32

@dataclass(frozen=True)
class Noting(NLL):
    "Made up: notes where it is, draws a number, and looks its labels up"
    def state(self, setting):
        own = nn.Module()
        own.register_buffer("labels", setting.labels.clone())
        own.register_buffer("seed", torch.tensor(setting.seed))
        return own

    def loss(self, seen):
        own, b = seen.state["Noting"], seen.batch
        assert torch.equal(own.labels[b.index], b.labels) and own.seed == 5
        SIGHT.append((b.epoch, b.epochs, b.step, b.steps, float(torch.rand((), generator=seen.generator))))
        return super(Noting, self).loss(seen)


def test_steps_are_counted_through_the_epochs_and_draws_are_seeded():
    fit([student(Noting())], data())
    first, draws = [s[:4] for s in SIGHT], [s[4] for s in SIGHT]
    assert first == [(e, 4, 3 * e + i, 12) for e in range(4) for i in range(3)] and len(set(draws)) == 12
    SIGHT.clear()
    fit([student(NLL()), student(Noting())], data())
    assert [s[4] for s in SIGHT] == draws


@pytest.mark.parametrize("precision, expected", [("bf16", torch.float32), ("fp64", torch.float64)])
def test_features_come_in_full_precision(precision, expected):
    class Featured(Looking): wants_features = True
    member, batch, teacher = one_step(Featured(), replace(RECIPE, precision=precision))
    seen = member.see(batch, generator(5), teacher)
    for features in (seen.student.features, seen.teacher.features):
        flat = [t for v in features.values() for t in (v if isinstance(v, list) else [v])]
        assert len(flat) > 4 and {t.dtype for t in flat} == {expected}
    assert seen.student.features["pooled"].requires_grad and not seen.teacher.features["pooled"].requires_grad


# 5. snapshots

def test_which_runs_are_one_training():
    run = student(NLL())
    assert trainings([run, run.at(2), run, student(TS()), run.at(1)]) == [[run.at(1), run.at(2), run], [student(TS())]]


@pytest.mark.parametrize("o", [NLL(), Contrast(clean=True, task=MixUp()), TS()], ids=str)
def test_snapshots_cost_one_training_and_are_what_they_are_alone(o, monkeypatch):
    steps, kept = [], []
    step = Member.step
    monkeypatch.setattr(Member, "step", lambda self, *a: steps.append(self) or step(self, *a))
    run = student(o)
    runs = [run, run.at(1), run.at(0), run.at(3)]
    teacher = coach() if run.teacher else None
    members = fit(runs, data(), teacher, keep=lambda m: kept.append((m.run, m.epoch, len(steps))))
    assert len(steps) == 12 and [m.run for m in members] == runs
    assert kept == [(run.at(0), 0, 0), (run.at(1), 1, 3), (run.at(3), 3, 9), (run, 4, 12)]
    for r, m in zip(runs, members):
        alone, = fit([r], data(), teacher)
        assert same(alone, m) and m.epoch == r.epochs and m.history == alone.history and len(m.history) == r.epochs


def test_a_run_is_kept_when_it_is_done_not_when_its_cohort_is():
    said, kept = [], []
    keep = lambda m: kept.append((m.run.objective, sum(said)))
    fit([student(NLL()).at(1), student(MixUp())], data(), report=said.append, keep=keep)
    assert kept == [(NLL(), 0), (MixUp(), 4)] and sum(said) == 5


@dataclass(frozen=True)
class Diverging(NLL):
    "Made up: no number any more from some epoch on"
    when: int = 2

    def loss(self, seen):
        loss = super(Diverging, self).loss(seen)
        return loss * float("nan") if seen.batch.epoch >= self.when else loss


def test_who_diverges_leaves_and_the_others_go_on(tmp_path):
    runs = [student(Diverging()), student(NLL()), student(Diverging(3)), student(Diverging()).at(1)]
    kept, paths = {}, [tmp_path / f"{i}.safetensors" for i in range(4)]
    keep = lambda m: kept.update({m.run: m})
    with pytest.raises(ValueError) as error: fit(runs, data(), checkpoints=paths, keep=keep)
    assert [*kept] == [runs[3], runs[1]] and same(kept[runs[1]], fit([runs[1]], data())[0])
    first, second = str(error.value).splitlines()
    assert "Diverging" in first and "nan in epoch 2; lower the learning rate" in first
    assert "when=3" in second and "nan in epoch 3; lower the learning rate" in second
    assert read_note(paths[0])["epoch"] == 2 and read_note(paths[2])["epoch"] == 3  # where all was well


def test_a_cohort_of_diverging_runs_ends_at_once():
    with pytest.raises(ValueError, match="epoch 1"):
        fit([student(Diverging(1), replace(RECIPE, epochs=10**6))], data())


@dataclass(frozen=True)
class Stopped(Contrast):
    "Made up: Ctrl-C comes in the middle of an epoch"
    at: tuple = ()
    name = "Contrast"
    def distil(self, seen):
        if seen.batch.step in STOPS: STOPS.remove(seen.batch.step); raise KeyboardInterrupt
        return super(Stopped, self).distil(seen)


STOPS = set()


def test_ctrl_c_and_resume_with_snapshots(tmp_path):
    "What had ended is kept, the rest goes on from its last epoch, and everything is as if nothing had happened"
    objective = Stopped(clean=True, alpha=.5, task=MixUp())
    runs = [student(objective).at(1), student(objective).at(3), student(objective), student(NLL())]
    whole, kept = fit(runs, data(), coach()), {}
    paths = {r: tmp_path / f"{i}.safetensors" for i, r in enumerate(runs)}
    def again():
        left = [r for r in runs if r not in kept]
        fit(left, data(), coach(), checkpoints=[paths[r] for r in left], keep=lambda m: kept.update({m.run: m}))

    for stop in (1, 7, 8, 10):
        STOPS.add(stop)
        with pytest.raises(KeyboardInterrupt): again()
    assert [*kept] == runs[:2] and not paths[runs[0]].exists()  # a training has one checkpoint, its longest run's
    again()
    assert all(same(m, kept[r]) and m.history == kept[r].history for r, m in zip(runs, whole))


def test_a_checkpoint_beyond_a_snapshot_is_not_used(tmp_path, monkeypatch):
    run, path = student(NLL()), tmp_path / "checkpoint.safetensors"
    fit([run], data(), checkpoints=[path])
    assert read_note(path)["epoch"] == 3
    early, late = fit([run.at(1), run], data(), checkpoints=[tmp_path / "none", path])
    assert same(early, fit([run.at(1)], data())[0]) and same(late, fit([run], data())[0])


# 6. what a method wants remembered

def test_what_a_method_wants_remembered_is_kept_under_its_name_and_epoch():
    run = student(MixUp(task=Contrast()))
    early, whole = fit([run.at(2), run], data(), coach())
    assert [*early.kept] == ["Contrast.worst@2"] and [*whole.kept] == ["Contrast.worst@2", "Contrast.worst@4"]
    assert torch.equal(early.kept["Contrast.worst@2"], whole.kept["Contrast.worst@2"])
    assert not torch.equal(whole.kept["Contrast.worst@2"], whole.kept["Contrast.worst@4"])
    assert len(whole.kept["Contrast.worst@2"]) == len(data().train)


def test_a_record_is_taken_without_gradient_and_without_a_state():
    @dataclass(frozen=True)
    class Telling(Objective):
        "Made up: has no state, and tells the epoch"
        def loss(self, seen): return F.cross_entropy(seen.logits, seen.labels)
        def record(self, state, epoch, epochs):
            assert state is None and not torch.is_grad_enabled()
            return {"share": torch.tensor(epoch / epochs)}

    member, = fit([student(Telling())], data())
    assert {k: float(v) for k, v in member.kept.items()} == {f"Telling.share@{e}": e / 4 for e in (1, 2, 3, 4)}


# 7. tokens

WORDS, LENGTH = 12, 9


class Tokens(Loaded):
    "Made up: sequences of words; the label is the word that is most frequent in three of them"
    channels = WORDS
    def normalise(self, x): return x


class Reader(nn.Module):
    "Made up: the mean of embeddings, and a layer that mixes neighbours"
    def __init__(self, words, classes):
        super().__init__()
        self.embed, self.mix = nn.Embedding(words, 16), nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, classes)

    def forward(self, x, features=False):
        maps = self.mix(self.embed(x).mT).relu()
        logits = self.head(maps.mean(2))
        return (logits, {"stem": x, "maps": [maps], "preact": [maps], "pooled": maps.mean(2)}) if features else logits


@named(r"made-up-reader")
def reader(num_classes, in_channels): return Reader(in_channels, num_classes)


@cache
def tokens():
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(WORDS, (400, LENGTH), generator=draw)
    counts = F.one_hot(x, WORDS).sum(1)[:, :3] + torch.rand(400, 3, generator=draw) / 2
    split = lambda rows: Split(x[rows], counts.argmax(1)[rows], rows)
    parts = [split(torch.arange(*ends)) for ends in ((0, 250), (250, 300), (300, 400))]
    return Tokens(*parts, ["a", "b", "c"], torch.empty(0), torch.empty(0))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_tokens_pass_where_images_pass(precision, tmp_path):
    "A student with features, state and snapshots from a teacher, resumed, and alone as in a cohort"
    recipe = replace(RECIPE, epochs=6, precision=precision)
    teacher, = fit([Run(DATA, "made-up-reader", NLL(), recipe)], tokens())
    methods = (Contrast(alpha=.5, clean=True), KD(T=2, alpha=.5))
    runs = [Run(DATA, "made-up-reader", o, recipe, seed=5, teacher=COACH) for o in methods]
    wanted, paths = [runs[0].at(3), *runs], [tmp_path / str(i) for i in range(3)]
    members = fit(wanted, tokens(), teacher.net, checkpoints=paths)
    again = fit(wanted[1:], tokens(), teacher.net, checkpoints=paths[1:])  # from the last checkpoint
    assert read_note(paths[1])["epoch"] == 5 and all(same(a, b) for a, b in zip(members[1:], again))
    assert same(members[1], fit(runs[:1], tokens(), teacher.net)[0])
    logits, labels = logits_of(members[1].net, tokens(), tokens().test)
    assert logits.shape == (100, 3) and (logits.argmax(1) == labels).float().mean() > .5
