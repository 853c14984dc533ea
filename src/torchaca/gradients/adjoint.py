"""The continuous adjoint: integrate the adjoint equation backwards in time ("optimise, then discretise").

Chen, Rubanova, Bettencourt, Duvenaud, "Neural Ordinary Differential Equations", NeurIPS 2018, appendix B; the
semi-norm is Kidger, Chen, Lyons, "'Hey, that's not an ODE': Faster ODE Adjoints via Seminorms", ICML 2021.

Keeps the outputs only. The state is integrated backwards along with the adjoint and drifts from the forward
trajectory, so the gradient is right up to an error that the tolerances influence but do not bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..control import Adaptive, FixedSteps
from ..core import Method, Outcome, Problem, Stats, Time, Times, Watcher, value
from ..errors import SolverError
from ..outputs import gather
from ..params import Inputs, check_replay
from ..state import rms, structure_of
from ..stepping import steps
from .replay import (
    Ambience,
    MaybeTensors,
    Parts,
    backward_pass,
    rebuilt,
    refuse_derivative,
    vjp,
    without_detours,
    without_graph,
)

SECOND = (
    "second derivatives through gradient='adjoint' are not available: use gradient='aca' (exact, little memory) or "
    "'direct'"
)
DENSE = (
    "dense output has no derivative with gradient='adjoint': put these times into t, or use gradient='aca'"
)


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint (Chen et al. 2018).

    Parameters
    ----------
    rtol, atol : float or Tensor, optional
        Tolerances of the backward integration; by default the forward ones.
    norm : "full", "semi" or callable
        Which parts of the backward state the step size control looks at: state, adjoint and parameter gradients
        ("full", the largest RMS among them), or state and adjoint only ("semi", Kidger et al. 2021). A callable gets
        the tuple `(t, y, adjoint of y, *parameter gradients)`.
    method : Method, optional
        For the backward integration; by default the forward one.
    control : Adaptive, FixedSteps or callable, optional
        For the backward integration; by default the forward one with the tolerances above. A callable gets the
        start and the end of the stretch between two outputs.
    watch : callable, optional
        Called at the backward integration's trials; see `torchaca.core.Watcher`.
    """

    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    norm: str | Callable[[Any], Tensor] = "full"
    method: Method | None = None
    control: Adaptive | FixedSteps | Callable[[float, float], FixedSteps] | None = None
    watch: Watcher | None = None
    name: str = "adjoint"
    wants_graph_size: bool = False
    wants_inputs: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.norm, str) and self.norm not in ("full", "semi"):
            raise ValueError(f"unknown norm {self.norm!r} of the adjoint: use 'full', 'semi' or a callable")

    def __call__(self, p: Problem, inputs: Inputs) -> Outcome:
        """Solve without a graph, keeping the outputs; see `torchaca.core.Gradient`."""
        if (
            (self.rtol is not None or self.atol is not None)
            and isinstance(p.control, FixedSteps)
            and not self.control
        ):
            raise ValueError(
                "Adjoint(rtol=, atol=) has no effect on fixed steps: drop them, or give control=Adaptive(...)"
            )
        if p.effects and p.effects.random:
            raise ValueError(
                "f draws random numbers (Dropout?): a backward integration would draw others. Use "
                "gradient='aca', which replays the same ones, or model.eval()"
            )
        if (
            isinstance(p.control, FixedSteps)
            and p.control.grid is not None
            and p.control.grid.tensor is not None
        ):
            raise ValueError(
                "gradient='adjoint' has no derivative with respect to grid: pass grid.detach(), or use gradient='aca'"
            )
        run = Run(self, p, inputs, Ambience.here(p.y0))
        ys, *bases = _Solve.apply(run, *Parts.of(p, inputs).flat())
        if ys.requires_grad:
            bases = refuse_derivative(bases, (ys,), DENSE)
        failure, run.failure = (
            run.failure,
            None,
        )  # handed over: its traceback may come to hold ys, and ys the run
        return Outcome(ys, failure, run.times, bases)


@dataclass
class Run:
    """One forward pass: what its backward needs beside the saved tensors."""

    settings: Adjoint
    problem: Problem
    inputs: Inputs
    ambience: Ambience
    times: Sequence[float] = ()
    failure: SolverError | None = None


class _Solve(torch.autograd.Function):
    """Forward: the whole solve without a graph. Backward: the adjoint equation, from output to output."""

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Any) -> Any:
        p = without_graph(run.problem)
        outcome = gather(p, steps(p))
        ctx.run = run
        ctx.save_for_backward(outcome.ys, *run.inputs.without_late(tensors))
        run.times, run.failure = outcome.times, outcome.failure
        run.problem = replace(run.problem, f0=None)
        return (outcome.ys, *outcome.bases)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        run: Run = ctx.run
        grad_ys: Tensor = cotangents[0]
        ys, *tensors = (*ctx.saved_tensors, *run.inputs.late)
        create_graph = torch.is_grad_enabled()
        parts = replace(Parts.join(tensors, len(run.inputs.args)), captured=run.inputs.captured)
        with torch.no_grad(), backward_pass(run.problem, run.inputs, run.ambience, integrates=True):
            try:
                grads = _integrated(run, parts, ys.detach(), grad_ys.detach())
            except LateUseError:
                parts = replace(parts, captured=run.inputs.captured + run.inputs.late)
                grads = _integrated(run, parts, ys.detach(), grad_ys.detach())
        grads += [None] * (len(tensors) - len(grads))
        return (None, *(refuse_derivative(grads, (*tensors, grad_ys), SECOND) if create_graph else grads))


class LateUseError(Exception):
    """f used a tensor in the backward pass that it had not used at t0."""


def _integrated(run: Run, parts: Parts, ys: Tensor, grad_ys: Tensor) -> MaybeTensors:
    """One backward integration; its steps are counted, its failure says that it was the backward pass."""
    backward = Backward(run, parts)
    try:
        return backward.integrate(ys, grad_ys)
    except SolverError as error:
        error.backward = True
        raise
    finally:
        run.problem.stats.accepted += backward.stats.accepted
        run.problem.stats.rejected += backward.stats.rejected


class Backward:
    """The integration of `(y, lambda, dL/dtheta)` from the last output back to the first.

    With `lambda` the gradient of the loss with respect to y(t): lambda' = -(df/dy)^T lambda and
    (dL/dtheta)' = -(df/dtheta)^T lambda, every output adding its own gradient to lambda on the way.
    """

    def __init__(self, run: Run, parts: Parts) -> None:
        self.run, self.stats = run, Stats()
        leaves = parts.leaves()
        self.p = without_graph(rebuilt(run.problem, leaves, run.inputs))
        self.parts, self.wrt = leaves, [*leaves.args, *leaves.captured]
        self.keep = run.inputs.historic
        # Leaves that f reaches are a part of the backward state only if f turns out to use them.
        self.late = run.inputs.late if len(parts.captured) == len(run.inputs.captured) else ()
        self.structure = structure_of(
            (leaves.y0.detach(), leaves.y0.detach(), *(x.detach() for x in self.wrt))
        )
        self.dt: float | None = None

    def integrate(self, ys: Tensor, grad_ys: Tensor) -> MaybeTensors:
        """The gradients of all inputs, in the order of `Parts`."""
        values = self.p.ts.values
        lam, totals = grad_ys[-1], [torch.zeros_like(x) for x in self.wrt]
        grad_t = torch.zeros(len(values), dtype=torch.float64) if self.parts.ts is not None else None
        for i in range(len(ys) - 1, 0, -1):
            if grad_t is not None:
                grad_t[i] = self._slope(values[i], ys[i], grad_ys[i])
            if values[i] != values[i - 1]:
                lam, totals = self._segment(values[i], values[i - 1], ys[i], lam, totals)
            if grad_t is not None and i == 1:
                grad_t[0] = -self._slope(values[0], ys[0], lam)
            lam = lam + grad_ys[i - 1]
        if self.parts.ts is not None and grad_t is not None:
            grad_t = grad_t.to(self.parts.ts)
        n_args = len(self.parts.args)
        captured = without_detours(self.parts.captured, list(totals[n_args:]))
        return [lam, grad_t, None, *totals[:n_args], *captured]

    def _slope(self, t: float, y: Tensor, cotangent: Tensor) -> Tensor:
        """The derivative of the loss as the time of y moves."""
        return (cotangent.conj() * self.p.f(t, y)).sum().real.to("cpu", torch.float64)

    def _segment(
        self, start: float, end: float, y: Tensor, lam: Tensor, totals: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The adjoint and the totals at `end`, integrated from `start`, where the state is `y`."""
        settings, p = self.run.settings, self.p
        problem = Problem(
            f=self._augmented,
            y0=self.structure.pack((y, lam, *totals)),
            ts=Times((start, end)),
            method=settings.method or p.method,
            control=self._control(start, end),
            stats=self.stats,
            jumps=p.jumps,
            one_sided=p.one_sided,
            watch=settings.watch,
        )
        sizes: list[float] = []
        z = problem.y0
        for step in steps(problem):
            z = step.y1
            sizes.append(abs(value(step.t1) - value(step.t0)))
        # The last step was cut to land here: the next segment starts with the size before the cut.
        self.dt = max(*sizes[-2:], self.dt or 0.0) if len(sizes) < 3 else max(sizes[-2:])
        _, lam, *totals = self.structure.unpack(z)
        return lam, totals

    def _control(self, start: float, end: float) -> Adaptive | FixedSteps:
        """The forward control, over the segment and on the backward state."""
        settings, control = self.run.settings, self.run.settings.control or self.p.control
        if not isinstance(control, (Adaptive, FixedSteps)):
            return control(start, end)
        if isinstance(control, Adaptive):
            return replace(
                control,
                rtol=self._tolerance(control.rtol if settings.rtol is None else settings.rtol),
                atol=self._tolerance(control.atol if settings.atol is None else settings.atol),
                dt0=self.dt if self.dt is not None else control.dt0,
                norm=self._norm,
            )
        if control is settings.control:
            return control
        low, high = min(start, end), max(start, end)
        grid = [value(t) for t in control.times(self.p.ts) if low < value(t) < high]
        return FixedSteps(grid=Times((start, *reversed(grid), end)))

    def _tolerance(self, tolerance: float | Tensor) -> float | Tensor:
        """A tolerance of y, for y, lambda (the same) and the totals (the smallest of it)."""
        if not isinstance(tolerance, Tensor):
            return tolerance
        own = tolerance.expand_as(self.parts.y0)
        rest = [own.min().expand(x.shape) for x in self.wrt]
        return self.structure.pack((own, own, *rest)).real

    def _norm(self, scaled: Tensor) -> Tensor:
        norm = self.run.settings.norm
        if callable(norm):
            zero = torch.zeros((), dtype=scaled.dtype.to_real(), device=scaled.device)
            return norm((zero, *self.structure.unpack(scaled)))
        parts = scaled.split([leaf.stop - leaf.start for leaf in self.structure.leaves])
        if norm == "semi":
            parts = parts[:2]
        return torch.stack([rms(part) for part in parts]).max()

    def _augmented(self, t: Time, z: Tensor, nudge: Time | None = None) -> Tensor:
        """The right-hand side of the backward integration, packed."""
        y, lam, *_ = self.structure.unpack(z)
        f: Any = self.p.f
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            k = f(t, y, nudge) if nudge is not None else f(t, y)
        grads: MaybeTensors = [None] * (1 + len(self.wrt))
        if k.requires_grad:
            if self.run.inputs.watched:
                check_replay([k], self.run.inputs, (y, *self.wrt), f"backwards through t = {value(t):g}")
            grads = vjp([k], [y, *self.wrt, *self.late], [lam.to(k.dtype)], keep=self.keep)
            known = 1 + len(self.wrt)
            if any(grad is not None for grad in grads[known:]):
                raise LateUseError
            grads = grads[:known]
        zipped = zip(grads, [y, *self.wrt], strict=True)
        return self.structure.pack(
            (k.detach(), *(torch.zeros_like(x) if g is None else -g for g, x in zipped))
        )
