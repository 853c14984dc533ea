"""ACA's default: record the accepted steps while their graphs fit a budget, else replay them all.

Recording costs what `direct` costs. The budget is a constant, and a graph's size is measured in the first evaluation,
so that the same solve does the same everywhere. Once it is spent, the rest of the forward pass goes without a graph and
what was recorded is dropped in the end: the backward pass is one of checkpointed states, from the last step to the
first. So no loss sees a solve of which one part is recorded and another is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core import Outcome, Problem, Step
from ..field.inputs import Inputs
from ..field.lost import kept_since, warn_of_kept
from ..loops.outputs import gather
from ..numbers import value
from ..torch_internals import sequence_number
from .in_place import guarded
from .look_hooks import Looking
from .observed import observed
from .passes import attach
from .store import Replayed

BUDGET = 2**30
"""Bytes that the graphs of a solve may take by default."""


def step_bytes(p: Problem, inputs: Inputs, graphs: int) -> int:
    """The bytes of a step that holds the graphs of so many evaluations of f, and of its stages."""
    rows = len(p.carrying.units(1.0)) if p.carrying else 1
    return graphs * inputs.graph_bytes + 2 * p.method.stages * rows * p.y0.nbytes


class Budget:
    """Watches what the graphs of accepted steps take; `spent` says that those of all steps did not fit."""

    def __init__(self, p: Problem, inputs: Inputs) -> None:
        self.p, self.each = p, inputs.graph_bytes
        self.step = step_bytes(p, inputs, p.method.stages)
        self.left, self.outputs = BUDGET - p.log.held.nbytes, 0
        self.spent = self.left < self.step

    def watch(self, accepted: Iterator[Step]) -> Iterator[Step]:
        """Pass the steps on; after the last one that fits, grad mode is off."""
        for step in accepted:
            evaluated = self.p.stats.nfe
            yield step
            # An interpolated output may have evaluated f as well.
            self.left -= self.step + (self.p.stats.nfe - evaluated) * self.each + self._saved(step)
            if self.left < self.step and value(step.t1) != self.p.ts.values[-1]:
                self.spent = True
                torch.set_grad_enabled(False)

    def _saved(self, step: Step) -> int:
        """The bytes of the states in a step of which something was saved: its graph holds them."""
        if self.p.save is None:
            return 0
        before, self.outputs = self.outputs, self.p.ts.up_to(value(step.t1))
        return (self.outputs - before) * self.p.y0.nbytes


def record_while_it_fits(p: Problem, inputs: Inputs, passes: Replayed) -> Outcome:
    """Solve, recorded by autograd as in `direct`; if the graphs do not fit, by the passes."""
    budget, since, looking = Budget(p, inputs), sequence_number(), Looking(p)
    with torch.set_grad_enabled(not budget.spent):
        outcome = gather(p, passes.watch(p, budget.watch(looking.over(observed(p)))))
    if not budget.spent:
        p.log.held.nbytes = BUDGET - budget.left
        looking.close(outcome, inputs)
        if inputs.late and outcome.ys.requires_grad:
            outcome = replace(outcome, ys=_Reached.apply(outcome.ys, *inputs.late))
        return guarded(p, outcome, inputs.reads.tensors)
    # What f kept of its first evaluation is known. Of later ones, some now have a graph and others do not.
    warn_of_kept(kept_since(p.f.call, inputs.reads, since), "aca")
    carry, end = (None if x is None else x.detach() for x in (outcome.carry, outcome.end))
    bases = [x.detach() for x in outcome.bases]
    outcome = replace(outcome, ys=outcome.ys.detach(), bases=bases, carry=carry, end=end)
    return attach(passes, outcome, [x.detach() for x in passes.close(outcome)])


class _Reached(torch.autograd.Function):
    """The outputs, in a graph that reaches tensors which f may use and has not used.

    They are inputs of the passes as well: whoever waits for all of a model's parameters, as DDP does, meets them.
    """

    @staticmethod
    def forward(ctx: Any, ys: Tensor, *late: Tensor) -> Tensor:
        ctx.others = [None] * len(late)
        return ys.view_as(ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (*grads, *ctx.others)
