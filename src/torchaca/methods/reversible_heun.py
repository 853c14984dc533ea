"""The reversible Heun method, which can be undone.

Kidger, Foster, Li, Lyons, "Efficient and Accurate Gradients for Neural SDEs", NeurIPS 2021, for an ODE. Beside y it
carries a second state z, at first y0, and the slope k there:

    z1 = 2 y0 - z0 + h k0        k1 = f(t1, z1)        y1 = y0 + h (k0 + k1) / 2

and backwards from (y1, z1, k1):

    z0 = 2 y1 - z1 - h k1        k0 = f(t0, z0)        y0 = y1 - h (k0 + k1) / 2

Of order 2. The error estimate is the distance to the embedded method of order 1, y0 + h k0, as in diffrax. Stable on
y' = lambda y for h lambda in the interval [-i, i] only, as that paper shows and as for the leapfrog method.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..core import VectorField
from ..layout import stacked, unstacked
from ..numbers import Time
from .carried import CarryStep
from .interpolants import hermite_slopes, hermite_weights
from .length import Length


@dataclass(frozen=True)
class ReversibleHeun:
    """The reversible Heun method (Kidger et al. 2021): of order 2, one evaluation of f a step."""

    name: str = field(default="reversible_heun", init=False, repr=False)
    order: int = field(default=2, init=False, repr=False)
    adaptive: bool = field(default=True, init=False, repr=False)
    error_order: int = field(default=2, init=False, repr=False)
    stages: int = field(default=2, init=False, repr=False)
    growth: float = field(default=1.0, init=False, repr=False)

    def units(self, h: float) -> tuple[float, ...]:
        return 1.0, 1.0, abs(h)

    def lift(self, f: VectorField, t0: Time, y0: Tensor, hint: Tensor | None = None) -> Tensor:
        return stacked([y0, y0, f(t0, y0) if hint is None else hint])

    def step(self, f: VectorField, t0: Time, t1: Time, y0: Tensor, hint: Tensor | None = None) -> CarryStep:
        """One step from (t0, y0) alone to t1; see `torchaca.core.Method`."""
        return self.resume(f, t0, t1, self.lift(f, t0, y0, hint))

    def resume(self, f: VectorField, t0: Time, t1: Time, carry: Tensor) -> CarryStep:
        """The step after the one that ended with `carry`; see `torchaca.core.Carrying`."""
        y0, z0, k0 = unstacked(carry)
        length = Length(t0, t1, y0)
        z1 = length.shift(2 * y0 - z0, 1.0, k0)
        k1 = f(t1, z1)
        y1 = length.shift(y0, 0.5, k0 + k1)
        return CarryStep(self, t0, t1, y0, stacked([y1, z1, k1]), length, (k0, k1), (k0, k1))

    def undo(self, f: VectorField, t0: Time, t1: Time, carry: Tensor) -> Tensor:
        """The carry that the step which ended with `carry` started from; see `torchaca.core.Reversible`."""
        y1, z1, k1 = unstacked(carry)
        length = Length(t0, t1, y1)
        z0 = length.shift(2 * y1 - z1, -1.0, k1)
        k0 = f(t0, z0)
        return stacked([length.shift(y1, -0.5, k0 + k1), z0, k0])

    def basis_weights(self, theta: Tensor) -> Tensor:
        """The interpolant in terms of `Step.basis`; see `torchaca.core.Method`."""
        return hermite_weights(theta)

    def basis_slopes(self, theta: Tensor) -> Tensor:
        """The derivatives of the weights; see `torchaca.methods.interpolants.slopes_of`."""
        return hermite_slopes(theta)

    def f1_weights(self, t0: Time, t1: Time, times: object) -> None:
        """The interpolant does not use f(t1, y1)."""
