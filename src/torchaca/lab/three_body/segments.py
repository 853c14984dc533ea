"""The training motion as segments that a model is solved on, all of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import K2, Data, initial_state


@dataclass(frozen=True)
class Segments:
    """Parts of equal length of the training motion.

    Attributes
    ----------
    times : Tensor
        `(n,)`, from 0.
    start : Tensor
        `(segments, 6, 3)`, the states at time 0.
    positions : Tensor
        `(n, segments, 3, 3)`, the truth at `times`.
    """

    times: Tensor
    start: Tensor
    positions: Tensor


def segments(data: Data, length: float, targets: int) -> Segments:
    """Segments of this `length`, one beginning in the middle of the other; the whole motion for a length of 1.

    At most `targets` points of each segment follow its start, at equal distances as far as the data have them.
    """
    points = len(data.train)
    last = min(max(round(length * points), 1), points - 1)
    starts = torch.arange(0, points - last, max(last // 2, 1))
    inside = torch.linspace(0, last, min(last, targets) + 1).round().long()
    states = torch.cat((data.train, velocities(data)), 1)
    return Segments(data.train_times[inside], states[starts], data.train[inside[:, None] + starts])


def velocities(data: Data) -> Tensor:
    """`(points, 3, 3)`: given at time 0, after that differences of the training positions, central but for the last."""
    step = data.train_times[1]
    inner = (data.train[2:] - data.train[:-2]) / (2 * step * K2)
    last = (data.train[-1:] - data.train[-2:-1]) / (step * K2)
    return torch.cat((initial_state()[None, 3:], inner, last))
