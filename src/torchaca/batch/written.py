"""The outputs of a search that nobody differentiates: written as steps are accepted, so that none is made again."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Method, Step
from ..loops.row_search import Search
from .interpolants import interpolated
from .outputs import signs


class Written:
    """Outputs `(n, B, ...)` at the `wanted` times, `(n, B)`, of samples that start at `y0`."""

    def __init__(self, method: Method, y0: Tensor, wanted: Tensor) -> None:
        self.method, self.wanted = method, wanted
        self.ys = y0.detach().expand(len(wanted), *y0.shape).clone()
        self.due = (wanted != wanted[-1]).sum(0)  # outputs at the end are the last state
        self.here = Column(wanted, None)
        self.done = self.here.up_to(wanted[0])

    def watch(self, search: Search, step: Step, t1: Tensor, success: Tensor) -> None:
        """See a trial of the samples that are searched, to t1, `(B,)`, which some of them have accepted."""
        index = search.index
        if index is not self.here.index:
            self.here = Column(self.wanted, index)
        wanted = self.here.wanted
        done, due = (x if index is None else x[index] for x in (self.done, self.due))
        reached = torch.where(success, torch.minimum(self.here.up_to(t1), due), done)
        counts = (reached - done).clamp(min=0)
        most = int(counts.max())
        if not most:
            return
        rank = torch.arange(most, device=t1.device)[:, None]
        here, place = rank < counts, (done + rank).clamp(max=len(wanted) - 1)
        t = torch.where(here, wanted.gather(0, place), t1)
        y = step.y1.expand(most, *step.y1.shape)
        if bool((t != t1).any()):
            y = interpolated(self.method, step, step.y1, t, (search.t, t1))
        sample = torch.arange(t.shape[1], device=t1.device) if index is None else index
        self.ys[place[here], sample.expand_as(place)[here]] = y[here]
        done = torch.maximum(done, reached)
        self.done = done if index is None else self.done.index_copy(0, index, done)

    def finished(self, end: Tensor) -> Tensor:
        """The outputs; those that are not written yet are the states at the ends of samples."""
        left = torch.arange(len(self.wanted), device=end.device)[:, None] >= self.done
        return torch.where(left.reshape(*left.shape, *[1] * (end.ndim - 1)), end, self.ys)


class Column:
    """The `wanted` times of the samples of an index, or of all."""

    def __init__(self, wanted: Tensor, index: Tensor | None) -> None:
        self.index, self.wanted = index, wanted if index is None else wanted[:, index]
        self.sign = signs(self.wanted)
        self._ordered = (self.sign * self.wanted).T.contiguous()

    def up_to(self, t: Tensor) -> Tensor:
        """How many outputs of each sample are at or before its time."""
        return torch.searchsorted(self._ordered, (self.sign * t)[:, None], right=True)[:, 0]
