"What the exhibits of IPWD's Tables 1 and 2 declare, and what is judged where something is missing."
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibkd.exhibits import Notebook
from calibkd.papers.ipwd import HEAVIER, ROWS, TOP1, best_rows, fully_run, diverged, gains, row_run, sound, unbeaten
from calibkd.studies import along, study

IPWD = Path(__file__).parents[2] / "nbs" / "ipwd"


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_the_paper_preset_names_networks_and_recipes_that_exist(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBKD_RESULTS", str(tmp_path))
    book, space = Notebook(IPWD / f"{name}.ipynb"), {}
    for source in (book.head, "preset = 'paper'", book.maker): exec(source, space)
    p = space["p"]
    assert [*p.pairs] == [*TOP1[name]]
    runs = [row_run(study(along(pair, p)), row, 0, p) for pair, rows in p.pairs.items() for row in rows if row != HEAVIER]
    assert {r.epochs for r in runs} == {240} and {r.recipe.batch for r in runs} == ({64} if name == "table1" else {128})


def made_up(seeds=6, **lower):
    "The printed Table 1 as if each seed had come out so, give or take; some rows lowered in one seed"
    lines = [dict(pair=pair, row=row, seed=seed, top1=v / 100 + .00001 * ((seed + i) % 3) - lower.get(row, 0) * (seed == 0))
             for pair, own in TOP1["table1"].items() for i, (row, v) in enumerate(own.items()) for seed in range(seeds)]
    return pd.DataFrame(lines)


def test_a_method_that_diverged_in_one_seed_is_left_out_and_the_others_are_still_judged():
    fallen = made_up(NST=.5)
    assert {*fallen[diverged(fallen)].row} == {"NST"} and "NST" not in {*sound(fallen).row}
    assert {*fully_run(fallen).row} == {*ROWS} - {"NST"} and not gains(sound(fallen), "NST", "KD")
    assert best_rows(fallen).at().verdict == unbeaten(fallen).at().verdict == "holds"


def test_without_all_rows_nothing_is_called_the_best():
    part = made_up()[lambda d: d.row != "FT"]
    assert best_rows(part).at().verdict == unbeaten(part).at().verdict == "not run"
    beaten = part.assign(top1=np.where(part.row == "SP", .9, part.top1))
    assert unbeaten(beaten).at().verdict == "does not hold"


def test_the_best_row_takes_five_seeds():
    assert [best_rows(made_up(n)).at().verdict for n in (3, 4, 5)] == ["undecided", "undecided", "holds"]
