"""A real GPU, watched: the host's waits within a step are counted at their line, as PyTorch warns of them.

What the pretended GPU has by construction is tried here: the CPU's numbers as far as float64 goes, the same bits twice.
`REHEARSAL_GPU=cpu` plays the scenes where there is none, to try the scenes themselves.
"""
import os
import re
import warnings
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from calibkd.training import Member
from pretended_gpu import Event

NAME = os.environ.get("REHEARSAL_GPU", "cuda")
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)(?![\w.]*\w)", re.I)
CLOSE = dict(rtol=1e-4, atol=1e-5)


def numbers(text: str) -> list[float]:
    "The numbers of a text; a device is none"
    return [float(n) for n in NUMBER.findall(re.sub(r"device='[^']*'", "", text))]


def watched(step, events: Counter):
    "A step of a training; what PyTorch warns of is counted"
    def observed(*args):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try: return step(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                for w in seen: note(w, events)
    return observed


def note(warning: warnings.WarningMessage, events: Counter) -> None:
    "Count a wait"
    said, where = str(warning.message).split("(")[0].strip(), f"{Path(warning.filename).name}:{warning.lineno}"
    if said.startswith("called a synchronizing"): events[Event("wait", said, where, "step")] += 1


class Real:
    "The GPU; within `with` calibkd trains on it"
    def __init__(self):
        self.device, self.events, self.launches = torch.device(NAME), Counter(), 1
        self.entered = []

    def __enter__(self):
        self.entered.append(within := ExitStack())
        within.enter_context(patch.dict(os.environ, CALIBKD_DEVICE=NAME))
        if NAME == "cuda": within.enter_context(patch.object(Member, "step", watched(Member.step, self.events)))
        return self

    def __exit__(self, *why): self.entered.pop().close()

    def same(self, here, there) -> bool:
        "Whether tensors, or the numbers of two texts, are close"
        if isinstance(here, torch.Tensor): return torch.allclose(here.cpu().double(), there.cpu().double(), **CLOSE)
        a, b = numbers(here), numbers(there)
        return len(a) == len(b) and np.allclose(a, b, equal_nan=True, **CLOSE)

    def again(self, f, first) -> dict:
        "Whether the bits come out a second time, and if not, which operations have other bits every time"
        with self: second = f()
        if torch.equal(first, second): return {"twice": True}
        with self, warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.use_deterministic_algorithms(True, warn_only=True)
            try: f()
            finally: torch.use_deterministic_algorithms(False)
        return {"twice": False, "differ": float((first - second).abs().max()),
                "because": sorted({str(w.message)[:90] for w in seen})}
