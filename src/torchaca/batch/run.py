"""A solve in which each sample has steps of its own.

Two passes, as in lanes of `torch.func.vmap`, if somebody wants a derivative. The first searches the step sizes and
builds no graph: a trial is made for all samples, and each accepts or rejects its own. The second takes the accepted
steps again, the n-th ones of all samples together (`numbered`), under the gradient that was asked for. So a sample's
solution and gradient are those of a solve of its own, and no derivative ever meets a rejected trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..control import FixedSteps
from ..core import Problem, Times, tolerant
from ..executors import EAGER, Eager, check_problem, prepared
from ..layout import stacked
from ..log import Samples as Counts
from ..loops.clock import check_clock
from ..loops.row_search import Search
from ..loops.rows import Samples, Spans
from .check import check_independence
from .door import refuse_problem
from .failures import Failures
from .natively import solve_natively, started
from .numbered import Home, Numbered
from .outputs import Places, reached_by
from .solved import Solved
from .times import SampleTimes, refuse_moving
from .written import Written


def solve_samples(
    p: Problem,
    times: SampleTimes,
    *,
    check_rows: bool,
    mode: bool | str = False,
    rows: Sequence[Tensor] = (),
) -> Solved:
    """Solve each sample of a batch between its own times.

    Raises
    ------
    SolverError
        If one cannot go on, and failures are to be raised.
    NotImplementedError
        For what this cannot do.
    """
    gradient = p.gradient
    assert gradient is not None
    p.stats.executor = EAGER
    refuse_problem(p)
    refuse_moving(times)
    wanted = times.values.to(p.y0.device)
    samples, spans = Samples(len(p.y0), p.y0.ndim), Spans.between(wanted[0], wanted[-1])
    if not p.y0.numel() or bool((spans.start == spans.end).all()):
        p.stats.samples = Counts.none(len(p.y0))
        return Solved(p, stacked([p.y0] * len(wanted)), torch.ones_like(wanted, dtype=torch.bool))
    p = started(p, times)
    if mode and (found := solve_natively(p, mode, wanted, spans, rows)) is not None:
        return found
    eager = Eager()
    begun = prepared(eager.begin(p), gradient)
    refuse_problem(begun)
    if check_rows:
        check_independence(begun)
    failures, found, written = Failures(), None, None
    if begun.control.adaptive:
        inputs = begun.f.inputs
        if inputs is not None and not inputs.wanted:
            check_problem(gradient, begun)  # what training will refuse, evaluation refuses as well
            written = Written(begun.method, begun.y0, wanted)
        search = _search(begun, samples, spans, failures, written)
        boundaries, failed, found = search.boundaries(), search.failed, search.failure
        p.stats.samples = Counts(*search.counts())
        search.failure = None  # handed over: its traceback would hold the search
        if written is not None:
            check_clock(begun, boundaries[:, ~failed].cpu().numpy())
            reached = reached_by(wanted, search.t)
            return Solved(begun, written.finished(search.y), reached, found, failures.kinds)
    else:
        control: Any = begun.control
        boundaries, failed = control.rows(wanted), torch.zeros_like(wanted[0], dtype=torch.bool)
        p.stats.samples = Counts(
            (boundaries[1:] != boundaries[:-1]).sum(0), torch.zeros_like(wanted[0]).long()
        )
    check_clock(begun, boundaries[:, ~failed].cpu().numpy())
    places, home = Places.of(wanted, boundaries), Home.of(begun, samples, spans.start)
    if len(boundaries) == 1:  # every sample has failed at once
        return Solved(begun, stacked([p.y0] * len(wanted)), places.reached, found, failures.kinds)
    outcome = eager.finish(_numbered(home.started(begun), boundaries, home, places))
    p.stats.accepted, p.stats.rejected = (
        int(x.max()) for x in (p.stats.samples.accepted, p.stats.samples.rejected)
    )
    return Solved(begun, places.chosen(outcome.ys), places.reached, found, failures.kinds)


def _search(
    p: Problem, samples: Samples, spans: Spans, failures: Failures, written: Written | None
) -> Search:
    control = tolerant(p.control)
    rule = replace(control.step_rule, batch=1)
    reach = (0.5 * (spans.end - spans.start).abs()).clamp(max=control.dt_max)

    def guess(p: Problem, f0: Tensor) -> Tensor:
        start = samples.spread(spans.start)
        return rule.guessed_step(p.f, start, p.y0, f0, spans.sign, reach, p.method.order)

    watch = None if written is None else written.watch
    alone = p.log.on_failure != "raise"
    return Search.of(
        p, control, rule, samples, spans, guess=guess, explain=failures, alone=alone, watch=watch
    )


def _numbered(p: Problem, boundaries: Tensor, home: Home, places: Places) -> Problem:
    """The problem whose time is the number of the step."""
    times = boundaries.reshape(*boundaries.shape, *[1] * (p.y0.ndim - 1))
    method = Numbered(p.method, times, home, places)
    grid = Times(tuple(map(float, range(len(boundaries)))))
    return replace(p, method=method, ts=Times(tuple(places.numbers)), control=FixedSteps(grid=grid))
