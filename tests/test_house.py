"Is it a house one can build on? Ten typical changes are made in a copy of the project, exported and used: one notebook each, two at most."
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CALIBRATOR = '''@dataclass(frozen=True)
class Shrink(Around):
    "A task loss plus the size of the logits"
    beta: float = .05
    def loss(self, seen): return self.task.loss(seen) + self.beta * seen.logits.square().mean()'''
DISTILLER = '''@dataclass(frozen=True)
class Mapped(Distiller):
    "The teacher's pooled features from the student's, through a trained linear map"
    wants_features = True
    def state(self, setting): return torch.nn.Linear(setting.student["pooled"][0], setting.teacher["pooled"][0])
    def distil(self, seen):
        return F.mse_loss(seen.state[self.name](seen.student.features["pooled"]), seen.teacher.features["pooled"])'''
NETWORK = '''@named(r"flat(\\d+)", "flat32")
def flat(width, num_classes=10, in_channels=3):
    "One hidden layer on all pixels"
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(64 * in_channels, width), nn.ReLU(), nn.Linear(width, num_classes))'''
TEXT = '''@source("parity")
def parity(argument, spec):
    "Four words; the class is whether the first is odd"
    x = torch.randint(1, 9, (160, 4), generator=torch.Generator().manual_seed(spec.seed))
    train, test = (Split.of(part, (part[:, 0] % 2).tolist()) for part in x.split([120, 40]))
    return Raw(train, test, ["even", "odd"], vocabulary=9)'''
METRIC = 'METRICS["confidence_seen"] = Metric(lambda s: float(s.conf.mean()), "confidence seen", higher=True)'
BARS = '''@style()
def bars(
    table: pd.DataFrame,  # a row for each bar
    x: str,               # the column that names them
    y: str,               # and the one that tells how long they are
) -> tuple[Figure, np.ndarray]:
    "A bar for each row"
    fig, axes = subplots()
    axes[0, 0].bar(table[x].astype(str), table[y] * scale(y))
    return fig, axes'''
EXHIBIT = ['''preset: str = None
figure: str = None
T: float = None''', '''from calibkd.exhibits import Exhibit
ex = Exhibit("uncal_{figure}", globals(), smoke=dict(T=1.), quick=dict(T=4.), paper=dict(T=4.),
             panels=dict(fig1=dict(title="One"), fig2=dict(title="Two", T=2.)))''']
USE = '''
import os
from concurrent.futures import ThreadPoolExecutor
from calibkd.data import Dataset
from calibkd.exhibits import exhibits
from calibkd.plots import bars, label
from calibkd.runs import Recipe, Run, objective
from calibkd.sweep import train
digits, short = Dataset("digits", train=100), Recipe(epochs=1, batch=50, lr=.01, optimiser="rmsprop")
teacher = Run(digits, "flat32", "Shrink", short)
text = Run("parity", "RoBERTa-L1-H32", recipe=short)
results = train([teacher, text, Run(digits, "resnet8", "Mapped", short, teacher=teacher)])
table = results.table("confidence_seen", "top1")
assert table.objective.tolist() == ["Shrink", "NLL", "Mapped"] and table.confidence_seen.between(0, 1).all()
assert label("confidence_seen") == "confidence seen (%)"
bars(table, "objective", "confidence_seen")
assert {"uncal_fig1", "uncal_fig2"} <= {e.name for e in exhibits()}
'''


def code(source, **metadata): return {"cell_type": "code", "execution_count": None, "id": uuid.uuid4().hex[:8], "metadata": metadata, "outputs": [], "source": source}


def append(path, *sources):
    "More exported cells at the end of a notebook"
    book = json.loads(path.read_text())
    book["cells"][-1:-1] = [code(f"#| export\n{s}") for s in sources]
    path.write_text(json.dumps(book))


def replace(path, old, new):
    "A change inside the cells of a notebook"
    book = json.loads(path.read_text())
    cells = [c for c in book["cells"] if old in "".join(c["source"])]
    assert len(cells) == 1, f"{old!r} stands in {len(cells)} cells of {path.name}"
    cells[0]["source"] = "".join(cells[0]["source"]).replace(old, new)
    path.write_text(json.dumps(book))


@pytest.fixture
def copy(tmp_path):
    "The project's sources, to be changed"
    for name in ("nbs", "calibkd"): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "settings.ini", tmp_path)
    return tmp_path


def changes(root):
    "What is changed for each, by hand as one would: the sources touched"
    lib, meta = root / "nbs/lib", json.loads((ROOT / "nbs/fig_S1.ipynb").read_text())
    one = lambda name, *sources: append(lib / f"{name}.ipynb", *sources) or [lib / f"{name}.ipynb"]
    yield "calibrator", one("30_calibrators", CALIBRATOR)
    yield "distiller with a module", one("31_distillers_logits", "import torch", DISTILLER)
    yield "network", one("27_networks_convnet", NETWORK)
    yield "data set of text", one("13_data_text", TEXT)
    yield "metric", one("03d_metrics_evaluation", METRIC)
    book = root / "nbs/uncal/fig.ipynb"
    book.parent.mkdir(exist_ok=True)
    book.write_text(json.dumps(meta | {"cells": [code(EXHIBIT[0], tags=["parameters"]), code(EXHIBIT[1])]}))
    yield "exhibit of another paper", [book]
    yield "panel", [book]
    imports = "import numpy as np\nimport pandas as pd\nfrom matplotlib.figure import Figure\nfrom calibkd.plots.page import scale, style, subplots"
    chapter = lib / "54a_plots_bars.ipynb"
    chapter.write_text(json.dumps(meta | {"cells": [code("#| default_exp plots.bars"), code(f"#| export\n{imports}"), code(f"#| export\n{BARS}"), code("#| hide")]}))
    with open(root / "calibkd/plots/__init__.py", "a") as face: face.write("from .bars import *\n")
    yield "plot kind", [chapter, root / "calibkd/plots/__init__.py"]
    replace(lib / "40_runs.ipynb", '"adamw")', '"adamw", "rmsprop")')
    replace(lib / "45_training.ipynb", '"adamw": torch.optim.AdamW}', '"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}')
    yield "optimiser", [lib / "40_runs.ipynb", lib / "45_training.ipynb"]
    yield "executor", []  # CALIBKD_EXECUTOR names it


def test_ten_typical_changes_touch_a_notebook_each(copy):
    touched = dict(changes(copy))
    assert len(touched) == 10 and all(len(files) <= 2 for files in touched.values())
    assert sum(len(files) > 1 for files in touched.values()) == 2
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {
        "PYTHONPATH": str(copy), "CALIBKD_NBS": str(copy / "nbs"), "CALIBKD_EXECUTOR": "concurrent.futures:ThreadPoolExecutor"}
    for command in ([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], [sys.executable, "-c", USE]):
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr[-3000:]
