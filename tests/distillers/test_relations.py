"SP, CC, RKD and PKT against published code, in trainings side by side and resumed, and what they refuse"
import pytest
import torch

from calibkd.batches import Batches
from calibkd.checkpoints import write_checkpoint
from calibkd.data import Dataset
from calibkd.distillers import CC, KD, PKT, RKD, SP, cc, pkt, rkd, rkd_angle, rkd_distance, sp
from calibkd.inference import Teacher, fixed_threads
from calibkd.networks.core import network
from calibkd.objectives import NLL, Switch, wants
from calibkd.places import device
from calibkd.runs import Recipe, Run
from calibkd.training import Member, fit, one_epoch

LOSSES = {"sp": sp, "cc": cc, "rkd": rkd, "pkt": pkt}


def published():
    "Made in this order: two sets of logits (not used here), vectors of student and teacher, maps of both"
    g = torch.Generator().manual_seed(0)
    drawn = [torch.randn(*size, generator=g, dtype=torch.float64) for size in ((6, 5), (6, 5), (6, 4), (6, 7), (6, 2, 3, 3), (6, 3, 2, 2))]
    return dict(sp=drawn[4:], cc=[drawn[2], drawn[3][:, :4]], rkd=drawn[2:4], pkt=drawn[2:4])


# SP.py, CC.py, RKD.py and PKT.py of HobbitLong/RepDistiller in float64: value, start of the student's gradient, its length
PUBLISHED = {
    "sp": (.13228899385757842, [-.00397696945, -.001246149669, .001651044006, .000754235741, -.00367255344], .03591579989071915),
    "cc": (1.7364513255715763, [.321056093616, .033297239276, -.113912413592, -.406758465262], 1.278285148043975),
    "rkd": (3.8559133793093063, [-.176671578842, .034841718714, -.177654416341, -.786575618906], 3.512255416850141),
    "pkt": (.014914211151656927, [.001683326278, -.001773353479, .004397452295, -.002857818055], .020401091401611695)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name):
    value, first, length = PUBLISHED[name]
    student, teacher = published()[name]
    student = student.clone().requires_grad_()
    loss = LOSSES[name](student, teacher)
    grad, = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(value, rel=1e-9) and grad.norm().item() == pytest.approx(length, rel=1e-9)
    assert grad.flatten()[:len(first)].tolist() == pytest.approx(first, abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_bf16_is_cast_before_the_loss(loss):
    s, t = (x.bfloat16() for x in published()["cc"])
    assert torch.equal(loss(s, t), loss(s.float(), t.float())) and loss(s, t).dtype == torch.float32


@pytest.mark.parametrize("loss", [sp, rkd, pkt])
def test_samples_that_look_alike_have_finite_gradients(loss):
    "Two samples with the same features, one that is all 0: where norms and distances have no gradient"
    s, t = (x.clone() for x in published()["rkd"])
    s[1], s[2] = s[0], 0
    s.requires_grad_()
    grad, = torch.autograd.grad(loss(s, t), s)
    assert grad.isfinite().all() and grad.norm() < 100


def test_features_far_from_the_origin_keep_their_distances():
    "In float32 the squares of the coordinates would swallow those of the distances"
    s, t = published()["rkd"]
    far = rkd_distance((s + 1000).float(), t.float())
    assert far.item() == pytest.approx(rkd_distance(s, t).item(), rel=1e-3)


def test_angles_in_pieces_are_all_angles(monkeypatch):
    g = torch.Generator().manual_seed(1)
    s, t = torch.randn(20, 6, generator=g).double().requires_grad_(), torch.randn(20, 9, generator=g).double()
    whole, = torch.autograd.grad(rkd_angle(s, t), s)
    monkeypatch.setattr("calibkd.distillers.relations._AT_ONCE", 20 * 20 * 3)  # 3 vertices at a time, 2 at last
    pieces, = torch.autograd.grad(rkd_angle(s, t), s)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-15)
    with pytest.raises(ValueError, match="vertices is 0"): rkd_angle(s, t, 0)


def test_the_teacher_is_a_constant_of_rkd_and_its_memory_is_not_kept():
    s, t = (x.clone().requires_grad_() for x in published()["rkd"])
    assert torch.autograd.grad(rkd(s, t), t, allow_unused=True) == (None,)


@pytest.mark.parametrize("call, words", [
    *[(lambda loss=loss: loss(torch.ones(3, 4), torch.ones(2, 4)), ["(3, 4)", "(2, 4)", "same batch"]) for loss in LOSSES.values()],
    *[(lambda loss=loss: loss(torch.ones(1, 4), torch.ones(1, 4)), ["(1, 4)", "two samples"]) for loss in LOSSES.values()],
    *[(lambda loss=loss: loss(torch.ones(3, 4), torch.ones(3, 4).long()), ["torch.int64", "floating"]) for loss in LOSSES.values()],
    (lambda: cc(torch.ones(3, 4), torch.ones(3, 5)), ["(3, 4)", "(3, 5)", "embed"]), (lambda: CC(dims=0), ["dims", "0"]),
    (lambda: RKD(distance=0, angle=0), ["distance", "angle"]), (lambda: rkd(torch.ones(3, 4), torch.ones(3, 4), 0, 0), ["both 0"]),
])
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError) as error: call()
    assert all(w in str(error.value) for w in words) and "\n" not in str(error.value)


DATA, RECIPE = Dataset("digits", train=128), Recipe(epochs=2, batch=64, precision="fp32")
METHODS = [SP(), PKT(), RKD(), CC(), Switch(NLL(), CC(alpha=.1), at=1)]


def student(objective):
    teacher = Run(DATA, "resnet14", recipe=RECIPE) if wants(objective, "teacher") else None
    return Run(DATA, "resnet8", objective, RECIPE, seed=5, teacher=teacher)


def coach(): return network("resnet14", 10, 1, seed=1)


def same(a, b):
    tensors = lambda m: [*m.net.state_dict().values(), *m.state.state_dict().values()]
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@pytest.mark.parametrize("o", METHODS, ids=lambda o: o.name)
def test_alone_in_a_cohort_and_resumed(o, tmp_path, together=[]):
    data, path, run = DATA.load(), tmp_path / "checkpoint.safetensors", student(o)
    if not together: together.extend(fit([student(m) for m in METHODS], data, coach()))
    alone, = fit([run], data, coach())
    asked = Teacher(coach(), RECIPE, device(), features=True)
    half = Member(run, data, device(), teacher=asked)
    with fixed_threads(): one_epoch([half], Batches(data, RECIPE, 5, device(), half.kind), 0, data, asked)
    write_checkpoint(half, path)
    resumed, = fit([run], data, coach(), checkpoints=[path])
    assert same(alone, together[METHODS.index(o)]) and same(alone, resumed) and all(p.isfinite().all() for p in alone.net.parameters())


def test_a_switch_is_each_of_its_objectives_at_its_ends():
    data, other = DATA.load(), KD(T=2.)
    plain, taught, never, at_once, between = fit([student(o) for o in (
        NLL(), other, Switch(NLL(), other, at=2), Switch(NLL(), other), Switch(NLL(), other, at=1))], data, coach())
    assert same(plain, never) and same(taught, at_once) and not same(plain, between) and not same(taught, between)
