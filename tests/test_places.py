"Files are written whole or not at all, where somebody may write"
from concurrent.futures import ThreadPoolExecutor
import pytest
from calibkd import places
from calibkd.places import results_root, writable, write


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write(tmp_path / "a.csv", "old")
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(places.os, "replace", full)
    with pytest.raises(OSError): write(tmp_path / "a.csv", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.glob("*.csv*")] == [("a.csv", "old")] and len(list(tmp_path.iterdir())) == 1


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, sizes = write(tmp_path / "a", b"0" * 300_000), set()
    with ThreadPoolExecutor(2) as pool:
        done = pool.submit(lambda: [write(path, bytes([i]) * 300_000) for i in range(100)])
        while not done.done(): sizes.add((len(data := path.read_bytes()), len(set(data))))
    assert sizes == {(300_000, 1)}


def test_a_read_only_folder_is_noticed_at_once(tmp_path, monkeypatch):
    def refuse(*_, **__): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(places.tempfile, "TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(OSError, match="Permission denied"): writable(results_root())


def test_weights_lie_where_the_variable_says_or_beside_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBKD_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("CALIBKD_WEIGHTS", raising=False)
    assert places.weights_root() == tmp_path / "data" / "weights"
    monkeypatch.setenv("CALIBKD_WEIGHTS", str(tmp_path / "mine"))
    assert places.weights_root() == tmp_path / "mine"
