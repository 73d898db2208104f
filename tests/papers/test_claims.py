"What each exhibit must judge, fixed before the results: none is dropped, doubled or left without its premise."
import json
import re
from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from calibkd import papers
from calibkd.exhibits import exhibits
from calibkd.exhibits.board import only_claims
from calibkd.exhibits.claims import fixed_on, WHOSE

FILES = {path.stem: path for path in sorted(Path(papers.__file__).parent.glob("*.json"))}
PAPERS = {name: json.loads(path.read_text("utf-8")) for name, path in FILES.items()}
EXHIBITS = {name: claims for paper in PAPERS.values() for name, claims in paper["exhibits"].items()}
FIELDS = {"id": str, "text": str, "paper": str, "rule": str, "needs": list, "whose": str}
COUNTS = {  # claims of the paper, controls, premises, identities
    "fig_S1": (4, 1, 0, 1), "fig_S2": (6, 2, 1, 0), "fig_S3": (1, 0, 0, 0), "fig_S4": (4, 2, 1, 0),
    "fig_S5": (6, 3, 4, 0), "fig_S6": (3, 2, 1, 0), "fig_S7": (9, 5, 3, 0), "fig_S8": (6, 2, 1, 0),
    "fig_S9": (7, 3, 1, 0), "table_T1": (4, 3, 2, 0), "table_T3": (5, 5, 2, 0), "table_T4": (3, 2, 0, 2),
    "theory_lemmas": (7, 2, 0, 2), "theory_thm1": (4, 3, 0, 1), "theory_thm2": (7, 2, 0, 1),
    "extra_true_calibration": (1, 6, 0, 0), "extra_what_teaches": (0, 9, 2, 0), "essence_table1_gmm": (3, 2, 0, 0),
    "essence_fig1": (3, 0, 0, 0), "essence_fig2": (5, 4, 2, 0), "essence_fig3": (3, 0, 2, 0), "essence_fig4": (1, 3, 0, 0), "essence_fig5": (4, 1, 1, 0), "essence_fig6": (2, 0, 2, 0), "essence_fig7": (1, 2, 2, 0),
    "essence_table2": (5, 1, 0, 0), "essence_table3": (1, 3, 0, 0), "essence_table4": (4, 0, 0, 0), "essence_table5": (4, 1, 0, 0), "essence_table6": (6, 3, 3, 0),
    "essence_table7": (3, 0, 0, 0), "essence_table8": (3, 2, 0, 0), "essence_table9": (2, 0, 2, 0), "ipwd_settings": (4, 0, 0, 0),
    "ipwd_table1": (9, 4, 0, 0), "ipwd_table2": (3, 1, 1, 0), "ipwd_table3": (4, 0, 0, 0), "ipwd_table4": (5, 2, 0, 0),
    "ipwd_onestage": (7, 1, 0, 0), "ipwd_longtail": (5, 1, 0, 0), "ipwd_sec23": (3, 1, 0, 0), "ipwd_weights": (0, 3, 0, 0),
    "uncal_fig1": (4, 1, 1, 0), "uncal_fig2": (4, 2, 0, 0), "uncal_fig3": (6, 1, 2, 0), "uncal_fig4": (3, 0, 0, 1), "uncal_table1": (14, 3, 1, 0),
    "uncal_table2": (9, 1, 0, 0), "uncal_table3": (5, 0, 0, 0), "uncal_table4": (6, 0, 0, 0), "uncal_table5": (4, 1, 0, 0),
    "uncal_table6": (8, 0, 0, 0)}


def kinds(claims):
    "How many there are of each kind, as COUNTS has them"
    count = Counter(claim.get("whose") or WHOSE[claim["id"][0]] for claim in claims)
    return tuple(count[kind] for kind in WHOSE.values())


def test_a_file_says_which_paper_and_since_when():
    assert set(PAPERS) >= {"kdc", "essence", "uncal"}
    for name, paper in PAPERS.items():
        assert [key for key in paper if key not in ("later", "about", "in_short", "findings", "contrasts")] == ["number", "title", "fixed", "exhibits"] and paper["title"], name
        assert date.fromisoformat(paper["fixed"]) == date(2026, 11, 25), name
        assert all(name in paper["exhibits"] and date.fromisoformat(day) > date(2026, 11, 25) for name, day in paper.get("later", {}).items())
        assert FILES[name].read_text("utf-8") == json.dumps(paper, indent=1, ensure_ascii=False) + "\n", name


def test_an_exhibit_of_ours_may_be_fixed_later():
    assert fixed_on("essence_fig2") == "2026-11-25" and fixed_on("extra_what_teaches") == "2026-11-26" and fixed_on("my_own") is None


@pytest.mark.parametrize("name", [name for name, paper in PAPERS.items() if "in_short" in paper])
def test_what_is_said_in_short_rests_on_claims_of_the_paper_and_depends_on_the_verdict(name):
    "A version for each joint verdict, no two alike; only that for *holds* states anything"
    fixed = {f"{exhibit}.{claim['id']}" for exhibit, claims in PAPERS[name]["exhibits"].items() for claim in claims}
    for said in [*PAPERS[name]["in_short"], *PAPERS[name].get("findings", ())]:
        assert said.keys() == {"claims", "holds", "does not hold", "undecided"} and said["claims"] and {*said["claims"]} <= fixed
        assert re.match(r"\*[^*]+\?\* Whether ", said["undecided"]) and "undecided" in said["undecided"] and "does not hold" in said["does not hold"], said["claims"]
        assert not {"undecided", "not"} & {*said["holds"].split()} and all(said[v].endswith(".") for v in ("holds", "does not hold", "undecided"))


def test_every_exhibit_has_claims_and_stands_in_one_paper():
    assert set(EXHIBITS) == {e.name for e in exhibits(Path(__file__).parents[2] / "nbs")}
    assert len(EXHIBITS) == sum(len(paper["exhibits"]) for paper in PAPERS.values())


def test_no_claim_is_dropped():
    assert {name: kinds(claims) for name, claims in EXHIBITS.items()} == COUNTS
    all_of_kdc = [claim for claims in PAPERS["kdc"]["exhibits"].values() for claim in claims]
    assert (len(all_of_kdc), kinds(all_of_kdc)) == (143, (77, 43, 16, 7))
    assert [claim["id"] for claim in EXHIBITS["fig_S7"]] == (
        "p1 p2 p3 c1 c2 c3 c4 c5 c5b c6 c6b c7 x1 x2 x3 x4 x5".split())


@pytest.mark.parametrize("name", EXHIBITS)
def test_a_claim_has_an_id_a_text_a_rule_and_premises_that_are_there(name):
    claims = EXHIBITS[name]
    for claim in claims:
        assert set(FIELDS) - set(claim) <= {"needs", "whose"} and all(isinstance(v, FIELDS[k]) for k, v in claim.items()), claim
        assert claim["id"][0] in "cxpi" and claim["id"][1].isdigit(), claim
        assert claim["text"].endswith(".") and len(claim["text"]) <= 200 and claim["rule"], claim
        assert all(v == v.strip() and "`" not in v and "**" not in v for k, v in claim.items() if k != "needs"), claim
    for field in ("id", "text"): assert max(Counter(c[field] for c in claims).values()) == 1, f"{name}: {field}"


@pytest.mark.parametrize("name", EXHIBITS)
def test_a_claim_needs_premises_of_its_exhibit_and_no_premise_needs_one(name):
    ids, premises = ({c["id"] for c in EXHIBITS[name] if c["id"][0] in kinds or c.get("whose") == "premise"} for kinds in ("cxpi", "p"))
    needed = [premise for c in EXHIBITS[name] for premise in c.get("needs", [])]
    assert premises <= set(needed) <= ids, "each is needed by a claim"
    for claim in EXHIBITS[name]:
        needs = claim.get("needs", ["none"])
        assert len(set(needs)) == len(needs) > 0 and ("needs" not in claim or claim["id"][0] in "cx"), claim


def test_only_the_papers_claims_are_counted():
    found = {"ipwd_weights": {"c1": "holds"}, "ipwd_table2": {"c1": "holds", "c3": "holds"}, "fig_S7": {"c1": "holds", "x1": "holds"}}
    assert only_claims(found) == {"ipwd_table2": {"c1": "holds"}, "fig_S7": {"c1": "holds"}}
