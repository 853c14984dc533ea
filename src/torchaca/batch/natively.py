"""Batches whose samples are native solves, a few side by side in each thread, where f of a few has code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..compiled import CannotCompile
from ..core import Problem, tolerant
from ..errors import SolverError, warn
from ..executors import NATIVE, Eager, check_problem, prepared
from ..log import Samples as Counts
from ..loops.clock import check_clock, resolves
from ..loops.pace import Limits
from ..loops.rows import Samples, Spans
from ..native.rows import Ended, NativeRows, RowPasses
from ..torch_internals import pytree
from .clock import Clock
from .failures import Failures
from .gathering import Gathering
from .outputs import reached_by
from .run import Run
from .solved import Solved

EVENTS = (
    "events of samples are found in the loop in Python: use compile='steps', with a graph for each step, or leave out "
    "compile="
)
FIXED = (
    "{0}, with steps that are known beforehand, take the loop in Python: use compile='steps', with a graph for each "
    "step, or leave out compile="
)
AGAIN = "the steps of samples are found in C, and made again in Python for {0}"


@dataclass
class Stopped:
    """Where the samples are, as `Failures` asks for it."""

    p: Problem
    y: Tensor
    t: Tensor
    dt: Tensor
    rows: Samples
    spans: Spans
    limits: Limits
    index: Tensor | None = None


@dataclass
class Steps:
    """Which samples have `failed` in a search in C, and the failure of the first; as `run.Run.replayed` asks for it."""

    failed: Tensor
    failure: SolverError | None


def solve_natively(p: Problem, clock: Clock, spans: Spans, options: Any) -> Solved | None:
    """Solve natively, if that can be; else None, and `stats.passed_over` says why.

    Raises
    ------
    ValueError
        For compile="native" where it cannot be.
    SolverError
        If a sample cannot go on, and failures are to be raised.
    """
    mode = options.compile
    executor, again, reason = _asked(p, clock, options)
    if reason is not None and mode == NATIVE:
        raise ValueError(reason)
    before = dict(vars(p.stats))
    if reason is None:
        try:
            if again:
                return _made_again(p, clock, spans, options, executor, again)
            return _made(p, clock, spans, executor)
        except CannotCompile as cause:
            vars(p.stats).update(before)
            reason = str(cause)
    warn(f"compile={mode!r}: {reason}; this batch runs in the eager loop")
    p.stats.passed_over = {NATIVE: reason}
    return None


def _asked(p: Problem, clock: Clock, options: Any) -> tuple[NativeRows, str, str | None]:
    """The executor, for what its steps are made again, and why it does not take the problem, as far as is known yet."""
    executor = NativeRows(clock.wanted, pytree.tree_leaves(options.rows), clock.jumps)
    if options.events is not None:
        return executor, "", EVENTS
    wanted = {"dense output": p.dense, "derivatives with respect to times": clock.moves}
    again = next((what for what, so in wanted.items() if so), executor.elsewhere(p))
    reason = FIXED.format(again) if again and not p.control.adaptive else executor.refusal(p)
    return executor, again, reason


def why_not(p: Problem, clock: Clock, options: Any) -> tuple[str, str | None]:
    """Say for what the steps of a native solve would be made again, and why there would be none; None if there were."""
    executor, again, reason = _asked(p, clock, options)
    if reason is None:
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not again):
                executor.begin(p)
        except CannotCompile as cause:
            reason = str(cause)
    return again and AGAIN.format(again), reason


def _made(p: Problem, clock: Clock, spans: Spans, executor: NativeRows) -> Solved:
    """All of it in C.

    Raises
    ------
    CannotCompile
    """
    begun, ys, ended, passes = _run(p, clock, executor)
    _check_times(begun, clock, ended, passes)
    return _solved(begun, spans, clock.wanted, ys, ended)


def _run(p: Problem, clock: Clock, executor: NativeRows) -> tuple[Problem, Tensor, Ended, RowPasses]:
    gradient = p.gradient
    assert gradient is not None
    begun = prepared(executor.begin(p), gradient)
    check_problem(gradient, begun)
    control: Any = begun.control
    return begun, *executor.finish(begun, None if control.adaptive else control.rows(clock.wanted))


def _check_times(p: Problem, clock: Clock, ended: Ended, passes: RowPasses) -> None:
    farthest, shortest = clock.wanted.abs().max().item(), ended.shortest.min().item()
    if not resolves(p.y0.dtype, farthest, shortest):
        good = [i for i in range(len(p.y0)) if i not in ended.reasons]
        check_clock(p, passes.boundaries()[:, good])


def _made_again(
    p: Problem, clock: Clock, spans: Spans, options: Any, executor: NativeRows, again: str
) -> Solved:
    """The steps found in C, and made again under the gradient, as those of a search in Python.

    Raises
    ------
    CannotCompile
    """
    gradient = p.gradient
    assert gradient is not None
    with torch.no_grad():
        found, ys, ended, passes = _run(p, clock, executor)
    solved = _solved(found, spans, clock.wanted, ys, ended)
    if not (p.dense or clock.moves or executor.differentiated(p)):
        _check_times(found, clock, ended, passes)
        return solved
    p.stats.stepwise = AGAIN.format(again)
    p = replace(p, control=found.control)  # tolerances are raised, and told of, once
    begun = prepared(Eager().begin(p), gradient)
    samples = Samples(len(p.y0), p.y0.ndim)
    gathering = Gathering(begun, samples, spans, wanted=not options.deterministic)
    run = Run(begun, clock, samples, spans, gathering, Failures(solved.kinds))
    boundaries = torch.from_numpy(passes.boundaries())
    failed = torch.zeros(samples.size, dtype=torch.bool, device="cpu")
    failed[list(ended.reasons)] = True
    return run.replayed(boundaries, run.moving(boundaries), Steps(failed, solved.failure))


def _solved(p: Problem, spans: Spans, wanted: Tensor, ys: Tensor, ended: Ended) -> Solved:
    stats = p.stats
    stats.samples = Counts(ended.accepted, ended.rejected)
    stats.accepted, stats.rejected, stats.nfe = (
        int(x.max()) for x in (ended.accepted, ended.rejected, ended.calls)
    )
    stats.executor = NATIVE
    failures = Failures()
    failure = _explained(p, spans, ended, failures) if ended.reasons else None
    return Solved(p, ys, reached_by(wanted, ended.t), failure, failures.kinds)


def _explained(p: Problem, spans: Spans, ended: Ended, failures: Failures) -> SolverError:
    """The failure of the first samples that have failed for a reason.

    Raises
    ------
    SolverError
        It, if failures are to be raised.
    """
    control = tolerant(p.control)
    limits = Limits.over(control, p.y0, (spans.end - spans.start).abs(), spans.sign)
    at = Stopped(p, ended.y, ended.t, ended.dt, Samples(len(p.y0), p.y0.ndim), spans, limits)
    found: list[SolverError] = []
    for reason in dict.fromkeys(ended.reasons.values()):
        mask = torch.zeros(len(p.y0), dtype=torch.bool, device=p.y0.device)
        mask[[i for i, own in ended.reasons.items() if own == reason]] = True
        with torch.no_grad():
            found.append(failures(at, reason, mask))
    if p.log.on_failure == "raise":
        raise found[0]
    return found[0]
