"""The compiled search for step sizes; see `loops` for what all loops share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..control import Adaptive
from ..core import VectorField
from ..loops.pace import at_dt_min, next_dt, propose, ulp
from ..loops.stepping import BAD_RATIO, TOO_SMALL
from . import compiler
from .field_graph import FieldGraph
from .halves import Halves
from .spec import Spec
from .steps import basis_and_f1, one_sided, step_of


class Tolerances(Adaptive):
    """A control with tensors in it; what it was made from has been checked."""

    def __post_init__(self) -> None:
        """Nothing to check."""


@dataclass
class Limits:
    """What a search reads from one tensor, in this order."""

    stop: Any
    sign: Any
    smallest: Any
    max_trials: Any
    dt_min: Any
    dt_max: Any
    reach: Any
    fallback: Any
    most_rejections: Any

    @staticmethod
    def of(vector: Tensor) -> Limits:
        return Limits(*(vector[i] for i in range(N_LIMITS)))


N_LIMITS = len(fields(Limits))


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


def first_dt(
    control: Adaptive, f: VectorField, t: Tensor, y: Tensor, f0: Tensor, limit: Limits, order: int
) -> Tensor:
    """The size of the first step; zero, which ends the search, where f has no finite value."""
    size = control.guessed_step(f, t, y, f0, limit.sign, limit.reach, order)
    usable = torch.isfinite(size) & (size >= limit.dt_min) & (size > limit.smallest)
    hopeless = ~torch.isfinite(size) & ~torch.isfinite(f0).all()
    least = 2 * torch.maximum(TOO_SMALL * ulp(t), limit.smallest)
    return torch.where(usable, torch.maximum(size, least), torch.where(hopeless, 0.0, limit.fallback))


def may_go_on(s: State, limit: Limits, room: int) -> Tensor:
    """Whether another trial makes sense, and its step has a place in the chunk; see `stepping._refuse`."""
    t1, _ = propose(s.t, s.dt, limit.stop, limit.sign, limit.dt_max)
    stuck = (limit.dt_min > 0) & (s.rejections > 0) & at_dt_min(s.t, s.rejected_size, limit.dt_min)
    fits = (t1 - s.t).abs() > torch.maximum(TOO_SMALL * ulp(s.t), limit.smallest)
    fits = fits | ((t1 == limit.stop) & (s.rejections == 0))  # however near a stop is
    goes = (s.n < room) & (s.t != limit.stop) & fits & (s.trials < limit.max_trials)
    return goes & (s.rejections < limit.most_rejections) & ~stuck


def search_loop(func: FieldGraph, spec: Spec, split: Halves | None) -> Callable[..., Any]:
    """Steps whose sizes follow the error estimate, until the stop, or the chunk's end, or where no trial makes sense.

    `(limits, ts, tolerances, T, Y, kept, bases, y, f0, state, jumps, inputs)` -> y, f0, the state. `kept` get the
    residuals of the steps, where they are `split`.
    """
    method, control = spec.method, spec.control
    assert control is not None
    fsal, order, force = method.fsal, method.order, control.accept_at_dt_min
    pid, safety, low, high = control.pid, control.safety, control.factor_min, control.factor_max
    norm = control.norm if spec.structure is None else spec.structure.mixed_rms

    def search(
        limits: Tensor,
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

        def tolerant() -> Adaptive:
            rtol, atol = tolerances
            return Tolerances(rtol, atol, pid, safety, low, high, norm)

        def goes_on(y: Tensor, f0: Tensor, state: Tensor) -> Tensor:
            return may_go_on(State(*state.unbind()), Limits.of(limits), room)

        def trial(y: Tensor, f0: Tensor, state: Tensor) -> Any:
            s, limit = State(*state.unbind()), Limits.of(limits)
            t1, clipped = propose(s.t, s.dt, limit.stop, limit.sign, limit.dt_max)
            size = (t1 - s.t).abs()
            f = one_sided(func, inputs, jumps, s.t, t1) if spec.jumps else plain
            calls = s.calls + (method.stages - 1)
            if not fsal:
                known = s.known > 0
                calls = calls + torch.where(known, 0, 1)
                f0 = torch.cond(known, lambda t, y, k: k.clone(), lambda t, y, k: f(t, y), (s.t, y, f0))
            chooser = tolerant()
            step, residuals = step_of(f, method, split, (s.t, t1, y, f0), inputs)
            error = chooser.ratio(step).double()
            finite = torch.isfinite(error)
            ok = error <= 1.0
            if force:
                ok = ok | (finite & at_dt_min(s.t, size, limit.dt_min))
            ratio = torch.where(finite, error, BAD_RATIO)
            ratios, calm = [ratio, s.ratio, s.older], s.rejections > 0
            dt = next_dt(chooser, order, s.dt, ratios, (size, clipped, ok), calm, limit.dt_min)
            for buffer, x in zip((Y, *kept), (y, *residuals), strict=True):
                buffer.index_copy_(0, s.n.long().view(1), x[None])
            T.index_copy_(0, s.n.long().view(1) + 1, t1.view(1))
            m, known = s.m, ~ok
            f1 = step.known_f1 if fsal else None
            if spec.inside:
                within = spec.between(ts, limit.sign * s.t, limit.sign * t1).any() & ok
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
            return first_dt(tolerant(), plain, t, y, f0, Limits.of(limits), order)

        start = State(*state.unbind())
        dt, guessed = start.dt, torch.isnan(start.dt)
        start.dt = torch.cond(guessed, first, lambda t, y, f0: dt.clone(), (start.t.clone(), y, f0))
        start.calls = start.calls + torch.where(guessed, 1, 0)
        return compiler.while_loop(
            goes_on, trial, (y.clone(), f0.clone(), torch.stack([*vars(start).values()]))
        )

    return compiler.compiled(search, forward=True)
