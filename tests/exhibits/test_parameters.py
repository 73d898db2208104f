"Parameters: filled by presets, checked, short for lists, variants"
import json, math
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from calibkd.exhibits import Exhibit, tidy, variant
from calibkd.exhibits.parameters import hints
from calibkd.places import results_root
from small_exhibit import injected, make


def test_a_preset_fills_only_what_is_none():
    ex = make(T=2)
    assert vars(ex.p) == dict(T=2.0, seeds=[0, 1, 2], dataset="textures", net=None) and type(ex.p.T) is float
    assert ex.preset == "quick" and ex.changed == {"T": 2.0} and "T=2" in repr(ex)


def test_default_preset_is_smoke_under_nbdev_test(monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")
    assert make().preset == "smoke" and make().folder.name == "smoke" and make(preset="paper").preset == "paper"


@pytest.mark.parametrize("written", [[3], (3,), 3, "3", "[3]", "3,", np.array([3]).tolist()])
def test_a_list_may_be_written_in_many_ways(written):
    assert make(seeds=written).p.seeds == [3]


def test_the_same_value_written_otherwise_is_no_variant():
    assert make(T=4, seeds="0, 1, 2", dataset="textures").folder == results_root() / "fig_X"
    assert make(preset="paper", seeds=[0, 1]).folder.name == "paper"


@pytest.mark.parametrize("given, sentence", [
    (injected(Tt=2), "no parameter of fig_X called 'Tt'; did you mean 'T'"),
    (injected(seedz=2), "did you mean 'seeds'"),
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
    own = "preset: str = None\nT: float = None\nseeds = dataset = net = None"
    typo, other = "# Parameters\nTt = 2\n", "shared = dict(x=1)\nn = 3\nex = Exhibit("
    with pytest.raises(ValueError, match="'Tt'"): make(In=["", own, typo, other], Tt=2, shared={"x": 1})
    assert make(In=["", own, other], shared={"x": 1}, n=3).changed == {}
    assert make(In=["", own, typo, other, "low = 1", own, other], Tt=2, low=1).changed == {}  # corrected and run again
    with pytest.raises(ValueError, match="'wrong'"): make(In=["", own + "\nwrong = 1", other], wrong=1)


def test_a_lost_tag_is_noticed_and_a_notebook_that_is_run_again_is_not():
    own, given, other = "preset: str = None", "# Parameters\nT = 2\n", "ex = Exhibit("
    with pytest.raises(ValueError, match="lost its tag"): make(In=["", given, own, other])
    assert make(In=["", own, given, other, own, given, other], T=2).changed == {"T": 2.0}  # an executed notebook in Jupyter
    assert make(In=["", own, given, other, own, other]).changed == {}


@pytest.mark.parametrize("word", ["none", "None"])
def test_none_leaves_a_number_or_a_list_to_the_preset(word):
    assert make(T=word, seeds=word).changed == {} and make(dataset=word).p.dataset == word  # a text may be just that


def test_annotations_that_are_made_when_asked_for():
    "As since Python 3.14"
    assert hints(dict(__annotate__=lambda form: dict(T=float)), "T") == hints(dict(__annotations__=dict(T=float)), "T") == [0.]
    assert hints({}, "T") == []


def plural(**given):
    names = dict(preset=None, T=None, Ts=None, std=None, stds=None)
    return Exhibit("fig_X", names | given, **dict.fromkeys(("smoke", "quick", "paper"), dict(T=None, Ts=[1., 2., 4.], std=1., stds=[1., 2.])))


def test_one_value_stands_for_a_list_of_one():
    ex = plural(T=2)
    assert ex.p.Ts == [2.] and ex.changed == {"T": 2.} and ex.folder.name == "T=2"
    parameters = json.loads((ex.save(None, {}) / "meta.json").read_text())["parameters"]
    assert parameters["Ts"] == [2.] == [parameters["T"]]
    assert plural().p.Ts == [1., 2., 4.] and plural(std=3).p.stds == [1., 2.], "a value that presets set is one of its own"
    with pytest.raises(ValueError, match="give T or Ts, not both"): plural(T=2, Ts=[1, 2])


def test_a_preset_that_an_exhibit_lacks():
    with pytest.raises(ValueError) as caught: make(preset="real")
    assert str(caught.value) == "fig_X has no preset 'real', only smoke, quick, paper."
    with_real = Exhibit("fig_X", dict(preset="real", T=None), dict(T=1), dict(T=2), dict(T=4), real=dict(T=3))
    assert with_real.p.T == 3 and with_real.folder.name == "real"


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
