"""Projections and the separation of classes: against independent implementations, under rotations, and on bad input."""
import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid
from torch import nn

from calibkd import diagnostics as dg
from calibkd import plots
from calibkd.plots import paper_ready
from calibkd.calibrators import Tempered
from calibkd.data import Dataset
from calibkd.networks.core import network
from calibkd.building import Renormalised
from calibkd.inference import logits_of

seeds = st.integers(0, 2**31)


def some(seed=0, n=60, d=7, C=5):
    "Features, labels, templates and biases from a random generator"
    rng = np.random.default_rng(seed)
    f, w, b = rng.normal(size=(n, d)), rng.normal(size=(C, d)), rng.normal(size=C)
    return tuple(map(torch.tensor, (f, np.arange(n) % C, w, b)))


def rotation(seed, d): return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


@pytest.fixture(scope="module")
def data(): return Dataset("textures:4x3", train=96, test=48, val=0).load()


@pytest.fixture(scope="module")
def net(): return network("resnet8", 12, seed=0)


# features and templates

@pytest.mark.parametrize("batch", [1, 7, 500])
def test_features_and_templates_make_the_logits(net, data, batch):
    f, (w, b) = dg.penultimate_features(net, data, data.test, batch), dg.templates(net)
    torch.testing.assert_close(f @ w.T + b, logits_of(net, data, data.test)[0], atol=1e-5, rtol=1e-5)
    assert f.dtype == w.dtype == b.dtype == torch.float32 and not (f.requires_grad or w.requires_grad or b.requires_grad)


def test_every_module_keeps_its_mode_and_its_statistics(data):
    net = network("resnet8", 12, seed=0).train()
    next(net.children()).eval()
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    dg.penultimate_features(net, data, data.test)
    assert [m.training for m in net.modules()] == modes and len(set(modes)) == 2
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    with pytest.raises(Exception): dg.penultimate_features(net, data, data.test, batch=0)
    class Broken(nn.Sequential):
        def forward(self, x): raise RuntimeError("broken")
    broken = Broken(nn.Flatten(), nn.Linear(768, 12)).train()
    with pytest.raises(RuntimeError): dg.penultimate_features(broken, data, data.test)
    assert broken.training and broken[1].training


def test_wrappers_are_looked_through(net, data):
    f, (w, b) = dg.penultimate_features(net, data, data.test), dg.templates(net)
    shifted = Renormalised(net, data, SimpleNamespace(mean=(0.5,) * 3, std=(0.25,) * 3))
    for wrapper in (Tempered(net, 2.0), Tempered(shifted, 2.0)):
        assert all(torch.equal(x, y) for x, y in zip(dg.templates(wrapper), (w, b)))
    assert torch.equal(dg.penultimate_features(Tempered(net, 2.0), data, data.test), f)
    assert not torch.allclose(dg.penultimate_features(shifted, data, data.test), f)  # it does see other images


def test_a_copy_not_the_weights_themselves():
    net = network("resnet8", 3, seed=0)
    w, b = dg.templates(net)
    w += 1
    b += 1
    assert not torch.allclose(w, net.linear.weight) and not torch.allclose(b, net.linear.bias)


def test_double_precision_and_networks_from_elsewhere(data):
    net = network("resnet8", 12, seed=0)
    single = dg.penultimate_features(net, data, data.test)
    torch.testing.assert_close(dg.penultimate_features(net.double(), data, data.test), single, atol=1e-4, rtol=1e-4)
    conv = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 12, 1), nn.Flatten())
    f, (w, b) = dg.penultimate_features(conv, data, data.test), dg.templates(conv)
    torch.testing.assert_close(f @ w.T + b, logits_of(conv, data, data.test)[0], atol=1e-5, rtol=1e-5)


def test_no_image_and_one_image(net, data):
    none, one = (data.test.at(torch.arange(n)) for n in (0, 1))
    assert dg.penultimate_features(net, data, none).shape == (0, 64) and dg.penultimate_features(net, data, one).shape == (1, 64)


# three classes

def test_classes_by_name():
    classes = ["apple", "bowl", "willow_tree", "3", "A", "a"]
    assert dg.class_index(classes, ["willow tree", "BOWL", "3", 0, np.int64(1)]) == (2, 1, 3, 0, 1)
    assert dg.class_index(classes, ["a", "A"]) == (5, 4)  # an exact name goes first
    assert dg.class_index(classes, []) == ()
    with pytest.raises(ValueError, match="'bowls' among 6; did you mean 'bowl'"): dg.class_index(classes, ["bowls"])
    with pytest.raises(ValueError, match="known: apple, bowl"): dg.class_index(classes, ["zzzzzz"])
    with pytest.raises(ValueError, match="labels run from 0 to 5"): dg.class_index(classes, [-1])


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(3, 9))
def test_similar_classes_against_brute_force(seed, C):
    f, y, *_ = some(seed, n=8 * C, C=C)
    groups = [k % 2 for k in range(C)] if C > 3 else [0, 0, 1]
    centroids = NearestCentroid().fit(f, y).centroids_
    cos = cosine_similarity(centroids - centroids.mean(0))
    best = max(((i, j) for i in range(C) for j in range(i + 1, C) if groups[i] == groups[j]), key=lambda p: cos[p])
    far = min((k for k in range(C) if groups[k] != groups[best[0]]), key=lambda k: cos[k, best[0]] + cos[k, best[1]])
    assert dg.similar_classes(f, y, groups) == (*best, far)
    a, b, c = dg.similar_classes(f, y)
    assert cos[a, b] == pytest.approx(np.sort(cos[~np.eye(C, dtype=bool)])[-1]) and c not in (a, b)
    turned = f @ rotation(seed, 7) * 3 + 5  # no part of what is similar
    assert dg.similar_classes(turned, y, groups) == (*best, far)


def test_similar_classes_needs_a_pair_and_another():
    f, y, *_ = some(C=3)
    with pytest.raises(ValueError, match="two classes with samples"): dg.similar_classes(f, y, "abc")
    with pytest.raises(ValueError, match="no other class"): dg.similar_classes(f, y, "aaa")
    with pytest.raises(ValueError, match="no other class"): dg.similar_classes(f[y < 2], y[y < 2])
    with pytest.raises(ValueError, match="two classes with samples"): dg.similar_classes(f[:0], y[:0])
    with pytest.raises(ValueError, match="2 given, the labels run to 2"): dg.similar_classes(f, y, "ab")
    absent = dg.similar_classes(f, y * 2)  # labels 1 and 3 have no sample
    assert set(absent) == {0, 2, 4}


# separation

@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.01, 100), st.floats(-10, 10))
def test_separation_against_an_independent_one(seed, scale, shift):
    f, y, *_ = some(seed)
    c = cdist(*[NearestCentroid().fit(f, y).centroids_] * 2)
    expected = c[3, 1] / np.mean([c[3, 0], c[1, 0]])
    assert dg.separation(f, y, (3, 1, 0)) == pytest.approx(expected)
    assert dg.separation(f @ rotation(seed, 7) * scale + shift, y, (1, 3, 0)) == pytest.approx(expected)
    assert 0 <= expected <= 2


def test_separation_without_an_answer():
    f, y, *_ = some()
    assert np.isnan(dg.separation(f, y, (0, 1, 9))) and np.isnan(dg.separation(f[:0], y[:0], (0, 1, 2)))
    assert np.isnan(dg.separation(torch.full((6, 3), 0.1, dtype=torch.float64), torch.arange(6) % 3, (0, 1, 2)))
    assert np.isnan(dg.separation_interval(f, y, (0, 1, 9))).all()
    assert dg.separation(f.float().half(), y, (0, 1, 2)) == pytest.approx(dg.separation(f, y, (0, 1, 2)), rel=1e-2)


def test_the_interval_is_seeded_and_shrinks():
    f, y, *_ = some(n=100)
    a, b, c = (dg.separation_interval(f, y, (0, 1, 2), seed=s) for s in (0, 0, 1))
    assert a == b != c and a[0] < a[1]
    single = dg.separation_interval(f[:5], y[:5], (0, 1, 2))  # one sample a class: nothing to resample
    assert single == pytest.approx((dg.separation(f[:5], y[:5], (0, 1, 2)),) * 2)
    narrow = dg.separation_interval(f, y, (0, 1, 2), level=0.5)
    assert a[0] < narrow[0] < narrow[1] < a[1]
    with pytest.raises(ValueError, match="level is 95"): dg.separation_interval(f, y, (0, 1, 2), level=95)


# projections

@settings(max_examples=40, deadline=None)
@given(seeds, st.permutations(range(5)))
def test_the_plane_against_least_squares(seed, order):
    f, _, w, _ = some(seed)
    a, b, c = order[:3]
    origin, basis = dg.mueller_plane(w, (a, b, c))
    edges = np.stack([w[b] - w[a], w[c] - w[a]], 1)
    nearest = edges @ np.linalg.lstsq(edges, (f - w[a]).numpy().T, rcond=None)[0]  # by the normal equations, not by a basis
    assert np.allclose(dg.project_mueller(f, w, (a, b, c)) @ basis, nearest.T) and np.array_equal(origin, w[a])
    flat = dg.project_mueller(w, w, (a, b, c))
    assert np.allclose(cdist(flat[[a, b, c]], flat[[a, b, c]]), cdist(w[[a, b, c]], w[[a, b, c]]))
    assert np.allclose(flat[[a, b], 0], 0) and flat[b, 1] > 0 and flat[c, 0] > 0


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(["plane", "qr-pca"]))
def test_turning_the_feature_space_changes_nothing(seed, kind):
    f, y, w, b = some(seed)
    turn = rotation(seed, 7)
    one = dg.project((f, y), (f[:20], y[:20]), w, b, (4, 0, 2), kind)
    two = dg.project((f @ turn, y), (f[:20] @ turn, y[:20]), w @ turn, b, (4, 0, 2), kind)
    for name in ("train", "test", "centroids", "templates"): assert np.allclose(getattr(one, name), getattr(two, name), atol=1e-6)
    assert one.r_train == pytest.approx(two.r_train) and one.r_test == pytest.approx(two.r_test)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_qr_pca_against_numpy_and_scikit_learn(seed):
    f, y, w, b = some(seed)
    g, u, *_ = some(seed + 1, n=30)
    three = [4, 0, 2]
    q, _ = np.linalg.qr(np.hstack([w, b[:, None]])[three].T)
    into = lambda x, last=1.0: np.hstack([x, np.full((len(x), 1), last)]) @ q
    kept, other = np.isin(y, three), np.isin(u, three)
    means = np.stack([f[y == k].numpy().mean(0) for k in three])
    pca = PCA(2).fit(np.vstack([into(f[kept]), into(means)]))
    p = dg.project((f, y), (g, u), w, b, three, "qr-pca")
    for ours, theirs in ((p.train, into(f[kept])), (p.test, into(g[other])), (p.centroids, into(means))):
        assert np.allclose(abs(ours), abs(pca.transform(theirs)), atol=1e-7)
    assert 2 * p.centroids[2, 0] >= p.centroids[:2, 0].sum() and p.centroids[1, 1] >= p.centroids[0, 1]
    assert np.array_equal(p.train_labels, y[kept]) and np.array_equal(p.test_labels, u[other])


def test_the_test_split_has_no_say_in_where_it_is_drawn():
    f, y, w, b = some()
    for kind in ("plane", "qr-pca"):
        alone = dg.project((f, y), (f[:1], y[:1]), w, b, (0, 1, 2), kind)
        crowd = dg.project((f, y), (f + 100, y), w, b, (0, 1, 2), kind)
        assert np.array_equal(alone.train, crowd.train) and np.allclose(alone.test[0], alone.train[0])


def test_templates_by_qr_pca_are_where_their_own_bias_puts_them():
    f, y, w, b = some()
    p, q = (dg.project((f, y), (f, y), w, bias, (4, 0, 2), "qr-pca") for bias in (b, b[[2, 1, 4, 3, 0]]))
    assert not np.allclose(cdist(p.train, p.train), cdist(q.train, q.train))
    same = b.clone()
    same[[1, 3]] += 1  # biases of classes that are not drawn
    assert np.array_equal(p.train, dg.project((f, y), (f, y), w, same, (4, 0, 2), "qr-pca").train)
    plane = [dg.project((f, y), (f, y), w, bias, (4, 0, 2)).train for bias in (b, b + 1)]
    assert np.array_equal(*plane)


@pytest.mark.parametrize("kind", ["plane", "qr-pca"])
def test_few_samples(kind):
    f, y, w, b = some()
    one = dg.project((f[:1], y[:1]), (f[:0], y[:0]), w, b, (0, 1, 2), kind)
    assert one.train.shape == (1, 2) and np.isfinite(one.train).all() and one.test.shape == (0, 2)
    assert np.isnan(one.r_train) and np.isnan(one.r_test) and np.isnan(one.centroids[1:]).all()
    two = dg.project((f[y != 1], y[y != 1]), (f, y), w, b, (0, 1, 2), kind)
    assert np.isfinite(two.train).all() and np.isfinite(two.test).all() and np.isnan(two.centroids[1]).all() and two.r_test > 0
    assert dg.projections({"few": one})[1].shape == dg.projections({"two": two})[1].shape == (1, 1)


def test_bad_input():
    f, y, w, b = some()
    good = dict(train=(f, y), test=(f, y), weight=w, bias=b, classes=(0, 1, 2))
    line = torch.stack([w[0], w[1], 3 * w[1] - 2 * w[0]])
    cases = [
        (dict(kind="pca"), "no projection is called 'pca'"), (dict(classes=(0, 1)), "three different classes"),
        (dict(classes=(0, 1, 1)), "three different classes"), (dict(classes=(0, 1, 5)), "no class 5: labels run from 0 to 4"),
        (dict(classes=("a", "b", "c")), "class_index"), (dict(train=(f[:, :6], y)), "6 numbers each, the templates 7"),
        (dict(test=(f, y[:9])), "60 rows of features"), (dict(train=(f[0], y)), "table of numbers"),
        (dict(train=(f * torch.nan, y)), "not finite"), (dict(weight=w * torch.inf), "not finite"),
        (dict(weight=w[[0, 0, 1]]), "no plane"), (dict(weight=line), "no plane"), (dict(weight=w * 0), "no plane"),
        (dict(weight=w[[0, 0, 1]], bias=b[[0, 0, 1]], kind="qr-pca"), "no plane"), (dict(bias=b[:4], kind="qr-pca"), "5 templates need"),
        (dict(train=(f[:0], y[:0]), kind="qr-pca"), "use kind='plane'"), (dict(names=("a", "b")), "three names"),
    ]
    for change, words in cases:
        with pytest.raises(ValueError, match=words) as error: dg.project(**good | change)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no plane"): dg.mueller_plane(torch.randn(3, 1), (0, 1, 2))
    with pytest.raises(ValueError, match="6 numbers"): dg.project_mueller(f[:, :6], w, (0, 1, 2))


def test_templates_on_a_line_still_have_a_qr_basis():
    f, y, w, b = some()
    line = torch.stack([w[0], w[1], 3 * w[1] - 2 * w[0]])  # their biases tell them apart
    assert np.isfinite(dg.project((f, y % 3), (f, y % 3), line, b[:3], (0, 1, 2), "qr-pca").train).all()


def test_from_a_network(net, data):
    three = ("s03c1", "s00c2", 4)
    p = dg.project_network(net, data, three)
    train, test = ((dg.penultimate_features(net, data, s), s.labels) for s in (data.train, data.test))
    q = dg.project(train, test, *dg.templates(net), (10, 2, 4), names=p.names)
    assert p.names == ("s03c1", "s00c2", "s01c1") and p.classes == (10, 2, 4)
    assert np.allclose(p.train, q.train, atol=1e-4) and p.r_test == pytest.approx(q.r_test, rel=1e-4)
    with pytest.raises(ValueError, match="did you mean 's03c1'"): dg.project_network(net, data, ("s03c11", 1, 2))
    assert dg.project_network(Tempered(net, 3.0), data, three, "qr-pca").r_train == pytest.approx(p.r_train)


# drawing

def panels(n=2, m=2):
    f, y, w, b = some(n=900)
    make = lambda k: dg.project((f + k * w[y], y), (f[:400] + k * w[y[:400]], y[:400]), w, b, (3, 0, 2), names=("bowl", "plate", "willow_tree"))
    return {(f"T = {i + 1}", f"method {j}"): make(1 + i + j) for i in range(n) for j in range(m)}


@pytest.mark.parametrize("size", [None, (plots.COLUMN, 3.4)])
def test_the_grid_is_fit_to_print(size):
    fig, axes = dg.projections(panels(), size=size)
    assert axes.shape == (2, 2) and paper_ready(fig)
    key = [t.get_text() for t in fig.legends[0].texts]
    assert set(key) == {"bowl", "plate", "willow_tree", "train", "test", "train centroid"} and len(key) == 6
    assert size or key[:3] == ["bowl", "plate", "willow_tree"]
    p = panels()["T = 2", "method 1"]
    title = " ".join(axes[1, 1].get_title().split())
    assert title.startswith("T = 2 · method 1") and title.endswith(f"R {p.r_train:.2f} (train), {p.r_test:.2f} (test)")


def drawn(ax, size): return {l.get_marker(): np.concatenate([k.get_xydata() for k in ax.lines if k.get_marker() == l.get_marker() and k.get_markersize() == size])
                             for l in ax.lines if l.get_markersize() == size}


def test_what_is_drawn_is_what_the_table_says():
    given_ = panels()
    table = dg.projections_data(given_)
    fig, axes = dg.projections(given_, points=(40, 30))
    for (row, col), ax in zip(given_, axes.flat):
        part = table[(table.row == row) & (table.col == col)]
        for name, most in (("train", 40), ("test", 30)):
            points = drawn(ax, dg.projection._LOOKS[name]["markersize"])
            for mark, c in zip("os^", ("bowl", "plate", "willow_tree")):
                told = part[(part.part == name) & (part["class"] == c)][["x", "y"]].to_numpy()[:most]
                assert len(told) == most and np.array_equal(np.sort(points[mark][:, 0]), np.sort(told[:, 0]))
        stars = drawn(ax, dg.projection._LOOKS["centroid"]["markersize"])["*"]
        p = given_[row, col]
        assert np.allclose(np.sort(stars, 0), np.sort([p.train[p.train_labels == k].mean(0) for k in p.classes], 0))
    assert set(table.columns) == {"x", "y", "class", "part", "R", "row", "col"}
    assert table[(table.part == "template")].R.isna().all() and table[table.part == "test"].R.notna().all()


def test_a_table_from_a_file_draws_the_same_figure():
    table = dg.projections_data(panels())
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)), float_precision="round_trip")
    images = []
    for t in (table, again):
        out = io.BytesIO()
        dg.projections(t)[0].savefig(out, format="png")
        images.append(out.getvalue())
    assert images[0] == images[1]


def test_one_row_missing_panels_and_nothing():
    some_ = panels()
    fig, axes = dg.projections({col: p for (_, col), p in [*some_.items()][:2]})
    assert axes.shape == (1, 2) and paper_ready(fig) and axes[0, 0].get_title().startswith("method 0")
    fig, axes = dg.projections({k: some_[k] for k in [*some_][:3]})
    assert [t.get_text() for t in axes[1, 1].texts] == ["not run"]
    for wrong in ({}, {"a": some_["T = 1", "method 0"], ("a", "b"): some_["T = 1", "method 0"]}, {("a", "b", "c"): some_["T = 1", "method 0"]}):
        with pytest.raises(ValueError, match="panels are (named|{)"): dg.projections(wrong)


def test_nothing_leaks():
    import matplotlib
    import matplotlib.pyplot as plt
    before = dict(matplotlib.rcParams)
    dg.projections(panels(1, 1))
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []
