"CRD: the published numbers through five epochs, whom it contrasts with, and a memory that survives"
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn import functional as F

from calibkd.calibrators import MixUp
from calibkd.checkpoints import read_note
from calibkd.data import Dataset
from calibkd.distillers import CRD, KD, Classes, crd
from calibkd.networks.core import network
from calibkd.objectives import Batch, Output, Seen, Setting, memory
from calibkd.runs import Recipe, Run
from calibkd.training import fit


def test_crd_is_the_published_one_through_five_epochs(monkeypatch):
    "HobbitLong/RepDistiller, crd/criterion.py and crd/memory.py at b84f547c, in float64, in the order of its loop"
    g, N, method = torch.Generator().manual_seed(0), 24, CRD(K=6, dim=4, alpha=1., gamma=0.)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    x, t, y, W = randn(N, 5), randn(N, 7), torch.arange(N) % 3, randn(5, 5).requires_grad_()
    state = memory(method, Setting(3, N, {"pooled": (5,)}, {"pooled": (7,)}, y)).double()
    own = state["CRD"]
    with torch.no_grad():
        for p in own.parameters(): p.copy_(randn(*p.shape))
        for bank in (own.bank_s, own.bank_t): bank.copy_(torch.rand(N, 4, generator=g, dtype=torch.float64) - .5)
    optimiser, losses = torch.optim.SGD([W, *own.parameters()], .02, .9), []
    for _ in range(5):
        for b in torch.randperm(N, generator=g).split(8):
            others = torch.stack([torch.arange(N)[y != y[i]][torch.randperm(16, generator=g)[:6]] for i in b])
            monkeypatch.setattr(own.classes, "contrasts", lambda *_: torch.cat([b[:, None], others], 1))
            f = x[b] @ W
            seen = Seen(Output(f, {"pooled": f}), Batch(x[b], y[b], b), Output(t[b], {"pooled": t[b]}), state)
            loss = method.loss(seen)
            optimiser.zero_grad()
            loss.backward()
            if not losses: grads = W.grad.clone(), own.embed_t.weight.grad.clone()
            optimiser.step()
            with torch.no_grad(): method.remember(own, seen)
            losses.append(loss.item())
    close = lambda values: pytest.approx(values, rel=1e-9)
    assert losses[0] == close(16.051808828687424) and [g.norm().item() for g in grads] == close([.6344584370516717, 1.2620901311021293])
    assert grads[0][0].tolist() == pytest.approx([-.181995254466, -.065107502309, .090889685382, .025417162737, -.061140682182], abs=1e-11)
    epochs = torch.tensor(losses).reshape(5, 3).mean(1).tolist()
    assert epochs == pytest.approx([17.605705433252854, 24.330292631348925, 19.90497728074124, 14.12428772918114, 12.811409201741535], rel=1e-6)
    k = torch.arange(1., 97).reshape(N, 4)
    assert [(bank * k).sum().item() for bank in (own.bank_s, own.bank_t)] == close([184.88762356963537, 648.492139050887])
    assert (W * torch.arange(1., 26).reshape(5, 5)).sum().item() == close(-32.65207903750108)
    assert own.log_z.exp().tolist() == close([1254.4395992862335, 3736.066833803143])


def inputs(B=5, N=12, d=4, K=3):
    g = torch.Generator().manual_seed(1)
    unit = lambda n: F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64))
    contrast = torch.stack([torch.randperm(N, generator=g)[:K + 1] for _ in range(B)])
    return unit(B).requires_grad_(), unit(B).requires_grad_(), unit(N), unit(N), contrast


def test_the_gradient_is_right():
    s, t, *banks, contrast = inputs()
    log_z = torch.tensor([1., 2.], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s, t: crd(s, t, *banks, contrast, log_z)[0], (s, t))


def test_z_is_that_of_the_first_batch_and_carries_no_gradient():
    s, t, *banks, contrast = inputs()
    loss, log_z = crd(s, t, *banks, contrast, torch.full((2,), torch.nan, dtype=torch.float64))
    mean = ((s[:, None] * banks[1][contrast]).sum(2) / .07).exp().mean()
    torch.testing.assert_close(log_z[0], (12 * mean).log().detach())
    assert not log_z.requires_grad and torch.equal(crd(s, t, *banks, contrast, log_z)[1], log_z)
    assert torch.equal(crd(s, t, *banks, contrast, log_z)[0], loss)


def test_scores_that_would_overflow_do_not():
    s, t, *banks, contrast = inputs()
    loss, _ = crd(s.float(), t.float(), *(b.float() for b in banks), contrast, torch.full((2,), torch.nan), T=1e-3)
    assert loss.isfinite() and torch.autograd.grad(loss, s)[0].isfinite().all()


@pytest.mark.parametrize("change", [dict(t=slice(3)), dict(contrast=slice(3)), dict(no_contrast=True)])
def test_what_does_not_fit_is_refused(change):
    s, t, *banks, contrast = inputs()
    if change.get("no_contrast"): contrast = contrast[:, :1]
    with pytest.raises(ValueError, match="expected"):
        crd(s, t[change.get("t", slice(None))], *banks, contrast[change.get("contrast", slice(None))], torch.zeros(2))


def test_contrasts_are_of_other_classes_distinct_and_each_as_likely():
    labels = torch.tensor([0, 2, 1, 2, 0, 1, 2, 2, 4])  # class 3 is empty
    g, classes, index = torch.Generator().manual_seed(0), Classes(labels), torch.arange(9)
    drawn = torch.stack([classes.contrasts(index, labels, 3, g) for _ in range(4000)])
    assert drawn.shape == (4000, 9, 4) and torch.equal(drawn[..., 0], index.expand(4000, 9))
    assert (drawn.sort(2).values.diff(dim=2) > 0).all() and (labels[drawn[..., 1:]] != labels[:, None]).all()
    for i in range(9):
        others = labels != labels[i]
        shares = torch.bincount(drawn[:, i, 1:].flatten(), minlength=9)[others] / 12000 * others.sum()
        assert (shares - 1).abs().max() < .1, i
    assert classes.contrasts(index, labels, 100, g).shape == (9, 6)  # no more than the largest class leaves
    with pytest.raises(ValueError, match="two classes"): Classes(torch.ones(5).long())


DATA, RECIPE = Dataset("digits", train=200), Recipe(epochs=3, batch=64, precision="fp32")
METHODS = [CRD(K=20, dim=16), CRD(K=20, dim=16, clean=True, task=MixUp())]


@cache
def data(): return DATA.load()


def trained(*objectives, recipe=RECIPE, **more):
    runs = [Run(DATA, "resnet8", o, recipe, seed=5, teacher=Run(DATA, "resnet14", recipe=RECIPE)) for o in objectives]
    return fit(runs, data(), network("resnet14", 10, 1, seed=1), **more)


def same(a, b):
    tensors = lambda m: {**m.net.state_dict(), **{f"state.{k}": v for k, v in m.state.state_dict().items()}}
    return tensors(a).keys() == tensors(b).keys() and all(torch.equal(v, tensors(b)[k]) for k, v in tensors(a).items())


@pytest.mark.parametrize("o", METHODS, ids=str)
def test_alone_as_in_a_cohort_and_resumed_as_undisturbed(o, tmp_path):
    alone, = trained(o)
    assert same(alone, trained(KD(T=3), o)[1])
    path = tmp_path / "checkpoint"
    trained(o, checkpoints=[path])
    assert read_note(path)["epoch"] == 2 and same(alone, trained(o, checkpoints=[path])[0])
    own = alone.state["CRD"]
    assert own.log_z.isfinite().all() and (own.bank_s.norm(dim=1) - 1).abs().max() < 1e-5


def test_in_bf16_the_loss_is_not():
    member, = trained(METHODS[0], recipe=replace(RECIPE, epochs=1, precision="bf16"))
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in member.state.parameters())


def test_the_weights_are_the_published_ones():
    assert (CRD().alpha, CRD().gamma, CRD().K, CRD().dim, CRD().T, CRD().momentum) == (.8, 1., 16384, 128, .07, .5)


def test_without_weight_it_is_training_on_labels_and_the_banks_stand():
    start, = trained(CRD(K=20, dim=16, alpha=0.), recipe=replace(RECIPE, epochs=0))
    member, = trained(CRD(K=20, dim=16, alpha=0.))
    assert torch.equal(member.state["CRD"].bank_s, start.state["CRD"].bank_s) and member.state["CRD"].log_z.isnan().all()
