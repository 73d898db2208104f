"What was trained stays valid: run ids and final weights of library runs do not change unnoticed."
import json
from pathlib import Path

import pytest
from held import checksum, held, machine

from calibkd.sweep import train

KEPT = json.loads(Path(__file__).with_name("held.json").read_text())


@pytest.mark.parametrize("name", KEPT["runs"])
def test_a_run_keeps_its_identity(name):
    assert held()[name].id == KEPT["runs"][name]["id"]


@pytest.mark.skipif(machine() != KEPT["machine"], reason=f"the weights held were made on {KEPT['machine']}, this is {machine()}: other bits")
def test_runs_keep_their_weights():
    runs = held()
    store = train(list(runs.values()), workers=1).store
    assert {k: checksum(store, r) for k, r in runs.items()} == {k: v["weights"] for k, v in KEPT["runs"].items()}
