"Threads, full precision, and networks that are asked about anything."
import pytest
import torch
from torch import nn

from calibkd.data import Loaded, Split
from calibkd.inference import EXACT, Teacher, ask, feature_shapes, fixed_threads, logits_of, threads
from calibkd.places import device, send
from calibkd.runs import Recipe

CPU, FP32 = torch.device("cpu"), Recipe(precision="fp32")


def flags(): return [getattr(owner, name) for owner, name, _ in EXACT]


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_no_float32_product_is_shortened_inside_and_all_is_as_before_outside(precision):
    ops = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    kept = [op.fp32_precision for op in ops]
    try:
        for op in ops: op.fp32_precision = precision
        before = flags()
        with pytest.raises(ZeroDivisionError), fixed_threads():
            with fixed_threads(): assert flags() == [wanted for *_, wanted in EXACT]
            assert flags() == [wanted for *_, wanted in EXACT]
            1 / 0
        assert flags() == before and [op.fp32_precision for op in ops] == [precision] * 2
    finally:
        for op, old in zip(ops, kept): op.fp32_precision = old


def test_exactness_survives_older_ways_of_asking_for_tf32():
    old = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with fixed_threads(): assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    finally: torch.set_float32_matmul_precision(old)


def test_threads_are_those_asked_for_and_given_back(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("CALIBKD_THREADS", "2")
    with fixed_threads(): assert torch.get_num_threads() == threads() == 2
    assert torch.get_num_threads() == before
    for unset in ("", None):
        monkeypatch.setenv("CALIBKD_THREADS", unset) if unset is not None else monkeypatch.delenv("CALIBKD_THREADS")
        assert threads() == 1


@pytest.mark.parametrize("given", ["two", "0", "-1", "1.5", "²"])
def test_a_wrong_number_of_threads_is_one_sentence(monkeypatch, given):
    monkeypatch.setenv("CALIBKD_THREADS", given)
    before = torch.get_num_threads(), flags()
    with pytest.raises(ValueError, match=f"CALIBKD_THREADS={given} is no number of threads; use a whole number"):
        with fixed_threads(): pass
    assert (torch.get_num_threads(), flags()) == before


@pytest.mark.parametrize("given, why", [
    ("typo", "no device that PyTorch knows"), ("cuda:x", "no device that PyTorch knows"),
    ("cuda:99", "PyTorch sees [0-9]+ GPUs")])
def test_a_wrong_device_is_one_sentence(monkeypatch, given, why):
    monkeypatch.setenv("CALIBKD_DEVICE", given)
    with pytest.raises(ValueError, match=f"CALIBKD_DEVICE={given}.*{why}"): device()


def test_the_device_asked_for_is_taken(monkeypatch):
    monkeypatch.setenv("CALIBKD_DEVICE", "cpu")
    x = torch.arange(3)
    assert device() == CPU and send(x, CPU) is x


class Bag(nn.Module):
    "The mean of embeddings, and a BatchNorm that nothing can be folded into"
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.linear = nn.Embedding(20, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x, features=False):
        words = self.embed(x)
        pooled = self.norm(words.mean(1))
        logits = self.linear(pooled)
        return (logits, {"maps": [words], "pooled": pooled}) if features else logits


class Tokens(Loaded):
    def normalise(self, x): return x


SPLIT = Split(torch.arange(35).reshape(7, 5) % 20, torch.arange(7) % 3, torch.arange(7))
EMPTY = Split(SPLIT.x[:0], SPLIT.labels[:0], SPLIT.index[:0])
TEXT = Tokens(SPLIT, EMPTY, SPLIT, [*"abc"], torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_is_asked_about_tokens(dtype):
    net = Bag().to(dtype).eval()
    logits, labels = logits_of(net, TEXT, TEXT.test, batch=3)
    assert logits.dtype == dtype and torch.equal(labels, SPLIT.labels)
    torch.testing.assert_close(logits, net(SPLIT.x).detach())
    assert logits_of(net, TEXT, TEXT.val)[0].shape == (0, 3)
    assert feature_shapes(net, SPLIT.x) == {"maps": [(5, 6)], "pooled": (6,)}


def test_a_teacher_answers_about_tokens_once_a_batch():
    net = Bag()
    taught = Teacher(net, FP32, CPU, features=True)
    out = taught(SPLIT.x)
    torch.testing.assert_close(out.logits, net(SPLIT.x).detach())
    assert taught(SPLIT.x) is out and not taught.net.training


class Show(nn.Module):
    "A convolution that shows its map"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x, features):
        maps = self.conv(x)
        return maps.mean((2, 3)), {"maps": [maps], "pooled": maps.mean((2, 3))}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_a_network_says_is_float32_or_float64(dtype):
    kept = torch.promote_types(dtype, torch.float32)
    out = ask(Show().to(kept), torch.zeros(2, 3, 4, 4, dtype=kept), dtype, features=True)
    assert out.logits.dtype == out.features["pooled"].dtype == out.features["maps"][0].dtype == kept
