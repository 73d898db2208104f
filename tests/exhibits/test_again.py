"Verdicts again from saved tables; plans for more seeds; what lies in the repository's own results"
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibkd.exhibits import chance, cost, everything_saved, exhibits, Extension, more, notebooks_at, plan, read_table, rejudged, Rejudged, saved, Standing, standing
from calibkd.exhibits.again import difference
from calibkd.exhibits.decide import half_width, prospect
from calibkd.exhibits.exhibit import comma_separated
from calibkd.places import results_root

ROOT = Path(__file__).parents[2]
RESULTS = {r["folder"].relative_to(ROOT / "results").as_posix(): r for r in everything_saved(ROOT / "results")}
OLD = "saved before its tables had names"


@pytest.fixture(scope="module")
def books(): return {b.name: b for b in exhibits(ROOT / "nbs")}


@pytest.mark.parametrize("place", RESULTS)
def test_no_verdict_of_the_repository_is_out_of_date(place, books):
    if "tables" not in RESULTS[place]: pytest.skip(OLD)
    again = rejudged(RESULTS[place], books)
    assert not again.stale, again.trouble or f"run `calibkd judge`: {again.changes}"


def git(*words):
    "What git says in the repository; None if it cannot"
    try: done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=60)
    except OSError: return None
    return done.stdout.strip() if done.returncode == 0 else None


@pytest.mark.parametrize("place", RESULTS)
def test_the_commit_that_a_result_names_is_in_the_history(place):
    if "tables" not in RESULTS[place]: pytest.skip(OLD)
    if git("rev-parse", "--is-shallow-repository") != "false": pytest.skip("no git, or not the whole history")
    assert git("merge-base", "--is-ancestor", RESULTS[place]["commit"], "HEAD") is not None, "run the exhibit again from a commit that stays"


HEAD = "preset: str = None\nfigure: str = None\nT: float = None\ndataset: str = None\nseeds: list = None"
MAKE = """import numpy as np
from calibkd.exhibits import Exhibit, more, side
own = dict(T=4., dataset="textures", seeds=[0, 1, 2])
ex = Exhibit("my_{figure}", globals(), smoke=own, quick=own, paper=own, panels=dict(a=dict(title="A"), b=dict(title="B", T=8.)), looks=dict(quick=2))
p = ex.p
def double(values): return 2 * values"""
TABLES = """import pandas as pd
rng = np.random.default_rng(int(p.T))
students = pd.DataFrame([dict(T=p.T, id=f"{s}e1x", seed=s, ece=.05 + rng.random() / 7, known=s > 0, note=None if s else "NA") for s in p.seeds])
teachers = pd.DataFrame([dict(kind=k, seed=s, ece=rng.random() / 30) for k in ("NLL", "None") for s in p.seeds])"""
CLAIMS = """uc, kin = side(students, T=p.T), side(teachers, kind="None")
ex.judge("c1", more(double(uc["ece"]), kin["ece"]), text="ECE of the students")
ex.judge("x1", more(uc["ece"][students.set_index("seed").known], .05), f"of {len(p.seeds)}", text="known only")"""
SAVE = "ex.save(None, dict(students=students, teachers=teachers))"


def book(folder, claims=CLAIMS, make=MAKE):
    "The notebook, written"
    kinds = [(HEAD, ["parameters"]), (make, []), (TABLES, []), (claims, ["claims"]), (SAVE, [])]
    cells = [dict(cell_type="code", metadata={"tags": tags}, source=s, outputs=[], execution_count=None) for s, tags in kinds]
    (folder / "mine.ipynb").write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=4)))
    return {b.name: b for b in notebooks_at(folder / "mine.ipynb")}


def run(made, **given):
    "Run its cells as a kernel would, and give what it saved"
    space = {}
    for kind, source in made.cells:
        exec(source, space)
        if kind == "parameters": space.update(made.selector | given)
    return saved(space["ex"].folder)


@pytest.mark.parametrize("given", [{}, dict(preset="paper"), dict(T=2), dict(seeds=[0, 1, 2, 3, 4]), dict(seeds=[7, 8, 9], preset="paper", T=1.5),
                                   dict(dataset="folder:/home/me/cats")])
@pytest.mark.parametrize("panel", ["my_a", "my_b"])
def test_the_same_verdicts_from_the_tables(panel, given, tmp_path):
    made = book(tmp_path)
    result = run(made[panel], **given)
    before = {p: p.read_bytes() for p in results_root().rglob("*") if p.is_file()}
    again = rejudged(result, made)
    assert not again.trouble and not again.stale and again.changes == {} and len(again.entries) == 2
    assert {p: p.read_bytes() for p in results_root().rglob("*") if p.is_file()} == before and [p.name for p in results_root().iterdir()] == [panel]
    assert again.place == f"{panel}/{result['folder'].name}".removesuffix(f"/{panel}")


def test_another_rule_is_noticed_and_said(tmp_path):
    result = run(book(tmp_path)["my_a"])
    again = rejudged(result, book(tmp_path, CLAIMS.replace("double(uc", "-(uc").replace("known only", "only those known")))
    assert again.stale and again.changes == {"c1": "holds → does not hold", "x1": "undecided; other text"}
    assert rejudged(result, book(tmp_path, CLAIMS.rpartition("\n")[0])).changes == {"x1": "undecided → –"}
    assert difference(None, {"verdict": "holds"}) == "– → holds"


@pytest.mark.parametrize("claims, make, why", [
    (CLAIMS + "\nex.judge('c2', more(rng.random(3), 0.), text='t')", MAKE, "NameError: name 'rng' is not defined"),
    (CLAIMS, MAKE.replace("T=4.", "T=5."), "its notebook has other values of T now; run it again"),
    (CLAIMS, MAKE.replace("quick=2", "quick=3"), "its notebook has other values of looks now; run it again"),
    (CLAIMS, MAKE.replace("[0, 1, 2])", "[0, 1, 2], alpha=.9)"), "The parameters cell of my_a lacks alpha: add `alpha = None`."),
])
def test_what_cannot_be_judged_again_says_why(claims, make, why, tmp_path):
    again = rejudged(run(book(tmp_path)["my_a"]), book(tmp_path, claims, make))
    assert again.stale and again.entries is None and again.trouble == why


def test_results_without_notebook_or_tables(tmp_path):
    made = book(tmp_path)
    result = run(made["my_a"])
    assert rejudged(result, {}).trouble == "there is no notebook that makes it"
    assert OLD in rejudged({k: v for k, v in result.items() if k != "tables"}, made).trouble
    (result["folder"] / "my_a_teachers.csv").unlink()
    assert rejudged(result, made).trouble.startswith("FileNotFoundError: ")


def test_a_table_is_read_to_the_last_digit_and_text_stays_text(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"teacher": ["NA", "None", "nan", "1e5x"], "id": ["1234567890", "12e34", "0012", "ab"], "T": [1., 4., np.nan, np.inf],
                          "ece": rng.random(4) ** 9, "seed": [0, 1, 2, 3], "known": [True, False, True, False], "task": [None, "Focal", None, "NLL"]})
    (tmp_path / "a.csv").write_text(comma_separated(table))
    pd.testing.assert_frame_equal(read_table(tmp_path / "a.csv"), table, check_exact=True)


def entry(id, verdict="undecided", seeds=3, needed=None, **more):
    return dict(id=f"fig_X.{id}", verdict=verdict, seeds=seeds, needed=needed, why="", low=-1., high=2., unit="points") | more


def result(*claims, seeds=(3, 4, 5), **more):
    return dict(exhibit="fig_X", parameters={"seeds": list(seeds)}, seconds=30., looks=2, training={"seconds": 900., "runs": ["a"]}, claims=claims) | more


def test_where_an_exhibit_stands():
    it = standing(result(entry("c1", needed=8), entry("c2", "holds"), entry("c3", why="premise p1 does not hold"), entry("x1", seeds=2, needed=5)), processes=2)
    assert it.needed == {"c1": 8, "x1": 5} and it.minutes == pytest.approx(2.5) and it.looks == 1 and it.added(2) == (6, 7)
    assert standing(result(level=.975)).level == .975 and standing(result()).level == .95
    assert standing(result(decide=[{}])).looks == 0 and standing(result(looks=1)).looks == 0
    assert standing(result(training={})).minutes == pytest.approx(1 / 6), "no networks: as long as it ran"
    with pytest.raises(ValueError, match="fig_X has no list of seeds"): standing(result() | {"parameters": {"seeds": 5}})


def places(planned): return {e.of.name: (e.n, round(e.minutes, 3)) for e in planned}


def test_a_chance_grows_with_the_seeds_and_is_less_the_more_are_needed():
    assert chance(8, 3, 3) == chance(8, 1, 9) == 0. and chance(8, 3, 4) < chance(8, 3, 6) < chance(8, 3, 10) < chance(4, 3, 10) < 1.
    assert chance(8, 3, 10, .975) == chance(8, 3, 10, .975) and chance(8, 7, 10) > chance(30, 7, 10)
    assert .05 < chance(10_000, 3, 10) < .15, "no effect seen: its mean is known no better than its spread"


@pytest.mark.parametrize("level", [.95, .975])
def test_chances_are_calibrated_where_effects_are_of_one_and_a_half_spreads(level):
    draw, told, found = np.random.default_rng(2), [], []
    for effect in draw.normal(0, 1.5, 1500):
        seeds = effect + draw.standard_normal(8)
        first, last = (more(part, 0.).at(level) for part in (seeds[:3], seeds))
        if first.needed: told.append(chance(first.needed, 3, 8, level)), found.append(last.verdict != "undecided")
    told, found = np.array(told), np.array(found)
    for low in (0, .3, .6):
        some = (told >= low) & (told < low + .3)
        assert some.sum() > 80 and abs(told[some].mean() - found[some].mean()) < .1


def test_most_expected_decisions_per_minute_first():
    cheap, dear = Standing("cheap", (0, 1, 2), {"c1": 5, "c2": 5, "c3": 10}, 1.), Standing("dear", (0, 1, 2), {"c1": 4, "c2": 4, "c3": 4}, 4.)
    assert [e.of.name for e in plan([dear, cheap])] == ["cheap", "dear"]
    assert [*places(plan([dear, cheap], budget=3.9))] == ["cheap"] and [*places(plan([dear, cheap], budget=6.))] == ["cheap", "dear"]
    assert places(plan([cheap], most=5)) == {"cheap": (2, 2.)} and plan([cheap], most=3) == [] == plan([cheap], budget=.9)
    assert places(plan([Standing("free", (0, 1, 2), {"c1": 6}, 0.)], budget=0.)) == {"free": (7, 0.)}
    assert plan([Standing("hopeless", (0, 1, 2), {"c1": 4000})]) == [] != plan([Standing("a chance", (0, 1, 2), {"c1": 13})])
    assert places(plan([Standing("all but sure", (0, 1, 2, 3, 4, 5), {"c1": 7}, 1.)]))["all but sure"][0] < 4, "no step for less than a fifth of a decision"


def test_one_look_is_left_or_none():
    assert plan([Standing("a", (0, 1, 2), {"c1": 4}, looks=0)]) == []
    assert len(plan([Standing("a", (0, 1, 2), {f"c{i}": i for i in range(4, 11)}, looks=1)])) == 1, "one extension, however many steps led to it"


def test_networks_that_are_shared_cost_once():
    a, b = Standing("a", (0, 1, 2), {"c1": 5}, 1., runs=frozenset("wxyz")), Standing("b", (0, 1, 2), {"c1": 6, "c2": 6}, 2., runs=frozenset("yzuv"))
    assert cost(b, 3) == 6. and cost(b, 3, [(a, 0)]) == 6. and cost(b, 3, [(a, 2)]) == 1 + 1 + 2 and cost(b, 3, [(b, 3)]) == 6.
    assert cost(b, 1, [(Standing("c", (0, 1, 2, 3), {}, runs=frozenset("yzuv")), 0)]) == 0., "there already"
    alone, beside = places(plan([b]))["b"], places(plan([a, b]))
    assert alone == (alone[0], 2. * alone[0]) and beside["b"] == (alone[0], 2. * alone[0] - beside["a"][0])


def test_the_plan_never_costs_more_than_the_budget_nor_exceeds_the_maximum():
    rng = np.random.default_rng(0)
    for _ in range(200):
        some = [Standing(str(i), (0, 1, 2), {f"c{j}": int(n) for j, n in enumerate(rng.integers(1, 30, 4))}, float(rng.random() * 9), int(rng.integers(0, 3)),
                         frozenset(map(str, rng.integers(0, 9, 4)))) for i in range(4)]
        budget, most = float(rng.random() * 60), int(rng.integers(3, 20))
        planned = plan(some, budget, most)
        assert sum(e.minutes for e in planned) <= budget + 1e-9 and all(3 < len(e.seeds) <= most and e.chances and e.of.looks for e in planned)
        assert [e.rate for e in planned] == sorted((e.rate for e in planned), reverse=True)


def test_words_of_the_plan():
    it = standing(result(entry("c1", needed=8)))
    assert str(Extension(it, 5, 12.)) == "fig_X: 3 → 8 seeds (6, 7, 8, 9, 10), 12 min, for c1 (50 %)"
    says = lambda e, seeds=3, it=it: prospect(e, it, range(seeds), 10)
    assert says(entry("c1", needed=8), 8) == "planned: 50 %" and says(entry("c1", needed=8)) == "over the budget"
    assert says(entry("c1", needed=4000), it=standing(result(entry("c1", needed=4000)))) == "hardly with 10 seeds"
    assert says(entry("c1", why="fewer than 3 seeds")) == "fewer than 3 seeds" and says(entry("c1")) == "not even 10000 seeds would decide"
    assert says(entry("c1", needed=8), it=Standing("fig_X", (3, 4, 5), {}, looks=0)) == "no look left"
    units = dict(points="± 1.5 points", share="± 1.5 %", rho="± 1.5")
    assert {u: half_width(entry("c1", unit=u)) for u in units} == units and half_width(entry("c1", low=1., high=4., unit="ratio")) == "×/÷ 2"
    assert half_width(entry("c1", low=None, high=None)) == "–"
