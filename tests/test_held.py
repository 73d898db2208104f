"What was trained stays valid: run ids and final weights of library runs do not change unnoticed."
import json
from pathlib import Path

import pytest
from held import checksum, held, machine

from calibkd.sweep import train

KEPT = json.loads(Path(__file__).with_name("held.json").read_text())


@pytest.mark.parametrize("name", KEPT["ids"])
def test_a_run_keeps_its_identity(name):
    assert held()[name].id == KEPT["ids"][name]


@pytest.mark.skipif(machine() not in KEPT["weights"], reason=f"no weights are held of {machine()}, which has bits of its own")
def test_runs_keep_their_weights():
    runs = held()
    store = train(list(runs.values()), workers=1).store
    assert {k: checksum(store, r) for k, r in runs.items()} == KEPT["weights"][machine()]
