"""Interpolants: polynomials in theta = (t - t0) / (t1 - t0), which is 0 at the start of a step and 1 at its end.

The one that every method can have is Hermite's cubic through y0 and y1 with the slopes f0 and f1 there (Hairer,
Norsett, Wanner, "Solving Ordinary Differential Equations I", 2nd ed., section II.6, equation (6.7)). It costs at most
the evaluation f1 = f(t1, y1), and is continuously differentiable from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor
from torch.func import jvp

from ..core import Method

HERMITE = ((1, 0, -3, 2), (0, 0, 3, -2), (0, 1, -2, 1), (0, 0, -1, 1))
"""The coefficients of theta^0, ..., theta^3 of the weights of y0, y1, h f0, h f1."""
HERMITE_ORDER = 3

_HERMITE = torch.tensor(HERMITE, dtype=torch.float64, device="cpu")


def polynomials_at(theta: Tensor, coefficients: Tensor) -> Tensor:
    """Values `(n, rows)` at `theta` `(n,)` of polynomials with coefficients `(rows, degree + 1)`, lowest degree first.

    All are float64 on the CPU.
    """
    *lower, total = coefficients.unbind(1)
    for coefficient in reversed(lower):
        total = torch.addcmul(coefficient, total, theta[:, None])
    return total


def slopes_at(theta: Tensor, coefficients: Tensor) -> Tensor:
    """The derivatives of the same polynomials, `(n, rows)`."""
    powers = torch.arange(1.0, coefficients.shape[1], dtype=torch.float64, device="cpu")
    return polynomials_at(theta, torch.nn.functional.pad(coefficients[:, 1:] * powers, (0, 1)))


def hermite_weights(theta: Tensor) -> Tensor:
    """`(n, 4)`: the weights of y0, y1, h f0 and h f1 at `theta` `(n,)`."""
    return polynomials_at(theta, _HERMITE)


def hermite_slopes(theta: Tensor) -> Tensor:
    """Their derivatives, `(n, 4)`."""
    return slopes_at(theta, _HERMITE)


def slopes_of(method: Method, theta: Tensor) -> Tensor:
    """The derivatives by theta of `Method.basis_weights`, `(n, m)`.

    A method may know them as `basis_slopes`; of any other, autograd finds them.
    """
    known = getattr(method, "basis_slopes", None)
    return (
        jvp(method.basis_weights, (theta,), (torch.ones_like(theta),))[1] if known is None else known(theta)
    )


def hermite_of_stages(weights: Sequence[Fraction], f1: int) -> list[list[Fraction]]:
    """The same cubic as weights `b_i(theta)` of stages, of which the first is f0 and number `f1` is f1.

    A row a stage, the coefficients of theta^1, theta^2, theta^3: since y1 = y0 + h sum_i b_i k_i, stage i has b_i times
    the weight of y1, and f0 and f1 have their own on top.
    """
    _, of_y1, of_f0, of_f1 = HERMITE
    rows = [[b * x for x in of_y1[1:]] for b in weights]
    rows += [[Fraction(0)] * HERMITE_ORDER for _ in range(f1 + 1 - len(rows))]
    for i, own in ((0, of_f0), (f1, of_f1)):
        rows[i] = [x + y for x, y in zip(rows[i], own[1:], strict=True)]
    return rows
