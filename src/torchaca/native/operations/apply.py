"""Functions of numbers, element by element, with broadcasting and PyTorch's rules for dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf, isnan
from typing import Any

import torch

from .code import Code
from .function import Uncovered
from .nest import Nest
from .sizes import Size, same
from .table import Call
from .values import Index, Value

NARROW, LANES = 256, 16
"""Rows shorter than this, and no multiple of that, are not computed one by one if there are functions in them."""

FUNCTION = 8
"""What a number costs at least that is a function of others."""

MOST = 64
"""Operations that a value may cost before it is given a place."""


def literal(number: Any, ctype: str, code: Code) -> str:
    """A number of Python's, or a size, in C."""
    if isinstance(number, bool):
        return "1" if number else "0"
    if isinstance(number, int | float):
        if isnan(number):
            return "NOT_A_NUMBER"
        if isinf(number):
            return "INFINITE" if number > 0 else "(-INFINITE)"
        return f"(({ctype}){number!r})"
    return f"(({ctype}){code.c(number)})"


def kind(dtype: torch.dtype) -> int:
    """Booleans before integers before floating-point numbers."""
    return 2 if dtype.is_floating_point else int(dtype != torch.bool)


def promoted(code: Code, operands: Sequence[Any]) -> torch.dtype:
    """The dtype in which operands meet: that of tensors, unless numbers or 0-dim tensors are of a higher kind."""
    whole = [x.dtype for x in operands if isinstance(x, Value) and x.shape]
    single = [x.dtype for x in operands if isinstance(x, Value) and not x.shape]
    numbers = [x for x in operands if not isinstance(x, Value)]
    plain = [
        torch.bool if isinstance(x, bool) else torch.int64 if not isinstance(x, float) else code.dtype
        for x in numbers
    ]
    result = torch.bool
    for group in (whole, single, plain):
        best = max(group, key=lambda x: (kind(x), x.itemsize), default=torch.bool)
        result = best if kind(best) > kind(result) else result
    return result


def apply(
    call: Call,
    formula: str,
    *operands: Any,
    compute: torch.dtype | Sequence[torch.dtype] | None = None,
    calls: Sequence[str] = (),
    cost: int = 1,
) -> Value:
    """The value of a formula in C of the operands {0}, {1}, ..., converted to `compute` (that of the result).

    `calls` are the vector functions in it: they are of the graph's own dtype.
    """
    code = call.code
    own = compute or call.dtype
    dtypes = [own] * len(operands) if isinstance(own, torch.dtype) else list(own)
    if calls:
        dtypes = [_called(code, x) for x in dtypes]
        code.libraries |= set(calls)
    values = [_operand(code, x, d, call.shape) for x, d in zip(operands, dtypes, strict=True)]
    if _narrow(call.shape) and not _is_flat(values, call.shape):
        values = [_apart(code, x, bool(calls)) if same(x.shape, call.shape) else x for x in values]
    return formed(call, formula, values, dtypes, cost)


def _narrow(shape: Sequence[Size]) -> bool:
    """Whether rows are short, and no whole number of vectors: what is left of each is computed one by one."""
    return bool(shape) and isinstance(shape[-1], int) and 1 < shape[-1] < NARROW and shape[-1] % LANES != 0


def _apart(code: Code, x: Value, called: bool) -> Value:
    """What a function is of, or a function, in memory of its own: functions are computed in one loop, not by rows."""
    return code.real(x) if x.place is None and (x.cost >= FUNCTION if x.flat else called) else x


def formed(
    call: Call, formula: str, values: Sequence[Value], dtypes: Sequence[torch.dtype], cost: int
) -> Value:
    """The value of a formula of values that are converted to these dtypes."""
    code, ctype = call.code, call.code.ctype(call.dtype)

    def load(nest: Nest, index: Index) -> str:
        names = [code.seen(nest, x, index, call.shape) for x in values]
        names = [converted(code, nest, n, x.dtype, d) for n, x, d in zip(names, values, dtypes, strict=True)]
        return nest.local(ctype, formula.format(*names))

    reads = frozenset().union(*(x.reads for x in values))
    flat = _is_flat(values, call.shape)
    value = Value(call.shape, call.dtype, load, reads, cost + sum(x.cost for x in values), flat)
    return code.real(value) if value.cost > MOST else value


def _is_flat(values: Sequence[Value], shape: Sequence[Size]) -> bool:
    return all(x.flat and (not x.shape or same(x.shape, shape)) for x in values)


def converted(code: Code, nest: Nest, name: str, dtype: torch.dtype, to: torch.dtype) -> str:
    """A number of one dtype as one of another."""
    if dtype == to:
        return name
    if to == torch.bool:
        return nest.local("u8", f"({name} != 0)")
    return nest.local(code.ctype(to), f"({code.ctype(to)}){name}")


def _called(code: Code, dtype: torch.dtype) -> torch.dtype:
    if dtype == torch.float64 and code.dtype != dtype:
        raise Uncovered(f"a function of float64 numbers where y has {code.name} ones: compute in {code.name}")
    return code.dtype


def _operand(code: Code, x: Any, dtype: torch.dtype, shape: Sequence[Size]) -> Value:
    if not isinstance(x, Value):
        return code.constant(literal(x, code.ctype(dtype), code), dtype)
    return code.cheap(x, cost=MOST if same(x.shape, shape) else 1)
