"""The formulas of an adaptive step size: the error ratio, what follows from ratios, and the first size.

They work on host numbers and on 0-dim tensors: the naive gradient, lanes of vmap and the compiled loops run the same
code on tensors.

References: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section II.4 (error norm, step
size, initial step); Gustafsson, ACM TOMS 17 (1991) 533 (PI control); Soederlind, ACM TOMS 29 (2003) 1 (PID).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core import Step, VectorField
from ..log import Rests
from ..methods.stability import GOOD, SHARE
from ..norms import each, length, rms, size_of
from ..numbers import Numbers, Time, at_least, at_most, clip, column, in_double, power, where

Norm = Callable[[Tensor], Tensor]
FLAT = 1e-200  # a |J| that is as good as none
TINY_RATIO = 1e-10  # a ratio of zero asks for no more than the largest factor; powers of it stay finite


def largest(x: Tensor, batch: int = 0) -> Tensor:
    """The largest absolute value, real, zero where there is no entry: 0-dim, or of each problem as in `state.rms`."""
    if not x.numel():
        return each(x.real, batch).sum(-1) if batch else x.real.sum()
    return each(x.abs(), batch).amax(-1) if batch else x.abs().amax()


NORMS: dict[str, Callable[..., Tensor]] = {"rms": rms, "max": largest}


@dataclass(frozen=True)
class PID:
    """Exponents of the step size controller, in units of 1/order.

    The next step is the last one times `safety * r0^-(p+i+d) * r1^(p+2d) * r2^-d` (each to the power 1/order), r0,
    r1, r2 being the error ratios of the last accepted steps, newest first. `PID(0, 1, 0)` is the I controller.
    """

    p: float = 0.0
    i: float = 1.0
    d: float = 0.0


I_CONTROL = PID()
PI_CONTROL = PID(p=0.4, i=0.3)  # Gustafsson's 0.7/k and 0.4/k
PID_CONTROL = PID(p=0.1, i=0.3, d=0.0333)


@dataclass(frozen=True)
class StepRule:
    """What the size of a step follows from; `Adaptive` explains its fields and checks them."""

    rtol: float | Tensor
    atol: float | Tensor
    pid: PID
    safety: float
    factor_min: float
    factor_max: float
    norm: str | Norm
    resolves: bool = False
    """Whether the first step is kept short where it would move less than its tolerance; see `rest`."""
    batch: int = 0
    """So many leading dimensions of states are independent problems, each of which has a number of its own."""

    def relative_to(self, size: Tensor) -> tuple[Norm, Tensor]:
        """`norm, scale` such that `norm(x / scale)` is the size of x relative to `atol + rtol size`.

        It is 0-dim, or one number for each problem.
        """
        # Without atol, a component that stays zero has no error: not 0 / 0.
        tiny = torch.finfo(size.dtype).tiny
        if self.norm == "rms" and not isinstance(self.rtol, Tensor) and not isinstance(self.atol, Tensor):
            # The mean's 1/sqrt(n) goes into the scale, and the scale is one operation: this runs every step.
            n = math.sqrt(size_of(size, self.batch))
            least = max(n * self.atol, tiny)
            norm = partial(length, batch=self.batch) if self.batch else torch.linalg.vector_norm
            return norm, torch.rsub(size, least, alpha=-n * self.rtol)
        if isinstance(self.norm, str):
            norm = partial(NORMS[self.norm], batch=self.batch)
        else:
            norm = torch.vmap(self.norm) if self.batch else self.norm
        return norm, (self.atol + self.rtol * size).clamp(min=tiny)

    def ratio(self, step: Step) -> Tensor:
        """The error of a step over its tolerance, 0-dim; at most 1 is acceptable, nan is not."""
        error = step.error
        norm, scale = self.relative_to(torch.maximum(step.y0.abs(), step.y1.abs()))
        return torch.as_tensor(norm(error / scale), device=error.device)

    def motion(self, y0: Tensor, y1: Tensor) -> Tensor:
        """How far a step moves the state, in units of its tolerance, 0-dim."""
        norm, scale = self.relative_to(torch.maximum(y0.abs(), y1.abs()))
        return torch.as_tensor(norm((y1 - y0) / scale), device=y0.device)

    def factor(self, ratios: Sequence[Any], order: int, *, after_rejection: bool | Tensor = False) -> Any:
        """What the step size is multiplied with, given the newest ratios (newest first; floats or tensors).

        `after_rejection` is a tensor where ratios are, and it is not known on the host.
        """
        p, i, d = self.pid.p, self.pid.i, self.pid.d
        exponents = (-(p + i + d), p + 2 * d, -d)
        factor: Any = self.safety
        for ratio, exponent in zip(ratios, exponents, strict=False):
            if exponent:
                factor = factor * power(at_least(ratio, TINY_RATIO), exponent / order)
        if isinstance(after_rejection, Tensor):
            factor = clip(factor, self.factor_min, self.factor_max)
            return torch.where(after_rejection, factor.clamp(max=1.0), factor)
        return clip(factor, self.factor_min, 1.0 if after_rejection else self.factor_max)

    def guessed_step(
        self,
        f: VectorField,
        t0: Time,
        y0: Tensor,
        f0: Tensor,
        sign: Any,
        reach: Any,
        order: int,
        numbers: Numbers = in_double,
        rests: Rests | None = None,
    ) -> Any:
        """The same from numbers or tensors; f is evaluated not further than `reach` from t0.

        The size is computed with the `numbers` of norms: on the host that takes a hundredth of the time. `rests` is
        told of the start.
        """
        norm, scale = self.relative_to(y0.abs())

        def relative(x: Tensor) -> Tensor:
            return torch.as_tensor(norm(x / scale), device=x.device)

        d0, d1 = numbers(relative(y0), relative(f0))
        if rests is not None and isinstance(d0, float):
            rests.start = d0
        small = (d0 < 1e-5) | (d1 < 1e-5)
        guess = 0.01 * d0 / where(small, 1.0, d1)  # neither nan nor an error in the branch not taken
        guess = at_least(where(small, 1e-6, guess), math.ulp(0.0))  # not zero, which the change is divided by
        h0 = at_most(guess, reach)
        h = column(sign * h0, y0, self.batch)
        y1 = y0 + (h.to(scale.dtype) if isinstance(h, Tensor) else h) * f0
        f1 = f(t0 + h, y1)
        (change,) = numbers(relative(f1 - f0))
        steepest = at_least(change / h0, d1)
        h1 = where(
            steepest <= 1e-15,
            at_least(h0 * 1e-3, 1e-6),
            power(0.01 / at_least(steepest, 1e-15), 1.0 / order),
        )
        h1 = at_most(h1, 100 * h0)
        if not self.resolves:
            return h1
        # A step that moves less than its tolerance has an error that says nothing. |J| along f0 is known by now.
        steep = change / (h0 * at_least(d1, FLAT))
        calm = SHARE * (GOOD * math.factorial(order + 1)) ** (1 / (order + 1)) / at_least(steep, FLAT)
        return where((d1 * h1 <= 1) & (d1 > 0), at_most(h1, calm), h1)
