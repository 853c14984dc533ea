"""Reversible backpropagation: undo one step at a time, so that the forward pass keeps no states.

Zhuang, Dvornek, Tatikonda, Duncan, "MALI: A memory efficient and reverse accurate integrator for Neural ODEs", ICLR
2021. As ACA, the backward pass goes over the accepted steps from the last to the first and differentiates each; but the
state that a step started from is computed from the one it ended with, by the method's algebraic inverse. The result is
the exact gradient of the computed solution, up to rounding, which the inverse may amplify.

So a few states are kept after all, however many steps there are: the reconstruction is compared with each of them and
starts anew from it. The largest difference is reported, and too large a one is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..core import Outcome, Problem, Reversible, Step
from ..errors import SolverError
from ..field.inputs import Inputs
from ..loops.outputs import gather
from ..loops.stepping import steps
from ..numbers import value
from .checkpoints import Shelf, limit_of
from .evaluations import Evaluations
from .forward import Run, reached
from .replay import (
    Ambience,
    MaybeTensors,
    Parts,
    backward_pass,
    refuse_derivative,
    saved_tensors,
    without_graph,
)
from .sweep import Backward

if TYPE_CHECKING:
    from ..core import CarryingStep

SECOND = (
    "second derivatives through gradient='mali' are not available: use gradient='aca' (exact, a state a step) or "
    "'direct'"
)


@dataclass(frozen=True)
class MALI:
    """Reversible backpropagation (Zhuang et al. 2021): the memory of a few states, whatever the number of steps.

    Needs a reversible method: "alf" or "reversible_heun".

    Parameters
    ----------
    anchors : int
        The reconstruction is checked against this many states at most, evenly spaced over the steps, and starts anew
        at each. States before a jump of f are kept in addition.
    tolerance : float, optional
        The backward pass raises `SolverError` where a reconstructed state differs from the kept one by more than this
        part of its size. By default the square root of the dtype's resolution: 1.5e-8 in float64, 3.5e-4 in float32.
        What it was is in `Solution.stats.reconstruction_error`.

    Raises
    ------
    ValueError
        In the solve: for a method that cannot be reversed, and for an f that draws random numbers.
    """

    anchors: int = 8
    tolerance: float | None = None
    name: str = "mali"
    wants_inputs: bool = True
    wants_graph_size: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.anchors, int) and self.anchors >= 1):
            raise ValueError(f"anchors is a number of states of at least 1, got {self.anchors!r}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance must be greater than 0, got {self.tolerance!r}")

    def __call__(self, p: Problem, inputs: Inputs) -> Outcome:
        """Solve without a graph, keeping the times of the steps; see `torchaca.core.Gradient`."""
        method = reversible(p)
        if p.effects and p.effects.stateful:
            raise ValueError(
                "f draws random numbers (Dropout?) or reads buffers that it changes, and would do so anew where a step "
                "is undone: use gradient='aca', which replays the same ones, or model.eval()"
            )
        run = Reversal(Run(p, inputs, Ambience.here(p.y0)), method, self)
        ys, *bases = _Solve.apply(run, *Parts.of(p, inputs).flat())
        failure, run.solve.failure = run.solve.failure, None  # handed over: its traceback may come to hold ys
        return Outcome(ys, failure, run.solve.accepted, bases)


def reversible(p: Problem) -> Reversible:
    """The problem's method, if its steps can be undone.

    Raises
    ------
    ValueError
    """
    method = p.method
    if not isinstance(method, Reversible):
        raise ValueError(
            "gradient 'mali' needs a reversible method: try method='alf' or 'reversible_heun'; or gradient='aca'"
        )
    if math.isinf(method.growth):
        raise ValueError(
            f"gradient 'mali' cannot undo {method!r}, which forgets what it carried: try eta=1; or gradient='aca'"
        )
    return method


@dataclass
class Reversal:
    """One forward pass: what its backward needs beside the saved tensors.

    A carry is numbered by the step that starts from it; `kept` are the numbers of those that are saved.
    """

    solve: Run
    method: Reversible
    settings: MALI
    kept: Sequence[int] = ()

    def forward(self) -> tuple[Outcome, list[Tensor]]:
        """Solve; the outputs, and the carries in the order of `kept`: anchors, those before jumps, and the last."""
        p = without_graph(self.solve.problem)
        keeper = Keeper(p, self.settings.anchors)
        outcome = gather(p, keeper.steps())
        self.solve.failure, self.solve.accepted = outcome.failure, outcome.times
        complete = outcome.failure is None or p.dense  # else steps behind the last output have no gradient
        self.solve.times = outcome.times if complete else reached(p.ts, outcome)
        carries = keeper.up_to(self.solve.n_steps)
        self.kept = list(carries)
        self.solve.problem = replace(self.solve.problem, f0=None)
        return outcome, list(carries.values())

    def backward(
        self, carries: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """The gradients of all inputs, in the order of `Parts`."""
        solve = self.solve
        with backward_pass(solve.problem, solve.inputs, solve.ambience):
            undoing = Undoing(self, dict(zip(self.kept, carries, strict=True)), cotangents, tensors)
            for n in reversed(range(solve.n_steps)):
                undoing.step(n)
            return undoing.backward.finish()


class Keeper:
    """Passes the steps of a solve on and keeps some of their carries."""

    def __init__(self, p: Problem, anchors: int) -> None:
        self.p = p
        self.shelf = Shelf[Tensor](limit_of(anchors))
        self.before_jumps: dict[int, Tensor] = {}
        self.last: tuple[int, Tensor] | None = None
        self.last_with_output: tuple[int, Tensor] | None = None

    def steps(self) -> Iterator[Step]:
        """The accepted steps of the problem."""
        done = self.p.ts.at_start()
        for n, step in enumerate(steps(self.p), 1):
            carry = cast("CarryingStep", step).carry
            self.shelf.put(n, carry)
            if self.p.fresh(step.t1):
                self.before_jumps[n] = carry
            self.last = n, carry
            if (outputs := self.p.ts.up_to(value(step.t1))) > done:
                done, self.last_with_output = outputs, self.last
            yield step

    def up_to(self, n_steps: int) -> dict[int, Tensor]:
        """The kept carries of the first `n_steps` steps, the one that the last of them ended with among them."""
        ends = dict(end for end in (self.last, self.last_with_output) if end is not None)
        kept = {**self.shelf.states, **self.before_jumps}
        return {
            n: carry
            for n, carry in sorted({**kept, **ends}.items())
            if n == n_steps or (n in kept and n < n_steps)
        }


class Undoing:
    """The backward pass: undoes step by step, and hands each to ACA's replay.

    `end` is what the step that is undone next ended with.
    """

    def __init__(
        self,
        run: Reversal,
        carries: dict[int, Tensor],
        cotangents: Sequence[Tensor | None],
        tensors: Sequence[Any],
    ) -> None:
        solve = run.solve
        self.run, self.carries = run, carries
        self.backward = backward = Backward(solve, solve.leaves(tensors), cotangents[0], cotangents[1:])
        timed = any(isinstance(t, Tensor) for t in backward.boundaries)
        self.f = Evaluations(backward.p.f, solve.inputs, backward.parts, timed)
        self.p = backward.plain = replace(backward.plain, f=self.f)
        backward.p = replace(backward.p, f=self.f)
        # A solution that is not finite says so itself.
        self.finite = all(bool(torch.isfinite(carry).all()) for carry in carries.values())
        dtype = self.p.y0.dtype.to_real()
        self.tolerance = run.settings.tolerance or torch.finfo(dtype).eps ** 0.5
        self.worst = 0.0
        self.end = carries.get(solve.n_steps, self.p.y0)

    def step(self, n: int) -> None:
        """Reconstruct where step n started, and differentiate it."""
        method, (t0, t1) = self.run.method, self.run.solve.times[n : n + 2]
        f = self.p.between(t0, t1)
        self.f.forget_all_but(t1)
        with torch.no_grad():
            known, start = self.carries.get(n), None
            if self.p.fresh(t0):
                start = self.p.y0 if known is None else known[0]
                known = method.lift(f, t0, start)
            found = method.undo(f, t0, t1, self.end)
        if known is not None:
            self._compare(n, found, known)
        self.end = self.carries.get(n, found)
        self.backward.next_state = None  # the comparison is the one above
        self.backward.replay(n, self.end if start is None else start)

    def _compare(self, n: int, found: Tensor, known: Tensor) -> None:
        """Note how far the reconstruction is from what the forward pass had there.

        Raises
        ------
        SolverError
            Where that is too far.
        """
        t0, t1 = self.run.solve.times[n : n + 2]
        units = self.run.method.units(t1 - t0)
        off, size = (
            torch.stack([u * torch.linalg.vector_norm(x) for u, x in zip(units, carry, strict=True)])
            .max()
            .item()
            for carry in (found - known, known)
        )
        error = off / max(size, torch.finfo(known.dtype).tiny)
        stats = self.run.solve.problem.stats
        self.worst = stats.reconstruction_error = max(self.worst, error)
        if error <= self.tolerance or not self.finite:
            return
        growth = self.run.method.growth
        cause = (
            f"{self.run.method!r} amplifies every rounding error {growth:.3g}-fold a step that it undoes"
            if growth > 1
            else "where the solution contracts, undoing it expands every rounding error (or f reads something that was "
            "changed after the forward pass)"
        )
        raise SolverError(
            "reconstruction",
            f"the state at t = {t0:.10g}, reconstructed from later ones, is off by {error:.1e} of its size, "
            f"more than the tolerance of {self.tolerance:.1e}: {cause}.\n  try: gradient='aca' (the same gradient, one "
            "state a step), MALI(anchors=...) with more states, a float64 state, or a larger MALI(tolerance=...)",
            t=t0,
            dt=t1 - t0,
            stats=stats,
            backward=True,
        )


class _Solve(torch.autograd.Function):
    """Forward: the whole solve without a graph. Backward: the sweep over undone steps."""

    @staticmethod
    def forward(ctx: Any, run: Reversal, *tensors: Any) -> Any:
        outcome, carries = run.forward()
        ctx.run = run
        ctx.save_for_backward(*carries, *run.solve.inputs.without_late(tensors))
        ctx.set_materialize_grads(False)
        return (outcome.ys, *outcome.bases)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        run: Reversal = ctx.run
        n, saved = len(run.kept), saved_tensors(ctx)
        carries, tensors = saved[:n], (*saved[n:], *run.solve.inputs.late)
        if all(g is None for g in cotangents):
            return (None, *([None] * len(tensors)))
        create_graph = torch.is_grad_enabled()
        with torch.no_grad():
            grads = run.backward(carries, cotangents, tensors)
        return (None, *(refuse_derivative(grads, (*tensors, *cotangents), SECOND) if create_graph else grads))
