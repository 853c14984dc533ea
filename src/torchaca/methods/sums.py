"""Sums of stages with the weights of a row of a tableau, in the fewest operations."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import torch
from torch import Tensor

from ..numbers import Time

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
