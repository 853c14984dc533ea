"""The backward pass: a sweep in C over the chunks of steps, from the last to the first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..compiled.look import Looks
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
    wanted
        What has a gradient.
    evaluates : bool
        Whether there are steps whose stages have to be evaluated again.
    alone : bool
        Whether no chunk knows of f where the one before ends.
    """

    def __init__(
        self,
        p: Problem,
        times: Sequence[float],
        codes: tuple[Code, Code],
        inputs: Sequence[Tensor],
        wanted: Wanted,
        *,
        evaluates: bool,
        alone: bool = False,
    ) -> None:
        self.p, self.times, self.wanted, self.alone = p, times, wanted, alone
        self.lam = torch.zeros_like(p.y0, memory_format=torch.contiguous_format, requires_grad=False)
        self.ends, self.moved = (
            torch.zeros(n if wanted.time else 0, dtype=torch.float64, device="cpu")
            for n in (len(times), len(p.ts))
        )
        given = list(records.dense(inputs))
        chosen = [x for x, want in zip(given, wanted.inputs, strict=True) if want]
        parts = [torch.empty_like(x, dtype=p.y0.dtype) for x in chosen]
        self.sums = [torch.zeros_like(x) for x in parts]
        t, y, (value, pull) = self.lam.new_empty(()), self.lam, codes
        lead: list[Tensor | None] = [None, None] if wanted.time else [None]
        self.lead = len(lead)
        self.value = value.called_with([t, y, *given], [None]) if evaluates else None
        self.pull = pull.called_with([t, y, y, *given], [*lead, *parts])

    def over(
        self,
        chunks: Iterable[Chunk],
        route: Route,
        cotangents: Sequence[Tensor | None],
        looks: Looks,
    ) -> None:
        """Go over the chunks, the last one first.

        Parameters
        ----------
        route
            The problem's.
        cotangents
            Of the outputs, and of the interpolants if the output is dense.
        looks
            At steps that may not be resolved.

        Raises
        ------
        RuntimeError
            If f gives other values than in the forward pass.
        """
        p, y = self.p, self.lam
        grad_ys, *bases = cotangents
        ys = y.new_zeros((1, *y.shape)) if grad_ys is None else grad_ys.contiguous()
        done = 0 if grad_ys is None else len(grad_ys)
        bases = [None if g is None else g.contiguous() for g in bases]
        solve, back, alive = self._records(route, ys)
        back.outputs, back.first = done, p.ts.at_start()
        sweep, earlier = loops_for(y.dtype).function("sweep"), len(self.times) - 1
        places = [records.address(x) for x in (solve, back)]
        for chunk in _cut(chunks, earlier, looks):
            n, end = chunk.n, self.times[earlier]
            outputs = (ys[i] for i in range(done) if route.exact[i] and p.ts.values[i] == end)
            looks.look(earlier - 1, chunk.Y[n - 1], y, outputs, end=chunk.Y[n] if chunk.known else None)
            earlier -= n
            own = records.places(bases[earlier : earlier + chunk.n])
            back.step, back.earlier = chunk.n, earlier
            back.allowed = records.epsilon(y.dtype) if chunk.known else math.inf
            back.before = self.times[earlier - 1] if earlier and not self.alone else math.nan
            back.follows *= not self.alone
            back.bases = records.address(own) if bases else None
            back.ends = self.ends[earlier:].data_ptr() if self.wanted.time else None
            record = chunk.record(chunk.n, kept=True, rows=0 if chunk.K is None else chunk.K.shape[1])
            while sweep(*places, records.address(record), SLICE) == Status.PAUSED:
                pass
        p.stats.nfe_backward += back.calls
        if back.drift > 0:
            raise RuntimeError(CHANGED.format(UNKNOWN))
        self.lam += ys[: min(back.first, done)].sum(0)
        alive.clear()

    def _records(self, route: Route, ys: Tensor) -> tuple[records.Solve, records.Back, list[Any]]:
        """The problem, and where the backward pass is, as the loops in C see them; and what has to live as long."""
        p, y, timed, value = self.p, self.lam, self.wanted.time, self.value
        method: Any = p.method
        table, n, rows = table_of(method), y.numel(), len(method.nodes)
        solve = records.Solve(
            *(
                table.address,
                None,
                None,
                value and records.address(value.graph),
                records.address(self.pull.graph),
            ),
            *(n, len(p.ts), route.n_stops, route.n_jumps, int(p.dense), p.ts.sign),
            *map(records.address, (route.ts, route.stops, route.jumps, route.exact)),
            *(ys.data_ptr(), None),
        )
        f1, work = y.new_empty(n), y.new_empty((3 * rows + 2) * n)
        counts = (records.WHOLE * max(1, len(self.sums)))(*[x.numel() for x in self.sums])
        sums, back = records.places(self.sums), records.Back()
        back.totals, back.lead, back.timed = len(self.sums), self.lead, int(timed)
        back.lam, back.f1, back.work = y.data_ptr(), f1.data_ptr(), work.data_ptr()
        back.sums, back.counts = records.address(sums), records.address(counts)
        back.moved = self.moved.data_ptr() if timed else None
        return solve, back, [table, route, f1, work, counts, sums]


def _cut(chunks: Iterable[Chunk], last: int, looks: Looks) -> Iterator[Chunk]:
    """Cut chunks, the last one first, behind each suspect; `last` steps are in them."""
    for chunk in chunks:
        last -= chunk.n
        for a, b in looks.pieces(last, chunk.n):
            stages = None if chunk.K is None else chunk.K[a:b]
            yield replace(chunk, n=b - a, times=chunk.times[a : b + 1], Y=chunk.Y[a : b + 1], K=stages)
