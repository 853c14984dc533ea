"""How a loop becomes code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..torch_internals import graph_pass, while_loop
from .field import renamed
from .small import Small

__all__ = ["compiled", "while_loop"]

KEPT_GUARDS = {"TENSOR_MATCH", "SHAPE_ENV"}
# Unless told otherwise, PyTorch keeps graphs with these out of its disk cache; its key holds their bodies, too.
CACHED = {"torch.ops.higher_order.while_loop": "1", "torch.ops.higher_order.cond": "1"}
COUNT = iter(range(10**9))


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
    }
    return torch.compile(own, fullgraph=True, options=options)


def replayed(function: Callable[..., Any]) -> Callable[..., Any]:
    """One graph that is replayed as a CUDA graph, which writes its outputs to the same memory each time."""
    own = renamed(function, f"{function.__name__}_{next(COUNT)}")
    return torch.compile(own, fullgraph=True, options={"triton.cudagraphs": True, "guard_filter_fn": _kept})
