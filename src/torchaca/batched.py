"""A batch from what the user gives to what he gets; `torchaca.batch` solves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .batch import (
    SampleTimes,
    check_door,
    check_independence,
    check_options,
    common_times,
    sample_times,
    solve_samples,
)
from .core import Control, Problem, Times
from .executors import solved
from .going_on import State
from .loops.rows import moved
from .options import Options
from .solution import Solution
from .state import Structure, structure_of


def batch_of(
    f: Callable[..., Any], y0: Any, t: Any, options: Options, assembled: Callable[..., Problem]
) -> tuple[Problem, SampleTimes, Structure]:
    """The problem of a batch, its times, and how its state is made up.

    If all samples have the same steps, its times are theirs, else others stand in for them. `assembled` is
    `torchaca.solve.problem_of`.
    """
    check_door(options)
    if isinstance(y0, State):
        raise NotImplementedError("a State is one of a single solve: with batch=1 start from y0 = sol.ys[-1]")
    structure = structure_of(y0, 1)
    packed = structure.pack(y0)
    request, times = options.request(structure, packed), sample_times(t, len(packed))
    check_options(options, len(packed), times)
    request = replace(request, args=(*request.args, *options.rows))
    grid = getattr(request.control, "grid", None)
    common = _joint(request.control, times, options) or grid is not None
    ts = common_times(times) if common else STANDING_IN
    return assembled(f, packed, structure, ts, request, batch=1), times, structure


BESIDE = 0.05
"""Of the span: so far beside the start f is asked whether it keeps the samples apart."""


def _joint(control: Control, times: SampleTimes, options: Options) -> bool:
    """Whether all samples have the same steps, and nobody wants to know which sample does what in them."""
    common = not control.adaptive and times.shared is not None
    return options.steps == "joint" or (common and not options.compile and options.events is None)


STANDING_IN = Times((0.0, 1.0))  # for the samples' own


def solution_of_batch(
    p: Problem, times: SampleTimes, structure: Structure, t: Any, options: Options
) -> Solution:
    """Solve what `batch_of` has made, at times that were given as `t`."""
    if _joint(p.control, times, options):
        ts = p.ts
        if options.check_rows and len(ts) > 1:
            check_independence(
                p, ts.values[0] + BESIDE * (ts.values[-1] - ts.values[0]), moved(p.y0.detach())
            )
        begun, outcome, _ = solved(p)
        return Solution.of(begun, outcome, structure, t).of_batch(len(p.y0), ts, len(outcome.ts))
    return Solution.of_samples(solve_samples(p, times, options), structure, t, times)
