"Neighbourhoods in feature space: counted one by one, at their limits, and without t-SNE."
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from calibkd.diagnostics import centroid_distance, is_ambiguous, nearest_samples, neighbourhoods, purity, tsne


def some(seed, n=80, d=5, C=4, offset=0.):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g) + offset, torch.randint(0, C, (n,), generator=g)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.sampled_from([0., 1e4]))
def test_neighbours_are_those_of_scikit_learn_however_far_the_features_lie_from_zero(seed, k, offset):
    f, _ = some(seed, offset=offset)
    theirs = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(f.double().numpy()).kneighbors()
    far = (f.double()[:, None] - f.double()[nearest_samples(f, k, rows=13)]).norm(dim=2)
    np.testing.assert_allclose(far, theirs[0], rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([5, 10, 20]), st.sampled_from([.4, .6, .8]))
def test_numbers_are_those_counted_one_by_one(seed, k, least):
    f, y = some(seed)
    right, near = torch.arange(80) % 3 > 0, nearest_samples(f, k)
    around = [[int(y[j]) for j in row] for row in near]
    own = [sum(c == int(y[i]) for c in row) for i, row in enumerate(around)]
    mixed = [10 * max(map(row.count, row)) < round(10 * least) * k for row in around]
    seen = neighbourhoods(f, y, right, k, least)
    assert seen["purity"] == pytest.approx(sum(own) / 80 / k) and seen["ambiguous"] == pytest.approx(sum(mixed) / 80)
    assert seen["astray"] == pytest.approx(sum(10 * n < round(10 * least) * k for n in own) / 80)
    assert seen["ambiguous_right"] == pytest.approx(np.mean([m for m, r in zip(mixed, right) if r]))
    beside = [mixed[j] for i, row in enumerate(near) if mixed[i] for j in row]
    if beside: assert seen["clumping"] == pytest.approx(np.mean(beside) / np.mean(mixed))
    centres = [f[y == c].double().mean(0) for c in range(4)]
    apart = np.mean([(a - b).norm() for i, a in enumerate(centres) for b in centres[:i]])
    assert seen["centroid_distance"] == pytest.approx(apart / f.double().square().sum(1).mean().sqrt().item())


def test_the_last_class_may_have_no_neighbour_and_a_class_no_sample():
    y = torch.tensor([0] * 9 + [7])
    near = torch.zeros(10, 1, dtype=torch.int64)
    assert purity(y, near).tolist() == [1.] * 9 + [0.] and not is_ambiguous(y, near).any()
    assert centroid_distance(torch.tensor([[1.]] * 9 + [[-1.]]), y) == pytest.approx(2)


def test_an_order_of_the_samples_changes_no_number_and_a_seed_no_picture():
    f, y = some(3, n=200)
    order, right = torch.randperm(200, generator=torch.Generator().manual_seed(0)), y > 0
    assert neighbourhoods(f, y, right) == pytest.approx(neighbourhoods(f[order], y[order], right[order]))
    np.testing.assert_array_equal(tsne(f), tsne(f, seed=0))


def test_the_numbers_need_no_tsne():
    code = ("import sys; sys.modules['sklearn'] = None\nimport torch\nfrom calibkd.diagnostics import neighbourhoods\n"
            "print(len(neighbourhoods(torch.randn(50, 3), torch.arange(50) % 2, torch.arange(50) > 9)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "6\n", done.stderr
