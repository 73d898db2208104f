"""What a GPU is tried with: `python rehearsal.py [scene …]` prints what happened in each scene, as JSON.

A scene returns what it found; `same` tells whether the GPU's numbers are the CPU's: bit for bit on the pretended GPU,
as far as float64 goes on a real one (`--real`).
"""
import copy
import importlib
import inspect
import json
import os
import pkgutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import calibkd
from calibkd import augment, diagnostics, metrics, places
from calibkd.calibrators import MDCA, CutMix, MixUp
from calibkd.data import Dataset, Loaded, Split
from calibkd.distillers import FT, KD, Distiller, Paraphrase
from calibkd.distillers.features import OnMaps
from calibkd.inference import Teacher, logits_of
from calibkd.networks.core import EXAMPLES, names, network
from calibkd.objectives import NLL, Around, Objective, Seen, wants
from calibkd.runs import Recipe, Run
from calibkd.store import Store
from calibkd.sweep import train
from calibkd.training import fit

REAL = "--real" in sys.argv
TEXTURES = Dataset("textures", train=140, test=40, size=8)
SHORT = Recipe(epochs=2, batch=64, precision="fp64" if REAL else "fp32")
TEXT = Dataset("sentences:2", train=140, test=40)
TEACHER = Run(TEXTURES, "resnet8", recipe=SHORT, seed=1)
STEPS = 2 * SHORT.epochs  # of a training of the 126 images that are not held out
SMALL = {"WRN-16-1": "WRN-10-1", "ResNeXt-29-8x64": "ResNeXt-11-2x8",
         "torchvision:resnet18": "torchvision:shufflenet_v2_x0_5"}


def objectives() -> list[type]:
    "Every calibrator and distiller of the library"
    for module in pkgutil.walk_packages(calibkd.__path__, "calibkd."):
        if module.name.split(".")[1] in ("calibrators", "distillers"): importlib.import_module(module.name)
    below = lambda c: {s for k in c.__subclasses__() for s in (k, *below(k))}
    unwritten = lambda c, base, method: issubclass(c, base) and getattr(c, method) is getattr(base, method)
    abstract = lambda c: (c is Around or unwritten(c, Distiller, "distil")
                          or unwritten(c, OnMaps, "distil") and unwritten(c, OnMaps, "term"))
    found = {c for c in below(Objective) if c.__module__.startswith("calibkd.") and not abstract(c)}
    return sorted(found, key=lambda c: c.__name__)


def families() -> list[str]:
    "One small network of every family"
    names()
    first = [examples[0] for examples in EXAMPLES.values() if examples]
    return [SMALL.get(name, name) for name in first]


def pixels(augmentation: str) -> Loaded:
    "Images of 8-bit noise"
    g = torch.Generator().manual_seed(0)
    x, i = torch.randint(256, (100, 3, 8, 8), dtype=torch.uint8, generator=g), torch.arange(100)
    split = Split(x, i % 5, i)
    return Loaded(split, split, split, [*"abcde"], torch.full((3,), .5), torch.full((3,), .3), augmentation)


def once(run: Run, data: Loaded, teacher: nn.Module | None = None) -> torch.Tensor:
    "Test logits of a run trained on the device of the moment"
    (member,) = fit([run], data, copy.deepcopy(teacher))
    return logits_of(member.net, data, data.test)[0].cpu()


def on_the_cpu(f, *args):
    "What a function gives where there is no GPU"
    with patch.dict(os.environ, CALIBKD_DEVICE="cpu"): return f(*args)


def warm(gpu, data: Loaded) -> None:
    "Send the constants of a data set's normalisation, which go there once a process, whoever comes first"
    with gpu: data.normalise(data.train.x[:1].to(gpu.device))
    gpu.events.clear()


@sdpa_kernel(SDPBackend.MATH)  # the CPU has a kernel of its own for attention, with other bits
def alike(gpu, run: Run, data: Loaded, teacher: nn.Module | None = None) -> dict:
    "A run trained here and there"
    warm(gpu, data)
    before = on_the_cpu(once, run, data, teacher)
    with gpu: after = once(run, data, teacher)
    found = {"same": gpu.same(before, after), "finite": bool(before.isfinite().all())}
    return found | gpu.again(lambda: once(run, data, teacher), after)


def trained(run: Run = TEACHER) -> nn.Module:
    "A network, on the CPU"
    return on_the_cpu(lambda: fit([run], run.dataset.load())[0].net)


def with_objective(gpu, objective: Objective, recipe: Recipe = SHORT) -> dict:
    "A short training"
    taught, data = wants(objective, "teacher"), TEXTURES.load()
    teacher = replace(TEACHER, objective=Paraphrase()) if isinstance(objective, FT) else TEACHER
    run = Run(TEXTURES, "resnet8", objective, recipe, teacher=teacher if taught else None)
    return alike(gpu, run, data, trained(teacher) if taught else None)


def with_network(gpu, name: str) -> dict:
    "A short training of another network; the images are large, for a map of one point has no certain layout"
    reads = any(isinstance(m, nn.Embedding) for m in network(name).modules())
    few = TEXT if reads else Dataset("textures", train=12, test=4, val=0., size=32)
    return alike(gpu, Run(few, name, recipe=replace(SHORT, epochs=1, lr=.01)), few.load())


def with_views(gpu, kind: str) -> dict:
    "8-bit images with some augmentation"
    return alike(gpu, Run(Dataset("digits"), "resnet8", recipe=SHORT), pixels(kind))


def with_text(gpu) -> dict:
    "Token sequences, a teacher and a student"
    run = Run(TEXT, "RoBERTa-L1-H32", KD(), SHORT, teacher=Run(TEXT, "RoBERTa-L1-H32", recipe=SHORT, seed=1))
    return alike(gpu, run, TEXT.load(), trained(run.teacher))


def with_all_metrics(gpu) -> dict:
    "Metrics of logits that are on the GPU"
    g = torch.Generator().manual_seed(0)
    z, labels = 3 * torch.randn(80, 5, generator=g), torch.randint(5, (80,), generator=g)
    p = z.softmax(1)
    known = {"logits": z, "labels": labels, "posterior": p, "conf": p.amax(1), "correct": p.argmax(1) == labels,
             "student_logits": z, "teacher_logits": 2 * z, "x": z[:, 0], "y": z[:, 1], "classes": labels,
             "metric": metrics.ece}
    with gpu: there = {k: v.to(gpu.device) if isinstance(v, torch.Tensor) else v for k, v in known.items()}
    found = {}
    for name, f in vars(metrics).items():
        if name.startswith("_") or not inspect.isfunction(f): continue
        takes = inspect.signature(f).parameters.values()
        if any(p.default is p.empty and p.name not in known for p in takes): continue  # it is not about logits
        given = [p.name for p in takes if p.name in known]
        here = f(**{k: known[k] for k in given})
        with gpu: found[name] = gpu.same(repr(here), repr(f(**{k: there[k] for k in given})))
    return {"same": all(found.values()), "called": len(found), "different": [k for k, v in found.items() if not v]}


def with_diagnostics(gpu) -> dict:
    "A network's features, their separations and projections"
    data, net, groups = TEXTURES.load(), trained(), [i // 5 for i in range(100)]
    def everything(net, where):
        f, y = diagnostics.penultimate_features(net, data, data.train).to(where), data.train.labels.to(where)
        seen = [diagnostics.project_network(net, data, [0, 1, 50], kind) for kind in ("plane", "qr-pca")]
        weight, _ = diagnostics.templates(net)
        numbers = [diagnostics.similar_classes(f, y, groups), diagnostics.relative_distance(f, y, groups),
                   diagnostics.separation(f, y, [0, 1, 50]), diagnostics.separation_interval(f, y, [0, 1, 50], 20),
                   diagnostics.project_mueller(f, weight.to(where), [0, 1, 50]).sum()]
        return repr([*numbers, *(p.table().round(9).to_csv() for p in seen)])
    here = everything(net, "cpu")
    with gpu: return {"same": gpu.same(here, everything(net.to(gpu.device), gpu.device))}


class Stops(NLL):
    "Gives up in the second epoch, the first time"
    alive = False
    def loss(self, seen: Seen) -> torch.Tensor:
        "Cross-entropy"
        if seen.batch.epoch == 1 and not Stops.alive: raise KeyboardInterrupt
        return super().loss(seen)


def with_a_kill(gpu) -> dict:
    "A training that is stopped and goes on from its checkpoint, with momentum and memory"
    run = Run(TEXTURES, "resnet8", MDCA(task=Stops()), SHORT)
    warm(gpu, TEXTURES.load())
    with gpu, tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        try: train([run], store, workers=1)
        except KeyboardInterrupt: checkpoints = len([*store.root.glob("partial/*.safetensors")])
        Stops.alive = True
        after = train([run], store, workers=1).logits(run)[0]
        found = gpu.again(lambda: once(run, TEXTURES.load()), after)
    return found | {"same": gpu.same(on_the_cpu(once, run, TEXTURES.load()), after), "checkpoints": checkpoints}


def with_the_store(gpu) -> dict:
    "Trained, stored, loaded, asked about corrupted images"
    student = Run(TEXTURES, "resnet8", KD(T=4.), SHORT, teacher=TEACHER)
    foggy = replace(TEXTURES, corruption="fog", severity=2)
    warm(gpu, TEXTURES.load())
    def everything():
        with tempfile.TemporaryDirectory() as folder:
            made = train([student, replace(TEACHER, objective=CutMix())], Store(folder), workers=1)
            tables = made.table("top1", "ece", "true_ece"), made.elsewhere([foggy], "ece", workers=1)
            return "".join(t.select_dtypes("number").to_csv() for t in tables)
    here = on_the_cpu(everything)
    with gpu: return {"same": gpu.same(here, everything())}


def with_features(gpu) -> dict:
    "A folded teacher that shows its features"
    net, x = trained(), TEXTURES.load().train.x[:7].to(torch.float64 if REAL else torch.float32)
    ask = lambda where: Teacher(copy.deepcopy(net), SHORT, where, features=True)(x.to(where))
    parts = lambda out: [out.logits, out.features["pooled"], out.features["maps"][0]]
    numbers = lambda out: torch.cat([t.cpu().flatten(1) for t in parts(out)], 1)
    here = numbers(ask(torch.device("cpu")))
    with gpu: return {"same": gpu.same(here, numbers(ask(gpu.device)))}


@dataclass(frozen=True)
class Fault(NLL):
    "A loss that does what it should not; `kind` says what"
    kind: str = ""

    def loss(self, seen: Seen) -> torch.Tensor:
        "Cross-entropy, and the fault"
        FAULTS[self.kind](seen.logits, seen.labels)
        return super().loss(seen)


REFUSED = {  # what CUDA refuses
    "mixed devices": lambda z, y: z + torch.zeros(z.shape),
    "index of a CPU tensor": lambda z, y: torch.arange(100)[y],
    "CPU generator": lambda z, y: torch.rand(3, generator=torch.Generator(), device=z.device),
    "numpy": lambda z, y: z.detach().numpy(),
    "pin": lambda z, y: z.detach().pin_memory()}
SLOW = {  # what makes the host wait
    "item": lambda z, y: z.sum().item(),
    "if": lambda z, y: 1 if z.max() > 0 else 0,
    "mask": lambda z, y: z[y == 0],
    "nonzero": lambda z, y: (y == 0).nonzero(),
    "bincount": lambda z, y: torch.bincount(y),
    "cpu": lambda z, y: z.cpu(),
    "pageable memory": lambda z, y: torch.arange(3).to(z.device, non_blocking=True),
    "blocking": lambda z, y: torch.arange(3).pin_memory().to(z.device),
    "CPU index": lambda z, y: z[torch.arange(3)],
    "tensor": lambda z, y: torch.tensor([1., 2.], device=z.device)}
HARMLESS = {
    "pinned memory": lambda z, y: torch.arange(3).pin_memory().to(z.device, non_blocking=True),
    "number": lambda z, y: z * torch.tensor(2.),
    "arange": lambda z, y: z[torch.arange(3, device=z.device)]}
FAULTS = REFUSED | SLOW | HARMLESS


def with_fault(gpu, kind: str) -> dict:
    "A training with a planted fault"
    run = Run(TEXTURES, "resnet8", Fault(kind), replace(SHORT, epochs=1))
    warm(gpu, TEXTURES.load())
    with gpu: once(run, TEXTURES.load())
    return {}


SCENES = {
    **{f"objective {c.__name__}": (with_objective, c()) for c in objectives()},
    "objective KD + MixUp": (with_objective, KD(task=MixUp())),
    "objective CutMix of MDCA": (with_objective, CutMix(p=1., task=MDCA())),
    "adam": (with_objective, NLL(), replace(SHORT, optimiser="adam", lr=.01)),
    "float64": (with_objective, MDCA(), replace(SHORT, precision="fp64")),
    **{f"network {name}": (with_network, name) for name in families()},
    **{f"views {kind}": (with_views, kind) for kind in augment.VIEWS},
    **{f"fault {kind}": (with_fault, kind) for kind in FAULTS},
    "text": (with_text,), "features": (with_features,), "metrics": (with_all_metrics,),
    "diagnostics": (with_diagnostics,), "kill": (with_a_kill,), "store": (with_the_store,)}


def played(name: str) -> dict:
    "What happened in a scene"
    gpu, (scene, *given), start = a_gpu(), SCENES[name], time.perf_counter()
    try: found = scene(gpu, *given)
    except Exception: found = {"error": traceback.format_exc(limit=-4)}
    events = [[*event, n] for event, n in gpu.events.items()]
    return found | {"events": events, "launches": gpu.launches, "seconds": round(time.perf_counter() - start, 2)}


if __name__ == "__main__":
    if REAL: from real_gpu import NAME, Real as a_gpu
    else:
        from pretended_gpu import NAME, Pretend as a_gpu
        places.PINNED.add(NAME)
    os.environ["CALIBKD_DEVICE"] = NAME
    print(json.dumps({name: played(name) for name in [a for a in sys.argv[1:] if a != "--real"] or SCENES}))
