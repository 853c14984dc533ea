"""States that were not kept, made again from earlier ones: ACA with fewer checkpoints than steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import Problem
from . import records
from .driver import loops_for
from .programs import Called
from .records import Status
from .run import SLICE, Chunk
from .tables import Route, table_of


class Again:
    """The steps of a solve once more; what `torchaca.gradients.Store.reversed` asks of a replay.

    Parameters
    ----------
    p, times, route
        The problem, the boundaries of its steps, and its times as arrays.
    value
        The code of f with its inputs.
    """

    def __init__(self, p: Problem, times: Sequence[float], route: Route, value: Called | None) -> None:
        assert value is not None
        self.p, self.times, self.route, self.value = p, times, route, value
        self.n_steps = len(times) - 1

    def steps(self, starts: Iterable[tuple[int, Tensor]], end: Tensor | None) -> Iterator[Chunk]:
        """Chunks of one step each, from the last to the first; `end` is the state behind the last, if known."""
        for n, start in starts:
            times = torch.tensor(self.times[n : n + 2], dtype=torch.float64, device="cpu")
            states = torch.stack([start, start if end is None else end]).contiguous()
            yield Chunk(1, times, states, known=end is not None)
            end = start

    def advance(self, start: Tensor, first: int, last: int) -> Tensor:
        """Compute where step `last` starts from where step `first` starts."""
        p, route, n = self.p, self.route, start.numel()
        method: Any = p.method
        table, stops = table_of(method), records.doubles(self.times[first + 1 : last + 1])
        states, work = start.new_empty((2, *start.shape)), start.new_empty((len(method.nodes) + 3) * n)
        states[0] = start
        times = torch.empty(last - first + 1, dtype=torch.float64, device="cpu")
        solve = records.Solve(
            *(table.address, None, None, records.address(self.value.graph), None),
            *(n, 0, last - first, route.n_jumps, 0, p.ts.sign),
            *map(records.address, (route.ts, stops, route.jumps, route.exact)),
            *(None, work.data_ptr()),
        )
        state = records.State(self.times[first])
        chunk = Chunk(0, times, states).record(last - first, kept=False, rows=0)
        march = loops_for(start.dtype).function("march")
        while march(*map(records.address, (solve, state, chunk)), SLICE) == Status.PAUSED:
            pass
        p.stats.nfe_backward += state.calls
        return states[chunk.steps & 1].clone()
