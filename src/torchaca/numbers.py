"""Host numbers and tensors alike: times, the arithmetic of step sizes, and sums over stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .layout import memory_order, permuted, restored, unstacked
from .torch_internals import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor

Time: TypeAlias = "float | Tensor"
"""A time on the host, or a 0-dim tensor where somebody wants a derivative with respect to it."""

Numbers = Callable[..., Sequence[Any]]
"""What of 0-dim tensors arithmetic goes on with, in float64: tensors (`in_double`), or numbers (`on_host`)."""

WHOLE = 64  # numbers that are a whole number of turns of PyTorch's vectorised loops
BLOCK = 2**16  # numbers that are summed up at a time, if a state is no larger


def host_times(t: Any) -> Tensor:
    """Times from a number, list, array or tensor as float64 on the host; differentiable where they were."""
    if isinstance(t, Sequence) and any(isinstance(x, Tensor) for x in t):
        t = torch.stack([host_times(x).reshape(()) for x in t])
    if isinstance(t, Sequence) and any(isinstance(x, bool) for x in t):
        raise TypeError("times are real numbers, got a bool")
    if getattr(t, "dtype", None) is None:  # neither a tensor nor an array: exact, not in the default dtype
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
    if not isinstance(t, Tensor):
        t = torch.as_tensor(t, device="cpu")
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"times are real numbers, got {t.dtype}")
    return t.cpu().double()


def combined(weights: Tensor, rows: Tensor | Sequence[Tensor], start: Tensor | None = None) -> Tensor:
    """`start` plus the sums over m `rows` of `y.shape` with weights `(n, m)`, on any device: `(n, *y.shape)`.

    Not a matrix product: autocast and TF32 would round its factors to 8 or 10 bits.
    """
    rows = unstacked(rows) if isinstance(rows, Tensor) else rows
    last = rows[-1]
    if order := memory_order(last):  # which the cotangents of a sum would lose
        start = None if start is None else permuted(start, order)
        return restored(combined(weights, [permuted(row, order) for row in rows], start), order)
    each = max(1, BLOCK // max(1, last.numel()))
    if len(weights) > each:  # sums that stay in the cache
        return torch.cat([combined(some, rows, start) for some in weights.split(each)])
    # On CUDA a small copy from the host needs no wait: it is staged before the call returns.
    weights = weights.to(last.device, last.dtype, non_blocking=last.device.type == "cuda")
    lead = weights.shape[:1] if len(weights) > 1 else ()  # a cotangent would be summed up over it
    columns = weights.reshape(*lead, -1, *[1] * last.ndim).unbind(len(lead))
    total = columns[-1] * last
    # From the last row to the first, which may be y0: increments are added up before they meet it.
    for weight, row in zip(columns[-2::-1], rows[-2::-1], strict=True):
        total = torch.addcmul(total, weight, row)
    total = total if start is None else total + start
    return total if lead else total[None]


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast is for f: what the solver does, and backward passes, keep the precision that they find."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def has_lanes(x: Tensor) -> bool:
    """Whether a tensor differs between the lanes of `torch.func.vmap`, so that it has no value to read."""
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return True
        x = get_unwrapped(x)
    return False


def column(x: Any, like: Tensor, batch: int) -> Any:
    """One number for each of the problems in so many leading dimensions, as what broadcasts against `like`."""
    return x.reshape(*x.shape, *[1] * (like.ndim - batch)) if batch and isinstance(x, Tensor) else x


def value(t: Time) -> float:
    """The host value of a time; reads the device where it is a tensor."""
    return t.item() if isinstance(t, Tensor) else t


def in_double(*tensors: Tensor) -> Sequence[Tensor]:
    """The same in float64."""
    return [x.double() for x in tensors]


def on_host(*tensors: Tensor) -> Sequence[float]:
    """The values of 0-dim tensors, in one read of the device."""
    return [tensors[0].item()] if len(tensors) == 1 else torch.stack(tensors).tolist()


# Arithmetic on host numbers and on tensors. nan comes through where it is the first argument: max(nan, x) is nan.


def at_least(x: Any, low: Any) -> Any:
    """Replace what is below `low`."""
    return x.clamp(min=low) if isinstance(x, Tensor) else max(x, low)


def at_most(x: Any, high: Any) -> Any:
    """Replace what is above `high`; nothing is above infinity."""
    if not isinstance(high, Tensor) and high == math.inf:
        return x
    return x.clamp(max=high) if isinstance(x, Tensor) else min(x, high)


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds, else `no`."""
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def power(x: Any, exponent: float) -> Any:
    """`x ** exponent`, with the same bits for the same number wherever it stands among others.

    PyTorch leaves the last few numbers of a tensor to a scalar loop on the CPU, which rounds powers otherwise.
    """
    short = -x.numel() % WHOLE if isinstance(x, Tensor) and x.ndim and x.device.type == "cpu" else 0
    if not short:
        return x**exponent
    padded = torch.cat([x.reshape(-1), x.new_ones(short)])
    return (padded**exponent)[: x.numel()].view(x.shape)


def negated(condition: Any) -> Any:
    """Negate a condition, a bool or a tensor."""
    return ~condition if isinstance(condition, Tensor) else not condition


def clip(x: Any, low: float, high: float) -> Any:
    """Replace what is outside of the limits."""
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)
