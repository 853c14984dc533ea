"""Where steps end: adaptive control by an error estimate, and fixed grids.

The functions of `Adaptive` (`ratio`, `factor`, `initial_step`) work on host numbers and on 0-dim tensors: the naive
gradient and the compiled solve run the same code on tensors.

References: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section II.4 (error norm, step
size, initial step); Gustafsson, ACM TOMS 17 (1991) 533 (PI control); Soederlind, ACM TOMS 29 (2003) 1 (PID).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .core import Problem, Step, Times, VectorField
from .numbers import Numbers, Time, at_least, at_most, clip, in_double, where
from .state import rms

Norm = Callable[[Tensor], Tensor]
TINY_RATIO = 1e-10  # a ratio of zero asks for no more than the largest factor; powers of it stay finite


def largest(x: Tensor) -> Tensor:
    """The largest absolute value, 0-dim and real; zero where there is no entry."""
    return x.abs().amax() if x.numel() else x.real.sum()


NORMS: dict[str, Norm] = {"rms": rms, "max": largest}


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
class Adaptive:
    """Step sizes from the method's error estimate.

    Parameters
    ----------
    rtol, atol : float or Tensor
        A step is accepted when `norm(error / (atol + rtol max(|y0|, |y1|))) <= 1`. Tensors broadcast against the
        (packed) state.
    pid : PID
        The controller; `I_CONTROL` (default), `PI_CONTROL`, `PID_CONTROL` or your own exponents.
    safety, factor_min, factor_max : float
        The step size changes by `safety` times the controller's factor, within these limits; it does not grow in
        the step after a rejection.
    norm : "rms", "max" or callable
        Of the scaled error; a callable gets a tensor of the state's shape and returns a 0-dim tensor.
    dt0 : float, optional
        First step size; by default Hairer's automatic choice, which costs one evaluation.
    dt_min, dt_max : float
        Limits of the step size. At `dt_min` a step whose error is too large raises, unless `accept_at_dt_min`.
    max_steps : int
        Trials (accepted and rejected) before the solve gives up.
    jump_ts : sequence of float
        Times at which f or its derivatives jump: steps end there, and no step looks across.
    """

    rtol: float | Tensor = 1e-3
    atol: float | Tensor = 1e-6
    pid: PID = I_CONTROL
    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0
    norm: str | Norm = "rms"
    dt0: float | None = None
    dt_min: float = 0.0
    dt_max: float = math.inf
    accept_at_dt_min: bool = False
    max_steps: int = 10_000
    jump_ts: tuple[float, ...] = ()
    stop_ts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._check_types()
        for name, low in (("safety", 0.0), ("factor_min", 0.0), ("dt_max", 0.0), ("max_steps", 0)):
            if not getattr(self, name) > low:
                raise ValueError(f"{name} must be greater than {low:g}, got {getattr(self, name)!r}")
        if not self.factor_min < 1.0 < self.factor_max:
            raise ValueError(
                f"factor_min < 1 < factor_max must hold, got {self.factor_min}, {self.factor_max}"
            )
        if self.dt0 is not None and not (self.dt0 > 0 and math.isfinite(self.dt0)):
            raise ValueError(f"dt0 is the size of the first step, a positive number; got {self.dt0!r}")
        if not 0 <= self.dt_min <= self.dt_max:
            raise ValueError(f"0 <= dt_min <= dt_max must hold, got {self.dt_min}, {self.dt_max}")
        if isinstance(self.norm, str) and self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}: use 'rms', 'max' or a callable")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            negative = not bool((value >= 0).all()) if isinstance(value, Tensor) else not value >= 0
            if negative:
                raise ValueError(f"{name} must not be negative, got {value!r}")
        if self._zero(self.rtol) and self._zero(self.atol):
            raise ValueError("rtol and atol cannot both be zero: no step would ever be accepted")

    def _check_types(self) -> None:
        for name in ("safety", "factor_min", "factor_max", "dt0", "dt_min", "dt_max", "max_steps"):
            value = getattr(self, name)
            if not isinstance(value, (int, float, type(None))):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not (isinstance(self.norm, str) or callable(self.norm)):
            raise TypeError(f"norm must be 'rms', 'max' or a callable, got {self.norm!r}")
        for time in (*self.jump_ts, *self.stop_ts):
            if not math.isfinite(time):
                raise ValueError(f"jump_ts and stop_ts must be finite, got {time}")

    @staticmethod
    def _zero(tolerance: float | Tensor) -> bool:
        return not isinstance(tolerance, Tensor) and tolerance == 0

    def _relative_to(self, size: Tensor) -> tuple[Norm, Tensor]:
        """`norm, scale` such that `norm(x / scale)`, 0-dim, is the size of x relative to `atol + rtol size`."""
        # Without atol, a component that stays zero has no error: not 0 / 0.
        tiny = torch.finfo(size.dtype).tiny
        if self.norm == "rms" and not isinstance(self.rtol, Tensor) and not isinstance(self.atol, Tensor):
            # The mean's 1/sqrt(n) goes into the scale, and the scale is one operation: this runs every step.
            n = math.sqrt(max(size.numel(), 1))
            least = max(n * self.atol, tiny)
            return torch.linalg.vector_norm, torch.rsub(size, least, alpha=-n * self.rtol)
        norm = NORMS[self.norm] if isinstance(self.norm, str) else self.norm
        return norm, (self.atol + self.rtol * size).clamp(min=tiny)

    def ratio(self, step: Step) -> Tensor:
        """The error of a step over its tolerance, 0-dim; at most 1 is acceptable, nan is not."""
        error = step.error
        norm, scale = self._relative_to(torch.maximum(step.y0.abs(), step.y1.abs()))
        return torch.as_tensor(norm(error / scale), device=error.device)

    def factor(self, ratios: Sequence[Any], order: int, *, after_rejection: bool | Tensor = False) -> Any:
        """What the step size is multiplied with, given the newest ratios (newest first; floats or tensors).

        `after_rejection` is a tensor where ratios are, and it is not known on the host.
        """
        p, i, d = self.pid.p, self.pid.i, self.pid.d
        exponents = (-(p + i + d), p + 2 * d, -d)
        factor: Any = self.safety
        for ratio, exponent in zip(ratios, exponents, strict=False):
            if exponent:
                factor = factor * at_least(ratio, TINY_RATIO) ** (exponent / order)
        if isinstance(after_rejection, Tensor):
            factor = clip(factor, self.factor_min, self.factor_max)
            return torch.where(after_rejection, factor.clamp(max=1.0), factor)
        return clip(factor, self.factor_min, 1.0 if after_rejection else self.factor_max)

    def initial_step(self, p: Problem, f0: Tensor, numbers: Numbers = in_double) -> Any:
        """Hairer's first step size, positive (one evaluation of f, inside [t0, t1]); as `guessed_step`."""
        span = min(abs(stop - p.ts.values[0]) for stop in self.stops(p.ts))
        reach = min(0.5 * span, self.dt_max)  # halfway: neither rounding nor a jump is reached
        return self.guessed_step(p.f, p.ts[0], p.y0, f0, p.ts.sign, reach, p.method.order, numbers)

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
    ) -> Any:
        """The same from numbers or tensors; f is evaluated not further than `reach` from t0.

        The size is computed with the `numbers` of norms: on the host that takes a hundredth of the time.
        """
        norm, scale = self._relative_to(y0.abs())

        def relative(x: Tensor) -> Tensor:
            return torch.as_tensor(norm(x / scale), device=x.device)

        d0, d1 = numbers(relative(y0), relative(f0))
        small = (d0 < 1e-5) | (d1 < 1e-5)
        guess = 0.01 * d0 / where(small, 1.0, d1)  # neither nan nor an error in the branch not taken
        guess = at_least(where(small, 1e-6, guess), math.ulp(0.0))  # not zero, which the change is divided by
        h0 = at_most(guess, reach)
        h = sign * h0
        y1 = y0 + (h.to(scale.dtype) if isinstance(h, Tensor) else h) * f0
        f1 = f(t0 + h, y1)
        (change,) = numbers(relative(f1 - f0))
        steepest = at_least(change / h0, d1)
        h1 = where(
            steepest <= 1e-15,
            at_least(h0 * 1e-3, 1e-6),
            (0.01 / at_least(steepest, 1e-15)) ** (1.0 / order),
        )
        return at_most(h1, 100 * h0)

    def stops(self, ts: Times) -> list[float]:
        """The times where a step has to end: jumps and stops inside the span, and its end."""
        start, end = ts.values[0], ts.values[-1]
        inside = {t for t in (*self.jump_ts, *self.stop_ts) if min(start, end) < t < max(start, end)}
        return [*sorted(inside, key=lambda t: ts.sign * t), end]

    def boundaries(self, ts: Times, taken: Sequence[float]) -> Sequence[Time]:
        """Interior step times are constants; the first and the last move with t0 and t1."""
        if len(taken) == 1:
            return list(taken)
        complete = taken[-1] == ts.values[-1]  # a solve that failed ends where no output time is
        return [ts[0], *taken[1:-1], ts[len(ts) - 1] if complete else taken[-1]]


@dataclass(frozen=True)
class FixedSteps:
    """Steps that do not look at the solution.

    Exactly one of `dt` (the last step is shortened to land on t1), `n_steps` (equal steps over the whole span) or
    `grid` (the step times, from t0 to t1); none of them steps from output time to output time.
    """

    dt: float | None = None
    n_steps: int | None = None
    grid: Times | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("dt", "n_steps", "grid") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give only one of {', '.join(given)}")
        if self.dt is not None and not (self.dt > 0 and math.isfinite(self.dt)):
            raise ValueError(f"dt is the size of a step, a positive number; got {self.dt!r}")
        n = self.n_steps
        if n is not None and not (isinstance(n, (int, float)) and n >= 1 and float(n).is_integer()):
            raise ValueError(f"n_steps is a whole number of at least 1, got {self.n_steps!r}")

    def times(self, ts: Times) -> list[Time]:
        """All step times, from `ts[0]` to `ts[-1]`; tensors where `ts` or `grid` carries a derivative."""
        start, end = ts.values[0], ts.values[-1]
        if start == end:
            return [ts[0]]
        first, last = ts[0], ts[len(ts) - 1]
        if self.grid is not None:
            return [first, *(self.grid[i] for i in range(1, len(self.grid) - 1)), last]
        if self.n_steps is not None:
            n = int(self.n_steps)
            return [first, *(first + (last - first) * (i / n) for i in range(1, n)), last]
        if self.dt is not None:
            # A remainder of rounding size is no step of its own.
            n = max(1, math.ceil(abs(end - start) / self.dt * (1 - 1e-12) - 1e-9))
            return [first, *(first + ts.sign * self.dt * i for i in range(1, n)), last]
        kept = [i for i in range(1, len(ts)) if ts.values[i] != ts.values[i - 1]]
        return [first, *(ts[i] for i in kept)]

    def boundaries(self, ts: Times, taken: Sequence[float]) -> Sequence[Time]:
        """The grid moves with the times it was made from."""
        return self.times(ts)[: len(taken)]
