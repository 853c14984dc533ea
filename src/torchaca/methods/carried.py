"""The step of methods that carry a slope of their own from step to step.

Its interpolant is Hermite's cubic with the slopes that the method carries at both ends: it costs no evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..core import Method
from ..layout import row, stacked
from ..numbers import Time, combined
from .interpolants import hermite_weights
from .length import Length, fraction


@dataclass(slots=True, eq=False)
class CarryStep:
    """One step of a method that carries slopes; all of it is evaluated when it is made.

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
        return self.length.scale(1.0, 0.5 * (new - old))

    @property
    def hint(self) -> Tensor | None:
        return None  # the slope at t1 is not f(t1, y1)

    @hint.setter
    def hint(self, f1: Tensor | None) -> None:
        """Nothing here depends on f(t1, y1)."""

    def at(self, times: Sequence[Time]) -> Tensor:
        return combined(hermite_weights(fraction(self.t0, self.t1, times)), self._rows())

    def basis(self) -> Tensor:
        return stacked(self._rows())

    def _rows(self) -> list[Tensor]:
        return [self.y0, self.y1, *(self.length.scale(1.0, slope) for slope in self.slopes)]
