"""The O() of the slides as functions of what was measured, and exponents fitted to both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
DEVIATES = 0.1  # from the exponent of the O()


@dataclass(frozen=True)
class Law:
    """An O(): as it is printed, and its value for the measured N_f, N_t, N_r and m."""

    text: str
    value: Callable[[Line], float]


def _graph(line: Line) -> float:
    return line["N_f"] * line["N_t"]


NAIVE = Law("N_f N_t m", lambda line: _graph(line) * line["m"])
STEPS = Law("N_f N_t", _graph)
REPLAYED = Law("N_f N_t (m+1)", lambda line: _graph(line) * (line["m"] + 1))
INTEGRATED = Law("N_f (N_t+N_r) m", lambda line: line["N_f"] * (line["N_t"] + line["N_r"]) * line["m"])
ONE = Law("N_f", lambda line: line["N_f"])
STATES = Law("N_f + N_t", lambda line: line["N_f"] + line["N_t"])
BACKWARD = Law("N_f N_r", lambda line: line["N_f"] * line["N_r"])

SLIDES = {
    "naive": {"cost": Law("N_f N_t m 2", NAIVE.value), "memory": NAIVE, "depth": NAIVE},
    "adjoint": {"cost": INTEGRATED, "memory": ONE, "depth": BACKWARD},
    "aca": {"cost": REPLAYED, "memory": STATES, "depth": STEPS},
}
OWN = {
    "direct": {"cost": REPLAYED, "memory": STEPS, "depth": STEPS},
    "adjoint interpolated": {"cost": INTEGRATED, "memory": STATES, "depth": BACKWARD},
    "mali": {"cost": REPLAYED, "memory": ONE, "depth": STEPS},
}
"""Rows that the slides do not have, by the same reasoning."""

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


def deviations(lines: Sequence[Line], variants: Sequence[str], quantity: str) -> list[str]:
    """One sentence for every exponent that is not that of its O()."""
    found = []
    for variant in variants:
        for axis in AXES:
            measured, law = exponents(lines, variant, quantity, axis)
            if measured is not None and law is not None and abs(measured - law) > DEVIATES:
                why = WHY.get((variant, quantity, axis), "not explained")
                found.append(f"{variant}, {axis}, {measured:.2f} for {law:.2f}: {why}.")
    return found


_REPLAY = "the graph of one replayed step counts stages x layers x 2 states, a recorded step only one"
_LOCAL = "the graph of one evaluation comes on top of states of the solve that do not depend on N_f"

WHY = {
    (
        "naive",
        "memory",
        "N_f",
    ): "the step-size search keeps a dozen states a trial, however many layers f has",
    ("adjoint", "memory", "N_f"): _LOCAL,
    (
        "adjoint interpolated",
        "memory",
        "N_f",
    ): "the interpolants, five states a step, hide the graph of one f",
    ("aca", "memory", "N_t"): _REPLAY,
    ("aca", "memory", "N_f"): _REPLAY,
    ("mali", "memory", "N_f"): _LOCAL,
    ("mali", "memory", "N_t"): "its anchors are up to 8 states, fewer for a short solve",
}
"""Why an exponent is not that of its O(), by method, quantity and axis."""
