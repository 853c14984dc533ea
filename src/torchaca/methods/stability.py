"""How long a step of a method may be for its derivative, told by its linear step.

A controlled step is short enough for y. Where y is at rest its error is zero, whatever the length of the step, while
the derivative dy1/dy0 is that of the method's polynomial R(z), z = h lambda: far outside of the stability region it is
anything. What follows is read off y' = lambda y on three axes: decaying (z < 0), oscillating (z imaginary) and growing
(z > 0). A step's error there is relative to the larger of both cotangents, |R - e^z| / max(1, |e^z|).
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..core import Method
from ..numbers import Time

REACH, POINTS = (0.01, 100.0), 4096  # the |z| that are looked at: higher orders than 30 are right up to 10
GOOD, POOR = 0.01, 0.1  # errors of a step's derivative
SHARE = 0.6  # of the |z| up to which it is good


@dataclass(frozen=True)
class Stability:
    """Limits of a method's steps; all of them are numbers without a unit.

    Attributes
    ----------
    theta : float
        The h |J| up to which the derivative of a step is good: 0.6 of the |z| where it is off by 1 %.
    kappa : float
        The error estimate, differentiated, over the true error of the derivative where that is 10 %: the mean of the
        decaying and the oscillating axis. 1 without an error estimate, for one step compared with two halves.
    gamma : float
        The growth |R| of a cotangent in a step that is off by 10 % on the growing axis; twice that below order 4, whose
        polynomials are off by 10 % at a growth that is ordinary.
    """

    theta: float
    kappa: float
    gamma: float


def stability(method: Method) -> Stability:
    """Measure the limits of a method's steps, once for each method.

    Parameters
    ----------
    method : Method
        Any, also one of your own: its step is taken for y' = lambda y, unless it has a `stability`.

    Returns
    -------
    Stability
    """
    own: Stability | None = getattr(method, "stability", None)
    if own is not None:
        return own
    known = _MEASURED.get(id(method))
    if known is not None and known[0]() is method:
        return known[1]
    found = _measured(method)
    with suppress(TypeError):  # an object that nobody can refer to weakly is measured each time
        _MEASURED[id(method)] = weakref.ref(method, partial(_forget, id(method))), found
    return found


# By identity: a tableau takes as long to hash as a solve takes some steps.
_MEASURED: dict[int, tuple[weakref.ref[Method], Stability]] = {}


def _forget(place: int, gone: weakref.ref[Method]) -> None:
    if place in _MEASURED and _MEASURED[place][0] is gone:
        del _MEASURED[place]


def _measured(method: Method) -> Stability:
    low, high = REACH
    size = torch.logspace(0, 1, POINTS, base=high / low, dtype=torch.float64, device="cpu") * low
    # Axes in the first dimension, real and imaginary part in the last: no method has to know complex numbers.
    z = torch.stack([-size, 1j * size, size])

    def f(t: Time, y: Tensor) -> Tensor:
        return torch.view_as_real(z * torch.view_as_complex(y.contiguous()))

    one = torch.view_as_real(torch.ones_like(z))
    with torch.no_grad():
        step = method.step(f, 0.0, 1.0, one)
        grown = torch.view_as_complex(step.y1.contiguous())
        estimate = torch.view_as_complex(step.error.contiguous()).abs() if method.adaptive else None
    largest = torch.exp(z).abs().clamp(min=1.0)
    error = (grown - torch.exp(z)).abs() / largest
    good = min(size[first(row, GOOD)].item() for row in error)
    poor = [first(row, POOR) for row in error]
    gamma = grown[2, poor[2]].abs().item() * (2.0 if method.order < 4 else 1.0)
    if estimate is None:
        return Stability(SHARE * good, 1.0, gamma)
    kappa = sum((estimate / largest / error)[axis, poor[axis]].item() for axis in (0, 1)) / 2
    return Stability(SHARE * good, kappa, gamma)


def first(error: Tensor, limit: float) -> int:
    """Return the first place where a row of errors is above a limit, or its last one; nan counts as above."""
    above = ~(error <= limit)
    return int(above.to(torch.uint8).argmax()) if bool(above.any()) else len(error) - 1
