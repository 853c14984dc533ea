"""A gradient as a pair of passes: forward without a graph, and backward by hand. The one autograd function that solves.

Around every backward pass, whoever's it is: the forward pass's autocast, f as it was then, evaluations counted as
backward ones, no side effect of f left behind, no hook of the user's run for a part of a gradient; and what is to be
done about a tensor that was changed in place since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core import Outcome, Problem
from ..field.inputs import Inputs
from ..layout import order_cotangent
from .replay import Ambience, MaybeTensors, Parts, backward_pass, refuse_derivative, saved_tensors

SAVED = (
    "the state at the end of a solve with save= has no derivative where the steps are replayed: go on from "
    "state.detach(), use gradient='direct', or let save return what is needed of the state as well"
)


class Passes(Protocol):
    """One solve: `forward` is called once, `backward` as often as autograd asks.

    What it holds between the two are numbers. Tensors are handed over to be kept, so that autograd can offload them,
    and notices if one is changed in place. `problem` loses its `f0` after the forward pass.
    """

    problem: Problem
    inputs: Inputs

    def forward(self) -> tuple[Outcome, Sequence[Tensor]]:
        """Solve without a graph: the outcome, and the tensors that the backward pass needs."""
        ...

    def backward(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Compute the gradients of `tensors`, which are in the order of `Parts`.

        `cotangents` are those of the outputs, `(n, *y0.shape)`, and of the interpolants if the output is dense. If the
        method carries something at the end, that has further rows behind those of the outputs (`Outcome.rows`).
        """
        ...

    def twice(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Compute the same, to be differentiated once more (see `differentiate_again`), or refuse that (`refuse`)."""
        ...


def solve_with(passes: Passes) -> Outcome:
    """Solve by the forward pass, so that autograd differentiates by the backward pass."""
    with torch.no_grad():
        outcome, kept = passes.forward()
    return attach(passes, outcome, kept)


def attach(passes: Passes, outcome: Outcome, kept: Sequence[Tensor]) -> Outcome:
    """Make the outcome of a finished forward pass differentiable. Its tensors have no graph."""
    p = passes.problem = outcome.ended(passes.problem)
    n = len(outcome.ys)
    boundaries = p.control.boundaries(p.ts, outcome.times) if p.dense else ()
    rows, *bases = _Solve.apply(passes, outcome.rows, outcome.bases, kept, *Parts.of(p, passes.inputs).flat())
    outcome = replace(outcome, ys=rows, bases=bases, boundaries=boundaries)
    if outcome.end is not None:
        end, carry = refuse_derivative([outcome.end, outcome.carry], (rows,), SAVED)
        return replace(outcome, end=end, carry=carry)
    if outcome.carry is None:
        return outcome
    if rows.requires_grad:
        order_cotangent(rows, p.y0)  # which is put together from those of its parts
    return replace(outcome, ys=rows[:n], carry=rows[n:])


def refuse(
    passes: Passes,
    message: str,
    kept: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    tensors: Sequence[Any],
) -> MaybeTensors:
    """Run the backward pass; a derivative of its result raises `NotImplementedError(message)`."""
    with torch.no_grad():
        grads = passes.backward(kept, cotangents, tensors)
    return refuse_derivative(grads, (*tensors, *cotangents), message)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, passes: Passes, ys: Tensor, bases: Sequence[Tensor], kept: Sequence[Tensor], *tensors: Any
    ) -> Any:
        ctx.passes, ctx.n, ctx.ambience = passes, len(kept), Ambience.here(ys)
        ctx.save_for_backward(*kept, *passes.inputs.without_late(tensors))
        ctx.set_materialize_grads(False)
        passes.problem = passes.problem.knowing(None)
        return (ys, *bases)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        passes, saved = ctx.passes, saved_tensors(ctx)
        kept, tensors = saved[: ctx.n], (*saved[ctx.n :], *passes.inputs.late)
        if all(g is None for g in cotangents):
            return (None, None, None, None, *([None] * len(tensors)))
        differentiate = passes.twice if torch.is_grad_enabled() else passes.backward
        with backward_pass(passes.problem, passes.inputs, ctx.ambience):
            grads = differentiate(kept, cotangents, tensors)
        return (None, None, None, None, *grads, *([None] * (len(tensors) - len(grads))))
