"The command line: exhibits run as a user would run them"
import json, os, pty, signal, subprocess, sys
from pathlib import Path
import pytest
from click.testing import CliRunner
import calibkd
from calibkd.cli import STOPPED, main

TITLE = "# ECE against temperature\n> Students of a hot teacher."
PARAMETERS = "preset: str = None  # smoke (1 s), quick (2 s) or paper\nT: float = None  # temperature\nseeds: list = None\ntrouble: str = None"
MAKE = """import time
import pandas as pd
from calibkd.exhibits import Exhibit, more, side
from calibkd.progress import bar
shared = dict(T=4., seeds=[0, 1], trouble="")
ex = Exhibit("fig_X", globals(), smoke=shared | dict(T=1.), quick=shared | dict(seeds=[0, 1, 2]), paper=shared, looks={"quick": 2})
p = ex.p"""
TRAIN = """with bar(4, "training students") as b:
    for _ in range(4): time.sleep(60 if ex.p.trouble == "long" else .3); b.update(1)
if ex.p.trouble == "value": raise ValueError("The teacher is on fire; put it out.")
if ex.p.trouble == "surprise": [][0]"""
JUDGE = """ece = side(table)["ece"]
ex.judge("c1", more(ece, .05), text="ECE is above 5 %", paper="6 → 12")
ex.judge("x1", more(ece, .095), text="ECE is above 9.5 %")"""
SAVE = """spent = dict(seconds=12. * len(p.seeds), runs=[f"{T}, {s}" for T in (1, p.T) for s in p.seeds])
ex.save(None, {"table": table}, spent);"""
TABLE = """table = pd.DataFrame([dict(T=p.T, seed=s, ece=.1 + .004 * (s % 3 - 1)) for s in p.seeds])"""
LAST = (TABLE, JUDGE, SAVE)

def notebook(*sources):
    "The JSON of a notebook with a title, a parameters cell and code cells"
    cells = [{"cell_type": "code", "metadata": {}, "source": s, "outputs": [], "execution_count": None} for s in sources]
    for cell in cells: cell["metadata"]["tags"] = ["parameters"] if cell is cells[0] else ["claims"] * ("ex.judge(" in cell["source"])
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": TITLE}, *cells], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4})

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    "A folder with one exhibit"
    (tmp_path / "nbs" / "lib").mkdir(parents=True)
    (tmp_path / "nbs" / "fig_X.ipynb").write_text(notebook(PARAMETERS, MAKE, TRAIN, *LAST))
    (tmp_path / "nbs" / "lib" / "00_library.ipynb").write_text(notebook("Exhibit()"))
    paths = dict(CALIBKD_NBS="nbs", CALIBKD_RESULTS="results", CALIBKD_STORE="store")
    for name, path in paths.items(): monkeypatch.setenv(name, str(tmp_path / path))
    monkeypatch.setenv("PYTHONPATH", str(Path(calibkd.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("IN_TEST", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path

def says(*words):
    result = CliRunner().invoke(main, words)
    return result.exit_code, result.output

def start(*words, **options):
    return subprocess.Popen([sys.executable, "-m", "calibkd.cli", *words], stdin=subprocess.DEVNULL, **options)

def test_list_says_what_when_and_how_long():
    head, line = says("list")[1].splitlines()
    assert head.split() == "exhibit what it shows sqrp quick verdicts".split() and line.split() == "fig_X ECE against temperature sq p ? not run".split()
    assert says("list", "--long") == (0, "fig_X: ECE against temperature\n    Students of a hot teacher.\n    smoke ? · quick ? · paper ? · not run\n")
    assert "    -p T               temperature\n" in says("list", "fig_X")[1]
    assert says("--version") == (0, f"calibkd, version {calibkd.__version__}\n")

JUDGED = [("c", "claim", "holds", 12), ("p", "premise", "holds", 2), ("ca", "claim", "undecided", 3), ("cb", "claim", "not run", 1)]

def test_list_measures_and_stays_within_80_columns(here):
    "The time is that of the quick preset as it was saved, whatever the notebook's comment says; the verdict the last one that was judged"
    long = notebook(PARAMETERS, MAKE.replace("fig_X", "extra_true_calibration").replace("globals(),", f'globals(), title="{"A very long title, " * 9}",'))
    (here / "nbs/extra").mkdir()
    (here / "nbs/extra/true_calibration.ipynb").write_text(long)
    for preset, folder, seconds in (("quick", "extra_true_calibration", 200), ("smoke", "extra_true_calibration/smoke", 1)):
        place = here / "results" / folder
        place.mkdir(parents=True)
        meta = dict(exhibit="extra_true_calibration", preset=preset, changed={}, seconds=seconds, date=f"2026-11-2{seconds % 7}", training={"seconds": 3600 * 9})
        (place / "meta.json").write_text(json.dumps(meta))
        (place / "claims.json").write_text(json.dumps([{"id": f"extra_true_calibration.{k}{i}", "kind": kind, "verdict": v} for k, kind, v, n in JUDGED for i in range(n)]))
    lines = says("list")[1].splitlines()
    assert all(len(line) <= 80 for line in lines) and lines[1].split()[-4:] == ["h", "12✓", "3?", "1·"] and "9.0" in lines[1] and "…" in lines[1]

@pytest.mark.parametrize("words, sentence", [
    (["run", "fig_Y"], "There is no exhibit called 'fig_Y'; did you mean 'fig_X'?"),
    (["run", "nbs/lib/00_library.ipynb"], "nbs/lib/00_library.ipynb makes no exhibit"),
    (["run", "elsewhere/fig_X.ipynb"], "There is no notebook elsewhere/fig_X.ipynb."),
    (["path", "fig_Y"], "There is no exhibit called 'fig_Y'; did you mean 'fig_X'?"),
    (["list", "fig_Y"], "There is no exhibit called 'fig_Y'"),
    (["run"], "Give the names of exhibits (`calibkd list` shows them) or --all."),
    (["run", "fig_X", "--all"], "Give the names of exhibits"),
    (["run", "fig_X", "-p", "TT", "2"], "There is no parameter of fig_X called 'TT'; did you mean 'T'?"),
    (["run", "--all", "-p", "sedes", "2"], "There is no parameter of fig_X called 'sedes'; did you mean 'seeds'?"),
    (["run", "fig_X", "--preset", "papr"], "There is no preset called 'papr'; did you mean 'paper'?"),
    (["run", "fig_X", "-p", "preset", "3"], "There is no preset called '3'"),
    (["run", "fig_X", "--preset", "real"], "fig_X has no preset 'real', only smoke, quick, paper."),
    (["run", "--all", "--preset", "real"], "No exhibit has all of preset real."),
    (["run", "fig_X", "-p", "T", "hot"], "The parameter T must be a number, but it is 'hot'."),
    (["run", "fig_X", "-p", "T=[1,2]"], "The parameter T must be a number, but it is '[1,2]'."),
    (["run", "fig_X", "-p", "trouble", "3"], "The parameter trouble must be a text, but it is 3."),
    (["run", "fig_X", "-p", "figure", "a"], "No exhibit has all of figure a."),
    (["scoreboard", "none.md"], "There is no file none.md"),
])
def test_bad_input_gets_one_sentence(words, sentence, here):
    code, said = says(*words)
    assert code == 1 and said.startswith(f"Error: {sentence}") and said.count("\n") == 1
    assert not (here / "results").exists()

def test_results_that_cannot_be_written_are_noticed_before_the_kernel_starts(here, monkeypatch):
    (here / "results").touch()
    monkeypatch.setattr("calibkd.cli.execute", lambda *_: pytest.fail("it was started"))
    code, said = says("run", "fig_X")
    assert code == 1 and said.startswith("Error: The results cannot be written to ") and said.count("\n") == 1

def test_no_notebooks_no_traceback(here, monkeypatch):
    monkeypatch.setenv("CALIBKD_NBS", str(here / "none"))
    assert says("list") == (1, f"Error: There is no folder {here / 'none'}; set CALIBKD_NBS to the folder of the notebooks.\n")

def handed_over(monkeypatch, *words):
    "What `calibkd run` gives to papermill: the notebook and the parameters"
    calls = []
    monkeypatch.setattr("calibkd.cli.run_one", lambda n, parameters, alone: calls.append((n.path, parameters)))
    says("run", *words)
    return calls

@pytest.mark.parametrize("words", [["-p", "T", "2"], ["-p", "T=2"], ["-p", "T=2.0", "-p", "seeds", "none"], ["-p", "seeds=None", "-p", "T", "2"]])
def test_parameters_in_two_spellings(words, monkeypatch):
    (_, given), = handed_over(monkeypatch, "fig_X", *words)
    assert given == {"T": 2.0} and type(given["T"]) is float

def test_texts_and_lists_are_handed_over_as_the_notebook_annotates_them(monkeypatch):
    (_, given), = handed_over(monkeypatch, "fig_X", "-p", "seeds", "0,1", "-p", "trouble", "none", "-p", "T", "1e-3")
    assert given == {"seeds": [0, 1], "trouble": "none", "T": .001}

def test_a_path_runs_that_file(here, monkeypatch):
    "Not the one of the same name in the catalogue; a path into the catalogue is the catalogue's"
    (here / "mine").mkdir()
    (here / "mine/fig_X.ipynb").write_text(notebook(PARAMETERS, MAKE, *LAST))
    for word, place in (("mine/fig_X.ipynb", "mine"), ("nbs/fig_X.ipynb", "nbs"), ("fig_X", "nbs"), ("fig_X.ipynb", "nbs")):
        (path, _), = handed_over(monkeypatch, word)
        assert path.resolve() == here / place / "fig_X.ipynb"
    assert says("path", "fig_X")[1] == f"{here / 'nbs/fig_X.ipynb'}\n"

PANELS = """from calibkd.exhibits import Exhibit, more
every = dict(T=4., seeds=[0])
ex = Exhibit("{figure}", globals(), smoke=every, quick=every, paper=every, panels=dict(fig_Y=dict(title="Y", T=1.), fig_Z=dict(title="Z", T=9.)))"""
HOT = 'ex.judge("c1", more(ex.p.T, 4.), text="It is hot")'

def test_a_panel_is_run_by_its_name(here, monkeypatch):
    (here / "nbs/pair.ipynb").write_text(notebook("preset: str = None\nfigure: str = None\nT: float = None\nseeds: list = None", PANELS, HOT, "ex.save(None, {});"))
    assert [(p.name, g) for p, g in handed_over(monkeypatch, "fig_Z", "-p", "T=2")] == [("pair.ipynb", {"T": 2., "figure": "fig_Z"})]
    assert [g for _, g in handed_over(monkeypatch, "nbs/pair.ipynb")] == [{"figure": "fig_Y"}, {"figure": "fig_Z"}]
    assert [g for _, g in handed_over(monkeypatch, "nbs/pair.ipynb", "-p", "figure", "fig_Z")] == [{"figure": "fig_Z"}]
    assert handed_over(monkeypatch, "fig_Y", "-p", "figure", "fig_Z") == []
    monkeypatch.undo(); monkeypatch.setenv("CALIBKD_NBS", str(here / "nbs")); monkeypatch.setenv("CALIBKD_RESULTS", str(here / "results")); monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(Path(calibkd.__file__).parents[1]))
    code, said = says("run", "fig_Z")
    assert code == 0 and said.startswith("fig_Z: 1 holds (quick preset, ") and (here / "results/fig_Z/meta.json").exists() and (here / "results/fig_Z/fig_Z.ipynb").exists()
    (here / "README.md").write_text("<!-- scoreboard --><!-- /scoreboard -->")
    says("scoreboard", "README.md")
    assert "### [fig_Z](results/fig_Z/fig_Z.ipynb): Z\n" in (page := (here / "RESULTS.md").read_text()) and "### [fig_Y](nbs/pair.ipynb)\n\nnot run\n" in page

def test_papermill_without_an_output_path(here):
    "The short form runs where stdout is a file, shows progress on stderr, and saves a variant beside the default"
    with open(here / "out.ipynb", "w") as out:
        done = subprocess.run(["papermill", "nbs/fig_X.ipynb", "-p", "T", "2"], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "training students: 100%" in done.stderr
    cells = json.loads((here / "out.ipynb").read_text())["cells"]
    assert not any("students" in json.dumps(c.get("outputs")) for c in cells)  # the bar is not kept
    assert {p.name for p in (here / "results/fig_X/T=2").iterdir()} == {"fig_X.csv", "claims.json", "meta.json"}

def test_papermill_with_an_unknown_parameter_fails_before_training(here):
    done = subprocess.run(["papermill", "nbs/fig_X.ipynb", "out.ipynb", "-p", "Tt", "2"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1 and "no parameter of fig_X called 'Tt'; did you mean 'T'" in done.stderr
    assert "training students" not in done.stderr.replace('"training students"', "") and not (here / "results/fig_X").exists()

def test_run_on_a_terminal_shows_training_and_the_verdict(here):
    master, slave = pty.openpty()  # of 0 columns, as in many containers
    process = start("run", "fig_X", "--preset", "smoke", "-p", "seeds", "[0,1]", stdout=subprocess.PIPE, stderr=slave, text=True)
    os.close(slave)
    seen, live = b"", False
    while not seen.endswith(b"EOF"):
        try: seen += os.read(master, 4096) or b"EOF"
        except OSError: break
        live = live or b"training students:  50%" in seen and process.poll() is None
    said, code = process.communicate(timeout=30)[0], process.returncode
    assert live and code == 0 and b"IPKernelApp" not in seen
    assert said.splitlines()[1:] == ["  results/fig_X/smoke/fig_X.csv · results/fig_X/smoke/fig_X.ipynb"]
    assert (here / "results/fig_X/smoke/fig_X.ipynb").exists()
    assert said.startswith("fig_X: not judged (smoke preset, ") and "not judged (smoke preset, " in says("list", "--long")[1] and says("list")[1].endswith("not run\n")

def test_ctrl_c_says_what_is_kept(here):
    process = start("run", "fig_X", "-p", "trouble", "long", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = b""
    while b"training students:" not in seen and process.poll() is None: seen += os.read(process.stderr.fileno(), 4096)
    process.send_signal(signal.SIGINT)
    said = seen + process.communicate(timeout=30)[1]
    assert process.returncode == 130 and said.decode().rstrip().endswith(STOPPED) and b"Traceback" not in said
    assert not list(here.glob("results/**/*.ipynb"))

def test_what_a_notebook_raises_is_passed_on(here):
    assert says("run", "fig_X", "-p", "trouble", "value") == (1, "Error: The teacher is on fire; put it out.\n")
    (here / "nbs" / "fig_Z.ipynb").write_text(notebook(PARAMETERS, "from calibkd.exhibits import Exhibit", "if preset: Exhibit()"))
    code, said = says("run", "--all", "-p", "trouble", "surprise")
    assert code == 1 and said == ("Error in fig_X: IndexError: list index out of range (the traceback is in results/fig_X.failed.ipynb)\n"
                                  "fig_Z ran but saved no results; see results/fig_Z.ipynb\nFailed: fig_X\n")
    assert "IndexError" in (here / "results/fig_X.failed.ipynb").read_text() and not list(here.rglob("results/**/fig_X.ipynb"))

def test_smoke_exhibits_run_side_by_side(here):
    "Each in a process of its own, their lines not mixed, failures told apart"
    (here / "nbs" / "fig_Z.ipynb").write_text(notebook(PARAMETERS, MAKE.replace("fig_X", "fig_Z"), TRAIN, *LAST))
    (here / "nbs" / "fig_B.ipynb").write_text(notebook(PARAMETERS, MAKE.replace("fig_X", "fig_B"), "raise ValueError('It is broken; mend it.')"))
    done = start("run", "--all", "--preset", "smoke", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said, errors = done.communicate(timeout=240)
    lines = said.splitlines()
    assert done.returncode == 1 and errors.rstrip().endswith("Failed: fig_B") and "training students" not in errors
    assert lines[0] == "Error in fig_B: It is broken; mend it." and lines[1].startswith("fig_X: not judged (smoke preset, ") and lines[3].startswith("fig_Z: not judged")
    assert all((here / f"results/{name}/smoke/{name}.ipynb").exists() for name in ("fig_X", "fig_Z"))

class Shelf:
    "A store of two networks, one of them damaged"
    root = Path("shelf")
    line = dict(network="resnet8", dataset="textures", objective="KD", seed=0, epochs=2, seconds=1.5, top1=.625, ece=.0312, teacher="b" * 64)
    def hashes(self): return ["a" * 64, "b" * 64]
    def runs(self): return [self.line | dict(hash="a" * 64), self.line | dict(hash="b" * 64, objective="NLL", teacher=None)]
    def verify(self, hash): return [] if hash[0] == "a" else ["ece is stored as .1 but its logits give .2"]

def test_runs_and_verify(monkeypatch):
    monkeypatch.setattr("calibkd.store.Store", Shelf)
    code, said = says("runs")
    assert code == 0 and "62.50%" in said and "3.12%" in said and "a" * 10 in said and "a" * 11 not in said and len(said.splitlines()) == 3
    code, said = says("verify")
    assert code == 1 and "bbbbbbbbbb: ece is stored as .1 but its logits give .2\n1 of 2 stored networks" in said
    monkeypatch.setattr(Shelf, "hashes", lambda self: ["a" * 64])
    assert says("verify")[0] == 0
    monkeypatch.setattr(Shelf, "runs", lambda self: [])
    assert says("runs") == (0, "There are no trained networks in shelf yet.\n")

def test_scoreboard_command(here):
    (here / "README.md").write_text("<!-- scoreboard --><!-- /scoreboard -->")
    files = "README.md, RESULTS.md, results/verdicts.png"
    assert says("scoreboard", "README.md", "--check") == (1, f"Error: Out of date: {files}. Run `calibkd scoreboard`.\n")
    assert not (here / "RESULTS.md").exists() and says("scoreboard", "README.md") == (0, f"Written: {files}.\n")
    assert "### [fig_X](nbs/fig_X.ipynb)\n\nnot run\n" in (here / "RESULTS.md").read_text()
    assert says("scoreboard", "README.md", "--check") == (0, "Everything is up to date.\n")

def claims_of(folder): return {c["id"].split(".")[1]: c for c in json.loads((folder / "claims.json").read_text())}

def test_executed_notebooks_lie_beside_their_results(here):
    places = {"fig_X": [], "fig_X/T=2": ["-p", "T", "2"], "fig_X/paper": ["--preset", "paper"]}
    for words in places.values(): assert says("run", "fig_X", *words)[0] == 0
    assert {p.parent.relative_to(here / "results").as_posix() for p in here.glob("results/**/*.ipynb")} == set(places)

def test_an_executed_notebook_tells_nothing_of_this_machine(here):
    (here / "nbs/fig_X.ipynb").write_text(notebook(PARAMETERS, MAKE, TRAIN, "import os; print(os.getcwd())", *LAST))
    assert says("run", "fig_X", "-p", "trouble", str(here / "a/bare"))[0] == 0
    place, = here.glob("results/fig_X/*/fig_X.ipynb")
    text = place.read_text()
    assert 'trouble = \\"bare\\"' in text and '"…\\n"' in text and not any(part in text for part in (str(here), '"papermill"', '"execution"'))

def test_verdicts_are_judged_again_from_the_tables(here):
    assert says("judge") == (1, "Error: There are no results to judge: `calibkd run` makes them.\n")
    assert says("run", "fig_X")[1].splitlines()[1:3] == ["  holds            c1   ECE is above 5 % (paper: 6 → 12; ours: 5.00 [3.57 … 6.43] points)",
                                                         "  undecided        x1   ECE is above 9.5 % (ours: 0.50 [-0.93 … 1.93] points) (7 seeds like these would decide)"]
    says("run", "fig_X", "--preset", "smoke"); says("run", "fig_X", "-p", "T", "2", "--preset", "paper")
    folder, smoke = here / "results/fig_X", (here / "results/fig_X/smoke/claims.json").read_text()
    assert says("judge", "--check") == (0, "All verdicts are what the rules say.\n")
    (here / "nbs/fig_X.ipynb").write_text(notebook(PARAMETERS, MAKE, TRAIN, TABLE, JUDGE.replace(".05", ".2"), SAVE))
    before = (folder / "claims.json").read_text()
    assert says("judge", "fig_X", "--check") == (1, "Error: Out of date: fig_X, fig_X/paper,T=2. Run `calibkd judge`, which says why.\n")
    assert (folder / "claims.json").read_text() == before
    code, said = says("judge")
    assert code == 0 and "fig_X: 1 does not hold\n  c1: holds → does not hold\n" in said and "fig_X/paper,T=2: " in said
    assert claims_of(folder)["c1"]["verdict"] == "does not hold" and (here / "results/fig_X/smoke/claims.json").read_text() == smoke
    assert says("judge", "--check")[0] == 0
    meta = json.loads((folder / "meta.json").read_text())
    del meta["tables"]
    (folder / "meta.json").write_text(json.dumps(meta))
    assert says("judge", "--check")[1] == "Error: Out of date: fig_X. Run `calibkd judge`, which says why.\n"
    assert says("judge")[0] == 1 and "fig_X cannot be judged again: it was saved before its tables had names; run it again\n" in says("judge")[1]

def test_a_path_that_was_shortened_needs_no_data_to_be_judged_again(here):
    says("run", "fig_X", "-p", "trouble", str(here / "a/bare"))
    folder, = (here / "results/fig_X").iterdir()
    assert says("judge", "--check")[0] == 0 and list((here / "results/fig_X").iterdir()) == [folder], "no other folder was made"

def test_seeds_are_added_where_verdicts_are_open(here, monkeypatch):
    assert says("decide", "fig_X", "--budget", "1h") == (1, "Error: fig_X has no results of the quick preset yet: run `calibkd run fig_X`, the first look.\n")
    assert says("decide", "fig_X", "--budget", "soon")[1].startswith("Error: A budget is a time such as 60min, 1.5h or 90s, got 'soon'.")
    says("run", "fig_X")
    monkeypatch.setattr("calibkd.cli.cores", lambda: 1)
    folder, words = here / "results/fig_X", ["decide", "fig_X", "--budget", "5min", "--most"]
    before = (folder / "meta.json").read_text()
    code, said = says(*words, "10", "--dry-run")
    assert code == 0 and said.splitlines()[1].split()[:7] == "fig_X.x1 ± 1.43 points 3 7 48 s planned:".split()[:7]
    assert said.splitlines()[2] == "fig_X: 3 → 10 seeds (3, 4, 5, 6, 7, 8, 9), 84 s, for x1 (62 %)"
    assert "hardly with 4 seeds\nThere is nothing to run.\n" in says(*words, "4", "--dry-run")[1]
    assert "over the budget\nThere is nothing to run.\n" in says("decide", "fig_X", "--budget", "20s", "--dry-run")[1]
    assert (folder / "meta.json").read_text() == before
    code, said = says(*words, "10")
    assert code == 0 and said.endswith("Undecided: 1 before, 0 now.\n"), said
    meta = json.loads((folder / "meta.json").read_text())
    look, = meta["decide"]
    assert (look["look"], look["of"], look["seeds_before"], len(look["seeds"]), look["budget"]) == (2, 2, [0, 1, 2], 10, 5.)
    assert look["verdicts"] == {"c1": ["holds", "holds"], "x1": ["undecided", "holds"]} and meta["seeds"] == list(range(10)) and meta["changed"] == {}
    assert [p.name for p in folder.iterdir() if p.is_dir()] == [] and says("judge", "--check")[0] == 0
    assert says(*words, "99") == (0, "There is nothing to run.\nUndecided: 0 before, 0 now.\n")
    says("run", "fig_X")
    assert json.loads((folder / "meta.json").read_text())["decide"] == [look] and "no look left" in says(*words, "10")[1], "a look that was taken stays taken"

def test_no_look_beyond_those_that_were_fixed(here):
    (here / "nbs/fig_X.ipynb").write_text(notebook(PARAMETERS, MAKE.replace('{"quick": 2}', "{}"), *LAST))
    says("run", "fig_X")
    code, said = says("decide", "fig_X", "--budget", "1h", "--most", "99")
    assert code == 0 and "no look left\nThere is nothing to run.\n" in said and "decide" not in json.loads((here / "results/fig_X/meta.json").read_text())
