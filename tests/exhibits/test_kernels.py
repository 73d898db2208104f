"Kernels that are forked from a process which has imported everything"
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import v4

from calibkd.exhibits.kernels import can_be_warm, WarmKernels
from calibkd.places import environment

pytestmark = pytest.mark.skipif(not can_be_warm(), reason="kernels are forked on Linux only")


def played(*cells, **settings):
    "What the cells of a notebook print in a warm kernel"
    book = v4.new_notebook(cells=[v4.new_code_cell(c) for c in cells])
    with environment(**settings): NotebookClient(book, kernel_manager_class=WarmKernels, kernel_name="python3").execute(cwd=os.getcwd())
    return ["".join(o.get("text", "") for o in c.outputs) for c in book.cells]


def test_a_kernel_of_its_own(tmp_path, monkeypatch):
    "Its names, environment, folder and process are new; only the modules are there already"
    monkeypatch.chdir(tmp_path)
    look = "import os, sys; print('torch' in sys.modules, 'mine' in globals(), os.environ.get('WHO'), os.getcwd()); mine = os.getpid(); print(mine)"
    first, second = (played(look, WHO=who)[0].split("\n") for who in ("one", "two"))
    assert (first[0], second[0]) == (f"True False one {tmp_path}", f"True False two {tmp_path}") and first[1] != second[1]
    assert not any(psutil.pid_exists(int(pid)) for _, pid, _ in (first, second)), "a kernel outlives its notebook"


def test_pictures_and_processes_of_its_own(monkeypatch):
    "`pyplot` shows inline, and what a cell defines reaches a pool"
    monkeypatch.delenv("MPLBACKEND")  # as where no test runs
    shown = "import matplotlib.pyplot as plt; print(plt.get_backend())"
    pool = "from loky import get_reusable_executor\ndef twice(x): return 2 * x\nprint(get_reusable_executor(1).submit(twice, 21).result())"
    backend, answer = played(shown, pool)
    assert "inline" in backend and answer == "42\n"


def test_an_exception_comes_out():
    with pytest.raises(CellExecutionError, match="on fire"): played("raise ValueError('on fire')")


KILLED = """
from nbclient import NotebookClient
from nbformat import v4
from calibkd.exhibits.kernels import WarmKernels
if __name__ == "__main__":
    cell = v4.new_code_cell("import os, time; open('pid', 'w').write(f'{os.getpid()}\\\\n'); time.sleep(600)")
    NotebookClient(v4.new_notebook(cells=[cell]), kernel_manager_class=WarmKernels, kernel_name="python3").execute()
"""


def until(true, seconds=60):
    "Wait for something to become true, and say whether it did"
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end: time.sleep(.1)
    return true()


def test_it_ends_with_its_parent_however_that_dies(tmp_path):
    "kill -9 of whoever started it leaves neither kernel nor forkserver"
    (tmp_path / "killed.py").write_text(KILLED)
    parent = subprocess.Popen([sys.executable, "killed.py"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
    children = psutil.Process(parent.pid).children(recursive=True)
    assert int((tmp_path / "pid").read_text()) in {c.pid for c in children}
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert until(lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children), 10), children
