"""Evaluations of f that are made without a graph around them and differentiated later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core import Problem, VectorField
from ..field.inputs import Inputs
from ..field.replays import check_replay
from ..numbers import Time, value
from .replay import Parts, vjp, without_detours


@dataclass
class Evaluation:
    """One evaluation of f, with its graph from `y`, `t` and the inputs of the solve."""

    k: Tensor
    t: Time
    y: Tensor


class Evaluations:
    """f in a backward pass that undoes steps: what that evaluates is differentiated in the replay, not made again.

    Without grad mode it evaluates and remembers. With grad mode it is asked for f at the same time and, up to rounding,
    at the same state, and answers with what it remembers.
    """

    def __init__(self, f: Callable[..., Tensor], inputs: Inputs, parts: Parts, timed: bool) -> None:
        self.f, self.inputs, self.timed = f, inputs, timed
        self.args, self.captured = parts.args, parts.captured
        self.known: dict[tuple[float, bool | None], Evaluation] = {}

    def forget_all_but(self, t: float) -> None:
        """Drop the evaluations at other times than `t`."""
        self.known = {key: known for key, known in self.known.items() if key[0] == t}

    def __call__(self, t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        key = value(t), None if nudge is None else value(nudge) > value(t)
        nudged = {} if nudge is None else {"nudge": nudge}
        if not torch.is_grad_enabled():
            if key not in self.known:
                self.known[key] = self._evaluated(t, y, nudged)
            return self.known[key].k.detach()
        known = self.known.get(key)
        if known is None:
            return self.f(t, y, **nudged)
        return (
            _Known.apply(known, self, t, y, *self.args, *self.captured) if known.k.requires_grad else known.k
        )

    def _evaluated(self, t: Time, y: Tensor, nudged: dict[str, Time]) -> Evaluation:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            if self.timed:
                t = torch.tensor(value(t), dtype=torch.float64, requires_grad=True, device="cpu")
            k = self.f(t, y, **nudged)
        if self.inputs.watched:
            own = (y, t if isinstance(t, Tensor) else None, *self.args)
            span = f"that has f at t = {value(t):g}"
            check_replay([k], self.inputs, own, span, complete=True)
        return Evaluation(k, t, y)


class _Known(torch.autograd.Function):
    """A known value of f in place of a new evaluation."""

    @staticmethod
    def forward(ctx: Any, known: Evaluation, f: Evaluations, *inputs: Any) -> Tensor:
        ctx.known, ctx.f = known, f
        return known.k.detach()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        known: Evaluation = ctx.known
        f: Evaluations = ctx.f
        t = known.t if isinstance(known.t, Tensor) else None
        grads = vjp([known.k], [t, known.y, *f.args, *f.captured], cotangents, keep=f.inputs.shared)
        others = len(grads) - len(f.captured)
        # What reaches one captured tensor through another flows there on its own.
        grads = [*grads[:others], *without_detours(f.captured, grads[others:])]
        return (None, None, grads[0] if ctx.needs_input_grad[2] else None, *grads[1:])


def evaluated_stagewise(p: Problem) -> VectorField:
    """f of a problem so that each evaluation's graph is made when it is differentiated, at the moment of the first."""
    if p.effects is None:
        return partial(checkpoint, p.f, use_reentrant=False, preserve_rng_state=False)
    effects = p.effects

    def f(t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        mark = effects.mark()

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), effects.back_at(mark)

        evaluate: Any = p.f if nudge is None else partial(cast("Any", p.f), nudge=nudge)
        return checkpoint(evaluate, t, y, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    return f
