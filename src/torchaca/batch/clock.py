"""The times of a batch as what may be differentiated: those of each sample, and those of jumps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Problem, Times
from ..numbers import value
from .times import SampleTimes


@dataclass(frozen=True, eq=False)
class Clock:
    """The times of samples.

    Attributes
    ----------
    wanted : Tensor
        `(n, B)`, float64, on the state's device: those of the outputs.
    last : Tensor
        `(B,)`: which output is the end of each sample.
    moving : Tensor or None
        `wanted` with derivatives.
    jumps : Tensor or None
        `(m,)`, increasing: where f may jump, for all samples.
    moving_jumps : sequence of Tensor
        Those that are differentiated, 0-dim.
    """

    wanted: Tensor
    last: Tensor
    moving: Tensor | None = None
    jumps: Tensor | None = None
    moving_jumps: Sequence[Tensor] = ()

    @staticmethod
    def of(times: SampleTimes, p: Problem) -> Clock:
        """The times of a problem, which may have jumps."""
        device = p.y0.device
        moving = None if times.moving is None else times.moving.to(device)
        jumps = torch.tensor(sorted(p.jumps), dtype=torch.float64, device=device) if p.jumps else None
        own = [t for t in p.control.tensors if t.requires_grad] if p.jumps else []
        return Clock(times.values.to(device), times.last.to(device), moving, jumps, own)

    @property
    def moves(self) -> bool:
        """Whether somebody differentiates with respect to a time."""
        return self.moving is not None or bool(self.moving_jumps)

    @property
    def ends(self) -> Tensor:
        """Where samples start and end, `(2, B)`, with derivatives."""
        times = self.wanted if self.moving is None else self.moving
        return torch.stack([times[0], times[-1]])

    def standing_in(self, start: Tensor) -> Times:
        """Two times for those of all samples, of which the first are `start`."""
        if self.moving is None:
            return Times((0.0, 1.0))
        first, last = self.ends
        return Times((0.0, 1.0), torch.stack([first + (start - first.detach()), last]))

    def start(self, dtype: torch.dtype) -> Tensor:
        """Where f is evaluated first, in its dtype of time: behind a jump, if a sample starts at one."""
        start, end = (self.wanted[i].to(dtype) for i in (0, -1))
        if self.jumps is None:
            return start
        return torch.where(torch.isin(self.wanted[0], self.jumps), torch.nextafter(start, end), start)

    def boundaries(self, taken: Tensor) -> Tensor | None:
        """The times `taken` between which samples step, `(N + 1, B)`, with derivatives.

        Those inside are constants, but at jumps that move; the first and the last move with the samples' times.
        """
        if not self.moves:
            return None
        ends = taken
        for jump in self.moving_jumps:
            ends = torch.where(taken == value(jump), jump.to(taken.device), ends)
        start, end = self.ends
        ends = torch.where(taken == end.detach(), end, ends)
        return torch.cat([start[None], ends[1:]])

    def along(self, ys: Tensor, p: Problem) -> Tensor:
        """The outputs `(n, B, ...)`; those of samples that end where they start move along f there."""
        if self.moving is None or not ys.numel():
            return ys
        still = (self.wanted[0] == self.wanted[-1]) & (self.last > 0)
        if not bool(still.any()):
            return ys
        number = torch.arange(len(ys), device=ys.device)[:, None]
        shift = torch.where(still & (number <= self.last), self.moving - self.moving[0], 0.0)
        each = (*shift.shape, *[1] * (ys.ndim - 2))
        return ys + shift.to(ys.dtype.to_real()).reshape(each) * p.f.call(p.ts.values[0], p.y0.clone())
