"The scoreboard is made of files"
import pytest
from calibkd.exhibits import saved, scoreboard, update_readme
from calibkd.places import results_root
from small_exhibit import make


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


def test_nothing_in_a_claim_breaks_the_table(tmp_path):
    ex = make()
    ex.title = "A *bold* [title](x) with a | and <b>tags</b>"
    ex.claim("</details> <!-- /scoreboard --> `code` _this_ and snake_case | that\n\n# end", False, ours="1 < 2 & 3")
    ex.save(None, None)
    row = next(line for line in scoreboard().splitlines() if line.startswith("| fig_X"))
    assert r"&lt;/details&gt; &lt;!-- /scoreboard --&gt; \`code\` \_this\_ and snake_case \| that # end" in row and "1 &lt; 2 &amp; 3" in row
    assert scoreboard().count("</details>") == 1 and r"A \*bold\* \[title\](x) with a \| and &lt;b&gt;tags&lt;/b&gt;" in scoreboard()
    assert all(line.replace(r"\|", "").count("|") in (7, 10) for line in scoreboard().splitlines() if line.startswith("|"))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- scoreboard --><!-- /scoreboard -->end\n")
    assert update_readme(readme) and not update_readme(readme) and readme.read_text().endswith("-->end\n")
