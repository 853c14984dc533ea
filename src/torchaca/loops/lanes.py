"""Adaptive solves inside `torch.func.vmap`: one loop, and in it each lane has its own times and step sizes.

Two passes. The first searches the step sizes and builds no graph: a trial is made for all lanes together, and each
accepts or rejects its own. The second takes the accepted steps again, now to be differentiated: the n-th steps of all
lanes together, with steps of length zero in lanes that are done. So a lane's solution and gradient are those of a
solve of its own, and no derivative ever meets a rejected trial.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..core import CarryingStep, Outcome, Problem, Step, tolerant
from ..errors import SolverError
from ..layout import stacked
from ..numbers import has_lanes
from ..torch_internals import TransformType, get_interpreter_stack, plain
from ..transforms import is_differentiated
from .clock import check_clock
from .pace import KINDS, WORDS
from .row_search import Search
from .row_steps import step_of
from .rows import Lanes, Spans

if TYPE_CHECKING:
    from .adaptive import Adaptive

LANES = (
    "events inside torch.func.vmap would end or cut each lane at a time of its own, and the lanes of a solve share its "
    "times: use batch=1, where each sample has events of its own, or loop over the lanes"
)


def solves_in_lanes(p: Problem, tensors: Iterable[Tensor]) -> bool:
    """Whether an adaptive solve inside vmap depends on a tensor that differs between the lanes.

    Raises
    ------
    NotImplementedError
        For what only a solve outside of vmap can do.
    ValueError
        If there are no lanes.
    """
    in_lanes = [x for x in (p.y0, *tensors) if has_lanes(x)] if _mapped() else []
    if not (p.control.adaptive and in_lanes):
        return False
    if p.events is not None:
        raise NotImplementedError(LANES)
    if any(0 in Lanes.of(x).shape for x in in_lanes):
        raise ValueError("torch.func.vmap over no lanes: there is nothing to solve, skip the call")
    unavailable = {
        f"a control of your own ({type(p.control).__name__}) is": tolerant(p.control) is None,
        "one-sided evaluation of f is": p.one_sided,
        "going on from the state of another solve is": p.start is not None,
        "derivatives with respect to t are": p.ts.tensor is not None,
        "derivatives with respect to jump_ts are": any(map(is_differentiated, p.control.tensors)),
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


def solve_in_lanes(p: Problem, control: Adaptive, tensors: Iterable[Tensor], alone: bool = False) -> Outcome:
    """The outputs of all lanes, differentiable with the step sizes held constant.

    `stats` counts the evaluations for all lanes together; its steps are those of the lanes that have most of them.

    Parameters
    ----------
    alone : bool
        A lane that cannot go on has nan in the outputs that it did not reach, and the others are not concerned.

    Raises
    ------
    SolverError
        When a lane cannot go on, unless it fails alone.
    """
    # Every state has all lanes from the start: tensors without them could not be written into.
    zero = sum(
        (torch.zeros_like(x).sum() for x in tensors if has_lanes(x)), torch.zeros((), device=p.y0.device)
    )
    f0 = p.slope(p.ts[0], p.ts[len(p.ts) - 1], p.y0) if p.f0 is None else p.f0
    zero = zero.detach().real.to(p.y0)
    y0 = p.y0 + zero
    p, lanes = replace(p, y0=y0, f=replace(p.f, f0=f0 + zero)), Lanes.of(y0)
    with plain():
        t = torch.full(lanes.shape, p.ts.values[0], dtype=torch.float64, device=y0.device)
        spans = Spans(t, [torch.full_like(t, stop) for stop in control.stops(p.ts)], p.ts.sign)
        jumps = t.new_tensor(sorted(p.jumps)) if p.jumps else None

    def guess(p: Problem, f0: Tensor) -> Tensor:
        return lanes.gathered(control.initial_step(p, f0))

    how: dict[str, Any] = {"guess": guess, "explain": _stopped, "alone": alone, "jumps": jumps}
    search = Search.of(p, control, control, lanes, spans, **how)
    boundaries = search.boundaries()
    with plain():
        times = boundaries.cpu().numpy()[:, ~search.failed.cpu().numpy()]
    check_clock(p, times)
    outputs = _Outputs.of(p, lanes, boundaries)
    resting = Resting.of(p, lanes, search, boundaries) if search.failure is not None else None
    with plain():
        rows, jumped = boundaries.unbind(), [False] * len(boundaries)
        if jumps is not None:
            jumped = torch.isin(boundaries, jumps).flatten(1).any(1).tolist()
    bases: list[Tensor] = []
    y, known = (p.y0, p.f0) if resting is None else (resting.y0, resting.f0)
    carried = p.carrying is not None
    if p.carrying is not None:
        y, known = p.carrying.lift(p.f.call, p.ts[0], y, known), None
        resting = None if resting is None else replace(resting, y0=y)
    for n, (t0, t1) in enumerate(pairwise(rows)):
        if resting is not None:
            t0, t1, y, known = resting.aside(t0, t1, y, known)
        ends, lifts = (lanes.spread(t0), lanes.spread(t1)), carried and jumped[n]
        step = step_of(p.method, p.f.call, ends, y, known, jumps, carried=carried, lifts=lifts)
        outputs.write(n, step, ends[1])
        if p.dense:
            bases.append(step.basis())
        y = cast("CarryingStep", step).carry if carried else step.y1
        known = None if jumped[n + 1] else step.hint
    if resting is not None:
        outputs.fill(len(rows) - 1)
    failure, search.failure = search.failure, None  # handed over: its traceback would hold the search
    ends = [lanes.spread(t) for t in rows] if p.dense else ()
    return Outcome(stacked(outputs.ys), p.ts, failure, bases=bases, boundaries=ends)


def _stopped(search: Search, reason: str, lanes: Tensor) -> SolverError:
    t, dt = search.t[lanes].min().item(), search.dt.max().item()
    words = WORDS[reason].format(**vars(search.limits))
    message = f"a lane of vmap stopped at t = {t:.10g}: {words}. try: that lane alone, outside of vmap."
    return SolverError(KINDS.get(reason, reason), message, t=t, dt=dt, stats=search.p.stats)


@dataclass
class Resting:
    """Where lanes that have failed spend the rest of the solve: at its start, in a state at which f is finite.

    Nothing that follows is theirs, but a product of zero with the derivative of f there is a part of the gradients that
    all lanes share, and beside the state where a lane failed f may have none.
    """

    lanes: Lanes
    failed: Tensor
    start: Tensor
    y0: Tensor
    f0: Tensor

    @staticmethod
    def of(p: Problem, lanes: Lanes, search: Search, boundaries: Tensor) -> Resting:
        failed, f0 = search.failed, p.f0
        assert f0 is not None
        with plain():
            start = boundaries[0]
            y, k = (lanes.gathered(x).detach() for x in (p.y0, f0))
            n = len(lanes.shape)
            good = (torch.isfinite(y) & torch.isfinite(k)).reshape(*lanes.shape, -1).all(-1)
            at_once = failed & (search.t == start) & ~good
            healthy = y.flatten(0, n - 1)[good.flatten().int().argmax()]
            healthy = torch.where(good.any(), healthy, 0.0)
        y0 = p.y0
        if bool(at_once.any()):
            y0 = torch.where(lanes.spread(at_once), healthy, y0)
            f0 = p.slope(p.ts[0], p.ts[len(p.ts) - 1], y0)
        return Resting(lanes, failed, start, y0, f0)

    def aside(
        self, t0: Tensor, t1: Tensor, y: Tensor, known: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The times, states and slopes of a step; those of lanes that have failed are at rest."""
        with plain():
            rest = self.failed & (t0 == t1)
            t0, t1 = (torch.where(rest, self.start, t) for t in (t0, t1))
        here = self.lanes.spread(rest)
        known = None if known is None else torch.where(here, self.f0, known)
        return t0, t1, torch.where(here, self.y0, y), known


@dataclass
class _Outputs:
    """The outputs `ys`, which are y0 until they are written.

    Those that are `due` are numbered by k: in each lane, one lies in step `steps[..., k]`, `(*lanes, len(due))`.
    `inside[n]` has the k that step n writes in some lane, and whether it needs the interpolant there.
    """

    p: Problem
    lanes: Lanes
    ys: list[Tensor]
    due: list[int]
    steps: Tensor
    inside: dict[int, dict[int, bool]]

    @staticmethod
    def of(p: Problem, lanes: Lanes, boundaries: Tensor) -> _Outputs:
        due = list(range(p.ts.up_to(p.ts.values[0]), len(p.ts)))
        with plain():
            ends = p.ts.sign * boundaries[1:].movedim(0, -1).contiguous()
            times = p.ts.sign * ends.new_tensor([p.ts.values[i] for i in due])
            steps = torch.searchsorted(ends, times.expand(*lanes.shape, -1).contiguous())
            if not len(boundaries[1:]):  # no lane has a step
                return _Outputs(p, lanes, [p.y0] * len(p.ts), due, steps, {})
            codes = steps * len(due) + torch.arange(len(due), device=steps.device)
            last = ends.shape[-1] - 1  # behind it is what a lane that failed did not reach
            inner = set(codes[ends.gather(-1, steps.clamp(max=last)) != times].unique().tolist())
            inside: dict[int, dict[int, bool]] = defaultdict(dict)
            for code in codes.unique().tolist():
                n, k = divmod(code, len(due))
                inside[n][k] = code in inner
        return _Outputs(p, lanes, [p.y0] * len(p.ts), due, steps, inside)

    def write(self, n: int, step: Step, t1: Tensor) -> None:
        """Write the outputs that lie in the n-th steps, which end at `t1`, each in the lanes where it does."""
        times = {k: self.p.ts.values[self.due[k]] for k in self.inside[n]}
        within = [k for k, inside in self.inside[n].items() if inside]
        inner = dict(zip(within, step.at([times[k] for k in within]), strict=True)) if within else {}
        for k, t in times.items():
            i, here = self.due[k], step.y1
            if k in inner:
                here = torch.where(t1 == t, step.y1, inner[k])
            with plain():
                reached = self.steps[..., k] == n
            self.ys[i] = torch.where(self.lanes.spread(reached), here, self.ys[i])

    def fill(self, n_steps: int) -> None:
        """Write nan where lanes that failed did not get to."""
        for k, i in enumerate(self.due):
            with plain():
                missed = self.steps[..., k] == n_steps
            self.ys[i] = torch.where(self.lanes.spread(missed), math.nan, self.ys[i])
