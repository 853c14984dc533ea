"""A device made of host memory: it refuses what CUDA refuses, and notes when the host would wait for it.

`install()` once a process, then tensors live on `torch.device("spare:0")`: each holds a tensor of the CPU and computes
with it. As on a GPU, an operation on tensors of both places raises, except for numbers (0-dim tensors of the CPU) in
pointwise operations, for indices, and for copies. `recording()` lists the waits: reads of values ("item"), shapes that
depend on values, and blocking copies to and from the host.

What it lacks: anything asynchronous, a generator of its own, torch.compile. A tensor's hook must not raise in a
backward pass (PyTorch's guard for devices in Python ends the process then). It stays torch.accelerator as long as the
process lives.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tag, Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "spare"
FOREIGN = (str(Path(torch.__file__).parent), __file__)
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
HALVED = ("mm", "addmm", "bmm", "matmul", "linear", "mv", "dot", "addmv")  # by autocast
READS = {Tag.data_dependent_output, Tag.dynamic_output_shape}

_logs: list[list[str]] = []


@contextmanager
def recording() -> Iterator[list[str]]:
    """The waits inside, each as "kind operation at file:line"."""
    _logs.append(log := [])
    try:
        yield log
    finally:
        _logs.remove(log)


def note(kind: str, func: Any) -> None:
    """Write a wait down, with the innermost line that is not PyTorch's."""
    if not _logs:
        return
    frame: Any = sys._getframe(1)
    while frame and frame.f_code.co_filename.startswith(FOREIGN):
        frame = frame.f_back
    where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "autograd"
    for log in _logs:
        log.append(f"{kind} {func} at {where}")


class Double(Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> Double:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        self = Tensor._make_wrapper_subclass(
            cls, held.shape, device=torch.device(NAME, 0), requires_grad=requires_grad, **layout
        )
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        to_host = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func in COPIES:
            waits = not (kwargs.get("non_blocking") or args[2:3] == (True,))
            if waits and (to_host or any(not isinstance(x, Double) for x in tensors)):
                note("copy", func)
        elif READS & set(func.tags):
            note("read", func)
        check(func, args, tensors)
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*_held(args), **_held(kwargs))
        if to_host or Tag.data_dependent_output in func.tags:
            return out
        out = pytree.tree_map_only(Tensor, lambda x: Double(x.resolve_conj().resolve_neg()), out)
        aliases = any(argument.alias_info for argument in func._schema.arguments)
        return return_and_correct_aliasing(func, args, kwargs, out) if aliases else out

    def __repr__(self) -> str:
        return f"Double({self.held!r})"

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()


def check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Refuse tensors of both places, as CUDA does."""
    hosts = [x for x in tensors if not isinstance(x, Double)]
    if not hosts or func in COPIES or len(hosts) == len(tensors):
        return
    if func in INDEXED:
        note("copy", func)
        hosts = [x for x in hosts if x.ndim and not any(x is y for y in args[1])]
    elif "_foreach_" in str(func):  # pair by pair
        pairs = zip(*(x for x in args if isinstance(x, list | tuple)))
        hosts = [pair[0] for pair in pairs if len({isinstance(x, Double) for x in pair}) > 1]
    elif Tag.pointwise in func.tags:
        hosts = [x for x in hosts if x.ndim]
    if hosts:
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {func}, {[x.device for x in tensors]}"
        )


def _held(nested: Any) -> Any:
    return pytree.tree_map_only(Double, lambda x: x.held, nested)


class Backend(_DummyBackendModule):
    """`torch.spare`, as PyTorch looks for it: one generator, which nobody draws from."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8, device="cpu")

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        """There is none."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _made(factory: Callable[..., Tensor], *sizes: Any, dtype: Any = None, **_: Any) -> Double:
    return Double(factory(*sizes, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if not non_blocking:
        note("copy", "_copy_from")
    _held(target).copy_(_held(source))
    return target


def _halved(operation: Any, *args: Any) -> Any:
    dtype = torch.get_autocast_dtype(NAME)
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(key):
        return operation(
            *(x.to(dtype) if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in args)
        )


_libraries: list[torch.library.Library] = []  # what they register lasts as long as they do


@functools.cache
def install() -> torch.device:
    """Register the device, for the rest of the process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    names = (("aten", "PrivateUse1"), ("aten", "AutocastPrivateUse1"), ("_", "AutocastPrivateUse1"))
    _libraries[:] = own, cast, others = [torch.library.Library(name, "IMPL", key) for name, key in names]
    for name in ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step"):
        own.impl(name, functools.partial(_made, getattr(torch, name.split(".")[0])))
    own.impl("_copy_from", _copy_from)
    for name in HALVED:
        cast.impl(name, functools.partial(_halved, getattr(aten, name).default))
    others.fallback(torch.library.fallthrough_kernel)
    return torch.device(NAME, 0)
