"""The forward pass: a search or a march in C, chunk after chunk of steps.

The loops return when a chunk is full, when there is something to be decided that they leave to Python, and every
`SLICE` seconds, so that Ctrl-C is heard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..core import Outcome, Problem, tolerant
from ..errors import SolverError
from ..gradients.checkpoints import States
from ..layout import empty_rows, memory_order
from ..loops.diagnosis import History, chatters, diagnose
from ..loops.pace import Limits, known_pace, propose
from ..loops.rest import Rest
from ..loops.stepping import stopped
from ..methods.runge_kutta import RungeKutta
from ..numbers import Time, value
from . import records
from .driver import loops_for
from .programs import Called
from .records import Status
from .tables import Route, pace_of, table_of, tolerance_of

if TYPE_CHECKING:
    from .watched import Lookout

SLICE = 0.05  # s between two looks at Ctrl-C
FIRST_CHUNK, CHUNK = 2**19, 2**21  # bytes of the steps in a chunk
FEWEST, MOST = 8, 4096  # steps in one


@dataclass
class Chunk:
    """`n` accepted steps: their times `(room + 1,)`, the states between them, and their stages and bases if kept.

    `known`: the state that the last one ended in is there as well.
    """

    n: int
    times: Tensor
    Y: Tensor
    K: Tensor | None = None
    B: Tensor | None = None
    known: bool = True

    def record(self, room: int, kept: bool, rows: int) -> records.Chunk:
        """The chunk for the loops in C."""
        places = (None if x is None else x.data_ptr() for x in (self.times, self.Y, self.K, self.B))
        return records.Chunk(room, self.n, int(kept), rows, *places)


@dataclass(frozen=True)
class Keep:
    """What is kept of each step: its state, and `rows` of its stages while they take at most a `budget` of bytes.

    With a `store`, that keeps some of the states.
    """

    states: bool = False
    rows: int = 0
    budget: float = math.inf
    store: States | None = None


@dataclass
class Forward:
    """The forward pass of a problem; after `run`, the outputs that were reached, and the steps.

    It ends at the first event that `lookout` sees.
    """

    problem: Problem
    called: Called
    keep: Keep = field(default_factory=Keep)
    lookout: Lookout | None = None
    last: Tensor | None = None  # the state at that event
    chunks: list[Chunk] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    bases: list[Tensor] = field(default_factory=list)
    failure: SolverError | None = None
    history: History = field(default_factory=History)
    followed: int = 0  # steps that the history knows
    noted: int = 0  # evaluations that the costs have

    def __post_init__(self) -> None:
        self.route = Route.of(self.problem)  # where the times get the graph that others have of them

    def run(self) -> Outcome:
        """Solve; the failure of a loop ends it with the outputs reached so far."""
        p = self.problem
        self.y = p.y0.detach().contiguous()
        self.times.append(p.ts.values[0])
        self.ys = self.y.new_empty((len(p.ts), *self.y.shape))
        self.start = p.ts.at_start()
        self.ys[: self.start] = self.y
        self.control, self.end = tolerant(p.control), self.y
        solve, alive = self._solve()
        state = self._state(solve)
        try:
            self._loop(solve, state)
        except SolverError as error:
            self.failure = error.with_traceback(None)
        del alive
        return self._outcome(state)

    def _outcome(self, state: records.State) -> Outcome:
        done, p = state.outputs, self.problem
        ts = p.ts.first(done)
        if self.last is not None and done < len(p.ts):
            ts = p.ts.ending(done, self.times[-1])
            self.ys[done] = self.last
        ys = self.ys if len(ts) == len(p.ts) else self.ys[: len(ts)]
        if memory_order(p.y0) is not None:
            ys = empty_rows(len(ts), p.y0).copy_(ys)
        return Outcome(ys, ts, self.failure, tuple(self.times), self.bases)

    def _solve(self) -> tuple[records.Solve, Any]:
        """The problem as the loops in C see it."""
        p, y = self.problem, self.y
        method: Any = p.method
        table, route, n = table_of(method), self.route, y.numel()
        work = y.new_empty(((len(method.nodes) + 3) * n,))
        assert p.f0 is not None
        self.f0 = work[:n].view(y.shape).copy_(p.f0)  # of each step in turn
        tolerance = pace = None
        if self.control is not None:
            tolerance, pace = tolerance_of(self.control, y, n), pace_of(p, self.control)
            self.rest = Rest(p, self.control)
        solve = records.Solve(
            *(table.address, tolerance and tolerance.address, pace and records.address(pace)),
            *(records.address(self.called.graph), None),
            *(n, len(p.ts), route.n_stops, route.n_jumps, int(p.dense), p.ts.sign),
            *map(records.address, (route.ts, route.stops, route.jumps, route.exact)),
            *(self.ys.data_ptr(), work.data_ptr(), self.lookout and records.address(self.lookout.record)),
        )
        self.work = work.view(-1, *y.shape)
        return solve, (work, tolerance, pace)

    def _state(self, solve: records.Solve) -> records.State:
        """Where a forward pass starts."""
        dt, before = (None, ()) if self.control is None else known_pace(self.problem, self.control)
        ratios = (*before, 1.0, 1.0)[:2]
        dt = math.nan if dt is None else dt  # to be guessed
        state = records.State(
            self.times[0], dt, *ratios, math.inf, 0.0, math.inf, self.problem.log.rests.start
        )
        state.ratios = len(before)
        if self.control is not None and self.rest.pending():
            state.dt = min(state.dt, self.rest.bound(self._slope_from(solve), self.times[0], self.y, self.f0))
            state.calls = 1
        state.known, state.outputs, state.next_look = 1, self.start, self.history.next_look
        stats = self.problem.stats  # of the stretches up to the last event
        state.accepted, state.rejected = stats.accepted, stats.rejected
        state.trials = stats.accepted + stats.rejected
        return state

    def _loop(self, solve: records.Solve, state: records.State) -> None:
        loops = loops_for(self.y.dtype)
        loop = loops.function("march" if self.control is None else "search")
        chunk, room = self._chunk(FIRST_CHUNK, self.y)
        record = chunk.record(room, self.keep.states, self.keep.rows)
        at = [records.address(x) for x in (solve, state, record)]
        while True:
            status = loop(*at, SLICE)
            if status in (Status.REACHED, Status.FULL):
                self._close(chunk, record)
            self._note(state)
            if status == Status.REACHED:
                return
            if status == Status.RESTS:
                self._bound(state, chunk, record.steps, self._slope_from(solve))
            elif status == Status.FULL:
                chunk, room = self._chunk(CHUNK, self.state_of(chunk, record.steps))
                record = chunk.record(room, self.keep.states, self.keep.rows)
                at[2] = records.address(record)
            try:
                if status in (Status.LOOK, Status.HOPELESS, Status.REFUSED):
                    times = [*self.times, *chunk.times[1 : record.steps + 1].tolist()]
                    self._decide(status, state, times, self.state_of(chunk, record.steps))
                if state.seen and self.lookout and self.lookout.stops(self, solve, state, chunk, record):
                    self.last = self.state_of(chunk, record.steps)
            except SolverError:
                self._close(chunk, record)
                raise
            if self.last is not None:
                self._close(chunk, record)
                self._note(state)
                return

    def state_of(self, chunk: Chunk, n: int) -> Tensor:
        """The state behind n steps of a chunk."""
        return chunk.Y[n if self.keep.states else n & 1]

    def _chunk(self, nbytes: int, start: Tensor) -> tuple[Chunk, int]:
        """A new chunk, which starts from that state."""
        y, method = self.y, cast(RungeKutta, self.problem.method)
        if sum(chunk.K.nbytes for chunk in self.chunks if chunk.K is not None) > self.keep.budget:
            self.keep = replace(self.keep, rows=0)  # then all steps are replayed
            for chunk in self.chunks:
                chunk.K = None
        keep = self.keep
        bases = len(method.nodes) + 1 if self.problem.dense else 0
        each = max(1, y.nbytes) * (int(keep.states) + keep.rows + bases) + 8
        room = min(MOST, max(FEWEST if keep.store is None else 2, nbytes // each)) & ~1
        states = y.new_empty((room + 1 if keep.states else 2, *y.shape))
        states[0] = start
        kept = y.new_empty((room, keep.rows, *y.shape)) if keep.rows else None
        made = y.new_empty((room, bases, *y.shape)) if bases else None
        times = torch.empty(room + 1, dtype=torch.float64, device="cpu")
        times[0] = self.times[-1]
        return Chunk(0, times, states, kept, made), room

    def _close(self, chunk: Chunk, record: records.Chunk) -> None:
        """Note the steps of a chunk that is done."""
        chunk.n = record.steps
        first = len(self.times) - 1
        self.times += chunk.times[1 : chunk.n + 1].tolist()
        self.bases += [] if chunk.B is None else chunk.B[: chunk.n]
        store = self.keep.store
        if store is None:
            self.chunks += [chunk] if chunk.n else []
            return
        for i in range(chunk.n):
            if (first + i) % store.shelf.spacing == 0:  # a copy: what the chunk holds is to be forgotten
                store.shelf.put(first + i, chunk.Y[i].clone())
        self.end = chunk.Y[chunk.n].clone()

    def _note(self, state: records.State) -> None:
        """What the solve has cost so far."""
        stats = self.problem.stats
        stats.accepted, stats.rejected = state.accepted, state.rejected
        stats.nfe += state.calls - self.noted
        self.problem.log.rests.start = state.start
        if self.control is not None and state.accepted:
            pace, ratios = self.problem.log.pace, (state.ratio, state.older)
            pace.dt, pace.ratios = state.dt, ratios[: state.ratios]
        self.noted = state.calls

    def _bound(
        self, state: records.State, chunk: Chunk, n: int, slope: Callable[[Time, Tensor], Tensor]
    ) -> None:
        """Note that the error of a chunk's step n says nothing, and bound the next one; see `torchaca.loops.rest`."""
        t0, t1 = chunk.times[n - 1].item(), state.t
        y0, y1 = self.state_of(chunk, n - 1), self.state_of(chunk, n)
        if not self.rest.note(t0, state.ratio, t1, y0, y1):
            return
        if not state.known:
            self.f0.copy_(slope(t1, y1))
            state.known, state.calls = 1, state.calls + 1
        state.dt = min(state.dt, self.rest.bound(slope, t1, y1, self.f0))
        state.calls += 1

    def _slope_from(self, solve: records.Solve) -> Callable[[Time, Tensor], Tensor]:
        """f of the loops in C."""
        slope, at = loops_for(self.y.dtype).function("slope"), records.address(solve)

        def f(t: Time, y: Tensor) -> Tensor:
            k = torch.empty_like(y)
            slope(at, value(t), y.contiguous().data_ptr(), k.data_ptr())
            return k

        return f

    def _decide(self, status: int, state: records.State, times: Sequence[float], y: Tensor) -> None:
        """What the loop leaves to Python: whether f jumps where the solution is, and why a solve stops.

        Raises
        ------
        SolverError
        """
        p, control, history = self.problem, self.control, self.history
        assert control is not None
        y = y.clone()
        if status == Status.HOPELESS:
            raise diagnose(p, control, History(), "first-step", state.t, 0.0, y)
        for a, b in pairwise(times[self.followed :]):
            history.accept(abs(b - a))
        self.followed = len(times) - 1
        history.rejections, history.rejected_size = state.rejections, state.rejected_size
        history.next_look = state.next_look
        limits = Limits.of(p, control)
        route = control.stops(p.ts)
        t1, _ = propose(state.t, state.dt, route[state.stop], limits)
        size = abs(t1 - state.t)
        reason = "slow" if status == Status.LOOK else records.REASONS[state.reason]
        if status == Status.LOOK and not chatters(p, control, history, state.t, y):
            state.next_look = history.next_look
            return
        raise stopped(p, control, history, reason, state.t, size, y)
