"Networks: sizes, features, folding, names, networks that somebody else trained, and networks from elsewhere."
import copy
import os
import pickle
import threading
from collections import OrderedDict, namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from calibkd.networks.core import EXAMPLES, constructor, fold, named, names, network, penultimate
from calibkd.networks.foreign import Foreign, adopt, fingerprint

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
    "MobileNetV2-0.5": (697_546, 812_836, 940_936), "MobileNetV2-1.0": (2_237_770, 2_353_060, 2_481_160),
    "MobileNetV2-TFKD": (2_254_090, 2_369_380), "MobileNetV2-KUA": (2_296_922, 2_412_212),
    "ResNeXt-18x4": (25_466_698, 25_651_108), "ResNeXt-18x4-cifar": (25_459_018, 25_643_428), "ResNeXt-29-8x64": (None, 34_518_948),
    "DenseNet-121": (6_956_298, 7_048_548, 7_151_048), "DenseNet-121-KUA": (6_956_298, 7_048_548, 7_151_048), "ConvNet2": (13_082, 215_172),
    "VGG8": (3_918_858, 3_965_028, 4_016_328), "VGG11": (9_231_114, 9_277_284, 9_328_584), "VGG13": (9_416_010, 9_462_180, 9_513_480),
    "ShuffleNetV1": (862_768, 949_258, 1_045_358), "ShuffleNetV2": (1_263_278, 1_355_528, 1_458_028),
    "ResNet18": (11_173_962, 11_220_132, 11_271_432), "ResNet34": (21_282_122, 21_328_292, 21_379_592),
    "ResNet50": (23_520_842, 23_705_252, 23_910_152), "ResNet101": (42_512_970, 42_697_380, 42_902_280),
    "PreActResNet18": (11_171_146, 11_217_316, 11_268_616), "PreActResNet50": (23_509_066, 23_693_476, 23_898_376),
    "PreActResNet101": (42_501_194, 42_685_604, 42_890_504),
    "PreActResNet18-PSKD": (11_171_274, 11_217_444, 11_268_744), "PreActResNet101-PSKD": (42_512_970, 42_697_380, 42_902_280),
}
PUBLISHED = {"resnet20-A": ("resnet20-12fca82f.th", .810), "resnet56-A": ("resnet56-4bfd9763.th", .832)}  # file, top-1 on the JPEG test set


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    with torch.device("meta"):  # sizes without values
        for classes, count in zip((10, 100, 200), COUNTS[name]):
            assert count in (None, sum(p.numel() for p in network(name, classes).parameters()))


SHAPES = {  # at 32x32: stem, maps, pooled
    "resnet8": ((16, 32), [(16, 32), (32, 16), (64, 8)], 64),
    "resnet20-A": ((16, 32), [(16, 32), (32, 16), (64, 8)], 64),
    "resnet8x4": ((32, 32), [(64, 32), (128, 16), (256, 8)], 256),
    "WRN-16-2": ((16, 32), [(32, 32), (64, 16), (128, 8)], 128),
    "MobileNetV2-0.5": ((16, 16), [(12, 16), (16, 8), (48, 4), (160, 2)], 1280),
    "MobileNetV2-1.0": ((32, 16), [(24, 16), (32, 8), (96, 4), (320, 2)], 1280),
    "MobileNetV2-TFKD": ((32, 34), [(24, 17), (32, 9), (96, 5), (320, 5)], 1280),
    "MobileNetV2-KUA": ((32, 32), [(24, 32), (32, 16), (96, 8), (320, 4)], 1280),
    "ResNeXt-18x4": ((64, 8), [(256, 8), (512, 4), (1024, 2), (2048, 1)], 2048),
    "ResNeXt-18x4-cifar": ((64, 32), [(256, 32), (512, 16), (1024, 8), (2048, 4)], 2048),
    "ResNeXt-29-8x64": ((64, 32), [(256, 32), (512, 16), (1024, 8)], 1024),
    "DenseNet-121": ((64, 32), [(256, 32), (512, 16), (1024, 8), (1024, 4)], 1024),
    "ConvNet2": ((16, 32), [(16, 32), (16, 16)], 1024),
    "VGG8": ((64, 32), [(128, 16), (256, 8), (512, 4), (512, 4)], 512),
    "ShuffleNetV1": ((24, 32), [(240, 16), (480, 8), (960, 4)], 960),
    "ShuffleNetV2": ((24, 32), [(116, 16), (232, 8), (464, 4)], 1024),
    "ResNet18": ((64, 32), [(64, 32), (128, 16), (256, 8), (512, 4)], 512),
    "ResNet50": ((64, 32), [(256, 32), (512, 16), (1024, 8), (2048, 4)], 2048),
    "PreActResNet18": ((64, 32), [(64, 32), (128, 16), (256, 8), (512, 4)], 512),
    "PreActResNet50": ((64, 32), [(256, 32), (512, 16), (1024, 8), (2048, 4)], 2048),
    "PreActResNet18-PSKD": ((64, 32), [(64, 32), (128, 16), (256, 8), (512, 4)], 512),
}
# how a network whose last map is not averaged as it is comes from it to its pooled vector
LAST = {"WRN": lambda net, f: f["preact"][-1].relu().mean((2, 3)), "DenseNet": lambda net, f: f["preact"][-1].relu().mean((2, 3)),
        "MobileNetV2": lambda net, f: net.act(net.bn2(net.conv2(f["maps"][-1]))).mean((2, 3)),
        "ShuffleNetV2": lambda net, f: net.bn2(net.conv2(f["maps"][-1])).relu().mean((2, 3)),
        "ConvNet2": lambda net, f: F.max_pool2d(f["maps"][-1], 2).flatten(1)}
FIRST = [e[0] for e in EXAMPLES.values() if e and not e[0].startswith("RoBERTa")] if names() else []  # one of every family of images, new ones too


def shifted(net, g):
    "The network with BatchNorm statistics and affine maps away from the identity."
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low in ((m.running_mean, -.2), (m.running_var, .5), (m.weight.data, .5), (m.bias.data, -.2)):
                t.copy_(torch.rand(t.shape, generator=g) + low)
    return net.eval()


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
    last = next((to_pooled for start, to_pooled in LAST.items() if name.startswith(start)), lambda net, f: f["maps"][-1].mean((2, 3)))
    torch.testing.assert_close(last(net, f), f["pooled"], atol=1e-5, rtol=1e-5)
    assert penultimate(net).weight.shape == (7, pooled)


@pytest.mark.parametrize("name", [*FIRST, "resnet8-A"])
def test_every_size_channel_count_and_gradient(name):
    channels = 3 if name.startswith("torchvision") else 1
    net = network(name, 5, in_channels=channels, seed=0).eval()
    with torch.no_grad():
        for h, w in [(28, 28), (8, 8), (11, 9), (64, 64)]:
            assert net(torch.zeros(2, channels, h, w)).shape == (2, 5)
    x = torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    logits, f = net.train()(x, features=True)
    F.cross_entropy(logits, torch.arange(2)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert f.keys() == {"stem", "maps", "preact", "pooled"} and len(f["maps"]) == len(f["preact"]) > 0


@pytest.mark.parametrize("name", [*FIRST, "resnet14-A", "resnet8x4", "WRN-16-2", "ResNeXt-18x4-cifar"])
def test_fold_keeps_logits_and_features(name):
    g = torch.Generator().manual_seed(1)
    net, x = shifted(network(name, seed=0), g), torch.randn(4, 3, 16, 16, generator=g)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    folded = fold(net)
    (a, f), (b, h) = net(x, features=True), folded(x, features=True)
    for want, got in [(a, net(x)), (a, b), (a, folded(x)), (f["pooled"], h["pooled"]), *zip(f["preact"], h["preact"]), *zip(f["maps"], h["maps"])]:
        torch.testing.assert_close(got, want, atol=1e-5 * want.abs().max().item(), rtol=1e-4)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    stay = {"WRN-16-1": 7, "WRN-16-2": 7, "DenseNet-121": 58 + 3 + 1,
            "PreActResNet18": 8, "PreActResNet18-PSKD": 8}  # pre-activation: where a BatchNorm reads a sum or a concatenation
    assert left == stay.get(name, 0)
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
    assert {*COUNTS, "resnet20-A", "resnet56-A", "torchvision:resnet18"} <= set(names())
    a, b = network("wrn-16-1", seed=3).state_dict(), network("WRN-16-1", seed=3).state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert network("resnet26", seed=0)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("name, words", [
    ("resnet21", "6n+2"), ("resnet2", "6n+2"), ("WRN-17-2", "6n+4"), ("WRN-16-0", "width"), ("resnet8x3", "did you mean resnet8x4"),
    ("wrn40-2", "did you mean WRN-40-2"), ("zzz", "known are"), ("MobileNetV2", "'MobileNetV2-TFKD' (KD(C)'s)"),
    ("mobilenetv2", "MobileNetV2-0.5"), ("MobileNetV2-0.75", "did you mean MobileNetV2-0.5"), ("ResNeXt-30-8x64", "9n+2"),
    ("ResNeXt-29-0x64", "at least 1"), ("ResNeXt-18", "did you mean ResNeXt-18x4"), ("DenseNet121", "did you mean DenseNet-121"),
    ("RESNET50", "did you mean torchvision:resnet50 (ImageNet's) or resnet50 (CIFAR's, of depth 6n+2) or ResNet50 (of four stages"),
    ("RESNET110", "did you mean resnet110 (CIFAR's"), ("Resnet18", "did you mean torchvision:resnet18 (ImageNet's) or ResNet18 (of four stages"),
    ("ResNet56", "did you mean resnet56 (CIFAR's"), ("resnet18", "ResNet18"), ("ResNet51", "There is no network"), ("VGG12", "did you mean VGG"),
    ("torchvision:resnet19", "did you mean"), ("convnet3", "did you mean ConvNet2"),
])
def test_unknown_names_are_refused_with_a_hint(name, words):
    with pytest.raises(ValueError, match="There is no network|does not exist|has no classifier") as error:
        network(name)
    assert words in str(error.value) and name.lower().removeprefix("torchvision:") in str(error.value).lower()


def test_capitals_tell_networks_apart():
    with torch.device("meta"):
        assert constructor("ResNet50") is not constructor("resnet50") and constructor("wrn-40-2") is constructor("WRN-40-2")
        assert [sum(p.numel() for p in network(name).parameters()) for name in ("ResNet50", "resnet50")] == [23_520_842, 758_554]
        assert constructor("vgg8") is constructor("VGG8-BN") and constructor("shufflev1") is constructor("ShuffleNetV1")


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
    from calibkd.data.folders import Files, _folder_index, decode
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


def test_the_variants_of_a_name_differ():
    nets = {name: network(name, seed=0).eval() for name in ("MobileNetV2-1.0", "MobileNetV2-TFKD", "MobileNetV2-KUA", "mobilenetv2-tfkd")}
    assert {name: net.precision for name, net in nets.items()} == dict.fromkeys(nets, "fp32")
    assert [isinstance(net.act, nn.ReLU6) for net in nets.values()] == [False, True, False, True]
    prints = [fingerprint(net) for net in nets.values()]
    assert len(set(prints)) == 3 and prints[1] == prints[3]


def test_convnet2_at_32_pools_nothing():
    net, x = network("ConvNet2", 10, seed=0).eval(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = nn.Sequential(net.conv1, net.bn1, nn.ReLU(), nn.MaxPool2d(2), net.conv2, net.bn2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), net.linear)
    torch.testing.assert_close(net(x), plain(x), atol=0, rtol=0)


def test_densenet_agrees_with_torchvisions():
    "The same layers in the same order, once torchvision's stem is made ours"
    g, pick = torch.Generator().manual_seed(0), lambda net: [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    net, theirs = shifted(network("DenseNet-121", 7, seed=0), g), torchvision.models.densenet121(num_classes=7).eval()
    theirs.features.conv0 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.features.norm0 = theirs.features.relu0 = theirs.features.pool0 = nn.Identity()
    ours = pick(net.conv1)
    for block, transition in zip(net.blocks, [*net.transitions, net.bn]):
        ours += pick(block) + pick(transition)
    for a, b in zip([*ours, net.linear], pick(theirs), strict=True):
        b.load_state_dict(a.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=g)
    torch.testing.assert_close(net(x), theirs(x), atol=1e-4, rtol=1e-4)


class TimmStyle(nn.Module):
    "The interface of timm's models, with a squeeze-and-excitation whose linear layers are registered after the classifier"

    def __init__(self, num_classes=6, num_features=8):
        super().__init__()
        self.num_features, self.num_classes = num_features, num_classes
        self.conv_stem, self.bn1 = nn.Conv2d(3, num_features, 3, 2, 1, bias=False), nn.BatchNorm2d(num_features)
        self.act1, self.classy = nn.ReLU(inplace=True), nn.Linear(num_features, num_classes)
        self.se = nn.ModuleDict({"fc": nn.Linear(num_features, num_features)})

    def get_classifier(self):
        return self.classy

    def forward_features(self, x):
        x = self.act1(self.bn1(self.conv_stem(x)))
        return x * self.se["fc"](x.mean((2, 3))).sigmoid()[:, :, None, None]

    def forward_head(self, x, pre_logits=False):
        x = x.mean((2, 3))
        return x if pre_logits else self.classy(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.fixture
def images():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_adopt_a_timm_style_network(images):
    torch.manual_seed(0)
    raw = TimmStyle().eval()
    net = adopt(raw, maps=("bn1", "act1"), stem="conv_stem")
    logits, f = net(images, features=True)
    torch.testing.assert_close(logits, raw(images), atol=0, rtol=0)
    torch.testing.assert_close(net(images), logits, atol=0, rtol=0)
    torch.testing.assert_close(f["pooled"], raw.forward_head(raw.forward_features(images), pre_logits=True))
    torch.testing.assert_close(f["stem"], raw.conv_stem(images))
    torch.testing.assert_close(f["maps"][0], raw.bn1(raw.conv_stem(images)))  # though the ReLU behind it works in place
    torch.testing.assert_close(f["maps"][1], f["maps"][0].relu())
    assert penultimate(net) is raw.classy and net.precision == "bf16" and f["preact"] == f["maps"] and hooks(net) == 0
    assert adopt(net) is net and adopt(own := network("resnet8")) is own


def test_a_classifier_of_ones_own_kind(images):
    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return F.normalize(x) @ F.normalize(self.weight).T
    raw = TimmStyle().eval()
    raw.classy = raw.own = Cosine()
    for net in (adopt(raw), adopt(raw, classifier="own")):
        logits, f = net(images, features=True)
        assert penultimate(net) is raw.own and f["pooled"].shape == (4, 8)
        torch.testing.assert_close(raw.own(f["pooled"]), logits)


def test_gradients_flow_through_features(images):
    net = adopt(TimmStyle(), maps="act1")
    logits, f = net(images, features=True)
    (f["maps"][0].square().mean() + f["pooled"].sum()).backward()
    assert net.net.conv_stem.weight.grad.abs().sum() > 0 and net.net.classy.weight.grad is None


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1", "vit_b_16", "convnext_tiny", "mobilenet_v3_small"])
def test_the_classifier_of_torchvisions_networks(name):
    with torch.device("meta"):  # structure without values
        net = torchvision.models.get_model(name, num_classes=7)
    layer = penultimate(net)
    assert layer.weight.shape[0] == 7 and layer.bias.shape == (7,)


def test_pooled_of_a_pointwise_classifier_is_the_mean_of_its_map(images):
    net = adopt(torchvision.models.squeezenet1_1(num_classes=7)).eval()
    x = F.interpolate(images, size=64)
    logits, f = net(x, features=True)
    torch.testing.assert_close(f["pooled"], net.net.features(x).mean((2, 3)))
    assert penultimate(net).weight.shape == (7, 512) and f["pooled"].shape == (4, 512) and logits.shape == (4, 7)


@pytest.mark.parametrize("answer", [lambda y: (y, y + 1), lambda y: {"logits": y}, lambda y: SimpleNamespace(logits=y, hidden_states=None),
                                    lambda y: OrderedDict(loss=y.sum(), logits=y), lambda y: namedtuple("Out", "aux logits")(y + 1, y)])
def test_answers_that_are_not_a_tensor(answer, images):
    class Answering(TimmStyle):
        def forward(self, x):
            return answer(super().forward(x))
    raw = Answering().eval()
    want, net = TimmStyle.forward(raw, images), adopt(raw)
    for got in (net(images), net(images, features=True)[0], fold(net)(images)):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_auxiliary_logits_of_googlenet_are_left_out(images):
    raw = torchvision.models.googlenet(weights=None, num_classes=5, aux_logits=True, init_weights=False)
    assert len(raw(F.interpolate(images[:2], size=64))) == 3 and adopt(raw)(F.interpolate(images[:2], size=64)).shape == (2, 5)
    logits, f = adopt(raw)(F.interpolate(images[:2], size=64), features=True)
    assert f["pooled"].shape == (2, 1024) and penultimate(raw) is raw.fc


@pytest.mark.parametrize("broken, words", [
    (nn.Sequential(nn.Conv2d(3, 4, 1)), "answered with a tensor of shape (4, 4, 16, 16)"),
    (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "has no linear layer"),
    (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, 4), nn.AdaptiveAvgPool1d(2)), "4 outputs for 2 logits"),
])
def test_what_cannot_be_adopted_is_said_in_a_sentence(broken, words, images):
    with pytest.raises(ValueError) as error:
        adopt(broken)(images, features=True)
    assert words in str(error.value) and hooks(broken) == 0


def test_wrong_parts_are_refused(images):
    raw = TimmStyle().eval()
    raw.unused, raw.rows = nn.ReLU(), nn.Linear(2, 3)
    for wrong, words in [(dict(maps=("bn2",)), "did you mean bn1"), (dict(classifier="fc"), "se.fc"), (dict(classifier="act1"), "no weight"), (dict(precision="int8"), "'int8'")]:
        with pytest.raises(ValueError, match=words):
            adopt(raw, **wrong)
    for wrong, words in [(dict(maps=("unused",)), "'unused' of TimmStyle took no part"), (dict(classifier="rows"), "took no part"),
                         (dict(classifier="se.fc"), "8 outputs for 6 logits")]:
        with pytest.raises(ValueError, match=words):
            adopt(raw, **wrong)(images, features=True)
    with pytest.raises(ValueError, match="must be a torch.nn.Module, got a function"):
        adopt(hooks)


def test_hooks_go_when_the_network_raises(images):
    net = adopt(TimmStyle(), maps=("bn1", "act1"))
    with pytest.raises(RuntimeError):
        net(images[:, :2], features=True)
    assert hooks(net) == 0


def test_threads_see_their_own_features(images):
    net, seen = adopt(TimmStyle().eval(), maps=("act1",)), {}
    want = {i: TimmStyle.forward_features(net.net, images + i).mean((2, 3)) for i in range(4)}

    def ask(i):
        with torch.no_grad():
            seen[i] = [net(images + i, features=True)[1]["pooled"] for _ in range(30)]
    workers = [threading.Thread(target=ask, args=(i,)) for i in want]
    [w.start() for w in workers], [w.join() for w in workers]
    assert hooks(net) == 0 and all(torch.equal(got, want[i]) or torch.allclose(got, want[i]) for i in want for got in seen[i])
    assert all(len(s) == 30 for s in seen.values())


def test_an_adopted_network_is_copied_and_pickled(images):
    net = adopt(TimmStyle().eval(), maps=("act1",), precision="fp32")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.precision == "fp32" and fingerprint(other) == fingerprint(net) and other.net is not net.net
        torch.testing.assert_close(other(images, features=True), net(images, features=True))
        assert penultimate(other) is other.net.classy


class Around(nn.Module):
    "Renormalises, as training does for published weights"

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, features=False):
        return self.net(x * 2 + 1, features=features)


@pytest.mark.parametrize("maps", [("layer1", "layer4"), ("layer1.0.bn1",), ("layer1.0.conv1",), ()])
@pytest.mark.parametrize("wrap", [Around, lambda net: net])
def test_fold_of_an_adopted_network(maps, wrap, images):
    raw = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    net = wrap(adopt(shifted(raw, torch.Generator().manual_seed(0)), maps))
    folded = fold(net)
    (a, f), (b, h) = net(images, features=True), folded(images, features=True)
    for want, got in [(a, b), (a, folded(images)), (f["pooled"], h["pooled"]), *zip(f["maps"], h["maps"])]:
        torch.testing.assert_close(got, want, atol=1e-5 * want.abs().max().item(), rtol=1e-4)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == ("layer1.0.conv1" in maps)


def test_torchvision_by_name(images):
    before = torch.get_rng_state()
    net, same = (network(name, 7, seed=1) for name in ("torchvision:resnet18", "Torchvision:ResNet18"))
    assert torch.equal(before, torch.get_rng_state()) and fingerprint(net) == fingerprint(same) != fingerprint(network("torchvision:resnet18", 7, seed=2))
    logits, f = net.eval()(images, features=True)
    assert isinstance(net, Foreign) and [m.shape[1] for m in f["maps"]] == [64, 128, 256, 512] and f["pooled"].shape == (4, 512)
    torch.testing.assert_close(penultimate(net)(f["pooled"]), logits)
    assert network("torchvision:mobilenet_v2", 3, seed=0).precision == "fp32" and net.precision == "bf16"
    with pytest.raises(ValueError, match="takes images of 3 channels, and these have 1"):
        network("torchvision:resnet18", in_channels=1)
    with pytest.raises(ValueError, match="did you mean .*resnet1"):
        network("torchvision:resnet17")


def test_fingerprint():
    net = network("resnet8", seed=0)
    first = fingerprint(net)
    assert first == fingerprint(copy.deepcopy(net).train()) == fingerprint(network("resnet8", seed=0)) and len(first) == 16 and int(first, 16) >= 0
    for change in (lambda n: n.linear.bias.data[0].add_(1e-7), lambda n: n.bn1.running_mean[3].add_(1e-7), lambda n: n.bn1.num_batches_tracked.add_(1),
                   lambda n: n.double(), lambda n: setattr(n, "more", nn.ReLU())):
        change(other := copy.deepcopy(net))
        assert fingerprint(other) != first
    assert fingerprint(adopt(TimmStyle(), "act1")) != fingerprint(adopt(TimmStyle(), "act1"))  # two random starts
    raw = TimmStyle()
    assert fingerprint(adopt(raw, "act1")) != fingerprint(adopt(raw, "bn1"))  # other features, other students


def test_fingerprint_of_every_kind_of_tensor():
    net = nn.Module()
    for i, t in enumerate((torch.tensor(1.), torch.zeros(0, 3), torch.ones(2, dtype=torch.bool), torch.ones(3, dtype=torch.bfloat16),
                           torch.ones(2, dtype=torch.complex64), torch.arange(6).reshape(2, 3).T)):
        net.register_buffer(f"t{i}", t, persistent=i % 2 == 0)
    assert fingerprint(net) == fingerprint(copy.deepcopy(net))
    first, net.t3[1] = fingerprint(net), 2
    assert fingerprint(net) != first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fingerprint_is_the_same_on_every_device():
    net = network("resnet8", seed=0)
    assert fingerprint(net) == fingerprint(copy.deepcopy(net).cuda())
