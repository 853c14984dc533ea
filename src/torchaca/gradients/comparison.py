"""The backward pass of a controlled gradient: repaired, compared with another level, refined until it is right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ..core import Problem, Step
from ..log import GradientError
from .estimate import (
    CAUTION,
    TRUSTED,
    Compared,
    first_error,
    next_error,
    of_lower_order,
    times_finer,
    weighted,
)
from .levels import Regridded, divided, parts_of
from .repair import MOST
from .replay import MaybeTensors
from .settling import Levels, too_many
from .signed import Repair
from .substeps import march_shifted
from .sweeps import Sweeps, Swept
from .trajectory import Trajectory

LOOK = 1e-2
"""Steps whose error ratio is below it may be too long for their derivative; controlled ones are at 0.03 to 1."""
REFINEMENTS = 6
FARTHER = 30.0  # times the error of the outputs, a gradient is off by at most, as a rule
AIM = 0.4  # of the tolerance, for the next level
DOUBTFUL = 0.15  # an error above it is worth the carried estimate as a second witness
TIGHTER = 0.25  # how much of the tolerance is left to local repairs that were not enough
ROUNDING = 4.0  # roundings for each of sqrt(N) steps


@dataclass(frozen=True)
class Found:
    """What a controlled backward pass found: `why` it is not good enough, if it is not."""

    swept: Swept
    error: GradientError
    level: Trajectory
    why: str

    @property
    def grads(self) -> MaybeTensors:
        """The gradients, in the order of `Parts`."""
        return self.swept.grads

    @property
    def redone(self) -> partial[Iterator[Step]]:
        """What yields the steps of which they are the derivative, of a problem."""
        return partial(_again, self.level.grid, self.swept.parts)


def _again(grid: Regridded, parts: list[int], p: Problem) -> Iterator[Step]:
    control = p.control.control if isinstance(p.control, Regridded) else p.control
    return march_shifted(p, replace(grid, control=control).boundaries(p.ts), parts)


@dataclass
class Comparison:
    """Sweeps over levels until they agree.

    `steps` is the estimated error of steps that are too long for their derivative; `error` that of this and of the
    trajectory.
    """

    sweeps: Sweeps
    levels: Levels
    level: Trajectory = field(init=False)
    outputs: float = field(init=False)
    steps: float = 0.0
    error: float = math.inf

    def __post_init__(self) -> None:
        levels = self.levels
        self.level = levels.fine
        weights = self.sweeps.weights(len(self.sweeps.problem.ts) - len(levels.sizes))
        off = weighted(levels.apart, levels.sizes, weights) if weights else 0.0
        self.outputs = CAUTION * off / (levels.rate - 1)

    def settled(self) -> Found:
        """The gradients and their error."""
        levels = self.levels
        swept = self._repaired()
        room = bool(levels.fine.ratios) and self.sweeps.signs
        if levels.still and room:
            self.error = max(CAUTION * self.steps, swept.left)
            return self._found(swept, self._done())
        return self._refined(swept, self._compared(swept))

    def _repaired(self) -> Swept:
        """The finer level, its steps with room repaired where they are too long."""
        sweeps, levels, goal = self.sweeps, self.levels, self.sweeps.request.goal
        room = frozenset(n for n, r in enumerate(levels.fine.ratios) if r <= LOOK)
        signed, local = sweeps.signs, goal
        for _ in range(REFINEMENTS - 1):
            swept = self._once(room if signed else frozenset(), local)
            if not (levels.still and room) or CAUTION * self.steps <= goal or not math.isfinite(self.steps):
                return swept
            local *= TIGHTER * goal / self.steps
        return self._once(room if signed else frozenset(), local)

    def _once(self, room: frozenset[int], local: float) -> Swept:
        sweeps, fine = self.sweeps, self.levels.fine
        repair = Repair(room, local, MOST)
        swept = sweeps.along(fine, [1] * fine.n, fine.grid, signed=sweeps.signs, repair=repair)
        self.steps = 0.0 if swept.embedded is None else swept.embedded
        return swept

    def _compared(self, swept: Swept) -> Compared | None:
        """Compare with the other level, unless the carried estimate says that this is not worth it."""
        levels, goal = self.levels, self.sweeps.request.goal
        embedded = self.steps
        guess = of_lower_order(embedded, levels.order)
        if guess > goal and FARTHER * self.outputs > goal and not levels.halved:
            self.error = guess
            return None
        fraction = levels.coarse.n / levels.fine.n
        parts = parts_of(levels.coarse.grid.places, levels.fine.grid.places, swept.parts, fraction)
        other = self.sweeps.along(levels.coarse, parts, levels.fine.grid)
        two = Compared(self.sweeps.apart(other, swept), levels.rate)
        self.error = first_error(two, embedded, swept.left, goal)
        return two

    def _refined(self, swept: Swept, before: Compared | None) -> Found:
        """Finer levels, until the error is small enough."""
        sweeps, goal, order = self.sweeps, self.sweeps.request.goal, self.levels.order
        for _ in range(REFINEMENTS):
            if self._done() == "":
                break
            k = times_finer(self.error, AIM * goal, order)
            if why := too_many(sweeps.problem, k * self.level.n):
                return self._found(swept, why)
            grid = self.level.grid.at(divided(self.level.grid.places, k))
            parts = [m for m in swept.parts for _ in range(k)]
            level = sweeps.march(grid, parts)
            signed = sweeps.signs and self.error > DOUBTFUL
            finer = sweeps.along(level, parts, self.levels.fine.grid, signed=signed)
            two = Compared(sweeps.apart(swept, finer), float(k**order))
            self.error = next_error(two, before, before and self.error, finer.embedded, order)
            self.steps = finer.embedded if finer.embedded is not None else self.steps / k ** (order - 1)
            stuck = before is not None and before.apart < TRUSTED and two.apart > before.apart / 2
            swept, before, self.level = finer, two, level
            if stuck and self._done():
                return self._found(swept, "finer steps no longer bring it down")
        return self._found(swept, self._done())

    def _done(self) -> str:
        """Why the error is not small enough; nothing if it is."""
        if not math.isfinite(self.error):
            return "they are not finite"
        enough = self.error + self.outputs <= self.sweeps.request.goal
        return "" if enough else f"{REFINEMENTS} refinements were not enough"

    def _found(self, swept: Swept, why: str) -> Found:
        eps = torch.finfo(self.sweeps.problem.y0.dtype).eps
        rounding = ROUNDING * eps * math.sqrt(self.level.n)
        steps = min(self.steps, self.error)
        error = GradientError(steps, self.error - steps + rounding, self.outputs)
        return Found(swept, error, self.level, why)
