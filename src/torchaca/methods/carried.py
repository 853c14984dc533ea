"""What methods that carry a slope of their own from step to step have in common: step lengths and the interpolant.

The interpolant is Hermite's cubic through y0 and y1 with the slopes that the method carries at both ends (Hairer,
Norsett, Wanner, "Solving Ordinary Differential Equations I", 2nd ed., section II.6, equation (6.7)). It costs no
evaluation and is continuously differentiable from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import Method
from ..layout import row, stacked
from ..numbers import Time, combined, value
from .runge_kutta import fraction, polynomials_at

# The coefficients of theta^0, ..., theta^3 of the weights of y0, y1, h slope0, h slope1.
_HERMITE = torch.tensor(
    [[1, 0, -3, 2], [0, 0, 3, -2], [0, 1, -2, 1], [0, 0, -1, 1]], dtype=torch.float64, device="cpu"
)


def hermite_weights(theta: Tensor) -> Tensor:
    """`(n, 4)`: the interpolant in terms of `CarryStep.basis`; see `torchaca.core.Method`."""
    return polynomials_at(theta, _HERMITE)


class Length:
    """The length h of a step as a host number; `dh` is zero and has the derivative of h, where somebody wants it."""

    __slots__ = ("dh", "h")

    def __init__(self, t0: Time, t1: Time, like: Tensor) -> None:
        h: Time = t1 - t0
        self.h = value(h)
        self.dh = (h - self.h).to(like.device, like.dtype.to_real()) if isinstance(h, Tensor) else None

    def shift(self, y: Tensor, part: float, slope: Tensor) -> Tensor:
        """`y + part h slope`: the same bits with and without a derivative by h."""
        moved = torch.add(y, slope, alpha=part * self.h)
        return moved if self.dh is None else moved + part * self.dh * slope

    def times(self, slope: Tensor) -> Tensor:
        """`h slope`."""
        scaled = self.h * slope
        return scaled if self.dh is None else scaled + self.dh * slope


@dataclass(slots=True, eq=False)
class CarryStep:
    """One step of a method that carries slopes; everything in it is evaluated when it is made.

    `slopes` are those of the interpolant at t0 and t1, and the error estimate is half the length of the step times
    the difference of the two slopes in `spread`.
    """

    method: Method
    t0: Time
    t1: Time
    y0: Tensor
    carry: Tensor
    length: Length
    slopes: tuple[Tensor, Tensor]
    spread: tuple[Tensor, Tensor]
    y1: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.y1 = row(self.carry, 0)  # whatever depends on it does so through the carry

    @property
    def f0(self) -> Tensor:
        return self.slopes[0]

    @property
    def error(self) -> Tensor:
        old, new = self.spread
        return self.length.times(0.5 * (new - old))

    @property
    def known_f1(self) -> Tensor | None:
        return None  # the slope at t1 is not f(t1, y1)

    def give_f1(self, f1: Tensor) -> None:
        """Nothing here depends on f(t1, y1)."""

    def at(self, times: Sequence[Time]) -> Tensor:
        return combined(hermite_weights(fraction(self.t0, self.t1, times)), self._rows())

    def basis(self) -> Tensor:
        return stacked(self._rows())

    def _rows(self) -> list[Tensor]:
        return [self.y0, self.y1, *map(self.length.times, self.slopes)]
