"""The numbers of an explicit Runge-Kutta method: read exactly, checked for contradictions, completed.

Notation as in `torchaca.methods.runge_kutta`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from .interpolants import HERMITE_ORDER, hermite_of_stages

Row: TypeAlias = tuple[Fraction, ...]

CLOSE = Fraction(1, 10**13)
"""How far sums may be off: authors round their coefficients."""


def parse_row(text: str) -> Row:
    """Whitespace-separated rationals or decimals as exact numbers."""
    return tuple(Fraction(number) for number in text.split())


def parse_rows(text: str) -> tuple[Row, ...]:
    """One row a line."""
    return tuple(parse_row(line) for line in text.splitlines() if line.strip())


def as_text(rows: Sequence[Sequence[Fraction]]) -> str:
    """The inverse of `parse_rows`."""
    return "\n".join(" ".join(map(str, row)) for row in rows)


@dataclass(frozen=True)
class Interpolant:
    """What `RungeKutta` takes for its interpolant, under the names that it has there; by default it makes its own."""

    dense: str = ""
    dense_order: int = 0
    dense_c: str = ""
    dense_a: str = ""

    def complete(self, name: str, order: int, c: Row, a: Sequence[Row], b: Row) -> Interpolant:
        """Take Hermite's cubic if no other is given.

        Raises
        ------
        ValueError
            If only a part of it is given.
        """
        if self == Interpolant():
            return hermite(order, c, a, b)
        if not self.dense:
            raise ValueError(
                f"{name}: dense_order, dense_c and dense_a describe the interpolant in dense: give dense as well, or "
                "none of them for Hermite's cubic"
            )
        if self.dense_order < 1:
            raise ValueError(
                f"{name}: dense needs dense_order, the interpolant's order, got {self.dense_order}"
            )
        return self


def hermite(order: int, c: Row, a: Sequence[Row], b: Row) -> Interpolant:
    """Hermite's cubic through y0, y1, f0 and f1 for a method of `order`.

    f1 is the last stage (FSAL), or else a stage of the interpolant's own. y1 is of the method's order, and so is the
    cubic, up to its own 3.
    """
    fsal, q = is_fsal(c, a, b), min(order, HERMITE_ORDER)
    dense = as_text(hermite_of_stages(b, len(b) - fsal))
    return Interpolant(dense, q) if fsal else Interpolant(dense, q, "1", as_text([b]))


def linear(b: Row) -> Interpolant:
    """The straight line from y0 to y1."""
    return Interpolant(as_text([[x] for x in b]), 1)


def is_fsal(c: Row, a: Sequence[Row], b: Row) -> bool:
    """Whether the last stage is f(t1, y1), the next step's first ("first same as last")."""
    last = len(b) - 1
    return c[last] == 1 and a[last] == b[:-1]


def check_method(name: str, c: Row, a: Sequence[Row], b: Row, b_hat: Row) -> None:
    """Refuse a method whose numbers contradict each other.

    Raises
    ------
    ValueError
    """
    if len(c) != len(a):
        raise ValueError(
            f"{name}: c has {len(c)} nodes, but a is for {len(a)} stages: it has no row for the first"
        )
    check_rows(name, c, a)
    if len(b) != len(c):
        raise ValueError(f"{name}: b must have {len(c)} entries, one a stage, got {len(b)}")
    if not _equal(sum(b), 1):
        raise ValueError(f"{name}: b must add up to 1, got {_shown(sum(b))}")
    if b_hat and not (len(b_hat) == len(b) and _equal(sum(b_hat), 1)):
        raise ValueError(
            f"{name}: b_hat must have {len(b)} entries that add up to 1, "
            f"got {len(b_hat)} that add up to {_shown(sum(b_hat))}"
        )


def check_interpolant(
    name: str, nodes: Row, matrix: Sequence[Row], weights: Row, polynomials: Sequence[Row]
) -> None:
    """Refuse an interpolant that does not lead to y1; `nodes` and `matrix` are those of all stages.

    Raises
    ------
    ValueError
    """
    if len(nodes) != len(matrix):
        raise ValueError(
            f"{name}: dense_c has {len(nodes) - len(weights)} nodes for {len(matrix) - len(weights)} rows of dense_a"
        )
    check_rows(name, nodes, matrix)
    if len(polynomials) != len(nodes):
        raise ValueError(f"{name}: dense needs {len(nodes)} rows, one a stage, got {len(polynomials)}")
    lengths = [len(row) for row in polynomials]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name}: all rows of dense must have the same length, got {lengths}")
    for i, row in enumerate(polynomials):
        want = weights[i] if i < len(weights) else Fraction(0)
        if not _equal(sum(row), want):
            wanted = f"b_{i + 1} = {_shown(want)}" if i < len(weights) else "0"
            raise ValueError(
                f"{name}: the interpolant's weight of stage {i + 1} at theta = 1 must equal {wanted}, "
                f"got {_shown(sum(row))}, the sum of its row of dense"
            )


def check_rows(name: str, c: Row, a: Sequence[Row]) -> None:
    """Refuse rows of `a` that are not those of an explicit method with these nodes.

    Raises
    ------
    ValueError
    """
    for i, (node, row) in enumerate(zip(c, a, strict=True)):
        if len(row) != i or not _equal(sum(row), node):
            raise ValueError(
                f"{name}: row {i + 1} of a must have {i} entries that add up to c = {_shown(node)}, "
                f"got {len(row)} that add up to {_shown(sum(row))}"
            )


def _equal(x: Fraction | int, y: Fraction | int) -> bool:
    return abs(x - y) <= CLOSE


def _shown(x: Fraction | int) -> str:
    """A short rational as it is, another number as a decimal."""
    text = str(x)
    return text if len(text) <= 20 else repr(float(x))
