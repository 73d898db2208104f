"The library rehearses for CUDA on a pretended GPU: nothing is refused, the bits are the CPU's, no step waits."
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pretended_gpu import MISSING
from rehearsal import HARMLESS, REFUSED, SCENES, SHORT, SLOW, STEPS

pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"this PyTorch has no Python backends: {MISSING}")
MIXING = {"objective CRD", "objective MixUp", "objective CutMix", "objective Cutout", "objective KD + MixUp", "objective CutMix of MDCA"}  # draw partners, holes or contrasts: one copy a step


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    "What happened in each scene, in a process of its own"
    script, folder = Path(__file__).with_name("rehearsal.py"), tmp_path_factory.mktemp("rehearsal")
    quiet = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True)
    done = subprocess.run([sys.executable, str(script)], cwd=folder, **quiet)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def events(scene, kind, *during):
    "Where in the code, and how often"
    return {where: n for k, _, where, when, n in scene["events"] if k == kind and when in during}


@pytest.mark.parametrize("name", [n for n in SCENES if not n.startswith("fault")])
def test_the_numbers_are_the_cpus_and_no_step_waits(played, name):
    scene = played[name]
    assert "error" not in scene, scene["error"]
    assert scene["same"] and scene.get("finite", True) and scene["launches"], scene
    assert not events(scene, "wait", "step", "epoch")


@pytest.mark.parametrize("name", [n for n in SCENES if n.startswith(("objective", "adam", "float64"))])
def test_an_epochs_choices_are_copied_once(played, name):
    scene = played[name]
    assert sum(events(scene, "copy", "epoch").values()) == SHORT.epochs
    in_steps = sum(events(scene, "copy", "step").values())
    assert 0 < in_steps <= STEPS if name in MIXING else not in_steps


def test_every_metric_is_called(played):
    assert played["metrics"]["called"] >= 20 and not played["metrics"]["different"]


def test_a_stopped_training_went_on_from_its_checkpoint(played):
    assert played["kill"]["checkpoints"] == 1


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cuda_refuses_is_refused(played, kind):
    assert "rehearsal.py" in played[f"fault {kind}"]["error"]


@pytest.mark.parametrize("kind", SLOW)
def test_a_wait_in_a_step_is_counted_at_its_line(played, kind):
    scene = played[f"fault {kind}"]
    assert "error" not in scene and [*events(scene, "wait", "step").values()] == [STEPS // 2]
    assert all(where.startswith("rehearsal.py") for where in events(scene, "wait", "step"))


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_costs_nothing_is_not_counted(played, kind):
    scene = played[f"fault {kind}"]
    assert "error" not in scene and not events(scene, "wait", "step", "epoch")
