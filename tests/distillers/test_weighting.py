"Methods that weigh samples: the published numbers, their limits, and what is remembered of them"
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from calibkd.calibrators import MixUp, PSKD
from calibkd.checkpoints import read_note
from calibkd.data import Dataset
from calibkd.distillers import IPWD, KD, LA, WSLD, FitNet, ReviewKD, adjusted, ipwd_weights, kd, standardised, wsld, wsld_weights
from calibkd.networks.core import network
from calibkd.objectives import NLL, Batch, Output, Seen, Setting, memory, wants
from calibkd.runs import Recipe, Run
from calibkd.training import fit


def published_input():
    "1,000 classes, as the published WSLD counts them; the first label is the teacher's own choice"
    g = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(6, 1000, generator=g, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(1000, (6,), generator=g)
    labels[0] = t[0].argmax()
    return s.requires_grad_(), t, labels


def small(B=8, C=5):
    g = torch.Generator().manual_seed(3)
    s, t = (2 * torch.randn(B, C, generator=g, dtype=torch.float64) for _ in range(2))
    return s.requires_grad_(), t, torch.randint(C, (B,), generator=g)


def seen_of(s, t, labels, **more): return Seen(Output(s), Batch(torch.zeros(len(s), 1), labels, torch.arange(len(s)), **more), Output(t))


# bellymonster/Weighted-Soft-Label-Distillation, knowledge_distiller.py at 67820dd7, in float64: hard loss + alpha · soft loss
@pytest.mark.parametrize("T, alpha, value, norm, first, total", [
    (2, 2.5, 58.55239743926235, .4275247061951286, [-.00038624526, -.000241571017, 2.347528e-06], -141.41787068416897),
    (4, 2.25, 178.7984770591787, .4210968929546234, [-.000773239845, -.000322317714, 2.341692e-06], -133.36715497547425)])
def test_wsld_is_the_published_one(T, alpha, value, norm, first, total):
    s, t, labels = published_input()
    loss = WSLD(T, alpha=alpha).loss(seen_of(s, t, labels))
    grad, = torch.autograd.grad(loss, s)
    assert loss.item() == pytest.approx(value, rel=1e-12) and grad.norm().item() == pytest.approx(norm, rel=1e-10)
    assert grad[0, :3].tolist() == pytest.approx(first, abs=1e-11)
    assert (grad * torch.arange(6000.).reshape(6, 1000)).sum().item() == pytest.approx(total, rel=1e-10)


def test_wsld_has_the_gradient_it_should():
    s, t, labels = small()
    fixed = wsld_weights(s, t, labels)
    soft = lambda z: 16 * (fixed * -((t / 4).softmax(1) * (z / 4).log_softmax(1)).sum(1)).mean()
    assert torch.autograd.gradcheck(soft, s)  # with the weights held, as they carry no gradient
    torch.testing.assert_close(torch.autograd.grad(wsld(s, t, labels), s), torch.autograd.grad(soft(s), s))
    assert not wsld_weights(s, t, labels).requires_grad


def test_wsld_of_a_student_who_is_sure_and_of_one_who_is_lost():
    _, t, labels = small()
    sure = 80 * F.one_hot(labels, 5).double()
    assert wsld_weights(sure, t, labels).max() < 1e-30 and wsld_weights(-sure, t, labels).min() > .99


def test_labels_of_a_mixed_batch_count_by_their_shares():
    s, t, labels = small()
    seen = seen_of(s, t, labels, labels_b=labels.roll(1), lam=.7)
    both = .7 * wsld(s, t, labels) + .3 * wsld(s, t, labels.roll(1))
    torch.testing.assert_close(WSLD().loss(seen), NLL().loss(seen) + 2.25 * both)
    torch.testing.assert_close(WSLD(task=MixUp()).distil(seen), both)


# KD with a weight for each sample

@pytest.mark.parametrize("T", [1, 4, 1e3])
def test_kd_takes_weights(T):
    s, t, labels = small()
    weights = torch.arange(8, dtype=torch.float64)
    each = torch.stack([kd(s[i:i + 1], t[i:i + 1], T) for i in range(8)])
    torch.testing.assert_close(kd(s, t, T, weights=weights), (weights * each).mean())
    torch.testing.assert_close(kd(s, t, T, "classmean", weights), (weights * each).mean() / 5)
    seen = replace(seen_of(s, t, labels), weights=weights)
    torch.testing.assert_close(KD(T, alpha=1., gamma=1.).loss(seen), NLL().loss(seen) + (weights * each).mean())
    assert torch.autograd.gradcheck(lambda z: kd(z, t, T, weights=weights), s)
    with pytest.raises(ValueError, match="one number for each sample"): kd(s, t, weights=weights[:3])


# IPWD

DATA, RECIPE = Dataset("digits", train=200), Recipe(epochs=3, batch=64, precision="fp32")
COACH = Run(DATA, "resnet14", recipe=RECIPE)
VARIANTS = [IPWD(), IPWD(cls_from="network"), IPWD(kd_from="head", detach_kd=True, normalise=True),
            IPWD(weights="permuted", task=KD(T=2, alpha=.9, clean=True, task=MixUp())), IPWD(task=PSKD(), start_epoch=1),
            LA(T=2.), IPWD(kd_from="head", task=LA(alpha=1.)), IPWD(task=ReviewKD(ramp=1)),
            IPWD(weights="permuted", task=ReviewKD(ramp=0))]


@cache
def data(): return DATA.load()


def trained(*objectives, recipe=RECIPE, **more):
    teacher = COACH if wants(objectives[0], "teacher") else None
    runs = [Run(DATA, "resnet8", o, recipe, seed=5, teacher=teacher) for o in objectives]
    return fit(runs, data(), network("resnet14", 10, 1, seed=1) if teacher else None, **more)


def same(a, b):
    tensors = lambda m: {**m.net.state_dict(), **{f"state.{k}": v for k, v in m.state.state_dict().items()}, **m.kept}
    return tensors(a).keys() == tensors(b).keys() and all(torch.equal(v, tensors(b)[k]) for k, v in tensors(a).items())


def test_the_weights_as_their_formula_reads():
    s, t, labels = small()
    loss = lambda z: F.cross_entropy((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True, correction=0), labels, reduction="none")
    ratio = loss(s) / loss(t)
    torch.testing.assert_close(ipwd_weights(s, t, labels), (1 + ratio).clamp(1, 10).detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ipwd_weights(s, t, labels, "cls_over_kd", clip=None), (1 + 1 / ratio).detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ipwd_weights(s, t, labels, clip=(1.5, 2)), (1 + ratio).clamp(1.5, 2).detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ipwd_weights(s, t, labels, normalise=True).mean().item(), 1.)
    raw = F.cross_entropy(s, labels, reduction="none") / F.cross_entropy(t, labels, reduction="none")
    torch.testing.assert_close(ipwd_weights(s, t, labels, standardise=False, clip=None), (1 + raw).detach(), rtol=1e-5, atol=0)


def test_logits_that_say_nothing_are_no_nan():
    zeros = torch.zeros(4, 3, requires_grad=True)
    assert standardised(zeros).abs().max() == 0 and ipwd_weights(zeros, zeros, torch.zeros(4).long()).tolist() == pytest.approx([2.] * 4)


def of(objective, **more):
    "A batch as an objective sees it, with eight samples of a training split of ten"
    s, t, labels = small()
    setting = Setting(5, 10, {"pooled": (6,)}, seed=1, network=lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(1, 5)))
    pooled = torch.randn(8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    seen = seen_of(s, t, labels, **more)
    return replace(seen, student=Output(s, {"pooled": pooled}), batch=replace(seen.batch, x=seen.batch.x.double()),
                   state=memory(objective, setting).double(), generator=torch.Generator().manual_seed(4))


def test_ipwd_by_hand_and_its_controls():
    ipwd = IPWD()
    seen = of(ipwd)
    cls, plain = seen.state["IPWD"]["cls"](seen.student.features["pooled"]), seen.batch.labels
    w = ipwd_weights(seen.logits, cls, plain)
    total = lambda w: F.cross_entropy(seen.logits, plain) + F.cross_entropy(cls, plain) + kd(seen.logits, seen.teacher.logits, weights=w)
    torch.testing.assert_close(ipwd.loss(seen), total(w))
    torch.testing.assert_close(IPWD(start_epoch=1).loss(seen), total(None))
    torch.testing.assert_close(IPWD(weights="constant").loss(seen), total(w.mean().expand(8)))
    IPWD(weights="permuted").loss(seen)
    given = seen.state["IPWD"].latest
    assert not torch.equal(given, w) and torch.equal(given.sort().values, w.sort().values)


def test_which_head_trains_the_body():
    for objective, trains in ((IPWD(), True), (IPWD(detach_cls=True), False), (IPWD(detach_cls=True, kd_from="head"), True),
                              (IPWD(detach_cls=True, kd_from="head", detach_kd=True), False), (IPWD(cls_from="network"), False)):
        seen = of(objective)
        objective.loss(seen).backward()
        grad = seen.student.features["pooled"].grad
        assert (grad is not None and grad.abs().max() > 0) == trains, objective
        assert all(p.grad is not None for p in seen.state.parameters())


def test_the_head_that_distils_learns_by_the_distillers_term_alone():
    objective = IPWD(kd_from="head", task=KD(T=2, alpha=.7, gamma=1.))
    seen = of(objective)
    own = seen.state["IPWD"]
    objective.loss(seen).backward()
    logits = own["kd"](seen.student.features["pooled"].detach())
    wanted, = torch.autograd.grad(.7 * kd(logits, seen.teacher.logits, 2.), own["kd"].weight)
    torch.testing.assert_close(own["kd"].weight.grad, wanted)


def test_the_past_of_ps_kd_is_weighed_and_its_labels_are_not():
    objective, epochs = IPWD(task=PSKD(alpha=.8)), dict(epochs=4)
    first = of(objective)
    cls = first.state["IPWD"]["cls"](first.student.features["pooled"])
    torch.testing.assert_close(objective.loss(first), F.cross_entropy(first.logits, first.labels) + F.cross_entropy(cls, first.labels))
    seen = of(objective, epoch=1, **epochs)
    past = torch.rand(10, 5, dtype=torch.float64).softmax(1)
    seen.state["PSKD"].past.copy_(past)
    w, logp = ipwd_weights(seen.logits, cls, seen.labels), seen.logits.log_softmax(1)
    soft = -(w * (past[:8] * logp).sum(1)).mean()
    torch.testing.assert_close(objective.loss(seen), .6 * F.cross_entropy(seen.logits, seen.labels) + .4 * soft + F.cross_entropy(cls, seen.labels))


@pytest.mark.parametrize("changes", [{}, {"start_epoch": 3}, {"weights": "permuted"}, {"standardise": False}])
def test_under_ipwd_ps_kd_starts_as_cross_entropy_whatever_the_weights(changes):
    seen = of(IPWD(task=PSKD(), detach_cls=True, **changes), epochs=4)
    z = seen.logits.detach().requires_grad_()
    seen = replace(seen, student=replace(seen.student, logits=z))
    loss, plain = IPWD(task=PSKD(), detach_cls=True, **changes).loss(seen), F.cross_entropy(z, seen.labels)
    head = F.cross_entropy(seen.state["IPWD"]["cls"](seen.student.features["pooled"]), seen.labels)
    assert abs(loss - head - plain) <= 1e-6
    torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(plain, z), rtol=0, atol=1e-6)


def with_maps(objective):
    "The same batch with maps, too, of a student and a teacher of one shape"
    shapes, g = [(4, 6, 6), (6, 3, 3)], torch.Generator().manual_seed(6)
    told = {"maps": shapes, "preact": shapes, "pooled": (6,)}
    given = lambda: {k: [torch.randn(8, *shape, generator=g).double() for shape in shapes] for k in ("maps", "preact")}
    both = [given() | {"pooled": torch.randn(8, 6, generator=g).double()} for _ in range(2)]
    seen = of(NLL())
    return replace(seen, student=Output(seen.logits, both[0]), teacher=Output(seen.teacher.logits, both[1]),
                   state=memory(objective, Setting(5, 10, told, told, seed=1)).double().eval())


def test_the_differences_of_maps_are_weighed_by_what_the_logits_say():
    task = ReviewKD(ramp=0, alpha=3.)
    objective = IPWD(task=task)
    seen = with_maps(objective)
    cls = seen.state["IPWD"]["cls"](seen.student.features["pooled"])
    w = ipwd_weights(seen.logits, cls, seen.labels)
    by_hand = lambda w: F.cross_entropy(seen.logits, seen.labels) + F.cross_entropy(cls, seen.labels) + 3 * task.distil(replace(seen, weights=w))
    torch.testing.assert_close(objective.loss(seen), by_hand(w))
    permuted = IPWD(task=task, weights="permuted")
    loss, given = permuted.loss(seen), seen.state["IPWD"].latest
    torch.testing.assert_close(loss, by_hand(given))
    assert torch.equal(given.sort().values, w.sort().values) and loss != by_hand(w)


def test_weights_of_a_review_are_kept_with_the_run():
    for how in ("estimated", "permuted"):
        member, = trained(IPWD(task=ReviewKD(ramp=1), weights=how), recipe=replace(RECIPE, epochs=2))
        weights = member.kept["IPWD.weights@2"]
        assert len(weights) == len(data().train) and weights.min() > 1 and weights.std() > 0


def test_weights_are_estimated_on_the_images_that_the_term_sees():
    objective = IPWD(task=KD(alpha=1., clean=True, task=MixUp()))
    clean = of(objective)
    mixed = replace(clean, student=Output(2 * clean.logits, clean.student.features), clean=clean,
                    batch=replace(clean.batch, labels_b=clean.labels.roll(1), lam=.5))
    cls = clean.state["IPWD"]["cls"](clean.student.features["pooled"])
    w = ipwd_weights(clean.logits, cls, clean.labels)
    wanted = kd(clean.logits, clean.teacher.logits, weights=w) + F.cross_entropy(cls, clean.labels)
    torch.testing.assert_close(objective.loss(mixed), wanted)


@pytest.mark.parametrize("bad, words", [(dict(ratio="kd"), "kd_over_cls"), (dict(clip=(3, 1)), "clip"), (dict(task=NLL()), "takes no weights"), (dict(task=FitNet()), "takes no weights"),
    (dict(task=ReviewKD(), kd_from="head"), "distiller of logits"),
    (dict(task=PSKD(), kd_from="head"), "distiller of logits"), (dict(weights="permute"), "permuted"), (dict(start_epoch=-1), "start_epoch")])
def test_what_ipwd_refuses(bad, words):
    with pytest.raises(ValueError, match=words): IPWD(**bad)


def test_weights_are_kept_with_the_run():
    member, = trained(IPWD(), recipe=replace(RECIPE, epochs=10))
    assert [*member.kept] == [f"IPWD.weights@{e}" for e in (2, 3, 4, 5, 7, 8, 9, 10)]
    weights = member.kept["IPWD.weights@10"]
    assert len(weights) == len(data().train) and weights.min() > 1 and weights.std() > 0


@pytest.mark.parametrize("o", VARIANTS, ids=str)
def test_alone_as_in_a_cohort_and_resumed_as_undisturbed(o, tmp_path):
    alone, = trained(o)
    other = NLL() if not wants(o, "teacher") else KD(T=3)
    assert same(alone, trained(other, o)[1])
    path = tmp_path / "checkpoint"
    trained(o, checkpoints=[path])
    assert read_note(path)["epoch"] == 2 and same(alone, trained(o, checkpoints=[path])[0])
    short, = trained(o, recipe=replace(RECIPE, epochs=1, precision="bf16"))
    assert all(p.isfinite().all() for p in [*short.net.parameters(), *short.state.parameters()])


def test_a_step_without_it_leaves_the_weights_alone():
    seen = of(IPWD())
    own = seen.state["IPWD"]
    IPWD().loss(seen)
    for _ in range(2): IPWD().remember(own, seen)
    kept = own.weights.clone()
    other = replace(seen, batch=replace(seen.batch, index=seen.batch.index[:3] + 5))
    IPWD().remember(own, other)
    assert torch.equal(own.weights, kept) and kept[:8].min() > 1 and kept[8:].tolist() == [1, 1]


def test_the_second_student_is_another_one():
    first, = trained(IPWD(cls_from="network"), recipe=replace(RECIPE, epochs=0))
    own, twin = dict(first.net.named_parameters()), dict(first.state["IPWD"]["cls"].named_parameters())
    assert sum(p.numel() for p in own.values()) == sum(p.numel() for p in twin.values())
    assert not any(torch.equal(a, b) for a, b in zip(own.values(), twin.values()) if a.ndim > 1)
    assert first.run.id != replace(first.run, objective=IPWD()).id


# logit adjustment

def test_a_uniform_prior_changes_nothing_and_another_one_does():
    s, t, labels = small()
    uniform, skewed = LA(prior=(.2,) * 5, alpha=1.), LA(prior=(.4, .3, .1, .1, .1), alpha=1.)
    loss = lambda o: o.loss(replace(seen_of(s, t, labels), state=memory(o, Setting(5, 8))))
    torch.testing.assert_close(loss(uniform), kd(s, t))
    torch.testing.assert_close(loss(skewed), kd(s + torch.tensor([.4, .3, .1, .1, .1]).log(), t))
    after = LA(T=4, tau=4, prior=skewed.prior, alpha=1.)  # added after the division by T
    by_hand = 16 * F.kl_div((s / 4 + torch.tensor(skewed.prior).log()).log_softmax(1), (t / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss(after), by_hand)
    assert torch.autograd.gradcheck(lambda z: kd(adjusted(z, torch.tensor(skewed.prior).double()), t), s)


def test_the_prior_is_what_the_teacher_said_so_far():
    s, t, labels = small()
    la = LA(T=2., alpha=1.)
    seen = replace(seen_of(s, t, labels), state=memory(la, Setting(5, 8)))
    torch.testing.assert_close(la.loss(seen), kd(s, t, 2.))  # nothing yet
    la.remember(seen.state["LA"], seen)
    prior = (1 / 5 + (t / 2).softmax(1).sum(0)) / 9
    torch.testing.assert_close(la.loss(seen), kd(s + prior.log(), t, 2.), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [(.5, .6), (1., 0.)])
def test_what_is_no_prior_is_refused(bad):
    with pytest.raises(ValueError, match="sum to 1"): LA(prior=bad)
    with pytest.raises(ValueError, match="5 classes"): memory(LA(prior=(.5, .5)), Setting(5, 8))
    with pytest.raises(ValueError, match=r"\(C,\)"): adjusted(torch.zeros(2, 3), torch.ones(2) / 2)
