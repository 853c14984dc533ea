"""The backward pass of a solve that has kept the graph of its steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..gradients.look import look_of
from ..gradients.replay import MaybeTensors, vjp
from .inference import normal
from .kept import pullback_loop
from .look import Looks
from .outputs import Chunk, table_of_ends, tables_of_inner
from .run import CompiledSolve


class Pullback:
    """Chunk after chunk, from the last to the first, without an evaluation of f."""

    def __init__(self, run: CompiledSolve, inputs: Sequence[Tensor]) -> None:
        self.run, self.inputs = run, [normal(x.detach()) for x in inputs]
        chosen = [x for x, want in zip(self.inputs, run.wanted, strict=True) if want]
        self.totals = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in chosen]
        y0 = run.problem.y0
        self.lam, self.mu = torch.zeros_like(y0), torch.zeros_like(y0)

    def warm_up(self) -> None:
        """Compile: what fails has to fail before the forward pass."""
        run, y0 = self.run, self.run.problem.y0
        assert run.split is not None
        T = torch.zeros(run.room + 1, dtype=torch.float64, device="cpu")
        Y = y0.new_empty((run.room, *y0.shape))
        kept = [x.new_empty((run.room, *x.shape)) for x in run.split.like]
        self._pull_back(Chunk(0, T, Y, []), [Y, *kept], y0.new_zeros((1, *y0.shape)), 0, 0)

    def over(self, states: Sequence[Sequence[Tensor]], grad_ys: Tensor) -> MaybeTensors:
        """Gradients of y0, of the times, which have none, and of the chosen inputs."""
        run = self.run
        n = sum(chunk.n for chunk in run.chunks)
        look = look_of(run.problem, run.times[: n + 1], (grad_ys,))
        looks = Looks(look, run.capture.field, self.inputs, run.wanted)
        for k in reversed(range(len(run.chunks))):
            chunk, own = run.chunks[k], states[k]
            n -= chunk.n
            for start, end in looks.pieces(n, chunk.n):
                outputs = (grad_ys[i] for i in chunk.ending.get(end - 1, ()))
                looks.look(n + end - 1, own[0][end - 1], self.lam, outputs, mu=self.mu)
                self._pull_back(chunk, own, grad_ys, end, start)
        if run.chunks:
            self._first_evaluation()
        look.settle(self.totals)
        return [self.lam + grad_ys[: run.problem.ts.at_start()].sum(0), None, *self.totals]

    def _first_evaluation(self) -> None:
        """The product of f(t0, y0), which was evaluated outside of the loops."""
        run, first = self.run, self.run.capture.recorded
        if first is None:
            return
        wrt = [first.y, *(x for x, want in zip(first.inputs, run.wanted, strict=True) if want)]
        grads = vjp([first.value], wrt, [self.mu], keep=True)
        sums = [self.lam, *self.totals]
        self.lam, *self.totals = [a if g is None else a + g for a, g in zip(sums, grads, strict=True)]

    def _pull_back(
        self, chunk: Chunk, states: Sequence[Tensor], grad_ys: Tensor, last: int, until: int
    ) -> None:
        run, spec, split = self.run, self.run.spec, self.run.split
        assert split is not None
        tables = [table_of_ends(chunk, run.room, grad_ys)]
        if spec.inside:
            tables += tables_of_inner(run.problem, chunk, None, run.room, run.rows, False, grad_ys)
        Y, *kept = states
        self.lam, self.mu, self.totals = run.call(
            ("pull", run.wanted),
            lambda: pullback_loop(spec, run.wanted, split),
            *(
                torch.tensor(last, device="cpu"),
                torch.tensor(until, device="cpu"),
                chunk.T,
                Y,
                kept,
                tables,
                self.lam,
                self.mu,
                self.totals,
                self.inputs,
            ),
        )
