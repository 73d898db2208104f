"Results of these tests go to a scratch folder, and the default preset is a user's"
import matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    "A folder for results, no receipt, no IN_TEST"
    monkeypatch.setenv("CALIBKD_RESULTS", str(tmp_path / "results"))
    for name in ("IN_TEST", "CALIBKD_RECEIPT"): monkeypatch.delenv(name, raising=False)


@pytest.fixture
def figure():
    fig, ax = plt.subplots(figsize=(3, 2)); ax.plot([1, 2, 4], [.06, .1, .12]); ax.set_xlabel("T")
    yield fig, ax
    plt.close(fig)
