"""The forward pass: compiled loops, chunk after chunk of steps.

A chunk holds at most K accepted steps. Nothing but memory bounds how many chunks there are, and a solve holds at most
one chunk more than its steps need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..core import Outcome, Problem, tolerant
from ..errors import SolverError
from ..layout import empty_rows
from ..loops.adaptive import Adaptive
from ..loops.diagnosis import History, chatters, diagnose
from ..loops.pace import Limits, propose, refusals
from ..loops.rest import ROOM, Rest, start_of
from ..loops.stepping import stopped
from ..numbers import Time, value
from ..torch_internals import mark_dynamic
from .capture import Capture
from .compiler import settings
from .failure import CannotCompile, attempt, first_line
from .halves import Halves
from .inference import normal
from .kept import split_stages
from .loops import march_loop
from .outputs import Chunk, emit, inner_times, padded, step_times
from .search import KNOWN, Bounds, State, bound, first_state, search_loop, tolerances
from .spec import Spec
from .steps import beside

CHUNK_BYTES = 2**21  # of states in a chunk, where that is between 8 and 256 of them
KEPT_BYTES = 2**24  # of the graphs of the steps in a chunk, where that is at most 256 of them
DOUBLE, WHOLE = torch.float64, torch.int64


@dataclass
class CompiledSolve:
    """One solve: its problem, f as a graph, and the steps that the forward pass found. Holds none of the outputs.

    `wanted` says which of f's inputs are differentiated; `keep`: there will be a backward pass; `times` are the
    boundaries of the steps that the backward pass goes over.
    """

    problem: Problem
    capture: Capture
    spec: Spec
    wanted: tuple[bool, ...]
    keep: bool
    chunks: list[Chunk] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    failure: SolverError | None = None
    split: Halves | None = None

    def __post_init__(self) -> None:
        self.times.append(self.problem.ts.values[0])
        if self.spec.kept is not None:
            self.split = self._splitted()

    def _splitted(self) -> Halves:
        """The stages of a step as halves, made where there are none for this f yet."""
        loops, place = self.capture.field.loops, (self.spec, ("stages", self.wanted))
        if place not in loops:
            seen = self.capture
            try:
                with attempt(), settings():
                    made = split_stages(seen.field, self.spec.method, self.problem, seen.inputs, self.wanted)
            except CannotCompile as reason:
                made = str(reason)
            except Exception as error:
                made = f"the compiler failed ({first_line(error)})"
            loops[place] = made
        if isinstance(loops[place], str):
            raise CannotCompile(loops[place])
        return loops[place]

    @property
    def room(self) -> int:
        """How many steps a chunk holds."""
        if self.split is None:
            return min(256, max(8, CHUNK_BYTES // max(self.problem.y0.nbytes, 1)))
        return min(
            256, max(1, KEPT_BYTES // max(1, sum(x.nbytes for x in (self.problem.y0, *self.split.like))))
        )

    @property
    def rows(self) -> int:
        """How many states `Step.basis` has, 0 where nobody asks for it."""
        return self.spec.method.dense_stages + 1 if self.spec.inside else 0

    def drop_behind_outputs(self, y1: Tensor) -> Tensor:
        """Forget the steps behind the last output, which have no gradient; return the state where the others end.

        Their times stay where the graph of the steps is kept, as in the eager loop. The last step ended in `y1`.
        """
        while self.chunks:
            chunk = self.chunks[-1]
            n = max([*chunk.ending, *chunk.inside], default=-1) + 1
            if n < chunk.n:
                y1, chunk.jumps = chunk.Y[n].clone(), False
                chunk.n, chunk.times = n, chunk.times[: n + 1]
            if n:
                break
            self.chunks.pop()
        if self.split is None:
            del self.times[sum(chunk.n for chunk in self.chunks) + 1 :]
        return y1

    def mark(self, *tensors: Tensor) -> None:
        """Have code made for any length of these, which is that of a chunk, where the size of a state changes."""
        if self.capture.sizes and self.split is None:
            for x in tensors:
                if x.shape[0] > 1:
                    mark_dynamic(x, 0)

    def warm_up(self, key: Any, run: Callable[[], None]) -> None:
        """CompiledSolve what compiles the loop of that key, where it has not run for tensors of these shapes yet."""
        shapes = tuple(x.shape for x in (self.problem.y0, *self.capture.inputs))
        warm, place = self.capture.field.warm, (self.spec, key, shapes)
        if place not in warm:
            run()
            warm.add(place)

    def call(self, key: Any, build: Callable[[], Callable[..., Any]], *args: Any) -> Any:
        """Call a compiled loop of this f, which is compiled first where it has not been.

        Raises
        ------
        CannotCompile
            Where the compiler fails.
        """
        return self.capture.call((self.spec, key), build, *args, dynamic=self.spec.kept is None)


class Forward:
    """The forward pass of a run: `Forward(run).ys` are the outputs that were reached."""

    def __init__(self, run: CompiledSolve) -> None:
        self.run, self.p = run, run.problem
        self.y, self.f0 = run.problem.y0.detach(), run.capture.value
        # Their own objects: what is compiled marks sizes on them, which f's graph would be guarded by.
        self.inputs = [normal(x.detach()) for x in run.capture.inputs]
        p, y = self.p, self.y
        ys = empty_rows(len(p.ts), y)
        self.done = p.ts.at_start()
        ys[: self.done] = y
        self.boundaries = step_times(p)
        self.signed, self.jumps = padded(inner_times(p)), padded(sorted(p.jumps))
        self.bases = y.new_empty((run.room, run.rows, *y.shape) if run.spec.inside else (0,))
        run.mark(self.bases)
        self.free: tuple[Tensor, Tensor, list[Tensor]] | None = None
        try:
            if self.boundaries:
                self._march([value(t) for t in self.boundaries], ys)
            else:
                self._search(tolerant(p.control), ys)
        except SolverError as error:
            run.failure = error.with_traceback(None)
        self.ys = ys[: self.done]
        self.accepted = tuple(run.times)

    def outcome(self) -> Outcome:
        """The outputs, and how far they go; the failure is handed over."""
        failure, self.run.failure = self.run.failure, None
        return Outcome(self.ys, self.p.ts.first(self.done), failure, self.accepted)

    def _buffers(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """For the times, states and residuals of a chunk; the same again where nobody needs the old contents."""
        if self.free is None or self.run.keep:
            room, y = self.run.room, self.y
            split = self.run.split
            kept = [x.new_empty((room, *x.shape)) for x in split.like] if split else []
            self.free = torch.empty(room + 1, dtype=DOUBLE, device="cpu"), y.new_empty((room, *y.shape)), kept
            self.run.mark(*self.free[:2])
        return self.free

    def _finish(self, chunk: Chunk, ys: Tensor) -> None:
        """Write a chunk's outputs."""
        p, first = self.p, self.p.stats.accepted + 1
        ends: Sequence[Time] = chunk.times[1:]
        if self.boundaries:
            ends = self.boundaries[first : first + chunk.n]
        elif chunk.n and ends[-1] == p.ts.values[-1]:
            ends = [*ends[:-1], p.ts[len(p.ts) - 1]]
        p.stats.accepted += chunk.n
        self.done = chunk.find_outputs(p.ts, self.done, ends)
        emit(p, chunk, self.bases, self.y, ys)
        if self.run.spec.timed and chunk.inside:
            chunk.bases = self.bases[: len(chunk.inside)].clone()
        self.run.times += chunk.times[1:]
        if chunk.n:
            self.run.chunks.append(chunk)

    def _march(self, boundaries: list[float], ys: Tensor) -> None:
        """Steps between given times."""
        run, p = self.run, self.p
        sign, known = torch.tensor(p.ts.sign, dtype=DOUBLE, device="cpu"), torch.tensor(True, device="cpu")
        calls = torch.zeros((), dtype=WHOLE, device="cpu")
        for first in range(0, len(boundaries) - 1, run.room):
            times = boundaries[first : first + run.room + 1]
            T, Y, _ = self._buffers()
            T[: len(times)] = torch.tensor(times, dtype=DOUBLE, device="cpu")
            self.y, self.f0, known, calls = run.call(
                "march",
                lambda: march_loop(run.capture.field, run.spec),
                torch.tensor(len(times) - 1, device="cpu"),
                *(self.signed, sign, T, Y, self.bases, self.y, self.f0, known, calls, self.inputs),
            )
            self._finish(Chunk(len(times) - 1, T, Y, times), ys)
        p.stats.nfe += int(calls)

    def _search(self, control: Adaptive, ys: Tensor) -> None:
        """Steps whose sizes follow the error estimate."""
        p, now, end = self.p, self.p.ts.values[0], self.p.ts.values[-1]
        evaluated, stops = p.stats.nfe, control.stops(p.ts)
        reach, self.history = min(0.5 * abs(stops[0] - now), control.dt_max), History()
        limits, self.rest, p.log.rests.start = Limits.of(p, control), Rest(p, control), start_of(p, control)
        self.state = first_state(p, control, self.rest, self._at, self.f0)
        self.tolerances, seen = tolerances(control), None
        for stop in stops:
            bounds = torch.tensor(Bounds(limits, stop, reach, ROOM).packed(), dtype=DOUBLE, device="cpu")
            while now != stop:
                seen, chunk = self._search_chunk(now, stop, bounds)
                p.stats.nfe = evaluated + int(seen.calls)
                p.stats.rejected = int(seen.trials) - p.stats.accepted - chunk.n
                self._finish(chunk, ys)
                now = seen.t
                if chunk.jumps and now != end:
                    self.f0, self.state[KNOWN] = self._at(now, self.y), 1.0
                    p.stats.nfe, evaluated = p.stats.nfe + 1, evaluated + 1
                if seen.rests:
                    self._bound(chunk.T, chunk.Y, seen)
                self._follow(control, chunk, seen)
                if now != stop and chunk.n < self.run.room:
                    self._stopped(control, limits, seen, stop)
        if seen is not None:
            p.log.pace.dt, p.log.pace.ratios = seen.dt, (seen.ratio, seen.older)

    def _follow(self, control: Adaptive, chunk: Chunk, seen: State) -> None:
        """Note a chunk's steps, and raise if they have become tiny because f jumps where the solution is."""
        p, history = self.p, self.history
        for a, b in pairwise(chunk.times):
            history.accept(abs(b - a))
        history.rejections, history.rejected_size = int(seen.rejections), seen.rejected_size
        due = history.slow >= history.next_look and seen.t != p.ts.values[-1]
        if due and chatters(p, control, history, seen.t, self.y):
            raise stopped(p, control, history, "slow", seen.t, history.sizes[-1], self.y)

    def _search_chunk(self, now: float, stop: float, bounds: Tensor) -> tuple[State, Chunk]:
        """One chunk of steps from `now` on, and where the search is after it."""
        run = self.run
        T, Y, kept = self._buffers()
        T[0] = now
        while True:
            self.y, self.f0, self.state = run.call(
                "search",
                lambda: search_loop(run.capture.field, run.spec, run.split),
                *(bounds, self.signed, self.tolerances, T, Y, kept, self.bases),
                *(self.y, self.f0, self.state, self.jumps, self.inputs),
            )
            seen = State(*self.state.tolist())
            if not seen.rests or seen.t == stop or seen.n == run.room:
                break
            self._bound(T, Y, seen)  # and go on in the same chunk
        self.state[:2] = 0  # n and m
        n = int(seen.n)
        chunk = Chunk(n, T, Y, T[: n + 1].tolist(), kept=kept)
        chunk.jumps = n > 0 and chunk.times[-1] in self.p.jumps
        return seen, chunk

    def _bound(self, T: Tensor, Y: Tensor, seen: State) -> None:
        """Note that the error of the last step says nothing, and bound the next one."""
        n, spec = int(seen.n) - 1, self.run.spec
        self.f0, self.state = bound(
            self.state, self.rest, self._at, (T[n].item(), Y[n], self.y, self.f0), spec
        )

    def _at(self, t: Time, y: Tensor) -> Tensor:
        """f at the end of a step, for the next one: just behind a jump."""
        to, now = self.p.ts.values[-1], torch.tensor(t, dtype=y.dtype, device="cpu")
        return self.run.capture.field(beside(t, to, y.dtype) if t in self.p.jumps else now, y, self.inputs)

    def _stopped(self, control: Adaptive, limits: Limits, seen: State, stop: float) -> None:
        """Raise where the loop has given up."""
        p = self.p
        if seen.trials == 0 and seen.dt == 0.0:
            raise diagnose(p, control, History(), "first-step", seen.t, 0.0, self.y)
        t1, _ = propose(seen.t, seen.dt, stop, limits)
        size, tried = abs(t1 - seen.t), (seen.rejections, seen.rejected_size, seen.trials)
        found = refusals(seen.t, size, t1 == stop, *tried, limits)
        reason = next((reason for reason, holds in found.items() if holds), "step-size")
        raise stopped(p, control, self.history, reason, seen.t, size, self.y)
