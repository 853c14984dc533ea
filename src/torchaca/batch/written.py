"""The outputs of a search that nobody differentiates: written as steps are accepted, so that none is made again."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Method, Step
from .numbered import interpolated


class Written:
    """Outputs `(n, B, ...)` at the `wanted` times, `(n, B)`, of samples that start at `y0`."""

    def __init__(self, method: Method, y0: Tensor, wanted: Tensor) -> None:
        self.method, self.wanted = method, wanted
        self.ys = y0.detach().expand(len(wanted), *y0.shape).clone()
        start, end = wanted[0], wanted[-1]
        self.sign = torch.where(end < start, -1.0, 1.0).to(wanted)
        self.ordered = (self.sign * wanted).T.contiguous()
        self.done = self._up_to(start)
        self.due = (wanted != end).sum(0)  # outputs at the end are the last state

    def _up_to(self, t: Tensor) -> Tensor:
        """How many outputs of each sample are at or before its time."""
        return torch.searchsorted(self.ordered, (self.sign * t)[:, None], right=True)[:, 0]

    def watch(self, step: Step, t0: Tensor, t1: Tensor, success: Tensor) -> None:
        """See a trial from t0 to t1, `(B,)`, which some samples have accepted."""
        reached = torch.where(success, torch.minimum(self._up_to(t1), self.due), self.done)
        counts = (reached - self.done).clamp(min=0)
        most = int(counts.max())
        if not most:
            return
        rank = torch.arange(most, device=t1.device)[:, None]
        here, place = rank < counts, (self.done + rank).clamp(max=len(self.wanted) - 1)
        t = torch.where(here, self.wanted.gather(0, place), t1)
        y = step.y1.expand(most, *step.y1.shape)
        if bool((t != t1).any()):
            y = interpolated(self.method, step, step.y1, t, t0, t1)
        sample = torch.arange(t.shape[1], device=t1.device).expand_as(place)
        self.ys[place[here], sample[here]] = y[here]
        self.done = torch.maximum(self.done, reached)

    def finished(self, end: Tensor) -> Tensor:
        """The outputs; those that are not written yet are the states at the ends of samples."""
        left = torch.arange(len(self.wanted), device=end.device)[:, None] >= self.done
        return torch.where(left.reshape(*left.shape, *[1] * (end.ndim - 1)), end, self.ys)
