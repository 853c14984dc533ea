"""Adaptive solves inside `torch.func.vmap`: one loop, and in it each lane has its own times and step sizes.

Two passes. The first searches the step sizes and builds no graph: a trial is made for all lanes together, and each
accepts or rejects its own. The second takes the accepted steps again, now to be differentiated: the n-th steps of all
lanes together, with steps of length zero in lanes that are done. So a lane's solution and gradient are those of a
solve of its own, and no derivative ever meets a rejected trial.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

from .control import Adaptive
from .clock import check_clock
from .core import Outcome, Problem, Step, has_lanes
from .lane_search import Lanes, Search, plain
from .layout import stacked


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
    if not isinstance(p.control, Adaptive) or not in_lanes:
        return False
    if any(0 in Lanes.of(x).shape for x in in_lanes):
        raise ValueError("torch.func.vmap over no lanes: there is nothing to solve, skip the call")
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
    zero = sum(
        (torch.zeros_like(x).sum() for x in tensors if has_lanes(x)), torch.zeros((), device=p.y0.device)
    )
    f0 = p.slope(p.ts[0], p.ts[len(p.ts) - 1], p.y0) if p.f0 is None else p.f0
    zero = zero.detach().real.to(p.y0)
    p = replace(p, y0=p.y0 + zero, f0=f0 + zero)
    search = Search.of(p, control)
    boundaries, lanes = search.boundaries(), search.lanes
    outputs = _Outputs.of(p, lanes, boundaries)
    with plain():
        rows = boundaries.unbind()
    y, known = p.y0, p.f0
    for n, (t0, t1) in enumerate(pairwise(map(lanes.spread, rows))):
        step = p.step(t0, t1, y, known)
    with plain():
        times = boundaries.cpu().numpy()
    check_clock(p, times, hidden=True)
        outputs.write(n, step, t1)
        y, known = step.y1, step.known_f1
    return Outcome(stacked(outputs.ys))


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
            codes = steps * len(due) + torch.arange(len(due), device=steps.device)
            inner = set(codes[ends.gather(-1, steps) != times].unique().tolist())
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
