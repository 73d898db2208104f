"Every test has a store and results of its own, and one thread: the cores are shared."
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBKD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CALIBKD_RESULTS", str(tmp_path / "results"))
