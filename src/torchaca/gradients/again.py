"""Second derivatives of gradients that differentiate the accepted steps, step sizes held constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..core import Problem, Step
from ..field.effects import Moments
from ..loops.outputs import gather
from ..loops.stepping import march
from .replay import (
    Ambience,
    MaybeTensors,
    Parts,
    backward_pass,
    rebuilt,
    refuse_derivative,
    saved_tensors,
    vjp,
    without_detours,
)

if TYPE_CHECKING:
    from .passes import Passes

March: TypeAlias = Callable[[Problem], Iterator[Step]]

THIRD = (
    "third derivatives through gradient='aca' are not available: use gradient='direct', which keeps the graph of all "
    "steps"
)


def differentiate_again(
    passes: Passes,
    times: Sequence[float],
    kept: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    tensors: Sequence[Any],
    *,
    moments: Moments | None = None,
    redo: Callable[[], March] | None = None,
) -> MaybeTensors:
    """Run the backward pass as a function that can be differentiated once more: second derivatives, exact.

    Its own backward differentiates all steps between `times` in one graph, which takes the memory of `direct`.
    `moments` are when the steps were made; see `Replay`. `redo` is called after the backward pass, where that is not
    the derivative of these steps: it returns what yields those that it is of, of a problem.
    """
    solve = _Solve(passes, times, moments or Moments(None), Ambience.here(passes.problem.y0), redo)
    return list(_BackwardPass.apply(solve, len(cotangents), kept, *cotangents, *tensors))


@dataclass(frozen=True)
class _Solve:
    passes: Passes
    times: Sequence[float]
    moments: Moments
    ambience: Ambience
    redo: Callable[[], March] | None

    def march(self, p: Problem) -> Iterator[Step]:
        """All steps again, from the first on."""
        return self.at_moments(march(p, p.control.boundaries(p.ts, self.times)))

    def at_moments(self, replayed: Iterator[Step]) -> Iterator[Step]:
        """All steps again, from the first on, each at the moment of the forward pass at which it was made."""
        for n in range(len(self.times) - 1):
            self.moments.restore(n)
            yield next(replayed)


class _BackwardPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, solve: _Solve, n_cotangents: int, kept: Sequence[Tensor], *tensors: Any) -> Any:
        passes = solve.passes
        ctx.solve, ctx.n = solve, n_cotangents
        ctx.save_for_backward(*passes.inputs.without_late(tensors))
        ctx.set_materialize_grads(False)
        grads = tuple(passes.backward(kept, tensors[:n_cotangents], tensors[n_cotangents:]))
        ctx.march = solve.march if solve.redo is None else solve.redo()
        return grads

    @staticmethod
    def backward(ctx: Any, *seconds: Any) -> Any:
        solve: _Solve = ctx.solve
        problem, inputs = solve.passes.problem, solve.passes.inputs
        saved = saved_tensors(ctx)
        cotangents, tensors = saved[: ctx.n], (*saved[ctx.n :], *inputs.late)
        create_graph = torch.is_grad_enabled()
        with backward_pass(problem, inputs, solve.ambience), torch.enable_grad():
            parts = Parts.leaves_for(problem, inputs, tensors)
            own = [None if g is None else g.detach().requires_grad_() for g in cotangents]
            p = rebuilt(problem, parts, inputs)
            p = p if len(own) > 1 else replace(p, dense=False)
            outcome = gather(p, ctx.march(p))
            pairs = [
                (out, g) for out, g in zip((outcome.rows, *outcome.bases), own, strict=True) if g is not None
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
            grads = vjp([first for first, _ in wanted], wrt, [v for _, v in wanted], keep=inputs.shared)
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
