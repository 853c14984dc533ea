"""Sizes of a graph: numbers, or expressions in the symbols of its inputs' sizes; and both as C."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .function import Symbol, Uncovered

Size = Any
"""A size, a stride or an offset: an integer wherever it is known, else PyTorch's (SymPy's) expression."""


def size_of(x: Any) -> Size:
    """A size as PyTorch has it: a number stays one, what is symbolic becomes its expression."""
    return plain(x.node.expr) if isinstance(x, torch.SymInt | torch.SymFloat) else x


def plain(expr: Any) -> Size:
    """An expression that is a whole number as a number."""
    return int(expr) if getattr(expr, "is_Integer", False) else expr


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes: the same expression for the same factors in any order."""
    result: Any = 1
    for size in sizes:
        result = result * size
    return result if isinstance(result, int) else plain(result.expand())


def dense(shape: Sequence[Size]) -> tuple[Size, ...]:
    """The strides of a contiguous tensor of that shape."""
    result: list[Size] = []
    step: Size = 1
    for size in reversed(shape):
        result.append(step)
        step = product((step, size))
    return tuple(reversed(result))


def same(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """Whether two shapes are the same for all values of their symbols."""
    return len(a) == len(b) and all(x == y for x, y in zip(a, b, strict=True))


FUNCTIONS = {
    "FloorDiv": "floor_div({}, {})",
    "CleanDiv": "({} / {})",
    "Mod": "floor_mod({}, {})",
    "PythonMod": "floor_mod({}, {})",
    "IntTrueDiv": "((double){} / (double){})",
    "FloatTrueDiv": "({} / {})",
    "Max": "LARGER({}, {})",
    "Min": "SMALLER({}, {})",
}
"""Functions of sizes by the names of their classes, from left to right where there are more than two arguments."""


@dataclass
class Symbols:
    """The symbols that a function takes as sizes and numbers, by the names that they have in C."""

    names: dict[Any, str]
    taken: list[Symbol]

    @staticmethod
    def of(holders: Sequence[Any]) -> Symbols:
        """Those of the inputs `holders`, the values of placeholders: each where it stands alone for the first time."""
        own = Symbols({}, [])
        numbers = [x for x in holders if isinstance(x, torch.SymFloat | float)]
        for i, value in enumerate(holders):
            if isinstance(value, torch.SymInt):
                own._take(value, i, None)
            elif isinstance(value, torch.Tensor):
                for d, n in enumerate(value.shape):
                    own._take(n, i, d)
        own.names |= {size_of(x): f"z{i}" for i, x in enumerate(numbers) if isinstance(x, torch.SymFloat)}
        return own

    def _take(self, size: Any, argument: int, dim: int | None) -> None:
        symbol = size_of(size)
        if getattr(symbol, "is_Symbol", False) and symbol not in self.names:
            self.names[symbol] = f"n{len(self.names)}"
            self.taken.append(Symbol(str(symbol), argument, dim))

    def c(self, size: Size) -> str:
        """The size, or the number, in C.

        Raises
        ------
        Uncovered
            If it depends on more than the sizes of the inputs.
        """
        if isinstance(size, int) or getattr(size, "is_Integer", False):
            return str(int(size))
        if size in self.names:
            return self.names[size]
        if isinstance(size, float) or size.is_Float or size.is_Rational:
            return repr(float(size))
        return self._composed(size, type(size).__name__)

    def _composed(self, size: Any, kind: str) -> str:
        if size.is_Add or size.is_Mul:
            return f"({(' + ' if size.is_Add else ' * ').join(map(self.c, size.args))})"
        if size.is_Pow and size.exp.is_Integer and size.exp > 0:
            return f"({' * '.join([self.c(size.base)] * int(size.exp))})"
        if kind in ("ToFloat", "Identity"):
            return f"((double){self.c(size.args[0])})" if kind == "ToFloat" else self.c(size.args[0])
        if kind in FUNCTIONS:
            first, *rest = map(self.c, size.args)
            for x in rest:
                first = FUNCTIONS[kind].format(first, x)
            return first
        raise Uncovered(
            f"a size that is no expression in the sizes of f's inputs ({kind}): it depends on values; "
            "compute with shapes that do not"
        )


def in_sizes(text: str) -> str:
    """A C expression in the names of sizes as one in `sizes`, the argument of the C function."""
    return re.sub(r"\bn(\d+)\b", r"sizes[\1]", text)
