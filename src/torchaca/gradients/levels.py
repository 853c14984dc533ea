"""Grids for the error of a gradient: about half of the steps that were taken, or each of them in equal parts.

Levels are made from the steps that were taken, without a search: no trial is rejected, and errors are smooth in the
step size, so that two levels say what the error of the finer one is (Hairer, Norsett, Wanner, "Solving Ordinary
Differential Equations I", section II.4).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from ..core import Control, End, Problem, Step, Times
from ..loops.stepping import march
from ..numbers import Time

FEW = 8
"""Of fewer steps half cannot be left out: at rest the merged step would be as long as the longest."""
SMALLEST = 1e-6
"""A step counts as if its error ratio were at least this much, if it is the longest."""


@dataclass(frozen=True)
class Regridded:
    """Steps that end at places among those of another control, counted in its steps: 1.5 is halfway in the second.

    They move with the times that the steps of the other one move with.
    """

    adaptive: ClassVar[bool] = False

    control: Control
    taken: tuple[float, ...]
    places: tuple[float, ...]

    @staticmethod
    def of(control: Control, taken: Sequence[float]) -> Regridded:
        """The steps as they were taken."""
        return Regridded(control, tuple(taken), tuple(map(float, range(len(taken)))))

    def at(self, places: Sequence[float]) -> Regridded:
        """The same with steps between other places."""
        return replace(self, places=tuple(places))

    @property
    def max_steps(self) -> int | None:
        """That of the other control."""
        return getattr(self.control, "max_steps", None)

    def moves(self, p: Problem) -> Generator[Step, None, End]:
        """Yield the steps of a problem; see `torchaca.core.Control`."""
        return march(p, self.boundaries(p.ts))

    def boundaries(self, ts: Times, taken: Sequence[float] = ()) -> list[Time]:
        """The ends of the steps, which move with `ts` as those of the other control do."""
        ends = self.control.boundaries(ts, self.taken)
        return [_between(ends, place) for place in self.places]

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Those of the other control."""
        return self.control.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> Regridded:
        """Exchange the tensors of the other control."""
        return replace(self, control=self.control.with_tensors(tensors))

    def within(self, start: float, end: float) -> Control:
        """Take the other control's."""
        return self.control.within(start, end)


def _between(ends: Sequence[Time], place: float) -> Time:
    whole = int(place)
    if whole == place:
        return ends[whole]
    return ends[whole] + (ends[whole + 1] - ends[whole]) * (place - whole)


def divided(places: Sequence[float], k: int) -> list[float]:
    """Divide each step into k equal ones."""
    return [a + (b - a) * (j / k) for a, b in pairwise(places) for j in range(k)] + [places[-1]]


def repeated(each: Sequence[float], k: int) -> list[float]:
    """What is known of steps, for k equal parts of each."""
    return [x for x in each for _ in range(k)]


def merged(n: int, fixed: Sequence[int]) -> list[float]:
    """About half of n steps, evenly spaced in their number between those ends that have to stay, `fixed`."""
    places: list[float] = []
    for a, b in pairwise(sorted({0, *fixed, n})):
        count = max(1, (b - a) // 2)
        places += [a + j * (b - a) / count for j in range(count)]
    return [*places, float(n)]


def growth(places: Sequence[float], sizes: Sequence[float], ratios: Sequence[float], order: int) -> float:
    """By how much the local errors are larger between these places, on average: 2^order for steps twice as long.

    Parameters
    ----------
    places : sequence of float
        Of a coarser level, counted in the steps that have these `sizes`.
    ratios : sequence of float
        Error ratios of the steps, or nothing: then all count by their sizes.
    """
    longest = max(sizes)
    known = ratios or [0.0] * len(sizes)
    weights = [max(r, SMALLEST * (h / longest) ** (order + 1)) for r, h in zip(known, sizes, strict=True)]
    ends, grown = [0.0], 0.0
    for h in sizes:
        ends.append(ends[-1] + h)
    for a, b in pairwise(places):
        size = _place(ends, b) - _place(ends, a)
        for i in range(int(a), len(sizes)):
            share = min(b, i + 1) - max(a, i)
            if share <= 0:
                break
            grown += share * weights[i] * (size / sizes[i]) ** order
    return grown / sum(weights)


def _place(ends: Sequence[float], place: float) -> float:
    whole = int(place)
    return ends[whole] if whole == place else ends[whole] + (ends[whole + 1] - ends[whole]) * (place - whole)


def parts_of(
    coarse: Sequence[float], fine: Sequence[float], parts: Sequence[int], fraction: float
) -> list[int]:
    """Sub-steps of a coarser level's steps: a fraction of those that a finer level has over the same stretch."""
    counts = [0.0] * (len(coarse) - 1)
    for (a, b), m in zip(pairwise(fine), parts, strict=True):
        first = min(bisect_right(coarse, a) - 1, len(counts) - 1)
        for i in range(first, len(counts)):
            share = min(b, coarse[i + 1]) - max(a, coarse[i])
            if share <= 0:
                break
            counts[i] += m * share / (b - a)
    return [max(1, round(fraction * count)) for count in counts]
