"""What a graph is translated to, and what is raised where it cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class Uncovered(Exception):
    """A graph has an operation, a dtype or a size that is not translated; the message says which, and what to write."""


@dataclass(frozen=True)
class Argument:
    """A placeholder of the graph as the C function takes it.

    Attributes
    ----------
    kind
        "data": a tensor, `in[at]` points to its first element, and it has the strides of the placeholder's
        `meta["val"]`. "size": an integer, which is `sizes` of its symbol (see `Function.symbols`) or a constant.
        "number": a floating-point number, `numbers[at]`.
    at
        The place in the C function's array of that kind; None for sizes.
    """

    kind: Literal["data", "size", "number"]
    at: int | None


@dataclass(frozen=True)
class Symbol:
    """A symbol of sizes: its name in the graph, and where to read it.

    It is the size of placeholder number `argument` in dimension `dim`; or the placeholder itself where `dim` is None.
    """

    name: str
    argument: int
    dim: int | None


@dataclass(frozen=True)
class CFunction:
    """A graph as a C function.

    It is `INTERNAL void NAME(const void *const *in, void *const *out, const i64 *sizes, const double *numbers,
    T *workspace)`, where INTERNAL is `static`, or `static __device__` for CUDA.

    Attributes
    ----------
    text
        The function, and helpers of its own. It needs `prelude(dtype, libraries)` in front of it, once.
    arguments
        The placeholders in order.
    outputs
        The shape of each output, as C expressions in `sizes`; `out[i]` is written contiguous, and must overlap neither
        another output nor an input. Its dtype is that of the graph's output.
    symbols
        What `sizes` has, in order.
    workspace
        A C expression in `sizes` for the number of bytes that `workspace` points to, which is aligned to 64.
    libraries
        What the text calls that is not in it: "gemm", and names of vector functions ("tanh").
    """

    text: str
    arguments: tuple[Argument, ...]
    outputs: tuple[tuple[str, ...], ...]
    symbols: tuple[Symbol, ...]
    workspace: str
    libraries: frozenset[str]
