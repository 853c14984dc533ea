"""A method whose time is the number of the step, so that samples with times of their own are one ordinary solve.

Step n goes from n to n + 1, and makes the n-th steps of all samples, each between its own times. So loops, gradients
and checkpoints see a solve with steps of equal length, and know nothing of samples.

A sample that rests in a step, because it is done or has failed, is computed at its start instead, where f is defined,
and what comes of that is not used: its state stays bit for bit, and a derivative that f does not have where the sample
ended cannot get into the gradients that all samples share.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core import Method, Problem, Step, VectorField
from ..loops.rows import Samples
from ..numbers import Time, value
from .outputs import Places


@dataclass(frozen=True)
class Home:
    """Where resting samples are computed: times, states and slopes, all finite, of each sample.

    `good` says which samples are at their own starts; None if all are.
    """

    t: Tensor
    y: Tensor
    f: Tensor
    good: Tensor | None = None

    @staticmethod
    def of(p: Problem, samples: Samples, start: Tensor) -> Home:
        """Each sample's start, or that of another one where f is not finite there."""
        assert p.f0 is not None
        y, f, t = p.y0.detach(), p.f0.detach(), samples.spread(start)
        good = (torch.isfinite(y) & torch.isfinite(f)).reshape(samples.size, -1).all(1)
        if bool(good.all()):
            return Home(t, y, f)
        other, own = int(good.int().argmax()), samples.spread(good)
        t, y, f = (torch.where(own, x, x[other].expand(x.shape)) for x in (t, y, f))
        if not bool(good.any()):
            y, f = torch.zeros_like(y), torch.zeros_like(f)
        return Home(t, y, f, own)

    def started(self, p: Problem) -> Problem:
        """The problem with an f0 whose derivative is finite, of samples that cannot start as well."""
        if self.good is None:
            return p
        return p.knowing(p.f.call(self.t, torch.where(self.good, p.y0, self.y)))


@dataclass(frozen=True, eq=False)
class Numbered:
    """A method with the number of the step for its time; see `torchaca.core.Method`.

    `times` are the boundaries of the steps, `(N + 1, B, 1, ..., 1)`.
    """

    method: Method
    times: Tensor
    home: Home
    places: Places

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

    @cached_property
    def rests(self) -> list[Tensor | None]:
        """Which samples rest in each step; None if none does."""
        rests = self.times[1:] == self.times[:-1]
        some = rests.flatten(1).any(1).tolist()
        return [rest if so else None for rest, so in zip(rests, some, strict=True)]

    def step(
        self, f: VectorField, t0: Time, t1: Time, y0: Tensor, hint: Tensor | None = None
    ) -> NumberedStep:
        """The steps of all samples from number t0 to t1."""
        n = int(t0)
        start, end, rest, home = self.times[n], self.times[n + 1], self.rests[n], self.home
        if rest is None:
            inner = self.method.step(f, start, end, y0, hint)
            return NumberedStep(self, n, inner, y0, inner.y1, None, hint)
        start, end = (torch.where(rest, home.t, t) for t in (start, end))
        y = torch.where(rest, home.y, y0)
        known = None if hint is None else torch.where(rest, home.f, hint)
        inner = self.method.step(f, start, end, y, known)
        return NumberedStep(self, n, inner, y0, torch.where(rest, y0, inner.y1), rest, hint)

    def basis_weights(self, theta: Tensor) -> Tensor:
        """See `torchaca.core.Method`."""
        return self.method.basis_weights(theta)

    def f1_weights(self, t0: Time, t1: Time, times: Sequence[Time]) -> None:
        """None: each sample has weights of its own."""


class NumberedStep:
    """One step of all samples, `inner`, in which those of `rest` stay at `y0`; see `torchaca.core.Step`."""

    __slots__ = ("_given", "_inner", "_rest", "method", "t0", "t1", "y0", "y1")
    t0: Time
    t1: Time

    def __init__(
        self,
        method: Numbered,
        n: int,
        inner: Step,
        y0: Tensor,
        y1: Tensor,
        rest: Tensor | None,
        given: Tensor | None,
    ) -> None:
        self.method, self.t0, self.t1, self.y0, self.y1 = method, float(n), float(n + 1), y0, y1
        self._inner, self._rest, self._given = inner, rest, given

    @property
    def error(self) -> Tensor:
        return self._inner.error

    @property
    def f0(self) -> Tensor:
        return self._inner.f0

    @property
    def hint(self) -> Tensor | None:
        f1 = self._inner.hint
        if self._rest is None or f1 is None:
            return f1
        return None if self._given is None else torch.where(self._rest, self._given, f1)

    @hint.setter
    def hint(self, f1: Tensor | None) -> None:
        """Nobody knows f(t1, y1) beforehand where samples rest."""

    def at(self, times: Sequence[Time]) -> Tensor:
        places, n = self.method.places, int(value(self.t0))
        first = bisect_left(places.numbers, value(times[0]))
        last = first + len(times)
        if not any(places.inside[first:last]):
            return self.y1.expand(len(times), *self.y1.shape)
        start, end = (self.method.times[i].flatten() for i in (n, n + 1))
        return interpolated(self.method, self, self.y1, places.times[first:last], start, end)

    def basis(self) -> Tensor:
        return self._inner.basis()


def interpolated(method: Method, step: Step, y1: Tensor, t: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The states at times `(k, B)` inside of a step from `start` to `end`, `(B,)`; at its end those are `y1`."""
    size = end - start
    theta = (t - start) / torch.where(size == 0, 1.0, size)
    weights = method.basis_weights(theta.flatten().cpu())
    weights = weights.to(y1.device, y1.dtype.to_real()).reshape(*theta.shape, -1)
    y = _combined(weights, step.basis())
    done = (t == end).reshape(*t.shape, *[1] * (y.ndim - t.ndim))
    return torch.where(done, y1, y)


def _combined(weights: Tensor, basis: Tensor) -> Tensor:
    """The sums over m of `basis` `(m, B, ...)` with weights `(k, B, m)` of each sample: `(k, B, ...)`.

    Not a matrix product, as in `numbers.combined`, and from the last to the first, which is y0.
    """
    shape = (*weights.shape[:2], *[1] * (basis.ndim - 2))
    columns = [column.reshape(shape) for column in weights.unbind(-1)]
    total = columns[-1] * basis[-1]
    for column, row in zip(columns[-2::-1], basis.unbind()[-2::-1], strict=True):
        total = torch.addcmul(total, column, row)
    return total
