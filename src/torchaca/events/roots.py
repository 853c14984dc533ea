"""Where a function of one variable changes its sign, by few evaluations."""

from __future__ import annotations

from collections.abc import Callable

MOST = 100
RESOLVED = 4 * 2.0**-52
"""Of the interval: where the root of a smooth function is bracketed as closely as numbers allow."""
LEAST = -5e-324
"""Stands for zero: the root is where a function becomes zero, also one that then stays zero."""
NEAR, SMOOTH = 1e-4, 1e-2
"""So near before a zero of a function that crosses it, it is smaller than this, compared with the first value."""


def leave_zero(phi: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Return a part of the interval at whose start phi is greater than zero, though rounding says otherwise at `low`.

    At `high` phi is not. If no such part is found, the parts shrink to `low`.
    """
    for _ in range(MOST):
        middle = 0.5 * (low + high)
        if phi(middle) > 0:
            return middle, high
        high = middle
    return low, low


def root(phi: Callable[[float], float], low: float, high: float) -> float:
    """Return where phi, greater than zero at `low` and not at `high`, changes its sign.

    Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without using
    derivatives", Advances in Engineering Software 28 (1997): inverse quadratic interpolation where it is safe.
    """
    a, b, c = high, low, low
    fa, fb = phi(a) or LEAST, phi(b)
    fc, theta, first = fb, 0.5, fb
    for _ in range(MOST):
        x = a + theta * (b - a)
        fx = phi(x)
        if fx == 0.0:
            if 0 < phi(x - NEAR * (x - low)) < SMOOTH * first:
                return x
            fx = LEAST
        if (fx > 0) == (fa > 0):
            c, fc = a, fa
        else:
            c, fc, b, fb = b, fb, a, fa
        a, fa = x, fx
        best = a if abs(fa) < abs(fb) else b
        tolerance = RESOLVED * max(abs(best), abs(high - low)) / abs(b - c) if b != c else 1.0
        if tolerance > 0.5 or abs(a - b) <= RESOLVED * abs(high - low):
            return best
        xi, ratio = (a - b) / (c - b), (fa - fb) / (fc - fb)
        theta = 0.5
        if ratio * ratio < xi and (1 - ratio) ** 2 < 1 - xi:
            theta = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        theta = min(1 - tolerance, max(tolerance, theta))
    return a
