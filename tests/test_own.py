"Code that is not calibkd's: an edit of it is another identity, a new layout is not, and it reaches the workers."
import ctypes
import functools
import importlib
import runpy
import subprocess
import sys
import threading
import types

import pytest
import torch
from torch import nn

from calibkd.augment import VIEWS, Views
from calibkd.networks.core import EXAMPLES, FAMILIES, named, names, network
from calibkd.networks.foreign import adopt
from calibkd.objectives import NLL, Objective
from calibkd.own import TABLES, code_of, code_of_network, is_own, pack, portable, unpack
from calibkd.runs import Recipe, Run, canonical, renew
from calibkd.sweep import train

CELL = '''
import functools, helpers, torch
from calibkd.objectives import Objective
from torch import no_grad
FACTOR, TABLE, CENTRE = .5, {"low": (1, 2)}, torch.zeros(2)
def scaled(x, by=2.): return x * by
def make(power): return lambda x: x ** power
square = make(2)
@functools.lru_cache
def cached(n): return n + 1
@no_grad()
def frozen(x): return x + 1
@functools.singledispatch
def kind(x): return 0
@kind.register
def _(x: int): return 10
class Base(Objective):
    limit = 7
    def loss(self, seen): return self.term(seen) + self.bias
class Shrink(Base):
    strength = .1
    names = frozenset({"a", "b"})
    @property
    def bias(self): return 3
    @staticmethod
    def rest(x): return x - 1
    def term(self, seen):
        def inside(x): return [x + i for i in range(4)]
        try: kept = scaled(seen.logits) * FACTOR
        except KeyError: kept = None
        import lazily
        return square(kept) + cached(5) + kind(6) + frozen(8) + helpers.f(kept) + lazily.g(kept) + TABLE["low"][0] + CENTRE
def unrelated(): return 1
'''
HELPERS = {"helpers": "def f(x): return x\ndef more(x): return x\n", "lazily": "def g(x): return x\n"}


@pytest.fixture
def cell(tmp_path, monkeypatch):
    "Defines the cell above, perhaps edited, as a notebook would: in a module that lies in no file"
    monkeypatch.syspath_prepend(tmp_path)

    def define(*edits, where="notebook", file="<cell>", **modules):
        for name, text in (HELPERS | modules).items():
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        text = CELL
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        space = types.ModuleType(where).__dict__
        exec(compile(text, file, "exec"), space)
        found = code_of(space["Shrink"])
        sys.dont_write_bytecode = before
        return found
    yield define
    for name in HELPERS: sys.modules.pop(name, None)


EDITS = {
    "a constant": [("FACTOR, TABLE, CENTRE = .5", "FACTOR, TABLE, CENTRE = .6")], "a table": [("(1, 2)", "(1, 3)")],
    "a tensor": [("torch.zeros(2)", "torch.ones(2)")], "a helper": [("return x * by", "return x / by")],
    "a default": [("by=2.", "by=3.")], "a closure": [("make(2)", "make(3)")], "a cached helper": [("n + 1", "n + 2")],
    "a helper behind a library's decorator": [("x + 1\n@functools.single", "x + 2\n@functools.single")],
    "the decorator": [("from torch import no_grad", "from torch import enable_grad as no_grad")],
    "a registered variant": [("return 10", "return 20")], "a base class": [("self.term(seen) + self.bias", "self.term(seen) - self.bias")],
    "an attribute of a base class": [("limit = 7", "limit = 8")], "an attribute without annotation": [("strength = .1", "strength = .2")],
    "a set": [('{"a", "b"}', '{"a", "c"}')], "a property": [("return 3", "return 4")], "a static method": [("return x - 1", "return x - 2")],
    "a function inside": [("range(4)", "range(5)")], "an exception": [("KeyError", "ValueError")],
    "what is tried": [("        except KeyError: kept = None\n        import lazily", "            import lazily\n        except KeyError: kept = None"),
                      ("try: kept = scaled", "try:\n            kept = scaled")],
    "an own __init__": [("    names =", "    def __init__(self): object.__setattr__(self, 'width', 3)\n    names =")],
    "another function": [("scaled(seen.logits)", "square(seen.logits)")],
}
LAYOUT = {
    "a comment": [("FACTOR,", "# a half\nFACTOR,")], "a docstring": [("    def loss(self, seen):", '    "A base"\n    def loss(self, seen):\n        "Both"\n       ')],
    "blank lines": [("    def term", "\n\n    def term")], "parentheses": [("return square(kept) +", "return (\n            square(kept)) +")],
    "a line more": [("try: kept", "try:\n            kept")], "annotations": [("def scaled(x, by=2.)", "def scaled(x: float, by: float = 2.) -> float")],
    "what is not used": [("return 1\n", "return 2\n")], "what is used as before": [('{"a", "b"}', '{"b", "a"}')],
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_is_another_identity(what, cell): assert cell(*EDITS[what]) != cell()


@pytest.mark.parametrize("what", LAYOUT)
def test_a_new_layout_is_not(what, cell): assert cell(*LAYOUT[what]) == cell()


def test_where_it_lies_plays_no_part(cell): assert cell(where="my.module", file="elsewhere.py") == cell()


@pytest.mark.parametrize("module, text", [("helpers", "def f(x): return -x\n"), ("lazily", "def g(x): return -x\n")])
def test_modules_of_the_user_count_by_what_is_used_of_them(module, text, cell):
    assert cell(**{module: text}) != cell() == cell(helpers=HELPERS["helpers"].replace("def more(x): return x", "def more(x): return 2"))


class Net(nn.Module):
    def __init__(self, scale=1.):
        super().__init__()
        self.scale, self.linear, self.hidden = scale, nn.Linear(4, 2), [nn.Linear(4, 4)]

    def forward(self, x): return self.linear(self.scale * x.flatten(1))


def seeded(make):
    torch.manual_seed(0)
    return make()


def edited(net, change):
    change(net)
    return net


def test_a_network_that_was_handed_over_is_its_code_too(monkeypatch):
    ident = lambda net: canonical(Run("digits", net).network)
    first, doubled = ident(seeded(Net)), lambda self, x: 2 * self.linear(x.flatten(1))
    assert first == ident(seeded(Net)) and first["its code"]
    changed = [seeded(lambda: Net(2.)), edited(seeded(Net), lambda n: n.linear.register_forward_hook(lambda m, a, out: 2 * out)),
               edited(seeded(Net), lambda n: setattr(n, "forward", doubled)), edited(seeded(Net), lambda n: n.hidden[0].bias.data.add_(1))]
    codes = {ident(net)["its code"] for net in changed}
    monkeypatch.setattr(Net, "forward", doubled)
    assert len(codes | {first["its code"], ident(seeded(Net))["its code"]}) == 6


def test_networks_of_libraries_are_known_without_code():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert code_of_network(network("resnet8")) is code_of_network(adopt(plain)) is code_of(NLL) is None
    assert code_of_network(edited(plain, lambda n: n[1].register_forward_hook(lambda m, a, out: 2 * out)))


LOCK, FILE, POINTER = threading.Lock(), open(__file__), ctypes.CFUNCTYPE(None)()


@pytest.mark.parametrize("function, what", [(lambda x: LOCK, "a lock"), (lambda x: FILE, "TextIOWrapper"), (lambda x: POINTER, "CFunctionType"),
                                            (lambda x, steps=(i for i in ()): steps, "a generator")])
def test_what_nothing_identifies_is_refused_in_a_sentence(function, what):
    with pytest.raises(ValueError, match=f"uses .*{what}.*nothing identifies") as error: code_of(function)
    assert "\n" not in str(error.value)


def test_what_is_nested_without_end_is_refused():
    chain = []
    chain.append(chain)
    with pytest.raises(ValueError, match="nested too deeply"): code_of(lambda: chain)


def test_an_installed_package_counts_by_name_and_version(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages" / "plugged"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(folder.parent)

    def installed(version, body):
        (folder / "__init__.py").write_text(f"__version__ = '{version}'\ndef build(x): return {body}\n# {'x' * len(body)}")
        sys.modules.pop("plugged", None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return importlib.import_module("plugged").build
    first = installed("1.0", "x")
    assert not is_own(first) and code_of(first) == code_of(installed("1.0", "x + 1")) != code_of(installed("1.1", "x"))
    del sys.modules["plugged"]


def test_use_leaves_an_identity_alone():
    "Pickling notes things in a class; so does a property that is computed once"
    class Once(Objective):
        @functools.cached_property
        def table(self): return 3
        def loss(self, seen): return seen.logits.sum() * self.table
    run = Run("digits", "resnet8", Once())
    before = run.id
    run.objective.__reduce_ex__(4), run.objective.table
    renew([run])
    assert run.id == before


def test_a_parcel_that_cannot_be_sent_says_so():
    with pytest.raises(ValueError, match="cannot go to other processes.*workers=1"): pack(lambda: LOCK)


DECLARED = '''
import torch
from torch import nn
from calibkd.data.splits import Raw, Split, source
from calibkd.networks.core import named
from calibkd.objectives import Objective

@named(r"wide(\\d+)", "wide4")
def wide(width, num_classes=10, in_channels=3):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * in_channels, width), nn.ReLU(), nn.Linear(width, num_classes))

@source("noise")
def noise(argument, spec):
    x = torch.randn(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    split = Split(x, torch.arange(80) % 2, torch.arange(80))
    return Raw(split, split, ["a", "b"])

def weight(): return .5

class Halved(Objective):
    def loss(self, seen): return weight() * torch.nn.functional.cross_entropy(seen.logits, seen.labels)
'''
ASKED = '''
from calibkd.data import Dataset
from calibkd.runs import Recipe, Run, identity, objective
from calibkd.sweep import each_elsewhere, train

ONE, DIGITS = Recipe(epochs=1, batch=64), Dataset("digits", train=100)
RUNS = [Run(DIGITS, "wide4", recipe=ONE), Run("noise", "wide4", recipe=ONE), Run(DIGITS, "wide4", objective("Halved"), ONE)]
'''
TRAINED = '''
def afresh(run):
    run.__dict__.pop("definition")
    return identity(run)

if __name__ == "__main__":
    assert train(RUNS, workers=2).trained == 3
    print(*(r.id for r in RUNS), *each_elsewhere(afresh, [(r,) for r in RUNS], workers=2))
    import importlib, methods
    again = lambda: train([Run(DIGITS, "wide4", methods.Own(), ONE, seed=s) for s in (0, 1)], workers=2)
    assert again().trained == 2 and again().trained == 0
    with open(methods.__file__, "a") as file: file.write("    def loss(self, seen): raise ValueError('the new code ran')")
    importlib.reload(methods)
    try: again()
    except ValueError as error: print(error)
'''
METHODS = "from calibkd.objectives import NLL\nclass Own(NLL):\n    limit = 3\n"


@pytest.fixture
def registries():
    "As they are, and again so after the test"
    kept = [dict(table) for table in TABLES]
    yield
    for table, old in zip(TABLES, kept):
        table.clear()
        table.update(old)


def test_a_scripts_code_reaches_fresh_processes_and_its_edits_are_noticed(tmp_path, registries):
    "Networks, data sets and methods of `__main__`, and of a module that is reloaded while the workers live on"
    path = tmp_path / "grid.py"
    path.write_text(DECLARED + ASKED + TRAINED)
    (tmp_path / "methods.py").write_text(METHODS)
    done = subprocess.run([sys.executable, "-B", str(path)], capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *last = done.stdout.splitlines()
    ids = [r.id for r in runpy.run_path(str(path))["RUNS"]]
    assert first.split()[:3] == ids and set(first.split()[3:]) == set(ids) and set(last) == {"the new code ran"}
    path.write_text(path.read_text().replace("weight(): return .5", "weight(): return .4").replace("manual_seed(0)", "manual_seed(1)"))
    assert [r.id == i for r, i in zip(runpy.run_path(str(path))["RUNS"], ids)] == [True, False, False]
    path.write_text(path.read_text().replace("nn.ReLU()", "nn.Tanh()"))
    assert not set(ids) & {r.id for r in runpy.run_path(str(path))["RUNS"]}


def test_a_parcel_declares_what_was_declared(registries):
    pattern, before = r"parcelled(\d+)", portable()
    named(pattern, "parcelled3")(lambda width, num_classes=10, in_channels=3: nn.Linear(width, num_classes))
    assert [{*now} - {*then} for now, then in zip(portable(), before)][:2] == [{pattern}] * 2
    parcel = pack(lambda name: name in names(), "parcelled3")
    FAMILIES.pop(pattern), EXAMPLES.pop(pattern)
    assert unpack(parcel)


def scale(x): return x


class Scaled(Objective):
    def loss(self, seen): return scale(seen.logits).square().mean()


def test_the_same_run_is_trained_again_when_what_it_calls_was_edited(monkeypatch):
    run = Run("digits", "resnet8", Scaled(), Recipe(epochs=1, batch=64))
    assert [train([run], workers=1).trained for _ in range(2)] == [1, 0]
    before = run.id
    monkeypatch.setitem(globals(), "scale", lambda x: 2 * x)
    assert train([run], workers=1).trained == 1 and run.id != before


def test_a_view_of_the_images_is_code_too(registries):
    views = []
    for view in (lambda x: Views(x), lambda x: Views(x, flip=True)):
        VIEWS["mine"] = view
        views.append(Run("digits", "resnet8", recipe=Recipe(augment="mine")).id)
    assert views[0] != views[1] and "its code" not in canonical(Recipe(augment="crop"))


def test_a_cached_helper_travels(tmp_path):
    "Functions with a cache of their own cannot be named in another process: they go as what is inside"
    space = {"__name__": "__main__"}
    exec("import functools\n@functools.cache\ndef twice(x): return 2 * x\ndef work(x): return twice(x)", space)
    (tmp_path / "parcel").write_bytes(pack(space["work"], 3))
    code = f"from calibkd.own import unpack; print(unpack(open({str(tmp_path / 'parcel')!r}, 'rb').read()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "6"
