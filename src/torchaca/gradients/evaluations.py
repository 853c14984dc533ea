"""Evaluations of f that are made without a graph around them and differentiated later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core import VectorField
from ..field.effects import Effects
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
        self.known: dict[tuple[Any, Any], Evaluation] = {}

    def forget_all_but(self, t: float) -> None:
        """Drop the evaluations at other times than `t`."""
        for key in [key for key in self.known if key[0] != t]:
            del self.known[key]

    def fewer(self, index: Tensor) -> Evaluations:
        """The same of some samples of a batch, who know what all know."""
        other, own = copy(self), cast("Any", self.f)
        other.f = own.fewer(index)
        return other

    def __call__(self, t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        key = _numbers(t), None if nudge is None else _numbers(nudge > t)
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
                of_all = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")
                t = of_all.detach().double().clone().requires_grad_()
            k = self.f(t, y, **nudged)
        if self.inputs.watched:
            own = (y, t if isinstance(t, Tensor) else None, *self.args)
            span = f"that has f at t = {_numbers(t)}"
            check_replay([k], self.inputs, own, span, complete=True)
        return Evaluation(k, t, y)


def _numbers(t: Time) -> Any:
    """A time as what can be looked up: a number, or those of all samples."""
    return tuple(t.flatten().tolist()) if isinstance(t, Tensor) and t.ndim else value(t)


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
        t = known.t if isinstance(known.t, Tensor) and known.t.requires_grad else None
        grads = vjp([known.k], [t, known.y, *f.args, *f.captured], cotangents, keep=f.inputs.shared)
        others = len(grads) - len(f.captured)
        # What reaches one captured tensor through another flows there on its own.
        grads = [*grads[:others], *without_detours(f.captured, grads[others:])]
        return (None, None, grads[0] if ctx.needs_input_grad[2] else None, *grads[1:])


@dataclass(frozen=True)
class Stagewise:
    """f of a problem so that each evaluation's graph is made when it is differentiated, at the moment of the first."""

    f: VectorField
    effects: Effects | None

    def __call__(self, t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        evaluate: Any = self.f if nudge is None else partial(cast("Any", self.f), nudge=nudge)
        effects = self.effects
        if effects is None:
            return checkpoint(evaluate, t, y, use_reentrant=False, preserve_rng_state=False)
        mark = effects.mark()

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), effects.back_at(mark)

        return checkpoint(evaluate, t, y, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    def fewer(self, index: Tensor) -> Stagewise:
        """The same f of some samples of a batch."""
        own: Any = self.f
        return Stagewise(own.fewer(index), self.effects)
