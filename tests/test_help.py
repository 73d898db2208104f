"What `help()` tells of the functions that people import: every parameter, what comes back, what is refused"
import importlib
import inspect
import pydoc
import re

import pytest

from calibkd.words import class_remarks, document, remarks

METRICS = [f"metrics.{name}" for name in ("inputs", "calibration", "ranking", "reference", "evaluation")]
MODULES = [*METRICS, *"""approximants augment calibrators corruptions mixtures objectives oracles theory toys words distillers.logits distillers.features distillers.relations distillers.weighting distillers.contrast
    data.folders data.images data.splits data.text networks.core networks.foreign networks.text
    networks.convnet networks.deepresnet networks.densenet networks.mobilenet networks.resnet networks.resnext networks.shufflenet
    networks.vgg networks.wrn
    diagnostics.projection diagnostics.separations diagnostics.tsne plots.diagrams plots.heatmaps plots.lines plots.page plots.points""".split()]
TOLD_BY_TYPE = re.compile(r"None|bool|str|float|int|list\[str\]|calibkd\.[\w.]+")  # the one line above says what it is
TELL_REFUSALS = ("calibrators", "distillers.logits", "distillers.features", "distillers.relations", *METRICS)


def public(kind):
    "Functions or classes of the modules, as (module, name)"
    for module in MODULES:
        home = importlib.import_module(f"calibkd.{module}")
        for name in home.__all__:
            thing = getattr(home, name)
            if getattr(thing, "__module__", None) == home.__name__ and kind(thing): yield module, name


def is_function(thing): return inspect.isfunction(inspect.unwrap(thing))


@pytest.mark.parametrize("module, name", public(is_function))
def test_help_tells_all_of_a_function(module, name):
    function = getattr(importlib.import_module(f"calibkd.{module}"), name)
    said, shown = remarks(function), pydoc.plain(pydoc.render_doc(function))
    signature = inspect.signature(function)
    own = lambda annotation: getattr(annotation, "__module__", "").startswith("calibkd.")  # a Batch is a batch
    lacking = [name for name, p in signature.parameters.items() if not (said.get(name) or own(p.annotation))]
    assert not lacking, f"{module}.{name} says nothing of {', '.join(lacking)}"
    returns = inspect.formatannotation(signature.return_annotation)
    assert "->" in said or TOLD_BY_TYPE.fullmatch(returns), f"{module}.{name} does not say what the {returns} is that it returns"
    for parameter in said.keys() - {"->", ""}: assert re.search(rf"^ +{parameter} +{re.escape(said[parameter])}$", shown, re.M), parameter
    for text in said.values(): assert text in shown


@pytest.mark.parametrize("module, name", public(inspect.isclass))
def test_help_tells_how_a_class_is_called(module, name):
    cls = getattr(importlib.import_module(f"calibkd.{module}"), name)
    for field, text in class_remarks(cls).items(): assert text in cls.__doc__ and field in cls.__doc__
    for method in vars(cls).values():
        if inspect.isfunction(method) and method.__doc__ and method.__name__[0] != "_":
            assert all(text in method.__doc__ for text in remarks(method).values())


def test_help_of_kd_tells_shapes_units_errors_and_source():
    from calibkd.distillers import kd
    shown = pydoc.plain(pydoc.render_doc(kd))
    assert all(words in shown for words in ("(B, C)", "nats · T²", "ValueError", "KD(C) eq 2", "temperature of both", '"classmean"', "Hinton et al. 2015")), shown


@pytest.mark.parametrize("module", TELL_REFUSALS)
def test_a_function_that_refuses_says_so(module):
    "By its own code: what raises, or calls what checks, names the error below its docstring"
    home = importlib.import_module(f"calibkd.{module}")
    for function in (f for f in (getattr(home, n) for n in home.__all__) if is_function(f) and f.__module__ == home.__name__):
        refuses = re.search(r"\b(require|raise|scores|_given|_check\w*|_lead|pick)\b", inspect.getsource(function).split('"\n', 1)[-1])
        assert not refuses or "Error" in remarks(function).get("", ""), f"{module}.{function.__name__}"


def test_inherited_fields_are_told():
    from calibkd.distillers import KD
    assert all(words in KD.__doc__ for words in ("T ", "temperature of both", "alpha", "weight of the distillation term", "task", "the loss on the labels"))


def test_modules_end_with_what_tells():
    source = lambda module: inspect.getsource(importlib.import_module(f"calibkd.{module}"))
    assert [m for m in MODULES if "document(__name__)" not in source(m)] == []


def test_telling_twice_is_telling_once():
    import calibkd.metrics
    before = calibkd.metrics.ece.__doc__
    document("calibkd.metrics.calibration")
    assert calibkd.metrics.ece.__doc__ == before


def test_a_module_without_its_source_keeps_its_docstrings(tmp_path, monkeypatch):
    import py_compile, sys
    (tmp_path / "sourceless.py").write_text('from calibkd.words import document\n__all__ = ["f"]\ndef f(\n    x: int,  # a number\n) -> int:  # another\n    "Says it"\n    return x\ndocument(__name__)\n')
    monkeypatch.syspath_prepend(tmp_path)
    import sourceless
    assert "a number" in sourceless.f.__doc__
    del sys.modules["sourceless"]
    py_compile.compile(tmp_path / "sourceless.py", cfile=tmp_path / "sourceless.pyc")
    (tmp_path / "sourceless.py").unlink()
    importlib.invalidate_caches()
    import linecache
    linecache.clearcache()
    import sourceless as bare
    assert bare.__file__.endswith(".pyc") and bare.f.__doc__ == "Says it"
