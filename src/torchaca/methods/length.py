"""The arithmetic of a step: sums of its stages, its length, which multiplies them, and where in it a time lies."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from ..numbers import Time, has_lanes, value

Terms: TypeAlias = list[tuple[int, float]]
"""Indices of stages and their weights."""
Factored: TypeAlias = tuple[float, int, Terms]
"""`w (k_i + sum_j r_j k_j)` as w, i and all (j, r_j)."""


def nonzero(row: Sequence[Fraction]) -> Terms:
    """The non-zero weights of a row, as floats."""
    return [(i, float(x)) for i, x in enumerate(row) if x]


def largest_first(terms: Terms) -> Terms:
    """Sort the terms so that `weigh` multiplies with nothing above 1."""
    return sorted(terms, key=lambda term: -abs(term[1]))


def factor(terms: Terms) -> Factored:
    """Take the first weight out of `sum_i w_i k_i`."""
    if not terms:
        return 0.0, 0, []
    (first, weight), *rest = terms
    return weight, first, [(i, w / weight) for i, w in rest]


def weigh(factored: Factored, ks: Sequence[Tensor]) -> tuple[float, Tensor]:
    """`sum_i w_i k_i` as a number times a tensor: the number joins h when the sum is used, and costs nothing."""
    weight, first, rest = factored
    return weight, add_slopes(ks[first], ks, rest, 1.0)


def add_slopes(y: Tensor, ks: Sequence[Tensor], terms: Terms, h: Time) -> Tensor:
    """`y + sum_i h w_i k_i`; one operation a term if h is a host number."""
    if isinstance(h, Tensor):
        for i, w in terms:
            y = y + h * w * ks[i]
        return y
    total = None
    for i, w in terms:
        total = torch.add(y, ks[i], alpha=h * w) if total is None else total.add_(ks[i], alpha=h * w)
    return y if total is None else total


class Length:
    """The length h = t1 - t0 of a step, as what multiplies states like `like`.

    `h` is a host number. If the times carry derivatives, `dh` is a tensor of value zero with the derivative of h, and
    every `h k` becomes `h k + dh k`: the same bits, differentiable in h. If h differs between lanes of `vmap`, or
    between the samples of a batch, there is no number: `h` is None, and `dh` is all of it, in the shape of a state,
    since a broadcast over few components takes twice the time. A graph that is being traced has no host numbers: there
    `h` may be a tensor.
    """

    __slots__ = ("dh", "h", "number", "size", "t0", "t1")

    def __init__(self, t0: Time, t1: Time, like: Tensor) -> None:
        self.t0, self.t1 = t0, t1
        self.size = size = t1 - t0
        self.h: Time | None = size
        self.dh: Tensor | None = None
        self.number = None if isinstance(size, Tensor) else size
        if torch.compiler.is_compiling() or not isinstance(size, Tensor):
            return
        dtype = like.dtype.to_real()
        if size.ndim or has_lanes(size):
            self.h, self.dh = None, size.to(like.device, dtype).expand(like.shape).contiguous()
        else:
            self.h = h = value(size)
            self.dh = (size - h).to(like.device, dtype)

    def time(self, part: float) -> Time:
        """`t0 + part h`."""
        if part == 1.0:  # t1 itself, not t0 + 1.0 * h: the last stage is bit for bit the next step's first
            return self.t1
        if not part:
            return self.t0
        if self.h is None:  # a product of lanes with a number is four operations
            return torch.add(cast("Tensor", self.t0), cast("Tensor", self.size), alpha=part)
        return self.t0 + part * (self.t1 - self.t0)

    def scale(self, part: float, slope: Tensor) -> Tensor:
        """`part h slope`."""
        if self.h is None:
            return slope * part * cast("Tensor", self.dh)
        return self._with_dh(slope * (self.h * part), part, slope)

    def shift(self, y: Tensor, part: float, slope: Tensor) -> Tensor:
        """`y + part h slope`."""
        if self.h is None:
            return torch.addcmul(y, cast("Tensor", self.dh), slope, value=part)
        return self._with_dh(add_slopes(y, (slope,), [(0, part)], self.h), part, slope)

    def shift_by_all(self, y: Tensor, ks: Sequence[Tensor], terms: Terms, factored: Factored) -> Tensor:
        """`y + h sum_i w_i k_i`, the sum given in both of its forms."""
        if self.h is None:
            return self.shift(y, *weigh(factored, ks))
        moved = add_slopes(y, ks, terms, self.h)
        return moved if self.dh is None else self._with_dh(moved, *weigh(factored, ks))

    def _with_dh(self, out: Tensor, part: float, slope: Tensor) -> Tensor:
        if self.dh is None:
            return out
        return out + (self.dh if part == 1.0 else self.dh * part) * slope


def fraction(t0: Time, t1: Time, times: Sequence[Time] | Tensor) -> Tensor:
    """theta = (t - t0) / (t1 - t0) of `times`: `(len(times),)`, float64 on the CPU, differentiable."""
    start, size = on_cpu(t0), span(t0, t1)
    if isinstance(times, Tensor):
        at = on_cpu(times)
    elif any(isinstance(t, Tensor) for t in (size, *times)):
        at = torch.stack([torch.as_tensor(on_cpu(t), dtype=torch.float64, device="cpu") for t in times])
    else:
        return torch.tensor([(t - start) / size for t in times], dtype=torch.float64, device="cpu")
    return (at - start) / size


def span(t0: Time, t1: Time) -> Any:
    """The length of a step, to divide by in weights of interpolants; 1 in lanes that are done, where it is zero."""
    size = on_cpu(t1) - on_cpu(t0)
    done = isinstance(size, Tensor) and has_lanes(size)
    return torch.where(size == 0, 1.0, size) if done else size


def on_cpu(t: Time) -> Any:
    """A time for weights of interpolants, which are float64 on the CPU; a number stays one."""
    return t.to("cpu", torch.float64) if isinstance(t, Tensor) else t
