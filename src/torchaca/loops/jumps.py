"""Does f jump inside a step? The half where f changes most is halved, until nothing smooth could change so much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core import Problem
from .rule import largest

if TYPE_CHECKING:
    from .adaptive import Adaptive

LEAST = 0.1  # the change of f along the step, as a part of f, that is worth a look
KEPT = 0.25  # the part of this change that is left in the last half, if f jumps there
RESOLVED = 64  # roundings of y that the way has to be long: a steep f changes at each of them
HALVINGS = 24  # in which a smooth change loses seven digits


@dataclass(frozen=True)
class Jump:
    """f jumps at about time `t`; across `width`, of time if it jumps `in_time`, else of states."""

    t: float
    width: float
    in_time: bool


def find_jump(p: Problem, control: Adaptive, t: float, y: Tensor, dt: float) -> Jump | None:
    """A jump of f on the way from (t, y) along f to t + dt, if there is one that the problem does not know of."""
    slope = p.f(t, y)
    h = p.ts.sign * min(dt, abs(p.ts.values[-1] - t))
    scale = (control.atol + control.rtol * y.abs()).clamp(min=torch.finfo(y.dtype.to_real()).tiny)

    def change(a: Tensor, b: Tensor) -> float:
        return largest((a - b) / scale).item()

    def at(theta: float) -> Tensor:
        return p.f(t + theta * h, y + theta * h * slope)

    low, high, f_low, f_high = 0.0, 1.0, slope, at(1.0)
    whole = change(f_low, f_high)
    if not whole > LEAST * max(largest(f_low / scale).item(), largest(f_high / scale).item()):
        return None
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        f_middle = at(middle)
        if change(f_low, f_middle) >= change(f_middle, f_high):
            high, f_high = middle, f_middle
        else:
            low, f_low = middle, f_middle
    if not KEPT * whole < change(f_low, f_high) < whole / KEPT:
        return None
    y_low = y + low * h * slope
    in_time = change(p.f(t + low * h, y_low), p.f(t + high * h, y_low)) > KEPT * whole
    moved = abs(h) * largest(slope).item()
    found = Jump(t + high * h, abs(high - low) * (abs(h) if in_time else moved), in_time)
    if in_time:
        return None if _is_known(p, found) else found
    rounding = torch.finfo(y.dtype.to_real()).eps * largest(y).item()
    return found if moved > RESOLVED * rounding else None


def _is_known(p: Problem, found: Jump) -> bool:
    """Whether steps end there anyway. f gets times in the dtype of the state, which moves a jump by a rounding."""
    near = found.width + 2 * torch.finfo(p.y0.dtype.to_real()).eps * abs(found.t)
    return any(abs(found.t - jump) <= near for jump in p.jumps)
