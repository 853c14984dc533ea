"""The asynchronous leapfrog method (ALF), which can be undone.

U. Mutze, An asynchronous leapfrog method, mp_arc 08-197 (2008); for neural ODEs, and damped by eta, in Zhuang, Dvornek,
Tatikonda, Duncan, "MALI: A memory efficient and reverse accurate integrator for Neural ODEs", ICLR 2021. Beside y it
carries a slope v, at first f(t0, y0):

    u = y0 + h v0 / 2        k = f(t0 + h/2, u)        v1 = v0 + 2 eta (k - v0)        y1 = u + h v1 / 2

and backwards from (y1, v1):

    u = y1 - h v1 / 2        k as before               v0 = (v1 - 2 eta k) / (1 - 2 eta)        y0 = u - h v0 / 2

The error estimate, h (k - v0) / 2, is that of the authors' code (`Sym12Async` in TorchDiffEqPack): for eta = 1 half the
distance to Euler's y0 + h v0.

On y' = lambda y with z = h lambda, (y, h v) is multiplied by a matrix of determinant 1 - 2 eta and trace
2 - 2 eta + 2 eta z. So eta = 1 is the leapfrog method, stable for z in the interval [-i, i] only: where the solution
contracts, v swings around it with an amplitude that grows as fast as the solution decays. A smaller eta damps that,
and is stable for real z in [-2 (1 - eta) / eta, 0], but the method is of order 1 then, and undoing a step amplifies
errors by 1 / |1 - 2 eta|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import VectorField
from ..layout import stacked, unstacked
from ..numbers import Time
from .carried import CarryStep
from .interpolants import hermite_slopes, hermite_weights
from .length import Length


@dataclass(frozen=True)
class ALF:
    """Asynchronous leapfrog (Zhuang et al. 2021): of order 2, one evaluation of f a step, and reversible.

    Parameters
    ----------
    eta : float
        Damping of the carried slope, 0 < eta <= 1. 1 is none. Below it the method tolerates contraction, but is of
        order 1, and 1/2 has no inverse.

    Raises
    ------
    ValueError
        For any other eta: the carried slope would run away.
    """

    eta: float = 1.0
    name: str = field(default="alf", init=False, repr=False)
    adaptive: bool = field(default=True, init=False, repr=False)
    error_order: int = field(default=2, init=False, repr=False)
    stages: int = field(default=2, init=False, repr=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.eta, (int, float)) and 0 < self.eta <= 1):
            raise ValueError(f"eta damps the slope that ALF carries, 0 < eta <= 1; got {self.eta!r}")

    @property
    def order(self) -> int:
        return 2 if self.eta == 1 else 1

    @property
    def growth(self) -> float:
        return math.inf if self.eta == 0.5 else abs(1 / (1 - 2 * self.eta))

    def units(self, h: float) -> tuple[float, ...]:
        return 1.0, abs(h)

    def lift(self, f: VectorField, t0: Time, y0: Tensor, hint: Tensor | None = None) -> Tensor:
        return stacked([y0, f(t0, y0) if hint is None else hint])

    def step(self, f: VectorField, t0: Time, t1: Time, y0: Tensor, hint: Tensor | None = None) -> CarryStep:
        """One step from (t0, y0) alone to t1; see `torchaca.core.Method`."""
        return self.resume(f, t0, t1, self.lift(f, t0, y0, hint))

    def resume(self, f: VectorField, t0: Time, t1: Time, carry: Tensor) -> CarryStep:
        """The step after the one that ended with `carry`; see `torchaca.core.Carrying`."""
        y0, v0 = unstacked(carry)
        length = Length(t0, t1, y0)
        u = length.shift(y0, 0.5, v0)
        k = f(length.time(0.5), u)
        v1 = torch.add(v0, k - v0, alpha=2 * self.eta)
        y1 = length.shift(u, 0.5, v1)
        return CarryStep(self, t0, t1, y0, stacked([y1, v1]), length, (v0, v1), (v0, k))

    def undo(self, f: VectorField, t0: Time, t1: Time, carry: Tensor) -> Tensor:
        """The carry that the step which ended with `carry` started from; see `torchaca.core.Reversible`."""
        y1, v1 = unstacked(carry)
        length = Length(t0, t1, y1)
        u = length.shift(y1, -0.5, v1)
        k = f(length.time(0.5), u)
        v0 = torch.sub(v1, k, alpha=2 * self.eta) / (1 - 2 * self.eta)
        return stacked([length.shift(u, -0.5, v0), v0])

    def basis_weights(self, theta: Tensor) -> Tensor:
        """The interpolant in terms of `Step.basis`; see `torchaca.core.Method`."""
        return hermite_weights(theta)

    def basis_slopes(self, theta: Tensor) -> Tensor:
        """The derivatives of the weights; see `torchaca.methods.interpolants.slopes_of`."""
        return hermite_slopes(theta)

    def f1_weights(self, t0: Time, t1: Time, times: object) -> None:
        """The interpolant does not use f(t1, y1)."""
