"What the exhibits on classes count, against loops over samples."
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calibkd.diagnostics.separations import penultimate_features
from calibkd.papers import ipwd

PAIR = "resnet8>resnet8"
SETTINGS = dict(dataset="textures:4x3", images=60, tests=150, data_seed=1, recipe="quick", augment=None, epochs={"resnet8": 1}, K=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A teacher, a student without one and two with one, each trained for an epoch"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIBKD_STORE", str(tmp_path_factory.mktemp("store")))
        p = SimpleNamespace(**SETTINGS, seeds=[0], more_seeds=[], more_rows=[], pairs={PAIR: ["Teacher", "Student", "KD", "IPWD"]})
        return {row: results for (_, row), results in ipwd.train_rows(p).items()}


def test_traits_of_classes_are_those_of_a_loop(made):
    teacher = made["Teacher"]
    data, (logits, labels) = teacher[0].dataset.load(), teacher.logits(teacher[0], "train")
    pooled = penultimate_features(teacher.network(teacher[0]), data, data.train)
    table = ipwd.class_traits(teacher).set_index("label")
    assert len(table) == data.num_classes and table.samples.sum() == len(labels) and table.s1.sum() == pytest.approx(1) == table.even4.sum()
    probs = (logits.double() / 4).softmax(1)
    means = [probs[labels == c].mean(0) for c in labels.unique()]
    for c in (several := [c for c in range(data.num_classes) if (labels == c).sum() > 1][:3]):
        own = pooled[labels == c].double()
        apart = [float((f - own.mean(0)).square().sum()) for f in own]
        expected = [len(own), float(logits.softmax(1)[:, c].mean()), float(probs[:, c].mean()), float(sum(m[c] for m in means) / len(means)),
                    float(own.norm(dim=1).mean()), np.sqrt(sum(apart) / len(apart))]
        assert table.loc[c, list(ipwd.CLASS_TRAITS)].tolist() == pytest.approx(expected, rel=1e-5)
    assert several
    spread = ipwd.class_spread(teacher)
    assert spread.cv_s4[0] == pytest.approx(float(np.std(table.s4) / np.mean(table.s4))) and spread.teacher.tolist() == ["NLL"]


def test_quarters_are_those_of_the_teacher(made):
    "Also for a student that has none; over all quarters the hits make the accuracy, the weights their mean"
    s = ipwd.class_traits(made["Teacher"]).s4.to_numpy()
    head = set(np.argsort(-s)[: len(s) // 4].tolist())
    for row, like in ("KD", None), ("Student", made["KD"]):
        students = made[row]
        table, (logits, labels) = ipwd.by_quarter(students, like=like), students.logits(students[0])
        right = [bool(z.argmax() == y) for z, y in zip(logits, labels) if int(y) in head]
        assert table.quarter.tolist() == [1, 2, 3, 4] and table.value[0] == pytest.approx(np.mean(right))
    accuracy = ipwd.class_accuracy(made["KD"], made["KD"][0])
    share = made["KD"].logits(made["KD"][0])[1].bincount(minlength=len(accuracy)) / 150
    assert float((accuracy.nan_to_num() * share).sum()) == pytest.approx(made["KD"].table("top1").top1[0])
    weights, labels = ipwd.weights_given(made["IPWD"], made["IPWD"][0])
    assert len(weights) == len(labels) and float(weights.mean()) == pytest.approx(ipwd.mean_weight(made["IPWD"][0], made["IPWD"].store))
    tail = set(np.argsort(-s)[-(len(s) // 4):].tolist())
    expected = np.mean([float(w) for w, y in zip(weights, labels) if int(y) in tail])
    assert ipwd.by_quarter(made["IPWD"], ipwd.weights_given).value.iloc[3] == pytest.approx(expected)


def test_a_student_of_another_method_has_no_weights(made):
    with pytest.raises(ValueError, match="keeps no weights"): ipwd.weights_given(made["KD"], made["KD"][0])


def test_shares_of_classes_that_count_the_same():
    "With equally many samples of each class both means are one"
    logits, labels = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5
    torch.testing.assert_close(ipwd.class_shares(logits, 2.0, labels), ipwd.class_shares(logits, 2.0))
    assert not torch.allclose(ipwd.class_shares(logits, 2.0, labels % 3), ipwd.class_shares(logits, 2.0), atol=1e-3)
