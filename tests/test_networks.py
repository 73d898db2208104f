"ResNets and WRNs: sizes, features, folding, names, and networks that somebody else trained."
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from calibkd.networks.core import fold, named, names, network

# weights for 10, 100 and 200 classes: the official implementations, instantiated
COUNTS = {
    "resnet8": (78_042, 83_892, 90_392), "resnet14": (175_258, 181_108, 187_608), "resnet20": (272_474, 278_324, 284_824),
    "resnet32": (466_906, 472_756, 479_256), "resnet44": (661_338, 667_188, 673_688), "resnet56": (855_770, 861_620, 868_120),
    "resnet110": (1_730_714, 1_736_564, 1_743_064), "resnet8x4": (1_210_410, 1_233_540, 1_259_240),
    "resnet32x4": (7_410_730, 7_433_860, 7_459_560),
    "WRN-16-1": (175_066, 180_916, 187_416), "WRN-16-2": (691_674, 703_284, 716_184), "WRN-16-3": (1_549_530, 1_566_900, 1_586_200),
    "WRN-22-1": (272_282, 278_132, 284_632), "WRN-28-1": (369_498, 375_348, 381_848), "WRN-28-2": (1_467_610, 1_479_220, 1_492_120),
    "WRN-28-3": (3_294_042, 3_311_412, 3_330_712), "WRN-28-4": (5_849_050, 5_872_180, 5_897_880),
    "WRN-40-1": (563_930, 569_780, 576_280), "WRN-40-2": (2_243_546, 2_255_156, 2_268_056),
}
PUBLISHED = {"resnet20-A": ("resnet20-12fca82f.th", .810), "resnet56-A": ("resnet56-4bfd9763.th", .832)}  # file, top-1 on the JPEG test set


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    with torch.device("meta"):  # sizes without values
        got = tuple(sum(p.numel() for p in network(name, c).parameters()) for c in (10, 100, 200))
    assert got == COUNTS[name]


SHAPES = {  # at 32x32: stem, maps, pooled
    "resnet8": ((16, 32), [(16, 32), (32, 16), (64, 8)], 64),
    "resnet20-A": ((16, 32), [(16, 32), (32, 16), (64, 8)], 64),
    "resnet8x4": ((32, 32), [(64, 32), (128, 16), (256, 8)], 256),
    "WRN-16-2": ((16, 32), [(32, 32), (64, 16), (128, 8)], 128),
}


@pytest.mark.parametrize("name", SHAPES)
def test_features(name):
    stem, maps, pooled = SHAPES[name]
    net = network(name, 7, seed=0).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits, f = net(x, features=True)
    shape = lambda t: (t.shape[1], t.shape[2])
    assert shape(f["stem"]) == stem and [shape(m) for m in f["maps"]] == maps == [shape(p) for p in f["preact"]]
    assert f["pooled"].shape == (2, pooled) and logits.shape == (2, 7)
    torch.testing.assert_close(net(x), logits, atol=0, rtol=0)
    torch.testing.assert_close(net.linear(f["pooled"]), logits)
    last = f["maps"][-1] if "WRN" not in name else f["preact"][-1].relu()  # a WRN activates after its last stage
    torch.testing.assert_close(last.mean((2, 3)), f["pooled"])


@pytest.mark.parametrize("name", ["resnet8", "resnet8-A", "WRN-10-1"])
def test_every_size_channel_count_and_gradient(name):
    net = network(name, 5, in_channels=1, seed=0)
    for h, w in [(28, 28), (8, 8), (16, 16), (11, 7), (64, 64)]:
        assert net(torch.zeros(2, 1, h, w)).shape == (2, 5)
    F.cross_entropy(net(torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["resnet8", "resnet14-A", "resnet8x4", "WRN-16-2"])
def test_fold_keeps_logits_and_features(name):
    net, g = network(name, seed=0), torch.Generator().manual_seed(1)
    for m in net.modules():  # statistics and affine maps away from the identity
        if isinstance(m, nn.BatchNorm2d):
            for t, low in ((m.running_mean, -.2), (m.running_var, .5), (m.weight.data, .5), (m.bias.data, -.2)):
                t.copy_(torch.rand(t.shape, generator=g) + low)
    x = torch.randn(4, 3, 16, 16, generator=g)
    net.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    folded = fold(net)
    (a, f), (b, h) = net(x, features=True), folded(x, features=True)
    for want, got in [(a, b), (a, folded(x)), (f["pooled"], h["pooled"]), *zip(f["preact"], h["preact"]), *zip(f["maps"], h["maps"])]:
        torch.testing.assert_close(got, want, atol=1e-5 * want.abs().max().item(), rtol=1e-4)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert left == (7 if "WRN" in name else 0)  # pre-activation: the first of each of 6 blocks and the last stay
    assert not any(p.requires_grad for p in folded.parameters()) and not folded.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()) and all(p.requires_grad for p in net.parameters())


def test_fold_of_a_foreign_module_without_features():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    net(torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    folded = fold(net)
    assert net.training and isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(x), net.eval()(x), atol=1e-5, rtol=1e-5)


def test_names_seeds_and_aliases():
    assert {*COUNTS, "resnet20-A", "resnet56-A"} <= set(names())
    a, b = network("wrn-16-1", seed=3).state_dict(), network("WRN-16-1", seed=3).state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert network("resnet26", seed=0)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("name, words", [
    ("resnet21", "6n+2"), ("resnet2", "6n+2"), ("WRN-17-2", "6n+4"), ("WRN-16-0", "width"), ("resnet8x3", "did you mean resnet8x4"),
    ("wrn40-2", "did you mean WRN-40-2"), ("zzz", "known are"),
])
def test_unknown_names_are_refused_with_a_hint(name, words):
    with pytest.raises(ValueError, match="There is no network|does not exist") as error:
        network(name)
    assert words in str(error.value) and name.lower() in str(error.value).lower()


def test_an_example_must_match_its_own_pattern():
    with pytest.raises(ValueError, match="does not match"):
        named(r"foo(\d+)", "bar1")


def test_a_start_with_seed_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    w = network("resnet8", seed=0).layer3[0].conv2.weight
    assert torch.equal(before, torch.get_rng_state())
    assert abs(w.std().item() / (2 / (9 * 64)) ** .5 - 1) < .05  # Kaiming normal, fan out


def published(name):
    "An option-A network with the weights that were published, or a skip."
    root = Path(os.environ.get("CALIBKD_DATA", "/nowhere"))
    path = Path(os.environ.get("CALIBKD_WEIGHTS", root.parent / "weights")) / PUBLISHED[name][0]
    if not path.exists():
        pytest.skip(f"{path} is not there: set CALIBKD_WEIGHTS to the folder of the published CIFAR-10 ResNets")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    net = network(name)
    net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=True)
    return net.eval()


@pytest.fixture(scope="module")
def jpeg_test_images():
    from calibkd.data import Files, _folder_index, decode
    path = Path(os.environ.get("CALIBKD_DATA", "/nowhere")) / "cifar10-jpeg.zip"
    if not path.exists():
        pytest.skip(f"{path} is not there: set CALIBKD_DATA to a folder that holds it")
    files = Files(path)
    test = _folder_index(files).test
    return decode(files, [name for name, _ in test]), torch.tensor([y for _, y in test])


@pytest.mark.parametrize("name, step, within", [("resnet20-A", 2, .01), ("resnet56-A", 8, .025)])  # part of the images, to be quick
def test_published_networks_reach_their_accuracy(name, step, within, jpeg_test_images):
    net, (x, labels) = fold(published(name)).to(memory_format=torch.channels_last), (t[::step] for t in jpeg_test_images)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((.485, .456, .406), (.229, .224, .225)))
    with torch.inference_mode():
        predicted = torch.cat([net((c.float() / 255 - mean) / std).argmax(1) for c in x.split(500)])
    assert (predicted == labels).float().mean().item() == pytest.approx(PUBLISHED[name][1], abs=within)
