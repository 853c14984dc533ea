"""Operations that combine the numbers of some dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .apply import apply
from .nest import Nest
from .shapes import reshape
from .sizes import Size, product
from .table import Call, Operation
from .values import Index, Value

row = partial(Operation, kind="reductions")


def dims_of(x: Value, dims: Any) -> list[int]:
    """Dimensions as they are given, in order: none are all, negative ones count from the end."""
    if dims is None or dims == []:
        return list(range(len(x.shape)))
    return sorted(d % max(len(x.shape), 1) for d in ([dims] if isinstance(dims, int) else dims))


def ones_for(x: Value, dims: Sequence[int]) -> tuple[Size, ...]:
    """The shape of x with 1 for dimensions that are combined."""
    return tuple(1 if d in dims else n for d, n in enumerate(x.shape))


def combined(
    call: Call, x: Value, dims: Sequence[int], start: str, combine: str, dtype: torch.dtype | None = None
) -> Value:
    """x, as numbers of `dtype` (that of the call), combined over dimensions, in the shape of the call."""
    code, dtype = call.code, dtype or call.dtype
    x = code.cheap(x, cost=1 << 30)
    if x.dtype != dtype:
        formula = "({0} != 0)" if dtype == torch.bool else "{0}"
        x = apply(Call(code, x.shape, dtype), formula, x, compute=x.dtype, cost=0)
    if not x.shape:
        return x
    target = code.new([n for d, n in enumerate(x.shape) if d not in dims], dtype)
    code.gather(x, dims, start, combine, target)
    assert target.place is not None
    return code.placed(target.place.buffer, call.shape, dtype)


def sum_(call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """A sum."""
    return combined(call, x, dims_of(x, dim), "0", "{s} + {v}")


def mean(call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """A mean."""
    dims = dims_of(x, dim)
    return apply(call, "{0} / {1}", sum_(call, x, dim), product(x.shape[d] for d in dims) if x.shape else 1)


def prod(call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """A product."""
    return combined(call, x, dims_of(x, dim), "1", "{s} * {v}")


LOWEST = {
    torch.float32: "(-INFINITE)",
    torch.float64: "(-INFINITE)",
    torch.int64: "(-9223372036854775807LL - 1)",
    torch.bool: "0",
}
HIGHEST = {
    torch.float32: "INFINITE",
    torch.float64: "INFINITE",
    torch.int64: "9223372036854775807LL",
    torch.bool: "1",
}


def largest(call: Call, x: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """The largest number; nan if there is one."""
    return combined(
        call, x, dims_of(x, list(dim) if isinstance(dim, tuple) else dim), LOWEST[x.dtype], _better(">")
    )


def smallest(call: Call, x: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """The smallest number; nan if there is one."""
    return combined(
        call, x, dims_of(x, list(dim) if isinstance(dim, tuple) else dim), HIGHEST[x.dtype], _better("<")
    )


def _better(sign: str) -> str:
    return f"({{v}} {sign} {{s}} || {{v}} != {{v}} ? {{v}} : {{s}})"


def truth(start: str, sign: str) -> Callable[..., Value]:
    """The writer of `any` or `all`."""

    def write(call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
        return combined(call, x, dims_of(x, dim), start, f"({{s}} {sign} {{v}})")

    return write


def place_of(call: Call, x: Value, best: Value, dims: Sequence[int]) -> Value:
    """The first index, of one dimension or of all, at which x is `best`, or nan."""
    code = call.code
    best = reshape(Call(code, ones_for(x, dims), best.dtype), best)

    def load(nest: Nest, at: Index) -> str:
        number, there = code.seen(nest, x, at, x.shape), code.seen(nest, best, at, x.shape)
        index = "0"
        for d in dims:
            index = at[d] if index == "0" else f"({index}) * {code.c(x.shape[d])} + {at[d]}"
        return nest.local("i64", f"{number} == {there} || {number} != {number} ? {index} : -1")

    found = Value(x.shape, torch.int64, load, x.reads | best.reads, x.cost + 2)
    return combined(call, found, dims, "-1", "({s} >= 0 ? {s} : {v})")


def extreme(find: Callable[..., Value]) -> Callable[..., list[Value]]:
    """The writer of `max` or `min` of a dimension: the number, and its index."""

    def write(call: Call, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
        x = call.code.cheap(x, cost=2)
        best = find(call, x, dim)
        return [best, argument_of(Call(call.code, call.shape, torch.int64), x, best, dim)]

    return write


def argument_of(call: Call, x: Value, best: Value, dim: Any) -> Value:
    """The index of the number that was found."""
    if not x.shape:
        return call.code.constant("0", torch.int64, call.shape)
    return place_of(call, x, best, dims_of(x, dim))


def argument(find: Callable[..., Value]) -> Callable[..., Value]:
    """The writer of `argmax` or `argmin`."""

    def write(call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
        x = call.code.cheap(x, cost=2)
        dims = dims_of(x, dim)
        best = find(Call(call.code, ones_for(x, dims), x.dtype), x, dims)
        return argument_of(call, x, best, dim)

    return write


def moments(call: Call, x: Value, dim: Any, correction: Any) -> tuple[Value, Value]:
    """The variance and the mean, each with dimensions of 1: in two passes."""
    code, dims = call.code, dims_of(x, dim)
    x = code.cheap(x, cost=2)
    shape, n = ones_for(x, dims), product(x.shape[d] for d in dims)
    small, whole = Call(code, shape, x.dtype), Call(code, x.shape, x.dtype)
    middle = code.real(mean(small, x, dims))
    squares = apply(whole, "({0} - {1}) * ({0} - {1})", x, middle, cost=3)
    total = combined(small, squares, dims, "0", "{s} + {v}")
    less = 1 if correction is None else correction
    return apply(small, "{0} / LARGER({1} - {2}, 0)", total, n, less, cost=2), middle


def var(call: Call, x: Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Value:
    """A variance."""
    return reshape(call, moments(call, x, dim, correction)[0])


def var_mean(
    call: Call, x: Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False
) -> list[Value]:
    """A variance, and the mean."""
    return [reshape(call, value) for value in moments(call, x, dim, correction)]


def running(start: str, combine: str) -> Callable[..., Value]:
    """The writer of `cumsum` or `cumprod`."""

    def write(call: Call, x: Value, dim: int) -> Value:
        code = call.code
        if not x.shape:
            return x
        target = code.new(call.shape, call.dtype)
        x = x if x.dtype == call.dtype else apply(Call(code, x.shape, call.dtype), "{0}", x, cost=0)
        code.scan(code.cheap(x, cost=1 << 30), dim % len(x.shape), start, combine, target)
        return target

    return write


OPERATIONS = (
    row("sum", example="x.sum(1) + x.sum(0).sum()", overloads=("default", "dim_IntList"), write=sum_),
    row("mean", example="x - x.mean(1, keepdim=True) + x.mean()", overloads=("default", "dim"), write=mean),
    row("prod", example="x.prod(1) + v.prod()", overloads=("default", "dim_int"), write=prod),
    row("amax", example="x - x.amax(1, keepdim=True) + x.amax()", write=largest),
    row("amin", example="x - x.amin(0) + x.amin()", write=smallest),
    row("max", example="x.max(1)[0] * x.max()", overloads=("dim",), write=extreme(largest)),
    row("min", example="x.min(1)[0] * x.min()", overloads=("dim",), write=extreme(smallest)),
    row("max", example="x * x.max()", write=largest),
    row("min", example="x * x.min()", write=smallest),
    row("argmax", example="x.gather(1, x.argmax(1, keepdim=True)) * x.argmax()", write=argument(largest)),
    row("argmin", example="x.gather(1, x.argmin(1, keepdim=True)) * x.argmin()", write=argument(smallest)),
    row(
        "any",
        example="torch.where((x > 0.5).any(1), v.sum(), 2.0)",
        overloads=("default", "dim", "dims"),
        write=truth("0", "||"),
    ),
    row(
        "all",
        example="torch.where((x > -0.5).all(1), v.sum(), 2.0)",
        overloads=("default", "dim", "dims"),
        write=truth("1", "&&"),
    ),
    row("var", example="x * x.var(1, keepdim=True) + x.var()", overloads=("correction",), write=var),
    row(
        "var_mean",
        example="torch.nn.functional.layer_norm(x, (4,), v, v)",
        overloads=("correction",),
        write=var_mean,
    ),
    row("cumsum", example="x.cumsum(1) + x.cumsum(0)", write=running("0", "{s} + {v}")),
    row("cumprod", example="p.cumprod(1)", write=running("1", "{s} * {v}")),
)
