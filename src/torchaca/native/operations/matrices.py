"""Matrix products in C: small ones as loops, larger ones by `gemm` of the prelude."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .sizes import Size
from .values import Product, Value

if TYPE_CHECKING:
    from .code import Code
    from .nest import Nest
    from .values import Index

SMALL = 512
"""Multiplications of a product of known size up to which its loops are written out, fused and unrolled."""


def multiply(code: Code, product: Product, target: Value) -> None:
    """Compute a product into contiguous memory."""
    a, b = product.a, product.b
    m, k, n = *a.shape, b.shape[1]
    if all(isinstance(x, int) for x in (m, k, n)) and m * k * n <= SMALL:
        return code.gather(_terms(code, product, m, k, n), [2], "0", "{s} + {v}", target)
    (ap, at, al), (bp, bt, bl) = _matrix(code, a), _matrix(code, b)
    if product.transposed:  # c^T = b^T a^T
        (ap, at, al), (bp, bt, bl), m, n = (bp, 1 - bt, bl), (ap, 1 - at, al), n, m
    code.libraries.add("gemm")
    sizes = f"{code.c(m)}, {code.c(n)}, {code.c(k)}"
    line = f"gemm({at}, {bt}, {sizes}, {ap}, {al}, {bp}, {bl}, {code.pointer(target)}, {code.c(n)});"
    code.add([line], [code.real(a), code.real(b)], target)


def _terms(code: Code, product: Product, m: Size, k: Size, n: Size) -> Value:
    a, b = product.a, product.b

    def load(nest: Nest, index: Index) -> str:
        i, j, p = index
        if product.transposed:
            i, j = j, i
        left, right = code.seen(nest, a, (i, p), (m, k)), code.seen(nest, b, (p, j), (k, n))
        return nest.local("T", f"{left} * {right}")

    shape = (n, m, k) if product.transposed else (m, n, k)
    return Value(shape, a.dtype, load, a.reads | b.reads, a.cost + b.cost + 1)


def leading(rows: Size, columns: Size, strides: tuple[Size, Size]) -> tuple[int, Size] | None:
    """How BLAS takes a matrix of these strides: whether as a transposed one, and its leading dimension; None if not."""
    r, c = strides
    if columns == 1 or c == 1:
        return None if r == 0 and rows != 1 else (0, columns if rows == 1 else r)
    if rows == 1 or r == 1:
        return None if c == 0 else (1, c)
    return None


def _matrix(code: Code, value: Value) -> tuple[str, int, str]:
    value = code.real(value)
    assert value.place is not None
    rows, columns = value.shape
    found = leading(rows, columns, value.place.strides[:2])
    if found is None:
        value, found = copied(code, value), (0, columns)
    transposed, stride = found
    return code.pointer(value), transposed, code.c(stride)


def copied(code: Code, value: Value) -> Value:
    """The same value in contiguous memory of its own."""
    if value not in code.laid:
        target = code.new(value.shape, value.dtype)
        code.write(value, target)
        code.laid[value] = target
    return code.laid[value]
