"Exhibits: panels, claims, what is saved, sliders"
import json
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from calibkd import exhibits, places
from calibkd.exhibits import Claim, Exhibit, pictures, SMOKE
from calibkd.places import results_root
from small_exhibit import make


def test_paths_are_shortened_everywhere(figure):
    ex = make(dataset="folder:/home/me/cats")
    assert "me" not in ex.folder.name and ex.folder.name.startswith("dataset=cats-")
    folder = ex.save(figure, pd.DataFrame({"dataset": ["/home/me/cats"], "T": [4]}), {"store": Path("/home/me/store")})
    assert not any(b"/home" in p.read_bytes() for p in folder.iterdir())
    assert json.loads((folder / "meta.json").read_text())["parameters"]["dataset"] == "folder:cats"


def test_everything_is_saved_and_the_same_numbers_give_the_same_files(figure):
    ex, table = make(), pd.DataFrame({"T": [1, 2], "ece": [.1, .2]})
    ex.claim("ECE rises with T", np.bool_(True), "r = .93", paper=6.3, ours="6.1 ± .2")
    ex.claim("It holds on ImageNet", None)
    ex.claim("ECE rises with T", np.bool_(False), "r = −.5")  # the cell was run again
    before = {p.name: p.read_bytes() for p in ex.save(figure, table, dict(seconds=9.0, trained=2, cached=1)).iterdir()}
    assert set(before) == {"fig_X.png", "fig_X.pdf", "fig_X.csv", "claims.json", "meta.json"}
    after = {p.name: p.read_bytes() for p in ex.save(figure, table).iterdir()}
    assert all(before[n] == after[n] for n in before if n != "meta.json")
    assert pd.read_csv(ex.folder / "fig_X.csv").equals(table)
    claims, meta = (json.loads(before[n]) for n in ("claims.json", "meta.json"))
    assert [(c["text"], c["holds"], c["verdict"]) for c in claims] == [("ECE rises with T", False, "does not hold"), ("It holds on ImageNet", None, "not run")]
    assert meta["preset"] == "quick" and meta["seeds"] == [0, 1, 2] and meta["training"] == dict(seconds=9.0, trained=2, cached=1)
    assert meta["versions"]["calibkd"] == places.calibkd.__version__ and meta["hardware"]["cores"] >= 1 and meta["seconds"] >= 0


def test_a_smoke_run_is_marked_and_not_judged(figure, capsys):
    ex = make(preset="smoke")
    ex.claim("ECE rises with T", True, "r = .9")
    clean = pictures(figure)["png"]
    folder = ex.save(figure, None)
    assert folder.name == "preset=smoke" and json.loads((folder / "meta.json").read_text())["note"] == SMOKE
    assert (folder / "fig_X.png").read_bytes() != clean and any("smoke" in t.get_text().lower() for t in figure[0].texts)
    claim, = json.loads((folder / "claims.json").read_text())
    assert (claim["verdict"], claim["holds"], claim["text"]) == ("not judged", None, "ECE rises with T")
    assert ex.verdict() is None and capsys.readouterr().out == f"{SMOKE}\n"


def test_the_verdict_shows_paper_and_ours_side_by_side():
    ex = make()
    ex.claim("a", True, "e", paper="1", ours="2"); ex.claim("b", False); ex.claim("c", None)
    shown = ex.verdict().data
    assert shown.columns.tolist() == ["claim", "paper", "ours", "evidence", "verdict"]
    assert shown.verdict.tolist() == ["holds", "does not hold", "not run"] and ex.claims[0] == Claim("a", True, "e", "1", "2")
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


def test_a_stated_claim_displays_nothing():
    assert make().claim("ECE rises with T", True) is None


def test_nothing_in_a_claim_is_markup_in_the_verdict():
    ex = make()
    ex.claim("a <script>b</script>", True, "1 < 2")
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
    second.claim("It holds", True)
    saved = exhibits.saved(second.save(None, pd.DataFrame({"T": [8.]})))
    assert saved["exhibit"] == "x_fig_Y" and "figure" not in saved["parameters"] and (second.folder / "x_fig_Y.csv").exists()
    assert panel(figure="fig_Y", T=3).folder == results_root() / "x_fig_Y" / "T=3"


def test_a_panel_that_does_not_exist():
    with pytest.raises(ValueError, match="no panel of x_{figure} called 'fig_Z'; did you mean"): panel(figure="fig_Z")
