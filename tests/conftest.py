"Every test has a store and results of its own, and one thread: the cores are shared."
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored, and what we start would inherit that
torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config):
    "Two processes share the files; a file alone is run in this one"
    return 0 if any(".py" in name for name in config.args) else 2


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBKD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CALIBKD_RESULTS", str(tmp_path / "results"))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    "Data and cache folders of a test's own, empty; the data folder"
    monkeypatch.setenv("CALIBKD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CALIBKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"
