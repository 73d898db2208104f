"The catalogue: read from notebooks without running them, wherever they are"
import json
import shutil
from pathlib import Path

import pytest
import panels
from calibkd import exhibits, places
from calibkd.exhibits import exhibits as listed, Notebook, notebooks_at
from calibkd.exhibits.catalogue import literal
from calibkd.places import results_root
from small_exhibit import notebook

BOOKS = listed()


@pytest.mark.parametrize("book", BOOKS, ids=lambda b: b.name)
def test_an_exhibit_calls_itself_what_its_place_says(book):
    assert literal(book.call.args[0]).format(figure=book.figure) == book.name
    assert len(book.title) < 90 and book.title[0].isupper() and book.parameters.keys() == book.kinds.keys(), "every parameter is annotated"
    assert (book.figure in book.panels) if book.figure else not book.panels
    assert all(set(panel) >= {"title", "paper_ref"} for panel in book.panels.values())


@pytest.mark.parametrize("panel", panels.COPIES)
def test_a_notebook_for_a_path_that_is_in_use_is_a_copy(panel):
    source = lambda book: [(c["id"], c["cell_type"], c["metadata"], "".join(c["source"])) for c in book["cells"]]
    mine = json.loads((panels.NBS / f"{panel}.ipynb").read_text("utf-8"))
    assert source(mine) == source(panels.copied(panel)), "edit the original, then `python tests/panels.py`"


EXHIBIT = "ex = Exhibit('more_{figure}', globals(), **presets(real=dict()), panels=dict(a=dict(title='A', T=1.), b=dict(title='B')))"
HEAD = "preset: str = None\nfigure: str = None\nT: float = None  # hot or cold"


@pytest.fixture
def nbs(tmp_path, monkeypatch):
    "A folder with an exhibit of two panels, and what is none"
    folder = tmp_path / "nbs"
    (folder / "more").mkdir(parents=True)
    (folder / "more/scatter.ipynb").write_text(notebook(HEAD, "!ls", EXHIBIT))
    (folder / "notes.ipynb").write_text(notebook("x = 1", "# of an Exhibit( somebody writes\ntext = 'Exhibit('"))
    (folder / "demo.ipynb").write_text(notebook("x = 1", "Exhibit('fig_S1', {})"))
    monkeypatch.setenv("CALIBKD_NBS", str(folder))
    return folder


def test_panels_are_listed_and_what_only_speaks_of_exhibits_is_not(nbs):
    assert [(b.name, b.figure, b.title, b.path.name) for b in listed()] == [
        ("more_a", "a", "A", "scatter.ipynb"), ("more_b", "b", "B", "scatter.ipynb")]
    assert listed()[0].presets == ["smoke", "quick", "real", "paper"] and listed()[0].kinds["T"] is float


def test_a_file_from_elsewhere_goes_by_its_own_names(nbs, tmp_path):
    mine = Path(shutil.copy(nbs / "more/scatter.ipynb", tmp_path / "mine.ipynb"))
    assert [(b.name, b.path) for b in notebooks_at(mine)] == [("more_a", mine), ("more_b", mine)]
    assert [b.path for b in notebooks_at(nbs / "more" / "scatter.ipynb")] == [nbs / "more/scatter.ipynb"] * 2
    with pytest.raises(ValueError, match="makes no exhibit"): notebooks_at(nbs / "notes.ipynb")
    (tmp_path / "text.ipynb").write_text("no json")
    with pytest.raises(ValueError, match="text.ipynb is no notebook"): notebooks_at(tmp_path / "text.ipynb")


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
    assert exhibits.notebook_folder() == root / "calibkd" / "nbs"  # as in a wheel
    monkeypatch.setenv("CALIBKD_NBS", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="set CALIBKD_NBS"): exhibits.exhibits()
