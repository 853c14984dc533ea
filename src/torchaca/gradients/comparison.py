"""The backward pass of a controlled gradient: repaired, compared with another level, refined until it is right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..core import Problem, Step
from ..log import GradientError
from .estimate import (
    CAUTION,
    TINY,
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
FARTHEST = 1000.0  # times that, one may be off that is small beside its summands
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
    trajectory, and `outputs` that of the loss's derivative, `known` if it was pulled back to the inputs.
    """

    sweeps: Sweeps
    levels: Levels
    level: Trajectory = field(init=False)
    outputs: float = field(init=False)
    known: bool = field(init=False, default=False)
    weights: Sequence[float] = ()
    steps: float = 0.0
    error: float = math.inf

    def __post_init__(self) -> None:
        levels = self.levels
        self.level = levels.fine
        self.weights = self.sweeps.weights(len(self.sweeps.problem.ts) - len(levels.sizes))
        off = weighted(levels.apart, levels.sizes, self.weights) if self.weights else 0.0
        self.outputs = levels.left * off

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
        beside = None if self.levels.still else self._loss()
        parts, signed = [1] * fine.n, sweeps.signs
        swept = sweeps.along(fine, parts, fine.grid, signed=signed, repair=repair, beside=beside)
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
        self._settle_outputs(swept, two)
        return two

    def _loss(self) -> Tensor | None:
        """By how much the cotangents of the outputs are off, since these are; None where it does not matter.

        That is the loss's second derivative times what the outputs are off by. Of the loss nothing is known but its
        first one. In a sum of squares both are off by the same share, in each component; in others a component is
        taken for one of average size where it is smaller.
        """
        levels, lam = self.levels, self.sweeps.cotangents[0]
        matters = FARTHEST * self.outputs > self.sweeps.request.goal
        if lam is None or not levels.outputs or not matters:
            return None
        off, values = levels.outputs
        carried, lam = lam[len(values) :], lam[: len(values)]
        start, least = len(lam) - len(levels.sizes), torch.finfo(values.dtype).tiny ** 0.5
        whole = [w / max(s, TINY) for w, s in zip(self.weights, levels.sizes, strict=True)]
        slopes = torch.tensor([0.0] * start + whole, dtype=torch.float64, device="cpu").to(values)
        slopes = slopes.reshape(-1, *[1] * (values.ndim - 1))
        outputs = levels.left * off * torch.minimum(lam.abs() / values.clamp(min=least), slopes)
        return torch.cat([outputs, torch.zeros_like(carried)]) if len(carried) else outputs

    def _settle_outputs(self, swept: Swept, two: Compared) -> None:
        """Learn what the error of the outputs makes of a gradient, which may be small beside its summands.

        `swept` is the finer of the two: products along an unstable one say nothing.
        """
        if swept.beside is not None and two.apart < TRUSTED:
            self.outputs, self.known = max(self.outputs, self.sweeps.share(swept)), True

    def _refined(self, swept: Swept, before: Compared | None) -> Found:
        """Finer levels, until the error is small enough."""
        sweeps, goal, order = self.sweeps, self.sweeps.request.goal, self.levels.order
        for _ in range(REFINEMENTS):
            if self._done() == "" or self.outputs > goal:
                break
            k = times_finer(self.error, AIM * goal, order)
            if why := too_many(sweeps.problem, k * self.level.n):
                return self._found(swept, why)
            grid = self.level.grid.at(divided(self.level.grid.places, k))
            parts = [m for m in swept.parts for _ in range(k)]
            level = sweeps.march(grid, parts)
            signed = sweeps.signs and self.error > DOUBTFUL
            beside = None if self.known else self._loss()
            finer = sweeps.along(level, parts, self.levels.fine.grid, signed=signed, beside=beside)
            two = Compared(sweeps.apart(swept, finer), float(k**order))
            self._settle_outputs(finer, two)
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
        goal = self.sweeps.request.goal
        if self.outputs > goal:
            return "the loss was evaluated on outputs that are not right enough for it"
        return "" if self.error + self.outputs <= goal else f"{REFINEMENTS} refinements were not enough"

    def _found(self, swept: Swept, why: str) -> Found:
        eps = torch.finfo(self.sweeps.problem.y0.dtype).eps
        rounding = ROUNDING * eps * math.sqrt(self.level.n)
        steps = min(self.steps, self.error)
        error = GradientError(steps, self.error - steps + rounding, self.outputs)
        return Found(swept, error, self.level, why)
