"""The compiled search for step sizes; see `loops` for what all loops share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import VectorField
from ..loops.pace import BAD_RATIO, Limits, accepts, first_dt, next_dt, propose, refusals
from ..loops.rule import StepRule
from . import compiler
from .field_graph import FieldGraph
from .halves import Halves
from .spec import Spec
from .steps import basis_and_f1, one_sided, step_of


@dataclass
class Bounds:
    """What a search reads from one tensor: the limits of its pace in their order, the stop, the first guess's reach."""

    limits: Limits
    stop: Any
    reach: Any

    @staticmethod
    def of(vector: Tensor) -> Bounds:
        *limits, stop, reach = vector.unbind()
        return Bounds(Limits(*limits), stop, reach)

    def packed(self) -> list[Any]:
        """The numbers of that tensor."""
        return [*vars(self.limits).values(), self.stop, self.reach]


@dataclass
class State:
    """What a search carries from trial to trial, beside y and f0: the numbers of one tensor, float64, in this order.

    `n` steps are accepted in this chunk, `m` of them with outputs inside; `trials` and `calls` of f count through all
    chunks; `known`: f0 is f(t, y) already.
    """

    n: Any
    m: Any
    trials: Any
    calls: Any
    rejections: Any
    t: Any
    dt: Any
    ratio: Any
    older: Any
    rejected_size: Any
    known: Any


def guessed_dt(
    rule: StepRule, f: VectorField, t: Tensor, y: Tensor, f0: Tensor, bounds: Bounds, order: int
) -> Tensor:
    """Choose the first step size; zero, which ends the search, where f has no finite value."""
    guess = rule.guessed_step(f, t, y, f0, bounds.limits.sign, bounds.reach, order)
    hopeless = ~torch.isfinite(guess) & ~torch.isfinite(f0).all()
    return torch.where(hopeless, 0.0, first_dt(guess, t, bounds.limits))


def may_go_on(s: State, bounds: Bounds, room: int) -> Tensor:
    """Say whether another trial makes sense, and its step has a place in the chunk."""
    limits, stop = bounds.limits, bounds.stop
    t1, _ = propose(s.t, s.dt, stop, limits)
    goes, size, lands = (s.n < room) & (s.t != stop), (t1 - s.t).abs(), t1 == stop
    found = refusals(s.t, size, lands, s.rejections, s.rejected_size, s.trials, limits)
    for refused in found.values():
        goes = goes & ~refused
    return goes


def search_loop(func: FieldGraph, spec: Spec, split: Halves | None) -> Callable[..., Any]:
    """Steps whose sizes follow the error estimate, until the stop, or the chunk's end, or where no trial makes sense.

    `(bounds, ts, tolerances, T, Y, kept, bases, y, f0, state, jumps, inputs)` -> y, f0, the state. `kept` get the
    residuals of the steps, where they are `split`.
    """
    method, rule = spec.method, spec.rule
    assert rule is not None
    fsal, order = method.fsal, method.order
    pid, safety, low, high = rule.pid, rule.safety, rule.factor_min, rule.factor_max
    norm = rule.norm if spec.structure is None else spec.structure.mixed_rms

    def search(
        bounds: Tensor,
        ts: Tensor,
        tolerances: Sequence[Tensor],
        T: Tensor,
        Y: Tensor,
        kept: Sequence[Tensor],
        bases: Tensor,
        y: Tensor,
        f0: Tensor,
        state: Tensor,
        jumps: Tensor,
        inputs: Sequence[Tensor],
    ) -> Any:
        room = Y.shape[0]

        def plain(t: Any, y: Tensor) -> Tensor:
            return func(t.to(y.dtype), y, inputs)

        def ruled() -> StepRule:
            rtol, atol = tolerances
            return StepRule(rtol, atol, pid, safety, low, high, norm)

        def goes_on(y: Tensor, f0: Tensor, state: Tensor) -> Tensor:
            return may_go_on(State(*state.unbind()), Bounds.of(bounds), room)

        def trial(y: Tensor, f0: Tensor, state: Tensor) -> Any:
            s, bound = State(*state.unbind()), Bounds.of(bounds)
            limits = bound.limits
            t1, clipped = propose(s.t, s.dt, bound.stop, limits)
            size = (t1 - s.t).abs()
            f = one_sided(func, inputs, jumps, s.t, t1) if spec.jumps else plain
            calls = s.calls + (method.stages - 1)
            if not fsal:
                known = s.known > 0
                calls = calls + torch.where(known, 0, 1)
                f0 = torch.cond(known, lambda t, y, k: k.clone(), lambda t, y, k: f(t, y), (s.t, y, f0))
            chooser = ruled()
            step, residuals = step_of(f, method, split, (s.t, t1, y, f0), inputs)
            error = chooser.ratio(step).double()
            ok = accepts(error, s.t, size, limits, at_least_dt_min=spec.accept_at_dt_min)
            ratio = torch.where(torch.isfinite(error), error, BAD_RATIO)
            ratios, calm = [ratio, s.ratio, s.older], s.rejections > 0
            dt = next_dt(chooser, order, s.dt, ratios, (size, clipped, ok), calm, limits)
            for buffer, x in zip((Y, *kept), (y, *residuals), strict=True):
                buffer.index_copy_(0, s.n.long().view(1), x[None])
            T.index_copy_(0, s.n.long().view(1) + 1, t1.view(1))
            m, known = s.m, ~ok
            f1 = step.hint if fsal else None
            if spec.inside:
                within = spec.between(ts, limits.sign * s.t, limits.sign * t1).any() & ok
                basis, own_f1 = basis_and_f1(f, spec, step, within)
                calls = calls + torch.where(within, spec.missing, 0)
                if spec.gives_f1:
                    f1, known = own_f1, known | within
                bases.index_copy_(0, s.m.long().view(1), basis[None])
                m = s.m + torch.where(within, 1, 0)
            after = State(
                n=s.n + torch.where(ok, 1, 0),
                m=m,
                trials=s.trials + 1,
                calls=calls,
                rejections=torch.where(ok, 0, s.rejections + 1),
                t=torch.where(ok, t1, s.t),
                dt=dt,
                ratio=torch.where(ok, ratio, s.ratio),
                older=torch.where(ok, s.ratio, s.older),
                rejected_size=torch.where(ok, torch.inf, size),
                known=known.double(),
            )
            return (
                torch.where(ok, step.y1, y),
                step.f0.clone() if f1 is None else torch.where(ok, f1, step.f0),
                torch.stack([*vars(after).values()]),
            )

        def first(t: Tensor, y: Tensor, f0: Tensor) -> Tensor:
            return guessed_dt(ruled(), plain, t, y, f0, Bounds.of(bounds), order)

        start = State(*state.unbind())
        dt, guessed = start.dt, torch.isnan(start.dt)
        start.dt = torch.cond(guessed, first, lambda t, y, f0: dt.clone(), (start.t.clone(), y, f0))
        start.calls = start.calls + torch.where(guessed, 1, 0)
        return compiler.while_loop(
            goes_on, trial, (y.clone(), f0.clone(), torch.stack([*vars(start).values()]))
        )

    return compiler.compiled(search, forward=True)
