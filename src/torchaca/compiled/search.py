"""The compiled search for step sizes; see `loops` for what all loops share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Problem, VectorField
from ..loops.adaptive import Adaptive
from ..loops.pace import BAD_RATIO, Limits, accepts, first_dt, known_pace, next_dt, propose, refusals
from ..loops.rest import Rest
from ..loops.rule import StepRule
from . import compiler
from .field_graph import FieldGraph
from .halves import Halves
from .inference import normal
from .spec import Spec
from .steps import basis_and_f1, one_sided, step_of


@dataclass
class Bounds:
    """What a search reads from one tensor: the limits of its pace in their order, the stop, the first guess's reach.

    `room` is the error ratio up to which a step's error says nothing.
    """

    limits: Limits
    stop: Any
    reach: Any
    room: Any = -1.0

    @staticmethod
    def of(vector: Tensor) -> Bounds:
        *limits, stop, reach, room = vector.unbind()
        return Bounds(Limits(*limits), stop, reach, room)

    def packed(self) -> list[Any]:
        """The numbers of that tensor."""
        return [*vars(self.limits).values(), self.stop, self.reach, self.room]


@dataclass
class State:
    """What a search carries from trial to trial, beside y and f0: the numbers of one tensor, float64, in this order.

    `n` steps are accepted in this chunk, `m` of them with outputs inside; `trials` and `calls` of f count through all
    chunks; `known`: f0 is f(t, y) already. `rests`: the last step's error says nothing, and the loop ends there, so
    that its next step can be bounded (see `torchaca.loops.rest`).
    """

    n: Any = 0.0
    m: Any = 0.0
    trials: Any = 0.0
    calls: Any = 0.0
    rejections: Any = 0.0
    t: Any = 0.0
    dt: Any = 0.0
    ratio: Any = 1.0
    older: Any = 1.0
    rejected_size: Any = math.inf
    known: Any = 1.0
    rests: Any = 0.0

    def tensor(self) -> Tensor:
        """Pack the numbers."""
        return torch.tensor([*vars(self).values()], dtype=torch.float64, device="cpu")


KNOWN = [*State.__dataclass_fields__].index("known")


def tolerances(control: Adaptive) -> list[Tensor]:
    """Return rtol and atol as tensors, which may change from call to call."""
    return [
        normal(x) if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64, device="cpu")
        for x in (control.rtol, control.atol)
    ]


def first_state(p: Problem, control: Adaptive, rest: Rest, f: VectorField, f0: Tensor) -> Tensor:
    """Return the state of a search that starts, at y0, where f is f0."""
    (dt, before), t, calls = known_pace(p, control), p.ts.values[0], 0.0
    if rest.pending():
        dt, calls = min(dt, rest.bound(f, t, p.y0, f0)), 1.0
    ratio, older, *_ = (*before, 1.0, 1.0)
    guessed = math.nan if dt is None else dt
    return State(t=t, dt=guessed, ratio=ratio, older=older, calls=calls).tensor()


def bound(
    state: Tensor, rest: Rest, f: VectorField, step: tuple[float, Tensor, Tensor, Tensor], spec: Spec
) -> tuple[Tensor, Tensor]:
    """Go on after a step whose error says nothing: f where it ended, and the state. See `torchaca.loops.rest`.

    `step` is where it started, in time and state, and y and f0 where it ended.
    """
    seen, (t0, y0, y, f0) = State(*state.tolist()), step
    if rest.note(t0, seen.ratio, seen.t, y0, y):
        if not (spec.method.fsal or seen.known):
            f0, seen.known, seen.calls = f(seen.t, y), 1.0, seen.calls + 1
        seen.dt = min(seen.dt, rest.bound(f, seen.t, y, f0))
        seen.calls += 1
    seen.rests = 0.0
    return f0, seen.tensor()


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
    goes = goes & ~(s.rests > 0)
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
    resolves = rule.resolves
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
            return StepRule(rtol, atol, pid, safety, low, high, norm, resolves)

        def goes_on(y: Tensor, f0: Tensor, state: Tensor) -> Tensor:
            return may_go_on(State(*state.unbind()), Bounds.of(bounds), room)

        def trial(y: Tensor, f0: Tensor, state: Tensor) -> Any:
            s, given = State(*state.unbind()), Bounds.of(bounds)
            limits = given.limits
            t1, clipped = propose(s.t, s.dt, given.stop, limits)
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
                rests=(ok & (ratio <= given.room)).double(),
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
