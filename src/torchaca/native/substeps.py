"""Steps that are differentiated as several equal ones: those are made natively, from where the step started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ctypes import sizeof
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..core import Problem
from ..gradients.inner import inner_of
from ..gradients.levels import Regridded, divided
from ..gradients.substeps import substeps
from ..numbers import combined, value
from . import records
from .driver import loops_for
from .programs import Called
from .records import Status
from .run import CHUNK, SLICE, Chunk
from .tables import Route, table_of


class Substeps:
    """The steps of a solve, each as `m` from the state that it started from; see `torchaca.gradients.substeps`.

    Parameters
    ----------
    p, times, route
        The problem, the boundaries of its steps, and its times as arrays.
    m
        How many.
    dense
        The cotangents of the steps' interpolants.

    Attributes
    ----------
    problem, times, bases
        The problem on the sub-steps, their boundaries, and the cotangents of their interpolants.
    """

    def __init__(
        self, p: Problem, times: Sequence[float], route: Route, m: int, dense: Sequence[Tensor | None]
    ) -> None:
        self.m, self.route, n_steps = m, route, len(times) - 1
        ends = [value(t) for a, b in pairwise(times) for t in substeps(a, b, m)[1:]]
        self.times, whole = [times[0], *ends], Regridded.of(p.control, times)
        self.problem = replace(p, control=whole.at(divided(whole.places, m)))
        self.bases: list[Tensor | None] = [None] * (n_steps * m if any(g is not None for g in dense) else 0)
        for n, inner in (inner_of(p.method, dense) if self.bases else {}).items():
            for j in range(m):
                own = inner.within(j / m, (j + 1) / m)
                if own.parts:
                    parts = torch.tensor(own.parts, dtype=torch.float64, device="cpu")
                    self.bases[n * m + j] = combined(p.method.basis_weights(parts).T, own.grads)
        self.first = [p.ts.at_start(), *(p.ts.up_to(t) for t in times[1:-1])]

    def chunks(self, starts: Iterable[tuple[int, Tensor]], called: Called) -> Iterator[Chunk]:
        """Chunks of m steps each, the last ones first, with their stages if those are not many.

        `called` is the code of f.
        """
        p, m, route, like = self.problem, self.m, self.route, self.problem.y0
        method: Any = p.method
        n, every, table = like.numel(), len(method.nodes), table_of(method)
        rows = every if m * every * like.nbytes <= CHUNK else 0
        outputs, dense = (len(p.ts), int(bool(self.bases))) if rows else (0, 0)
        stops, work = records.doubles(self.times[1:]), like.new_empty((every + 3 + outputs) * n)
        solve = records.Solve(
            *(table.address, None, None, records.address(called.graph), None),
            *(n, outputs, m, route.n_jumps, dense, p.ts.sign),
            *map(records.address, (route.ts, stops, route.jumps, route.exact)),
            *(work[(every + 3) * n :].data_ptr(), work.data_ptr()),
        )
        times = torch.tensor(self.times, dtype=torch.float64, device="cpu")
        for i, start in starts:
            first = i * m
            chunk = Chunk(m, times[first : first + m + 1], like.new_empty((m + 1, *like.shape)))
            chunk.Y[0] = start
            chunk.K = like.new_empty((m, rows, *like.shape)) if rows else None
            chunk.B = like.new_empty((m, every + 1, *like.shape)) if dense else None
            solve.stops = records.address(stops) + first * sizeof(records.REAL)
            state = records.State(self.times[first])
            state.outputs = self.first[i]
            record = chunk.record(m, kept=True, rows=rows)
            record.steps = 0
            self._march(solve, state, record)
            p.stats.nfe_backward += state.calls
            yield chunk

    def _march(self, *made: Any) -> None:
        march, places = loops_for(self.problem.y0.dtype).function("march"), map(records.address, made)
        own = [*places]
        while march(*own, SLICE) == Status.PAUSED:
            pass
