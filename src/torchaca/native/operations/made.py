"""Operations that make tensors from nothing but numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .apply import apply, literal
from .nest import Nest
from .table import Call, Operation
from .values import Index, Value

row = partial(Operation, kind="made")


def full(call: Call, number: Any) -> Value:
    """The same number everywhere."""
    if isinstance(number, Value):
        return apply(call, "{0}", number, cost=0)
    number = bool(number) if call.dtype == torch.bool else number
    return call.code.constant(literal(number, call.code.ctype(call.dtype), call.code), call.dtype, call.shape)


def zeros(call: Call, *_: Any) -> Value:
    """Nothing but 0."""
    return full(call, 0)


def ones(call: Call, *_: Any) -> Value:
    """Nothing but 1."""
    return full(call, 1)


def filled(call: Call, _: Any, number: Any) -> Value:
    """Nothing but one number."""
    return full(call, number)


def steps(call: Call, start: Any, step: Any) -> Value:
    """The numbers `start + step i`."""
    code, ctype = call.code, call.code.ctype(call.dtype)
    first, by = literal(start, ctype, code), literal(step, ctype, code)

    def load(nest: Nest, index: Index) -> str:
        i = index if isinstance(index, str) else index[0]
        return nest.local(ctype, f"{first} + {by} * ({ctype})({i})")

    return Value(call.shape, call.dtype, load, cost=1, flat=True)


def arange(call: Call, start: Any, end: Any, step: Any = 1) -> Value:
    """Numbers from `start` on."""
    return steps(call, start, step)


def arange_from_zero(call: Call, end: Any) -> Value:
    """The numbers 0, 1, ..."""
    return steps(call, 0, 1)


def iota(call: Call, length: Any, *, start: Any = 0, step: Any = 1, **_: Any) -> Value:
    """The numbers `start + step i`."""
    return steps(call, start, step)


OPERATIONS = (
    row("full", example="x + torch.full((4,), 2.5, dtype=x.dtype)", write=filled),
    row("full_like", example="x + torch.full_like(x, 0.5)", write=filled),
    row(
        "new_full",
        example="x + x.new_full((4,), 0.5)",
        write=lambda call, x, size, number: full(call, number),
    ),
    row("scalar_tensor", example="x * torch.scalar_tensor(0.5, dtype=x.dtype)", write=full),
    *(
        row(name, example=f"x + {example}", write=ones if "ones" in name else zeros)
        for name, example in (
            ("zeros", "torch.zeros(4, dtype=x.dtype)"),
            ("zeros_like", "torch.zeros_like(x)"),
            ("new_zeros", "x.new_zeros(4)"),
            ("ones", "torch.ones(4, dtype=x.dtype)"),
            ("ones_like", "torch.ones_like(x)"),
            ("new_ones", "x.new_ones(4)"),
        )
    ),
    row(
        "arange",
        example="x * torch.arange(0, 8, 2, dtype=x.dtype)",
        overloads=("start_step", "start"),
        write=arange,
    ),
    *(
        row(name, example=f"x + torch.{call}.zero_()", overloads=overloads, write=zeros)
        for name, call, overloads in (
            ("empty", "empty(4, dtype=x.dtype)", ("memory_format",)),
            ("empty_strided", "empty_strided((4,), (1,), dtype=x.dtype)", ("default",)),
            ("empty_like", "empty_like(x)", ("default",)),
        )
    ),
    row("new_empty_strided", example="x + x.new_empty_strided((4,), (1,)).zero_()", write=zeros),
    row(
        "_new_zeros_with_same_feature_meta",
        example="torch.func.jvp(torch.sin, (x[:, :1],), (2 * y[:, :1],))[1]",
        write=zeros,
    ),
    row(
        "_efficientzerotensor",
        example="torch.func.jvp(lambda a: torch.cat([a, y], 1), (x,), (y,))[1]",
        write=zeros,
    ),
    row("new_empty", example="x + x.new_empty(4).zero_()", write=zeros),
    row(
        "prims.iota",
        example="x * torch.ops.prims.iota(4, start=0, step=1, dtype=torch.int64, device='cpu', requires_grad=False)",
        write=iota,
    ),
    row("arange", example="x * torch.arange(4)", write=arange_from_zero),
)
