"The weights that runs of IPWD keep, whom they suit, and what its variants cost."
from types import SimpleNamespace

import pytest
import torch

from calibkd.data import Dataset
from calibkd.distillers import IPWD, KD
from calibkd.papers import ipwd
from calibkd.papers.ipwd import (
    COMMON, by_seed, errs, mean_weight, on_train, step_costs, stopped, train_rows, weight_agreement, weight_table, weights_of)
from calibkd.runs import Recipe, Run

PAIR = "resnet8>resnet8"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "KD and IPWD with three seeds, two epochs on 72 images"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIBKD_STORE", str(tmp_path_factory.mktemp("store")))
        own = dict(dataset="textures:2x2", images=80, tests=60, epochs={"resnet8": 2}, seeds=[0, 1, 2], pairs={PAIR: ["KD", "IPWD"]}, more_rows=[])
        yield train_rows(SimpleNamespace(**COMMON["smoke"] | own))


def test_what_was_trained_is_counted_once(made):
    assert sum(results.trained for results in made.values()) == 3 + 6


def test_a_line_for_each_run_and_epoch(made):
    table, run = weight_table(made), made[PAIR, "IPWD"][0]
    store, (first, last) = made[PAIR, "IPWD"].store, weights_of(made[PAIR, "IPWD"][0], made[PAIR, "IPWD"].store).values()
    assert table[["row", "seed", "epoch", "late"]].values.tolist() == [["IPWD", s, e, e == 2] for s in (0, 1, 2) for e in (1, 2)]
    hard, wrong = on_train(run.teacher, store)
    assert len(first) == len(hard) == 72 and table.errors[0] == wrong.sum()
    assert table.wrong[1] == pytest.approx(float(last[wrong].double().mean())) and mean_weight(run, store) == pytest.approx((table["mean"][0] + table["mean"][1]) / 2, rel=1e-5)
    with pytest.raises(ValueError, match="keeps no weights"): weights_of(made[PAIR, "KD"][0], store)


def test_two_students_agree_as_their_ranks_do(made):
    found = weight_agreement({(PAIR, "IPWD"): made[PAIR, "IPWD"]})
    assert found[["a", "b", "epoch"]].values.tolist() == [[a, b, e] for a, b in ((0, 1), (0, 2), (1, 2)) for e in (1, 2)]
    assert by_seed(found).mean() == pytest.approx(found.rho.mean()) and list(by_seed(found).index) == [0, 1, 2]


def test_a_teacher_without_errors_is_asked_about_views(made, monkeypatch):
    results = made[PAIR, "IPWD"]
    teacher, store = results[0].teacher, results.store
    wrong = on_train(teacher, store)[1]
    assert torch.equal(errs(teacher, store), wrong) and wrong.any()
    monkeypatch.setattr(ipwd.weights, "on_train", lambda run, store: (None, torch.zeros(72, dtype=torch.bool)))
    seen = errs(teacher, store)
    assert seen.dtype == torch.bool and len(seen) == 72 and seen.any() and not torch.equal(seen, wrong)


def test_a_second_student_costs_a_second_student(made):
    runs = {name: Run(r.dataset, r.network, IPWD(cls_from="network") if name == "IPWD*" else r.objective, r.recipe, 0, r.teacher)
            for name, r in {"KD": made[PAIR, "KD"][0], "IPWD": made[PAIR, "IPWD"][0], "IPWD*": made[PAIR, "KD"][0]}.items()}
    costs = step_costs(runs, 2, made[PAIR, "KD"].store).set_index("row")
    own = costs.parameters["KD"]
    assert costs.parameters["IPWD*"] == 2 * own and own < costs.parameters["IPWD"] < 1.1 * own and (costs.seconds > 0).all()


def test_students_of_a_teacher_that_stops():
    run = Run(Dataset("digits"), "resnet8", KD(), Recipe(epochs=4), 0, Run(Dataset("digits"), "resnet8", recipe=Recipe(epochs=40)))
    assert [stopped(run, share).teacher.epochs for share in (.01, .25, .5, 1.)] == [1, 10, 20, 40] and stopped(run, 1.) == run
