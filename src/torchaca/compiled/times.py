"""Gradients of times: steps may end elsewhere, and outputs lie elsewhere on their interpolants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core import Problem
from ..field.inputs import Inputs
from ..gradients.replay import MaybeTensors, Parts, rebuilt, vjp, without_graph
from ..numbers import Time
from .outputs import Chunk, between, blocks, theta
from .run import CompiledSolve


def with_times(p: Problem, ts: Tensor | None, control: Sequence[Tensor]) -> Problem:
    """The problem without a graph, but with leaves as its times, and as what its control holds, if differentiated."""
    plain, parts = without_graph(p), Parts(p.y0.detach(), ts, tuple(control), (), ()).leaves()
    return rebuilt(plain, replace(parts, y0=plain.y0), Inputs())


class MovingTimes:
    """The sums of a sweep: `ends` `(n_steps + 1,)` of the steps' boundaries, `outputs` `(len(ts),)`; both float64.

    `bases` are those of the chunks with outputs inside steps.
    """

    def __init__(
        self, run: CompiledSolve, ts: Tensor | None, control: Sequence[Tensor], bases: Sequence[Tensor]
    ) -> None:
        self.problem, self.bases = with_times(run.problem, ts, control), list(bases)
        p = self.problem
        with torch.enable_grad():
            self.boundaries: Sequence[Time] = p.control.boundaries(p.ts, run.times)
        self.ends = torch.zeros(len(self.boundaries), dtype=torch.float64, device="cpu")
        self.outputs = torch.zeros(len(p.ts), dtype=torch.float64, device="cpu")
        self.first = len(run.times) - 1

    def add(self, chunk: Chunk, ends: Tensor, grad_ys: Tensor) -> None:
        """The share of a chunk, the last one first; `ends` `(K, 2)` are the gradients of its steps' ends."""
        self.first -= chunk.n
        own = self.ends[self.first :]
        own[: chunk.n] += ends[: chunk.n, 0]
        own[1 : chunk.n + 1] += ends[: chunk.n, 1]
        if not chunk.inside:
            return
        bases, p = self.bases.pop(), self.problem
        for first, steps in blocks(chunk, bases[0].numel()):
            outputs, rows, where = zip(
                *((i, first + k, n) for k, n in enumerate(steps) for i in chunk.inside[n]), strict=True
            )
            times = between(p, chunk, steps).requires_grad_()
            with torch.enable_grad():
                weights = p.method.basis_weights(theta(times))
            shares = (bases[list(rows)] * grad_ys[list(outputs)][:, None]).flatten(2).sum(2)
            (grads,) = torch.autograd.grad(weights, times, shares.double())
            n = torch.tensor(where, device="cpu")
            self.outputs.index_add_(0, torch.tensor(outputs, device="cpu"), grads[:, 0])
            own.index_add_(0, n, grads[:, 1])
            own.index_add_(0, n + 1, grads[:, 2])

    def gradients(self) -> MaybeTensors:
        """Those of the output times and of the control's tensors."""
        own = self.problem.ts.tensor
        wrt = [own, *self.problem.control.tensors]
        moving = [(b, g) for b, g in zip(self.boundaries, self.ends, strict=True) if isinstance(b, Tensor)]
        ts, *others = [None] * len(wrt)
        if moving:  # none where a solve failed before its first step
            boundaries, grads = zip(*moving, strict=True)
            ts, *others = vjp(boundaries, wrt, grads, keep=True)
        if own is not None:
            ts = self.outputs if ts is None else ts + self.outputs
        return [ts, *others]
