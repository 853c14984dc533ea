"""Sweeps over levels: the gradients of one loss along several trajectories."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core import Problem
from ..field.effects import Moments
from ..field.inputs import Inputs
from ..log import Log
from ..numbers import value
from .estimate import minus, norms, relative
from .inner import Inner, inner_of
from .levels import Regridded
from .replay import MaybeTensors, Parts, rebuilt, without_graph
from .settling import Request
from .signed import Repair, Signed
from .substeps import through
from .sweep import Replay
from .trajectory import Graphs, Trajectory, marched

NOTHING = Repair(frozenset(), 0.0, 1)


@dataclass
class Swept:
    """What a sweep over a level found.

    Attributes
    ----------
    grads : list of Tensor or None
        In the order of `Parts`.
    parts : list of int
        The sub-steps of each step.
    embedded : float or None
        The carried estimate of the relative error, if it was carried.
    left : float
        What the local repairs left.
    beside : list of Tensor or None, optional
        The products with other cotangents of the outputs, in the order of `Parts`.
    """

    grads: MaybeTensors
    parts: list[int]
    embedded: float | None = None
    left: float = 0.0
    beside: MaybeTensors | None = None


@dataclass
class Sweeps:
    """Sweeps of one backward pass: with these cotangents, of these tensors.

    `told`: the trace has been told of one.
    """

    problem: Problem
    inputs: Inputs
    request: Request
    cotangents: Sequence[Tensor | None]
    tensors: Sequence[Any]
    told: bool = False

    @cached_property
    def wanted(self) -> list[int]:
        """Which gradients count."""
        return [i for i, x in enumerate(self.tensors) if x is not None and x.requires_grad]

    @property
    def signs(self) -> bool:
        """Whether a sweep can carry an estimate."""
        return self.problem.method.adaptive

    def weights(self, start: int) -> list[float]:
        """How much the loss asks for each output from `start` on."""
        grads = self.cotangents[0]
        return (
            [] if grads is None else norms(grads[start : len(self.problem.ts)])[0]
        )  # without that of a carry

    def along(
        self,
        level: Trajectory,
        parts: Sequence[int],
        base: Regridded,
        *,
        signed: bool = False,
        repair: Repair | None = None,
        beside: Tensor | None = None,
    ) -> Swept:
        """Sweep over a level.

        Parameters
        ----------
        parts : sequence of int
            The sub-steps of each step.
        base : Regridded
            Of the level whose interpolants the cotangents of dense output belong to.
        signed : bool
            Carry the estimate.
        repair : Repair, optional
            Steps to be repaired; needs `signed`.
        beside : Tensor, optional
            Other cotangents of the outputs, to be pulled back as well.
        """
        repair, parts = repair or replace(NOTHING), [*parts]
        room = {n for n, m in enumerate(parts) if m > 1} | repair.room
        replay = Replay(
            self._problem(level.grid),
            self.inputs,
            level.times,
            self.tensors,
            self.cotangents[:1],
            moments=Moments(None),
            end=level.end,
            stagewise=self.request.stagewise,
            alone=room,
            inner=self._inner(base, level.grid),
        )
        carrying = Signed(replay, parts, repair) if signed else None
        other = None if beside is None else replay.beside(beside)
        for n, start in level.store.reversed(level.kept, replay):
            if other is not None and parts[n] == 1:
                if n not in replay.taken:
                    replay.take(n, start)
                other.taken[n] = replay.taken[n]
            if carrying is not None:
                carrying.step(n, start)
            else:
                _go(replay, n, start, parts[n])
            if other is not None:
                _go(other, n, start, parts[n])
        self.told = True
        grads, others = replay.finish(), None if other is None else other.finish()
        if carrying is None:
            return Swept(grads, parts, beside=others)
        off = carrying.off.finished(replay.parts, replay.wrt)
        return Swept(grads, parts, self._relative(off, grads, level.n), repair.left, others)

    def share(self, swept: Swept) -> float:
        """The products with other cotangents, in units of the gradients; zero without any."""
        return 0.0 if swept.beside is None else self._relative(swept.beside, swept.grads, len(swept.parts))

    def apart(self, one: Swept, other: Swept) -> float:
        """By how much two gradients differ, in units of the second."""
        return self._relative(minus(one.grads, other.grads), other.grads, len(other.parts))

    def march(self, grid: Regridded, parts: Sequence[int]) -> Trajectory:
        """The solution on other steps, from the values that the forward pass had; by a sweep, if graphs may be held."""
        p = self._problem(grid)
        if len(parts) <= self.request.graphs:
            return Trajectory(grid, Graphs(parts), [*map(value, grid.boundaries(p.ts.detached()))], ())
        leaves = Parts.leaves_for(p, self.inputs, self.tensors)
        with torch.no_grad():
            plain = without_graph(rebuilt(p, leaves, self.inputs))
            return marched(plain, grid, self.request.store())[0]

    def _problem(self, grid: Regridded) -> Problem:
        """The problem on a level's steps; graphs of compiled steps are differentiated only once."""
        p = self.problem
        log = Log(p.stats, trace=None if self.told else p.trace, on_failure=p.log.on_failure)
        return replace(p, control=grid, dense=False, log=log, f=p.f.repeatable())

    def _relative(self, off: MaybeTensors, grads: MaybeTensors, n: int) -> float:
        goal = self.request.goal
        return relative([off[i] for i in self.wanted], [grads[i] for i in self.wanted], goal, n)

    @cached_property
    def _dense(self) -> dict[int, Inner]:
        return inner_of(self.problem.method, self.cotangents[1:])

    def _inner(self, base: Regridded, grid: Regridded) -> dict[int, Inner]:
        """The cotangents of dense output, by steps of a level."""
        if base.places == grid.places or not self._dense:
            return self._dense
        found: dict[int, list[tuple[float, Tensor]]] = defaultdict(list)
        ends = grid.places
        for n, inner in self._dense.items():
            low, high = base.places[n : n + 2]
            for part, grad in zip(inner.parts, inner.grads, strict=True):
                place = low + part * (high - low)
                i = min(bisect_right(ends, place), len(ends) - 1) - 1
                found[i].append(((place - ends[i]) / (ends[i + 1] - ends[i]), grad))
        return {
            i: Inner([x for x, _ in some], torch.stack([g for _, g in some])) for i, some in found.items()
        }


def _go(replay: Replay, n: int, start: Tensor, parts: int) -> None:
    """Through step n, or so many parts of it."""
    if parts > 1:
        replay.taken.pop(n, None)
        replay.add(n, start, through(replay, n, start, parts)[0])
    else:
        replay.replay(n, start)
