"Every exhibit through papermill, as a user runs it, in the smoke preset and from an empty store."
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from calibkd.exhibits import exhibits

ROOT = Path(__file__).parents[1]
BOOKS = {e.name: e for e in exhibits()}


def papermill(*arguments, cwd=ROOT, **kwargs):
    return subprocess.run([sys.executable, "-m", "papermill", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}, **kwargs)


@pytest.mark.parametrize("name", BOOKS)
def test_exhibit_in_smoke(name, tmp_path):
    done = papermill(BOOKS[name].path, tmp_path / "out.ipynb", "-p", "preset", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "results" / name / "preset=smoke"
    assert {p.suffix for p in folder.iterdir()} >= {".png", ".pdf", ".csv", ".json"}
    claims, meta = (json.loads((folder / f).read_text()) for f in ("claims.json", "meta.json"))
    assert claims and all(c["verdict"] in ("holds", "does not hold", "not run") and c["text"] for c in claims)
    assert meta["preset"] == "smoke" and meta["hardware"] and meta["seconds"] > 0
    assert len(pd.read_csv(folder / f"{name}.csv")) > 0
    assert str(tmp_path) not in (folder / "meta.json").read_text()


def test_short_form_and_cache(tmp_path):
    "`papermill nbs/fig_S7.ipynb -p T 2 < /dev/null > out.ipynb` saves the same exhibit, and trains what it needs once"
    with open(tmp_path / "out.ipynb", "w") as out:
        done = subprocess.run([sys.executable, "-m", "papermill", "nbs/fig_S7.ipynb", "-p", "T", "2", "-p", "preset", "smoke"],
                              cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    folder = tmp_path / "results" / "fig_S7" / "preset=smoke,T=2"
    first, numbers = json.loads((folder / "meta.json").read_text()), (folder / "fig_S7.csv").read_text()
    assert set(pd.read_csv(folder / "fig_S7.csv")["T"]) == {2.0} and first["training"]["trained"] > 0
    assert "training" in done.stderr, "progress of the training inside should reach the terminal"
    again = papermill("nbs/fig_S7.ipynb", tmp_path / "again.ipynb", "-p", "T", "2", "-p", "preset", "smoke")
    assert again.returncode == 0 and (folder / "fig_S7.csv").read_text() == numbers
    assert json.loads((folder / "meta.json").read_text())["training"]["trained"] == 0


def test_works_from_any_folder(tmp_path):
    done = papermill(ROOT / "nbs/fig_S1.ipynb", tmp_path / "out.ipynb", "-p", "preset", "smoke", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "results" / "fig_S1" / "preset=smoke" / "fig_S1.png").is_file()


def test_papermill_refuses_an_unknown_parameter(tmp_path):
    done = papermill("nbs/fig_S7.ipynb", tmp_path / "out.ipynb", "-p", "alpha", ".5", "-p", "preset", "smoke")
    assert done.returncode != 0 and "alphas" in done.stderr


def test_help_table():
    done = papermill("--help-notebook", "nbs/fig_S7.ipynb")
    assert "temperature" in done.stdout and "T" in done.stdout


DATA = Path(os.environ.get("CALIBKD_DATA", "/nowhere"))


@pytest.mark.skipif(not (DATA / "FashionMNIST").is_dir(), reason="CALIBKD_DATA holds no FashionMNIST")
def test_real_images(tmp_path):
    done = papermill("nbs/fig_S7.ipynb", tmp_path / "out.ipynb", "-p", "preset", "smoke", "-p", "dataset", "fashionmnist")
    assert done.returncode == 0, done.stderr[-3000:]


WEIGHTS = Path(os.environ.get("CALIBKD_WEIGHTS", DATA.parent / "weights"))


@pytest.mark.skipif(not (DATA / "cifar10-jpeg.zip").is_file() or not (WEIGHTS / "resnet20-12fca82f.th").is_file(),
                    reason="CALIBKD_DATA holds no cifar10-jpeg.zip, or CALIBKD_WEIGHTS no published ResNet-20")
def test_published_teacher(tmp_path):
    done = papermill("nbs/fig_S7.ipynb", tmp_path / "out.ipynb", "-p", "preset", "smoke", "-p", "dataset", "folder:cifar10-jpeg.zip",
                     "-p", "teacher", "resnet20-A", "-p", "checkpoint", WEIGHTS / "resnet20-12fca82f.th", "-p", "images", "500")
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(WEIGHTS) not in "".join(p.read_text() for p in (tmp_path / "results").rglob("*.json"))
