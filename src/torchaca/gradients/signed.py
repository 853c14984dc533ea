"""A sweep that carries an estimate of its own error: what a pair's lower order would say, with its sign.

Beside lambda, the adjoint of the state, it carries delta, what lambda is off by, and the same for every input:

    lambda_n = (d Phi / d y)^T lambda_{n+1}        delta_n = (d Phi / d y)^T delta_{n+1} + (d e / d y)^T lambda_{n+1}

with the step Phi and its embedded error estimate e. It is one product more on the graph of a step, of the outputs
(y1, e), and no evaluation beyond the last stage of the pair. With its sign: errors cancel as they do, where bounds by
norms are too large by a factor of 100. On steps whose error ratio left room it decides whether they are resolved.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import Problem
from ..methods.stability import stability
from .made import Made
from .repair import growth_of, local_size, norm_of, until_they_agree
from .replay import MaybeTensors, vjp
from .substeps import through
from .sweep import Replay
from .tally import Tally

GROWING = 2.0
"""Where the cotangent grows by more in a step, its embedded estimate is too small by a factor of up to 30."""
SHARE = 0.1
"""Of the tolerance, that one step may take of it."""


@dataclass
class Repair:
    """Which steps are to be repaired: those with `room`; until they are off by `goal`, by at most `most` sub-steps.

    `left` adds up what they are off by afterwards.
    """

    room: frozenset[int]
    goal: float
    most: int
    left: float = 0.0


@dataclass
class Signed:
    """Replays the steps of a sweep one by one, carries the estimate, and repairs steps with room.

    `parts` are the sub-steps of each step, in the end those that were taken.
    """

    replay: Replay
    parts: list[int]
    repair: Repair
    off: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.off = self.replay.tallied((self.replay.ys_grad,))

    def step(self, n: int, start: Tensor) -> None:
        """Go through step n, from the last to the first."""
        replay, off, m = self.replay, self.off, self.parts[n]
        if m > 1:
            product, moved = through(replay, n, start, m, off.lam)
            replay.add(n, start, product)
        else:
            made = replay.make(n, start)
            product = made.pulled(made.outs, made.cotangents, keep=True)
            moved = None
            if n in self.repair.room:
                moved = self._repaired(n, start, made, product)
            if moved is None:
                moved = self._moved(made)
                replay.add(n, start, product, made)
        off.add(moved, replay.boundaries[n : n + 2], start)

    def _moved(self, made: Made) -> MaybeTensors:
        """The product of the step with what the adjoint is off by, and of its error estimate with the adjoint."""
        error, lam = _error(self.replay.p, made)
        pairs = [(error, lam), *([] if self.off.lam is None else [(made.outs[0], self.off.lam)])]
        pairs = [(out, cotangent) for out, cotangent in pairs if out.requires_grad]
        if not pairs:
            return [None] * len(made.wrt)
        outs, cotangents = zip(*pairs, strict=True)
        return made.pulled(outs, cotangents)

    def _repaired(self, n: int, start: Tensor, made: Made, product: MaybeTensors) -> MaybeTensors | None:
        """Take the step as sub-steps, if it is not resolved; what the product is off by then."""
        replay, repair, incoming = self.replay, self.repair, norm_of(made.cotangents)
        error, own_lam = _error(replay.p, made)
        totals = replay.tally.totals.sums

        def size(off: MaybeTensors, of: MaybeTensors) -> float:
            return local_size(off, of, incoming, totals, SHARE * repair.goal)

        own: MaybeTensors = [None] * len(made.wrt)
        if error.requires_grad:
            own = vjp([error], made.wrt, [own_lam], keep=True)
        if size(own, product) <= SHARE * repair.goal and growth_of(product, incoming) <= GROWING:
            return None
        moved: dict[int, MaybeTensors] = {}

        def taken(m: int) -> MaybeTensors:
            moved.clear()
            found, moved[m] = through(replay, n, start, m, self.off.lam)
            return found

        found = until_they_agree(
            taken, product, size, replay.p.method.order, SHARE * repair.goal, repair.most
        )
        self.parts[n] = found.parts
        repair.left += found.left
        replay.add(n, start, found.product)
        return _plus(found.off, moved[found.parts])


def _error(p: Problem, made: Made) -> tuple[Tensor, Tensor]:
    """The error estimate of a step, and its cotangent: the end state's, larger where the estimate is too small."""
    with torch.enable_grad():
        error = made.step.error
    lam = made.cotangents[0]
    lam = lam if lam.shape == error.shape else lam[0]
    kappa = stability(p.method).kappa
    return error, lam if kappa >= 1 else lam / kappa


def _plus(a: MaybeTensors, b: MaybeTensors) -> MaybeTensors:
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]
