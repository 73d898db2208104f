"""Networks against the official code: names of weights, logits and features, in float64.

The numbers come from the official classes, run outside of the project on the weights and images below:
HobbitLong/RepDistiller at b84f547, kuangliu/pytorch-cifar at 49b7aa9, lgcnsai/PS-KD-Pytorch (its `models` folders).
"""
import argparse
import hashlib
import re

import pytest
import torch

from calibkd.building import load_foreign
from calibkd.networks.core import network, renamed
from calibkd.runs import Weights

REPDISTILLER_MOBILE = [(rf"\.{part}\.", f".conv.{i}.") for i, part in enumerate(("conv1", "bn1", "", "conv2", "bn2", "", "conv3", "bn3")) if part]
KUANGLIU_MOBILE = [(rf"^stages\.{i}\.{j}\.", f"layers.{k}.") for k, (i, j) in enumerate((i, j) for i, n in enumerate((1, 2, 3, 4, 3, 3, 1)) for j in range(n))]
FC, SHORTCUT = (r"^linear\.", "fc."), (r"shortcut\.", "shortcut.0.")
NAMES = {  # ours -> theirs, in the order of application
    "resnet8": [FC, ("shortcut", "downsample")], "resnet8x4": [FC, ("shortcut", "downsample")],
    "WRN-16-2": [FC, (r"^layer(\d)\.", r"block\1.layer."), ("shortcut", "convShortcut"), (r"^bn\.", "bn1.")],
    "VGG8": [(r"^linear", "classifier")], "VGG13": [(r"^linear", "classifier")],
    "MobileNetV2-0.5": [*REPDISTILLER_MOBILE, (r"^conv(\d)\.", r"conv\1.0."), (r"^bn(\d)\.", r"conv\1.1."), ("^stages", "blocks"), ("^linear", "classifier.0")],
    "ShuffleNetV1": [], "ShuffleNetV2": [], "ResNet18": [], "ResNet50": [],
    "MobileNetV2-KUA": KUANGLIU_MOBILE, "PreActResNet18": [SHORTCUT], "PreActResNet50": [SHORTCUT],
    "DenseNet-121-KUA": [(rf"^{ours}\.{i}\.", f"{theirs}{i + 1}.") for i in range(4) for ours, theirs in (("blocks", "dense"), ("transitions", "trans"))],
    "PreActResNet18-PSKD": [SHORTCUT],
}


def seeded(net):
    "The network in float64, every weight and statistic drawn from one generator in the order of the state dict"
    g, net = torch.Generator().manual_seed(0), net.double().eval()
    for t in net.state_dict().values():
        if not t.is_floating_point(): continue
        drawn = torch.rand(t.shape, generator=g, dtype=torch.float64)
        t.copy_(.5 + drawn if t.ndim == 1 else (drawn - .5) * (6 / t[0].numel()) ** .5)
    return net


def images(): return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def theirs(name, key):
    "The official name of a weight"
    for pattern, official in NAMES[name]: key = re.sub(pattern, official, key)
    return key


def digest(state):
    "Of the names and shapes of weights"
    return hashlib.sha256(repr(sorted((k, tuple(t.shape)) for k, t in state.items())).encode()).hexdigest()[:12]


def probe(t):
    "One number that every entry of a tensor has a part in, by its place"
    return (t.flatten() * torch.arange(t.numel(), dtype=torch.float64).cos()).sum().item() / t.abs().sum().item()


OFFICIAL = {  # digest of the official weights; three logits; probes of f0, f1 … f_pool, and of the pre-activations, where the code shows them
    "resnet8": ("49bf11829281", [1.2390326, 0.43723958, 1.0421222], [0.0054208705, 0.0041817801, 0.0001117548, 0.00076367092, 0.34165264], [0.0028108522, 0.0013089148, 0.00047137447]),
    "resnet8x4": ("44bcfdf0fc9e", [1.0938711, 2.1657375, 1.1436294], [-0.00021422595, -1.8982918e-05, -5.3352253e-06, 0.00012913973, -0.027982852], [-1.8980235e-05, -4.6498289e-05, 0.00031593099]),
    "WRN-16-2": ("75295c3d48b3", [1.0936616, 1.2593311, 0.8181311], [-0.0011759212, -0.0014742081, -0.00045848446, 0.0012141561, 0.017163351], [-0.0011786922, -0.0004311919, 0.0003551954]),
    "VGG8": ("434c880714bf", [1.7589878, 1.0952498, 1.0103298], [0.00019334938, -0.0005121926, 2.9214849e-05, -0.00029576395, -0.0019294769, -0.00052905903], [-0.00026534283, 0.00019911593, 0.00029099023, -0.0031370145]),
    "VGG13": ("8a864697c21d", [1.3429789, 0.30630616, 2.1589874], [-0.00012512198, 0.00041054387, 0.00035273607, 0.0032635003, 0.0011773666, 0.00088906837], [0.0003501073, 0.00036848972, 0.0030494388, 0.0005622208]),
    "MobileNetV2-0.5": ("02fe29e2761f", [2.0005422, 0.80286347, 1.2628796], [-0.011347603, -0.0019193115, -0.0092145942, 0.023886273, 0.044174825, 0.015034106], [-0.0019193115, -0.0092145942, 0.023886273, 0.044174825]),
    "ShuffleNetV1": ("2a4e478e426a", [1.393247, 2.1975518, 0.15736585], [-0.0053258312, 2.1148352e-05, -0.00030124724, -0.00069939478, -0.023744527], [2.4626153e-05, -0.00037182192, -0.00057966139]),
    "ShuffleNetV2": ("cac8e118a7e2", [1.2736477, 1.6338542, 0.99266091], [-0.0053258312, 0.00057342925, -0.0015913636, -0.0023290966, -0.038959684], [-0.00029388714, -0.00064775761, 5.0603644e-05]),
    "ResNet18": ("36de6985df38", [1.2252862, 0.8475753, 1.5024134], [0.0012107532, -0.00094571633, -0.00061825321, -0.0006644629, 0.0028908415, -0.0005983289], [-0.00082574394, -0.00026516549, -0.0004259642, 7.608705e-05]),
    "ResNet50": ("b481f91535b8", [0.76774017, 1.3529741, 0.36585882], [0.0012107532, 0.0007606829, -0.00017031655, 0.0001505116, -0.0047593876, 0.0026147646], [0.00062516624, -0.00017541658, 0.00017883508, -0.0034286503]),
    "MobileNetV2-KUA": ("ca8b5f843673", [1.2783925, 1.218457, 1.5745573], [], []),
    "PreActResNet18": ("15265ae1e4e3", [0.74888777, 0.42981106, 1.03624], [], []),
    "PreActResNet50": ("17341ed401b1", [0.45510893, 0.50103108, 1.822776], [], []),
    "DenseNet-121-KUA": ("daad8a1eff0d", [1.3461341, 0.45230189, 0.6286168], [], []),
    "PreActResNet18-PSKD": ("79d8a5f4fc84", [0.36327318, 0.85974213, 0.8607572], [], []),
}
AT_64 = {"VGG8": [1.835138127, 1.216567418, 1.004756034], "VGG13": [1.341978798, .259459843, 2.198607665], "ResNet18": [1.250769856, .885423944, 1.581045952]}


@pytest.mark.parametrize("name", OFFICIAL)
def test_logits_and_features_are_the_official_ones(name):
    _, logits, features, preact = OFFICIAL[name]
    with torch.no_grad(): y, f = seeded(network(name, 7))(images(), features=True)
    assert y[0, :3].tolist() == pytest.approx(logits, abs=1e-6)
    if features: assert [probe(t) for t in (f["stem"], *f["maps"], f["pooled"])] == pytest.approx(features, abs=1e-8)
    if preact: assert [probe(t) for t in f["preact"]] == pytest.approx(preact, abs=1e-8)


@pytest.mark.parametrize("name", AT_64)
def test_images_of_64_pixels(name):
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad(): y = seeded(network(name, 7))(x)
    assert y[0, :3].tolist() == pytest.approx(AT_64[name], abs=1e-6)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names_are_understood(name):
    with torch.device("meta"): net = network(name, 7)
    own = net.state_dict()
    official = {theirs(name, k): t for k, t in own.items()}
    assert digest(official) == OFFICIAL[name][0]
    assert {k: id(t) for k, t in renamed(net, official).items()} == {k: id(t) for k, t in own.items()}
    assert renamed(net, own) == own


@pytest.mark.parametrize("name, key, prefix", [("WRN-16-2", "model", ""), ("MobileNetV2-KUA", "net", "module."), ("ShuffleNetV1", "model", "")])
def test_their_checkpoints_load(name, key, prefix, tmp_path):
    "As RepDistiller's train_teacher.py and kuangliu's main.py save them"
    trained, net = network(name, 7, seed=1), network(name, 7, seed=0)
    state = {prefix + theirs(name, k): t for k, t in trained.state_dict().items()}
    more = {"opt": argparse.Namespace(lr=.05)} if key == "model" else {"acc": 95.1, "epoch": 3}
    torch.save({key: state, **more}, tmp_path / "last.pth")
    load_foreign(net, Weights(str(tmp_path / "last.pth"), key))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), trained.state_dict().values()))


def test_a_checkpoint_of_another_order_is_another_network():
    one, other = (seeded(network(name, 7)).eval() for name in ("DenseNet-121", "DenseNet-121-KUA"))
    with torch.no_grad(): assert (one(images()) - other(images())).abs().max() > .01
