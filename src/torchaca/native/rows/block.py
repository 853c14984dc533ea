"""A range of rows in one thread: forward into chunks of steps, and back over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import records
from ..driver import loops_for
from ..programs import Called
from ..records import Status
from ..run import CHUNK, FEWEST, FIRST_CHUNK, MOST, SLICE, Keep
from .plan import Plan
from .reads import Rowed, whole

PARTS = ("of", "slots", "steps", "before", "ends")


@dataclass
class Steps:
    """A chunk of steps: times, and what of it belongs to which row.

    `parts` `(5, segments)` are those of `PARTS`, and `befores` the times at which the steps before segments start; see
    driver/types.c.
    """

    times: Tensor
    parts: np.ndarray[Any, Any]
    befores: np.ndarray[Any, Any]

    def note_in(self, r: records.Rows) -> None:
        """Have segments of rows read or written here."""
        for name, row in zip(PARTS, self.parts, strict=True):
            setattr(r, name, row.ctypes.data)
        r.befores = self.befores.ctypes.data


class Forward:
    """The forward pass of a range of rows: their `chunks`, and the states and stages of each."""

    def __init__(
        self,
        plan: Plan,
        ends: tuple[int, int],
        called: Called,
        rowed: Rowed,
        states: tuple[Tensor, Tensor],
        keep: Keep,
    ) -> None:
        """`states` are those at the starts, and where outputs go, `(B, n, ...)`."""
        self.plan, self.keep, self.left = plan, keep, keep.budget
        self.chunks: list[Steps] = []
        self.kept: list[list[Tensor]] = []
        tolerance, pace = plan.held()
        self.solve = plan.solve(tolerance, pace, called, None)
        self.rows = plan.rows(ends, tolerance, pace, rowed)
        n = plan.n
        work, state = plan.like.new_empty((plan.stages + 3) * n), plan.like.new_empty(n)
        self.solve.work, self.rows.state = work.data_ptr(), state.data_ptr()
        self.rows.y0, self.rows.ys = (x.data_ptr() for x in states)
        self.alive = tolerance, pace, called, rowed, work, state, states

    def run(self, stopped: Event) -> None:
        """Solve the rows, or up to one that cannot go on, if failures are to be raised."""
        dtype, nbytes = self.plan.like.dtype, FIRST_CHUNK
        loop, at = loops_for(dtype).function("forward_rows"), [*map(records.address, (self.solve, self.rows))]
        status = Status.FULL
        while status == Status.FULL:
            steps, record, own = self._chunk(nbytes)
            status = Status.PAUSED
            while status == Status.PAUSED and not stopped.is_set():
                status = loop(*at, records.address(record), SLICE)
            self._close(steps, own)
            nbytes = CHUNK

    def _chunk(self, nbytes: int) -> tuple[Steps, records.Chunk, list[Tensor]]:
        """A new chunk with room for steps of about so many bytes."""
        y, keep, n = self.plan.like, self.keep, self.plan.n
        if self.left < 0 and keep.rows:
            self.keep = keep = replace(keep, rows=0)  # then all steps are made again
            self.kept = [own[:1] for own in self.kept]
        each = max(1, n * y.element_size()) * (int(keep.states) + keep.rows) + 8
        room = min(MOST, max(FEWEST, nbytes // each))
        states = y.new_empty((room + 1 if keep.states else 2, n))
        own = [states, *([y.new_empty((room, keep.rows, n))] if keep.rows else [])]
        self.left -= own[-1].nbytes if keep.rows else 0
        times = torch.empty(room + 1, dtype=torch.float64, device="cpu")
        steps = Steps(times, np.zeros((len(PARTS), room + 1), np.int64), np.zeros(room + 1))
        steps.note_in(self.rows)
        self.rows.used = self.rows.segments = 0
        places = [x.data_ptr() for x in (times, *own)]
        return steps, records.Chunk(room, 0, int(keep.states), keep.rows, *places), own

    def _close(self, steps: Steps, own: list[Tensor]) -> None:
        """Note a chunk that is done, without the room that is left in it if that is most of it."""
        r = self.rows
        steps.parts, steps.befores = steps.parts[:, : r.segments].copy(), steps.befores[: r.segments].copy()
        if 2 * r.used < len(steps.times):
            steps.times = steps.times[: r.used].clone()
            own = [x[: r.used].clone() for x in own] if self.keep.states else own
        self.chunks.append(steps)
        self.kept.append(own if self.keep.states else [])


class Backward:
    """The sums of a backward pass over a range of rows.

    `lam` is the cotangent of all states, of which the range has its part; `totals` are the sums for the tensors that
    are wanted: those of rows are of all rows, the others of this range alone.
    """

    def __init__(
        self,
        plan: Plan,
        codes: tuple[Called | None, Called],
        rowed: Rowed,
        lam: Tensor,
        ys: Tensor,
        totals: Sequence[Tensor],
        own: Sequence[bool],
        parts: Sequence[Tensor],
    ) -> None:
        self.plan, self.totals = plan, totals
        value, pull = codes
        n, y = plan.n, plan.like
        self.solve, self.rows = plan.solve(None, None, value, pull), plan.rows((0, 0), None, None, rowed)
        self.rows.ys, self.rows.lam = ys.data_ptr(), lam.data_ptr()
        f1, work = y.new_empty(n), y.new_empty((3 * plan.stages + 2) * n)
        sums, all_sums = records.places(totals), records.places(totals)
        counts, flags = whole([x.numel() for x in parts]), whole([*map(int, own)])
        self.rows.sums, self.rows.totals, self.rows.own = map(records.address, (sums, all_sums, flags))
        self.back = back = records.Back()
        back.totals, back.lead, back.allowed = len(totals), 1, records.epsilon(y.dtype)
        back.f1, back.work = f1.data_ptr(), work.data_ptr()
        back.sums, back.counts = records.address(sums), records.address(counts)
        self.alive = value, pull, rowed, lam, ys, f1, work, sums, all_sums, counts, flags, parts

    def run(self, chunks: Sequence[Steps], kept: Sequence[Sequence[Tensor]], stopped: Event) -> None:
        """Go over the chunks, the last one first."""
        loop = loops_for(self.plan.like.dtype).function("backward_rows")
        at = [*map(records.address, (self.solve, self.back, self.rows))]
        for steps, own in zip(reversed(chunks), reversed(kept), strict=True):
            steps.note_in(self.rows)
            self.rows.segments = steps.parts.shape[1]
            rows = own[1].shape[1] if len(own) > 1 else 0
            places = [x.data_ptr() for x in (steps.times, *own)]
            record = records.Chunk(len(steps.times), 0, 1, rows, *places)
            while loop(*at, records.address(record), SLICE) == Status.PAUSED and not stopped.is_set():
                pass
