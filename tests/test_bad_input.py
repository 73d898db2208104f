"Each bad input gives one clear sentence and a non-zero exit, and nothing already stored is lost."
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibkd.calibrators import LS, MDCA, Focal, MixUp, fit_temperature
from calibkd.data import Dataset
from calibkd.distillers import KD
from calibkd.metrics import ece, evaluate
from calibkd.objectives import NLL
from calibkd.runs import Recipe, Run, Weights, named_recipe, objective, pretrained
from calibkd.store import Store
from calibkd.sweep import train

DIGITS, ONE = Dataset("digits", train=200), Recipe(epochs=1, batch=64)


class Evil:
    def __reduce__(self): return (exec, ("raise SystemExit('the checkpoint ran code')",))


def checkpoint(folder, what):
    path = folder / "net.pth"
    if what == "evil": path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    elif what == "garbage": path.write_bytes(b"\x00\x01 no checkpoint")
    elif what == "empty": torch.save({"state_dict": {}}, path)
    else: torch.save({"state_dict": torch.nn.Linear(3, 3).state_dict()}, path)
    return str(path)


def fit_from(what): return lambda d: train([pretrained(DIGITS, "resnet8", checkpoint(d, what))], workers=1)


def poisoned(d):  # a label that the data set does not have
    data = DIGITS.load()
    evaluate(torch.zeros(4, data.num_classes), torch.tensor([0, 1, 2, data.num_classes]))


TABLE = {
    "unknown data set": (lambda d: Dataset("texturs").load(), ValueError, "textures"),
    "unknown network": (lambda d: Run(DIGITS, "resnet-8"), ValueError, "resnet8"),
    "unknown objective": (lambda d: objective("MCDA"), ValueError, "MDCA"),
    "unknown hyper-parameter": (lambda d: objective("MDCA", bta=1), ValueError, "beta"),
    "unknown recipe": (lambda d: named_recipe("kdc"), ValueError, "kdc_"),
    "unknown schedule": (lambda d: Recipe(schedule="cosin"), ValueError, "cosine"),
    "a recipe's unknown field": (lambda d: named_recipe("quick", epoch=3), ValueError, "epochs"),
    "half an epoch": (lambda d: Recipe(epochs=1.5), ValueError, "epochs must be a whole number"),
    "no samples a step": (lambda d: Recipe(batch=0), ValueError, "batch must be a whole number of at least 1"),
    "no horizon": (lambda d: Recipe(horizon=0), ValueError, "horizon must be a whole number"),
    "two ways to warm up": (lambda d: Recipe(warmup=.1, warmup_steps=3), ValueError, "not both"),
    "no data set": (lambda d: Run(3, "resnet8"), ValueError, "dataset must be a Dataset or the name of one"),
    "no network": (lambda d: Run(DIGITS, 8), ValueError, "network must be the name of a network"),
    "no objective": (lambda d: Run(DIGITS, "resnet8", 3.), ValueError, "objective must be an objective"),
    "a method that is not made": (lambda d: Run(DIGITS, "resnet8", MDCA), ValueError, "objective must be an objective"),
    "a method of another name": (lambda d: Run(DIGITS, "resnet8", "MCDA"), ValueError, "did you mean 'MDCA'"),
    "no recipe": (lambda d: Run(DIGITS, "resnet8", NLL(), 40), ValueError, "recipe must be a Recipe"),
    "a recipe of another name": (lambda d: Run(DIGITS, "resnet8", NLL(), "quik"), ValueError, "did you mean 'quick'"),
    "half a seed": (lambda d: Run(DIGITS, "resnet8", seed=.5), ValueError, "seed must be a whole number, got 0.5"),
    "a name as teacher": (lambda d: Run(DIGITS, "resnet8", KD(), teacher="resnet56"), ValueError, "teacher must be a Run"),
    "a path as start": (lambda d: Run(DIGITS, "resnet8", init="net.pth"), ValueError, "init must be a Run or Weights"),
    "beyond the end": (lambda d: Run(DIGITS, "resnet8", recipe=ONE).at(2), ValueError, "stop must lie in 0…1"),
    "ImageNet's spelling": (lambda d: Run(DIGITS, "Resnet50"), ValueError, "torchvision:resnet50 .* or resnet50 .CIFAR's"),
    "unknown precision": (lambda d: Recipe(precision="fp16"), ValueError, "fp32"),
    "unknown augmentation": (lambda d: train([Run(DIGITS, "resnet8", recipe=replace(ONE, augment="crops"))], workers=1), ValueError, "crop"),
    "T = 0": (lambda d: KD(T=0), ValueError, "T must be positive, got 0"),
    "T < 0": (lambda d: KD(T=-1.), ValueError, "T must be positive"),
    "alpha > 1": (lambda d: KD(alpha=1.5), ValueError, r"alpha must lie in \[0, 1\], got 1.5"),
    "alpha < 0": (lambda d: KD(alpha=-.1), ValueError, "alpha"),
    "negative weight": (lambda d: KD(alpha=.9, gamma=-1), ValueError, "gamma"),
    "unknown reduction": (lambda d: KD(reduction="mean"), ValueError, "batchmean"),
    "eps = 1": (lambda d: LS(eps=1), ValueError, "eps"),
    "focal gamma < 0": (lambda d: Focal(gamma=-1), ValueError, "gamma"),
    "MDCA beta < 0": (lambda d: MDCA(beta=-1), ValueError, "beta"),
    "MixUp a = 0": (lambda d: MixUp(a=0), ValueError, "a must be positive"),
    "KD without a teacher": (lambda d: Run(DIGITS, "resnet8", KD()), ValueError, "needs a teacher"),
    "a teacher nobody asks": (lambda d: Run(DIGITS, "resnet8", NLL(), teacher=Run(DIGITS, "resnet8")), ValueError, "takes no teacher"),
    "labels out of range": (poisoned, ValueError, "label"),
    "logits with NaN": (lambda d: ece(torch.full((3, 2), float("nan")), torch.tensor([0, 1, 0])), ValueError, "(?i)nan"),
    "no samples": (lambda d: ece(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)), ValueError, "empty|no samples|at least one"),
    "empty held-out split": (lambda d: fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)), ValueError, "empty split"),
    "no checkpoint file": (lambda d: Weights(str(d / "no.pth")), FileNotFoundError, "no checkpoint file"),
    "a checkpoint that does not fit": (fit_from("other"), ValueError, "does not fit"),
    "a checkpoint of something else": (fit_from("garbage"), ValueError, "was not loaded"),
    "an empty checkpoint": (fit_from("empty"), ValueError, "holds no tensors"),
    "a pickle that would run code": (fit_from("evil"), ValueError, "would have to run code"),
    "a missing file": (lambda d: Dataset("cifar100").load(), FileNotFoundError, "textures"),
    "a missing folder": (lambda d: Dataset(f"folder:{d}/nothing").load(), FileNotFoundError, "nothing"),
    "a store that cannot be written": (lambda d: Store(d / "a file" / "store"), PermissionError, "CALIBKD_STORE"),
    "no runs": (lambda d: train([]), ValueError, "no runs"),
    "a loss that explodes": (lambda d: train([Run(DIGITS, "resnet8", recipe=replace(ONE, lr=1e9, epochs=3))], workers=1), ValueError, "lower the learning rate"),
}


@pytest.mark.parametrize("name", TABLE)
def test_one_clear_sentence(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBKD_DATA", str(tmp_path / "data"))
    (tmp_path / "a file").write_text("")
    kept = train([Run(DIGITS, "resnet8", recipe=ONE)], workers=1) if "checkpoint" in name or "explodes" in name else None
    act, kind, words = TABLE[name]
    with pytest.raises(kind, match=words) as caught: act(tmp_path)
    sentence = str(caught.value)
    assert "\n" not in sentence and 20 < len(sentence) < 500
    if kept: assert kept.store.holds(kept.runs[0])


CLI = {
    "unknown exhibit": (["run", "fig_S77"], "fig_S7"),
    "unknown preset": (["run", "fig_S7", "--preset", "quik"], "quick"),
    "unknown parameter": (["run", "fig_S7", "-p", "temperature", "2"], "teacher|parameter"),
    "T = 0": (["run", "fig_S7", "--preset", "smoke", "-p", "T", "0"], "T must be positive"),
    "unknown data set": (["run", "fig_S7", "--preset", "smoke", "-p", "dataset", "texturs"], "textures"),
    "unknown network": (["run", "fig_S7", "--preset", "smoke", "-p", "student", "resnet-8"], "resnet8"),
    "missing data": (["run", "fig_S7", "--preset", "smoke", "-p", "dataset", "cifar10"], "textures"),
}


@pytest.mark.parametrize("name", CLI)
def test_command_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBKD_DATA", str(tmp_path / "data"))
    arguments, words = CLI[name]
    done = subprocess.run([sys.executable, "-m", "calibkd.cli", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          cwd=Path(__file__).parents[1])
    assert done.returncode != 0 and "Traceback" not in done.stderr
    import re
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(words, last), done.stderr


def test_results_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("CALIBKD_RESULTS", str(tmp_path / "blocked"))
    done = subprocess.run([sys.executable, "-m", "calibkd.cli", "run", "fig_S7", "--preset", "smoke"], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    assert done.returncode != 0 and "CALIBKD_RESULTS" in done.stderr and "Traceback" not in done.stderr
    assert not list(Store().hashes()), "nothing should have been trained"
