"""The forward pass of a controlled gradient: outputs that are right, and another level to compare with.

The loss is evaluated on the outputs, so that what they are off by cannot be repaired later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..core import Outcome, Problem
from ..field.effects import Mark
from ..loops.outputs import inside
from .checkpoints import States
from .estimate import TRUSTED, Compared, next_error, norms, of_outputs, times_finer
from .levels import FEW, Regridded, divided, growth, merged, repeated
from .trajectory import Trajectory, marched

STEPS = 100_000  # where the control has no limit of its own
SOME = 0.1  # of the tolerance, for the outputs: a gradient may be off by several times as much as they are
AIM = 0.05  # of the tolerance, where they miss that: the error of the trajectory is 3 to 70 times theirs
COARSE = 0.25  # of 2^order: a level whose errors are hardly larger says nothing


@dataclass(frozen=True)
class Request:
    """What a controlled gradient is asked for.

    Attributes
    ----------
    goal : float
        The relative error of the gradients.
    store : callable
        Makes what keeps the states of a level.
    stagewise : bool
    graphs : int
        Of so many steps the backward pass may hold the graphs at a time.
    """

    goal: float
    store: Callable[[], States]
    stagewise: bool = False
    graphs: int = 0


@dataclass
class Levels:
    """What the forward pass leaves: the level of the outputs, and one to compare it with.

    Attributes
    ----------
    fine, coarse : Trajectory
    order : int
        With which power of the step size the errors fall.
    rate : float
        By how much the errors of the coarse one are larger.
    halved : bool
        Whether there were too few steps to leave out half of them, so that each was halved.
    outputs : sequence of Tensor
        The difference of the levels' outputs, and the absolute values of the finer ones.
    apart, sizes : sequence of float
        For each output behind the start, the norm of that, and of the output.
    left : float
        What the finer outputs are off by, in units of the difference.
    still : bool
        Whether the state does not move.
    """

    fine: Trajectory
    coarse: Trajectory
    order: int
    rate: float
    halved: bool
    outputs: Sequence[Tensor] = ()
    apart: Sequence[float] = ()
    sizes: Sequence[float] = ()
    left: float = 0.0
    still: bool = False

    def compared(self, coarse: Outcome, fine: Outcome, start: int) -> Levels:
        """The same with the outputs from `start` on compared."""
        off = fine.ys - coarse.ys
        apart, sizes = norms(off[start:], fine.ys[start:])
        return replace(self, outputs=[off, fine.ys.abs()], apart=apart, sizes=sizes)

    def handed(self) -> list[Sequence[Tensor]]:
        """Hand over what was kept, of the finer level, of the coarser one, and of their outputs."""
        outputs, self.outputs = self.outputs, ()
        return [self.fine.handed(), self.coarse.handed(), outputs]

    def holding(self, fine: Sequence[Tensor], coarse: Sequence[Tensor], outputs: Sequence[Tensor]) -> Levels:
        """The same with what was handed over."""
        fine_level, coarse_level = self.fine.holding(fine), self.coarse.holding(coarse)
        return replace(self, fine=fine_level, coarse=coarse_level, outputs=outputs)


@dataclass
class Settling:
    """Solves `p` on finer levels until its outputs are right; `why` says why they are not, if they are not.

    `mark` is the moment at which the first solve started.
    """

    p: Problem
    request: Request
    mark: Mark | None
    why: str = ""

    def settled(self, fine: Trajectory, outcome: Outcome) -> tuple[Levels, Outcome]:
        """The levels, and the outcome on the finer one.

        Parameters
        ----------
        fine, outcome
            Of the solve.
        """
        goal = self.request.goal
        levels = self._half(fine, outcome)
        if levels is None:
            levels, outcome = self._finer(fine, outcome, 2)
            levels.halved = True
        before, old = None, None
        while not self.why:
            raw = of_outputs(levels.apart, levels.sizes)
            two = Compared(raw, levels.rate)
            error = next_error(two, before, old, None, levels.order)
            levels.left = error / raw if raw > 0 else 0.0
            if error <= SOME * goal:
                break
            if (
                levels.coarse.n >= fine.n
            ):  # nothing chose the lengths of merged steps, and they may be unstable
                before, old = two, error
            if not all(map(math.isfinite, levels.sizes)):
                self.why = "they are not finite"
                break
            k = times_finer(error, AIM * goal, levels.order) if raw < TRUSTED else 2
            levels, outcome = self._finer(levels.fine, outcome, k, levels)
        return levels, outcome

    def _half(self, fine: Trajectory, outcome: Outcome) -> Levels | None:
        """The levels of these steps and half of them; None where half of them say nothing."""
        p, order = self.p, order_of(self.p, fine.grid)
        if fine.n < FEW:
            return None
        places = merged(fine.n, fixed_ends(p, fine))
        rate = growth(places, fine.sizes, fine.ratios, order)
        if rate < COARSE * 2**order:
            return None
        with p.undone():
            coarse, half = marched(p, fine.grid.at(places), self.request.store())
        return Levels(fine, coarse, order, rate, False).compared(half, outcome, p.ts.at_start())

    def _finer(
        self, fine: Trajectory, outcome: Outcome, k: int, levels: Levels | None = None
    ) -> tuple[Levels, Outcome]:
        """Each step in k parts."""
        p, order = self.p, order_of(self.p, fine.grid)
        if reason := too_many(p, k * fine.n):
            self.why = reason
            return levels or Levels(fine, fine, order, 2.0**order, False), outcome
        if p.effects and self.mark is not None:
            p.effects.restore(self.mark)
        grid = fine.grid.at(divided(fine.grid.places, k))
        finer, found = marched(p, grid, self.request.store(), dense=p.dense)
        finer.ratios = repeated(fine.ratios, k)
        two = Levels(finer, fine, order, float(k**order), False)
        return two.compared(outcome, found, p.ts.at_start()), found


def too_many(p: Problem, n: int) -> str:
    """Why there are no levels of n steps; nothing if there may be."""
    control: Any = p.control
    limit: int | None = getattr(control, "max_steps", None)
    most, name = (STEPS, "") if limit is None else (limit, "max_steps=")
    return f"finer steps are more than {name}{most}" if n > most else ""


def fixed_ends(p: Problem, level: Trajectory) -> list[int]:
    """The ends of steps that a coarser level keeps: jumps and stops, and the outputs that lie there."""
    stops: Any = getattr(p.control, "stops", None)
    kept = {*p.jumps, *(stops(p.ts) if stops is not None else ()), *p.ts.values}
    return [n for n, t in enumerate(level.times) if t in kept]


def order_of(p: Problem, grid: Regridded) -> int:
    """With which power of the step size the outputs' errors fall: less where they are interpolated badly."""
    own: int = p.method.order
    interpolant: int | None = getattr(p.method, "dense_order", None)
    if interpolant is None or interpolant + 1 >= own:
        return own
    ends, taken, at = grid.boundaries(p.ts), grid.taken, 0
    for n, (t0, t1) in enumerate(pairwise(taken)):
        first, last = p.ts.up_to(t0), p.ts.up_to(t1)
        if inside(p.ts, ends[n + 1], max(first, at), last):
            return interpolant + 1
    return own
