"""Adaptive control by an error estimate: its settings, and the loops that follow them."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core import End, Problem, Step, Times
from ..numbers import Numbers, Time, in_double, value
from .clock import merged
from .pace import TENSORS
from .rest import AT_REST
from .rule import I_CONTROL, NORMS, PID, Norm, StepRule
from .stepping import search


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
    jump_ts : sequence of float or 0-dim Tensor
        Times at which f or its derivatives jump: steps end there, and no step looks across. Tensors may be
        differentiated.
    at_rest : "resolve" or "ignore"
        What limits steps whose error says nothing, as at an equilibrium: "resolve" (default) evaluates f once beside
        the state after each of them and keeps the next one short enough for its derivative, and for what begins after
        the rest; "ignore" lets them grow, so that values are right and gradients are not. See `loops.rest`.
    """

    adaptive = True

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
    jump_ts: tuple[Time, ...] = ()
    stop_ts: tuple[float, ...] = ()
    at_rest: str = "resolve"

    def __post_init__(self) -> None:
        object.__setattr__(self, "jump_ts", tuple(self.jump_ts))
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
        if self.at_rest not in AT_REST:
            raise ValueError(f"at_rest is 'resolve' or 'ignore', got {self.at_rest!r}")
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
            given = getattr(self, name)
            if not isinstance(given, (int, float, type(None))):
                raise TypeError(f"{name} must be a number, got {given!r}")
        if not (isinstance(self.norm, str) or callable(self.norm)):
            raise TypeError(f"norm must be 'rms', 'max' or a callable, got {self.norm!r}")
        for time in (*self.jump_ts, *self.stop_ts):
            if not math.isfinite(value(time)):
                raise ValueError(f"jump_ts and stop_ts must be finite, got {time}")

    @staticmethod
    def _zero(tolerance: float | Tensor) -> bool:
        return not isinstance(tolerance, Tensor) and tolerance == 0

    def moves(self, p: Problem) -> Generator[Step, None, End]:
        """Yield the accepted steps of a problem; see `torchaca.core.Control`."""
        return search(p, self)

    def moves_on_tensors(self, p: Problem) -> Generator[Step, None, End]:
        """Yield the same steps, whose sizes autograd follows back to the states (for the naive gradient)."""
        return search(p, self, TENSORS)

    @cached_property
    def _rule(self) -> StepRule:
        factors = (self.safety, self.factor_min, self.factor_max)
        return StepRule(
            self.rtol, self.atol, self.pid, *factors, self.norm, resolves=self.at_rest == "resolve"
        )

    @property
    def step_rule(self) -> StepRule | None:
        """The formulas of the step size as a value, for compiled loops; None if a subclass has formulas of its own."""
        names = ("moves", "ratio", "factor", "initial_step", "stops")
        own = any(getattr(type(self), name) is not getattr(Adaptive, name) for name in names)
        return None if own else self._rule

    @cached_property
    def older(self) -> int:
        """How many error ratios of earlier steps a size may follow from, beside the newest."""
        alone = self.step_rule is not None and not self.pid.d
        return 2 if not alone else int(self.pid.p != 0)

    def ratio(self, step: Step) -> Tensor:
        """The error of a step over its tolerance, 0-dim; at most 1 is acceptable, nan is not."""
        return self._rule.ratio(step)

    def motion(self, y0: Tensor, y1: Tensor) -> Tensor:
        """How far a step moves the state, in units of its tolerance, 0-dim."""
        return self._rule.motion(y0, y1)

    def factor(self, ratios: Sequence[Any], order: int, *, after_rejection: bool | Tensor = False) -> Any:
        """What the step size is multiplied with; see `StepRule.factor`."""
        return self._rule.factor(ratios, order, after_rejection=after_rejection)

    def initial_step(self, p: Problem, f0: Tensor, numbers: Numbers = in_double) -> Any:
        """Hairer's first step size, positive (one evaluation of f, inside [t0, t1]); see `StepRule.guessed_step`."""
        span = min(abs(stop - p.ts.values[0]) for stop in self.stops(p.ts))
        reach = min(0.5 * span, self.dt_max)  # halfway: neither rounding nor a jump is reached
        point = (p.ts[0], p.y0, f0, p.ts.sign, reach, p.method.order, numbers)
        return self._rule.guessed_step(p.f, *point, p.log.rests)

    def stops(self, ts: Times) -> list[float]:
        """The times where a step has to end: jumps and stops inside the span, and its end."""
        start, end = ts.values[0], ts.values[-1]
        known = map(value, (*self.jump_ts, *self.stop_ts))
        inside = {t for t in known if min(start, end) < t < max(start, end)}
        return [*sorted(inside, key=lambda t: ts.sign * t), end]

    def boundaries(self, ts: Times, taken: Sequence[float]) -> Sequence[Time]:
        """Interior step times are constants, but at jumps that move; the first and the last move with t0 and t1."""
        if len(taken) == 1:
            return list(taken)
        complete = taken[-1] == ts.values[-1]  # a solve that failed ends where no output time is
        jumps = {value(t): t for t in self.tensors}
        inner = [jumps.get(t, t) for t in taken[1:]] if jumps else taken[1:]
        return [ts[0], *inner[:-1], ts[len(ts) - 1] if complete else inner[-1]]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The times of jumps that are differentiated; tolerances are not."""
        return tuple(t for t in self.jump_ts if isinstance(t, Tensor))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Adaptive:
        """Exchange the times of jumps for others of the same values."""
        if not tensors:
            return self
        others = iter(tensors)
        kept = copy(self)  # checked already
        jumps = [next(others) if isinstance(t, Tensor) else t for t in self.jump_ts]
        object.__setattr__(kept, "jump_ts", tuple(jumps))
        return kept

    def with_settings(self, **settings: Any) -> Adaptive:
        """Exchange some settings."""
        return replace(self, **settings)

    def fitted(self, ts: Times, time_dtype: torch.dtype) -> Adaptive:
        """Make one jump of several that rounding cannot tell apart; see `clock.merged`.

        Raises
        ------
        ValueError
            If one of them is differentiated.
        """
        return merged(self, ts, time_dtype)

    def within(self, start: float, end: float) -> Adaptive:
        """Return the control itself, which works on any stretch."""
        return self
