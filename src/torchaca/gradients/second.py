"""Second derivatives through ACA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..loops.outputs import gather
from ..loops.stepping import march
from .forward import Run
from .replay import (
    MaybeTensors,
    Parts,
    backward_pass,
    rebuilt,
    refuse_derivative,
    saved_tensors,
    vjp,
    without_detours,
)
from .sweep import sweep

THIRD = (
    "third derivatives through gradient='aca' are not available: use gradient='direct', which keeps the graph of all "
    "steps"
)


class DifferentiableSweep(torch.autograd.Function):
    """The sweep as a function that can be differentiated once more: second derivatives, exact.

    Its backward differentiates all accepted steps in one graph (the memory of `direct`), on the recorded times.
    """

    @staticmethod
    def forward(ctx: Any, run: Run, n_cotangents: int, states: Sequence[Tensor], *tensors: Any) -> Any:
        ctx.run, ctx.n = run, n_cotangents
        ctx.save_for_backward(*run.inputs.without_late(tensors))
        ctx.set_materialize_grads(False)
        return tuple(sweep(run, states, tensors[:n_cotangents], tensors[n_cotangents:]))

    @staticmethod
    def backward(ctx: Any, *seconds: Any) -> Any:
        run: Run = ctx.run
        saved = saved_tensors(ctx)
        cotangents, tensors = saved[: ctx.n], (*saved[ctx.n :], *run.inputs.late)
        create_graph = torch.is_grad_enabled()
        with backward_pass(run.problem, run.inputs, run.ambience), torch.enable_grad():
            parts = run.leaves(tensors)
            own = [None if g is None else g.detach().requires_grad_() for g in cotangents]
            p = rebuilt(run.problem, parts, run.inputs)
            outcome = gather(p, run.at_moments(march(p, p.control.boundaries(p.ts, run.times))))
            pairs = [
                (out, g) for out, g in zip((outcome.ys, *outcome.bases), own, strict=True) if g is not None
            ]
            firsts = _first_order(pairs, parts)
            wanted = [
                (first, v)
                for first, v in zip(firsts, seconds, strict=True)
                if first is not None and v is not None and first.requires_grad
            ]
            wrt = [*own, *parts.flat()]
            if not wanted:
                return (None, None, None, *([None] * len(wrt)))
            keep = run.inputs.shared
            grads = vjp([first for first, _ in wanted], wrt, [v for _, v in wanted], keep=keep)
        others = len(grads) - len(parts.captured)
        grads = [*grads[:others], *without_detours(parts.captured, grads[others:])]
        if create_graph:
            grads = refuse_derivative(grads, (*saved, *seconds), THIRD)
        return (None, None, None, *grads)


def _first_order(pairs: Sequence[tuple[Tensor, Tensor]], parts: Parts) -> MaybeTensors:
    """The gradients that the sweep returned, once more, with a graph."""
    wrt = parts.flat()
    present = [x for x in wrt if x is not None]
    grads = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], present, [g for _, g in pairs], None, True, allow_unused=True
        )
    )
    totals = [None if x is None else next(grads) for x in wrt]
    others = len(totals) - len(parts.captured)
    return [*totals[:others], *without_detours(parts.captured, totals[others:], create_graph=True)]
