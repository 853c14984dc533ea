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
from ..driver import row_loops_for
from ..graphs import is_laid
from ..programs import Called
from ..records import Status
from ..run import CHUNK, FEWEST, FIRST_CHUNK, MOST, SLICE, Keep
from .plan import Plan
from .reads import Rowed, whole

PARTS = ("of", "slots", "steps", "before", "ends")


@dataclass
class Steps:
    """A chunk of steps: times, and what of it belongs to which row.

    `parts` `(5, lanes, room)` are those of `PARTS`, and `befores` the times at which the steps before segments start,
    for so many segments of each lane; see driver/types.c.
    """

    times: Tensor
    parts: np.ndarray[Any, Any]
    befores: np.ndarray[Any, Any]
    segments: np.ndarray[Any, Any]

    @staticmethod
    def empty(width: int, room: int) -> Steps:
        """Room for so many steps of each lane."""
        times = torch.empty(width * room, dtype=torch.float64, device="cpu")
        parts = np.zeros((len(PARTS), width, room), np.int64)
        return Steps(times, parts, np.zeros((width, room)), np.zeros(width, np.int64))

    def note_in(self, r: records.Rows, lanes: Any) -> None:
        """Have segments of rows read or written here."""
        for name, row in zip(PARTS, self.parts, strict=True):
            setattr(r, name, row.ctypes.data)
        r.befores, r.room = self.befores.ctypes.data, self.parts.shape[2]
        for lane, segments in zip(lanes, self.segments.tolist(), strict=True):
            lane.used, lane.segments = 0, segments

    def all(self) -> np.ndarray[Any, Any]:
        """The segments of all lanes, `(5, n)`."""
        return np.concatenate([self.parts[:, w, :n] for w, n in enumerate(self.segments)], 1)


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
        self.held = plan.rows(ends, tolerance, pace, rowed)
        self.rows: records.Rows = self.held.record
        self.lanes = self.held.alive[3]
        work = plan.like.new_empty((plan.stages + 5) * plan.n)
        self.solve.work = work.data_ptr()
        self.rows.y0, self.rows.ys = (x.data_ptr() for x in states)
        self.alive = called, work, states

    def run(self, stopped: Event) -> None:
        """Solve the rows, or up to one that cannot go on, if failures are to be raised."""
        dtype, nbytes = self.plan.like.dtype, FIRST_CHUNK
        loop = row_loops_for(dtype, self.plan.width).function("forward_rows")
        at = [*map(records.address, (self.solve, self.rows))]
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
        y, keep, n, width = self.plan.like, self.keep, self.plan.n, self.plan.width
        if self.left < 0 and keep.rows:
            self.keep = keep = replace(keep, rows=0)  # then all steps are made again
            self.kept = [own[:1] for own in self.kept]
        each = max(1, n * y.element_size()) * (int(keep.states) + keep.rows) + 8
        room = min(MOST, max(FEWEST, nbytes // each // width))
        states = y.new_empty((width * room if keep.states else 1, n))
        own = [states, *([y.new_empty((width * room, keep.rows, n))] if keep.rows else [])]
        self.left -= own[-1].nbytes if keep.rows else 0
        steps = Steps.empty(width, room)
        steps.note_in(self.rows, self.lanes)
        places = [x.data_ptr() for x in (steps.times, *own)]
        return steps, records.Chunk(room, 0, int(keep.states), keep.rows, *places), own

    def _close(self, steps: Steps, own: list[Tensor]) -> None:
        """Note a chunk that is done, without the room that is left in it if that is most of it."""
        used, (width, room) = [lane.used for lane in self.lanes], steps.befores.shape
        steps.segments = np.array([lane.segments for lane in self.lanes])
        most = max(used)
        if 2 * most < room:
            steps.parts, steps.befores = steps.parts[:, :, :most].copy(), steps.befores[:, :most].copy()
            steps.parts[1] -= (room - most) * np.arange(width)[:, None]
            steps.times, *own = (
                x.unflatten(0, (width, room))[:, :most].flatten(0, 1).clone() if len(x) > 1 else x
                for x in (steps.times, *own)
            )
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
        self.solve = plan.solve(None, None, value, pull)
        self.held = plan.rows((0, 0), None, None, rowed, stages=3)
        self.rows, self.lanes = self.held.record, self.held.alive[3]
        self.rows.ys, self.rows.lam = ys.data_ptr(), lam.data_ptr()
        work = y.new_empty(2 * n)
        buffers = [
            torch.zeros_like(part) if so else x for x, part, so in zip(totals, parts, own, strict=True)
        ]
        sums, all_sums = records.places(buffers), records.places(totals)
        flags = whole([so and 1 + int(is_laid(x)) for x, so in zip(totals, own, strict=True)])
        counts = whole([x.numel() for x in parts])
        self.rows.sums, self.rows.totals, self.rows.own = map(records.address, (sums, all_sums, flags))
        self.back = back = records.Back()
        back.totals, back.lead, back.allowed = len(totals), 1, records.epsilon(y.dtype)
        self.solve.work = work.data_ptr()
        back.sums, back.counts = records.address(sums), records.address(counts)
        self.alive = value, pull, lam, ys, work, buffers, sums, all_sums, counts, flags, parts

    def run(self, chunks: Sequence[Steps], kept: Sequence[Sequence[Tensor]], stopped: Event) -> None:
        """Go over the chunks, the last one first."""
        loop = row_loops_for(self.plan.like.dtype, self.plan.width).function("backward_rows")
        at = [*map(records.address, (self.solve, self.back, self.rows))]
        for steps, own in zip(reversed(chunks), reversed(kept), strict=True):
            steps.note_in(self.rows, self.lanes)
            rows = own[1].shape[1] if len(own) > 1 else 0
            places = [x.data_ptr() for x in (steps.times, *own)]
            record = records.Chunk(len(steps.times), 0, 1, rows, *places)
            while loop(*at, records.address(record), SLICE) == Status.PAUSED and not stopped.is_set():
                pass
