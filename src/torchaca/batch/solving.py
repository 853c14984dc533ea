"""The samples of a batch solved: natively, from event to event, or by one search and one replay."""

from __future__ import annotations

from typing import Any

from ..core import Problem
from ..executors import EAGER, NATIVE, Eager, check_problem, prepared
from ..log import Samples as Counts
from ..loops.clock import check_clock
from ..loops.rows import Samples, Spans, beside
from .check import check_independence
from .clock import Clock
from .course import solve_through
from .door import refuse_outputs, refuse_problem, with_graphs
from .gathering import Gathering
from .natively import solve_natively, why_not
from .outputs import reached_by
from .run import Run, starting, unmoved
from .solved import Solved
from .times import SampleTimes
from .written import Written


def solve_samples(p: Problem, times: SampleTimes, options: Any) -> Solved:
    """Solve each sample of a batch between its own times, with the options of `torchaca.solve`.

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
    p, clock, samples, spans = _placed(p, times, options)
    still = not p.y0.numel() or bool((spans.start == spans.end).all())
    p = with_graphs(p, clock, options.compile)
    if (
        options.compile in (True, NATIVE)
        and not still
        and (found := solve_natively(p, clock, spans, options)) is not None
    ):
        return found
    if options.events is not None:
        return solve_through(p, clock, samples, options)
    if still:
        p.stats.samples = Counts.none(samples.size)
        return unmoved(p, clock)
    begun = prepared(Eager().begin(p, attaches=p.f.stepper is None), gradient)
    refuse_problem(begun)
    if options.check_rows:
        t, y = beside(spans, begun.y0.detach())
        check_independence(begun, samples.spread(t), y)
    gathering = Gathering(begun, samples, spans, wanted=not options.deterministic and begun.f.stepper is None)
    written, inputs = None, begun.f.inputs
    if inputs is not None and not inputs.wanted:
        check_problem(gradient, begun)  # what training will refuse, evaluation refuses as well
        if begun.control.adaptive and not p.dense:
            written = Written(begun.method, begun.y0, clock.wanted)
    run = Run(begun, clock, samples, spans, gathering)
    if not begun.control.adaptive:
        boundaries = run.fixed()
        return run.replayed(boundaries, run.moving(boundaries))
    search = run.search(written)
    boundaries = search.boundaries()
    p.stats.samples = Counts(*search.trials.counts())
    if written is None:
        return run.replayed(boundaries, run.moving(boundaries), search)
    check_clock(begun, boundaries[:, ~search.failed].cpu().numpy())
    reached = reached_by(clock.wanted, search.t)
    return Solved(begun, written.finished(search.y), reached, search.failure, run.failures.kinds)


def solver_of(p: Problem, times: SampleTimes, options: Any) -> tuple[str, dict[str, str], str]:
    """Say who would solve a batch, why those who were asked before would not, and what is made again in Python.

    Raises
    ------
    ValueError
        If nobody would.
    """
    p, clock, _, _ = _placed(p, times, options)
    mode = options.compile
    if mode in (True, NATIVE):
        again, reason = why_not(p, clock, options)
        return (NATIVE, {}, again) if reason is None else (EAGER, {NATIVE: reason}, "")
    with_graphs(p, clock, mode)
    return str(mode or EAGER), {}, ""


def _placed(p: Problem, times: SampleTimes, options: Any) -> tuple[Problem, Clock, Samples, Spans]:
    """The problem at the times of its samples, if it is one that this can do."""
    refuse_problem(p, joint=options.events is None)
    clock, samples = Clock.of(times, p), Samples(len(p.y0), p.y0.ndim)
    assert p.gradient is not None
    refuse_outputs(p.gradient, clock)
    spans = Spans.between(clock.wanted[0], clock.wanted[-1], clock.jumps)
    return starting(p, clock, samples, len(options.rows)), clock, samples, spans
