"README's part, the page of all claims and the picture are made of files"
import json

import pytest
from calibkd.exhibits import catalogues, holding, pictured, saved, update_board
from calibkd.exhibits.judge import Verdict
from calibkd.places import results_root
from calibkd.plots import strip
from small_exhibit import make

LINKS = dict(fig_X="nbs/fig_X.ipynb", fig_Y="nbs/fig_Y.ipynb", mine="nbs/mine.ipynb")
SAID = {"claims": ["fig_X.c1", "fig_X.c2"], "holds": "Both hold.", "does not hold": "One fails.", "undecided": "Who knows."}


@pytest.fixture(autouse=True)
def paper(tmp_path, monkeypatch):
    "A catalogue of two exhibits, and a README"
    (tmp_path / "papers").mkdir()
    claims = [{"id": "p1", "text": "A premise"}, {"id": "c1", "text": "First | claim", "paper": "6 → 12"}, {"id": "x1", "text": "Our own"}, {"id": "c2", "text": "Second"}]
    fixed = {"number": 1, "title": "A *paper*", "fixed": "2026-01-01", "exhibits": {"fig_X": claims, "fig_Y": [{"id": "c1", "text": "Third"}]}, "in_short": [SAID], "about": "Rows are *small*."}
    (tmp_path / "papers" / "one.json").write_text(json.dumps(fixed))
    monkeypatch.setattr("calibkd.exhibits.claims.files", lambda _: tmp_path / "papers")
    catalogues.cache_clear()
    (tmp_path / "README.md").write_text("# top\n<!-- scoreboard -->\nold\n<!-- /scoreboard -->\nend\n")
    yield
    catalogues.cache_clear()


def leave(c1="holds", c2="holds", p1="holds", **given):
    "Save an exhibit with these verdicts"
    ex = make(**given)
    for id, verdict in dict(p1=p1, c1=c1, x1="undecided", c2=c2).items():
        ex.judge(id, Verdict(verdict, .02, .01, .03, seeds=3, needed=14 if verdict == "undecided" else None, why="a why" if verdict == "cannot be judged" else ""))
    return ex.save(None, {})


def board(tmp_path, **given):
    "README and the page, freshly made"
    update_board(tmp_path / "README.md", links=LINKS, **given)
    return [(tmp_path / name).read_text() for name in ("README.md", "RESULTS.md")]


def test_what_is_out_of_date_is_named_and_written(tmp_path):
    leave()
    names = ["README.md", "RESULTS.md", "verdicts.png"]
    assert [p.name for p in update_board(tmp_path / "README.md", links=LINKS, check=True)] == names and not (tmp_path / "RESULTS.md").exists()
    assert [p.name for p in update_board(tmp_path / "README.md", links=LINKS)] == names and not update_board(tmp_path / "README.md", links=LINKS)
    assert pictured(results_root() / "verdicts.png") == {"fig_X": {"c1": "holds", "c2": "holds"}, "fig_Y": {"c1": "not run"}}
    before = (results_root() / "verdicts.png").read_bytes()
    (results_root() / "verdicts.png").write_bytes(b"no picture")
    assert [p.name for p in update_board(tmp_path / "README.md", links=LINKS)] == names[2:] and (results_root() / "verdicts.png").read_bytes() == before
    leave(c2="undecided")
    assert [p.name for p in update_board(tmp_path / "README.md", links=LINKS, check=True)] == names


def test_the_page_has_a_row_for_each_claim_the_papers_first(tmp_path):
    leave(c2="undecided")
    readme, page = board(tmp_path)
    rows = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    assert rows == ["claim", "c1", "c2", "x1 (ours)", "p1 (premise)", "claim", "c1"]
    assert r"| c1 | First \| claim | 6 → 12 | quick, textures | 2.00 \[1.00 … 3.00\] points | 3 | ✓ holds |" in page
    assert "| c2 | Second | – | quick, textures |" in page and "| 3 | ? undecided: 14 seeds like these would decide |" in page
    assert "| c1 | Third | – | – | – | – | · not run |" in page and "## Others, in no catalogue\n\n" in page and "[mine](nbs/mine.ipynb)\n\nnot run" in page
    assert r"| A \*paper\* | 1 | 0 | 1 | 0 | 1 |" in readme and "Of the paper's claims: 1 holds, 1 undecided, 1 not run.\n\nRows are *small*.\n\n- " in page
    assert readme.startswith("# top\n<!-- scoreboard -->\n|") and readme.endswith("<!-- /scoreboard -->\nend\n") and "\nold\n" not in readme


def test_smoke_runs_and_changed_ones_are_left_out(tmp_path):
    leave(); leave(c1="does not hold", preset="smoke"); leave(c1="does not hold", T=2)
    assert "✗ does not hold |" not in board(tmp_path)[1].partition("## A")[2]


def test_the_preset_nearest_to_the_paper_decides_if_it_can_tell(tmp_path):
    leave(c1="does not hold", c2="holds"); folder = leave(c1="undecided", c2="not run", preset="paper")
    (folder / "fig_X.ipynb").write_text("{}")
    readme, page = board(tmp_path)
    assert pictured(results_root() / "verdicts.png")["fig_X"] == {"c1": "undecided", "c2": "holds"}
    assert "| c1 |  |  | paper, cifar100 |" in page and "✗ does not hold" in page and f"([paper](results/fig_X/{folder.name}/fig_X.ipynb))" in page
    assert "- quick: textures; " in page and "- paper: cifar100; " in page


@pytest.mark.parametrize("first, second, counts", [
    ("holds", "holds", "holds"), ("holds", "undecided", "holds"), ("holds", "does not hold", "undecided"), ("does not hold", "holds", "undecided"),
    ("undecided", "holds", "undecided"), ("not run", "does not hold", "does not hold"), ("not run", "not run", "does not hold"), ("cannot be judged", "not run", "does not hold")])
def test_a_second_contrast_confirms_contradicts_or_speaks_where_the_first_is_silent(first, second, counts, tmp_path, monkeypatch):
    beside = {"preset": "paper", "with": {"T": 2.}}
    monkeypatch.setattr("calibkd.exhibits.board.contrast", lambda name: beside if name == "fig_X" else None)
    leave(c1="does not hold"); leave(c1=first, preset="paper"); leave(c1=second, preset="paper", T=2)
    leave(c1="holds", preset="paper", T=3)
    page = board(tmp_path)[1]
    assert pictured(results_root() / "verdicts.png")["fig_X"]["c1"] == counts
    assert "- paper again: cifar100; " in page and "; with T 2.0" in page and "| c1 |  |  | paper again, cifar100 |" in page
    assert page.count("- not counted, paper: cifar100; ") == 1 and "T 3" in page


@pytest.mark.parametrize("verdicts, sentence, signs", [
    (("holds", "holds"), "Both hold.", "c1 ✓, c2 ✓"), (("does not hold", "undecided"), "One fails.", "c1 ✗, c2 ?"), (("holds", "undecided"), "Who knows.", "c1 ✓, c2 ?"),
    (("holds", "not run"), "Not judged yet.", "c1 ✓, c2 ·"), (("undecided", "cannot be judged"), "Not judged yet.", "c1 ?, c2 –")])
def test_a_sentence_says_what_all_of_its_claims_allow(verdicts, sentence, signs, tmp_path):
    leave(*verdicts)
    assert f"- {sentence} ([fig_X](RESULTS.md#fig_X) {signs})\n" in board(tmp_path)[0]


def test_results_from_before_the_claims_were_fixed_are_not_counted(tmp_path):
    folder = leave()
    (folder / "claims.json").write_text(json.dumps([{"text": "An old claim", "verdict": "holds", "paper": "", "ours": "", "evidence": ""}]))
    readme, page = board(tmp_path)
    assert "| c1 | First" in page and page.count("| not judged anew |") == 4 and "An old claim" not in page and r"| A \*paper\* | 0 | 0 | 0 | 0 | 3 |" in readme
    assert holding(saved(folder)) == "not judged anew"
    (folder / "meta.json").write_text("{ cut")
    assert "not judged anew" not in board(tmp_path)[1]


def test_an_exhibit_of_ones_own_says_what_it_judged(tmp_path):
    ex = make(); ex.statements = {}
    ex.name, ex.folder = "mine", results_root() / "mine"; ex.folder.mkdir()
    ex.title = "A *bold* [title](x) with a | and <b>tags</b>"
    ex.judge("c1", Verdict("holds"), text="</details> <!-- /scoreboard --> `code` _this_ and snake_case | that\n\n# end", ours="1 < 2 & 3")
    ex.save(None, {})
    page = board(tmp_path)[1]
    assert r"| c1 | &lt;/details&gt; &lt;!-- /scoreboard --&gt; \`code\` \_this\_ and snake_case \| that # end |" in page and "1 &lt; 2 &amp; 3" in page
    assert r"A \*bold\* \[title\](x) with a \| and &lt;b&gt;tags&lt;/b&gt;" in page
    assert all(line.replace(r"\|", "").count("|") == 8 for line in page.splitlines() if line.startswith("|"))


def test_a_readme_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("<!-- /scoreboard --><!-- scoreboard -->")
    with pytest.raises(ValueError, match="must hold"): update_board(tmp_path / "README.md")
    with pytest.raises(FileNotFoundError, match="no file"): update_board(tmp_path / "none.md")


def test_a_strip_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="nothing to draw"): strip({"a": {}}, {"yes": ("✓", "k", True)})
    with pytest.raises(ValueError, match="one of yes, got no"): strip({"a": {"c1": "no"}}, {"yes": ("✓", "k", True)})
