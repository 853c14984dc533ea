"""Adaptive solves inside `torch.func.vmap`: one loop, and in it each lane has its own times and step sizes.

Two passes. The first searches the step sizes and builds no graph: a trial is made for all lanes together, and each
accepts or rejects its own. The second takes the accepted steps again, now to be differentiated: the n-th steps of all
lanes together, with steps of length zero in lanes that are done. So a lane's solution and gradient are those of a
solve of its own, and no derivative ever meets a rejected trial.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_functorch_wrapped_tensor,
)
from torch.autograd import forward_ad

from .control import Adaptive
from .core import Outcome, Problem, Step, has_lanes
from .errors import SolverError
from .pace import at_dt_min, next_dt, propose, ulp
from .stepping import BAD_RATIO, TINY, TOO_SMALL


def solves_in_lanes(p: Problem, tensors: Iterable[Tensor]) -> bool:
    """Whether an adaptive solve inside vmap depends on a tensor that differs between the lanes.

    Raises
    ------
    NotImplementedError
        For what only a solve outside of vmap can do.
    """
    if not isinstance(p.control, Adaptive) or not _mapped() or not any(map(has_lanes, (p.y0, *tensors))):
        return False
    unavailable = {
        "jump_ts is": bool(p.jumps) or p.one_sided,
        "dense=True is": p.dense,
        "derivatives with respect to t are": p.ts.tensor is not None,
        f"method {p.method.name!r} is": p.carrying is not None,
        "an f that draws random numbers or moves buffers is": p.effects is not None,
    }
    for what, wanted in unavailable.items():
        if wanted:
            raise NotImplementedError(
                f"{what} not available in an adaptive solve inside torch.func.vmap, where each lane has steps of its "
                "own: use method='dopri5', fixed steps (n_steps=...), or a loop instead of vmap"
            )
    return True


def _mapped() -> bool:
    return any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ())


def solve_in_lanes(p: Problem, control: Adaptive, tensors: Iterable[Tensor]) -> Outcome:
    """The outputs of all lanes, differentiable with the step sizes held constant.

    `stats` counts the evaluations for all lanes together; its steps are those of the lanes that have most of them.

    Raises
    ------
    SolverError
        When a lane cannot go on.
    """
    # Every state has all lanes from the start: tensors without them could not be written into.
    zero = sum((torch.zeros_like(x).sum() for x in tensors if has_lanes(x)), torch.zeros(()))
    f0 = p.slope(p.ts[0], p.ts[len(p.ts) - 1], p.y0) if p.f0 is None else p.f0
    zero = zero.detach().real.to(p.y0)
    p = replace(p, y0=p.y0 + zero, f0=f0 + zero)
    boundaries = _Search.of(p, control).boundaries()
    outputs = [p.y0] * len(p.ts)
    y, known = p.y0, p.f0
    for t0, t1 in pairwise(boundaries):
        step = p.step(t0, t1, y, known)
        _emit(p, step, t0, t1, outputs)
        y, known = step.y1, step.known_f1
    return Outcome(torch.stack(outputs))


def _emit(p: Problem, step: Step, t0: Tensor, t1: Tensor, outputs: list[Tensor]) -> None:
    """Write the outputs that lie in this step, each in the lanes where it does."""
    sign = p.ts.sign
    reached = {i: (sign * t0 < sign * t) & (sign * t <= sign * t1) for i, t in enumerate(p.ts.values)}
    reached = {i: lanes for i, lanes in reached.items() if _anywhere(lanes)}
    within = [i for i, lanes in reached.items() if _anywhere(lanes & (t1 != p.ts.values[i]))]
    inner = dict(zip(within, step.at([p.ts.values[i] for i in within]), strict=True)) if within else {}
    for i, lanes in reached.items():
        here = torch.where(t1 == p.ts.values[i], step.y1, inner[i]) if i in inner else step.y1
        outputs[i] = torch.where(lanes, here, outputs[i])


@dataclass
class _Search:
    """Where the lanes are; every tensor but `y` and `f0` is 0-dim and has lanes."""

    p: Problem
    control: Adaptive
    t: Tensor
    y: Tensor
    f0: Tensor | None
    dt: Tensor
    ratios: list[Tensor]
    rejected: Tensor

    @staticmethod
    def of(p: Problem, control: Adaptive) -> _Search:
        f0 = p.f0
        assert f0 is not None
        with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False):
            p = replace(p, y0=p.y0.detach(), f0=f0.detach(), watch=None)
            t = p.y0.real.sum().detach().double() * 0 + p.ts.values[0]
            dt = control.initial_step(p, f0.detach()).double() if control.dt0 is None else t * 0 + control.dt0
            span = abs(p.ts.values[-1] - p.ts.values[0])
            dt = torch.where(torch.isfinite(dt), dt, 1e-6 * span).clamp(min=control.dt_min)
        return _Search(p, control, t, p.y0, p.f0, dt, [t * 0 + 1] * 2, torch.zeros_like(t, dtype=torch.bool))

    def boundaries(self) -> list[Tensor]:
        """The times between which each lane steps, padded with its end."""
        start, end, sign = self.t, self.p.ts.values[-1], self.p.ts.sign
        tried: list[Tensor] = []
        accepted: list[Tensor] = []
        rejected = torch.zeros_like(start)
        with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False):
            while _anywhere(active := sign * (end - self.t) > 0):
                if len(tried) == self.control.max_steps:
                    raise self._failure("max-steps", active, f"max_steps = {len(tried)} trials are used up")
                t1, success = self._trial(active)
                tried.append(sign * torch.where(success, t1, end))
                accepted.append(success)
                rejected = rejected + (active & ~success)
            self.p.stats.accepted += int(_largest(torch.stack(accepted).sum(0)))
            self.p.stats.rejected += int(_largest(rejected))
            ordered = sign * torch.stack(tried).sort(0).values  # what a lane accepted comes first, in order
        return [start.detach(), *ordered.detach()[: self.p.stats.accepted]]

    def _trial(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """One trial in every lane: where it ended, and in which lanes it was accepted."""
        control, t = self.control, self.t
        t1, clipped = propose(t, self.dt, self._next_stop(), self.p.ts.sign, control.dt_max)
        t1 = torch.where(active, t1, t)
        tried = (t1 - t).abs()
        self._refuse(
            "step-size", active & ~(tried > torch.clamp(TOO_SMALL * ulp(t), min=TINY * self._span()))
        )
        step = self.p.step(t, t1, self.y, self.f0)
        ratio = control.ratio(step).double()
        finite = torch.isfinite(ratio)
        ratio = torch.where(finite, ratio, BAD_RATIO)
        smallest = at_dt_min(t, tried, control.dt_min) & finite
        success = active & ((ratio <= 1.0) | (smallest & control.accept_at_dt_min))
        if control.dt_min and not control.accept_at_dt_min:
            self._refuse("dt-min", active & smallest & ~success)
        trial = tried, clipped, success
        self.dt = next_dt(
            control, self.p.method.order, self.dt, [ratio, *self.ratios], trial, self.rejected, control.dt_min
        )
        newest, older = self.ratios
        self.ratios = [torch.where(success, ratio, newest), torch.where(success, newest, older)]
        self.rejected = ~success
        self.t = torch.where(success, t1, t)
        self.y = torch.where(success, step.y1, self.y).detach()
        f1 = step.known_f1
        self.f0 = None if f1 is None else torch.where(success, f1, step.f0).detach()
        return t1, success

    def _next_stop(self) -> Tensor:
        """The nearest time ahead of each lane where a step has to end."""
        sign, stops = self.p.ts.sign, self.control.stops(self.p.ts)
        stop = self.t * 0 + stops[-1]
        for earlier in reversed(stops[:-1]):
            stop = torch.where(sign * (earlier - self.t) > 0, earlier, stop)
        return stop

    def _span(self) -> float:
        return abs(self.p.ts.values[-1] - self.p.ts.values[0])

    def _refuse(self, kind: str, lanes: Tensor) -> None:
        reasons = {
            "step-size": "a step size fell below what time can resolve",
            "dt-min": f"the error is too large at dt_min = {self.control.dt_min:g}",
        }
        if _anywhere(lanes):
            raise self._failure(kind, lanes, reasons[kind])

    def _failure(self, kind: str, lanes: Tensor, reason: str) -> SolverError:
        where = torch.where(lanes, self.t, torch.inf)
        t = -float(_largest(-where))
        message = f"a lane of vmap stopped at t = {t:.10g}: {reason}. try: that lane alone, outside of vmap."
        return SolverError(kind, message, t=t, dt=float(_largest(self.dt)), stats=self.p.stats)


def _physical(x: Tensor) -> Tensor:
    """The tensor of all lanes, for reading."""
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return x


def _anywhere(lanes: Tensor) -> bool:
    return bool(_physical(lanes).any())


def _largest(x: Tensor) -> float:
    return _physical(x).max().item()
