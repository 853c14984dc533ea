"""Operations that combine the numbers of some dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from .apply import apply
from .sizes import product
from .table import Call, Operation
from .values import Value

row = partial(Operation, kind="reductions")


def dims_of(x: Value, dims: Any) -> list[int]:
    """Dimensions as they are given, in order: none are all, negative ones count from the end."""
    if dims is None or dims == []:
        return list(range(len(x.shape)))
    return sorted(d % max(len(x.shape), 1) for d in ([dims] if isinstance(dims, int) else dims))


def combined(call: Call, x: Value, dims: Sequence[int], start: str, combine: str) -> Value:
    """x combined over dimensions, in the shape of the call."""
    code = call.code
    x = code.cheap(x, cost=1 << 30)
    if x.dtype != call.dtype:
        x = apply(Call(code, x.shape, call.dtype), "{0}", x, cost=0)
    if not x.shape:
        return x
    target = code.new([n for d, n in enumerate(x.shape) if d not in dims], call.dtype)
    code.gather(x, dims, start, combine, target)
    assert target.place is not None
    return code.placed(target.place.buffer, call.shape, call.dtype)


def sum_(call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """A sum."""
    return combined(call, x, dims_of(x, dim), "0", "{s} + {v}")


def mean(call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """A mean."""
    dims = dims_of(x, dim)
    return apply(call, "{0} / {1}", sum_(call, x, dim), product(x.shape[d] for d in dims) if x.shape else 1)


OPERATIONS = (
    row("sum", example="x.sum(1) + x.sum(0).sum()", overloads=("default", "dim_IntList"), write=sum_),
    row("mean", example="x - x.mean(1, keepdim=True) + x.mean()", overloads=("default", "dim"), write=mean),
)
