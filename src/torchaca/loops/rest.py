"""Steps at rest: a bound on their length where the error estimate says nothing.

At an equilibrium a step has no error, however long it is, and steps would grow tenfold each, far out of the method's
stability region: the state stays right, its derivative does not, and a pulse between two stages goes unseen. What the
error estimate cannot tell, h |J|, takes one evaluation beside the state. After an accepted step whose error ratio is at
most `ROOM`, and which has moved the state by less than its tolerance (or without any error), unless it is the last,

    w = (f(t, y + s v) - f(t, y)) / s          |v| = 1 (rms), at first random
    L = max(|w|, 0.7 L)                        v := w / |w| + v / 2, normed
    next step <= theta / L                     theta: `methods.stability`

and so much shorter in a long solve that the errors of all of its steps add up to `TOTAL` at most. That is a power
iteration for the size of J = df/dy, a round after each such step. The evaluation is one like those of a rejected trial:
counted, without a graph, and undone where f moves buffers. An f that draws random numbers is not looked at: the
difference would be noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Method, Problem, VectorField
from ..methods.stability import GOOD, SHARE, stability
from ..norms import length, rms, size_of
from ..numbers import Numbers, Time, at_least, at_most, column, in_double, on_host, power, value, where
from ..torch_internals import plain
from .pace import TOO_SMALL, ulp
from .rule import FLAT

if TYPE_CHECKING:
    from .adaptive import Adaptive

AT_REST = ("resolve", "ignore")
ROOM = 1e-3  # ratios of controlled steps are 0.03 to 1: only steps that something else has limited are below
STILL = 1.0  # tolerances: a state that moves further in a step is not at rest, but on a way that is easy to follow
ROUNDING = 1e-6  # of a ratio: a state that moves without any error may have parts at rest
FADING = 0.7  # what an old |J| counts for
MOST = 10_000  # steps into which the bound may divide a span
TOTAL = 0.05  # relative error of the derivative over the whole of a solve at rest
SMALL = 4096  # directions of so many numbers are remembered


@dataclass(frozen=True)
class Slope:
    """What is known of J = df/dy.

    Attributes
    ----------
    direction : Tensor, shape of y
        One in which J is large, of rms 1.
    steepness : float or Tensor, 0-dim, float64
        How large; zero while nothing is known.
    """

    direction: Tensor
    steepness: Any

    @staticmethod
    def unknown(y: Tensor, batch: int = 0) -> Slope:
        """Nothing, and a direction that is the same for each of the independent problems in y, lanes or rows."""
        with plain():  # a random operation inside of vmap
            shape = y.shape[batch:]
            noise = _remembered(shape) if shape.numel() <= SMALL else _noise(shape)
            return Slope(noise.to(y.device, y.dtype).expand(y.shape), 0.0)

    def looked(
        self,
        f: VectorField,
        t: Time,
        y: Tensor,
        f0: Tensor,
        atol: float | Tensor,
        eps: float,
        numbers: Numbers = in_double,
        batch: int = 0,
    ) -> Slope:
        """Evaluate f beside y, at which it is `f0`, and so know J better; with `batch` that of each problem.

        `eps` is the resolution of the dtype in which f computes. The distance is 1e-4 of the state's size in float64,
        3e-4 in float32, and where the state is zero eps^(3/4), which the ones in f resolve. Norms become `numbers`.
        """
        v, root = self.direction, math.sqrt(size_of(y, batch))
        floors = (
            [rms(atol.expand(y.shape), batch) if batch else rms(atol)] if isinstance(atol, Tensor) else []
        )
        size, *floor = numbers(length(y, batch), *floors)
        beside = max(1e-4, eps**0.5) * (size / root + (floor[0] if floor else atol)) + eps**0.75
        w = f(t, y + _factor(beside, y, batch) * v) - f0
        (rise,) = numbers(length(w, batch))
        seen = (rise > 0) & (rise < math.inf)  # else J is zero there, or f not defined
        turned = v / 2 + w * _factor(root / where(seen, rise, 1.0), y, batch)
        (size,) = numbers(length(turned, batch))
        steepness = where(seen, rise / (beside * root), 0.0)
        turned = turned * _factor(root / at_least(size, FLAT), y, batch)
        return Slope(
            where(column(seen, y, batch), turned, v),
            at_least(steepness, FADING * self.steepness),
        )


def _noise(shape: torch.Size) -> Tensor:
    """Numbers of rms 1, the same each time; the user's random numbers stay as they are."""
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return noise / rms(noise)


_remembered = lru_cache(maxsize=64)(_noise)


def _factor(x: Any, y: Tensor, batch: int) -> Any:
    """A number of float64 to multiply y with; a tensor would widen a state without dimensions."""
    return column(x.to(y.dtype.to_real()), y, batch) if isinstance(x, Tensor) else x


def looks(p: Problem, control: Adaptive) -> bool:
    """Whether a solve looks beside its state at rest; not under a control of one's own that does not say so."""
    return getattr(control, "at_rest", "ignore") == "resolve" and not (p.effects and p.effects.random)


def longest(steepness: Any, method: Method, span: Any) -> Any:
    """Return how long a step may be where |J| is `steepness`, a number or a tensor, in a solve over `span`."""
    theta, steep = stability(method).theta, at_least(steepness, FLAT)
    good = theta / SHARE  # there a step is off by GOOD (z / good)^(order + 1), and L span / z steps are taken
    small = good * power(TOTAL / GOOD * good / at_least(span * steep, FLAT), 1 / method.order)
    return at_most(small, theta) / steep


def least(p: Problem, control: Adaptive) -> float:
    """Return the smallest step that the bound asks for.

    A stiff problem at rest is one that steps of this kind cannot resolve, and it is not to fail for that.
    """
    start, end = p.since, p.ts.values[-1]
    shortest = 2 * span_of(p) / min(control.max_steps, MOST)
    farther = max(ulp(start), ulp(end)) if abs(end) < math.inf else ulp(start)
    return max(control.dt_min, shortest, 2 * TOO_SMALL * farther)


def span_of(p: Problem) -> float:
    """Return the time over which the errors of steps add up: none in a solve without end, whose caller stops it."""
    span = abs(p.ts.values[-1] - p.since)
    return span if span < math.inf else 0.0


def least_between(start: Any, end: Any, control: Adaptive) -> Any:
    """Return the same for rows, between times of their own."""
    shortest = 2 * abs(end - start) / min(control.max_steps, MOST)
    return at_least(at_least(shortest, control.dt_min), 2 * TOO_SMALL * at_least(ulp(start), ulp(end)))


def resolution(p: Problem) -> float:
    """Return the distance from 1 to the next number in the coarsest dtype in which f computes."""
    dtypes: Sequence[torch.dtype] = getattr(p.f.call, "dtypes", (p.y0.dtype,))
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def start_of(p: Problem, control: Adaptive) -> float:
    """Return the norm of y0 in units of its tolerances."""
    return control.motion(torch.zeros_like(p.y0), p.y0.detach()).item()


class Rest:
    """What one search does about steps of a ratio of at most `ROOM`; `slope` is what it knows of f."""

    def __init__(self, p: Problem, control: Adaptive) -> None:
        self.p, self.control, self.looks = p, control, looks(p, control)
        self.slope: Slope | None = None if p.start is None else p.start.pace.slope
        p.log.pace.slope = self.slope

    def pending(self) -> bool:
        """Whether the first step has to be bounded: the solve before this one has ended at rest."""
        if not self.looks or self.p.start is None or (before := self.p.start.pace.before) is None:
            return False
        return self._rests(self.p.start.pace.ratios[0], before, self.p.y0)

    def note(self, t0: float, ratio: float, t1: float, y0: Tensor, y1: Tensor) -> bool:
        """Note the step from t0 to t1 for gradients; whether the next one has to be bounded."""
        self.p.log.rests.ratios[t0] = ratio
        if not self.looks:
            return False
        if t1 == self.p.ts.values[-1]:  # of use to a solve that goes on from here alone, which looks itself
            self.p.log.pace.before = y0.detach()
            return False
        return self._rests(ratio, y0, y1)

    def _rests(self, ratio: Any, y0: Tensor, y1: Tensor) -> bool:
        if value(ratio) <= ROUNDING:
            return True
        return self.control.motion(y0.detach(), y1.detach()).item() <= STILL

    def bound(self, f: VectorField, t: Time, y: Tensor, f0: Tensor) -> float:
        """Look beside y, where f is f0, and return how long the next step may be."""
        p, y = self.p, y.detach()
        with torch.no_grad(), p.undone():
            before = Slope.unknown(y, p.f.batch) if self.slope is None else self.slope
            point = (t, y, f0.detach(), self.control.atol, resolution(p))
            self.slope = p.log.pace.slope = before.looked(f, *point, numbers=on_host)
        return max(longest(self.slope.steepness, p.method, span_of(p)), least(p, self.control))
