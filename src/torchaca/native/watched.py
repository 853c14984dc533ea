"""Events of a native solve: its loops stop behind a step in which one may happen, and Python looks at that step.

g of each event is code like f's, read where `torchaca.events.watch` reads it. A step in which some g does not stay on
its side of zero is taken back if there is an event in it, and a last one lands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..compiled import CannotCompile
from ..core import Problem, Step
from ..errors import SolverError
from ..events import PARTS, Crossing, Guard, Watch
from ..numbers import value
from . import records
from .codes import scalar_of
from .driver import loops_for
from .graphs import Wanted
from .programs import Called, Code
from .records import Status
from .run import SLICE, Chunk, Forward
from .steps import NativeField

SPARE = -3
"""Where in the states that the loops work with the first stage of a step is that somebody has to look at."""


def code_of_events(watch: Watch, time: Tensor, y0: Tensor) -> list[Called]:
    """The code of g of each event.

    Raises
    ------
    CannotCompile
    """
    found = []
    for guard in watch.guards:
        g = copy(guard.field)
        g.func = guard.event.g
        try:
            found.append(scalar_of(g, time, y0))
        except CannotCompile as reason:
            raise CannotCompile(f"g of {guard.name}{str(reason).removeprefix('f')}") from reason
    return found


@dataclass
class Lookout:
    """The events of one solve: for the loops in C `record`, and for who looks at a step in Python the rest.

    Parameters
    ----------
    watch
        What finds events in steps.
    graphs
        The code of g of each.
    problem, code, inputs
        The problem, and the code of f with the tensors that it reads.
    """

    watch: Watch
    graphs: Sequence[Called]
    problem: Problem
    code: Code
    inputs: Sequence[Tensor]

    def __post_init__(self) -> None:
        p, wanted = self.problem, Wanted(inputs=(False,) * len(self.inputs))
        self.native = p.calling(NativeField((self.code, None), self.inputs, wanted, p.stats))
        n, guards = len(self.graphs), self.watch.guards
        self.sides, self.values = (records.WHOLE * n)(), records.doubles([0.0] * (n * len(PARTS)))
        self.alive = (
            (records.PLACE * n)(*[records.address(g.graph) for g in self.graphs]),
            (records.WHOLE * n)(*[guard.event.direction for guard in guards]),
        )
        places = map(records.address, (*self.alive, self.sides, self.values))
        self.record = records.Watch(n, *places)
        self.watch.found, self.watch.sides = None, []

    def stops(
        self,
        run: Forward,
        solve: records.Solve,
        state: records.State,
        chunk: Chunk,
        record: records.Chunk,
    ) -> bool:
        """Whether an event happens in the last step of a forward pass; if so, that step ends there.

        Raises
        ------
        SolverError
            Where nobody can say. The step is then none.
        """
        n, made = record.steps - 1, state.seen
        t0, t1, y0, y1 = chunk.times[n].item(), state.t, run.state_of(chunk, n), run.state_of(chunk, n + 1)
        kept, spare = () if chunk.K is None else chunk.K[n], run.work[SPARE]
        stages = [spare, *(kept[i] if i < len(kept) else run.work[i] for i in range(1, made))]
        state.seen = 0
        try:
            crossing = self._look(solve, (t0, t1), y0, y1, stages)
        except SolverError:
            _undo(run, state, record, t0)
            raise
        if crossing is None:
            return False
        _undo(run, state, record, t0)
        state.accepted -= 1
        if crossing.t != t0:
            run.f0.copy_(spare)
            state.known, state.stop = 1, 0
            _land(solve, state, record, crossing.t, run.y.dtype)
        self.watch.found = crossing
        return True

    def _look(
        self,
        solve: records.Solve,
        times: tuple[float, float],
        y0: Tensor,
        y1: Tensor,
        stages: Sequence[Tensor],
    ) -> Crossing | None:
        """The first event in a step, of which these stages are known, if there is one."""
        method: Any = self.problem.method
        step = method.complete(self.native.between(*times), *times, y0, stages, y1)
        if self.watch.sides:  # not the first step, which is always looked at
            self.watch.sides = [*self.sides]
        found = self.watch.first(self.native, step, _Read(self, solve))
        self.sides[:] = self.watch.sides
        return found


class _Read:
    """g of events in a step, read by its code; see `torchaca.events.watch.Reads`."""

    def __init__(self, lookout: Lookout, solve: records.Solve) -> None:
        self.lookout, self.solve = lookout, records.address(solve)
        self.basis: Tensor | None = None

    def samples(self, step: Step) -> Sequence[Sequence[float]]:
        """What the loop has read, but for the start of the first step: that is read as behind the last event."""
        watch, numbers, n = self.lookout.watch, self.lookout.values, len(PARTS)
        values = [[*numbers[i * n : (i + 1) * n]] for i in range(len(watch.guards))]
        if not watch.sides:
            for guard, own in zip(watch.guards, values, strict=True):
                own[0] = guard(step.t0, step.y0).item()
        return values

    def inside(self, guard: Guard, step: Step, theta: float) -> float:
        """On the interpolant."""
        t0, t1 = value(step.t0), value(step.t1)
        if self.basis is None:
            self.basis, self.state = step.basis().contiguous(), torch.empty_like(step.y0)
            self.g_at = loops_for(step.y0.dtype).function("g_at")
        if theta in (0.0, 1.0):
            t, basis, at = (t1, None, step.y1) if theta else (t0, None, step.y0)
        else:
            t, basis, at = t0 + theta * (t1 - t0), self.basis.data_ptr(), self.state
        return self.g_at(self.solve, guard.index, t, theta, basis, at.data_ptr())


def _undo(run: Forward, state: records.State, record: records.Chunk, t0: float) -> None:
    """Take back the last step, which starts at t0."""
    ts, record.steps, state.t = run.problem.ts, record.steps - 1, t0
    state.outputs = run.start if t0 == ts.values[0] else ts.up_to(t0)


def _land(
    solve: records.Solve, state: records.State, record: records.Chunk, t: float, dtype: torch.dtype
) -> None:
    """Make a last step, up to that time."""
    stop = records.doubles([t])
    solve.stops, solve.n_stops, solve.watch = records.address(stop), 1, None
    march = loops_for(dtype).function("march")
    while march(*map(records.address, (solve, state, record)), SLICE) == Status.PAUSED:
        pass
