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
        The time of each output: j + 1 of m + 1 parts into its step, or into one of the parts of its step.
    times : Tensor
        `(len(numbers), B)`, float64: the samples' times in each of them.
    inside : sequence of bool
        Whether some sample's state there is the interpolant's, and not that at the end of its step.
    index : Tensor
        `(n, B)`: in which place the outputs that were asked for are.
    reached : Tensor
        `(n, B)`: whether the samples got there.
    moving : Tensor or None
        `times` with derivatives. An output then moves along the interpolant, also where it falls on the end of a step.
    """

    numbers: Sequence[float]
    times: Tensor
    inside: Sequence[bool]
    index: Tensor
    reached: Tensor
    moving: Tensor | None = None

    @staticmethod
    def of(
        wanted: Tensor,
        boundaries: Tensor,
        *,
        parts: int = 1,
        moving: Tensor | None = None,
        last: Tensor | None = None,
    ) -> Places:
        """Find the places of outputs in steps.

        Parameters
        ----------
        wanted : Tensor
            `(n, B)`.
        boundaries : Tensor
            `(N + 1, B)`.
        parts : int
            Into so many equal parts steps may be divided later: an output has a number in its own part.
        moving, last : Tensor
            `wanted` with derivatives, and which output is the end of each sample, `(B,)`. All others move then.
        """
        ends = _divided(boundaries, parts)
        step = _steps(wanted, ends, last)
        n_steps = len(ends) - 1
        within = (step >= 0) & (step < n_steps)
        rank = torch.arange(step.shape[1], device=step.device) - torch.searchsorted(step, step)
        slots = step.new_zeros(n_steps)
        slots.scatter_reduce_(0, step[within], rank[within] + 1, "amax")
        before = 1 + slots.cumsum(0) - slots  # the places before each step's
        total = 2 + int(slots.sum())
        index = torch.where(step < 0, 0, total - 1)
        index = torch.where(within, before[step.clamp(0, n_steps - 1)] + rank, index)
        owner = torch.repeat_interleave(torch.arange(n_steps, device=step.device), slots)
        times = torch.cat([ends[:1], ends[1:][owner], ends[-1:]])
        samples = torch.arange(len(step), device=step.device)[:, None].expand_as(index)
        place = index[within], samples[within]
        times = times.index_put(place, wanted.T[within])
        whole = boundaries[1:][owner.div(parts, rounding_mode="floor")]
        moves = moving is not None
        inside = [True] * (total - 2) if moves else (times[1:-1] != whole).any(1).tolist()
        found = [
            0.0,
            *((n + (j + 1) / (m + 1)) / parts for n, m in enumerate(slots.tolist()) for j in range(m)),
            float(len(boundaries) - 1),
        ]
        moved = times.index_put(place, moving.T[within]) if moves else None
        reached = reached_by(wanted, boundaries[-1])
        return Places(found, times, [False, *inside, False], index.T, reached, moved)

    def chosen(self, ys: Tensor) -> Tensor:
        """The outputs that were asked for, `(n, B, ...)`, of those in all places, `(len(numbers), B, ...)`."""
        return ys[self.index, torch.arange(self.index.shape[1], device=ys.device)]


def _divided(boundaries: Tensor, parts: int) -> Tensor:
    """Boundaries of so many equal parts of each step."""
    if parts == 1:
        return boundaries
    size = boundaries.diff(dim=0)[:, None]
    part = torch.arange(parts, dtype=size.dtype, device=size.device)[:, None] / parts
    return torch.cat([(boundaries[:-1, None] + size * part).flatten(0, 1), boundaries[-1:]])


def _steps(wanted: Tensor, boundaries: Tensor, last: Tensor | None) -> Tensor:
    """In which step each output is, `(B, n)`: -1 for the start, the number of steps for the end and what is behind it.

    Where outputs move, only the first one is the start, and the `last` the end.
    """
    start, end = boundaries[0][:, None], boundaries[-1][:, None]
    sign, t = signs(wanted)[:, None], wanted.T
    ends = (sign * boundaries[1:].T).contiguous()
    step = torch.searchsorted(ends, (sign * t).contiguous())
    if last is None:
        at_start, at_end = t == start, t == end
    else:
        first = torch.searchsorted(ends, (sign * start).contiguous(), right=True)
        step = torch.where(t == start, first, step)
        number = torch.arange(len(wanted), device=step.device)
        at_start, at_end = number == 0, (number >= last[:, None]) | (start == end)
    step = torch.where(at_start, -1, step)
    return torch.where(at_end, ends.shape[1], step).contiguous()


def signs(times: Tensor) -> Tensor:
    """+1 for samples whose times `(n, B)` increase, else -1: `(B,)`."""
    return torch.where(times[-1] < times[0], -1.0, 1.0).to(times)


def reached_by(wanted: Tensor, end: Tensor) -> Tensor:
    """Which outputs `(n, B)` lie at or before the times at which samples have ended, `(B,)`."""
    return signs(wanted) * (end - wanted) >= 0
