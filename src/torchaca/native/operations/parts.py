"""Other orders of what there is, windows of it, and tensors with parts replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .function import Uncovered
from .joining import put
from .nest import Nest
from .shapes import first_of, view
from .sizes import plain
from .table import Call, Operation
from .values import Index, Place, Value

row = partial(Operation, kind="parts")


def moved(call: Call, x: Value, index: Callable[[Nest, Sequence[str]], Sequence[str]]) -> Value:
    """What x has at an index that is computed of the own one."""
    code = call.code
    x = code.cheap(x, cost=8)

    def load(nest: Nest, at: Index) -> str:
        own = tuple("0" if n == 1 else i for i, n in zip(index(nest, tuple(at)), x.shape, strict=True))
        return code.at(nest, x, own)

    return Value(call.shape, x.dtype, load, x.reads, x.cost + 1)


def flip(call: Call, x: Value, dims: Sequence[int]) -> Value:
    """Dimensions backwards."""
    dims = [d % len(x.shape) for d in dims]
    last = [n - 1 for n in x.shape]
    return view(
        call,
        x,
        lambda s: [-k if d in dims else k for d, k in enumerate(s)],
        lambda i: [f"({call.code.c(last[d])} - {k})" if d in dims else k for d, k in enumerate(i)],
        lambda s: sum((last[d] * s[d] for d in dims), 0),
    )


def roll(call: Call, x: Value, shifts: Any, dims: Any = ()) -> Value:
    """Dimensions turned: what leaves at the end comes back in front."""
    shifts = [shifts] if not isinstance(shifts, list | tuple) else shifts
    dims = [dims] if isinstance(dims, int) else dims
    if not dims:
        raise Uncovered("roll without dims: say which, or roll x.flatten()")
    by = {d % len(x.shape): call.code.c(s) for d, s in zip(dims, shifts, strict=True)}

    def index(nest: Nest, at: Sequence[str]) -> list[str]:
        sizes = [call.code.c(n) for n in x.shape]
        return [
            nest.local("i64", f"floor_mod({i} - {by[d]}, {sizes[d]})") if d in by else i
            for d, i in enumerate(at)
        ]

    return moved(call, x, index)


def triangle(sign: str) -> Callable[..., Value]:
    """The writer of `tril` or `triu`."""

    def write(call: Call, x: Value, diagonal: Any = 0) -> Value:
        code, ctype, k = call.code, call.code.ctype(call.dtype), call.code.c(diagonal)
        x = code.cheap(x, cost=8)

        def load(nest: Nest, at: Index) -> str:
            i, j = at[-2:]
            return nest.local(ctype, f"({j} - {i} {sign} {k} ? {code.at(nest, x, at)} : 0)")

        return Value(call.shape, x.dtype, load, x.reads, x.cost + 1)

    return write


def diagonal(call: Call, x: Value, offset: Any = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """The diagonal of two dimensions, as the last one."""
    n = len(x.shape)
    dim1, dim2 = dim1 % n, dim2 % n
    others = [d for d in range(n) if d not in (dim1, dim2)]
    if not isinstance(offset, int):
        raise Uncovered("a diagonal whose offset is a size: use a number")
    down, right = max(-offset, 0), max(offset, 0)

    def index(i: Sequence[str]) -> list[str]:
        own = dict(zip(others, i, strict=False))
        return [
            f"({i[-1]} + {down})" if d == dim1 else f"({i[-1]} + {right})" if d == dim2 else own[d]
            for d in range(n)
        ]

    return view(
        call,
        x,
        lambda s: [*(s[d] for d in others), s[dim1] + s[dim2]],
        index,
        lambda s: down * s[dim1] + right * s[dim2],
    )


def unfold(call: Call, x: Value, dimension: int, size: Any, step: Any) -> Value:
    """Windows of a dimension, along a new one at the end."""
    dim, by = dimension % max(len(x.shape), 1), call.code.c(step)
    return view(
        call,
        x,
        lambda s: [*(k * step if d == dim else k for d, k in enumerate(s)), s[dim]],
        lambda i: [f"({k} * {by} + {i[-1]})" if d == dim else k for d, k in enumerate(i[:-1])],
    )


def as_strided(call: Call, x: Value, size: Any, stride: Any, storage_offset: Any = None) -> Value:
    """Any view of contiguous memory."""
    if not call.inputs[0].is_contiguous():
        raise Uncovered(
            "as_strided of a tensor that is not contiguous: use views such as permute, or .contiguous()"
        )
    start = storage_offset or 0
    return view(call, call.code.packed(x), lambda s: list(stride), lambda i: i, lambda s: start)


def slice_scatter(
    call: Call, x: Value, src: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    """A range of a dimension replaced."""
    dim %= len(x.shape)
    first = first_of(start, x.shape[dim])

    def place(whole: Place) -> Place:
        strides = tuple(s * step if d == dim else s for d, s in enumerate(whole.strides))
        return Place(whole.buffer, strides, plain(first * whole.strides[dim]))

    return replaced(call, x, src, place)


def select_scatter(call: Call, x: Value, src: Value, dim: int, index: Any) -> Value:
    """One index of a dimension replaced."""
    dim %= len(x.shape)
    at = index + x.shape[dim] if isinstance(index, int) and index < 0 else index

    def place(whole: Place) -> Place:
        others = tuple(s for d, s in enumerate(whole.strides) if d != dim)
        return Place(whole.buffer, others, plain(at * whole.strides[dim]))

    return replaced(call, x, src, place)


def diagonal_scatter(
    call: Call, x: Value, src: Value, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Value:
    """A diagonal replaced."""
    n = len(x.shape)
    dim1, dim2 = dim1 % n, dim2 % n

    def place(whole: Place) -> Place:
        s = whole.strides
        strides = (*(k for d, k in enumerate(s) if d not in (dim1, dim2)), plain(s[dim1] + s[dim2]))
        return Place(whole.buffer, strides, plain(max(-offset, 0) * s[dim1] + max(offset, 0) * s[dim2]))

    return replaced(call, x, src, place)


def replaced(call: Call, x: Value, src: Value, place: Callable[[Place], Place]) -> Value:
    """A copy of x with other numbers in a place of it."""
    whole = call.code.new(call.shape, call.dtype)
    assert whole.place is not None
    put(call, x, whole, call.shape, whole.place, apart=False)
    put(call, src, whole, src.shape, place(whole.place), apart=False)
    return whole


OPERATIONS = (
    row("flip", example="x.flip(1) * 2 + y.flip(0, 1)", write=flip),
    row("roll", example="x.roll(1, 1) - 2 * x + x.roll(-1, 0)", write=roll),
    row("tril", example="(x[:, :, None] * v).tril(-1)", write=triangle("<=")),
    row("triu", example="(x[:, :, None] * v).triu()", write=triangle(">=")),
    row("diagonal", example="(x[:, :, None] * v).diagonal(1, 1, 2)", write=diagonal),
    row("unfold", example="x.unfold(1, 2, 1) * 2", write=unfold),
    row("as_strided", example="x.detach().as_strided((3, 2), (4, 1), 1) * 2", write=as_strided),
    row("slice_scatter", example="torch.slice_scatter(x, y[:, :2], 1, 1, 3)", write=slice_scatter),
    row("select_scatter", example="torch.select_scatter(x, y[:, 0], 1, -1)", write=select_scatter),
    row(
        "diagonal_scatter",
        example="torch.diagonal_scatter(x[:, :, None] * v, y, 0, 1, 2)",
        write=diagonal_scatter,
    ),
)
