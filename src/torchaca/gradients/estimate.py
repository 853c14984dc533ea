"""What two or three sweeps say about the error of a gradient: numbers alone.

`E` is a relative error, the largest over the inputs, each in units of its own gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CAUTION = 1.5
"""A difference is as much above the error of the coarser level; half of it is for an order that is not reached yet."""
TRUSTED = 0.5
"""A relative difference above it says nothing about the finer level."""
ACCIDENT = 0.1
"""An error that falls ten times faster than the order of the method has fallen by accident."""
SLOW = 4.0
"""Times slower than the order: then what was observed counts."""
FAST = 10.0
"""Times faster than the order: the two agree by accident, or the coarsest level was not resolved at all, and nobody has
seen the order of the others."""
SLOWEST = 1.5
LOW = (2, 3)
"""Orders whose next lower one is far behind."""
TINY = 1e-300
NOISE = 10.0
"""Roundings of the largest gradient, for each of sqrt(n) steps, in all others."""


@dataclass(frozen=True)
class Compared:
    """Two levels: how far apart they are, and by what `rate` the error should fall from one to the other."""

    apart: float
    rate: float


def of_lower_order(embedded: float, order: int) -> float:
    """The error of a method of this order where that of the next lower one is `embedded`: a guess, not to be reported.

    With errors of (h / h0)^p and (h / h0)^(p - 1), where that makes a difference.
    """
    return embedded if order not in LOW or embedded >= 1 else embedded ** (order / (order - 1))


def first_error(two: Compared, embedded: float, left: float, goal: float) -> float:
    """The error of the finer level, from a first comparison.

    Parameters
    ----------
    embedded : float
        The carried estimate: a second witness where the coarser level is off.
    left : float
        What local repairs left.
    goal : float
        Where nothing can be said, the error is above it.
    """
    apart, rate = two.apart, two.rate
    error = CAUTION * apart / (rate - 1)
    if not apart < 1:  # also nan
        error = max(1.01 * goal, embedded)
    elif apart > TRUSTED:
        error = max(2 * error, embedded)
    return max(error, left)


def next_error(
    two: Compared, before: Compared | None, old: float | None, embedded: float | None, order: int = 5
) -> float:
    """The error of the finer of two levels, where that of the coarser one was estimated as `old`, by a comparison.

    Parameters
    ----------
    before : Compared, optional
        The comparison before this one.
    embedded : float, optional
        The carried estimate on the finer one, if it was carried.
    order : int
        Of the method: nobody has seen yet whether a low one is reached, where this is the first comparison.
    """
    if not math.isfinite(two.apart):
        return math.inf
    rate, least = two.rate, 0.0
    if before is None and order in LOW:
        rate = two.rate ** ((order - 0.5) / order)
    if before is not None and two.apart > 0:
        fell = before.apart / two.apart
        least = two.apart / SLOW if fell > before.rate * FAST else 0.0
        if fell < before.rate / SLOW and before.apart < TRUSTED:
            observed = max(0.2, math.log(max(fell, 1.01)) / math.log(before.rate))
            rate = max(SLOWEST, two.rate**observed)
    accident = ACCIDENT * min(old, 1.0) / two.rate if old is not None else 0.0
    error = max(CAUTION * two.apart / (rate - 1), accident, least)
    if two.apart > TRUSTED:
        error = (
            max(error, embedded) if two.apart < 3 and embedded is not None else max(two.apart, embedded or 0)
        )
    return error


def times_finer(error: float, aim: float, order: int) -> int:
    """How much finer the next level has to be: 2 to 4 times, beyond which its difference says nothing about it."""
    if not math.isfinite(error):
        return 2
    return max(2, min(4, math.ceil((error / aim) ** (1 / order))))


def relative(
    off: Sequence[Tensor | None], grads: Sequence[Tensor | None], goal: float = 1.0, n: int = 1
) -> float:
    """The largest error of a gradient in units of its size, over inputs; inf where one is not finite.

    Each input counts by itself, however small its gradient; only what is rounding beside the largest does not, and what
    the rounding of n steps keeps from being right to `goal`.
    """
    pairs = [(size_of(a), size_of(b)) for a, b in zip(off, grads, strict=True)]
    if not pairs:
        return 0.0
    apart, sizes = (torch.stack(some) for some in zip(*pairs, strict=True))
    least = (noise(grads, goal, n) * sizes.max()).clamp(min=TINY)
    worst = (apart / torch.maximum(sizes, least)).max().item()
    return worst if math.isfinite(worst) else math.inf


def noise(grads: Sequence[Tensor | None], goal: float = 1.0, n: int = 1) -> float:
    """Of the largest gradient, what others are too small beside to be right to `goal` after n steps of rounding."""
    eps = max((torch.finfo(g.dtype).eps for g in grads if g is not None), default=0.0)
    return max(eps**0.75, NOISE * eps * math.sqrt(n) / goal)


def minus(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The differences of gradients, of which some may be absent, which is zero."""
    return [x if y is None else -y if x is None else x - y for x, y in zip(a, b, strict=True)]


def size_of(x: Tensor | None) -> Tensor:
    """The 2-norm, float64 on the CPU."""
    if x is None:
        return torch.zeros((), dtype=torch.float64, device="cpu")
    if x.layout != torch.strided:
        x = x.coalesce().values() if x.layout == torch.sparse_coo else x.to_dense()
    return torch.linalg.vector_norm(x).cpu().double()


def norms(*outputs: Tensor) -> list[list[float]]:
    """The norm of each output."""
    found = [torch.linalg.vector_norm(ys[:, None].flatten(1), dim=1) for ys in outputs]
    return torch.stack(found).cpu().double().tolist()


def of_outputs(apart: Sequence[float], sizes: Sequence[float], least: float = 1e-2) -> float:
    """The largest relative difference over outputs; small ones count as a part of the largest."""
    floor = least * max(sizes, default=0.0)
    worst = max(((a / max(s, floor, TINY)) for a, s in zip(apart, sizes, strict=True)), default=0.0)
    return worst if math.isfinite(worst) else math.inf


def weighted(apart: Sequence[float], sizes: Sequence[float], weights: Sequence[float]) -> float:
    """The relative difference of outputs, each as much as the loss asks for it."""
    total = sum(w * s for w, s in zip(weights, sizes, strict=True))
    return sum(w * a for w, a in zip(weights, apart, strict=True)) / total if total > 0 else 0.0
