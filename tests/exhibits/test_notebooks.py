"Every exhibit through papermill, as a user runs it, in the smoke preset and from an empty store."
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from calibkd import studies, sweep
from calibkd.exhibits import exhibits, rejudged, saved
from calibkd.networks.core import network
from calibkd.papers import kdc

ROOT = Path(__file__).parents[2]
BOOKS = {e.name: e for e in exhibits()}


def papermill(*arguments, cwd=ROOT, **kwargs):
    "As from a terminal; trained in the kernel itself, which for so little is done before other processes would have started"
    return subprocess.run([sys.executable, "-m", "papermill", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1", "CALIBKD_WORKERS": "1"}, **kwargs)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    "What `calibkd run --all --preset smoke` leaves, from an empty store; run from a folder of nobody's"
    here = tmp_path_factory.mktemp("smoke")
    own = {"CALIBKD_STORE": str(here / "store"), "CALIBKD_RESULTS": str(here / "results"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    without = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "CALIBKD_NBS")}
    done = subprocess.run([sys.executable, "-m", "calibkd.cli", "run", "--all", "--preset", "smoke"], cwd=here, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, env=without | own)
    return here / "results", done


@pytest.mark.parametrize("name", BOOKS)
def test_exhibit_in_smoke(name, smoke):
    results, done = smoke
    folder = results / name / "smoke"
    assert f"{name}: not judged (smoke preset" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
    assert {p.suffix for p in folder.iterdir()} >= {".png", ".pdf", ".csv", ".json", ".ipynb"}
    claims, meta = (json.loads((folder / f).read_text()) for f in ("claims.json", "meta.json"))
    assert claims and all(c["verdict"] == "not judged" and c["ours"] == "" and c["text"] for c in claims)
    assert meta["exhibit"] == name and meta["preset"] == "smoke" and meta["hardware"] and meta["seconds"] > 0
    assert len(pd.read_csv(folder / f"{name}.csv")) > 0
    assert not any(str(results.parent) in (folder / f).read_text() for f in ("meta.json", f"{name}.ipynb"))


@pytest.mark.parametrize("name", BOOKS)
def test_the_claims_read_nothing_but_the_saved_tables(name, smoke):
    "Judged again from the tables alone, estimates, intervals and reasons are the same to the last digit that is kept"
    again = rejudged(saved(smoke[0] / name / "smoke"), BOOKS)
    assert not again.stale, again.trouble or again.changes


@pytest.mark.parametrize("name", BOOKS)
def test_what_a_smoke_run_shows(name, smoke):
    "Its figure, one line instead of verdicts, and nothing that a cell left behind by accident"
    book = json.loads((smoke[0] / name / "smoke" / f"{name}.ipynb").read_text())
    shown = [o for cell in book["cells"] for o in cell.get("outputs", [])]
    said = "".join("".join(o.get("text", [])) for o in shown)
    assert said.count("A smoke run tests the code, not the claims.") == 1 and any("image/png" in o.get("data", {}) for o in shown)
    assert not any("".join(o.get("data", {}).get("text/plain", "")).startswith(("Claim(", "[Claim(")) for o in shown)


class Declared(Exception):
    "The runs that an exhibit wants to train first"


@pytest.mark.parametrize("name", [n for n, b in BOOKS.items() if any("calibkd.papers.kdc" in source for _, source in b.cells)])
def test_the_paper_preset_declares_runs(name, monkeypatch):
    "What it names exists: networks, recipes, data sets, calibrators"
    monkeypatch.setenv("CALIBKD_DATA", "/nowhere")
    def declare(runs, *args, **kwargs): raise Declared(list(runs))
    def search(study, kind, p):
        candidates = kdc.tried(kind, p)
        searched.extend(study.teacher_run(c, p.seeds[0]) for c in candidates)
        return candidates[0]
    for module in (studies, sweep): monkeypatch.setattr(module, "train", declare)
    monkeypatch.setattr(kdc, "searched", search)
    space, searched = {}, []
    with pytest.raises(Declared) as caught:
        for kind, source in BOOKS[name].cells:
            if kind != "markdown": exec(source + f"\npreset, figure = 'paper', {BOOKS[name].figure!r}" * (kind == "parameters"), space)
    declared = [*searched, *caught.value.args[0]]
    assert {r.epochs for r in declared} <= ({36, 40} if name == "extra_true_calibration" else {0, 100, 160, 240})
    tried = {r.objective for r in searched if r.objective.name == "MDCA"}
    assert len(tried) in ((1,) if name == "extra_true_calibration" else (0, 15)), "what the paper tried of MDCA, where a teacher has it"


def test_short_form_and_cache(tmp_path):
    "`papermill nbs/fig_S7.ipynb -p T 2 < /dev/null > out.ipynb` saves the same exhibit, and trains what it needs once"
    with open(tmp_path / "out.ipynb", "w") as out:
        done = subprocess.run([sys.executable, "-m", "papermill", "nbs/fig_S7.ipynb", "-p", "T", "2", "-p", "preset", "smoke"],
                              cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    folder = tmp_path / "results" / "fig_S7" / "smoke,T=2"
    first, numbers = json.loads((folder / "meta.json").read_text()), (folder / "fig_S7.csv").read_text()
    assert set(pd.read_csv(folder / "fig_S7.csv")["T"]) == {2.0} and first["training"]["trained"] > 0
    assert first["parameters"]["Ts"] == [2.0] and first["changed"] == {"T": 2.0}
    assert "training" in done.stderr, "progress of the training inside should reach the terminal"
    again = papermill("nbs/fig_S7.ipynb", tmp_path / "again.ipynb", "-p", "T", "2", "-p", "preset", "smoke")
    assert again.returncode == 0 and (folder / "fig_S7.csv").read_text() == numbers
    assert json.loads((folder / "meta.json").read_text())["training"]["trained"] == 0


def test_works_from_any_folder(tmp_path):
    done = papermill(ROOT / "nbs/fig_S1.ipynb", tmp_path / "out.ipynb", "-p", "preset", "smoke", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "results" / "fig_S1" / "smoke" / "fig_S1.png").is_file()


def test_papermill_refuses_an_unknown_parameter(tmp_path):
    done = papermill("nbs/fig_S7.ipynb", tmp_path / "out.ipynb", "-p", "alpha", ".5", "-p", "preset", "smoke")
    assert done.returncode != 0 and "alphas" in done.stderr


@pytest.mark.parametrize("name, parameter, value, sentence", [
    ("extra_true_calibration", "dataset", "digits", "nobody knows the true posterior of digits"),
    ("table_T4", "temperatures", "[0, 1]", "a temperature must be positive, got 0"),
])
def test_what_an_exhibit_cannot_do_is_said_before_training(name, parameter, value, sentence, tmp_path):
    done = papermill(BOOKS[name].path, tmp_path / "out.ipynb", "-p", "preset", "smoke", "-p", "tests", "500", "-p", parameter, value)
    assert done.returncode != 0 and sentence in done.stderr and not list((tmp_path / "store").rglob("*.safetensors"))


SHRINK = """
from dataclasses import dataclass
from calibkd.objectives import Around

def shrinkage(logits):
    "Mean squared logit"
    return logits.square().mean()

@dataclass(frozen=True)
class Shrink(Around):
    "A task loss plus the size of the logits"
    beta: float = .05

    def loss(self, seen): return self.task.loss(seen) + self.beta * shrinkage(seen.logits)
"""


def test_a_made_up_calibrator_joins_table_T3_by_name(tmp_path, monkeypatch):
    "One function, one dataclass, nothing else: it is trained, teaches, and stands in the table beside the others"
    (tmp_path / "my_methods.py").write_text(SHRINK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    done = papermill("nbs/table_T3.ipynb", tmp_path / "out.ipynb", "-p", "preset", "smoke", "-p", "methods", "[NLL, 'my_methods:Shrink']")
    assert done.returncode == 0, done.stderr[-3000:]
    path, = (tmp_path / "results" / "table_T3").glob("*/table_T3.csv")
    table = pd.read_csv(path)
    assert {(c, r) for c, r in zip(table.calibrator, table.role)} >= {("Shrink", "teacher"), ("Shrink", "student"), ("NLL", "teacher")}
    assert table.ece.between(0, 1).all()


def test_help_table():
    done = papermill("--help-notebook", "nbs/fig_S7.ipynb")
    assert "T: float (default None)" in done.stdout and "temperature" in done.stdout and "figure: str" in done.stdout


@pytest.mark.parametrize("panel, path", [("fig_S3", "nbs/fig_S3.ipynb"), ("fig_S8", "nbs/fig_S7.ipynb")])
def test_panels_through_papermill(panel, path, tmp_path):
    "By the path that was always theirs, or by name from the other's notebook; here only up to the first cell that trains"
    more = [] if panel in path else ["-p", "figure", panel]
    done = papermill(path, tmp_path / "out.ipynb", "-p", "preset", "smoke", "-p", "dataset", "no such data", *more)
    assert done.returncode != 0 and "no such data" in done.stderr
    folder, = (tmp_path / "results").iterdir()
    assert folder.name == panel and [f.name.startswith("smoke,dataset=") for f in folder.iterdir()] == [True]


DATA = Path(os.environ.get("CALIBKD_DATA", "/nowhere"))
FEW = dict(images=300, tests=500, Ts="[1.0]", alphas="[0.5]")  # enough where the question is whether an exhibit takes these images


def given(**parameters):
    return [word for k, v in parameters.items() for word in ("-p", k, str(v))]


@pytest.mark.skipif(not (DATA / "FashionMNIST").is_dir(), reason="CALIBKD_DATA holds no FashionMNIST")
def test_real_images(tmp_path):
    done = papermill("nbs/fig_S7.ipynb", tmp_path / "out.ipynb", "-p", "preset", "smoke", *given(dataset="fashionmnist", **FEW))
    assert done.returncode == 0, done.stderr[-3000:]


WEIGHTS = Path(os.environ.get("CALIBKD_WEIGHTS", DATA.parent / "weights"))


@pytest.mark.skipif(not (DATA / "cifar10-jpeg.zip").is_file() or not (WEIGHTS / "resnet20-12fca82f.th").is_file(),
                    reason="CALIBKD_DATA holds no cifar10-jpeg.zip, or CALIBKD_WEIGHTS no published ResNet-20")
def test_published_teacher(tmp_path):
    done = papermill("nbs/fig_S7.ipynb", tmp_path / "out.ipynb", "-p", "preset", "smoke", *given(
        dataset="folder:cifar10-jpeg.zip", teacher="resnet20-A", checkpoint=WEIGHTS / "resnet20-12fca82f.th", **FEW))
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(WEIGHTS) not in "".join(p.read_text() for p in (tmp_path / "results").rglob("*.json"))


REAL = [name for name, book in BOOKS.items() if "real" in book.presets and any("calibkd.papers.kdc" in source for _, source in book.cells)]


@pytest.mark.parametrize("name", REAL)
def test_the_real_preset_with_a_made_up_checkpoint(name, tmp_path, monkeypatch):
    "One teacher for all seeds and its twin, a part of the test images to fit on, what is missing not run; and judged again from the tables"
    monkeypatch.setenv("CALIBKD_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network("resnet56-A", 4, seed=7).state_dict().items()}}, tmp_path / "weights" / "theirs.th")
    own = dict(epochs={"resnet56-A": 1, "resnet8": 1}) if "epochs" in BOOKS[name].parameters else dict(student_epochs=1)
    done = papermill(BOOKS[name].path, tmp_path / "out.ipynb", "-p", "preset", "real", *given(
        checkpoint="theirs.th", dataset="textures:2x2", images=200, tests=300, fit=100, seeds="[3, 4, 5]", **own))
    assert done.returncode == 0, done.stderr[-3000:]
    folder, = (tmp_path / "results" / name).iterdir()
    result = saved(folder)
    verdicts = {c["id"].rpartition(".")[2]: c["verdict"] for c in result["claims"]}
    asked, missing = JUDGED[name]
    assert all(verdicts[id] in ("holds", "does not hold", "undecided") for id in asked) and all(verdicts[id] == "not run" for id in missing), verdicts
    assert not rejudged(result, BOOKS).stale and str(tmp_path) not in (folder / "meta.json").read_text()
    if (folder / f"{name}_teachers.csv").exists():
        teachers = pd.read_csv(folder / f"{name}_teachers.csv")
        assert teachers.groupby("kind").seed.apply(list).to_dict() == {"NLL": [3, 4, 5], "TS": [3, 4, 5]}
        assert (teachers.groupby("kind")[["top1", "ece", "fit_ece"]].nunique() == 1).all(axis=None) and (teachers.ece != teachers.fit_ece).all()


JUDGED = {  # exhibit: claims that one published teacher can decide, and claims that it cannot
    "fig_S4": (["c3", "c3b", "x2"], ["c1", "c2", "x1"]),
    "fig_S5": (["p1", "p2", "p3", "p4", "c3", "x1", "x3"], ["c4", "c5", "c6", "x2"]),
    "fig_S7": (["p1", "p2", "p3", "c2", "c5", "c5b", "c6", "c6b", "x3", "x4", "x5"], ["c1", "c3", "c4", "x1", "x2"]),
    "table_T4": (["c1", "c2", "c3", "i1", "i2", "x1", "x2"], []),
}


@pytest.mark.skipif(not (DATA / "cifar10-jpeg.zip").is_file() or not (WEIGHTS / "resnet56-4bfd9763.th").is_file(),
                    reason="CALIBKD_DATA holds no cifar10-jpeg.zip, or CALIBKD_WEIGHTS no published ResNet-56")
def test_the_real_preset_on_real_images(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBKD_WEIGHTS", str(WEIGHTS))
    done = papermill("nbs/fig_S7.ipynb", tmp_path / "out.ipynb", "-p", "preset", "real",
                     *given(images=300, tests=300, fit=100, student_epochs=1, seeds="[3]", Ts="[1.0]"))
    assert done.returncode == 0, done.stderr[-3000:]
    folder, = (tmp_path / "results" / "fig_S7").iterdir()
    teachers = pd.read_csv(folder / "fig_S7_teachers.csv").set_index("kind")
    assert teachers.top1.nunique() == 1 and teachers.top1["NLL"] > .7 and teachers.ece["TS"] < teachers.ece["NLL"]


def test_who_has_real_images():
    "S8 is made by the notebook of S7, but there is no such evidence for it"
    assert REAL == ["fig_S4", "fig_S5", "fig_S7", "table_T4"]
