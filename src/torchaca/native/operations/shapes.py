"""Views: other shapes and parts of what there is, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .apply import apply
from .nest import Nest
from .regroup import regrouped
from .sizes import Size, plain, product, same
from .table import Call, Operation
from .values import Index, Place, Product, Value

row = partial(Operation, kind="views")


def view(
    call: Call,
    x: Value,
    strides: Callable[[Sequence[Any]], Sequence[Any]],
    index: Callable[[Sequence[str]], Sequence[str]],
    offset: Callable[[Sequence[Size]], Size] = lambda strides: 0,
    flat: bool = False,
    shape: Sequence[Size] | None = None,
) -> Value:
    """What x has at `index(i)`; or where it lies, if it has a place, by the view's strides and offset of those of x."""
    code = call.code
    shape = tuple(call.shape if shape is None else shape)
    x = code.cheap(x, cost=1 << 30)
    if x.place is not None:
        old = x.place
        place = Place(old.buffer, tuple(strides(old.strides)), plain(old.offset + offset(old.strides)))
        return code.placed(old.buffer, shape, x.dtype, place)

    def load(nest: Nest, at: Index) -> str:
        if isinstance(at, str):
            return code.at(nest, x, at)
        own = tuple("0" if n == 1 else i for i, n in zip(index(at), x.shape, strict=True))
        return code.at(nest, x, own)

    return Value(shape, x.dtype, load, x.reads, x.cost, flat and x.flat)


def permute(call: Call, x: Value, dims: Sequence[int]) -> Value:
    """Dimensions in another order."""
    order = [d % len(x.shape) for d in dims]
    if x.product is not None and order == [1, 0]:
        turned = Product(x.product.a, x.product.b, not x.product.transposed)
        return Value(call.shape, x.dtype, x.load, x.reads, x.cost, product=turned)
    back = [order.index(d) for d in range(len(order))]
    return view(
        call,
        x,
        lambda s: [s[d] for d in order],
        lambda i: [i[d] for d in back],
        flat=order == back == sorted(order),
    )


def transpose(call: Call, x: Value, dim0: int, dim1: int) -> Value:
    """Two dimensions exchanged."""
    order = list(range(len(x.shape)))
    if order:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(call, x, order)


def t(call: Call, x: Value) -> Value:
    """A matrix transposed."""
    return permute(call, x, list(reversed(range(len(x.shape)))))


def reshape(call: Call, x: Value, *_: Any) -> Value:
    """The same numbers, row-major, in another shape."""
    shape = call.shape
    if same([n for n in shape if n != 1], [n for n in x.shape if n != 1]):
        return _with_ones(call, x)
    x = call.code.real(x)
    assert x.place is not None
    strides = regrouped(x.shape, x.place.strides, shape)
    if strides is None:
        x = call.code.packed(x)
        return view(call, x, lambda s: _dense(shape), lambda i: i)
    return view(call, x, lambda s: strides, lambda i: i)


def _dense(shape: Sequence[Size]) -> list[Size]:
    return [product(shape[d + 1 :]) for d in range(len(shape))]


def _with_ones(call: Call, x: Value) -> Value:
    """The same dimensions, but for those of size 1."""
    before = [d for d, n in enumerate(x.shape) if n != 1]
    after = [d for d, n in enumerate(call.shape) if n != 1]
    to = dict(zip(after, before, strict=True))
    back = {d: e for e, d in to.items()}
    return view(
        call,
        x,
        lambda s: [s[to[d]] if d in to else 1 for d in range(len(call.shape))],
        lambda i: [i[back[d]] if d in back else "0" for d in range(len(x.shape))],
        flat=True,
    )


def expand(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    """The same numbers again and again."""
    if same(x.shape, call.shape):
        return x
    lead = len(call.shape) - len(x.shape)
    x = call.code.cheap(x, cost=1)

    def strides(s: Sequence[Any]) -> list[Any]:
        own = [0 if n == 1 and m != 1 else k for k, n, m in zip(s, x.shape, call.shape[lead:], strict=True)]
        return [0] * lead + own

    return view(call, x, strides, lambda i: i[lead:])


def copied(call: Call, x: Value, src: Value, *_: Any) -> Value:
    """The numbers of src in the place of those of x."""
    return expand(
        call, src if src.dtype == call.dtype else apply(Call(call.code, src.shape, call.dtype), "{0}", src)
    )


def select(call: Call, x: Value, dim: int, index: Any) -> Value:
    """One index of a dimension."""
    return selected(call, x, dim % len(x.shape), index, call.shape)


def selected(call: Call, x: Value, dim: int, index: Any, shape: Sequence[Size]) -> Value:
    """What x has at an index of a dimension; negative ones count from the end."""
    index = index + x.shape[dim] if isinstance(index, int) and index < 0 else index
    place = call.code.c(index)
    return view(
        call,
        x,
        lambda s: [k for d, k in enumerate(s) if d != dim],
        lambda i: [*i[:dim], place, *i[dim:]],
        lambda s: index * s[dim],
        shape=shape,
    )


def piece(call: Call, x: Value, dim: int, start: Any, step: int, shape: Sequence[Size]) -> Value:
    """Every `step`-th of a dimension from `start` on."""
    first = call.code.c(start)

    def index(i: Sequence[str]) -> list[str]:
        return [f"({first} + {step} * ({k}))" if d == dim else k for d, k in enumerate(i)]

    return view(
        call,
        x,
        lambda s: [k * step if d == dim else k for d, k in enumerate(s)],
        index if (start, step) != (0, 1) else lambda i: i,
        lambda s: start * s[dim],
        shape=shape,
    )


def slice_(call: Call, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    """A range of a dimension."""
    if same(x.shape, call.shape):
        return x
    dim %= len(x.shape)
    return piece(call, x, dim, first_of(start, x.shape[dim]), step, call.shape)


def first_of(start: Any, n: Size) -> Size:
    """Where a slice of n begins: None is the front, negative ones count from the end, what is beyond is the end."""
    start = 0 if start is None else start
    if isinstance(start, int) and isinstance(n, int):
        return min(max(start + n if start < 0 else start, 0), n)
    return n + start if isinstance(start, int) and start < 0 else start


def split(call: Call, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    """A dimension in pieces."""
    dim %= len(x.shape)
    parts, start = [], 0
    for shape, _ in call.results:
        parts.append(piece(call, x, dim, start, 1, shape))
        start = plain(start + shape[dim])
    return parts


def unbind(call: Call, x: Value, dim: int = 0) -> list[Value]:
    """A dimension, index by index."""
    dim %= len(x.shape)
    return [selected(call, x, dim, i, shape) for i, (shape, _) in enumerate(call.results)]


OPERATIONS = (
    row("permute", example="s.permute(2, 0, 1) * 2", write=permute),
    row("transpose", example="s.transpose(0, 2) * 2", overloads=("int",), write=transpose),
    row("t", example="w.t() * 2", write=t),
    row("view", example="x.view(-1) * 2", write=reshape),
    row("_unsafe_view", example="s @ w", write=reshape),
    row("expand", example="(x * v.expand(x.shape[0], 4)).sin()", write=expand),
    row("copy", example="torch.ops.aten.copy(x.detach(), y[:1].detach())", write=copied),
    row("unsqueeze", example="x.unsqueeze(1) * s.permute(1, 0, 2)", write=reshape),
    row(
        "squeeze",
        example="x.unsqueeze(1).squeeze(1) * 2",
        overloads=("default", "dim", "dims"),
        write=reshape,
    ),
    row("select", example="x[:, 1] * x[:, -1]", overloads=("int",), write=select),
    row("slice", example="x[:, 1:] * x[:, :-1]", overloads=("Tensor",), write=slice_),
    row("split", example="x.split(2, 1)[1] * 2", overloads=("Tensor",), write=split),
    row("split_with_sizes", example="x.split((1, 3), 1)[1] * 2", write=split),
    row("unbind", example="x.unbind(1)[0] * x.unbind(1)[1]", overloads=("int",), write=unbind),
)
