"What is installed without the repository"
import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from calibkd.exhibits import exhibits

ROOT = Path(__file__).parents[1]
BOOKS = {b.name: b.path.relative_to(ROOT / "nbs") for b in exhibits(ROOT / "nbs")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "A folder with what the wheel of this repository holds"
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("calibkd", "nbs"): shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"): shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(next(place.glob("calibkd-*.whl"))) as wheel: wheel.extractall(place)
    return place


def says(installed, cwd, *words):
    "What the installed command says in a folder of nobody's"
    own = {k: v for k, v in os.environ.items() if k not in ("CALIBKD_NBS", "CALIBKD_RESULTS", "IN_TEST")} | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-m", "calibkd.cli", *words], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=own)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_carries_the_exhibits_and_neither_chapters_nor_outputs(installed):
    carried = {p.relative_to(installed / "calibkd/nbs") for p in (installed / "calibkd/nbs").rglob("*.ipynb")}
    assert carried >= set(BOOKS.values()) and {p.parts[0] for p in carried} >= {"bench", "essence", "extra"}
    assert not {p.parts[0] for p in carried} & {"lib", "index.ipynb"}
    for place in carried:
        mine, theirs = (json.loads((folder / place).read_text("utf-8"))["cells"] for folder in (installed / "calibkd/nbs", ROOT / "nbs"))
        assert [c["source"] for c in mine] == [c["source"] for c in theirs] and not any(c.get("outputs") for c in mine)


def test_the_wheel_carries_the_claims(installed):
    claims = {p.name: p.read_bytes() for p in (ROOT / "calibkd/papers").glob("*.json")}
    assert claims and {p.name: p.read_bytes() for p in (installed / "calibkd/papers").glob("*.json")} == claims


def test_exhibits_without_the_repository(installed, tmp_path):
    "They are listed and found, and results go to the current folder"
    assert [line.split()[0] for line in says(installed, tmp_path, "list").splitlines()[1:]] == list(BOOKS)
    assert says(installed, tmp_path, "path", "fig_S8") == f"{installed / 'calibkd/nbs/fig_S8.ipynb'}\n"
    assert "results/fig_S1/smoke/fig_S1.png" in says(installed, tmp_path, "run", "fig_S1", "--preset", "smoke")
    assert (tmp_path / "results/fig_S1/smoke/meta.json").exists()


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}: raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
import importlib
for name in {modules}: importlib.import_module(name)
print("imported", len({modules}))
"""


def test_only_exhibits_and_the_command_line_need_jupyter():
    "Every other module is imported where none of it is there; and these two only name it inside functions"
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in sorted((ROOT / "calibkd").rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py")]
    others = [n for n in names if n.split(".")[1] not in ("exhibits", "cli", "papers")]  # papers are made of exhibits
    code = WITHOUT.format(blocked={"papermill", "jupyterlab", "ipywidgets", "IPython", "ipykernel", "nbformat", "jupyter_client", "click"}, modules=others)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and f"imported {len(others)}" in done.stdout, done.stderr[-2000:]
    for path in (ROOT / "calibkd").rglob("*.py"):
        named = [a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import) for a in n.names]
        named += [n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and not n.level]
        if {m.split(".")[0] for m in named} & {"papermill", "jupyterlab", "ipywidgets"}:
            assert path.stem == "cli" or path.parent.name == "exhibits", f"{path.name} imports Jupyter"
