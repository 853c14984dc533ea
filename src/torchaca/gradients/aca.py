"""Adaptive checkpoint adjoint (ACA): keep the accepted states, replay one step at a time.

Zhuang, Dvornek, Li, Tatikonda, Papademetris, Duncan, "Adaptive Checkpoint Adjoint Method for Gradient Estimation
in Neural ODE", ICML 2020, algorithm 2. The forward pass keeps `(t, y)` of every accepted step and no graph. The
backward pass goes over the steps from the last to the first; each is computed again from its own state with its own
step size (no search, nothing re-integrated), differentiated, and forgotten. The result is the exact gradient of the
computed solution with step sizes held constant, at the memory of one step's graph and one state a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core import Outcome, Problem
from ..field.inputs import Inputs
from ..loops.outputs import gather
from .checkpoints import parse_bytes
from .forward import Run, forward
from .in_place import guarded
from .observed import observed
from .refinement import Pull, check_setting, refined
from .replay import Ambience, MaybeTensors, Parts, saved_tensors
from .second import DifferentiableSweep
from .sweep import sweep

CHECKPOINTS = ("all", "none", "sqrt", "binomial")


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
        named = isinstance(self.checkpoints, str) and self.checkpoints in CHECKPOINTS
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
            return guarded(p, gather(p, observed(p)))
        unreached = None
        if self.grad_rtol is not None:
            p, unreached = refined(p, self.grad_rtol, partial(self._rehearsed, inputs))
        run = Run(p, inputs, Ambience.here(p.y0), self._states(p, inputs), self.stagewise)
        ys, *bases = _Solve.apply(run, *Parts.of(p, inputs).flat())
        failure, run.failure = run.failure, None  # handed over: its traceback may hold ys, and ys the run
        boundaries = p.control.boundaries(p.ts, run.times) if p.dense else ()
        return Outcome(ys, failure or unreached, run.accepted, bases, boundaries)

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
            return (None, *DifferentiableSweep.apply(run, len(cotangents), states, *cotangents, *tensors))
        return (None, *sweep(run, states, cotangents, tensors))
