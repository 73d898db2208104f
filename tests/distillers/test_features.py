"Distillers on feature maps against RepDistiller's and ReviewKD's files, and as runs: alone, in a cohort, resumed"
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from test_training import COACH, DATA, RECIPE, coach, data, one_step, same, student

from calibkd.checkpoints import read_note
from calibkd.distillers import AB, AT, FT, KD, NST, VID, FitNet, Paraphrase, Paraphrased, ReviewKD
from calibkd.distillers import ab, at, ft, hint, nst, level_pairs, regressor, review, vid
from calibkd.objectives import Batch, Output, Seen, Setting
from calibkd.runs import Run
from calibkd.sweep import train
from calibkd.training import fit

# Made outside of the project with HobbitLong/RepDistiller b84f547 (distiller_zoo/{FitNet,AT,VID,NST,AB,FT}.py and
# models/util.py) and dvlab-research/ReviewKD cede6ea (CIFAR-100/model/reviewkd.py), in float64.
# Of a function: value, length of the gradient, its product with wave(.3). Of a class: the losses of five steps of SGD.
OFFICIAL = {
    "hint": [1.0040742204634578, 0.056015461606134305, -0.0018589015146343243],
    "at": [0.0020273444999669866, 0.00318912587897424, -0.0002472357993160485],
    "at larger": [0.0020273444999669866, 0.002146234601901147, -0.0007630353329190362],
    "nst channels": [0.9991426684839306, 0.03460125826289641, -0.004027397662781082],
    "nst positions": [0.29531688203664963, 0.0669086912333707, -0.0033537566487360036],
    "ab": [1.438681406219504, 0.06569660736033874, -0.0017438060188569846],
    "ft": [0.03684129028350422, 0.03474044814444178, -0.013636154851677063],
    "review 1": [1.224024688589692, 0.49477766493440106, -0.02516001193834143],
    "review 2": [0.7620171080478562, 0.1717386533913914, 0.04939467813471478],
    "review 3": [0.6015302489223039, 0.08840920484126086, -0.0018844722026500269],
    "review 7": [0.6597068749139616, 0.04289428891847735, 0.0020112300441999017],
    "review 8": [0.6404604010787587, 0.036601345908810694, 4.9991814177940876e-05],
    "FitNet": [1.708588703330689, 1.704767076424428, 1.6975611127234465, 1.6875382317561596, 1.6754786191576096],
    "AT": [0.0033433554872815494, 0.003341585021886787, 0.0033382241049623902, 0.0033334371867336796,
           0.0033273742421841284],
    "VID": [0.2086120551500259, 0.20813767959775312, 0.20724131629056292, 0.2059786781763422, 0.20439839931061074],
    "NST": [2.733740367268834, 2.733582018789015, 2.7332812889561398, 2.7328526568051625, 2.7323092410176875],
    "AB": [1.1789967279820672, 1.1782660819622193, 1.1768843041562518, 1.1749285792948974, 1.1724734392832867],
    "ReviewKD": [1.6940781399863503, 1.668946614616762, 1.6333787791611978, 1.6079155610409446, 1.5863737908647493],
    "FT": [0.29938317225524186, 0.308763467594127, 0.2966310960174704, 0.2739143868527184, 0.25162019707305366],
    "Paraphrase": [0.5781822284665745, 0.5744536954880454, 0.5679147754807738, 0.5596605090434951, 0.5506074477365573],
}


def wave(k, *shape): return torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).mul(k).sin().view(shape)


def fill(parameters):
    with torch.no_grad():
        for i, p in enumerate(parameters): p.copy_(.3 * wave(.7 + .1 * i, *p.shape))


# 1. functions

SMALL, LARGE, SAME = wave(.7, 4, 6, 4, 4), wave(.9, 4, 5, 8, 8), wave(1.1, 4, 5, 8, 8)
PAIRS = {"hint": (hint, SAME, LARGE), "at": (at, SMALL, LARGE), "at larger": (at, LARGE, SMALL), "nst channels": (nst, SMALL, LARGE),
         "nst positions": (nst, wave(.7, 4, 20, 2, 2), wave(.9, 4, 15, 4, 4)), "ab": (ab, SAME, LARGE), "ft": (ft, SMALL, LARGE),
         **{f"review {n}": (review, wave(1.1, 4, 5, n, n), wave(.9, 4, 5, n, n)) for n in (1, 2, 3, 7, 8)}}


@pytest.mark.parametrize("name", PAIRS)
def test_value_and_gradient_are_the_official_ones(name):
    f, s, t = PAIRS[name]
    s = s.clone().requires_grad_()
    grad, = torch.autograd.grad(value := f(s, t), s)
    assert [value.item(), grad.norm().item(), (grad * wave(.3, *s.shape)).sum().item()] == pytest.approx(OFFICIAL[name], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("f", [hint, at, nst, ab, ft, review, lambda s, t: vid(s, wave(.3, 3).exp(), t)],
                         ids=["hint", "at", "nst", "ab", "ft", "review", "vid"])
def test_gradients_and_half_precision(f):
    s, t = wave(.7, 2, 3, 4, 4), wave(.9, 2, 3, 4, 4)
    assert torch.autograd.gradcheck(lambda s: f(s, t), s.clone().requires_grad_())
    short = [m.bfloat16() for m in (s, t)]
    assert torch.equal(f(*short), f(*(m.float() for m in short)))


@pytest.mark.parametrize("f, s, t, words", [
    (hint, SMALL, LARGE, ["(4, 6, 4, 4)", "(4, 5, 8, 8)", "one shape"]), (ab, SMALL, LARGE, ["(4, 6, 4, 4)"]),
    (review, SMALL, LARGE, ["one shape"]), (at, SMALL[:2], LARGE, ["(2, 6, 4, 4)", "the same B"]),
    (nst, SMALL.flatten(2), LARGE, ["(4, 6, 16)"]), (ft, SMALL.long(), LARGE, ["torch.int64", "floating"]),
    (lambda s, t: vid(s, torch.ones(4), t), SAME, LARGE, ["(4,)", "one a channel"]),
    (lambda s, t: ab(s, t, -1.), SAME, LARGE, ["margin", "-1.0"]),
    (lambda s, t: review(s, t, torch.ones(3)), SAME, LARGE, ["weights", "(B,)"]),
    (lambda s, t: regressor((6, 5, 5), (6, 8, 8)), 0, 0, ["5×5", "8×8", "10×10"]),
])
def test_bad_maps_get_a_sentence(f, s, t, words):
    with pytest.raises(ValueError) as error: f(s, t)
    assert all(w in str(error.value) for w in words) and "\n" not in str(error.value)


# 2. levels

def test_unequal_numbers_of_levels_need_a_mapping():
    with pytest.raises(ValueError, match="has 3 maps and the teacher 4"): level_pairs("abc", "wxyz")
    assert level_pairs("abc", "wxyz", "zip") == [*zip("abc", "wxyz")]
    assert level_pairs("abc", "wxyz", ((0, 0), (-1, -1))) == [("a", "w"), ("c", "z")]


@pytest.mark.parametrize("o", [AT(), NST(), VID(), FitNet(levels=None), AB(), ReviewKD()], ids=str)
def test_levels_are_checked_before_the_training(o):
    shapes = lambda *sizes: {k: [(4, n, n) for n in sizes] for k in ("maps", "preact")} | {"pooled": (4,)}
    unequal = Setting(10, 20, shapes(8, 4), shapes(8, 4, 4))
    with pytest.raises(ValueError, match="has 2 maps and the teacher 3"): o.state(unequal)
    for levels in ("zip", ((0, 0), (1, 2))): replace(o, levels=levels).state(unequal)
    words = {"maps": [(9, 16)] * 2, "preact": [(9, 16)] * 2, "pooled": (16,)}
    with pytest.raises(ValueError, match=r"maps of images, \(C, H, W\), got \(9, 16\)"): o.state(Setting(10, 20, words, words))


def test_levels_are_pairs():
    assert AT(levels=[[0, 0], [1, 2]]) == AT(levels=((0, 0), (1, 2)))
    for wrong in ("zipp", (0, 1), ((0, 1.),), 3):
        with pytest.raises(ValueError, match="pairs of whole numbers"): AT(levels=wrong)


# 3. modules, trained as in the official loop

S, T = [(6, 8, 8), (8, 4, 4), (10, 2, 2)], [(5, 8, 8), (8, 4, 4), (12, 4, 4)]


def features(shapes, first, **more):
    maps = [nn.Parameter(wave(first + i, 4, *shape)) for i, shape in enumerate(shapes)]
    return {"maps": maps, "preact": maps, **more}


def trained(method):
    "The losses of five steps, on maps that are trained themselves"
    s = features(S, .7, pooled=nn.Parameter(wave(.2, 4, 14)))
    t = features(T, .9, pooled=wave(.4, 4, 9))
    told = {"factor": (6, 4, 4)} if isinstance(method, FT) else {}
    setting = Setting(10, 20, {"maps": S, "preact": S, "pooled": (14,)}, {"maps": T, "preact": T, "pooled": (9,)} | told)
    if told: t["factor"] = wave(.4, 4, 6, 4, 4)
    own = method.state(setting)
    state = nn.ModuleDict({} if own is None else {method.name: own}).double()
    fill([p for m in reversed(own) for p in m.parameters()] if isinstance(method, ReviewKD) else state.parameters())
    at_end = Batch(torch.zeros(4, 1), torch.zeros(4).long(), torch.arange(4), epoch=20, epochs=40)
    seen = Seen(Output(torch.zeros(4, 10), s), at_end, Output(torch.zeros(4, 10), t), state)
    learnt = s["maps"][-1:] if told else [*s["maps"], s["pooled"]]
    return descended([*learnt, *state.parameters()], lambda: method.distil(seen))


def descended(parameters, loss):
    optimiser, losses = torch.optim.SGD(parameters, .02, .9, weight_decay=5e-4), []
    for _ in range(5):
        losses.append(value := loss())
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return [v.item() for v in losses]


@pytest.mark.parametrize("method", [FitNet(levels=None), AT(), VID(), NST(), ReviewKD(), AB(), FT()], ids=lambda m: m.name)
def test_five_steps_are_the_official_ones(method):
    assert trained(method) == pytest.approx(OFFICIAL[method.name], rel=1e-9)


def reviewed():
    "ReviewKD after its ramp on four samples, and what it sees"
    s, t = features(S, .7, pooled=wave(.2, 4, 14)), features(T, .9, pooled=wave(.4, 4, 9))
    method = ReviewKD(ramp=0)
    own = method.state(Setting(10, 20, {"maps": S, "preact": S, "pooled": (14,)}, {"maps": T, "preact": T, "pooled": (9,)}))
    state = nn.ModuleDict({"ReviewKD": own}).double().eval()  # its statistics are those of the start
    batch = Batch(torch.zeros(4, 1), torch.zeros(4).long(), torch.arange(4))
    return method, Seen(Output(torch.zeros(4, 10), s), batch, Output(torch.zeros(4, 10), t), state)


def test_reviewkd_takes_weights():
    "Ones change no bit; a weight of 2 counts one sample twice"
    method, seen = reviewed()
    term = lambda *weights: method.distil(replace(seen, weights=torch.tensor(weights).double()))
    assert torch.equal(term(1, 1, 1, 1), method.distil(seen)) and term(0, 0, 0, 0) == 0
    torch.testing.assert_close(term(1, 2, 1, 1), term(1, 1, 1, 1) + term(0, 1, 0, 0))
    alone = [term(*row) for row in torch.eye(4).tolist()]
    assert len({round(a.item(), 9) for a in alone}) == 4 and sum(alone).item() == pytest.approx(term(1, 1, 1, 1).item())


class Telling(nn.Module):
    "Made up: what it sees is its last map"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 1)

    def forward(self, x, features=False):
        return (x.mean((2, 3)), {"maps": [x]}) if features else x.mean((2, 3))


def test_the_paraphraser_is_the_official_one():
    net, x, method = Paraphrased(Telling()).double().train(), wave(2.9, 4, 12, 4, 4), Paraphrase()
    own = [p for p in net.parameters() if p.requires_grad]
    fill(own)
    labels = Batch(x, torch.zeros(4).long(), torch.arange(4))
    loss = lambda: method.loss(Seen(Output(*net(x, features=True)), labels))
    assert descended(own, loss) == pytest.approx(OFFICIAL["Paraphrase"], rel=1e-9)


# 4. runs

WHOLE = [FitNet(), AT(), VID(), NST(task=KD(alpha=1., gamma=1.)), ReviewKD(ramp=2), AB(), FT()]
SHORT = replace(RECIPE, epochs=2)


def paraphrased():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Paraphrased(coach()).eval()


@pytest.mark.parametrize("o", WHOLE, ids=lambda o: o.name)
def test_alone_in_a_cohort_and_resumed(o, tmp_path, together=[]):
    if not together: together.extend(fit([student(o, SHORT) for o in WHOLE], data(), paraphrased()))
    run, path = student(o, SHORT), tmp_path / "checkpoint"
    alone, = fit([run], data(), paraphrased(), checkpoints=[path])
    assert read_note(path)["epoch"] == 1
    resumed, = fit([run], data(), paraphrased(), checkpoints=[path])
    assert same(alone, together[WHOLE.index(o)]) and same(alone, resumed)


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_every_method_in_any_precision(precision):
    recipe = replace(SHORT, epochs=1, precision=precision)
    for m in fit([student(o, recipe) for o in WHOLE], data(), paraphrased()):
        assert all(p.dtype == m.kind and p.isfinite().all() for p in m.state.parameters())


def test_boundaries_alone_leave_the_classifier_as_it_was():
    before = one_step(AB(), SHORT)[0].net.linear.weight.detach().clone()
    after, labelled = fit([student(AB(), SHORT), student(AB(gamma=1.), SHORT)], data(), coach())
    assert torch.equal(after.net.linear.weight, before) and not torch.equal(labelled.net.linear.weight, before)


def test_both_two_stage_methods_as_runs():
    "The second stage of AB starts where the first ended; FT's teacher answers as it did before it was paraphrased"
    teacher = replace(COACH, recipe=SHORT)
    start = Run(DATA, "resnet8", AB(), SHORT, seed=5, teacher=teacher)
    told = Run(DATA, "resnet14", Paraphrase(), SHORT, init=teacher)
    runs = [Run(DATA, "resnet8", recipe=replace(SHORT, epochs=0), init=start),
            Run(DATA, "resnet8", FT(), replace(SHORT, epochs=1), teacher=told)]
    results = train([*runs, start, told, teacher], workers=1)
    first, second = (results.network(r).state_dict() for r in (start, runs[0]))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert torch.equal(results.logits(told)[0], results.logits(teacher)[0])
    assert results.logits(runs[1])[0].isfinite().all()


def test_a_teacher_that_was_not_paraphrased_gets_a_sentence():
    with pytest.raises(ValueError, match="FT needs a teacher that was paraphrased"): one_step(FT(), SHORT)
