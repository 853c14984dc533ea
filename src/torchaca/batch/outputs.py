"""Where the outputs of samples lie: in which step of each, and in which place of all that a step gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """The outputs of a solve whose time is the number of the step.

    The first is the start, the last the end of all steps. Between them each step has as many as the sample with most
    outputs inside of it has there; the others have their end state in those places.

    Attributes
    ----------
    numbers : sequence of float
        The time of each output: j + 1 of m + 1 parts into its step.
    times : Tensor
        `(len(numbers), B)`, float64: the samples' times in each of them.
    inside : sequence of bool
        Whether some sample's time is inside of the step, and not at its end.
    index : Tensor
        `(n, B)`: in which place the outputs that were asked for are.
    reached : Tensor
        `(n, B)`: whether the samples got there.
    """

    numbers: Sequence[float]
    times: Tensor
    inside: Sequence[bool]
    index: Tensor
    reached: Tensor

    @staticmethod
    def of(wanted: Tensor, boundaries: Tensor) -> Places:
        """Find the places of outputs `(n, B)` in steps between the `boundaries`, `(N + 1, B)`."""
        start, end, n_steps = boundaries[0], boundaries[-1], len(boundaries) - 1
        sign = torch.where(wanted[-1] < wanted[0], -1.0, 1.0).to(wanted)
        t = (sign * wanted).T.contiguous()
        ends = (sign * boundaries[1:]).T.contiguous()
        step = torch.searchsorted(ends, t)
        step = torch.where(start[:, None] == wanted.T, -1, step)
        step = torch.where(end[:, None] == wanted.T, n_steps, step)  # the end, or what was not reached
        step = step.contiguous()
        within = (step >= 0) & (step < n_steps)
        rank = torch.arange(step.shape[1], device=step.device) - torch.searchsorted(step, step)
        slots = step.new_zeros(n_steps)
        slots.scatter_reduce_(0, step[within], rank[within] + 1, "amax")
        before = 1 + slots.cumsum(0) - slots  # the places before each step's
        total = 2 + int(slots.sum())
        index = torch.where(step < 0, 0, total - 1)
        index = torch.where(within, before[step.clamp(0, n_steps - 1)] + rank, index)
        owner = torch.repeat_interleave(torch.arange(n_steps, device=step.device), slots)
        times = torch.cat([start[None], boundaries[1:][owner], end[None]])
        samples = torch.arange(len(t), device=step.device)[:, None].expand_as(index)
        times[index[within], samples[within]] = wanted.T[within]
        inside = (times[1:-1] != boundaries[1:][owner]).any(1).tolist()
        numbers = [n + (j + 1) / (m + 1) for n, m in enumerate(slots.tolist()) for j in range(m)]
        found = [0.0, *numbers, float(n_steps)]
        return Places(found, times, [False, *inside, False], index.T, reached_by(wanted, end))

    def chosen(self, ys: Tensor) -> Tensor:
        """The outputs that were asked for, `(n, B, ...)`, of those in all places, `(len(numbers), B, ...)`."""
        return ys[self.index, torch.arange(self.index.shape[1], device=ys.device)]


def reached_by(wanted: Tensor, end: Tensor) -> Tensor:
    """Which outputs `(n, B)` lie at or before the times at which samples have ended, `(B,)`."""
    sign = torch.where(wanted[-1] < wanted[0], -1.0, 1.0).to(wanted)
    return sign * (end - wanted) >= 0
