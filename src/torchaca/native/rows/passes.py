"""The passes of a native solve of rows: ranges of them, each by a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core import Outcome
from ...field.inputs import Inputs
from ...gradients import refuse
from ...gradients.drift import CHANGED, UNKNOWN
from ...gradients.replay import MaybeTensors
from ...torch_internals import is_legacy_batchedtensor
from .. import records
from ..codes import Codes
from ..door import SECOND
from ..passes import SEVERAL
from ..run import SLICE, Keep
from .block import Backward, Forward, Steps
from .plan import Plan
from .reads import Reads, Rowed

FEWEST_ROWS = 16  # that are worth a thread


class RowPasses:
    """See `torchaca.gradients.Passes`."""

    def __init__(self, plan: Plan, codes: Codes, reads: Reads, keep: Keep) -> None:
        self.problem, self.inputs = plan.p, Inputs(args=reads.tensors)
        self.plan, self.codes, self.reads, self.keep = plan, codes, reads, keep
        self.chunks: list[list[Steps]] = []
        self.kept: list[list[int]] = []

    def forward(self) -> tuple[Outcome, list[Tensor]]:
        """Solve the rows; kept are the states of the chunks, and their stages where those are kept."""
        plan, reads, p = self.plan, self.reads, self.problem
        tensors = list(records.dense(reads.tensors))
        t, y = self.codes.given[:2]
        y0 = p.y0.detach().contiguous()
        ys = y0.new_empty((plan.size, plan.n_ts, *y0.shape[1:]))
        parts = []
        for ends in ranges(plan.size):
            inputs = reads.lanes_of(tensors, plan.width)
            called = self.codes.value.called_with([t, y, *inputs], [None])
            rowed = Rowed(called, inputs, tensors, reads.rowed)
            parts.append(Forward(plan, ends, called, rowed, (y0, ys), self.keep))
        side_by_side([one.run for one in parts])
        kept: list[Tensor] = []
        for one in parts:
            self.chunks.append(one.chunks)
            self.kept.append([len(own) for own in one.kept])
            kept += [x for own in one.kept for x in own]
        return Outcome(ys.transpose(0, 1).contiguous(), p.ts), kept

    def boundaries(self) -> np.ndarray[Any, Any]:
        """The times between which each row has stepped, padded with its end: `(n, B)`."""
        plan, chunks = self.plan, [chunk for own in self.chunks for chunk in own]
        found = np.tile(plan.states["t"], (int(plan.states["accepted"].max()) + 1, 1))
        for chunk in chunks:
            of, slots, steps, before, _ = chunk.all()
            segment = np.repeat(np.arange(len(of)), steps + 1)
            place = np.arange(len(segment)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
            found[before[segment] + place, of[segment]] = chunk.times.numpy()[slots[segment] + place]
        return found

    def backward(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Sweep over the chunks of each range, from the last to the first."""
        (grad_ys,) = cotangents
        if grad_ys is not None and is_legacy_batchedtensor(grad_ys):
            raise NotImplementedError(SEVERAL)
        assert grad_ys is not None
        plan, wanted = self.plan, self.codes.wanted.inputs
        n_control = len(self.problem.control.tensors)
        whole = list(records.dense(tensors[2 + n_control :]))
        lam, ys = plan.like.new_zeros(plan.shape), grad_ys.transpose(0, 1).contiguous()
        own = [so for so, want in zip(self.reads.rowed, wanted, strict=True) if want]
        chosen = [x for x, want in zip(whole, wanted, strict=True) if want]
        totals = [torch.zeros_like(x, dtype=plan.like.dtype) for x in chosen]
        parts = []
        for _ in self.chunks:
            sums = [x if so else torch.zeros_like(x) for x, so in zip(totals, own, strict=True)]
            parts.append(self._part(whole, lam, ys, sums, own))
        pieces = [*self._pieces(kept)]
        side_by_side(
            [
                partial(one.run, chunks, piece)
                for one, chunks, piece in zip(parts, self.chunks, pieces, strict=True)
            ]
        )
        for one in parts:
            for total, x, so in zip(totals, one.totals, own, strict=True):
                if not so:
                    total += x
        self.problem.stats.nfe_backward += max(one.rows.most_calls for one in parts)
        if max(one.back.drift for one in parts) > 0:
            raise RuntimeError(CHANGED.format(UNKNOWN))
        found = iter(totals)
        grads = (next(found) if want else None for want in wanted)
        return [lam, *[None] * (1 + n_control), *grads]

    def _part(
        self, whole: Sequence[Tensor], lam: Tensor, ys: Tensor, totals: Sequence[Tensor], own: Sequence[bool]
    ) -> Backward:
        """The backward pass of a range of rows."""
        codes, reads = self.codes, self.reads
        assert codes.pull is not None
        inputs, (t, y) = reads.lanes_of(whole, self.plan.width), codes.given[:2]
        chosen = [x for x, want in zip(inputs, codes.wanted.inputs, strict=True) if want]
        parts = [torch.empty_like(x, dtype=y.dtype) for x in chosen]
        value = codes.value.called_with([t, y, *inputs], [None])
        pull = codes.pull.called_with([t, y, y, *inputs], [None, *parts])
        rowed = Rowed(value, inputs, whole, reads.rowed)
        return Backward(self.plan, (value, pull), rowed, lam, ys, totals, own, parts)

    def _pieces(self, kept: Sequence[Tensor]) -> Iterator[list[Sequence[Tensor]]]:
        """What was kept of each chunk of each range."""
        rest = iter(kept)
        for counts in self.kept:
            yield [[next(rest) for _ in range(n)] for n in counts]

    def twice(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Refuse second derivatives."""
        return refuse(self, SECOND, kept, cotangents, tensors)


def ranges(size: int) -> list[tuple[int, int]]:
    """Rows in as many ranges as there are threads, none of them very short."""
    n = max(1, min(torch.get_num_threads(), size // FEWEST_ROWS))
    ends = [i * size // n for i in range(n + 1)]
    return list(pairwise(ends))


def side_by_side(works: Sequence[Callable[[Event], None]]) -> None:
    """Do all of it at once: the loops in C leave Python to the others. Ctrl-C stops them all."""
    stopped = Event()
    if len(works) == 1:
        works[0](stopped)
        return
    with ThreadPoolExecutor(len(works)) as pool:
        try:
            parts = [pool.submit(work, stopped) for work in works]
            while wait(parts, SLICE).not_done:  # and hear Ctrl-C
                pass
            for one in parts:
                one.result()
        finally:
            stopped.set()
