"""Products of matrices and vectors."""

from __future__ import annotations

from functools import partial
from typing import Any

from .apply import apply
from .function import Uncovered
from .matrices import SMALL, copied, leading
from .nest import Nest
from .table import Call, Operation
from .values import Index, Place, Product, Value

row = partial(Operation, kind="products")


def lazy(call: Call, a: Value, b: Value) -> Value:
    """The product of two matrices, computed where it is used first, transposed if that is how it is used."""
    own_numbers(call)
    a, b = call.code.real(a), call.code.real(b)
    shape = (a.shape[0], b.shape[1])
    return Value(shape, a.dtype, _unloaded, a.reads | b.reads, 1, product=Product(a, b))


def own_numbers(call: Call) -> None:
    """Refuse products of other numbers than the graph's own."""
    if call.dtype != call.code.dtype:
        raise Uncovered(
            f"a product of {str(call.dtype).removeprefix('torch.')} numbers: use {call.code.name} ones"
        )


def _unloaded(nest: Nest, index: Index) -> str:
    raise AssertionError("a product is computed as a whole")


def mm(call: Call, a: Value, b: Value) -> Value:
    """The product of two matrices."""
    return lazy(call, a, b)


def addmm(call: Call, c: Value, a: Value, b: Value, *, beta: Any = 1, alpha: Any = 1) -> Value:
    """The product of two matrices, and a bias."""
    return scaled(call, c, call.code.real(lazy(call, a, b)), beta, alpha)


def scaled(call: Call, c: Value, ab: Value, beta: Any, alpha: Any) -> Value:
    """`beta c + alpha ab`."""
    if alpha != 1:
        ab = apply(call, "{0} * {1}", ab, alpha)
    if beta == 0:
        return ab
    return apply(call, "{0} + {1}", ab, c) if beta == 1 else apply(call, "{0} + {2} * {1}", ab, c, beta)


def mv(call: Call, a: Value, x: Value) -> Value:
    """The product of a matrix and a vector."""
    x = call.code.real(x)
    assert x.place is not None
    column = Place(x.place.buffer, (*x.place.strides, 1), x.place.offset)
    b = call.code.placed(column.buffer, (*x.shape, 1), x.dtype, column)
    found = call.code.real(lazy(call, a, b))
    assert found.place is not None
    return call.code.placed(found.place.buffer, call.shape, call.dtype)


def dot(call: Call, a: Value, b: Value) -> Value:
    """The product of two vectors."""
    code, target = call.code, call.code.new((), call.dtype)
    terms = Call(code, a.shape, call.dtype)
    code.gather(apply(terms, "{0} * {1}", a, b), [0], "0", "{s} + {v}", target)
    return target


def bmm(call: Call, a: Value, b: Value) -> Value:
    """Products of matrices, one a batch index."""
    own_numbers(call)
    code, target = call.code, call.code.new(call.shape, call.dtype)
    (z, m, k), n = a.shape, b.shape[2]
    a, b = code.real(a), code.real(b)
    if all(isinstance(x, int) for x in (m, k, n)) and m * k * n <= SMALL:

        def load(nest: Nest, index: Index) -> str:
            q, i, j, p = index
            left, right = (code.seen(nest, x, at, x.shape) for x, at in ((a, (q, i, p)), (b, (q, p, j))))
            return nest.local("T", f"{left} * {right}")

        terms = Value((z, m, n, k), call.dtype, load, a.reads | b.reads, 1)
        code.gather(terms, [3], "0", "{s} + {v}", target)
        return target
    (a, ap, at, al), (b, bp, bt, bl) = _stack(call, a), _stack(call, b)
    code.libraries.add("gemm")
    sizes = f"{code.c(m)}, {code.c(n)}, {code.c(k)}"
    each = f"{code.pointer(target)} + z * {code.c(m)} * {code.c(n)}"
    line = f"gemm({at}, {bt}, {sizes}, {ap}, {al}, {bp}, {bl}, {each}, {code.c(n)});"
    code.add([f"for (i64 z = 0; z < {code.c(z)}; z++) {line}"], [a, b], target)
    return target


def _stack(call: Call, x: Value) -> tuple[Value, str, int, str]:
    """A batch of matrices with a place: the pointer to matrix z, whether it is transposed, its leading dimension."""
    code = call.code
    assert x.place is not None
    rows, columns = x.shape[1:]
    found = leading(rows, columns, x.place.strides[1:3])
    if found is None:
        x, found = copied(code, x), (0, columns)
    assert x.place is not None
    transposed, stride = found
    return x, f"{code.pointer(x)} + z * {code.c(x.place.strides[0])}", transposed, code.c(stride)


OPERATIONS = (
    row("mm", example="x @ w", write=mm),
    row("addmm", example="torch.addmm(x[:, :1], x, w)", write=addmm),
    row("mv", example="x @ v", write=mv),
    row("dot", example="x * torch.dot(v, v)", write=dot),
    row("bmm", example="s @ s.mT", write=bmm),
)
