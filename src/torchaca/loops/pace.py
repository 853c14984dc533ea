"""The search for step sizes on tensors, without a branch: what `stepping.Pace` is on host numbers.

The loops that have no host numbers share it: lanes of `torch.func.vmap`, and compiled solves. All arguments are 0-dim
tensors, or have lanes, unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..control import Adaptive
from .stepping import LANDING


def propose(
    t: Tensor, dt: Tensor, stop: Tensor, sign: float | Tensor, dt_max: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Where the next trial ends, and whether the stop cut it short."""
    size = dt.clamp(max=dt_max)
    left = (stop - t).abs()
    lands = left <= size * LANDING
    return torch.where(lands, stop, t + sign * size), lands & (left < size)


def next_dt(
    control: Adaptive,
    order: int,
    dt: Tensor,
    ratios: Sequence[Tensor],
    trial: tuple[Tensor, Tensor, Tensor],
    calm: Tensor,
    dt_min: float | Tensor,
) -> Tensor:
    """What the controller wants after a trial.

    `ratios` are those of the trial and of the two last accepted steps; `trial` is its size, whether a stop cut it
    short, and whether it was accepted; `calm` is true after a rejection.
    """
    size, clipped, ok = trial
    newest, *older = ratios
    past = [torch.where(ok, ratio, 1.0) for ratio in older]  # a rejection asks the newest alone
    wanted = size * control.factor([newest, *past], order, after_rejection=calm | ~ok)
    restored = ok & clipped & (wanted < dt)  # after a clipped step the old size is restored
    return torch.where(restored, dt, wanted.clamp(min=dt_min))


def ulp(t: Tensor) -> Tensor:
    """The distance from t to the next larger number."""
    size = t.abs()
    return torch.nextafter(size, torch.full_like(t, torch.inf)) - size


def at_dt_min(t: Tensor, size: Tensor, dt_min: float | Tensor) -> Tensor:
    """Whether a step is as small as it may be, up to the rounding of t + dt - t."""
    return size <= dt_min * LANDING + ulp(t)
