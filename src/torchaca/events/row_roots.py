"""Where functions of one variable change their signs, one for each row: `roots` for all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .roots import LEAST, MOST, NEAR, RESOLVED, SMOOTH

Phi: TypeAlias = Callable[[Tensor], Tensor]
"""From one number for each row to another, all float64."""


def leave_zeros(phi: Phi, low: Tensor, high: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """`roots.leave_zero` of some rows; the others keep what they have."""
    start, going = torch.where(rows, 0.0, low), rows
    least = start
    for _ in range(MOST):
        middle = 0.5 * (start + high)
        positive = phi(middle) > 0
        least = torch.where(going & positive, middle, least)
        high = torch.where(going & ~positive, middle, high)
        going = going & ~positive
        if not bool(going.any()):
            break
    return torch.where(rows, least, low), torch.where(going, least, high)


def roots(phi: Phi, low: Tensor, high: Tensor, rows: Tensor) -> Tensor:
    """`roots.root` of some rows; what is found for the others means nothing."""
    a, b, c = high, low, low
    fa, fb = phi(a), phi(b)
    fa = torch.where(fa == 0, LEAST, fa)
    fc, theta, first, best, going = fb, 0.5 * torch.ones_like(low), fb, high, rows
    for _ in range(MOST):
        x = a + theta * (b - a)
        fx = phi(x)
        zero = going & (fx == 0)
        if bool(zero.any()):
            before = phi(x - NEAR * (x - low))
            through = zero & (before > 0) & (before < SMOOTH * first)
            best, going = torch.where(through, x, best), going & ~through
            fx = torch.where(fx == 0, LEAST, fx)
        same = (fx > 0) == (fa > 0)
        c, b = torch.where(same, a, b), torch.where(same, b, a)
        fc, fb = torch.where(same, fa, fb), torch.where(same, fb, fa)
        a, fa = x, fx
        nearest = torch.where(fa.abs() < fb.abs(), a, b)
        width = (b - c).abs()
        tolerance = RESOLVED * torch.maximum(nearest.abs(), (high - low).abs()) / width
        tolerance = torch.where(width == 0, 1.0, tolerance)
        found = going & ((tolerance > 0.5) | ((a - b).abs() <= RESOLVED * (high - low).abs()))
        best, going = torch.where(found, nearest, best), going & ~found
        if not bool(going.any()):
            return best
        xi, ratio = (a - b) / (c - b), (fa - fb) / (fc - fb)
        inverse = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        safe = (ratio * ratio < xi) & ((1 - ratio) ** 2 < 1 - xi)
        theta = torch.where(safe, inverse, 0.5)
        theta = torch.minimum(1 - tolerance, torch.maximum(tolerance, theta))
    return torch.where(going, a, best)
