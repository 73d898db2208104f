"The house style, held over the exported modules and the notebooks."
import ast, configparser, json, re
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for p in (ROOT / "calibkd").rglob("*.py") if p.name not in ("_modidx.py", "__init__.py"))
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
CHAPTERS = [p for p in NOTEBOOKS if p.parent.name == "lib"]
EXHIBITS = [p for p in NOTEBOOKS if p.parent.name not in ("lib", "bench") and p.stem != "index"]
FLOORS = {name: floor for floor, names in enumerate([
    ("words",), ("places", "progress"), ("executors", "metrics", "approximants", "mixtures", "augment", "corruptions", "networks", "objectives"),
    ("data", "calibrators", "distillers", "toys", "oracles", "theory"), ("own",), ("runs",), ("building", "batches", "checkpoints"), ("inference",), ("training",), ("store",), ("export",), ("sweep", "plots"), ("diagnostics", "exhibits"),
    ("studies",), ("papers",), ("cli",)]) for name in names}


def functions(path):
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def body_length(f):
    "Lines of a body without its docstring"
    doc = isinstance(f.body[0], ast.Expr) and isinstance(getattr(f.body[0], "value", None), ast.Constant)
    rest = f.body[1:] if doc else f.body
    return rest[-1].end_lineno - rest[0].lineno + 1 if rest else 0


def test_functions_are_short():
    lengths = sorted(body_length(f) for m in MODULES for f in functions(m))
    assert lengths[len(lengths) // 2] <= 4, "median body"
    assert lengths[int(len(lengths) * .9)] <= 10, "90 % of the bodies"
    assert lengths[-1] <= 40, "longest body"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_public_names_are_documented_and_annotated(path):
    tree = ast.parse(path.read_text())
    owners = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]
    for node in (n for o in owners for n in o.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))):
        if node.name.startswith("_"): continue
        assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
        assert len(ast.get_docstring(node).splitlines()) == 1, f"{path.name}: {node.name}'s docstring has several lines"
        if isinstance(node, ast.FunctionDef):
            args = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")]
            assert all(a.annotation for a in args) and node.returns, f"{path.name}: {node.name} is not fully annotated"


OTHER_VOICES: set[str] = set()


@pytest.mark.parametrize("path", [m for m in MODULES if m.stem not in OTHER_VOICES], ids=lambda p: p.stem)
def test_docstrings_speak_with_one_voice(path):
    "One line in plain double quotes, a capital letter first, no full stop at the end"
    lines = path.read_text().splitlines()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or ast.get_docstring(node) is None: continue
        written, where = lines[node.body[0].lineno - 1].strip(), f"{path.name}: {node.name}"
        found = re.match(r'r?"([^"]+)"(\s+#.*)?$', written)
        assert found, f"{where}'s docstring is not one line in plain double quotes: {written}"
        assert not found[1].endswith("."), f"{where}'s docstring ends in a full stop"
        assert not found[1][0].isalpha() or found[1][0].isupper(), f"{where}'s docstring begins with a small letter"


def test_a_public_name_has_one_meaning():
    homes = {}
    for path in MODULES:
        for name in ast.literal_eval(re.search(r"^__all__ = (\[.*?\])", path.read_text(), flags=re.M | re.S)[1]):
            homes.setdefault(name, []).append(str(path.relative_to(ROOT / "calibkd")))
    papers = lambda where: all(place.startswith("papers/") for place in where)  # each has its own presets, and the like
    twice = {name: where for name, where in homes.items() if len(where) > 1 and not papers(where)}
    assert not twice, f"names with two meanings: {twice}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_lines_and_imports(path):
    for i, line in enumerate(path.read_text().splitlines(), 1):
        if not line.startswith("__all__") and not line.startswith("           "): assert len(line) <= 120, f"{path.name}:{i} is too wide"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom): assert node.names[0].name != "*", f"{path.name} imports a star"
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(n.split(".")[0] in ("fastcore", "nbdev", "netcal", "torchmetrics") for n in names), f"{path.name} imports a development tool"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_a_module_imports_only_from_floors_below(path):
    inside = path.relative_to(ROOT / "calibkd").with_suffix("").parts
    mine = FLOORS[inside[0]]
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert node.level or not node.module.startswith("calibkd"), f"{path.name} imports {node.module} by its full name: no floor is seen there"
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            target = [*inside[:len(inside) - node.level], *node.module.split(".")][0]
            assert FLOORS[target] < mine or target == inside[0], f"{path.name} (floor {mine}) imports {target} (floor {FLOORS[target]})"


def papers_in(source, package=()):
    "The papers whose modules a source imports; `package` is where its relative imports begin"
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Import, ast.ImportFrom)): continue
        above = [*package[:len(package) + 1 - node.level]] if getattr(node, "level", 0) else []
        names = [".".join([*above, *filter(None, [getattr(node, "module", None)]), alias.name]) for alias in node.names]
        found |= {name.split(".")[2] for name in names if name.startswith("calibkd.papers.")}
    return found


def test_no_paper_imports_another():
    "Neither its modules nor its exhibits"
    from calibkd.exhibits import exhibits, paper_of
    assert papers_in("from ..kdc import COMMON\nfrom calibkd.papers import essence", ("calibkd", "papers", "ipwd")) == {"kdc", "essence"}
    modules = [(path.relative_to(ROOT).with_suffix("").parts, path.read_text()) for path in MODULES if path.is_relative_to(ROOT / "calibkd/papers")]
    wrong = {".".join(parts): papers_in(source, parts[:-1]) - {parts[2]} for parts, source in modules}
    for book in exhibits(ROOT / "nbs"):
        wrong[book.name] = {name for kind, source in book.cells if kind != "markdown" for name in papers_in(source)} - {paper_of(book.name)}
    assert len(modules) > 2 and not any(wrong.values()), {name: found for name, found in wrong.items() if found}


@pytest.mark.parametrize("path", EXHIBITS, ids=lambda p: p.stem)
def test_exhibits_declare_and_do_not_compute(path):
    code = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert sum("parameters" in c["metadata"].get("tags", []) for c in code) == 1, "exactly one cell is tagged 'parameters'"
    for c in code:
        source = "".join(c["source"])
        assert len(source.splitlines()) <= 25, f"a cell of {len(source.splitlines())} lines"
        if "parameters" not in c["metadata"].get("tags", []): assert max(map(len, source.splitlines())) <= 120, "wider than a page"
        assert "#| export" not in source and ".backward(" not in source and "optim" not in source, "training code in an exhibit"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_portable(path):
    text = path.read_text()
    book = json.loads(text)
    assert book["metadata"]["kernelspec"]["name"] == "python3" and len(text) < 1_000_000
    assert not re.search(r"(?<![\w.])/(?:work|root|tmp|home)/", text), "a path of one machine"
    assert not any(o["output_type"] == "error" for c in book["cells"] for o in c.get("outputs", []))


def test_versions_agree():
    ini = configparser.ConfigParser()
    ini.read(ROOT / "settings.ini")
    import calibkd
    version = ini["DEFAULT"]["version"]
    assert calibkd.__version__ == version and f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_front_pages_say_the_same():
    readme, index = (ROOT / "README.md").read_text(), "".join("".join(c["source"]) + "\n" for c in json.loads((ROOT / "nbs/index.ipynb").read_text())["cells"])
    commands = re.findall(r"^    (pip install -e .*)$", readme, flags=re.M)
    assert len(commands) == 2 and all(c in index for c in commands)
    tagline = re.search(r"\*\*(Five papers.*?)\*\*", readme)[1]
    assert tagline in index


def test_the_index_lists_what_there_is():
    from calibkd.exhibits import chapters, exhibits
    cells = json.loads((ROOT / "nbs/index.ipynb").read_text())["cells"]
    said = "".join("".join(o.get("text", [])) for c in cells for o in c.get("outputs", []))
    missing = [b.name for b in [*exhibits(ROOT / "nbs"), *chapters(ROOT / "nbs")] if b.name not in said.split()]
    assert not missing, "run nbs/index.ipynb again"


def test_the_environments_agree():
    import yaml
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))
    assert pins["nbdev"] == "2.4.14" and {"torch", "torchvision", "papermill", "jupyterlab"} <= pins.keys()
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    assert "-c constraints.txt" in pip and "-e .[dev]" in pip


def test_the_scoreboard_is_current():
    from calibkd.exhibits import exhibits, links_to, update_board
    stale = update_board(ROOT / "README.md", ROOT / "results", links_to(exhibits(ROOT / "nbs")), check=True)
    assert not stale, "run `calibkd scoreboard`"


def test_readme_is_short():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 250 and len(text.encode()) <= 14_000


def test_results_name_no_path_of_a_machine():
    for path in [*(ROOT / "results").rglob("*.json"), *(ROOT / "results").rglob("*.csv")]:
        assert not re.search(r"(?<![\w.])/(?:work|root|tmp|home)/", path.read_text()), path.name
