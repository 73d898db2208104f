"Runs whose identities and weights are held: `python tests/held.py` prints what they are now, as JSON."
import hashlib
import json
import os
import sys
import tempfile

import torch

from calibkd.calibrators import CRL, LS, MDCA, MMCE, PSKD, TS, AdaFocal, CutMix, Focal, MixUp
from calibkd.data import Dataset
from calibkd.distillers import KD
from calibkd.objectives import NLL
from calibkd.places import processor
from calibkd.runs import Recipe, Run

DATA, TEXTURES = Dataset("digits", train=300), Dataset("textures:4x3", train=260, test=100)
SHORT = Recipe(epochs=3, batch=64, schedule="cosine", warmup=.3, nesterov=True, precision="fp32")


def held() -> dict[str, Run]:
    "A dozen runs, a method with a state, a wrapped network and each kind of optimiser and schedule among them"
    run = lambda objective, recipe=SHORT, net="resnet8", data=DATA, **more: Run(data, net, objective, recipe, **more)
    teacher = run(MDCA(beta=10., task=Focal(3.)), net="resnet14")
    bf16 = Recipe(epochs=2, batch=64, lr=.01, optimiser="adam", schedule="constant", augment="crop", precision="bf16")
    return {
        "NLL": run(NLL()), "seed": run(LS(.05), seed=3), "MDCA": teacher, "MMCE": run(MMCE()), "AdaFocal": run(AdaFocal()),
        "CRL": run(CRL()), "PSKD": run(PSKD()), "MixUp": run(MixUp(.4)), "CutMix": run(CutMix(task=MDCA())),
        "TS": run(TS(), Recipe(epochs=0), init=run(NLL())), "bf16": run(NLL(), bf16),
        "stopped": run(NLL(), Recipe(epochs=4, batch=50, precision="fp32")).at(2),
        "KD": run(KD(T=2., alpha=.5), teacher=teacher), "KD + MixUp": run(KD(task=MixUp(.4)), teacher=teacher),
        "textures": run(NLL(), data=TEXTURES, net="WRN-10-1"), "torchvision": run(NLL(), Recipe(epochs=1), "torchvision:shufflenet_v2_x0_5", TEXTURES),
    }


def checksum(store, run: Run) -> str:
    "Of a stored run's weights"
    tensors = sorted(store.weights(run).items())
    return hashlib.sha256(b"".join(k.encode() + v.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for k, v in tensors)).hexdigest()[:16]


def machine() -> str:
    "What the bits depend on"
    short = "bf16" if torch.cpu._is_avx512_bf16_supported() else "no bf16"
    return f"torch {torch.__version__.split('+')[0]}, {torch.backends.cpu.get_cpu_capability()}, {short}, {processor()}"


def now() -> dict:
    "Identities and weights as this code makes them"
    from calibkd.store import Store
    from calibkd.sweep import train
    with tempfile.TemporaryDirectory() as folder:
        store = train(list(held().values()), Store(folder), workers=1).store
        weights = {k: checksum(store, r) for k, r in held().items()}
        return {"ids": {k: r.id for k, r in held().items()}, "weights": {machine(): weights}}


if __name__ == "__main__":
    print(json.dumps(now(), indent=1))
