"""`debug=True` for gradients that keep a graph: hooks on the states between the steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import Problem, Step
from ..field.effects import Moments
from ..field.inputs import Inputs
from ..field.places import Reads
from ..field.reach import reach
from ..loops.stepping import steps
from ..numbers import value
from ..trace import Trace
from .replay import Ambience, backward_pass, vjp, without_graph


def observed(p: Problem) -> Iterator[Step]:
    """The accepted steps; where the problem has a trace, each tells it what its backward pass does.

    A hook sees the cotangent of the step's end state, and replays the step to know the gradients in it.
    """
    if p.trace is None or p.source is None:
        yield from steps(p)
        return
    found = reach(p.source, p.f.args)
    tensors = tuple(x for _, x in found.tensors if x.requires_grad and (x.is_leaf or not x.retains_grad))
    inputs = Inputs(captured=tensors, reads=Reads(found.places, found.containers))
    moments = Moments(p.effects)
    alone = replace(without_graph(p).knowing(None), log=replace(p.log, watch=None))
    again = Again(alone, p.trace, inputs, Ambience.here(p.y0), moments)
    start = p.first
    for n, step in enumerate(moments.watch(steps(p))):
        p.trace.reaches(n + 1)
        end = p.handed(step)
        if end.requires_grad:
            end.register_hook(again.hook(n, step, start))
        yield step
        start = end
    inputs.reads.settle()


@dataclass(frozen=True)
class Again:
    """What it takes to compute a step of a solve again, and its vector-Jacobian product."""

    p: Problem
    trace: Trace
    inputs: Inputs
    ambience: Ambience
    moments: Moments

    def hook(self, n: int, step: Step, start: Tensor) -> Hook:
        """The hook of step n."""
        return Hook(self, n, (value(step.t0), value(step.t1)), start.detach())


@dataclass(frozen=True)
class Hook:
    """On what step n hands on; `start` is what was handed to it."""

    again: Again
    n: int
    span: tuple[float, float]
    start: Tensor

    def __call__(self, cotangent: Tensor) -> None:
        p, inputs, lam = self.again.p, self.again.inputs, cotangent.detach()
        tensors = inputs.captured
        with backward_pass(p, inputs, self.again.ambience), torch.enable_grad():
            self.again.moments.restore(self.n)
            start = self.start.detach().requires_grad_()
            end = p.handed(p.step(*self.span, start))
            grad_y, *grads = vjp([end], [start, *tensors], [lam], keep=True)
        self.again.trace.passed(self.n, self.span, [lam], grad_y, list(zip(tensors, grads, strict=True)))
