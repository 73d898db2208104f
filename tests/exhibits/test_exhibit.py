"Exhibits: panels, claims, what is saved, sliders"
import json
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from calibkd import exhibits, places
from calibkd.exhibits import cannot, Exhibit, more, pictures, same, SMOKE
from calibkd.places import read_json, results_root
from small_exhibit import make


def test_paths_are_shortened_everywhere(figure):
    ex = make(dataset="folder:/home/me/cats")
    assert "me" not in ex.folder.name and ex.folder.name.startswith("dataset=cats-")
    folder = ex.save(figure, pd.DataFrame({"dataset": ["/home/me/cats"], "T": [4]}), {"store": Path("/home/me/store")})
    assert not any(b"/home" in p.read_bytes() for p in folder.iterdir())
    assert json.loads((folder / "meta.json").read_text())["parameters"]["dataset"] == "folder:cats"


def test_everything_is_saved_and_the_same_numbers_give_the_same_files(figure):
    ex, table = make(), pd.DataFrame({"T": [1, 2], "ece": [.1, .2]})
    ex.judge("c1", more([.02, .03, .04], .0), text="ECE rises with T", paper="6.3")
    ex.judge("c2", cannot("there is no ImageNet"), text="It holds on ImageNet")
    ex.judge("c1", more([.0, .01, .03], .02), text="ECE rises with T", paper="6.3")  # the cell was run again
    tables = {"students": table, "teachers": table[::-1]}
    before = {p.name: p.read_bytes() for p in ex.save(figure, tables, dict(seconds=9.0, trained=2, cached=1)).iterdir()}
    assert set(before) == {"fig_X.png", "fig_X.pdf", "fig_X.csv", "fig_X_teachers.csv", "claims.json", "meta.json"}
    after = {p.name: p.read_bytes() for p in ex.save(figure, tables).iterdir()}
    assert all(before[n] == after[n] for n in before if n != "meta.json")
    assert pd.read_csv(ex.folder / "fig_X.csv").equals(table)
    claims, meta = (json.loads(before[n]) for n in ("claims.json", "meta.json"))
    assert [(c["id"], c["kind"], c["text"], c["verdict"]) for c in claims] == [
        ("fig_X.c1", "claim", "ECE rises with T", "undecided"), ("fig_X.c2", "claim", "It holds on ImageNet", "cannot be judged")]
    assert claims[0] == claims[0] | dict(paper="6.3", why="", seeds=3, needed=23, unit="points", data="textures", estimate=-.66667)
    assert claims[1] == claims[1] | dict(why="there is no ImageNet", seeds=0, needed=None, estimate=None, low=None, high=None, ours="")
    assert meta["tables"] == {"students": "fig_X.csv", "teachers": "fig_X_teachers.csv"} and (meta["looks"], meta["level"]) == (1, .95)
    assert meta["preset"] == "quick" and meta["seeds"] == [0, 1, 2] and meta["training"] == dict(seconds=9.0, trained=2, cached=1)
    assert meta["versions"]["calibkd"] == places.calibkd.__version__ and meta["hardware"]["cores"] >= 1 and meta["seconds"] >= 0


def test_a_smoke_run_is_marked_and_not_judged(figure, capsys):
    ex = make(preset="smoke")
    ex.judge("c1", more([.02, .03, .04], 0.), text="ECE rises with T")
    clean = pictures(figure)["png"]
    folder = ex.save(figure, {})
    assert folder.name == "smoke" and json.loads((folder / "meta.json").read_text())["note"] == SMOKE
    assert (folder / "fig_X.png").read_bytes() != clean and any("smoke" in t.get_text().lower() for t in figure[0].texts)
    claim, = json.loads((folder / "claims.json").read_text())
    assert (claim["verdict"], claim["ours"], claim["text"]) == ("not judged", "", "ECE rises with T")
    assert ex.verdict() is None and capsys.readouterr().out == f"{SMOKE}\n"


def test_the_verdict_shows_paper_and_ours_side_by_side():
    ex = make()
    ex.judge("c1", more(1., 0.), "two", text="a", paper="1"); ex.judge("c2", same([.1, .2, .4], 0., .1), text="b"); ex.judge("x1", more([], 0.), text="c")
    shown = ex.verdict().data
    assert shown.columns.tolist() == ["", "claim", "paper", "ours", "verdict"] and shown[""].tolist() == ["c1", "c2", "x1"]
    assert shown.verdict.tolist() == ["holds", "undecided: 8 seeds like these would decide", "not run"] and shown.ours.tolist() == ["two", "23.33 [-14.61 … 61.28] points", ""]
    assert ex.verdict().to_html() == ex.verdict().to_html()  # no random ids in a committed notebook
    assert ex.footer().startswith("quick preset · 3 seeds · ") and make(seeds=[1]).footer().startswith("quick preset, seeds=1 · 1 seed · ")


def test_a_file_where_the_folder_should_be_is_noticed_at_once():
    results_root().mkdir()
    (results_root() / "fig_X").touch()
    with pytest.raises(OSError, match="cannot be written .* set CALIBKD_RESULTS") as caught: make()
    assert "\n" not in str(caught.value)


def test_sliders_only_where_somebody_can_move_them(monkeypatch, capsys):
    calls = []
    assert make().explore(calls.append, T=(1, 10)) is None and capsys.readouterr().out.count("\n") == 1
    monkeypatch.setattr(exhibits.exhibit, "headless", lambda: False)
    monkeypatch.setattr("ipywidgets.interact", lambda f, **widgets: calls.append(widgets))
    make().explore(print, T=(1, 10))
    assert calls == [{"T": (1, 10)}]


def test_numbers_get_sliders_and_names_a_list(monkeypatch):
    from ipywidgets import SelectionSlider
    calls = []
    monkeypatch.setattr(exhibits.exhibit, "headless", lambda: False)
    monkeypatch.setattr("ipywidgets.interact", lambda f, **widgets: calls.append(widgets))
    make().explore(print, T=sorted(set(pd.Series([1., 4.]))), seed=list(np.arange(3)), teacher=["NLL", "MDCA"], alpha=[.9])
    assert isinstance(calls[0]["T"], SelectionSlider) and calls[0]["T"].options == (("1", 1.), ("4", 4.))
    assert isinstance(calls[0]["seed"], SelectionSlider) and calls[0]["teacher"] == ["NLL", "MDCA"] and calls[0]["alpha"] == [.9]


def test_a_judged_claim_displays_nothing():
    assert make().judge("c1", more(1., 0.), text="ECE rises with T") is None


def catalogued(monkeypatch, *claims):
    "An exhibit whose claims were fixed"
    said = {c["id"]: exhibits.Statement(**c) for c in claims}
    monkeypatch.setattr(exhibits.exhibit, "statements", lambda name: said)
    return make()


def test_all_that_was_fixed_must_be_judged_and_nothing_else(monkeypatch):
    ex = catalogued(monkeypatch, dict(id="c1", text="ECE rises with T", paper="6.3"), dict(id="x1", text="so does top-1"))
    ex.judge("c1", more(1., 0.))
    with pytest.raises(ValueError, match="missing: x1"): ex.save(None, {})
    assert not list(ex.folder.iterdir()), "nothing is written"
    with pytest.raises(ValueError, match="no claim of fig_X called 'x2'; did you mean 'x1'"): ex.judge("x2", more(1., 0.))
    ex.judge("x1", more(1., 0.))
    claims = json.loads((ex.save(None, {}) / "claims.json").read_text())
    assert [(c["text"], c["paper"], c["kind"]) for c in claims] == [("ECE rises with T", "6.3", "claim"), ("so does top-1", "", "ours")]


def test_a_failed_premise_leaves_undecided_what_needs_it(monkeypatch):
    ex = catalogued(monkeypatch, dict(id="p1", text="The teacher is calibrated"), dict(id="c1", text="a", needs=("p1",)), dict(id="c2", text="b"))
    for id, a in dict(p1=[0., .1, -.1], c1=[1., 2., 3.], c2=[2., 3., 4.]).items(): ex.judge(id, more(a, .5))
    assert {e["id"]: (e["verdict"], e["needed"]) for e in ex.entries()} == {"fig_X.p1": ("does not hold", None), "fig_X.c1": ("undecided", None), "fig_X.c2": ("holds", None)}
    assert ex.entries()[1]["why"] == "premise p1 does not hold"


def test_more_looks_ask_for_wider_intervals():
    verdicts = {}
    for looks in ({}, {"quick": 2}):
        presets = dict.fromkeys(("smoke", "quick", "paper"), dict(seeds=[0]))
        ex = Exhibit("fig_X", dict(preset=None, seeds=None), **presets, looks=looks)
        ex.judge("c1", more([2., 3., 4.], 0.), text="a")
        verdicts[ex.level] = ex.claims[0].found.verdict
    assert verdicts == {.95: "holds", .975: "undecided"}


def test_a_result_of_more_seeds_is_not_replaced_unseen(capsys):
    table = pd.DataFrame({"T": [1.]})
    make(seeds=[0, 1, 2, 3, 4]).save(None, table)
    make(seeds=[0, 1, 2, 3, 4, 5]).save(None, table)
    make(T=2.).save(None, table)
    assert "replaces" not in capsys.readouterr().out
    make().save(None, table)
    assert capsys.readouterr().out == "This replaces a result of 6 seeds by one of 3; seeds=[0, 1, 2, 3, 4, 5] keeps them.\n"


def test_seeds_that_are_added_by_hand_are_a_look_too(capsys):
    def looks(seeds, **given):
        presets = dict.fromkeys(("smoke", "quick", "paper"), dict(seeds=[0, 1, 2]))
        ex = Exhibit("fig_X", dict(preset=None, seeds=None) | given | dict(seeds=seeds), **presets, looks={"quick": 2})
        return [(look["look"], look["of"], look["seeds_before"]) for look in read_json(ex.save(None, {}) / "meta.json").get("decide", [])]
    assert looks([0, 1, 2]) == looks([0, 1, 2]) == [] and not capsys.readouterr().out
    assert looks([0, 1, 2, 3]) == looks([0, 1, 2, 3]) == [(2, 2, [0, 1, 2])] and not capsys.readouterr().out
    assert looks([0, 1, 2, 3, 4])[1:] == [(3, 2, [0, 1, 2, 3])] and capsys.readouterr().out == "This is look 3 of 2 planned; the intervals are for these.\n"
    assert looks([0], preset="smoke") == looks([0, 1], preset="smoke") == []


def test_nothing_in_a_claim_is_markup_in_the_verdict():
    ex = make()
    ex.judge("c1", more(1., 0.), "1 < 2", text="a <script>b</script>")
    page = ex.verdict().to_html()
    assert "<script>" not in page and "&lt;script&gt;" in page and "text-align: left" in page and "text-align: right" not in page


BOTH = dict(fig_X=dict(title="Small to big", T=2.), fig_Y=dict(title="Big to small", paper_ref="Fig. Y", quick=dict(T=8.)))


def panel(**given):
    presets = dict.fromkeys(("smoke", "quick", "paper"), dict(T=4., seeds=[0]))
    return Exhibit("x_{figure}", dict(preset=None, figure=None, T=None, seeds=None) | given, panels=BOTH, title="All", paper_ref="Fig. X", **presets)


def test_a_panel_is_an_exhibit_of_its_own_and_no_changed_default():
    first, second = panel(), panel(figure="fig_Y")
    assert (first.name, first.p.T, first.title, first.paper_ref) == ("x_fig_X", 2., "Small to big", "Fig. X")
    assert (second.name, second.p.T, second.title, second.paper_ref) == ("x_fig_Y", 8., "Big to small", "Fig. Y")
    assert second.folder == results_root() / "x_fig_Y" and second.changed == {} and panel(figure="fig_Y", preset="paper").p.T == 4.
    second.judge("c1", more(1., 0.), text="It holds")
    saved = exhibits.saved(second.save(None, pd.DataFrame({"T": [8.]})))
    assert saved["exhibit"] == "x_fig_Y" and "figure" not in saved["parameters"] and (second.folder / "x_fig_Y.csv").exists()
    assert panel(figure="fig_Y", T=3).folder == results_root() / "x_fig_Y" / "T=3"


def test_a_panel_that_does_not_exist():
    with pytest.raises(ValueError, match="no panel of x_{figure} called 'fig_Z'; did you mean"): panel(figure="fig_Z")
