"""What a solve returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batch import SampleDense, SamplePieces, SampleTimes, Solved
from .core import Control, Outcome, Problem, Stats, Times, tolerant
from .dense import DenseOutput, detached
from .errors import SolverError, shorten
from .events import Course, Occurrences, Pieces, occurrences
from .going_on import Ended, State
from .layout import joined, order_cotangent
from .log import Samples
from .norms import each
from .state import Structure
from .torch_internals import is_functorch_wrapped_tensor, pytree, transformed
from .trace import Trace


@dataclass(frozen=True)
class Solution:
    """What a solve returns.

    Attributes
    ----------
    ts : Tensor
        `(n,)`, the output times; n = len(t), fewer only after a failure with `on_failure="status"`.
    ys : Tensor or nested tensors
        `(n, *y0.shape)` in the structure of y0; `ys[0]` is y0.
    stats : Stats
        Evaluations and steps; the backward counts are filled in by `backward()`.
    steps : tuple of float
        The times between which the solve stepped, from t[0] on.
    failure : SolverError or None
        Why the solve stopped early, if `on_failure` is not "raise".
    dense : DenseOutput or None
        With `dense=True`: what `solution(t)` and `solution.derivative(t)` ask; it can be saved by itself.
    trace : Trace or None
        With `debug=True`: the steps of the last backward pass, `trace.ts`, `trace.norms`, `trace.points`.
    settings : str
        The method, the tolerances and the gradient, in words.
    events : tuple of Occurrences
        For each of `events=`, in their order: when it happened, and the states just before.
    mask : Tensor or None
        With `batch=1`: `(n, B)`, which outputs are real. The others repeat the sample's last state: those behind the
        end of its own times, or a terminal event, and what it did not reach. `ts` is `(n, B)` if samples have times of
        their own, padded with nan, or the time of the event.
    kinds : tuple of str
        With `batch=1`: for each sample the kind of its failure, or an empty string.
    """

    ts: Tensor
    ys: Any
    stats: Stats
    steps: tuple[float, ...] = ()
    failure: SolverError | None = None
    dense: DenseOutput | Pieces | SampleDense | SamplePieces | None = None
    trace: Trace | None = None
    settings: str = ""
    events: tuple[Occurrences, ...] = ()
    ended: Ended | None = None
    mask: Tensor | None = None
    kinds: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return _describe(self)

    @property
    def status(self) -> str | tuple[str, ...]:
        """'success', 'event' after a terminal one, or the kind of failure; with `batch=1` one for each sample.

        'non-finite' where a fixed-step solve ran into nan or inf. Reads the device, which a fixed-step solve itself
        never does.
        """
        if self.mask is not None:
            return self._statuses()
        if self.failure is not None:
            return self.failure.kind
        if any(event.terminal and len(event.t) for event in self.events):
            return "event"
        leaves = pytree.tree_leaves(self.ys)
        return "success" if all(bool(torch.isfinite(leaf).all()) for leaf in leaves) else "non-finite"

    @property
    def state(self) -> State:
        """Where the solve ended: `solve(f, solution.state, t)` goes on, with the step size that came next.

        Differentiable; `state.detach()` ends the graph. It can be pickled and saved.

        Raises
        ------
        ValueError
            If there is nothing to go on from.
        """
        hidden = any(map(is_functorch_wrapped_tensor, pytree.tree_leaves(self.ys)))
        if self.ended is None or hidden:
            raise ValueError(
                "this solution has no state to go on from: the solve failed"
                if self.failure is not None
                else "a solve inside of a torch.func transform, or unrolled into the graph of torch.compile, has no "
                "state to go on from: solve outside of it"
            )
        y = pytree.tree_map(lambda ys: ys[-1], self.ys) if self.ended.y is None else self.ended.y
        return self.ended.state(self.steps[-1], y, self.stats)

    def _statuses(self) -> tuple[str, ...]:
        leaves = [each(torch.isfinite(x), 2).all(-1).all(0) for x in pytree.tree_leaves(self.ys)]
        finite = torch.stack(leaves).all(0).tolist()
        words = ["success" if so else "non-finite" for so in finite]
        ends = [event.count.tolist() for event in self.events if event.terminal and event.count is not None]
        for counts in ends:
            words = ["event" if n else word for n, word in zip(counts, words, strict=True)]
        return tuple(kind or word for kind, word in zip(self.kinds, words, strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> Solution:
        """The values; a graph belongs to the original alone."""
        return replace(
            self,
            ts=self.ts.detach().clone(),
            ys=detached(self.ys),
            stats=deepcopy(self.stats, memo),
            ended=deepcopy(self.ended, memo),
            dense=deepcopy(self.dense, memo),
            events=tuple(event.detached() for event in self.events),
        )

    def __call__(self, t: Any) -> Any:
        """The state at any time of the solve, `(*t.shape, *y0.shape)`; needs `dense=True`."""
        if self.dense is None:
            raise ValueError("this solution has no dense output: solve with dense=True")
        return self.dense(t)

    def derivative(self, t: Any) -> Any:
        """dy/dt of `solution(t)` at any time of the solve, `(*t.shape, *y0.shape)`; needs `dense=True`."""
        if self.dense is None:
            raise ValueError("this solution has no dense output: solve with dense=True")
        return self.dense.derivative(t)

    @staticmethod
    def of(
        p: Problem,
        outcome: Outcome,
        structure: Structure,
        given_ts: Any,
        course: Course | None = None,
        start: State | None = None,
    ) -> Solution:
        """The solution that a problem's outcome is, in the structure of the user's state.

        Parameters
        ----------
        given_ts
            The times as they were given.
        course : Course, optional
            The events on the way.
        start : State
            Where the solve went on, whose costs are added.

        Raises
        ------
        SolverError
            The failure of the outcome, if that is to be raised.
        """
        failure, ys, n = outcome.failure, outcome.ys, len(outcome.ts.values)
        kind = structure if p.save is None or p.save.kind is None else p.save.kind
        end = None if outcome.end is None else structure.unpack(outcome.end)
        grid = getattr(p.control, "since", None)
        known = p.method.name, p.control.adaptive, p.ts.values[0], grid, p.log.pace, start, outcome.carry, end
        ended = None if failure is not None else Ended(*known)
        if start is not None:
            start.add_to(p.stats)
        ts, times, settings = _output_times(given_ts, p.ts.values, p), tuple(outcome.times), _settings(p)
        events = () if course is None else occurrences(course, structure, p.y0, ts)
        if course is not None and course.end is not None:
            ts = torch.cat([ts[: n - 1], course.end.to(ts)[None]])
        if ys.requires_grad and p.save is None and not transformed():
            order_cotangent(ys, p.y0)
        if failure is not None:
            if p.log.on_failure == "raise":
                reached = ts[:n].detach(), kind.unpack(ys.detach()), p.stats, times
                happened = tuple(event.detached() for event in events)
                failure.reached = partial(Solution, *reached, settings=settings, events=happened)
                outcome.failure = None  # no frame may hold the error whose traceback holds the frame
                try:
                    raise failure.with_traceback(None)  # nor the frames of the search, with their states
                finally:
                    del failure
            if p.log.on_failure == "nan":
                ys = joined([ys, ys.new_full((len(p.ts) - n, *ys.shape[1:]), math.nan)], ys[0])
                n = len(p.ts)
        dense = None
        if p.dense and course is None:
            boundaries = outcome.boundaries or p.control.boundaries(p.ts, outcome.times)
            dense = DenseOutput(p.method, structure, boundaries, outcome.bases, p.y0)
        elif course is not None and p.dense:
            dense = course.dense(p, structure)
        ys = ys if kind.plain else kind.unpack(ys)
        return Solution(ts[:n], ys, p.stats, times, failure, dense, p.trace, settings, events, ended)

    def of_batch(self, size: int, ts: Times, reached: int) -> Solution:
        """The solution of a batch whose samples have had all steps in common, and of whose outputs so many are reached.

        The others repeat the last of these, if failures are told by `status`.
        """
        n, failure, rows = len(self.ts), self.failure, len(ts)
        mask = torch.zeros(rows, size, dtype=torch.bool, device=pytree.tree_leaves(self.ys)[0].device)
        mask[:reached] = True
        counts = torch.ones(size, dtype=torch.int64, device="cpu")
        self.stats.samples = Samples(self.stats.accepted * counts, self.stats.rejected * counts)
        ys, times = self.ys, self.ts
        if n < rows:
            ys = pytree.tree_map(lambda x: torch.cat([x, x[-1:].expand(rows - n, *x.shape[1:])]), ys)
            later = torch.tensor(ts.values[n:], dtype=torch.float64, device="cpu")
            times = torch.cat([times, later.to(times)])
        kinds = ("" if failure is None else failure.kind,) * size
        return replace(self, ts=times, ys=ys, mask=mask, kinds=kinds)

    @staticmethod
    def of_samples(solved: Solved, structure: Structure, given_ts: Any, times: SampleTimes) -> Solution:
        """The solution that a batch has come to, in the structure of the user's state.

        Raises
        ------
        SolverError
            The failure of a sample, if that is to be raised.
        """
        p, ys, failure, real = solved.p, solved.ys, solved.failure, times.real.to(solved.ys.device)
        mask = real & solved.reached
        n, own = mask.shape[1], solved.kinds
        kinds = tuple(own.get(i, "") for i in range(n)) if own else ("",) * n
        if p.log.on_failure == "nan" and failure is not None:
            failed = torch.tensor([kind != "" for kind in kinds], device=mask.device)
            missed = (real & ~mask & failed).reshape(*mask.shape, *[1] * (ys.ndim - 2))
            ys = torch.where(missed, math.nan, ys)
        ts = None if times.given is None else solved.ending(times.given)
        ts = _output_times(given_ts, times.shared.values if times.shared else (), p) if ts is None else ts
        events = tuple(replace(event, t=event.t.to(ts)) for event in solved.events)
        ys = ys if structure.plain else structure.unpack(ys)
        return Solution(
            ts, ys, p.stats, (), failure, solved.dense, p.trace, _settings(p), events, mask=mask, kinds=kinds
        )


def _output_times(given: Any, values: Sequence[float], p: Problem) -> Tensor:
    """The times as they were given; numbers in f's dtype of time, or float64 where that cannot tell them apart."""
    if isinstance(given, Tensor):
        return given
    dtype = p.y0.dtype.to_real()
    if dtype == torch.float32 and len(set(np.asarray(values, np.float32).tolist())) < len(set(values)):
        dtype = torch.float64
    return torch.tensor(values, dtype=dtype, device=p.y0.device)


def _settings(p: Problem) -> str:
    """The method, its tolerances and the gradient in words."""
    assert p.gradient is not None
    return f"{p.method.name}, {_tolerances(p.control)}, gradient {p.gradient.name!r}"


def _tolerances(control: Control) -> str:
    if not control.adaptive:
        return "fixed steps"
    own = tolerant(control)
    if own is None:
        return f"steps of {type(control).__name__}"
    pairs = (("rtol", own.rtol), ("atol", own.atol))
    return ", ".join(
        f"{name} per component" if isinstance(x, Tensor) else f"{name} {x:g}" for name, x in pairs
    )


def _describe(solution: Solution) -> str:
    """Say in at most 600 characters how a solve went and what it has, without its numbers."""
    stats = solution.stats
    steps = f"{stats.accepted} steps" + (f" ({stats.rejected} rejected)" if stats.rejected else "")
    evaluations = f"{stats.nfe} evaluations" + (
        f" (+ {stats.nfe_backward} backward)" if stats.nfe_backward else ""
    )
    leaves = pytree.tree_leaves(solution.ys)
    hidden = any(x.is_meta or is_functorch_wrapped_tensor(x) for x in leaves)
    parts = [
        *([shorten(solution.settings, 150)[1:-1]] if solution.settings else []),
        "status unknown" if hidden else f"status {solution.status!r}",
        steps,
        evaluations,
        f"ts {tuple(solution.ts.shape)}",
        f"ys {shorten(pytree.tree_map(lambda x: tuple(x.shape), solution.ys), 250)}",
        *(["dense"] if solution.dense is not None else []),
    ]
    return f"Solution({'; '.join(parts)})"
