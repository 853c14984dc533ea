"""The backward pass: a sweep in C over the chunks of steps, from the last to the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import Problem
from ..gradients.drift import CHANGED, UNKNOWN
from . import records
from .driver import loops_for
from .graphs import Wanted
from .programs import Code
from .records import Status
from .run import SLICE, Chunk
from .tables import Route, table_of


class Sweep:
    """The sums of a backward pass.

    `lam` is the cotangent of the state, `sums` are those of the inputs that are wanted; `ends` `(n_steps + 1,)` and
    `moved` `(len(ts),)` those of the times of steps and outputs, float64.

    Parameters
    ----------
    p, times
        The problem, and the boundaries of the steps to go over.
    codes
        Of f and of its product.
    inputs
        The tensors that f reads.
    cotangents
        Of the outputs, and of the interpolants if the output is dense.
    """

    def __init__(
        self,
        p: Problem,
        times: Sequence[float],
        codes: tuple[Code, Code],
        wanted: Wanted,
        inputs: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
    ) -> None:
        self.p, self.times, self.timed = p, times, wanted.time
        grad_ys, *bases = cotangents
        self.bases = [None if g is None else g.contiguous() for g in bases]
        like = p.y0.detach()
        self.lam = torch.zeros_like(like, memory_format=torch.contiguous_format)
        self.ys = like.new_zeros((1, *like.shape)) if grad_ys is None else grad_ys.contiguous()
        self.done = 0 if grad_ys is None else len(grad_ys)
        given = list(records.dense(inputs))
        chosen = [x for x, want in zip(given, wanted.inputs, strict=True) if want]
        self.sums, parts = [torch.zeros_like(x) for x in chosen], [torch.empty_like(x) for x in chosen]
        self.ends, self.moved = (
            torch.zeros(n if wanted.time else 0, dtype=torch.float64, device="cpu")
            for n in (len(times), len(p.ts))
        )
        t, value, pull = self.lam.new_zeros(()), *codes
        leads: list[Tensor | None] = [None, None] if wanted.time else [None]
        self.lead = len(leads)
        self.value = value.called_with([t, self.lam, *given], [None])
        self.pull = pull.called_with([t, self.lam, self.lam, *given], [*leads, *parts])

    def over(self, chunks: Sequence[Chunk]) -> None:
        """Go over the chunks.

        Raises
        ------
        RuntimeError
            If f gives other values than in the forward pass.
        """
        p = self.p
        solve, back, alive = self._records()
        sweep, earlier = loops_for(self.lam.dtype).function("sweep"), len(self.times) - 1
        places = [records.address(x) for x in (solve, back)]
        for k in range(len(chunks) - 1, -1, -1):
            chunk = chunks[k]
            earlier -= chunk.n
            bases = records.places(self.bases[earlier : earlier + chunk.n])
            back.step, back.earlier = chunk.n, earlier
            back.before = float(chunks[k - 1].times[chunks[k - 1].n - 1]) if k else math.nan
            back.bases = records.address(bases) if self.bases else None
            back.ends = self.ends[earlier:].data_ptr() if self.timed else None
            record = chunk.record(chunk.n, kept=True, rows=0 if chunk.K is None else chunk.K.shape[1])
            while sweep(*places, records.address(record), SLICE) == Status.PAUSED:
                pass
        p.stats.nfe_backward += back.calls
        if back.drift > 0:
            raise RuntimeError(CHANGED.format(UNKNOWN))
        self.lam += self.ys[: min(back.first, self.done)].sum(0)
        alive.clear()

    def _records(self) -> tuple[records.Solve, records.Back, list[Any]]:
        """The problem, and where the backward pass is, as the loops in C see them; and what has to live as long."""
        p, y = self.p, self.lam
        method: Any = p.method
        table, route, n, rows = table_of(method), Route.of(p), y.numel(), len(method.nodes)
        solve = records.Solve(
            *(table.address, None, None, records.address(self.value.graph), records.address(self.pull.graph)),
            *(n, len(p.ts), route.n_stops, route.n_jumps, int(p.dense), p.ts.sign),
            *map(records.address, (route.ts, route.stops, route.jumps, route.exact)),
            *(self.ys.data_ptr(), None),
        )
        f1, work = y.new_empty(n), y.new_empty((3 * rows + 2) * n)
        counts = (records.WHOLE * max(1, len(self.sums)))(*(x.numel() for x in self.sums))
        sums, back = records.places(self.sums), records.Back()
        back.outputs, back.first = self.done, p.ts.at_start()
        back.totals, back.lead, back.timed = len(self.sums), self.lead, int(self.timed)
        back.allowed = records.epsilon(y.dtype)
        back.lam, back.f1, back.work = y.data_ptr(), f1.data_ptr(), work.data_ptr()
        back.sums, back.counts = records.address(sums), records.address(counts)
        back.moved = self.moved.data_ptr() if self.timed else None
        return solve, back, [table, route, f1, work, counts, sums]
