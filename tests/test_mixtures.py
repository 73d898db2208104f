"""Gaussian mixtures, textures and their posteriors against SciPy, scikit-learn, Monte Carlo and symmetries."""
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import chi2, kstest, multivariate_normal, norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

from calibkd.mixtures import GaussianMixture, Sentences, Textures, gaussian_mixture

settings.register_profile("shared", deadline=None, derandomize=True)  # timings mean nothing on shared cores
settings.load_profile("shared")
MIXTURE = gaussian_mixture(10)
TEXTURES = Textures()


def random_mixture(classes, dims, seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(classes, dims, dims))
    weights = rng.uniform(.1, 1, classes)
    return GaussianMixture(3 * rng.normal(size=(classes, dims)), root @ root.transpose(0, 2, 1) + .2 * np.eye(dims), weights / weights.sum())


def brute_force(mixture, x):
    joint = np.stack([w * multivariate_normal(m, c).pdf(x).reshape(len(x)) for m, c, w in
                      zip(mixture.means.numpy(), mixture.covs.numpy(), mixture.weights.numpy())], 1)
    return joint / joint.sum(1, keepdims=True)


# ---------------------------------------------------------------- Gaussian mixtures

@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=40)
def test_posterior_agrees_with_scipy(classes, dims, seed):
    mixture = random_mixture(classes, dims, seed)
    x, labels = mixture.sample(20, seed)
    assert x.dtype == torch.float64 and labels.dtype == torch.int64 and x.shape == (20, dims)
    np.testing.assert_allclose(mixture.posterior(x), brute_force(mixture, x.numpy()), rtol=1e-7, atol=1e-12)


def test_posterior_agrees_with_scikit_learn():
    mixture = random_mixture(5, 3, 0)
    theirs = SklearnMixture(5, covariance_type="full")
    theirs.weights_, theirs.means_, theirs.covariances_ = (t.numpy() for t in (mixture.weights, mixture.means, mixture.covs))
    theirs.precisions_cholesky_ = _compute_precision_cholesky(theirs.covariances_, "full")
    x, _ = mixture.sample(200, 1)
    np.testing.assert_allclose(mixture.posterior(x), theirs.predict_proba(x.numpy()), rtol=1e-9, atol=1e-14)


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_posterior_is_a_distribution_everywhere(a, b):
    q = MIXTURE.posterior(torch.tensor([[a, b]]))
    assert torch.isfinite(MIXTURE.log_posterior(torch.tensor([[a, b]]))).all() and (q >= 0).all()
    assert q.sum().item() == pytest.approx(1)


def test_chunks_do_not_matter():
    x, _ = MIXTURE.sample(9000, 0)
    torch.testing.assert_close(MIXTURE.posterior(x)[5000:5010], MIXTURE.posterior(x[5000:5010]), rtol=1e-12, atol=0)


def test_sample_has_the_moments_of_its_classes():
    mixture = random_mixture(3, 2, 4)
    x, labels = mixture.sample(60_000, 0)
    for k in range(3):
        part, cov = x[labels == k], mixture.covs[k]
        assert abs(len(part) / len(x) - mixture.weights[k]) < 5 * .5 / len(x) ** .5
        assert (part.mean(0) - mixture.means[k]).abs().max() < 5 * (cov.diagonal().max() / len(part)) ** .5
        torch.testing.assert_close(part.T.cov(), cov, rtol=.05, atol=.05 * cov.diagonal().max().item())


def test_mahalanobis_distances_are_chi_squared():
    x, labels = MIXTURE.sample(2000, 3)
    z = x - MIXTURE.means[labels]
    distance = torch.einsum("ni,nij,nj->n", z, torch.linalg.inv(MIXTURE.covs)[labels], z)
    assert kstest(distance, chi2(2).cdf).pvalue > .001


def test_posterior_is_the_frequency_of_the_labels():
    """Among the points that get probability q for a class, the share q has it."""
    x, labels = MIXTURE.sample(40_000, 7)
    q, hit = MIXTURE.posterior(x).flatten(), torch.nn.functional.one_hot(labels, 10).flatten().double()
    for low in np.arange(.05, .95, .1):
        inside = (q >= low) & (q < low + .1)
        assert abs(q[inside].mean() - hit[inside].mean()) < 4.5 * .5 / inside.sum() ** .5


def test_posterior_is_the_frequency_in_a_small_cell():
    """Straight from the definition: count labels among points near one place."""
    two = GaussianMixture([[-.5], [.5]], [[[1.]], [[1.]]], [.3, .7])
    x, labels = two.sample(200_000, 0)
    near = (x[:, 0] - .4).abs() < .05
    assert labels[near].double().mean() == pytest.approx(two.posterior(torch.tensor([[.4]]))[0, 1].item(), abs=4 * .5 / near.sum().item() ** .5)


def test_equal_covariances_give_linear_discriminant_analysis():
    mixture = GaussianMixture([[0., 0.], [2., 0.], [0., 2.]], torch.eye(2).expand(3, 2, 2), [1 / 3] * 3)
    x, labels = mixture.sample(40_000, 0)
    lda = LinearDiscriminantAnalysis().fit(x.numpy(), labels.numpy())
    np.testing.assert_allclose(mixture.posterior(x[:500]), lda.predict_proba(x[:500].numpy()), atol=.03)


@given(st.floats(.1, 3))
@settings(max_examples=10)
def test_two_gaussians_have_the_closed_form_accuracy(half):
    two = GaussianMixture([[-half], [half]], [[[1.]], [[1.]]], [.5, .5])
    assert two.bayes_accuracy(20_000) == pytest.approx(norm.cdf(half), abs=.01)


def test_same_seed_same_points_and_streams_do_not_meet():
    assert torch.equal(MIXTURE.sample(50, 1)[0], MIXTURE.sample(50, 1)[0])
    assert not torch.equal(MIXTURE.sample(50, 1)[0], MIXTURE.sample(50, 2)[0])
    latent, labels = TEXTURES.mixture.sample(100, TEXTURES.seed)
    noise = latent - TEXTURES.mixture.means[labels]
    assert not np.isin(noise.numpy().round(10), TEXTURES.mixture.means.numpy().round(10)).any()


def test_sampling_leaves_the_global_random_state_alone():
    torch.manual_seed(0), np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    TEXTURES.sample(3, 0), gaussian_mixture(3)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("classes, bayes, seed", [(10, None, 0), (100, None, 3), (10, None, 4), (4, .7, 0)])
def test_the_bayes_accuracy_is_what_was_asked_for(classes, bayes, seed):
    mixture = gaussian_mixture(classes, seed, bayes)
    x, labels = mixture.sample(20_000, 99)
    wanted = bayes or {10: .90, 100: .95}[classes]
    assert mixture.posterior(x).amax(1).mean().item() == pytest.approx(wanted, abs=.006)
    assert (mixture.posterior(x).argmax(1) == labels).double().mean().item() == pytest.approx(wanted, abs=.012)


def test_covariances_are_anisotropic_and_turned():
    eigen = torch.linalg.eigvalsh(MIXTURE.covs)
    assert (eigen > 0).all() and (eigen[:, 1] / eigen[:, 0]).max() > 1.5 and (eigen[:, 1] / eigen[:, 0] <= 9.001).all()
    assert (MIXTURE.covs[:, 0, 1].abs() > 1e-6).any()


@pytest.mark.parametrize("call, word", [
    (lambda: MIXTURE.sample(0, 0), "n=0"), (lambda: MIXTURE.posterior(torch.zeros(3, 5)), r"\(3, 5\)"),
    (lambda: gaussian_mixture(1), "classes=1"), (lambda: gaussian_mixture(10, bayes=.05), "bayes=0.05"),
    (lambda: GaussianMixture([[0.], [1.]], [[[1.]], [[1.]]], [.5, .6]), "sum to 1"),
    (lambda: GaussianMixture([[0.], [1.]], [[[1.]]], [.5, .5]), "covs"),
    (lambda: TEXTURES.latent(torch.zeros(2, 1, 16, 16)), r"\(2, 1, 16, 16\)"), (lambda: Textures(size=3).sample(1, 0), "gratings=16"),
    (lambda: TEXTURES.sample(0, 0), "n=0")])
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


# ---------------------------------------------------------------- textures

def test_shapes_types_and_names():
    images, labels, posterior = TEXTURES.sample(7, 0)
    assert images.shape == (7, 3, 16, 16) and images.dtype == torch.float32
    assert labels.shape == (7,) and labels.dtype == torch.int64
    assert posterior.shape == (7, 100) and posterior.dtype == torch.float32
    assert len(TEXTURES.classes) == 100 == len(set(TEXTURES.classes)) and TEXTURES.classes[17] == "s03c2"
    assert Textures() == TEXTURES and hash(Textures()) == hash(TEXTURES) != hash(Textures(seed=1))


@given(st.integers(8, 21), st.integers(1, 20), st.integers(0, 100))
@settings(max_examples=25)
def test_the_latent_comes_back(size, gratings, seed):
    textures = Textures(size=size, supers=3, per_super=2, gratings=gratings, seed=seed)
    images, _, posterior = textures.sample(6, seed)
    latent, _ = textures.mixture.sample(6, seed)
    torch.testing.assert_close(textures.latent(images), latent, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(textures.posterior(images), posterior, rtol=0, atol=2e-3)


@given(st.floats(-8, 40))
@settings(max_examples=30)
def test_extreme_latents_come_back(value):
    latent = torch.full((2, 16), value, dtype=torch.float64)
    torch.testing.assert_close(TEXTURES.latent(TEXTURES.render(latent, 0)), latent, rtol=1e-4, atol=5e-3)


def test_an_empty_image_still_has_a_posterior():
    assert TEXTURES.posterior(torch.zeros(1, 3, 16, 16)).sum().item() == pytest.approx(1, abs=1e-5)


@given(st.integers(-20, 20), st.integers(-20, 20))
@settings(max_examples=20)
def test_cyclic_shifts_keep_the_posterior(down, right):
    images, _, posterior = TEXTURES.sample(20, 5)
    torch.testing.assert_close(TEXTURES.posterior(images.roll((down, right), (2, 3))), posterior, rtol=0, atol=1e-4)


def test_colour_and_contrast_matter_only_through_the_norm():
    images, _, posterior = TEXTURES.sample(20, 5)
    torch.testing.assert_close(TEXTURES.posterior(images[:, [2, 0, 1]]), posterior, rtol=0, atol=1e-4)
    torch.testing.assert_close(TEXTURES.posterior(-images), posterior, rtol=0, atol=1e-4)
    assert (TEXTURES.posterior(2 * images) - posterior).abs().max() > .5


def test_flips_change_the_class():
    images, _, posterior = TEXTURES.sample(200, 5)
    assert (TEXTURES.posterior(images.flip(3)).argmax(1) != posterior.argmax(1)).double().mean() > .3


def test_images_of_one_latent_differ():
    """Phase and colour are nuisances: the same latent never gives the same picture."""
    latent = torch.zeros(2, 16, dtype=torch.float64)
    a, b = TEXTURES.render(latent, 0)
    assert (a - b).abs().mean() > .5 * a.abs().mean()


def test_the_posterior_is_brute_forces_on_the_latent():
    images, _, posterior = TEXTURES.sample(100, 8)
    np.testing.assert_allclose(posterior, brute_force(TEXTURES.mixture, TEXTURES.latent(images).numpy()), atol=1e-4)


def test_the_optimal_classifier_reaches_the_bayes_accuracy():
    _, labels, posterior = TEXTURES.sample(8000, 11)
    hit = (posterior.argmax(1) == labels).double().mean().item()
    assert hit == pytest.approx(posterior.amax(1).mean().item(), abs=.015) == TEXTURES.mixture.bayes_accuracy()
    assert .84 < TEXTURES.mixture.bayes_accuracy() < .89


def test_super_classes_are_the_coarse_structure():
    means = TEXTURES.mixture.means.view(20, 5, 16)
    assert means.mean(1).std() > 1.5 * (means - means.mean(1, keepdim=True)).std()


def test_sampling_is_fast():
    start = time.process_time()  # seconds of computing: the cores may be shared
    TEXTURES.sample(2800, 0)
    assert time.process_time() - start < 1


# ---------------------------------------------------------------- sentences

@given(st.integers(2, 5), st.integers(2, 12), st.integers(2, 9), st.floats(0, .99), st.integers(0, 50))
@settings(max_examples=30)
def test_the_posterior_of_a_sentence_is_brute_forces(classes, words, length, mixing, seed):
    """Products of probabilities, in exact order, of chains so small that nothing underflows"""
    kind = Sentences(classes, mixing, words=words, topics=max(1, words // 2), length=length, seed=seed)
    x, labels, posterior = kind.sample(7, seed)
    P = kind.transitions.numpy()
    for row, q in zip(x.tolist(), posterior.tolist()):
        joint = [np.prod([P[k, i, j] for i, j in zip(row, row[1:])]) for k in range(classes)]
        np.testing.assert_allclose(q, np.array(joint) / sum(joint), rtol=1e-5, atol=1e-7)
    assert x.shape == (7, length) and x.dtype == labels.dtype == torch.int64 and 0 <= x.min() <= x.max() < words
    np.testing.assert_allclose(P.sum(2), 1)


def test_sentences_follow_their_chain():
    """Frequencies of pairs of words in many sentences of one class"""
    kind = Sentences(2, .4, words=6, topics=3, length=50)
    x, labels, _ = kind.sample(4000, 0)
    for k in range(2):
        pairs = x[labels == k].unfold(1, 2, 1).flatten(0, 1)
        seen = torch.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36).view(6, 6).double()
        torch.testing.assert_close(seen / seen.sum(1, keepdim=True), kind.transitions[k], atol=.02, rtol=0)


def test_the_posterior_of_sentences_is_the_frequency_of_the_labels():
    _, labels, q = Sentences().sample(20_000, 3)
    conf, hit = q.amax(1).double(), (q.argmax(1) == labels).double()
    for low in (.4, .6, .8, .9):
        inside = (conf >= low) & (conf < low + .1)
        assert abs(conf[inside].mean() - hit[inside].mean()) < 4.5 * .5 / inside.sum() ** .5
    assert hit.mean() == pytest.approx(Sentences().bayes_accuracy(), abs=.01)


def test_sentences_are_seeded_and_share_their_words():
    kind = Sentences(2, .46)
    assert torch.equal(kind.sample(9, 1)[0], kind.sample(9, 1)[0]) and not torch.equal(kind.sample(9, 1)[0], kind.sample(9, 2)[0])
    a, b = kind.transitions
    own = (a != b).any(0)
    assert own.sum() == 40 and kind.classes == ["topic 0", "topic 1"]  # transitions to 40 words differ, and to no other
    for bad in (dict(num_classes=1), dict(mixing=1.), dict(mixing=-.1), dict(topics=500), dict(length=1)):
        with pytest.raises(ValueError, match="need two classes"):
            Sentences(**bad)
    for x in (torch.zeros(3, dtype=torch.int64), torch.full((1, 4), 400)):
        with pytest.raises(ValueError, match="sentences"):
            kind.posterior(x)


# ---------------------------------------------------------------- their use: stacked networks, essence's Table 1

def test_the_stack_is_its_networks():
    from calibkd.toys import fit_stack, stack_logits
    x, labels = MIXTURE.sample(200, 0)
    targets = torch.stack([torch.nn.functional.one_hot(labels, 10).double(), MIXTURE.posterior(x)])
    together = fit_stack(x, targets, [0, 1, 1], [0, 0, 5], hidden=(32, 32), epochs=6, batch=64)
    for k, (which, seed) in enumerate(((0, 0), (1, 0), (1, 5))):
        alone = fit_stack(x, targets, [which], [seed], hidden=(32, 32), epochs=6, batch=64)
        torch.testing.assert_close(stack_logits(together, x)[k], stack_logits(alone, x)[0], rtol=1e-10, atol=1e-10)


def test_a_stacked_network_is_a_torch_network_trained_by_hand():
    from calibkd.toys import fit_stack, stack, stack_logits
    x, labels = MIXTURE.sample(96, 0)
    target = torch.nn.functional.one_hot(labels, 10).double()
    rng = torch.Generator().manual_seed(3)
    start = stack((2, 8, 10), [rng], torch.float64)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10)).double()
    for layer, (weight, bias) in zip((net[0], net[2]), start):
        layer.weight.data, layer.bias.data = weight.detach()[0].T.clone(), bias.detach()[0, 0].clone()
    optimiser = torch.optim.SGD(net.parameters(), .03, .9)
    for _ in range(4):
        for index in torch.randperm(96, generator=rng).split(32):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(x[index]), labels[index]).backward()
            optimiser.step()
    ours = fit_stack(x, target[None], [0], [3], hidden=(8,), epochs=4, batch=32)
    torch.testing.assert_close(stack_logits(ours, x)[0], net(x), rtol=1e-10, atol=1e-10)


def test_the_posterior_teaches_more_than_labels():
    from calibkd.toys import posterior_table
    table = posterior_table(10, runs=3, epochs=25, train=2000, test=1000)
    assert list(table.supervision) == ["one-hot"] * 3 + ["posterior"] * 3 and list(table.seed) == [0, 1, 2] * 2
    mean, sd = (getattr(table.groupby("supervision")[["true_top1", "gap", "kl"]], f)() for f in ("mean", "std"))
    assert mean.true_top1["posterior"] > mean.true_top1["one-hot"] and mean.kl["posterior"] < mean.kl["one-hot"] / 2
    assert sd.true_top1["posterior"] < sd.true_top1["one-hot"]
    assert (table.true_top1 <= table.bayes + 1e-9).all() and (table.true_ece <= table.gap + 1e-9).all()


def test_a_stack_refuses_what_does_not_fit():
    from calibkd.toys import fit_stack
    x = torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"\(4, 3\)|got \(1, 4, 3\)"):
        fit_stack(x, torch.zeros(1, 4, 3), [0], [0])
    with pytest.raises(ValueError, match="which"):
        fit_stack(x, torch.zeros(1, 5, 3), [1], [0])
