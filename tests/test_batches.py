"An epoch's batches: the naive loop's numbers, tokens untouched, one short batch more or less."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from calibkd.augment import VIEWS, views
from calibkd.batches import Batches, as_input, generator
from calibkd.data import Loaded, Split
from calibkd.runs import Recipe

CPU = torch.device("cpu")


def images(n, dtype=torch.uint8):
    x = torch.randint(256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(n)).to(dtype)
    split = Split(x, torch.arange(n) % 3, torch.arange(n))
    return Loaded(split, split, split, [*"abc"], torch.full((3,), .5), torch.full((3,), .25), "none")


class Tokens(Loaded):
    def normalise(self, x): return x


def tokens(n):
    split = Split(torch.arange(5 * n).reshape(n, 5), torch.arange(n) % 3, torch.arange(n))
    return Tokens(split, split, split, [*"abc"], torch.zeros(0), torch.zeros(0), "none")


def naive(data, recipe, seed, epoch):
    "Index and images batch by batch: what was drawn and computed before an epoch was planned"
    draw, v = generator(seed, epoch), views(data.train.x, recipe.augment or data.augment)
    order, size = torch.randperm(len(data.train), generator=draw), recipe.batch
    for rows in order.split(size):
        if 1 == len(rows) < size and len(order) > size: return
        yield rows, data.normalise(v(rows, draw))


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from(list(VIEWS)), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_batches_are_those_of_the_naive_loop(n, size, kind, epoch):
    data, recipe = images(n), Recipe(batch=size, augment=kind)
    batches = Batches(data, recipe, 7, CPU)
    found, wanted = list(batches.epoch(epoch, 9)), list(naive(data, recipe, 7, epoch))
    assert len(found) == len(wanted) == len(batches)
    for b, (rows, x) in zip(found, wanted):
        assert torch.equal(b.index, rows) and torch.equal(b.x, x) and torch.equal(b.labels, data.train.labels[rows])
        assert (b.epoch, b.epochs) == (epoch, 9) and b.x.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_is_sent_once(monkeypatch):
    sent = []
    monkeypatch.setattr("calibkd.batches.send", lambda x, where: sent.append(x.shape) or x)
    batches = Batches(images(20), Recipe(batch=6, augment="crop+flip"), 0, CPU)
    assert len(list(batches.epoch(0, 1))) == 4 and sent == [(6, 20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_stay_tokens(dtype):
    data = tokens(10)
    found = list(Batches(data, Recipe(batch=4), 0, CPU, dtype).epoch(0, 1))
    assert [b.x.shape for b in found] == [(4, 5), (4, 5), (2, 5)] and all(b.x.dtype == torch.int64 for b in found)
    assert all(torch.equal(b.x, data.train.x[b.index]) for b in found)


def test_floats_take_the_type_of_the_weights_whatever_their_shape():
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 4)):
        assert as_input(torch.zeros(shape), torch.float64).dtype == torch.float64
        assert as_input(torch.zeros(shape, dtype=torch.int64), torch.float64).dtype == torch.int64


def test_an_empty_split_and_images_of_tokens_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="training split is empty"): Batches(images(0), Recipe(), 0, CPU)
    with pytest.raises(ValueError, match=r"'crop' are of images.*\(10, 5\) use augment='none'"):
        Batches(tokens(10), Recipe(augment="crop"), 0, CPU)
