"Nothing is lost and nothing gets in: kills, races, damage, interruption."
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil
import pytest
import torch
from small_grid import forked, grid

from calibkd.store import Store, faults
from calibkd.sweep import floors, train

SCRIPT = Path(__file__).with_name("small_grid.py")


def start(store, workers=1):
    "The grid's script in a process group of its own"
    return subprocess.Popen([sys.executable, str(SCRIPT), str(store), str(workers)], start_new_session=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"IN_TEST": "1"})


def everything():
    return [r for floor in floors(grid()) for r in floor]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    train(grid(), store, workers=1)
    return store


def same_weights(a, b):
    return all(torch.equal(x, y) for run in everything() for x, y in zip(a.weights(run).values(), b.weights(run).values()))


def until_training(process, root):
    "Wait until the first epoch is kept"
    while process.poll() is None and not [*root.glob("partial/*.safetensors")]: time.sleep(.01)


def test_kill_at_random_moments(tmp_path, undisturbed):
    "kill -9 twenty times in a row; then a last run to the end gives the same weights, bit by bit"
    draw, root = random.Random(0), tmp_path / "killed"
    for name in ("first", "timed"):  # the first waits for the imports, too
        begun = time.monotonic()
        forked(tmp_path / name).join()
    whole, hits = time.monotonic() - begun, 0
    for _ in range(20):
        if root.exists() and len(Store(root).hashes()) == len(everything()): shutil.rmtree(root)  # kills must hit training
        process = forked(root)
        process.join(draw.uniform(.3, 1) * whole)
        if process.is_alive():
            process.kill()
            process.join()
            hits += bool(Store(root).hashes()) or bool(list((Store(root).root / "partial").glob("*.safetensors")))
        kept = Store(root)
        assert all(faults(kept.entry(h)) == [] for h in kept.hashes()), "a half-written entry"
    assert hits >= 5, "the kills did not hit training"
    last = start(root)
    assert "trained" in last.communicate()[0] and last.returncode == 0
    assert same_weights(Store(root), undisturbed)


def test_two_processes_on_one_grid(tmp_path, undisturbed):
    "Both end well, and every run is trained by one of them only"
    both = [start(tmp_path / "shared") for _ in range(2)]
    said = [p.communicate() for p in both]
    assert all(p.returncode == 0 for p in both), said
    assert sum(int(out.split("trained")[1]) for out, _ in said) == len(everything())
    assert same_weights(Store(tmp_path / "shared"), undisturbed)


def test_pool_and_process_agree(tmp_path, undisturbed):
    process = start(tmp_path / "pool", workers=2)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert same_weights(Store(tmp_path / "pool"), undisturbed)


def test_ctrl_c_keeps_what_is_done(tmp_path, undisturbed):
    process = start(root := tmp_path / "interrupted", workers=2)
    until_training(process, root)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode != 0 and len(Store(root).hashes()) < len(everything())
    assert same_weights(train(grid(), Store(root), workers=1).store, undisturbed)


def test_a_killed_worker_is_replaced(tmp_path, undisturbed):
    process = start(root := tmp_path / "killed", workers=2)
    until_training(process, root)
    workers = [c for c in psutil.Process(process.pid).children() if "popen_loky" in " ".join(c.cmdline())]
    workers[0].kill()
    out, err = process.communicate()
    assert process.returncode == 0 and "trained" in out, err
    assert same_weights(Store(root), undisturbed)


def test_no_worker_outlives_a_parent_that_was_killed(tmp_path, undisturbed):
    process = start(root := tmp_path / "orphans", workers=2)
    until_training(process, root)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert len(gone) >= 2 and not alive
    assert same_weights(train(grid(), Store(root), workers=1).store, undisturbed)


@pytest.mark.parametrize("name", ["weights.safetensors", "logits.safetensors", "meta.json", "run.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "altered", "gone"])
def test_damage_is_found_named_and_mended(tmp_path, undisturbed, name, harm):
    shutil.copytree(undisturbed.root, tmp_path / "copy")
    store, run = Store(tmp_path / "copy"), grid()[0]
    path = store.entry(run) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    {"cut": lambda: path.write_bytes(data[:-7]), "altered": lambda: path.write_bytes(data), "gone": path.unlink}[harm]()
    with pytest.warns(UserWarning, match=run.id): results = train(grid(), store, workers=1)
    assert results.trained == 1 and same_weights(store, undisturbed)


def test_damaged_checkpoint_starts_again(tmp_path, undisturbed):
    store = Store(tmp_path / "partial")
    for run in everything(): store.checkpoint(run).write_bytes(b"not a checkpoint")
    with pytest.warns(UserWarning, match="passed over"): train(grid(), store, workers=1)
    assert same_weights(store, undisturbed)


def test_verify_finds_changed_numbers(undisturbed, tmp_path):
    shutil.copytree(undisturbed.root, tmp_path / "copy")
    store = Store(tmp_path / "copy")
    hash = store.hashes()[0]
    assert store.verify(hash) == []
    meta, manifest = store.entry(hash) / "meta.json", store.entry(hash) / "manifest.json"
    note = json.loads(meta.read_text())
    note["metrics"]["ece"] += .01
    meta.write_text(json.dumps(note))  # somebody who knows about the manifest
    sums = json.loads(manifest.read_text()) | {"meta.json": hashlib.sha256(meta.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(sums))
    assert any("ece" in line for line in store.verify(hash))


def test_second_time_trains_nothing(undisturbed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(grid(), undisturbed).trained == 0
