"""Steps that a backward pass takes as several equal ones, each from the state that the forward pass had there.

A step that is short enough for y may be too long for its derivative. Its derivative is then that of m sub-steps from
the same start. They end a little beside the state that the solution goes on from, and what they are off by counts as a
constant: so all of it is still the gradient of one function, which has second derivatives, `march_shifted`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..core import End, Problem, Step
from ..loops.outputs import inside
from ..numbers import Time, value
from .made import Made, on_leaves
from .replay import MaybeTensors, totals_for
from .sweep import Replay

AT_ONCE = 8
"""Sub-steps in one graph; of more, the states in between are computed first, without a graph."""


def substeps(t0: Time, t1: Time, m: int) -> list[Time]:
    """Return the ends of m equal parts of a step, which move with it where its own are tensors."""
    return [t0, *(t0 + (t1 - t0) * (j / m) for j in range(1, m)), t1]


def through(
    replay: Replay, n: int, start: Tensor, m: int, delta: Tensor | None = None
) -> tuple[MaybeTensors, MaybeTensors]:
    """Compute the product of step n as that of m sub-steps.

    Parameters
    ----------
    delta : Tensor, optional
        Another cotangent of the step's end.

    Returns
    -------
    tuple
        The product, in the order of `Tally.add`, to be added in place of the step's own; and that of `delta`.
    """
    t0, t1 = replay.leaves(n)
    blocks = [(j, min(j + AT_ONCE, m)) for j in range(0, m, AT_ONCE)]
    starts, lam = _starts(replay, n, start, m, blocks), replay.tally.lam
    totals = [totals_for(2 + len(replay.wrt), (replay.ys_grad,)) for _ in range(2)]
    for (first, last), at in zip(reversed(blocks), reversed(starts), strict=True):
        with torch.enable_grad():
            times = substeps(t0, t1, m)[first : last + 1]
            made = _made(replay, n, at, times, lam, (t0, t1), [j / m for j in range(first, last + 1)])
        replay.check(n, made, complete=n + 1 == replay.n_steps and last == m)
        own, *others = made.pulled(made.outs, made.cotangents, keep=delta is not None)
        lam = torch.zeros_like(at) if own is None else own
        totals[0].add(others)
        if delta is not None:
            moved, *others = made.pulled(made.outs[-1:], [delta])
            delta = torch.zeros_like(at) if moved is None else moved
            totals[1].add(others)
    return [lam, *totals[0].sums], [delta, *totals[1].sums]


def _starts(replay: Replay, n: int, start: Tensor, m: int, blocks: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Where each block of sub-steps starts."""
    p, starts = replay.plain, [start]
    times = substeps(replay.times[n], replay.times[n + 1], m)
    with torch.no_grad():
        for first, last in blocks[:-1]:
            starts.append(_last(p, times[first : last + 1], starts[-1]))
    return starts


def _last(p: Problem, times: Sequence[Time], start: Tensor) -> Tensor:
    for step in _taken(p, times, start):
        start = p.handed(step)
    return start


def _taken(p: Problem, times: Sequence[Time], start: Tensor) -> Generator[Step, None, None]:
    """Yield the steps between these times."""
    known = None
    for t0, t1 in pairwise(times):
        step = p.step(t0, t1, start, known)
        yield step
        start, known = p.handed(step), step.hint if p.reuses(t1) else None


def _made(
    replay: Replay,
    n: int,
    start: Tensor,
    times: Sequence[Time],
    lam: Tensor | None,
    ends: tuple[Time, Time],
    parts: Sequence[float],
) -> Made:
    """Sub-steps of step n with one graph; `lam` belongs to the end of the last one.

    `times` are also `parts` of the step, which has these `ends`.
    """
    p = replay.p
    y = start.detach().requires_grad_()
    outs: list[Tensor] = []
    cotangents: list[Tensor] = []
    done = p.ts.up_to(value(times[0])) if parts[0] else replay.ends[n]
    end, step = y, None
    for step, low, high in zip(_taken(p, times, y), parts[:-1], parts[1:], strict=True):
        last = high == 1.0
        reached = replay.ends[n + 1] if last else p.ts.up_to(value(step.t1))
        ends_at = replay.boundaries[n + 1] if last else step.t1
        _add_outputs(replay, step, ends_at, (done, reached), outs, cotangents)
        if n in replay.inner:
            replay.inner[n].within(low, high).add(step, outs, cotangents)
        done, end = reached, p.handed(step)
    assert step is not None
    outs.append(end)
    cotangents.append(torch.zeros_like(end) if lam is None else lam)
    return Made(replay.inputs, step, [y, *on_leaves(*ends), *replay.wrt], outs, cotangents)


def _add_outputs(
    replay: Replay,
    step: Step,
    ends_at: Time,
    which: tuple[int, int],
    outs: list[Tensor],
    cotangents: list[Tensor],
) -> None:
    """Add the outputs `which[0]:which[1]`, which lie in a sub-step that ends at this time."""
    if replay.ys_grad is None or which[0] == which[1]:
        return
    within = inside(replay.p.ts, ends_at, *which)
    if within:
        outs.append(step.at([replay.p.ts[i] for i in within]))
        cotangents.append(replay.ys_grad[within])
    for i in range(*which):
        if i not in within:
            outs.append(step.y1)
            cotangents.append(replay.ys_grad[i])


def march_shifted(p: Problem, boundaries: Sequence[Time], parts: Sequence[int]) -> Generator[Step, None, End]:
    """Yield the steps of which a backward pass with sub-steps is the derivative.

    Step n is taken as `parts[n]` sub-steps; where that is more than one, the solution goes on from where the whole step
    leads to, as if from there by a constant.
    """
    start, known = p.first, p.f0
    for (t0, t1), m in zip(pairwise(boundaries), parts, strict=True):
        if m == 1:
            step = p.step(t0, t1, start, known)
            yield step
            start, known = p.handed(step), step.hint if p.reuses(t1) else None
            continue
        with torch.no_grad():
            whole = p.handed(p.step(value(t0), value(t1), start.detach()))
        step = None
        for step in _taken(p, substeps(t0, t1, m), start):
            yield step
        assert step is not None
        end, known = p.handed(step), None
        start = end + (whole - end).detach()
    return End("reached")
