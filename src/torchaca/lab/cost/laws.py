"""The O() of the slides as functions of what was measured, and exponents fitted to both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Any

Line = Mapping[str, Any]

QUANTITIES = {
    "cost": "Computation: layers evaluated forward, and differentiated backward",
    "memory": "Memory: the most that autograd held at once, in states",
    "depth": "Depth of the graph, in layers",
}
AXES = ("N_t", "N_f", "m")


@dataclass(frozen=True)
class Law:
    """An O(): as it is printed, and its terms, products of what was counted."""

    text: str
    terms: tuple[str, ...]

    def value(self, line: Line) -> float:
        """The sum of the terms."""
        return sum(product(term, line) for term in self.terms)


def product(term: str, line: Line) -> float:
    """A term's value: "N_f N_t" is the product of both, the empty one is 1."""
    return math.prod(line[factor] for factor in term.split())


NAIVE = Law("N_f N_t m", ("N_f N_t m",))
STEPS = Law("N_f N_t", ("N_f N_t",))
REPLAYED = Law("N_f N_t (m+1)", ("N_f N_t m", "N_f N_t"))
INTEGRATED = Law("N_f (N_t+N_r) m", ("N_f N_t m", "N_f N_r m"))
ONE = Law("N_f", ("N_f",))
STATES = Law("N_f + N_t", ("N_f", "N_t"))
ANCHORED = Law("N_f + kept", ("N_f", "kept"))
BACKWARD = Law("N_f N_r", ("N_f N_r",))

SLIDES = {
    "naive": {"cost": Law("N_f N_t m 2", NAIVE.terms), "memory": NAIVE, "depth": NAIVE},
    "adjoint": {"cost": INTEGRATED, "memory": ONE, "depth": BACKWARD},
    "aca": {"cost": REPLAYED, "memory": STATES, "depth": STEPS},
}
OWN = {
    "direct": {"cost": REPLAYED, "memory": STEPS, "depth": STEPS},
    "adjoint interpolated": {"cost": INTEGRATED, "memory": STATES, "depth": BACKWARD},
    "mali": {"cost": REPLAYED, "memory": ANCHORED, "depth": STEPS},
}
"""Rows that the slides do not have, by the same reasoning; mali keeps a bounded number of states."""

LAWS = {**SLIDES, **OWN}


def along(lines: Sequence[Line], variant: str, axis: str) -> list[Line]:
    """What was measured of one method along one axis, in order; solves that failed are left out."""
    found = [line for line in lines if line.get("variant") == variant and line["axis"] == axis]
    return sorted(found, key=lambda line: line[axis])


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """p of the fit y = c x^p; None where x does not change."""
    if len(set(xs)) < 2:
        return None
    return linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def slope(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """b of the fit y = a + b x; None where x does not change."""
    return linear_regression(xs, ys).slope if len(set(xs)) > 1 else None


def exponents(
    lines: Sequence[Line], variant: str, quantity: str, axis: str
) -> tuple[float | None, float | None]:
    """The exponent of a quantity along an axis as measured, and that of its O()."""
    points = along(lines, variant, axis)
    xs = [line[axis] for line in points]
    law = LAWS[variant][quantity]
    measured = exponent(xs, [line[quantity] for line in points])
    return measured, exponent(xs, [law.value(line) for line in points])
