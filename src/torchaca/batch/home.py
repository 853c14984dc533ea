"""Where samples that rest are computed, and which samples a step computes at all.

A sample that rests in a step, because it is done or has failed, is computed at its start instead, where f is defined,
and what comes of that is not used: its state stays bit for bit, and a derivative that f does not have where the sample
ended cannot get into the gradients that all samples share. Where enough of them rest, they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core import Problem, VectorField
from ..loops.rows import Samples


@dataclass(frozen=True)
class Home:
    """Where resting samples are computed: times, states and slopes, all finite, of each sample.

    `good` says which samples are at their own starts; None if all are. `carry` is what a method hands on there.
    """

    t: Tensor
    y: Tensor
    f: Tensor
    good: Tensor | None = None
    carry: Tensor | None = None

    @staticmethod
    def of(p: Problem, samples: Samples, start: Tensor) -> Home:
        """Each sample's start, or that of another one where f is not finite there."""
        assert p.f0 is not None
        y, f, t = p.y0.detach(), p.f0.detach(), samples.spread(start)
        good = (torch.isfinite(y) & torch.isfinite(f)).reshape(samples.size, -1).all(1)
        if bool(good.all()):
            return Home(t, y, f).lifted(p)
        other, own = int(good.int().argmax()), samples.spread(good)
        t, y, f = (torch.where(own, x, x[other].expand(x.shape)) for x in (t, y, f))
        if not bool(good.any()):
            y, f = torch.zeros_like(y), torch.zeros_like(f)
        return Home(t, y, f, own).lifted(p)

    def lifted(self, p: Problem) -> Home:
        """With what the method hands on."""
        if p.carrying is None:
            return self
        return replace(self, carry=p.carrying.lift(p.f.call, self.t, self.y, self.f))

    def started(self, p: Problem, start: Tensor) -> Problem:
        """The problem with an f0 whose derivative is finite, of samples that cannot start as well.

        `start` are the times at which samples start, with derivatives if they have some.
        """
        if self.good is None:
            return p
        t, y = (torch.where(self.good, *pair) for pair in ((start, self.t), (p.y0, self.y)))
        return p.knowing(p.f.call(t, y))

    def row(self, index: Tensor) -> Home:
        """That of some samples."""
        n = self.y.ndim
        t, y, f, carry = (
            None if x is None else x.index_select(x.ndim - n, index)
            for x in (self.t, self.y, self.f, self.carry)
        )
        assert t is not None
        assert y is not None
        assert f is not None
        return Home(t, y, f, None, carry)


@dataclass(frozen=True, eq=False)
class Part:
    """The samples that a step computes: those of the `index`, or all if that is None; those of `rest` are at home.

    `ndim` is the number of dimensions of a state, `size` that of all samples.
    """

    home: Home
    ndim: int
    index: Tensor | None = None
    rest: Tensor | None = None
    size: int = 0

    @property
    def whole(self) -> bool:
        """Whether no sample rests."""
        return self.index is None and self.rest is None

    def f(self, f: VectorField) -> VectorField:
        """The same f of these samples."""
        own: Any = f
        return f if self.index is None else own.fewer(self.index)

    def of(self, x: Tensor) -> Tensor:
        """What these samples have of times, states, or what is handed on."""
        return x if self.index is None else x.index_select(x.ndim - self.ndim, self.index)

    def at_home(self, x: Tensor, home: Tensor | None) -> Tensor:
        """What these samples have of it; those at rest have what is at home."""
        x = self.of(x)
        return x if self.rest is None or home is None else torch.where(self.rest, home, x)

    def put(self, full: Tensor, x: Tensor) -> Tensor:
        """`x` of these samples, and what all had before, `full`, of those at rest."""
        if self.rest is not None:
            x = torch.where(self.rest, self.of(full), x)
        return x if self.index is None else full.index_copy(full.ndim - self.ndim, self.index, x)

    def filled(self, x: Tensor) -> Tensor:
        """`x` of these samples, and zeros of the others."""
        if self.index is None:
            return x
        dim = x.ndim - self.ndim
        shape = (*x.shape[:dim], self.size, *x.shape[dim + 1 :])
        return x.new_zeros(shape).index_copy(dim, self.index, x)
