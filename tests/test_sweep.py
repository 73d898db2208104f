"Plans, pools and tables: what is asked for, who does it, what goes wrong, and what a row knows."
import os
import pickle
import sys
import types
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass, replace

import numpy as np
import pytest
import small_grid
import torch

from calibkd import executors, sweep
from calibkd.calibrators import LS, MDCA, TS, Focal
from calibkd.data import Dataset, stratified
from calibkd.distillers import KD
from calibkd.executors import cores, each
from calibkd.inference import logits_of
from calibkd.metrics import measure
from calibkd.objectives import NLL
from calibkd.runs import Recipe, Run
from calibkd.store import Store
from calibkd.sweep import Results, all_traits, epochs_done, floors, pieces, train, traits, work
from calibkd.training import trainings

DATA, RECIPE = Dataset("digits", train=200), Recipe(epochs=4, batch=64, precision="fp32")
LONG = Run(DATA, "resnet8", recipe=RECIPE)


def same_weights(a, b, runs):
    return all(torch.equal(x, b.weights(r)[k]) for r in runs for k, x in a.weights(r).items())


# what is asked for


@pytest.mark.parametrize("asked, rows", [(LONG, 1), ((r for r in [LONG, LONG.at(1)]), 2), ([LONG, LONG], 2), ({LONG: 1}, 1)])
def test_a_run_a_generator_and_duplicates_are_runs(asked, rows):
    results = train(asked, workers=np.int64(1))
    assert len(results) == rows == len(results.table("top1")) and results.trained == len({*results})


@pytest.mark.parametrize("asked", ["digits", DATA, ["resnet8"], [LONG, None], 5, None])
def test_what_is_no_run_is_refused(asked):
    with pytest.raises(ValueError, match=r"train\(\) trains runs such as Run\(.*got"): train(asked)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "two"])
def test_workers_are_counted(workers):
    with pytest.raises(ValueError, match="workers must be a whole number from 1, got"): train(LONG, workers=workers)


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="no runs"): train([])


# snapshots


def counted(monkeypatch):
    "What the bar is told: its total, and how far it came"
    told = types.SimpleNamespace(total=0, n=0)
    class Bar:
        n = 0
        def update(self, by): self.n += by; told.n = self.n
        def __enter__(self): return self
        def __exit__(self, *error): pass
    def bar(total, *words): told.total = total; return Bar()
    monkeypatch.setattr(sweep, "bar", bar)
    return told


def steps(monkeypatch):
    "The epochs that are really trained, as they come"
    seen, one = [], sweep.fit.__globals__["one_epoch"]
    def one_epoch(active, batches, epoch, *more): seen.extend([epoch] * len(active)); return one(active, batches, epoch, *more)
    monkeypatch.setitem(sweep.fit.__globals__, "one_epoch", one_epoch)
    return seen


def test_a_teacher_seen_early_and_late_is_one_training(monkeypatch):
    "The early one is a teacher's, the late one is only asked for: both lie on the lowest floor, and cost four epochs"
    students = [Run(DATA, "resnet8", KD(), replace(RECIPE, epochs=1), teacher=t, seed=1) for t in (LONG.at(2), LONG.at(2).at(3))]
    asked = [*students, LONG, LONG.at(1)]
    plan = floors(asked)
    assert {*plan[0]} == {LONG, LONG.at(1), LONG.at(2), LONG.at(3)} and len(pieces(plan[0], 2)) == 1
    told, seen = counted(monkeypatch), steps(monkeypatch)
    results = train(asked, workers=1)
    assert seen[:4] == [0, 1, 2, 3] and len(seen) == 4 + 2 and results.trained == 6
    assert told.n == told.total == 4 + 1 + 2 + 3 + 2
    alone = train(LONG.at(2), Store(results.store.root / "alone"), workers=1).store
    assert same_weights(results.store, alone, [LONG.at(2)])


@pytest.mark.parametrize("first, then, epochs", [(LONG, LONG.at(2), 2), (LONG.at(2), LONG, 4)])
def test_what_is_stored_is_not_trained_again(monkeypatch, first, then, epochs):
    store = train(first, workers=1).store
    before, told, seen = store.entry(first).stat().st_mtime_ns, counted(monkeypatch), steps(monkeypatch)
    assert train([first, then], workers=1).trained == 1 and len(seen) == epochs and told.n == told.total == epochs
    assert store.entry(first).stat().st_mtime_ns == before


def test_progress_counts_a_checkpoint_for_every_run_of_its_training(monkeypatch):
    store, (early, late) = Store(), (LONG.at(2), LONG)
    one = sweep.fit.__globals__["one_epoch"]
    def stopped(active, batches, epoch, *more):
        if epoch == 3: raise KeyboardInterrupt
        return one(active, batches, epoch, *more)
    with monkeypatch.context() as patch:
        patch.setitem(sweep.fit.__globals__, "one_epoch", stopped)
        with pytest.raises(KeyboardInterrupt): train([early, late], workers=1)
    assert store.holds(early) and not store.holds(late) and epochs_done([early, late], store) == 2 + 3
    told, seen = counted(monkeypatch), steps(monkeypatch)
    train([early, late], workers=1)
    assert seen == [3] and told.n == told.total == 4


def test_pieces_keep_trainings_together():
    teacher = Run(DATA, "resnet14", recipe=RECIPE)
    students = [Run(DATA, "resnet8", KD(T=T), RECIPE, teacher=teacher, stop=e) for T in (1., 2., 3.) for e in (None, 1, 2)]
    for workers in (1, 2, 3, 5):
        found = pieces(students, workers)
        assert sorted(map(id, sum(found, []))) == sorted(map(id, students))
        assert sum(len(trainings(p)) for p in found) == 3 and len(found) == min(workers, 3)


# what goes wrong


@dataclass(frozen=True)
class Diverging(NLL):
    "Made up"
    def loss(self, seen): return super(Diverging, self).loss(seen) * float("nan")


def test_a_diverging_run_keeps_nobody_from_being_stored():
    teacher = Run(DATA, "resnet14", recipe=replace(RECIPE, epochs=1))
    other = Run(DATA, "resnet8", LS(), replace(RECIPE, epochs=1), seed=7)
    cohort = [Run(DATA, "resnet8", KD(task=task), replace(RECIPE, epochs=1), teacher=teacher) for task in (NLL(), Diverging(), MDCA())]
    lonely = Run(DATA, "resnet8", Diverging(), replace(RECIPE, epochs=1))
    with pytest.raises(ValueError, match="Diverging.*lower the learning rate") as error: train([lonely, other], workers=1)
    assert Store().holds(other) and len(str(error.value).splitlines()) == 1
    with pytest.raises(ValueError, match="Diverging"): train(cohort, workers=1)
    assert [Store().holds(r) for r in cohort] == [True, False, True]


class Elsewhere(Executor):
    "Workers with another disk"
    def __init__(self, root): self.root = root

    def submit(self, watched, parent, unpack, parcel):
        _, work, (runs, _) = pickle.loads(parcel)
        (future := Future()).set_result(work(runs, str(self.root)))
        return future


@pytest.mark.parametrize("again", [False, True])
def test_workers_that_do_not_see_the_store(tmp_path, monkeypatch, again):
    "Whether they train the run or hold it already"
    monkeypatch.setattr(sweep, "PATIENCE", .1)
    if again: train(LONG, Store(tmp_path / "theirs"), workers=1)
    with pytest.raises(ValueError, match="reported as stored, but is not there.*same disk") as error: train(LONG, executor=Elsewhere(tmp_path / "theirs"))
    assert len(str(error.value).splitlines()) == 1


def dies_first(flag, number):
    "Killed when first asked"
    if not os.path.exists(flag):
        open(flag, "w").close()
        os._exit(9)
    return number


def test_a_killed_worker_is_replaced(tmp_path):
    assert sorted(each(dies_first, [(str(tmp_path / "flag"), i) for i in range(4)], workers=2)) == [0, 1, 2, 3]


class Dead(Executor):
    def submit(self, *job): raise BrokenExecutor


def test_an_executor_that_was_given_is_not_replaced():
    with pytest.raises(RuntimeError, match="start a new executor"): train(LONG, executor=Dead())


# who does it


def test_the_environment_names_the_executor(monkeypatch):
    shifts = [replace(DATA, seed=s) for s in (1, 2)]
    here = train([LONG, replace(LONG, seed=1)], workers=1)
    for name in ("small_grid:Counting", "small_grid:processes"):
        monkeypatch.setenv("CALIBKD_EXECUTOR", name)
        there = train([LONG, replace(LONG, seed=1)], Store(here.store.root / name.replace(":", "-")))
        assert there.trained == 2 and same_weights(here.store, there.store, here)
        assert there.elsewhere(shifts, "top1").top1.tolist() == here.elsewhere(shifts, "top1", workers=1).top1.tolist()
        executors.named_executor(name).shutdown()
        executors.named_executor.cache_clear()
    assert small_grid.Counting.jobs == 2 + 2 + 2  # here, too, was asked from them


def test_an_executor_that_was_given_comes_first(monkeypatch):
    monkeypatch.setenv("CALIBKD_EXECUTOR", "no_such_module:make")
    before = small_grid.Counting.jobs
    with small_grid.Counting() as pool: train([LONG], executor=pool).elsewhere([replace(DATA, seed=1)], "top1", executor=pool)
    assert small_grid.Counting.jobs == before + 2


@pytest.mark.parametrize("name, why", [("threads", "'processes', 'dask:ADDRESS' or 'module:callable', got 'threads'"), ("no_such_module:make", "No module named"),
                                       ("small_grid:nobody", "nobody"), ("small_grid:grid", "no submit"), ("dask:tcp://nowhere:1", "dask")])
def test_an_executor_that_nobody_can_make(monkeypatch, name, why):
    monkeypatch.setenv("CALIBKD_EXECUTOR", name)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=why) as error: train(LONG)
    assert "CALIBKD_EXECUTOR" in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_dask_cluster(monkeypatch):
    "A made-up one, asked as dask.distributed is"
    class Client:
        def __init__(self, address): assert address == "tcp://host:8786"
        def get_executor(self, pure): return small_grid.Counting()
    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(Client=Client))
    monkeypatch.setenv("CALIBKD_EXECUTOR", "dask:tcp://host:8786")
    before = small_grid.Counting.jobs
    assert train(LONG).trained == 1 and small_grid.Counting.jobs == before + 1


def test_workers_of_the_environment(monkeypatch):
    monkeypatch.setenv("CALIBKD_WORKERS", "3")
    monkeypatch.setenv("CALIBKD_DEVICE", "cuda")
    assert cores() == 3
    monkeypatch.setenv("CALIBKD_WORKERS", "many")
    with pytest.raises(ValueError, match="CALIBKD_WORKERS must be a whole number from 1, got 'many'"): train(LONG)


def test_settings_that_changed_reach_the_workers(monkeypatch):
    for change in (lambda: monkeypatch.setenv("CALIBKD_MADE_UP", "one"), lambda: monkeypatch.delenv("CALIBKD_MADE_UP")):
        change()
        assert {*each(os.getenv, [("CALIBKD_MADE_UP",)] * 2, workers=2)} == {os.getenv("CALIBKD_MADE_UP")}


# what a row knows


@pytest.fixture
def family():
    "Teacher's teacher, teacher, students and a calibrator, in a store that need not hold them"
    above = Run(DATA, "resnet14", recipe=Recipe.quick)
    teacher = Run(DATA, "resnet14", KD(T=3, task=Focal()), replace(Recipe.quick, epochs=20), teacher=above)
    students = [Run(DATA, "resnet8", KD(T=T, task=MDCA()), RECIPE, teacher=teacher.at(5)) for T in (1, 2)]
    return Results([*students, Run(DATA, "resnet8", LS(), Recipe.quick)], Store())


def test_a_row_has_the_columns_that_it_had(family):
    "Those of the exhibits' CSV files"
    assert [*traits(family[0])] == "dataset network objective alpha gamma T reduction teacher teacher_network seed".split()
    assert traits(replace(family[0], objective=KD(clean=True)))["clean"] is True


def test_a_row_knows_its_run(family):
    row = all_traits(family[0])
    assert row["id"] == family[0].id[:10] and row["recipe"] == "Recipe(batch=64, precision=fp32)" and row["epochs"] == 4 and row["train"] == 200
    assert row["task"] == "MDCA" and row["teacher_epochs"] == 5 and row["teacher_teacher"] == "NLL" and row["teacher_id"] == family[0].teacher.id[:10]
    assert all_traits(family[2])["recipe"] == "quick" == all_traits(family[0].teacher)["recipe"] and all_traits(family[2])["teacher_teacher"] is None


def test_where(family):
    a, b, c = family
    assert family.where(T=2).runs == [b] and family.where(objective="KD", task="MDCA", T=[1, 2]).runs == [a, b] and family.where(teacher=None).runs == [c]
    assert family.where(id=c.id[:10])[0] is c and len(family.where(T=7)) == 0 and len(family) == 3 and [*family] == family.runs
    with pytest.raises(ValueError, match="no run here has a trait 'teachr'; did you mean 'teacher'"): family.where(teachr="NLL")


def test_a_table_with_all_traits():
    results = train(LONG, workers=1)
    few, whole = results.table("top1"), results.table("top1", traits="all")
    assert [*few] == [*traits(LONG), "top1"] and [*whole] == [*all_traits(LONG), "top1"] and few.top1.equals(whole.top1)
    with pytest.raises(ValueError, match="'few' or 'all', got 'some'"): results.table(traits="some")


# fidelity, and parts of a split


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    "A teacher, a student of it on the same data, and one on other data, whose test samples the teacher must be asked about"
    data, short = Dataset("textures:2x2", train=80, test=60), Recipe(epochs=1, batch=32)
    teacher = Run(data, "resnet8", recipe=short)
    students = [Run(d, "resnet8", KD(), short, seed=1, teacher=teacher) for d in (data, replace(data, test=40, seed=1))]
    return train([teacher, *students], Store(tmp_path_factory.mktemp("taught")), workers=1)


@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_fidelity_compares_the_same_samples(taught, split):
    table, (teacher, *students) = taught.fidelity(split), taught
    assert table.objective.tolist() == ["KD", "KD"] and [*table][-2:] == ["agreement", "predictive_kl"]
    for row, student in zip(table.itertuples(), students):
        data = student.dataset.load()
        z = taught.logits(student, split)[0]
        t = logits_of(taught.network(teacher), teacher.dataset.load(), getattr(data, split))[0]  # normalised as it was trained
        assert row.agreement == (z.argmax(1) == t.argmax(1)).double().mean()
        log_s, log_t = (x.double().log_softmax(1) for x in (z, t))
        assert row.predictive_kl == pytest.approx(float(torch.nn.functional.kl_div(log_s, log_t, log_target=True, reduction="batchmean")), rel=1e-5)
    with pytest.raises(ValueError, match="has no teacher to agree with"): taught.table("agreement")


def test_a_table_of_other_bins(taught):
    names, run = ["ece", "true_ece", "mce", "top1"], taught[1]
    q = run.dataset.load().test.posterior
    row = taught.table(*names, n_bins=200).iloc[1]
    assert dict(row[names]) == measure(names, *taught.logits(run), q, 200) and row.ece != taught.table("ece").ece[1]


@pytest.mark.parametrize("kind", [lambda i: i, lambda i: i.numpy(), lambda i: i.tolist(), lambda i: torch.zeros(60, dtype=torch.bool).index_fill(0, i, True)])
def test_a_table_of_a_part_of_the_split(taught, kind):
    run = taught[1]
    (z, y), t, q = taught.logits(run), taught.logits(taught[0])[0], run.dataset.load().test.posterior
    i = stratified(y, 20, seed=1)[0]
    names = ["ece", "top1", "true_ece", "posterior_gap", "agreement", "predictive_kl"]
    assert taught.numbers(run, names, part=kind(i)) == measure(names, z[i], y[i], q[i], teacher_logits=t[i]) != taught.numbers(run, names)
    row = Results([run], taught.store).table("top1", "agreement", part=kind(i)).iloc[0]
    assert row.top1 == (z[i].argmax(1) == y[i]).double().mean() and row.agreement == Results([run], taught.store).fidelity(part=kind(i)).agreement[0]
