"""Rows: independent problems that are solved at once, each with steps of its own.

They are lanes of `torch.func.vmap`, or the samples of a batch. What there is one of for each row, such as its time and
its step size, is a plain tensor `(*shape,)`; the loops compute with those, and `Rows` says how they meet states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..norms import each
from ..torch_internals import (
    as_lane,
    from_lanes,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_bdim,
    maybe_get_level,
)

PRICE = 0.1
"""What it costs to leave rows out, in trials of the rows that are carried: so much is computed for nothing before.

0.1 with a network for f and many rows, up to 0.7 with one operation and few (`python -m benchmarks.leaving_out`).
"""


class Rows(Protocol):
    """How numbers of rows, plain tensors `(*shape,)`, meet their states."""

    @property
    def shape(self) -> list[int]: ...
    @property
    def batch(self) -> int:
        """The number of leading dimensions in which states show the rows."""
        ...

    def spread(self, x: Tensor) -> Tensor:
        """The numbers as what broadcasts against states."""
        ...

    def each(self, x: Tensor) -> Tensor:
        """The numbers as norms of states are."""
        ...

    def gathered(self, x: Tensor) -> Tensor:
        """The inverse of `each`."""
        ...


@dataclass(frozen=True)
class Samples:
    """The samples of a batch, in the leading dimension of states that have `ndim` dimensions."""

    size: int
    ndim: int
    batch = 1

    @property
    def shape(self) -> list[int]:
        return [self.size]

    def spread(self, x: Tensor) -> Tensor:
        """See `Rows`."""
        return x.reshape(-1, *[1] * (self.ndim - 1))

    def each(self, x: Tensor) -> Tensor:
        """See `Rows`."""
        return x

    def gathered(self, x: Tensor) -> Tensor:
        """See `Rows`."""
        return x


@dataclass(frozen=True)
class Lanes:
    """The maps around a solve: level and size of each, the outermost first. States do not show them."""

    maps: list[tuple[int, int]]
    batch = 0

    @staticmethod
    def of(x: Tensor) -> Lanes:
        """Those of a tensor that has all lanes."""
        maps: list[tuple[int, int]] = []
        while is_functorch_wrapped_tensor(x):
            inside = get_unwrapped(x)
            if is_batchedtensor(x):
                maps.append((maybe_get_level(x), inside.shape[maybe_get_bdim(x)]))
            x = inside
        return Lanes(maps[::-1])

    @property
    def shape(self) -> list[int]:
        return [size for _, size in self.maps]

    def spread(self, x: Tensor) -> Tensor:
        """A plain tensor with the lanes in front, as each lane sees it."""
        for level, _ in self.maps:
            x = as_lane(x, level)
        return x

    def each(self, x: Tensor) -> Tensor:
        """See `Rows`."""
        return self.spread(x)

    def gathered(self, x: Tensor) -> Tensor:
        """The plain tensor of all lanes, which are in front."""
        for level, size in reversed(self.maps):
            x = from_lanes(_without_transforms(x), level, size)
        return _without_transforms(x)


def _without_transforms(x: Tensor) -> Tensor:
    """Without what other transforms than vmap have put around it."""
    while is_functorch_wrapped_tensor(x) and not is_batchedtensor(x):
        x = get_unwrapped(x)
    return x


@dataclass(frozen=True)
class Spans:
    """Where rows start, and the times at which their steps have to end, the last of all at the end of the solve.

    `sign` is +1 where time increases, else -1: a number, or one for each row.
    """

    start: Tensor
    stops: list[Tensor]
    sign: float | Tensor

    @property
    def end(self) -> Tensor:
        return self.stops[-1]

    @staticmethod
    def between(start: Tensor, end: Tensor, times: Tensor | None = None) -> Spans:
        """Each row from its start to its end, by way of those of the `times` that lie in between."""
        backward = end < start
        sign = torch.where(backward, -1.0, 1.0).to(start) if bool(backward.any()) else 1.0
        if times is None:
            return Spans(start, [end], sign)
        t = times[:, None]
        inside = (sign * (t - start) > 0) & (sign * (end - t) > 0)
        stops = sign * (sign * torch.where(inside, t, end)).sort(0).values
        return Spans(start, [*stops.unbind(), end], sign)

    def next_stop(self, t: Tensor) -> Tensor:
        """The nearest time ahead of each row where a step has to end."""
        *earlier, stop = self.stops
        for one in reversed(earlier):
            stop = torch.where(self.sign * (one - t) > 0, one, stop)
        return stop

    def ending(self, mask: Tensor, t: Tensor) -> Spans:
        """The same, but the rows of the mask end at their times t."""
        *earlier, end = self.stops
        stops = [torch.where(mask & (self.sign * (stop - t) > 0), t, stop) for stop in earlier]
        return Spans(self.start, [*stops, torch.where(mask, t, end)], self.sign)

    def of(self, index: Tensor) -> Spans:
        """Those of some rows."""
        sign = self.sign[index] if isinstance(self.sign, Tensor) else self.sign
        return Spans(self.start[index], [stop[index] for stop in self.stops], sign)


def beside(spans: Spans, y: Tensor) -> tuple[Tensor, Tensor]:
    """Times `(B,)` and states of samples beside their starts, each sample's moved in its own way.

    To compare f of some samples with f of all: at the starts themselves samples may be alike, or f zero.
    """
    return spans.start + _parts(y) * (spans.stops[0] - spans.start), moved(y)


def moved(y: Tensor) -> Tensor:
    """States of samples, each moved in its own way."""
    part = _parts(y).to(y.dtype.to_real()).reshape(-1, *[1] * (y.ndim - 1))
    return y * (1 + part) + part


def _parts(y: Tensor) -> Tensor:
    return torch.linspace(0.1 / max(len(y), 1), 0.1, len(y), dtype=torch.float64, device=y.device)


def differing(one: Tensor, other: Tensor) -> Tensor:
    """Which samples `(B,)` have values that differ by more than the size of a batch may do to their rounding."""
    finite = torch.isfinite(other)
    off = torch.where(finite, (one - other).abs(), 0.0)
    size = each(torch.where(finite, other, 0.0).abs(), 1).amax(1)
    far = each(off, 1).amax(1) > torch.finfo(off.dtype).eps ** 0.5 * torch.maximum(size, size.amax())
    return far | each(torch.isfinite(one) != finite, 1).any(1)
