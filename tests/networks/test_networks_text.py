"Networks that read tokens."
import pytest
import torch
from torch.nn import functional as F

from calibkd.data import Dataset
from calibkd.networks.core import fold, names, network, penultimate


def net_of(name="RoBERTa-L2-H64", words=50):
    return network(name, 3, in_channels=words, seed=0)


def tokens(n=4, length=12, words=50, seed=0):
    return torch.randint(1, words, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name, layers, width, heads", [("RoBERTa-L1-H32", 1, 32, 1), ("RoBERTa-L3-H96", 3, 96, 1), ("RoBERTa-L4-H128", 4, 128, 2), ("RoBERTa-L1-H7", 1, 7, 1)])
def test_features(name, layers, width, heads):
    net, x = net_of(name), tokens()
    logits, f = net(x, features=True)
    assert [tuple(m.shape) for m in f["maps"]] == [(4, 12, width)] * layers and f["stem"].shape == (4, 12, width) and net.layers[0].heads == heads
    torch.testing.assert_close(f["pooled"] @ penultimate(net).weight.T + penultimate(net).bias, logits)
    assert torch.equal(net(x), logits) and "RoBERTa-L1-H32" in names()


def test_same_seed_same_network_and_every_weight_learns():
    a, b, x = net_of(), net_of(), tokens()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    F.cross_entropy(a.train()(x), torch.arange(4) % 3).backward()
    idle = {n for n, p in a.named_parameters() if not p.grad.abs().sum()}
    assert not idle and (a.words.weight[0] == 0).all()
    assert torch.equal(a(x), b(x))  # no dropout: training mode is evaluation mode


def test_padding_is_not_seen_and_order_is():
    net, x = net_of().eval(), tokens()
    torch.testing.assert_close(net(F.pad(x, (0, 5))), net(x), atol=1e-6, rtol=1e-5)
    mixed = torch.cat([F.pad(x[:2, :7], (0, 5)), x[2:]])
    torch.testing.assert_close(net(mixed)[:2], net(x[:2, :7]), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(net(x.flip(1)), net(x), atol=1e-4)
    torch.testing.assert_close(fold(net)(x), net(x))


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 5), torch.ones(1, 513, dtype=torch.int64)], ids=["images", "floats", "too long"])
def test_what_is_no_sequence_of_tokens_is_refused(x):
    with pytest.raises(ValueError, match="RoBERTa reads tokens"):
        net_of()(x)


def test_it_learns_embedded_sentences():
    data = Dataset("sentences:2", train=600, test=400, val=0).load()
    net, draw = network("RoBERTa-L1-H32", 2, data.channels, seed=0), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(6):
        for index in torch.randperm(600, generator=draw).split(64):
            optimiser.zero_grad()
            F.cross_entropy(net(data.train.x[index]), data.train.labels[index]).backward()
            optimiser.step()
    top1, bayes = ((q.argmax(1) == data.test.labels).double().mean().item() for q in (net(data.test.x), data.test.posterior))
    assert .75 < top1 <= bayes + .01
