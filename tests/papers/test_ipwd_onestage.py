"What the exhibits of IPWD on one stage rest on: which networks they declare, by which recipe, and what those lose at first."
from types import SimpleNamespace

import pytest

from calibkd.calibrators import PSKD
from calibkd.data import Dataset
from calibkd.distillers import IPWD
from calibkd.metrics import ece
from calibkd.networks.core import network
from calibkd.papers.ipwd import ALONE, COMMON, ONE_STAGE, ONE_STAGE_ROWS, first_losses, networks_of, one_stage_runs, pair_study
from calibkd.runs import Run, named_recipe
from calibkd.studies import together, training_of


def declared(preset="quick", **changes): return one_stage_runs(SimpleNamespace(**ALONE[preset] | changes))


def test_quick_declares_the_teachers_of_kdc_and_weights_from_the_start_or_from_half():
    runs = declared()
    assert [*runs] == [("resnet20", row) for row in ONE_STAGE_ROWS] and [r.seed for r in runs["resnet20", "LS"]] == [3, 4, 5]
    data, recipe = Dataset("textures", train=2000, test=20000, seed=1), named_recipe("quick", epochs=40)
    assert runs["resnet20", "CE"][0] == Run(data, "resnet20", recipe=recipe, seed=3)
    assert runs["resnet20", "PS-KD + IPWD late"][2] == Run(data, "resnet20", IPWD(task=PSKD(), start_epoch=20), recipe, 5)


def test_further_data_are_cases_of_their_own():
    runs = declared(further={"digits": 300}, nets=["resnet8", "resnet14"], epochs={"resnet8": 4, "resnet14": 6})
    assert list(dict.fromkeys(case for case, _ in runs)) == ["resnet8", "resnet14", "digits: resnet8", "digits: resnet14"]
    run = runs["digits: resnet14", "PS-KD + IPWD late"][0]
    assert (run.dataset.name, run.dataset.train, run.epochs, run.objective.start_epoch) == ("digits", 300, 6, 3)
    with pytest.raises(ValueError, match="epochs has nothing for resnet110"): declared(nets=["resnet110"])


def test_the_presets_are_alike_and_the_papers_networks_are_those_with_printed_numbers():
    assert all(own.keys() == ALONE["quick"].keys() for own in ALONE.values())
    assert {name.partition("/")[0] for name in ONE_STAGE} == {*ALONE["paper"]["nets"]}
    size = sum(w.numel() for w in network(ALONE["paper"]["nets"][0], num_classes=100, seed=0).parameters())
    assert size == 11_217_444, "PS-KD's"


def test_mobile_networks_have_the_lower_learning_rate_of_crd():
    lr = lambda pair, preset="paper": pair_study(pair, SimpleNamespace(**COMMON[preset])).student_recipe.lr
    assert [lr("WRN-40-2>ShuffleNetV1"), lr("VGG13>MobileNetV2-0.5"), lr("resnet110>resnet20")] == [.01, .01, .05]
    assert lr("WRN-16-2>MobileNetV2-0.5", "quick") == .1


def test_rows_are_trained_once_and_measured_with_ten_bins():
    made = together(declared("smoke", dataset="digits", images=100, tests=None, epochs={"resnet8": 2}))
    assert training_of(made)["trained"] == 5 and len(made) == 5
    table = networks_of(made, "ece", "top1")
    results = made["resnet8", "LS"]
    assert table.row.tolist() == [*ONE_STAGE_ROWS] and table.ece[1] == ece(*results.logits(results[0]), n_bins=10)
    first = first_losses(made["resnet8", "PS-KD + IPWD"][0])
    assert first["loss"] == pytest.approx(first["network"] + first["head"], abs=1e-12) and first["head"] > 0
