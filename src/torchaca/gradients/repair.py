"""Local repair: a step that is too long for its derivative is taken as 2, 4, 8 ... sub-steps, until they agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .estimate import SLOWEST, TINY, TRUSTED, minus, noise, size_of
from .replay import MaybeTensors

MOST = 2**14
"""Sub-steps of one step."""
LEAST = 8
"""So many before anybody says that more of them change nothing."""
UNSEEN = 0.5
"""Of 2^order: by how much an error falls at first, before it was seen to fall."""


@dataclass(frozen=True)
class Repaired:
    """A step as `parts` sub-steps: its product, what that is off by, and how large this is, relatively."""

    parts: int
    product: MaybeTensors
    off: MaybeTensors
    left: float


def until_they_agree(
    taken: Callable[[int], MaybeTensors],
    own: MaybeTensors,
    size: Callable[[MaybeTensors, MaybeTensors], float],
    order: int,
    goal: float,
    most: int = MOST,
) -> Repaired:
    """Double the sub-steps until the product is off by `goal` at most, or there are `most` of them.

    Doubling from one is right: at rest neighbouring steps differ tenfold, so that nothing is known beforehand, and all
    that is tried costs at most as much again as the last try.

    Parameters
    ----------
    taken : callable
        The product of m sub-steps.
    own : list
        That of the step itself.
    size : callable
        `size(off, product)`, how large an error is.
    """
    parts, coarse, before = 1, own, math.inf
    while True:
        parts *= 2
        fine = taken(parts)
        off = minus(fine, coarse)
        apart = size(off, fine)
        rate = observed(before, apart, order) if parts > 2 else max(SLOWEST, UNSEEN * 2**order)
        left = apart / (rate - 1)
        stuck = parts > LEAST and before < TRUSTED and apart > before / SLOWEST
        if left <= goal or stuck or 2 * parts > most:
            return Repaired(parts, fine, [None if x is None else x / (rate - 1) for x in off], left)
        coarse, before = fine, apart


def observed(before: float, apart: float, order: int) -> float:
    """By how much an error falls when steps are halved: by 2^order, or as much as was seen where that is less."""
    seen = before / apart if apart > 0 and math.isfinite(apart) else math.inf
    return min(2.0**order, max(SLOWEST, seen))


def local_size(
    off: MaybeTensors,
    product: MaybeTensors,
    incoming: Tensor,
    totals: Sequence[Tensor | None],
    goal: float = 1.0,
) -> float:
    """A step's error relative to the larger of the cotangents at its ends, and to each other gradient so far.

    Parameters
    ----------
    off, product : list of Tensor or None
        Their boundaries, the second and third entry, do not count.
    incoming : Tensor
        The norm of the cotangents of the step's end and of the outputs in it, 0-dim.
    totals : sequence of Tensor or None
        The gradients so far, without this step.
    goal : float
        What rounding beside the largest of them keeps from being right to `goal` does not count.
    """
    apart, *others = off[0], *off[3:]
    state = size_of(apart) / torch.maximum(size_of(product[0]), incoming).clamp(min=TINY)
    sums = [
        own if total is None else total if own is None else own + total
        for own, total in zip(product[3:], totals, strict=True)
    ]
    sizes = torch.stack([incoming * 0.0, *(size_of(x) for x in sums)])
    errors = torch.stack([incoming * 0.0, *(size_of(e) for e in others)])
    least = (noise(sums, goal) * sizes.max()).clamp(min=TINY)
    found = torch.maximum(state, (errors / torch.maximum(sizes, least)).max()).item()
    return found if math.isfinite(found) else math.inf


def growth_of(product: MaybeTensors, incoming: Tensor) -> float:
    """By how much a step multiplies the norm of the cotangents."""
    return (size_of(product[0]) / incoming.clamp(min=TINY)).item()


def norm_of(cotangents: Sequence[Tensor]) -> Tensor:
    """The norm of all of them together, 0-dim."""
    return torch.stack([size_of(x) for x in cotangents]).square().sum().sqrt()
