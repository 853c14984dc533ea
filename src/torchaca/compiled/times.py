"""Gradients of times: steps may end elsewhere, and outputs lie elsewhere on their interpolants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import Problem, Time
from ..gradients.replay import MaybeTensors, Parts, rebuilt, vjp
from ..params import Inputs
from .outputs import Chunk, between, blocks, theta
from .run import Run


class MovingTimes:
    """The sums of a sweep: `ends` `(n_steps + 1,)` of the steps' boundaries, `outputs` `(len(ts),)`; both float64.

    `problem` is the run's with leaves as its times.
    """

    def __init__(self, problem: Problem, parts: Parts, taken: Sequence[float]) -> None:
        self.problem, self.wrt = problem, (parts.ts, parts.grid)
        with torch.enable_grad():
            self.boundaries: Sequence[Time] = problem.control.boundaries(problem.ts, taken)
        self.ends = torch.zeros(len(self.boundaries), dtype=torch.float64)
        self.outputs = torch.zeros(len(problem.ts), dtype=torch.float64)
        self.last = len(taken) - 1

    @staticmethod
    def of(run: Run, ts: Tensor | None, grid: Tensor | None) -> MovingTimes | None:
        """For the run's steps; None where no time is differentiated."""
        if ts is None and grid is None:
            return None
        own, moving = (None if x is None else x.detach().requires_grad_() for x in (ts, grid))
        parts = Parts(run.problem.y0, own, moving, (), ())
        return MovingTimes(rebuilt(run.problem, parts, Inputs()), parts, run.times)

    def sort_outputs(self, run: Run) -> None:
        """Sort the outputs to the steps as times that move ask for it."""
        ts, first = self.problem.ts, 0
        done = ts.at_start()
        for chunk in run.chunks:
            chunk.ending, chunk.inside = {}, {}
            done = chunk.find_outputs(ts, done, self.boundaries[first + 1 : first + 1 + chunk.n])
            first += chunk.n

    def buffers(self, room: int, rows: int) -> list[Tensor]:
        """What a chunk's sweep writes: gradients of its steps' ends, and their bases of `rows` states, if any."""
        y0 = self.problem.y0
        own = [torch.empty(room, 2, dtype=torch.float64)]
        return [*own, y0.new_empty((room + 1, rows, *y0.shape))] if rows else own

    def add(self, chunk: Chunk, moved: Sequence[Tensor], grad_ys: Tensor) -> None:
        """The share of a chunk, the last one first; `moved` are its buffers."""
        self.last -= chunk.n
        ends = self.ends[self.last :]
        ends[: chunk.n] += moved[0][: chunk.n, 0]
        ends[1 : chunk.n + 1] += moved[0][: chunk.n, 1]
        for first, steps in blocks(chunk, moved[1][0].numel() if chunk.inside else 0):
            outputs, own, rows = zip(
                *((i, n, first + 1 + k) for k, n in enumerate(steps) for i in chunk.inside[n]), strict=True
            )
            times = between(self.problem, chunk, steps).requires_grad_()
            with torch.enable_grad():
                weights = self.problem.method.basis_weights(theta(times))
            shares = (moved[1][list(rows)] * grad_ys[list(outputs)][:, None]).flatten(2).sum(2)
            (grads,) = torch.autograd.grad(weights, times, shares.double())
            at, n = torch.tensor(outputs), torch.tensor(own)
            self.outputs.index_add_(0, at, grads[:, 0])
            ends.index_add_(0, n, grads[:, 1])
            ends.index_add_(0, n + 1, grads[:, 2])

    def gradients(self) -> MaybeTensors:
        """Those of the output times and of the grid."""
        moving = [(b, g) for b, g in zip(self.boundaries, self.ends, strict=True) if isinstance(b, Tensor)]
        boundaries, grads = zip(*moving, strict=True)
        ts, grid = vjp(boundaries, self.wrt, grads, keep=True)
        if self.wrt[0] is not None:
            ts = self.outputs if ts is None else ts + self.outputs
        return [ts, grid]
