"On a real GPU: the numbers are the CPU's, the same bits come out twice, no step waits; skipped where there is none."
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibkd.distillers import AT, CRD, KD, RKD
from calibkd.inference import logits_of
from calibkd.runs import Run
from calibkd.store import Store
from calibkd.sweep import train
from calibkd.training import fit
from rehearsal import SCENES, SHORT, TEACHER, TEXTURES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
SEEN = ["item", "if", "mask", "nonzero", "bincount", "cpu"]  # waits that PyTorch tells of


def play(names):
    "Some scenes in a process of their own"
    quiet = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=Path(__file__).parent)
    done = subprocess.run([sys.executable, "rehearsal.py", "--real", *names], **quiet)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def played():
    "What happened in each scene"
    parts = min(12, os.cpu_count())
    with ThreadPoolExecutor(parts) as pool:
        return {k: v for part in pool.map(play, ([*SCENES][i::parts] for i in range(parts))) for k, v in part.items()}


@pytest.mark.parametrize("name", [n for n in SCENES if not n.startswith("fault")])
def test_the_numbers_are_the_cpus_come_out_twice_and_no_step_waits(played, name):
    scene = played[name]
    assert "error" not in scene, scene["error"]
    assert scene["same"] and scene.get("finite", True) and scene.get("twice", True), scene
    assert not scene["events"]


@pytest.mark.parametrize("kind", SEEN)
def test_a_wait_is_seen(played, kind): assert played[f"fault {kind}"]["events"]


def test_what_mixes_devices_is_refused(played): assert "error" in played["fault mixed devices"]


QUICK = replace(SHORT, precision="bf16")
TAUGHT = [Run(TEXTURES, "resnet8", o, QUICK, teacher=TEACHER) for o in (KD(T=1.), KD(T=4.), AT(), RKD(), CRD())]


@pytest.fixture
def answers():
    "Test logits of runs that are trained together"
    data = TEXTURES.load()
    teacher = fit([TEACHER], data)[0].net
    return lambda runs: [logits_of(m.net, data, data.test)[0].cpu() for m in fit(runs, data, deepcopy(teacher))]


def equal(a, b): return [torch.equal(x, y) for x, y in zip(a, b, strict=True)]


def test_in_bf16_a_run_has_the_same_bits_alone_and_in_a_cohort(answers):
    together = answers(TAUGHT)
    assert all(x.isfinite().all() for x in together)
    assert all(equal(together, [x for r in TAUGHT for x in answers([r])]))


def test_processes_that_share_the_gpu_give_the_same_bits(tmp_path):
    one, three = (train(TAUGHT, Store(tmp_path / str(n)), workers=n) for n in (1, 3))
    assert all(equal(*([made.logits(r)[0] for r in TAUGHT] for made in (one, three))))
