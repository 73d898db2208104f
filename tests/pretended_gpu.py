"""A pretended GPU: tensors that say they live on an accelerator and hold real numbers on the CPU.

Inside of `with Pretend() as gpu:` operations on them raise where CUDA would, and `gpu.events` counts what costs
a real GPU's host time: waits for the device, and copies to it. Autocast does nothing there: bfloat16 is not tried.
Registering the device changes PyTorch for as long as the process lives, so it is done in processes of their own.
"""
import functools
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_iter, tree_map
from torch.utils._python_dispatch import TorchDispatchMode

import calibkd

try:
    from torch.utils._mode_utils import no_dispatch
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
    MISSING = None if hasattr(torch._C, "_set_only_lift_cpu_tensors") else "torch._C._set_only_lift_cpu_tensors"
except ImportError as error:
    MISSING, _DummyBackendModule = str(error), object

NAME, LIBRARY, A = "pretended", [], torch.ops.aten
OURS = str(Path(calibkd.__file__).parent), str(Path(__file__).parent)
INDEXING = {A.index.Tensor, A.index_put.default, A.index_put_.default, A._index_put_impl_.default,
            A._unsafe_index.Tensor}
COPYING = {A._to_copy.default, A.copy_.default, A.copy.default, A.to.dtype_layout, A._copy_from.default}
WAITING = {  # the size or the Python value of the result depends on numbers that only the GPU has
    A._local_scalar_dense.default, A.item.default, A.is_nonzero.default, A.equal.default, A.nonzero.default,
    A.masked_select.default, A._unique2.default, A.unique_dim.default, A.unique_consecutive.default, A.bincount.default,
    A.repeat_interleave.Tensor, A.histc.default, A._linalg_check_errors.default, A._assert_async.default}


class Module(_DummyBackendModule):
    "What PyTorch asks of a device"
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


@functools.cache
def device() -> torch.device:
    "The pretended GPU; the first call registers it"
    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    LIBRARY.append(torch.library.Library("_", "IMPL"))  # forgets all when it is collected
    LIBRARY[0].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    torch.autograd.set_multithreading_enabled(False)  # backward in this thread, where the mode is
    torch.__future__.set_swap_module_params_on_conversion(True)  # `net.to(…)` changes `held`, too
    return torch.device(NAME, 0)


class There(torch.Tensor):
    "A tensor on the pretended GPU; its numbers are in `held`"
    @staticmethod
    def __new__(cls, held):
        shape = held.size(), held.stride(), held.storage_offset()
        return torch.Tensor._make_wrapper_subclass(cls, *shape, dtype=held.dtype, layout=held.layout, device=device())

    def __init__(self, held): self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __torch_dispatch__(func, types, args=(), kwargs=None): raise RuntimeError(f"{func} outside of `with Pretend()`")


class Event(NamedTuple):
    "What made the host wait, or what it sent"
    kind: str   # "wait" or "copy"
    what: str   # the operation
    where: str  # file:line, the innermost of ours
    during: str # "step" of the optimiser, the rest of an "epoch", or nothing of both


def seen_from_here(kind: str, what: str) -> Event:
    "An event with its place in the code"
    frame, where, names = sys._getframe(1), "", set()
    while frame := frame.f_back:
        path, code = frame.f_code.co_filename, frame.f_code
        if path.startswith(OURS) and path != __file__:
            where = where or f"{Path(path).name}:{frame.f_lineno}"
            names.add(code.co_name)
    during = "" if "one_epoch" not in names or "end_epoch" in names else "step" if "step" in names else "epoch"
    return Event(kind, what, where, during)


class Call:
    "One operation with its arguments"
    def __init__(self, func, args, kwargs):
        self.func, self.args, self.kwargs, leaves = func, args, kwargs, [*tree_iter((args, kwargs))]
        self.tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
        self.there = [t for t in self.tensors if isinstance(t, There)]
        self.here = [t for t in self.tensors if not isinstance(t, There) and t.ndim]  # a number may be anywhere
        target = kwargs.get("device")
        self.to_gpu = bool(self.there) if target is None else torch.device(target).type == NAME
        self.draws = any(isinstance(v, torch.Generator) for v in leaves)

    def refused(self) -> str | None:
        "Why CUDA would refuse it"
        if self.draws and self.to_gpu: return "a generator of the CPU on the GPU"
        if self.func is A._pin_memory.default and self.there: return "pinning what is not on the CPU"
        mixed = self.there and self.here
        if self.func in COPYING or not mixed: return None
        data = {id(v) for v in (self.args[0], *self.args[2:3])}
        index_only = self.func in INDEXING and not any(id(t) in data for t in self.here)
        return None if index_only else f"mixed devices: {[(t.device.type, tuple(t.shape)) for t in self.tensors]}"

    def events(self):
        "Kind and name of what the call costs"
        if self.func in WAITING and self.there: yield "wait", str(self.func)
        if self.func in INDEXING and self.there:
            if any(t is not None and t.dtype == torch.bool for t in self.args[1]): yield "wait", "index by a mask"
            if self.here: yield from (("copy", "index"), ("wait", "index from pageable memory"))
        if self.func in COPYING:
            source = self.args[1] if self.func in (A.copy_.default, A.copy.default) else self.args[0]
            if isinstance(source, There) and (self.here or not self.to_gpu): yield "wait", "copy to the host"
            if not isinstance(source, There) and self.to_gpu: yield from self.sent(source)

    def sent(self, source):
        "A copy to the GPU: the host goes on at once only if the memory is pinned and nobody wants to wait"
        yield "copy", "copy to the GPU"
        last = self.args[2:3] if self.func in (A.copy_.default, A.copy.default) else ()
        free = getattr(source, "pinned", False) and (self.kwargs.get("non_blocking") or any(last))
        if not free: yield "wait", "copy from pageable memory"

    def made(self):
        "The result, computed on the CPU"
        if self.func is A.is_pinned.default: return getattr(self.args[0], "pinned", False)
        if self.func is A._pin_memory.default: return pinned(self.args[0])
        plain = lambda v: v.held if isinstance(v, There) else torch.device("cpu") if isinstance(v, torch.device) else v
        out = self.func(*tree_map(plain, self.args), **tree_map(plain, self.kwargs))
        if torch.Tag.inplace_view in self.func.tags and self.there:  # squeeze_ and its like reshape the wrapper, too
            with no_dispatch(): self.func(*self.args, **self.kwargs)
        return self.wrapped(out) if self.to_gpu else out

    def wrapped(self, out):
        "Tensors as the GPU's; in-place operations return what they were given"
        known = {id(t.held): t for t in self.there}
        wrap = lambda t: known[id(t)] if id(t) in known else There(t)
        return tree_map(lambda t: wrap(t) if isinstance(t, torch.Tensor) else t, out)


def pinned(x):
    "A copy in memory that counts as page-locked"
    out = x.clone()
    out.pinned = True
    return out


class Pretend(TorchDispatchMode):
    "While it lasts there is a GPU"
    def __init__(self):
        super().__init__()
        self.device, self.events, self.launches = device(), Counter(), 0

    same = staticmethod(lambda here, there: torch.equal(here, there) if isinstance(here, torch.Tensor) else here == there)

    def again(self, f, first): return {}  # what is the CPU's bit for bit comes out twice

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *why):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*why)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        call = Call(func, args, kwargs or {})
        why = call.refused()
        if why: raise RuntimeError(f"{func} at {seen_from_here('', '').where}: {why}")
        for event in call.events(): self.events[seen_from_here(*event)] += 1
        self.launches += bool(call.there) and not func.is_view
        return call.made()
