"""What a tensor carries beside its value: derivatives in reverse or forward mode, and lanes of `torch.func.vmap`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .numbers import has_lanes
from .torch_internals import (
    TransformType,
    forward_level,
    get_interpreter_stack,
    get_unwrapped,
    innermost_tangent,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_level,
    peek_interpreter_stack,
    pytree,
    temporarily_pop_interpreter_stack,
)


def is_differentiated(x: Tensor) -> bool:
    """Whether somebody differentiates with respect to x, in reverse or forward mode, in any transform around."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    while is_functorch_wrapped_tensor(x):
        if x.requires_grad or (not is_batchedtensor(x) and _has_tangent(x)):
            return True
        x = get_unwrapped(x)
    return _has_tangent(x) or (x.requires_grad and torch.is_grad_enabled())


def orders(x: Tensor) -> int:
    """How many derivatives of x may be taken, one after the other, by the transforms around and by autograd."""
    levels = get_interpreter_stack() or ()
    found = sum(level.key() in (TransformType.Grad, TransformType.Jvp) for level in levels)
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    forward = not levels and forward_level() >= 0
    return found + forward + (x.requires_grad and torch.is_grad_enabled())


def _has_tangent(x: Tensor) -> bool:
    if not is_functorch_wrapped_tensor(x):
        return forward_level() >= 0 and forward_ad.unpack_dual(x).tangent is not None
    with ExitStack() as inner:  # tangents are seen from the transform that made them alone
        while (top := peek_interpreter_stack()) is not None and top.level() > maybe_get_level(x):
            inner.enter_context(temporarily_pop_interpreter_stack())
        return innermost_tangent(x) is not None


def tensors_in(nested: object) -> Iterator[Tensor]:
    """The tensors of a nested structure."""
    yield from (x for x in pytree.tree_leaves(nested) if isinstance(x, Tensor))


def refuse_lanes(nested: object, name: str) -> None:
    """Raise if a number that steers the solve differs between lanes of vmap.

    Raises
    ------
    NotImplementedError
    """
    if peek_interpreter_stack() is not None and any(map(has_lanes, tensors_in(nested))):
        raise NotImplementedError(
            f"{name} differs between the lanes of torch.func.vmap, and all lanes of a solve share their times and step "
            f"options: use a loop instead of vmap over {name}, or put what differs into f (scaled time: "
            "dy/ds = (t1 - t0) f(t0 + s (t1 - t0), y) for s from 0 to 1)"
        )
