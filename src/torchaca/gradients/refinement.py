"""`ACA(grad_rtol=...)`: error control that sees the gradient. Here the forward pass, which settles the outputs.

Three parts make the error of a gradient, and different things repair them. The steps may be too long for the derivative
of a step's end with respect to its start: sub-steps. They are differentiated along states that are off: a finer
trajectory. And the loss is differentiated at outputs that are off: finer steps again, but before the loss is evaluated.

So the forward pass solves on half as many steps as well, or on finer ones until the outputs are right. The backward
pass (`comparison`) repairs steps whose error ratio left room, and compares its gradient with that of the other level;
where it is not right, it marches along finer levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..core import Outcome, Problem, Step
from ..errors import SolverError, warn
from ..field.inputs import Inputs
from ..log import GradientError, Log
from ..loops.outputs import gather
from ..loops.stepping import steps
from ..numbers import value
from ..torch_internals import is_legacy_batchedtensor
from ..transforms import is_differentiated
from .again import differentiate_again
from .comparison import Comparison
from .levels import Regridded
from .passes import refuse
from .replay import MaybeTensors, without_graph
from .settling import Levels, Request, Settling
from .store import Replayed
from .sweeps import Sweeps
from .trajectory import Trajectory, Watched

RESOLUTION = 50.0  # in units of the dtype's rounding: no gradient is better than that
BATCHED = (
    "grad_rtol estimates the error of one gradient, and several are asked for at once (is_grads_batched=True, "
    "jacobian(vectorize=True)): ask for one at a time, or use gradient='aca'"
)
DENSE_TWICE = "second derivatives through sol(t) are not available with grad_rtol: give these times in t"


def check_setting(grad_rtol: object, checkpoints: object) -> None:
    """Refuse what cannot be a relative error, and settings that leave nothing to measure it with.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(grad_rtol, bool) or not isinstance(grad_rtol, int | float):
        raise TypeError(f"grad_rtol is a relative error such as 1e-2, got {grad_rtol!r}")
    if not 0 < grad_rtol < 1:
        raise ValueError(f"grad_rtol is a relative error between 0 and 1, got {grad_rtol!r}")
    if checkpoints == "none":
        raise ValueError(
            "grad_rtol compares gradients by replaying steps, checkpoints='none' replays nothing: drop one of them"
        )


def check_problem(p: Problem, grad_rtol: float) -> None:
    """Refuse problems whose gradients cannot be compared from grid to grid.

    Raises
    ------
    ValueError
    """
    dtype = p.y0.dtype.to_real()
    if grad_rtol < RESOLUTION * torch.finfo(dtype).eps:
        raise ValueError(
            f"grad_rtol={grad_rtol:g} is below what gradients in {dtype} can resolve "
            f"({RESOLUTION * torch.finfo(dtype).eps:.1e}): use a larger one, or float64"
        )
    if p.effects is not None and p.effects.stateful:
        raise ValueError(
            "grad_rtol compares gradients on two grids, and f is random or changes what it reads (Dropout?), so that "
            "they never agree: call model.eval() first, or drop grad_rtol"
        )
    # A jump is where f has it on every grid.
    of_grid = [x for x in p.control.tensors if x.numel() != 1 or value(x) not in p.jumps]
    if any(map(is_differentiated, of_grid)):
        raise ValueError(
            "grad_rtol changes the grid, so that there is no gradient with respect to the given one: pass "
            "grid.detach(), or drop grad_rtol"
        )


class Controlled:
    """The passes of `ACA(grad_rtol=...)`; see `Passes`."""

    def __init__(self, problem: Problem, inputs: Inputs, request: Request) -> None:
        check_problem(problem, request.goal)
        self.problem, self.inputs, self.request = problem, inputs, request
        self.plain = Replayed(problem, inputs, request.store(), stagewise=request.stagewise)
        self.levels: Levels | None = None
        self.counts, self.failed = [0, 0, 0], False
        self.redo: Callable[[Problem], Iterator[Step]] | None = None

    def forward(self) -> tuple[Outcome, list[Tensor]]:
        """Solve, and on half as many steps or finer ones until the outputs are right; see `Passes`."""
        p = without_graph(self.problem)
        mark = p.effects.mark() if p.effects else None
        first = Watched(p)
        outcome = gather(p, self.plain.watch(p, first.watch(steps(p))))
        kept = self.plain.close(outcome)
        p, self.problem = outcome.ended(p), outcome.ended(self.problem)
        if outcome.failure is not None or len(outcome.times) < 2:
            return outcome, kept
        fine = Trajectory(
            Regridded.of(p.control, outcome.times), self.plain.store, outcome.times, kept, first.ratios
        )
        fine.end = self.plain.end
        settling = Settling(replace(p, log=Log(p.stats)), self.request, mark)
        levels, outcome = settling.settled(fine, outcome)
        levels.still = first.still
        p.stats.accepted = levels.fine.n
        if settling.why:
            self.failed = True
            outcome.failure = self.unreached(None, levels.fine.n, settling.why)
        kept = levels.handed()
        self.levels, self.counts = levels, [len(some) for some in kept]
        # Dense output moves with the steps that it is of.
        grid = replace(levels.fine.grid, control=self.problem.control)
        self.problem = replace(self.problem, control=grid)
        return outcome, [x for some in kept for x in some]

    def backward(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Repair, compare, refine until the gradient is right; see `Passes`.

        Raises
        ------
        SolverError
            Of kind "gradient-error", if it cannot be made right. Where failures are not to be raised it is a warning.
        """
        if any(g is not None and is_legacy_batchedtensor(g) for g in cotangents):
            raise NotImplementedError(BATCHED)
        if self.levels is None:
            return self.plain.backward(kept, cotangents, tensors)
        own = iter(kept)
        levels = self.levels.holding(*([*islice(own, n)] for n in self.counts))
        sweeps = Sweeps(self.problem, self.inputs, self.request, cotangents, tensors)
        found = Comparison(sweeps, levels).settled()
        self.problem.stats.gradient_error = found.error
        self.redo = found.redone
        if found.why and not self.failed:
            unreached = self.unreached(found.error, found.level.n, found.why)
            if self.problem.log.on_failure == "raise":
                raise unreached
            warn(str(unreached))
        return found.grads

    def twice(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Differentiate the last sweep once more, on its steps and sub-steps; see `Passes`."""
        if self.levels is None:
            return self.plain.twice(kept, cotangents, tensors)
        if any(g is not None for g in cotangents[1:]):
            return refuse(self, DENSE_TWICE, kept, cotangents, tensors)
        return differentiate_again(self, (), kept, cotangents[:1], tensors, redo=self._redone)

    def _redone(self) -> Callable[[Problem], Iterator[Step]]:
        """What yields the steps of which the last backward pass was the derivative."""
        assert self.redo is not None
        return self.redo

    def unreached(self, error: GradientError | None, n: int, why: str) -> SolverError:
        """What was reached, why no more, and what to try."""
        p, goal = self.problem, self.request.goal
        reached = "could not be estimated" if error is None else f"is estimated as {error:.1e}"
        where = f" (most of it: {error.largest}; try {error.remedy})" if error else ""
        wide = p.y0.dtype in (torch.float64, torch.complex128)
        message = (
            f"grad_rtol={goal:g} was not reached: the relative error of the gradients {reached} on {n} steps{where}; "
            f"{why}. Try {'' if wide else 'float64, '}a larger grad_rtol or max_steps, a shorter time span, or a "
            "smoother f: chaos, kinks and noise defeat refinement"
        )
        ended = p.ts.values[-1]
        return SolverError(
            "gradient-error", message, t=ended, dt=0.0, stats=p.stats, backward=error is not None
        )
