"Exhibits: parameters, variants, claims, saving, the scoreboard"
import json, math, os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from calibkd import exhibits, places
from calibkd.exhibits import Claim, Exhibit, beside, scoreboard, tidy, update_readme, variant
from calibkd.places import results_root, write

PRESETS = dict(smoke=dict(T=1, seeds=[0], dataset="textures", net=None), quick=dict(T=4.0, seeds=[0, 1, 2], dataset="textures", net=None),
               paper=dict(T=4.0, seeds=(0, 1), dataset="cifar100", net="resnet8"))

@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    "Results of these tests go to a scratch folder, and the default preset is a user's"
    monkeypatch.setenv("CALIBKD_RESULTS", str(tmp_path / "results"))
    for name in ("IN_TEST", "CALIBKD_RECEIPT"): monkeypatch.delenv(name, raising=False)

@pytest.fixture
def figure():
    fig, ax = plt.subplots(figsize=(3, 2)); ax.plot([1, 2, 4], [.06, .1, .12]); ax.set_xlabel("T")
    yield fig, ax
    plt.close(fig)

def make(**given): return Exhibit("fig_X", dict(preset=None, T=None, seeds=None, dataset=None, net=None) | given, **PRESETS)

def test_a_preset_fills_only_what_is_none():
    ex = make(T=2)
    assert vars(ex.p) == dict(T=2.0, seeds=[0, 1, 2], dataset="textures", net=None) and type(ex.p.T) is float
    assert ex.preset == "quick" and ex.changed == {"T": 2.0} and "T=2" in repr(ex)

def test_default_preset_is_smoke_under_nbdev_test(monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")
    assert make().preset == "smoke" and make().folder.name == "preset=smoke" and make(preset="paper").preset == "paper"

@pytest.mark.parametrize("written", [[3], (3,), 3, "3", "[3]", "3,", np.array([3]).tolist()])
def test_a_list_may_be_written_in_many_ways(written):
    assert make(seeds=written).p.seeds == [3]

def test_the_same_value_written_otherwise_is_no_variant():
    assert make(T=4, seeds="0, 1, 2", dataset="textures").folder == results_root() / "fig_X"
    assert make(preset="paper", seeds=[0, 1]).folder.name == "preset=paper"

@pytest.mark.parametrize("given, sentence", [
    (dict(Tt=2), "no parameter of fig_X called 'Tt'; did you mean 'T'"),
    (dict(seedz=2), "did you mean 'seeds'"),
    (dict(preset="papr"), "no preset of fig_X called 'papr'; did you mean 'paper'"),
    (dict(T="hot"), "parameter T must be a number, but it is 'hot'"),
    (dict(T=[1, 2]), "parameter T must be a number"),
    (dict(T=math.nan), "parameter T must be a number, but it is nan"),
    (dict(T=True), "parameter T must be a number"),
    (dict(seeds=[.5]), "parameter seeds must be a list such as [0]"),
    (dict(seeds="one"), "parameter seeds must be a list such as [0]"),
    (dict(seeds=[]), "parameter seeds must be a list such as [0], but it is []"),
    (dict(dataset=3), "parameter dataset must be a text, but it is 3"),
])
def test_bad_parameters_get_one_sentence(given, sentence):
    with pytest.raises(ValueError) as caught: make(**given)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not results_root().exists()  # refused before anything is made

def test_an_author_is_told_what_is_missing():
    with pytest.raises(ValueError, match="must have the same parameters, but T is not in all"): Exhibit("fig_X", {}, dict(T=1), {}, dict(T=1))
    with pytest.raises(ValueError, match="lacks T: add `T = None`"): Exhibit("fig_X", {}, dict(T=1), dict(T=1), dict(T=1))

def test_annotations_tell_the_type_where_presets_do_not():
    namespace = dict(preset=None, a="0.5", b=1, __annotations__=dict(a=list, b=float))
    ex = Exhibit("fig_X", namespace, *[dict(a=None, b=2)] * 3)
    assert ex.p.a == [.5] and type(ex.p.b) is float

def test_only_the_cells_that_set_parameters_are_searched_for_typos():
    cells = ["", "preset: str = None\nT: float = None\nseeds = dataset = net = None", "# Parameters\nTt = 2\n", "shared = dict(x=1)\nn = 3\nex = Exhibit("]
    with pytest.raises(ValueError, match="'Tt'"): make(In=cells, Tt=2, shared={"x": 1})
    assert make(In=[cells[0], cells[1], cells[3]], shared={"x": 1}, n=3).changed == {}
    assert make(In=[*cells, "low = 1", cells[1], cells[3]], Tt=2, low=1).changed == {}  # corrected and run again
    with pytest.raises(ValueError, match="lost its tag"): make(In=[cells[0], "# Parameters\nT = 2\n", cells[1], cells[3]])

values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=30), st.lists(st.text(max_size=9), max_size=4))

@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(["T", "dataset"]), values, max_size=2), st.dictionaries(st.sampled_from(["T", "dataset"]), values, max_size=2))
def test_two_variants_never_share_a_folder(a, b):
    names = [variant("quick", v) for v in (a, b)]
    typed = lambda v: {k: (type(x), x) for k, x in v.items()}
    same_types = {k: type(v) for k, v in a.items()} == {k: type(v) for k, v in b.items()}  # a parameter has one type
    if same_types and names[0] == names[1]: assert typed(a) == typed(b) or json.dumps(tidy(a, str)) == json.dumps(tidy(b, str))
    assert all(len(n) <= 80 and not set(n) & set('/\\:*?"<>|\0\n ') for n in names)
    assert all(n for n, v in zip(names, (a, b)) if v) and variant("smoke", a) != names[0]

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

def test_a_smoke_run_is_marked(figure):
    ex = make(preset="smoke")
    clean = exhibits.pictures(figure)["png"]
    folder = ex.save(figure, None)
    assert folder.name == "preset=smoke" and "smoke" in json.loads((folder / "meta.json").read_text())["note"]
    assert (folder / "fig_X.png").read_bytes() != clean and any("smoke" in t.get_text().lower() for t in figure[0].texts)
    assert "tests the code" in ex.verdict().to_html()

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

def test_a_read_only_folder_is_noticed_at_once(monkeypatch):
    def refuse(*_, **__): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(places.tempfile, "TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(OSError, match="Permission denied"): make()

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

def test_beside_never_shows_the_papers_number_as_ours():
    paper = pd.DataFrame({"top1": [60.2, 72.4], "ece": [2.1, math.nan]}, index=["resnet8", "resnet56"])
    ours = pd.DataFrame({"network": ["resnet8", "resnet8", "resnet20"], "seed": [0, 1, 0], "top1": [.60, .62, .7], "ece": [.02, math.nan, .03]})
    table = beside(paper, ours)
    assert table.index.tolist() == ["resnet8", "resnet56", "resnet20"]
    assert table["top1", "ours"].tolist() == ["61.00 ± 1.41 (2 seeds)", "not run", "70.00 (1 seed)"]
    assert table["ece", "paper"].tolist() == ["2.10", "–", "–"] and table["ece", "ours"].tolist() == ["2.00 (1 seed)", "not run", "3.00 (1 seed)"]
    with pytest.raises(ValueError, match="share network and seed"): beside(paper, ours.assign(seed=0))
    with pytest.raises(ValueError, match="did you mean 'network'"): beside(paper, ours, "netwrok")

def test_the_scoreboard_is_made_of_files_and_leaves_smoke_runs_and_variants_out(tmp_path, figure):
    for given in ({}, dict(preset="smoke"), dict(T=2), dict(dataset="digits")):
        ex = make(**given); ex.claim(f"claim {given}", True, "e | f"); ex.save(figure, None)
    readme = tmp_path / "README.md"
    readme.write_text("# top\n<!-- scoreboard -->\nold\n<!-- /scoreboard -->\nend\n")
    assert update_readme(readme, names=dict(fig_X="nbs/fig_X.ipynb", fig_Y="nbs/fig_Y.ipynb"), check=True) and "old" in readme.read_text()
    assert update_readme(readme, names=dict(fig_X="nbs/fig_X.ipynb", fig_Y="nbs/fig_Y.ipynb")) and not update_readme(readme, names=dict(fig_X="nbs/fig_X.ipynb", fig_Y="nbs/fig_Y.ipynb"))
    lines = readme.read_text().splitlines()
    overview, claims = [row for row in lines if row.startswith("| [fig_X]")], [row for row in lines if row.startswith("| fig_X")]
    assert len(overview) == len(claims) == 2 and "(nbs/fig_X.ipynb)" in overview[0] and "| 1 of 1 | quick | textures |" in overview[0]
    assert "(results/fig_X/dataset%3Ddigits)" in overview[1] and "| quick, changed | digits |" in overview[1]
    assert claims[0].startswith(r"| fig_X | claim {} | – | e \| f | quick | textures | ") and claims[0].endswith("| holds |")
    assert len([row for row in lines if row.startswith("| fig_Y") and "| not run |" in row]) == 2 and (lines[0], lines[-1]) == ("# top", "end")
    (results_root() / "fig_X" / "meta.json").write_text("{ cut")
    assert "(nbs/fig_X.ipynb)" not in (board := scoreboard()) and "digits" in board

def test_a_readme_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("<!-- /scoreboard --><!-- scoreboard -->")
    with pytest.raises(ValueError, match="must hold"): update_readme(tmp_path / "README.md")
    with pytest.raises(FileNotFoundError, match="no file"): update_readme(tmp_path / "none.md")

def test_where_results_and_notebooks_are(tmp_path, monkeypatch):
    monkeypatch.delenv("CALIBKD_RESULTS")
    root = Path(places.calibkd.__file__).resolve().parents[1]
    monkeypatch.chdir(tmp_path)
    assert results_root() == root / "results" and exhibits.notebook_folder() == root / "nbs"
    (tmp_path / "nbs").mkdir(); (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = calibkd\nurl = %(x)s\n"); (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    assert results_root() == tmp_path / "results"  # the nearest copy above the current folder comes first
    for module in (places, exhibits.catalogue): monkeypatch.setattr(module, "project_root", lambda: None)
    assert results_root() == tmp_path / "a" / "results"
    with pytest.raises(FileNotFoundError, match="not part of the library"): exhibits.exhibits()
    monkeypatch.setenv("CALIBKD_NBS", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="set CALIBKD_NBS"): exhibits.exhibits()

def test_sliders_only_where_somebody_can_move_them(monkeypatch, capsys):
    calls = []
    assert make().explore(calls.append, T=(1, 10)) is None and capsys.readouterr().out.count("\n") == 1
    monkeypatch.setattr(exhibits.exhibit, "headless", lambda: False)
    monkeypatch.setattr("ipywidgets.interact", lambda f, **widgets: calls.append(widgets))
    make().explore(print, T=(1, 10))
    assert calls == [{"T": (1, 10)}]
