"""How a function of tensors becomes code, and the settings of Dynamo for it."""

from __future__ import annotations

import contextlib
import functools
import platform
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..torch_internals import graph_pass, settings_of, while_loop
from .small import Small

__all__ = ["compiled", "renamed", "replayed", "settings", "staying", "while_loop"]

KEPT_GRAPHS = 64  # of one f: other shapes, dtypes and attributes
KEPT_GUARDS = {"TENSOR_MATCH", "SHAPE_ENV"}
# Unless told otherwise, PyTorch keeps graphs with these out of its disk cache; its key holds their bodies, too.
CACHED = {"torch.ops.higher_order.while_loop": "1", "torch.ops.higher_order.cond": "1"}
COUNT = iter(range(10**9))


def renamed(function: Any, name: str) -> Any:
    """The same function with a code object of its own."""
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)


def _kept(guards: Any) -> list[bool]:
    return [guard.guard_type in KEPT_GUARDS for guard in guards]


def compiled(function: Callable[..., Any], *, forward: bool) -> Callable[..., Any]:
    """One graph, its loop in C++. What else the function holds never changes: no guards on it."""
    own = renamed(function, f"{function.__name__}_{next(COUNT)}")
    options = {
        "cpp_wrapper": True,
        "guard_filter_fn": _kept,
        "unsafe_marked_cacheable_functions": CACHED,
        "post_grad_custom_post_pass": graph_pass(Small(cats=forward)),
        **_instructions(),
    }
    return torch.compile(own, fullgraph=True, options=options)


@functools.cache
def _instructions() -> dict[str, Any]:
    """The setting that vector instructions work, where PyTorch's own kernels use the widest ones of the processor.

    Otherwise Inductor compiles a program with all of PyTorch's headers to find out: seconds, once a machine.
    """
    used = torch.backends.cpu.get_cpu_capability()
    known = used == "AVX512" or (used == "AVX2" and not torch.cpu.get_capabilities().get("avx512_f", True))
    here = platform.system() == "Linux" and platform.machine() == "x86_64"
    return {"cpp.vec_isa_ok": True} if known and here else {}


def replayed(function: Callable[..., Any]) -> Callable[..., Any]:
    """One graph that is replayed as a CUDA graph, which writes its outputs to the same memory each time."""
    own = renamed(function, f"{function.__name__}_{next(COUNT)}")
    return torch.compile(own, fullgraph=True, options={"triton.cudagraphs": True, "guard_filter_fn": _kept})


@contextlib.contextmanager
def settings(*, scalars: bool = False) -> Iterator[None]:
    """Dynamo's settings: no side effects, enough graphs; with `scalars`, numbers that have changed become inputs."""
    # Made anew for every solve they would cost 30 us and, in PyTorch 2.13, a context variable that stays for ever.
    free = _FREE.setdefault(scalars, [])
    patch = free.pop() if free else settings_of("_dynamo", **{**SETTINGS, "specialize_float": not scalars})
    try:
        with patch:
            yield
    finally:
        free.append(patch)


@contextlib.contextmanager
def staying() -> Iterator[None]:
    """The setting for graphs of autograd that stay: their backward passes leave alone what they may need again."""
    patch = _FREE_STAYING.pop() if _FREE_STAYING else settings_of("_functorch", donated_buffer=False)
    try:
        with patch:
            yield
    finally:
        _FREE_STAYING.append(patch)


_FREE_STAYING: list[Any] = []
_FREE: dict[bool, list[Any]] = {}  # patches that nobody is inside of: some versions' cannot be entered twice
SETTINGS: dict[str, Any] = {
    "recompile_limit": KEPT_GRAPHS,
    "fail_on_recompile_limit_hit": True,
    "side_effect_replay_policy": "error",
    "skip_nnmodule_hook_guards": False,  # a hook may come between two solves
    "specialize_int": True,
}
