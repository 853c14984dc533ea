"""Adaptive checkpoint adjoint (ACA): keep the accepted states, replay one step at a time.

Zhuang, Dvornek, Li, Tatikonda, Papademetris, Duncan, "Adaptive Checkpoint Adjoint Method for Gradient Estimation
in Neural ODE", ICML 2020, algorithm 2. The forward pass keeps `(t, y)` of every accepted step and no graph. The
backward pass goes over the steps from the last to the first; each is computed again from its own state with its own
step size (no search, nothing re-integrated), differentiated, and forgotten. The result is the exact gradient of the
computed solution with step sizes held constant, at the memory of one step's graph and one state a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..control import FixedSteps
from ..core import Outcome, Problem, Step, Time, Times, combined, value
from ..effects import Mark
from ..errors import SolverError
from ..outputs import gather, inside
from ..params import Inputs, check_replay
from ..stepping import march, steps
from ..trace import Trace
from .checkpoints import Shelf, limit_of, parse_bytes, reverse, worth_keeping
from .observed import observed
from .refinement import Pull, check_setting, refined
from .replay import (
    Ambience,
    MaybeTensors,
    Parts,
    backward_pass,
    rebuilt,
    refuse_derivative,
    saved_tensors,
    totals_for,
    vjp,
    without_detours,
    without_graph,
)

THIRD = (
    "third derivatives through gradient='aca' are not available: use gradient='direct', which keeps the graph of all "
    "steps"
)


CHANGED = (
    "f gave other values in the backward pass than in the forward pass, so the replayed steps are not the solution's. "
    "Something that f reads was changed in between (an attribute, a buffer, an argument without gradient), or f is "
    "random in a way that was not noticed: keep it as it was until backward() is done, or use gradient='direct'"
)


@dataclass(frozen=True)
class ACA:
    """Adaptive checkpoint adjoint (Zhuang et al. 2020): the default gradient.

    Every setting gives the same gradient, at another price. With N accepted steps:

    ===================  =========================  ======================================
    checkpoints          states kept                steps computed again in backward
    ===================  =========================  ======================================
    "all" (the paper)    N                          N
    "none"               the graph of all N steps   0
    "sqrt"               about 3 sqrt(N)            2 N - (states kept)
    k                    at most k at a time        at most N + Revolve's optimum for k
    "binomial"           at most 2 + log2(N + 1)    at most N + N log2(N) / 2
    ===================  =========================  ======================================

    Revolve's optimum for k states is r N - C(k + r, k + 1), r being the least number with C(k + r, k) >= N.

    Parameters
    ----------
    checkpoints : "all", "none", "sqrt", "binomial" or int
    memory_budget : str or int, optional
        Bytes, "500MB", "2GiB": keep as many states as fit beside the graph of one step, whose size is measured in the
        first evaluation. Instead of `checkpoints`.
    stagewise : bool
        Hold the graph of one evaluation of f at a time instead of a whole step's, for one more evaluation a stage.
    grad_rtol : float, optional
        Refine the steps in the forward pass until the estimated relative error of the gradients is below it, and
        report the estimate in `stats.gradient_error`. For what that is and what it costs see "How do I know that the
        gradient is accurate?" in docs/gradients.md. `SolverError` of kind "gradient-error" where it cannot be.
    """

    checkpoints: str | int = "all"
    memory_budget: str | int | None = None
    stagewise: bool = False
    grad_rtol: float | None = None

    def __post_init__(self) -> None:
        named = isinstance(self.checkpoints, str) and self.checkpoints in ("all", "none", "sqrt", "binomial")
        counted = isinstance(self.checkpoints, int) and self.checkpoints >= 1
        if not named and not counted:
            raise ValueError(
                "checkpoints must be 'all', 'none', 'sqrt', 'binomial' or a number of states of at least 1, got "
                f"{self.checkpoints!r}"
            )
        if self.memory_budget is not None:
            parse_bytes(self.memory_budget)
            if self.checkpoints != "all":
                raise ValueError("give checkpoints or memory_budget, not both")
        if self.stagewise and self.checkpoints == "none":
            raise ValueError(
                "stagewise=True replays stages, checkpoints='none' replays nothing: drop one of them"
            )
        if self.grad_rtol is not None:
            check_setting(self.grad_rtol, self.checkpoints)

    @property
    def name(self) -> str:
        return "aca"

    @property
    def wants_inputs(self) -> bool:
        return self.checkpoints != "none"

    @property
    def wants_graph_size(self) -> bool:
        return self.memory_budget is not None

    def __call__(self, p: Problem, inputs: Inputs) -> Outcome:
        """Solve without a graph, checkpointing accepted states; see `torchaca.core.Gradient`."""
        if self.checkpoints == "none":
            return gather(p, observed(p))
        unreached = None
        if self.grad_rtol is not None:
            p, unreached = refined(p, self.grad_rtol, partial(self._rehearsed, inputs))
        run = Run(p, inputs, Ambience.here(p.y0), self._states(p, inputs), self.stagewise)
        ys, *bases = _Solve.apply(run, *Parts.of(p, inputs).flat())
        failure, run.failure = run.failure, None  # handed over: its traceback may hold ys, and ys the run
        boundaries = p.control.boundaries(p.ts, run.times) if p.dense else ()
        return Outcome(ys, failure or unreached, run.times, bases, boundaries)

    def _rehearsed(self, inputs: Inputs, p: Problem) -> tuple[Outcome, Pull]:
        """A solve without a graph, and the vector-Jacobian product of its outputs."""
        run = Run(p, inputs, Ambience.here(p.y0), self._states(p, inputs), self.stagewise)
        outcome, states = forward(run)
        tensors = Parts.of(p, inputs).flat()
        wanted = [i for i, x in enumerate(tensors) if x is not None and x.requires_grad]

        def pull(cotangent: Tensor) -> MaybeTensors:
            grads = sweep(run, states, (cotangent,), tensors)
            return [grads[i] for i in wanted]

        return outcome, pull

    def _states(self, p: Problem, inputs: Inputs) -> str | int:
        """What to keep: as said, or as many states as the budget leaves room for."""
        if self.memory_budget is None:
            return self.checkpoints
        rows = len(p.carrying.units(1.0)) if p.carrying else 1
        budget, state, stages = parse_bytes(self.memory_budget), rows * p.y0.nbytes, p.method.stages
        graphs = 1 if self.stagewise else stages
        replay = graphs * inputs.graph_bytes + 2 * stages * state
        fit = (budget - replay) // max(state, 1)
        if fit < 1:
            hint = "" if self.stagewise else ", or stagewise=True"
            raise ValueError(
                f"memory_budget {self.memory_budget!r} is less than the graph of one step ({replay:,} bytes) and one "
                f"state ({state:,} bytes): give more{hint}"
            )
        return fit


@dataclass
class Run:
    """One forward pass: what its backward needs beside the saved tensors. Holds none of the outputs."""

    problem: Problem
    inputs: Inputs
    ambience: Ambience
    checkpoints: str | int = "all"
    stagewise: bool = False
    kept: Sequence[int] = ()
    marks: list[Mark] = field(default_factory=list)
    times: Sequence[float] = ()
    failure: SolverError | None = None

    @property
    def n_steps(self) -> int:
        return len(self.times) - 1

    def reversed_states(self, saved: Sequence[Tensor], p: Problem) -> Iterator[tuple[int, Tensor]]:
        """`(n, state at the start of step n)` from the last step to the first.

        When a state is handed out, f's side effects are where they were at that moment of the forward pass.
        """

        def moment(n: int) -> None:
            if p.effects:
                p.effects.restore(self.marks[n])

        def advance(y: Tensor, a: int, b: int) -> Tensor:
            with torch.no_grad():
                for n in range(a, b):
                    moment(n)
                    y = p.handed(p.step(self.times[n], self.times[n + 1], y))
            return y

        kept = dict(zip(self.kept, saved, strict=True))
        for n, y in reverse(kept, self.n_steps, self.checkpoints, advance):
            moment(n)
            yield n, y

    def leaves(self, saved: Sequence[Any]) -> Parts:
        """Leaves for a replay, from the saved inputs."""
        # The captured tensors are those that f holds, not what saved-tensor hooks made of them.
        return replace(
            Parts.join(saved, len(self.inputs.args)), captured=self.inputs.captured + self.inputs.late
        ).leaves()


def taped(p: Problem, shelf: Shelf[Tensor], marks: list[Mark]) -> Iterator[Step]:
    """The steps of p; the states they start from go to the shelf, the moments of f's side effects to `marks`."""
    mark = p.effects.mark() if p.effects else None
    start = p.y0
    for n, step in enumerate(steps(p)):
        shelf.put(n, start)
        if mark is not None:
            marks.append(mark)
        yield step
        start = p.handed(step)
        mark = p.effects.mark() if p.effects else None


def reached(ts: Times, outcome: Outcome) -> list[float]:
    """The boundaries of the steps up to the last output that a failed solve reached."""
    last = ts.sign * ts.values[len(outcome.ys) - 1]
    before = [t for t in outcome.times if ts.sign * t < last]
    return list(outcome.times[: len(before) + 1])


def forward(run: Run) -> tuple[Outcome, list[Tensor]]:
    """The whole solve without a graph, noted in `run`, and the states that it keeps."""
    p = without_graph(run.problem)
    shelf = Shelf[Tensor](limit_of(run.checkpoints))
    outcome = gather(p, taped(p, shelf, run.marks))
    run.times, run.failure = outcome.times, outcome.failure
    if outcome.failure is not None and not p.dense:  # steps behind the last output have no gradient
        run.times = reached(p.ts, outcome)
    kept = [n for n in shelf.states if n < run.n_steps]
    run.kept = worth_keeping(kept, run.n_steps, run.checkpoints)
    return outcome, [shelf.states[n] for n in run.kept]


class _Solve(torch.autograd.Function):
    """Forward: the whole solve without a graph. Backward: the sweep over its checkpoints."""

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Any) -> Any:
        outcome, states = forward(run)
        ctx.run = run
        # Saved this way they can be offloaded by saved-tensor hooks, and changes in place are noticed.
        ctx.save_for_backward(*states, *run.inputs.without_late(tensors))
        ctx.set_materialize_grads(False)
        run.problem = replace(run.problem, f0=None)
        return (outcome.ys, *outcome.bases)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        run: Run = ctx.run
        saved = saved_tensors(ctx)
        states, tensors = saved[: len(run.kept)], (*saved[len(run.kept) :], *run.inputs.late)
        if all(g is None for g in cotangents):
            return (None, *([None] * len(tensors)))
        if torch.is_grad_enabled():
            return (None, *_Sweep.apply(run, len(cotangents), states, *cotangents, *tensors))
        return (None, *sweep(run, states, cotangents, tensors))


def sweep(
    run: Run, states: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
) -> MaybeTensors:
    """The backward pass: gradients of all inputs, in the order of `Parts`."""
    with backward_pass(run.problem, run.inputs, run.ambience):
        parts = run.leaves(tensors)
        backward = Backward(run, parts, cotangents[0], cotangents[1:])
        for n, state in run.reversed_states(states, backward.plain):
            backward.replay(n, state)
        grads = backward.finish()
    return grads


class Backward:
    """The sweep's state: the adjoint `lam` of the current state, and the totals of everything else.

    An interpolated output depends on f1 = f(t1, y1), which is also the first stage of the following step. Its
    cotangent is known beforehand (the interpolant is linear in f1) and is handed to that step's replay, so that
    outputs cost no evaluations.
    """

    def __init__(
        self, run: Run, parts: Parts, grad_ys: Tensor | None, grad_dense: Sequence[Tensor | None]
    ) -> None:
        self.run, self.parts = run, parts
        self.p = rebuilt(run.problem, parts, run.inputs)
        self.plain = without_graph(self.p)
        if run.stagewise:
            noisy = self.p.effects is not None and self.p.effects.random
            staged = partial(checkpoint, self.p.f, use_reentrant=False, preserve_rng_state=noisy)
            self.p = replace(self.p, f=staged)
        with torch.enable_grad():
            self.boundaries = list(self.p.control.boundaries(self.p.ts, run.times))
        self.ys_grad, self.dense_grad = grad_ys, grad_dense
        self.lam: Tensor | None = None
        self.wrt = [parts.ts, parts.grid, *parts.args, *parts.captured]
        self.totals = totals_for(len(self.wrt), (grad_ys, *grad_dense))
        self.time_grads: list[tuple[Tensor, Tensor]] = []
        self.keep = run.inputs.historic
        self.next_f0: Tensor | None = None
        self.next_state: Tensor | None = None
        self.allowed = torch.finfo(parts.y0.dtype).eps ** 0.5
        self.drift = torch.zeros((), device=parts.y0.device)
        self.ends = [self.p.ts.at_start(), *(self.p.ts.up_to(t) for t in run.times[1:])]

    def replay(self, n: int, state: Tensor) -> None:
        """One accepted step again, and its vector-Jacobian product."""
        with torch.enable_grad():
            y = state.detach().requires_grad_()
            t0, t1 = (self._leaf(t) for t in self.boundaries[n : n + 2])
            step = self.p.step(t0, t1, y)
            end = self.p.handed(step)
            outs, cotangents = [end], [torch.zeros_like(end) if self.lam is None else self.lam]
            self._outputs(n, step, outs, cotangents)
            carried = self._carried(n)
            if carried is not None and step.f0.requires_grad:
                outs.append(step.f0)
                cotangents.append(carried)
        times = [t if isinstance(t, Tensor) else None for t in (t0, t1)]
        if self.run.inputs.watched:
            span = f"from t = {value(t0):g} to {value(t1):g}"
            check_replay(outs, self.run.inputs, (y, *times, *self.wrt), span)
        self._compare(end)
        grad_y, *grads = vjp(outs, [y, *times, *self.wrt], cotangents, keep=self.keep)
        for boundary, grad in zip(self.boundaries[n : n + 2], grads[:2], strict=True):
            if grad is not None and isinstance(boundary, Tensor):
                self.time_grads.append((boundary, grad))
        if self.p.trace is not None:
            self._tell(self.p.trace, n, cotangents, grad_y, grads[4:])
        self.lam = grad_y if grad_y is not None else torch.zeros_like(state)
        self.totals.add(grads[2:])
        self.next_f0, self.next_state = step.f0.detach(), state

    def _tell(
        self, trace: Trace, n: int, cotangents: list[Tensor], grad_y: Tensor | None, grads: MaybeTensors
    ) -> None:
        trace.n_steps, tensors = self.run.n_steps, self.run.inputs.tensors
        span = (self.run.times[n], self.run.times[n + 1])
        trace.passed(n, span, cotangents, grad_y, list(zip(tensors, grads, strict=True)))

    def _compare(self, y1: Tensor) -> None:
        """Note how much further than rounding the replay's end is from the state that the forward pass found there."""
        if self.next_state is not None:
            off = torch.linalg.vector_norm(y1.detach() - self.next_state)
            size = torch.linalg.vector_norm(self.next_state)
            # One number, not one for each step: the backward pass holds nothing that grows with the steps.
            self.drift = torch.maximum(self.drift, torch.sub(off, size, alpha=self.allowed))

    @staticmethod
    def _leaf(t: Time) -> Time:
        return t.detach().requires_grad_() if isinstance(t, Tensor) else t

    def _outputs(self, n: int, step: Step, outs: list[Tensor], cotangents: list[Tensor]) -> None:
        """Add the step's outputs: an end state to the adjoint, the others to the product."""
        first, last = self.ends[n], self.ends[n + 1]
        if self.ys_grad is not None and last > first:
            within = self._inside(n)
            for i in range(first, last):
                if i not in within:
                    cotangents[0] = _onto_state(cotangents[0], self.ys_grad[i])
            if within:
                if self.next_f0 is not None and self._f1_weights(n) is not None:
                    step.give_f1(self.next_f0)
                outs.append(step.at([self.p.ts[i] for i in within]))
                cotangents.append(self.ys_grad[within])
        grad = self.dense_grad[n] if self.dense_grad else None
        if grad is not None:
            outs.append(step.basis())
            cotangents.append(grad)

    def _inside(self, n: int) -> list[int]:
        """The outputs on the interpolant of step n."""
        return inside(self.p.ts, self.boundaries[n + 1], self.ends[n], self.ends[n + 1])

    def _f1_weights(self, n: int) -> Tensor | None:
        """d outputs / d f1 of the outputs inside step n, where f1 is the first stage of step n + 1, else None."""
        within = self._inside(n)
        last = n + 1 == self.run.n_steps
        if not within or last or self.dense_grad or not self.p.reuses(self.boundaries[n + 1]):
            return None
        times = [self.p.ts[i] for i in within]
        return self.p.method.f1_weights(self.boundaries[n], self.boundaries[n + 1], times)

    def _carried(self, n: int) -> Tensor | None:
        """The cotangent that the outputs inside step n - 1 put on the first stage of step n."""
        weights = self._f1_weights(n - 1) if n > 0 and self.ys_grad is not None else None
        if weights is None or self.ys_grad is None:
            return None
        grads = self.ys_grad[self._inside(n - 1)]
        return combined(weights, grads)

    def finish(self) -> MaybeTensors:
        """Gradients of y0, the times, the grid, args and captured tensors.

        Raises
        ------
        RuntimeError
            Where f gave other values than in the forward pass. After fixed steps on a device that is not the host,
            which this would have to wait for, all gradients are nan instead.
        """
        lam = torch.zeros_like(self.parts.y0, requires_grad=False) if self.lam is None else self.lam
        drifted = self.drift > 0
        waits = drifted.device.type != "cpu" and isinstance(self.p.control, FixedSteps)
        if not waits and drifted.item():
            raise RuntimeError(CHANGED)
        if self.ys_grad is not None:
            for i in range(self.ends[0]):
                lam = lam + self.ys_grad[i]
        if self.time_grads:
            boundaries, grads = zip(*self.time_grads, strict=True)
            self.totals.add(vjp(boundaries, self.wrt[:2], grads, keep=True))
        others = len(self.wrt) - len(self.parts.captured)
        sums = self.totals.sums
        grads = [lam, *sums[:others], *without_detours(self.parts.captured, sums[others:])]
        return nan_where(drifted, grads) if waits else grads


def nan_where(wrong: Tensor, grads: Sequence[Tensor | None]) -> MaybeTensors:
    """The gradients, or nan in all of them where `wrong`, 0-dim, is true; without reading it."""
    return [None if g is None else torch.where(wrong.to(g.device), math.nan, g) for g in grads]


def _onto_state(cotangent: Tensor, grad: Tensor) -> Tensor:
    """`grad` of the state added to the cotangent of it, or of a carry, whose first row it is."""
    if cotangent.shape == grad.shape:
        return cotangent + grad
    return torch.cat([cotangent[:1] + grad, cotangent[1:]])


class _Sweep(torch.autograd.Function):
    """The sweep as a function that can be differentiated once more: second derivatives, exact.

    Its backward differentiates all accepted steps in one graph (the memory of `direct`), on the recorded times.
    """

    @staticmethod
    def forward(ctx: Any, run: Run, n_cotangents: int, states: Sequence[Tensor], *tensors: Any) -> Any:
        ctx.run, ctx.n = run, n_cotangents
        ctx.save_for_backward(*run.inputs.without_late(tensors))
        ctx.set_materialize_grads(False)
        return tuple(sweep(run, states, tensors[:n_cotangents], tensors[n_cotangents:]))

    @staticmethod
    def backward(ctx: Any, *seconds: Any) -> Any:
        run: Run = ctx.run
        saved = saved_tensors(ctx)
        cotangents, tensors = saved[: ctx.n], (*saved[ctx.n :], *run.inputs.late)
        create_graph = torch.is_grad_enabled()
        with backward_pass(run.problem, run.inputs, run.ambience), torch.enable_grad():
            parts = run.leaves(tensors)
            own = [None if g is None else g.detach().requires_grad_() for g in cotangents]
            p = rebuilt(run.problem, parts, run.inputs)
            outcome = gather(p, march(p, p.control.boundaries(p.ts, run.times)))
            pairs = [
                (out, g) for out, g in zip((outcome.ys, *outcome.bases), own, strict=True) if g is not None
            ]
            firsts = _first_order(pairs, parts)
            wanted = [
                (first, v)
                for first, v in zip(firsts, seconds, strict=True)
                if first is not None and v is not None and first.requires_grad
            ]
            wrt = [*own, *parts.flat()]
            if not wanted:
                return (None, None, None, *([None] * len(wrt)))
            keep = run.inputs.historic
            grads = vjp([first for first, _ in wanted], wrt, [v for _, v in wanted], keep=keep)
        others = len(grads) - len(parts.captured)
        grads = [*grads[:others], *without_detours(parts.captured, grads[others:])]
        if create_graph:
            grads = refuse_derivative(grads, (*saved, *seconds), THIRD)
        return (None, None, None, *grads)


def _first_order(pairs: Sequence[tuple[Tensor, Tensor]], parts: Parts) -> MaybeTensors:
    """The gradients that the sweep returned, once more, with a graph."""
    wrt = parts.flat()
    present = [x for x in wrt if x is not None]
    grads = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], present, [g for _, g in pairs], None, True, allow_unused=True
        )
    )
    totals = [None if x is None else next(grads) for x in wrt]
    others = len(totals) - len(parts.captured)
    return [*totals[:others], *without_detours(parts.captured, totals[others:], create_graph=True)]
