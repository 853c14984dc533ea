"""The solution on the steps of one level: what a sweep over it needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..core import Outcome, Problem, Step, tolerant
from ..loops.outputs import gather
from ..loops.stepping import steps
from .levels import Regridded
from .store import Store
from .sweep import Replay

STILL = 500.0
"""Roundings of its size by which a state that does not move may move."""


@dataclass
class Trajectory:
    """Where the steps of a level start, as far as a store keeps that.

    Attributes
    ----------
    grid : Regridded
    store : Store
    times : sequence of float
        The ends of the steps.
    kept : sequence of Tensor
        What the store has handed over.
    ratios : sequence of float
        The error ratios of the steps, or of those that they are parts of; empty where there are none.
    end : Tensor or None
        What the last step handed on.
    """

    grid: Regridded
    store: Store
    times: Sequence[float]
    kept: Sequence[Tensor]
    ratios: Sequence[float] = ()
    end: Tensor | None = None

    @property
    def n(self) -> int:
        """The number of steps."""
        return len(self.times) - 1

    @property
    def sizes(self) -> list[float]:
        """The lengths of the steps."""
        return [abs(b - a) for a, b in pairwise(self.times)]

    def handed(self) -> Sequence[Tensor]:
        """Hand over what was kept, for somebody else to hold."""
        kept, self.kept = self.kept, ()
        return kept

    def holding(self, kept: Sequence[Tensor]) -> Trajectory:
        """The same with what was kept."""
        return replace(self, kept=kept)


def marched(p: Problem, grid: Regridded, store: Store, *, dense: bool = False) -> tuple[Trajectory, Outcome]:
    """Solve on given steps, without a graph."""
    p = replace(p, control=grid, dense=dense)
    ends: list[Tensor] = []

    def kept() -> Iterator[Step]:
        start = p.first
        for n, step in enumerate(steps(p)):
            store.keep(n, start, step)
            yield step
            start = p.handed(step)
        ends.append(start)

    outcome = gather(p, kept())
    return Trajectory(grid, store, outcome.times, store.tensors(len(outcome.times) - 1), end=ends[0]), outcome


@dataclass(frozen=True)
class Graphs:
    """A store that marches when the backward pass asks for it, and holds the graphs of steps until they are made.

    Of a step that is taken as more than one of `parts` it holds none.
    """

    parts: Sequence[int]

    def keep(self, n: int, start: Tensor, step: Step) -> None:
        """Nothing: see `Store`."""

    def tensors(self, n_steps: int) -> list[Tensor]:
        """None: see `Store`."""
        return []

    def reversed(self, kept: Sequence[Tensor], replay: Replay) -> Iterator[tuple[int, Tensor]]:
        """March, and yield where the steps start; see `Store`."""
        starts, start = [], replay.plain.y0
        for n, m in enumerate(self.parts):
            starts.append(start)
            start = replay.take(n, start) if m == 1 else replay.advance(start, n, n + 1)
        yield from reversed([*enumerate(starts)])


@dataclass
class Watched:
    """Sees the accepted steps of a solve: their error ratios, if it follows tolerances, and whether the state moves."""

    p: Problem
    read: list[Tensor] = field(default_factory=list)
    moved: Tensor | None = None

    def watch(self, accepted: Iterable[Step]) -> Iterator[Step]:
        """Pass the steps on."""
        control = tolerant(self.p.control)
        ratio = None if control is None else control.ratio
        for step in accepted:
            if ratio is not None:
                found = ratio(step)
                self.read.append(found if isinstance(found, Tensor) else torch.tensor(found, device="cpu"))
            away = (step.y1 - self.p.y0).abs().amax() if step.y1.numel() else self.p.y0.new_zeros(()).abs()
            self.moved = away if self.moved is None else torch.maximum(self.moved, away)
            yield step

    @property
    def ratios(self) -> list[float]:
        """The error ratio of each step; empty where the control has none."""
        return torch.stack([x.detach().double().cpu() for x in self.read]).tolist() if self.read else []

    @property
    def still(self) -> bool:
        """Whether the state stays where it is, but for rounding."""
        y0 = self.p.y0
        size = STILL * torch.finfo(y0.dtype).eps * (y0.abs().amax() if y0.numel() else 0.0)
        return self.moved is None or bool((self.moved <= size).item())
