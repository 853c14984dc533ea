"""A method whose time is the number of the step, so that samples with times of their own are one ordinary solve.

Step n goes from n to n + 1, and makes the n-th steps of all samples, each between its own times. So loops, gradients
and checkpoints see a solve with steps of equal length, and know nothing of samples. A number between two others is as
far between the times; a step over several numbers is one over the samples' times.
"""

from __future__ import annotations

import math
from abc import ABC
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, cast

import torch
from torch import Tensor

from ..core import CarryingStep, Method, Reversible, Step, VectorField
from ..layout import joined, row
from ..loops.row_steps import step_of
from ..methods.stability import Stability, stability
from ..numbers import Time, value
from .gathering import Parts
from .home import Part
from .interpolants import interpolated
from .outputs import Places


@dataclass(frozen=True, eq=False)
class _ByNumber(ABC):
    """A method with the number of the step for its time; see `torchaca.core.Method`.

    Attributes
    ----------
    method : Method
    times : Tensor
        The boundaries of the steps, `(N + 1, B, 1, ..., 1)`.
    parts : Parts
        Which samples each step computes.
    places : Places
    moving : Tensor or None
        `times` with derivatives.
    lands : bool
        An output at the end of a step is the state there.
    jumps : Tensor or None
        Where f may jump.
    """

    method: Method
    times: Tensor
    parts: Parts
    places: Places
    moving: Tensor | None = None
    lands: bool = True
    jumps: Tensor | None = None

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def order(self) -> int:
        return self.method.order

    @property
    def adaptive(self) -> bool:
        return self.method.adaptive

    @property
    def stages(self) -> int:
        return self.method.stages

    @property
    def stability(self) -> Stability:
        return stability(self.method)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The times that are differentiated: of steps, and of places."""
        return tuple(x for x in (self.moving, self.places.moving) if x is not None)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Exchange these for others of the same values."""
        own, *others = tensors
        places = replace(self.places, moving=others[0]) if others else self.places
        return replace(self, moving=own, places=places)

    def at(self, t: Time) -> Tensor:
        """The times of samples at a number, `(B, 1, ..., 1)`."""
        number, times = value(t), self.times if self.moving is None else self.moving
        n = int(number)
        if n == number:
            return times[n]
        return times[n] + (times[n + 1] - times[n]) * (number - n)

    def between(self, t0: Time, t1: Time) -> tuple[Part, tuple[Tensor, Tensor]]:
        """Which samples a step from number t0 to t1 computes, and between which times."""
        first, last = value(t0), value(t1)
        if self.moving is None and first == int(first) and last == first + 1:
            return self.parts.step(int(first))
        part, ends = self.parts.between(int(first), math.ceil(last)), (self.at(t0), self.at(t1))
        if part.whole:
            return part, ends
        first, last = (part.at_home(t, part.home.t) for t in ends)
        return part, (first, last)

    def made(
        self, f: VectorField, t0: Time, t1: Time, start: Tensor, hint: Tensor | None, graphs: Any = None
    ) -> NumberedStep:
        """The steps of all samples from number t0 to t1, from what the ones before handed on; or their `graphs`."""
        part, times = self.between(t0, t1)
        home = part.home
        given = part.at_home(start, home.y if start.ndim == part.ndim else home.carry)
        known = None if hint is None else part.at_home(hint, home.f)
        carried = start.ndim > part.ndim
        lifts = carried and self.jumps_at(value(t0))
        own, side = part.f(f), {"carried": carried, "lifts": lifts}
        if graphs is not None:
            inner = graphs.made(own, times, given, known, searches=False)
        else:
            inner = step_of(self.method, own, times, given, known, self.jumps, **side)
        return NumberedStep(self, (value(t0), value(t1)), inner, part, start, hint)

    @cached_property
    def jumped(self) -> Sequence[bool]:
        """Whether some sample is at a jump, by numbers."""
        if self.jumps is None:
            return [False] * len(self.times)
        return torch.isin(self.times, self.jumps).flatten(1).any(1).tolist()

    def jumps_at(self, t: float) -> bool:
        """Whether f jumps for some sample at a number."""
        return t == int(t) and self.jumped[int(t)]

    def basis_weights(self, theta: Tensor) -> Tensor:
        """See `torchaca.core.Method`."""
        return self.method.basis_weights(theta)

    def f1_weights(self, t0: Time, t1: Time, times: Sequence[Time]) -> None:
        """None: each sample has weights of its own."""
        return


@dataclass(frozen=True, eq=False)
class Numbered(_ByNumber):
    """A method whose steps start from y alone."""

    def step(
        self, f: VectorField, t0: Time, t1: Time, y0: Tensor, hint: Tensor | None = None
    ) -> NumberedStep:
        """See `made`."""
        return self.made(f, t0, t1, y0, hint)


@dataclass(frozen=True, eq=False)
class NumberedCarrying(_ByNumber):
    """A method whose steps hand on more than y1; see `torchaca.core.Carrying`."""

    @property
    def _own(self) -> Reversible:
        return cast("Reversible", self.method)

    @property
    def error_order(self) -> int:
        return self._own.error_order

    def units(self, h: float) -> tuple[float, ...]:
        """See `torchaca.core.Carrying`; h is a number of steps, which are as long as they are on average."""
        return self._own.units(h * self.size)

    @cached_property
    def size(self) -> float:
        """How long a step is on average."""
        sizes = self.times.diff(dim=0).abs()
        return (sizes.sum() / sizes.count_nonzero()).item()

    def lift(self, f: VectorField, t0: Time, y0: Tensor, hint: Tensor | None = None) -> Tensor:
        """See `torchaca.core.Carrying`; resting samples are lifted at home, and keep their states."""
        t, part = self.at(t0), self.parts.resting(int(value(t0)))
        home = part.home
        t, y, known = (
            None if x is None else part.at_home(x, own)
            for x, own in ((t, home.t), (y0, home.y), (hint, home.f))
        )
        assert t is not None
        assert y is not None
        carry = self._own.lift(f, t, y, known)
        return carry if part.whole else joined([y0[None], carry[1:]], y0)

    def step(
        self, f: VectorField, t0: Time, t1: Time, y0: Tensor, hint: Tensor | None = None
    ) -> NumberedStep:
        """See `made`."""
        return self.resume(f, t0, t1, self.lift(f, t0, y0, hint))

    def resume(self, f: VectorField, t0: Time, t1: Time, carry: Tensor) -> NumberedStep:
        """See `made`."""
        return self.made(f, t0, t1, carry, None)


@dataclass(frozen=True, eq=False)
class NumberedReversible(NumberedCarrying):
    """A method whose steps can be undone; see `torchaca.core.Reversible`."""

    @property
    def growth(self) -> float:
        """See `torchaca.core.Reversible`.

        Raises
        ------
        NotImplementedError
            Where f may jump.
        """
        if self.jumps is not None:
            raise NotImplementedError(
                "a step from a jump forgets what was carried, and samples come to a jump in steps of other numbers, so "
                "that they cannot be undone together: use gradient='aca', or steps='joint'"
            )
        return self._own.growth

    def place(self, t: Time) -> str:
        """Where a number is, in words."""
        return f"the start of step {value(t):.10g} of the samples"

    def undo(self, f: VectorField, t0: Time, t1: Time, carry: Tensor) -> Tensor:
        """See `torchaca.core.Reversible`."""
        part, (first, last) = self.between(t0, t1)
        found = self._own.undo(part.f(f), first, last, part.at_home(carry, part.home.carry))
        return part.put(carry, found)


class NumberedStep:
    """One step of all samples; `inner` is that of a part of them, and the others stay; see `torchaca.core.Step`.

    `start` is what the step starts from, y or what was handed on, and `given` f there, if that is known.
    """

    __slots__ = ("_ends", "_given", "_inner", "_part", "carry", "method", "t0", "t1", "y0", "y1")
    t0: Time
    t1: Time

    def __init__(
        self,
        method: _ByNumber,
        ends: tuple[float, float],
        inner: Step,
        part: Part,
        start: Tensor,
        given: Tensor | None,
    ) -> None:
        self.method, (self.t0, self.t1) = method, ends
        self._inner, self._part, self._given, self._ends = inner, part, given, ends
        if start.ndim == part.ndim:
            self.y0 = self.carry = start
            self.y1 = part.put(start, inner.y1)
        else:
            self.y0 = row(start, 0)
            self.carry = part.put(start, cast("CarryingStep", inner).carry)
            self.y1 = row(self.carry, 0)

    @property
    def error(self) -> Tensor:
        return self._part.filled(self._inner.error)

    @property
    def f0(self) -> Tensor:
        return self._part.filled(self._inner.f0)

    @property
    def hint(self) -> Tensor | None:
        f1 = self._inner.hint
        if f1 is None or self.method.jumps_at(self._ends[1]):
            return None
        if self._part.whole:
            return f1
        return None if self._given is None else self._part.put(self._given, f1)

    @hint.setter
    def hint(self, f1: Tensor | None) -> None:
        """Nobody knows f(t1, y1) beforehand where samples rest."""

    def at(self, times: Sequence[Time]) -> Tensor:
        method, part = self.method, self._part
        places = method.places
        first = bisect_left(places.numbers, value(times[0]))
        last = first + len(times)
        y1 = self.y1.expand(len(times), *self.y1.shape)
        if not any(places.inside[first:last]):
            return y1
        known = places.times if places.moving is None else places.moving
        t = known[first:last] if part.index is None else known[first:last].index_select(1, part.index)
        start, end = (part.of(method.at(t)).flatten() for t in self._ends)
        inner = self._inner
        return part.put(y1, interpolated(method.method, inner, inner.y1, t, (start, end), lands=method.lands))

    def basis(self) -> Tensor:
        return self._part.filled(self._inner.basis())
