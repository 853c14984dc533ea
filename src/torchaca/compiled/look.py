"""The look at a suspect in compiled backward passes: their loops stop behind it; see `torchaca.gradients.look`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..gradients.look import look_of
from ..gradients.replay import vjp
from .run import CompiledSolve
from .steps import GraphOf


class Looks:
    """The looks of one backward pass of a compiled solve."""

    def __init__(self, run: CompiledSolve, inputs: Sequence[Tensor], grad_ys: Tensor) -> None:
        self.run, self.grad_ys = run, grad_ys
        self.inputs = [x.detach().requires_grad_(want) for x, want in zip(inputs, run.wanted, strict=True)]
        self.f = GraphOf(run.capture.field, self.inputs)
        self.firsts = [0]
        for chunk in run.chunks:
            self.firsts.append(self.firsts[-1] + chunk.n)
        self.own = look_of(run.problem, run.times[: self.firsts[-1] + 1], (grad_ys,))

    def parts(self, k: int) -> list[tuple[int, int]]:
        """The steps of chunk k, from the last to the first, in pieces `(n, until)` that end behind each suspect."""
        n, first = self.run.chunks[k].n, self.firsts[k]
        steps = [] if self.own is None else self.own.steps
        ends = [i + 1 for i in range(n - 1, -1, -1) if first + i in steps]
        return [*zip([n, *ends], [*ends, 0], strict=True)]

    def look(self, k: int, until: int, Y: Tensor, lam: Tensor, mu: Tensor | None = None) -> None:
        """Measure the step that comes next, if it is a suspect.

        `lam` is the cotangent of its end, but for outputs there, and `mu` that of f at its end, where f is known.
        """
        n, own = until - 1, self.own
        if own is None or until == 0 or self.firsts[k] + n not in own.steps:
            return
        for i in self.run.chunks[k].ending.get(n, ()):
            lam = lam + self.grad_ys[i]
        suspect, leaves = own.steps[self.firsts[k] + n], [x for x in self.inputs if x.requires_grad]
        p = replace(self.run.problem, f=replace(self.run.problem.f, call=self.f, f0=None))
        with torch.no_grad():
            y1 = p.step(suspect.t0, suspect.t1, Y[n].detach()).y1
        if mu is not None:
            with torch.enable_grad():
                y1 = y1.detach().requires_grad_()
                k1 = self.f(suspect.t1, y1)
            (more,) = vjp([k1], [y1], [mu]) if k1.requires_grad else (None,)
            lam = lam if more is None else lam + more
        found = len(own.found)
        own.measure(p, suspect, (Y[n], y1), lam.detach(), leaves)
        p.stats.nfe_backward += p.method.stages if len(own.found) > found else 0

    def settle(self, totals: Sequence[Tensor]) -> None:
        """Warn of what was found; `totals` are the gradients of the inputs that have one."""
        if self.own is not None:
            self.own.settle(totals)
