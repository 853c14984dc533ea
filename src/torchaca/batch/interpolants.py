"""The interpolant of a step that each sample makes between times of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core import Method, Step


def interpolated(
    method: Method,
    step: Step,
    y1: Tensor,
    t: Tensor,
    ends: tuple[Tensor, Tensor],
    *,
    lands: bool = True,
) -> Tensor:
    """The states at times `(k, B)` inside of a step between its `ends`, `(B,)`; at its end `y1`, if it lands."""
    start, end = ends
    theta = fraction_of(t, start, end)
    y = combined_rows(weights_at(method.basis_weights, theta, y1), step.basis()[:, None])
    if not lands:
        return y
    done = (t == end).reshape(*t.shape, *[1] * (y.ndim - t.ndim))
    return torch.where(done, y1, y)


def fraction_of(t: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Which part of a step lies before t; 0 in one of length zero."""
    size = end - start
    return (t - start) / torch.where(size == 0, 1.0, size)


def weights_at(weights: Callable[[Tensor], Tensor], theta: Tensor, like: Tensor) -> Tensor:
    """`(*theta.shape, m)` weights of a basis, where and as precise as a state is."""
    found = weights(theta.flatten().cpu())
    return found.to(like.device, like.dtype.to_real()).reshape(*theta.shape, -1)


def combined_rows(weights: Tensor, basis: Tensor) -> Tensor:
    """The sums over m of `basis` `(m, k or 1, B, ...)` with weights `(k, B, m)` of each sample: `(k, B, ...)`.

    Not a matrix product, as in `numbers.combined`, and from the last to the first, which is y0.
    """
    shape = (*weights.shape[:2], *[1] * (basis.ndim - 3))
    columns = [column.reshape(shape) for column in weights.unbind(-1)]
    total = columns[-1] * basis[-1]
    for column, row in zip(columns[-2::-1], basis.unbind()[-2::-1], strict=True):
        total = torch.addcmul(total, column, row)
    return total
