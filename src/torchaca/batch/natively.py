"""Batches whose samples are native solves, a few side by side in each thread, where f of a few has code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..compiled import CannotCompile
from ..core import Problem, tolerant
from ..errors import SolverError, warn
from ..executors import NATIVE, check_problem, prepared
from ..log import Samples as Counts
from ..loops.clock import check_clock, resolves
from ..loops.pace import Limits
from ..loops.rows import Samples, Spans
from ..native.rows import Ended, NativeRows
from ..torch_internals import pytree
from .clock import Clock
from .failures import Failures
from .outputs import reached_by
from .solved import Solved

WHOLE = (
    "{0} of samples are made in the loop in Python, from the steps that all of them have taken: use compile='steps', "
    "with a graph for each step, or leave out compile="
)


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


def solve_natively(p: Problem, clock: Clock, spans: Spans, options: Any) -> Solved | None:
    """Solve natively, if that can be; else None, and `stats.passed_over` says why.

    Raises
    ------
    ValueError
        For compile="native" where it cannot be.
    SolverError
        If a sample cannot go on, and failures are to be raised.
    """
    gradient, wanted, mode = p.gradient, clock.wanted, options.compile
    assert gradient is not None
    executor, reason = _asked(p, clock, options)
    if reason is not None and mode == NATIVE:
        raise ValueError(reason)
    before = dict(vars(p.stats))
    if reason is None:
        try:
            begun = prepared(executor.begin(p), gradient)
            check_problem(gradient, begun)
            control: Any = begun.control
            boundaries = None if control.adaptive else control.rows(wanted)
            ys, ended, passes = executor.finish(begun, boundaries)
        except CannotCompile as cause:
            vars(p.stats).update(before)
            reason = str(cause)
        else:
            farthest, shortest = wanted.abs().max().item(), ended.shortest.min().item()
            if not resolves(p.y0.dtype, farthest, shortest):
                good = [i for i in range(len(p.y0)) if i not in ended.reasons]
                check_clock(begun, passes.boundaries()[:, good])
            return _solved(begun, spans, wanted, ys, ended)
    warn(f"compile={mode!r}: {reason}; this batch runs in the eager loop")
    p.stats.passed_over = {NATIVE: reason}
    return None


def _asked(p: Problem, clock: Clock, options: Any) -> tuple[NativeRows, str | None]:
    """The executor, and why it does not take the problem, as far as can be said before anything is evaluated."""
    executor = NativeRows(clock.wanted, pytree.tree_leaves(options.rows), clock.jumps)
    elsewhere = {
        "events": options.events is not None,
        "dense output": p.dense,
        "derivatives with respect to times": clock.moves,
    }
    what = next((what for what, wanted in elsewhere.items() if wanted), None)
    return executor, executor.refusal(p) if what is None else WHOLE.format(what)


def why_not(p: Problem, clock: Clock, options: Any) -> str | None:
    """Say why a batch would not be solved natively; None if it would."""
    executor, reason = _asked(p, clock, options)
    if reason is not None:
        return reason
    try:
        executor.begin(p)
    except CannotCompile as cause:
        return str(cause)
    return None


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
