"""Operations that take or put numbers where other numbers say.

An index beyond the end, for which PyTorch raises, gives nan: the solve fails and is explained by the eager loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .apply import apply, converted, kind
from .code import Code
from .function import Uncovered
from .nest import Nest
from .sizes import Size
from .table import Call, Operation
from .values import Index, Value, used

row = partial(Operation, kind="indexing")


def taken(
    call: Call,
    x: Value,
    where: Callable[[Nest, Sequence[str]], tuple[Sequence[str], Sequence[int]]],
    reads: Sequence[Value],
) -> Value:
    """What x has where `where` says, for an index of the result: an index of x, and in which dimensions to check it."""
    code = call.code
    x = code.real(x)
    place, ctype = x.place, code.ctype(x.dtype)
    assert place is not None
    otherwise = "NOT_A_NUMBER" if x.dtype.is_floating_point else "0"

    def load(nest: Nest, at: Index) -> str:
        index, checked = where(nest, tuple(at))
        inside = inside_of(code, nest, index, x.shape, checked)
        return nest.read_if(ctype, place.buffer, code.offset(place, index), inside, otherwise)

    others = frozenset().union(*(v.reads for v in reads))
    return Value(call.shape, x.dtype, load, x.reads | others, 3 + sum(v.cost for v in reads))


def inside_of(
    code: Code, nest: Nest, index: Sequence[str], shape: Sequence[Size], checked: Sequence[int]
) -> str:
    """Whether an index is one of that shape."""
    parts = [f"(0 <= {index[d]} && {index[d]} < {code.c(shape[d])})" for d in checked]
    return nest.local("int", f"({' && '.join(parts) or '1'})")


def wrapped(code: Code, nest: Nest, i: str, n: Size) -> str:
    """An index that counts from the end if it is negative."""
    return nest.local("i64", f"{i} < 0 ? {i} + {code.c(n)} : (i64){i}")


def whole_number(x: Value) -> Value:
    """Refuse an index that is no integer."""
    if x.dtype == torch.bool:
        raise Uncovered("indexing by booleans: the result's shape depends on values; use torch.where")
    return x


def gather(call: Call, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    """One number of a dimension for each index."""
    dim %= max(len(x.shape), 1)
    if not x.shape:
        return x

    def where(nest: Nest, at: Sequence[str]) -> tuple[Sequence[str], Sequence[int]]:
        found = call.code.at(nest, index, tuple(at))
        return [found if d == dim else i for d, i in enumerate(at)], [dim]

    return taken(call, x, where, [whole_number(index)])


def index_select(call: Call, x: Value, dim: int, index: Value) -> Value:
    """The indices of a dimension that are named."""
    dim %= max(len(x.shape), 1)

    def where(nest: Nest, at: Sequence[str]) -> tuple[Sequence[str], Sequence[int]]:
        found = call.code.at(nest, index, used((at[dim],), (call.shape[dim],), index.shape))
        return [found if d == dim else i for d, i in enumerate(at)], [dim]

    return taken(call, x, where, [whole_number(index)])


class Advanced:
    """What `x[a, :, b]` means: which dimensions have an index, and where those of the indices are in the result."""

    def __init__(self, call: Call, x: Value, indices: Sequence[Value | None]) -> None:
        self.code, self.shape = call.code, x.shape
        self.by = {d: whole_number(i) for d, i in enumerate(indices) if i is not None}
        dims = sorted(self.by)
        together = dims == list(range(dims[0], dims[-1] + 1))
        self.front = dims[0] if together else 0
        self.rank = max(len(i.shape) for i in self.by.values())

    def where(self, nest: Nest, at: Sequence[str], shape: Sequence[Size]) -> tuple[list[str], list[int]]:
        """The index of x for one of the result, which has that shape; and the dimensions that have to be checked."""
        middle = slice(self.front, self.front + self.rank)
        rest = iter([*at[: self.front], *at[middle.stop :]])
        index = []
        for d, n in enumerate(self.shape):
            if d in self.by:
                found = self.code.seen(nest, self.by[d], tuple(at[middle]), shape[middle])
                index.append(wrapped(self.code, nest, found, n))
            else:
                i = next(rest)
                index.append("0" if n == 1 else i)
        return index, sorted(self.by)


def index(call: Call, x: Value, indices: Sequence[Value | None]) -> Value:
    """`x[a, :, b]` with tensors of integers."""
    how = Advanced(call, x, indices)
    return taken(call, x, lambda nest, at: how.where(nest, at, call.shape), list(how.by.values()))


def scattered(
    call: Call,
    x: Value,
    src: Value,
    shape: Sequence[Size],
    where: Callable[[Nest, Sequence[str]], tuple[Sequence[str], Sequence[int]]],
    combine: str,
) -> Value:
    """A copy of x in which the numbers of src, of that shape, are put, or combined with what is there."""
    code, whole = call.code, call.code.new(call.shape, call.dtype)
    assert whole.place is not None
    code.write(code.cheap(x, cost=1 << 30), whole)
    src = code.cheap(src, cost=1 << 30)
    nest = Nest(tuple(code.c(n) for n in shape), len(shape), ordered=True)
    index, checked = where(nest, nest.index)
    number = converted(code, nest, code.seen(nest, src, nest.index, shape), src.dtype, call.dtype)
    inside = inside_of(code, nest, index, x.shape, checked)
    buffer = whole.place.buffer
    nest.scatter(buffer, code.offset(whole.place, index), number, combine, f"if ({inside}) ")
    if kind(call.dtype) == 2:
        filled = f"{code.c(code.buffers[buffer].numel)} > 0"
        nest.scatter(buffer, "0", "NOT_A_NUMBER", "{value}", f"if (!{inside} && {filled}) ")
    nest.reads.add(buffer)
    code.append(nest, buffer)
    return whole


def scatter(combine: str) -> Callable[..., Value]:
    """The writer of `scatter` or `scatter_add`."""

    def write(call: Call, x: Value, dim: int, index: Value, src: Any = 0, *, value: Any = None) -> Value:
        dim %= max(len(x.shape), 1)
        src = src if value is None else value
        src = src if isinstance(src, Value) else apply(Call(call.code, (), call.dtype), "{0}", src, cost=0)

        def where(nest: Nest, at: Sequence[str]) -> tuple[Sequence[str], Sequence[int]]:
            found = call.code.at(nest, index, tuple(at))
            return [found if d == dim else i for d, i in enumerate(at)], [dim]

        return scattered(call, x, _cut(call, src, index.shape), index.shape, where, combine)

    return write


def _cut(call: Call, src: Value, shape: Sequence[Size]) -> Value:
    """The part of src that has indices."""
    if not src.shape:
        return src
    return Value(tuple(shape), src.dtype, src.load, src.reads, src.cost)


def index_put(
    call: Call,
    x: Value,
    indices: Sequence[Value | None],
    values: Value,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Value:
    """`x[a, :, b] = values`, or `+=`, in a copy of x."""
    how = Advanced(call, x, indices)
    middle = _broadcast([i.shape for i in how.by.values()])
    others = [n for d, n in enumerate(x.shape) if d not in how.by]
    shape = [*others[: how.front], *middle, *others[how.front :]]
    combine = "{old} + {value}" if accumulate else "{value}"
    return scattered(call, x, values, shape, lambda nest, at: how.where(nest, at, shape), combine)


def _broadcast(shapes: Sequence[Sequence[Size]]) -> list[Size]:
    result: list[Size] = [1] * max(map(len, shapes))
    for shape in shapes:
        for d, n in enumerate(reversed(shape), 1):
            result[-d] = n if n != 1 else result[-d]
    return result


def index_add(call: Call, x: Value, dim: int, index: Value, source: Value, *, alpha: Any = 1) -> Value:
    """A copy of x to which the numbers of source are added, at the indices of a dimension that are named."""
    dim %= max(len(x.shape), 1)
    if alpha != 1:
        source = apply(Call(call.code, source.shape, call.dtype), "{0} * {1}", source, alpha)

    def where(nest: Nest, at: Sequence[str]) -> tuple[Sequence[str], Sequence[int]]:
        found = call.code.at(nest, index, used((at[dim],), (source.shape[dim],), index.shape))
        return [found if d == dim else i for d, i in enumerate(at)], [dim]

    return scattered(call, x, source, source.shape, where, "{old} + {value}")


def searchsorted(
    call: Call,
    ordered: Value,
    x: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Value:
    """Where numbers would go in an ordered sequence."""
    code = call.code
    if sorter is not None:
        raise Uncovered("searchsorted with a sorter: sort the sequence before the solve")
    ordered = code.real(ordered)
    place = ordered.place
    assert place is not None
    x = x if isinstance(x, Value) else apply(Call(code, (), ordered.dtype), "{0}", x, cost=0)
    if ordered.dtype != code.dtype:
        raise Uncovered(
            f"searchsorted in {str(ordered.dtype).removeprefix('torch.')} numbers: use {code.name} ones"
        )
    n, step = code.c(ordered.shape[-1]), code.c(place.strides[-1])
    after = int(right or side == "right")

    def load(nest: Nest, at: Index) -> str:
        lead = tuple(at)[: len(ordered.shape) - 1]
        start = code.offset(place, [*lead, "0"])
        number = converted(code, nest, code.seen(nest, x, tuple(at), call.shape), x.dtype, ordered.dtype)
        if place.buffer in nest.stored:
            nest.read("T", place.buffer, "")
        nest.reads.add(place.buffer)
        found = nest.local("i64", f"place_of({number}, {place.buffer} + {start}, {n}, {step}, {after})")
        return converted(code, nest, found, torch.int64, call.dtype)

    return Value(call.shape, call.dtype, load, ordered.reads | x.reads, 16 + x.cost)


def bucketize(call: Call, x: Any, boundaries: Value, **options: Any) -> Value:
    """In which interval numbers are."""
    return searchsorted(call, boundaries, x, **options)


OPERATIONS = (
    row("gather", example="x.gather(1, i) * 2", write=gather),
    row("index_select", example="x.index_select(1, i[0]) * 2", write=index_select),
    row("index", example="x[:, i[0]] * y[:, None, i[1]][:, 0]", overloads=("Tensor",), write=index),
    row(
        "_unsafe_index",
        example="torch.ops.aten._unsafe_index(x, [None, i[0]])",
        overloads=("Tensor",),
        write=index,
    ),
    row(
        "index_put", example="x.index_put((i[:, 0] * 0, i[:, 1]), y[:, 0], accumulate=True)", write=index_put
    ),
    row("_unsafe_index_put", example="torch.nn.functional.embedding(i, w).sum(1)", write=index_put),
    row("index_add", example="x.index_add(1, i[0], y)", write=index_add),
    row(
        "scatter",
        example="x.scatter(1, i[:, :1], y[:, :1])",
        overloads=("src", "value"),
        write=scatter("{value}"),
    ),
    row("scatter_add", example="x.scatter_add(1, i, y)", write=scatter("{old} + {value}")),
    row(
        "searchsorted",
        example="x * torch.searchsorted(v.abs().cumsum(0), x)",
        overloads=("Tensor", "Scalar"),
        write=searchsorted,
    ),
    row(
        "bucketize",
        example="x * torch.bucketize(x, v.abs().cumsum(0))",
        overloads=("Tensor", "Scalar"),
        write=bucketize,
    ),
)
