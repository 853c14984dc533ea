"""Memory order: states, outputs and cotangents lie in memory as y0 does (channels_last, say), if y0 is dense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def memory_order(x: Tensor) -> list[int] | None:
    """The dimensions of `x`, the outermost in memory first; None if it is contiguous, has gaps or overlaps itself."""
    if x.is_contiguous():
        return None
    sizes, strides = x.shape, x.stride()
    order = sorted(range(x.ndim), key=lambda d: (-strides[d], -sizes[d]))
    length = 1
    for d in reversed(order):
        if sizes[d] != 1 and strides[d] != length:
            return None
        length *= sizes[d]
    return order


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """`torch.stack`, each row in the memory order of the first."""
    if (order := memory_order(rows[0])) is None:
        return torch.stack(list(rows))
    return restored(torch.stack([row.permute(order) for row in rows]), order)


def unstacked(x: Tensor) -> Sequence[Tensor]:
    """`x.unbind()` of what `stacked` made; the cotangent of `x` has the same memory order."""
    if (order := _order_of_rows(x)) is None:
        return x.unbind()
    return [restored(row, order) for row in permuted(x, order).unbind()]


def row(x: Tensor, i: int) -> Tensor:
    """`x[i]` of what `stacked` made; the cotangent of `x` has the same memory order."""
    order = _order_of_rows(x)
    return x[i] if order is None else restored(permuted(x, order)[i], order)


def _order_of_rows(x: Tensor) -> list[int] | None:
    order = memory_order(x)
    return [d - 1 for d in order[1:]] if order and order[0] == 0 else None


def joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """`torch.cat` of parts `(n, *like.shape)`, each row in the memory order of `like`."""
    if (order := memory_order(like)) is None:
        return torch.cat(list(parts))
    return restored(torch.cat([permuted(part, order) for part in parts]), order)


def empty_rows(n: int, like: Tensor) -> Tensor:
    """`(n, *like.shape)` without values, each row in the memory order of `like`."""
    if (order := memory_order(like)) is None:
        return like.new_empty((n, *like.shape))
    return restored(like.new_empty((n, *(like.shape[d] for d in order))), order)


def ordered(x: Tensor, like: Tensor) -> Tensor:
    """`x`, `(*lead, *like.shape)`, in the memory order of `like`; itself if it is or if `like` is contiguous."""
    order = memory_order(like)
    return x if order is None else in_order(x, order)


def order_cotangent(x: Tensor, like: Tensor) -> None:
    """Bring what a backward pass hands to `x`, `(*lead, *like.shape)`, into the memory order of `like`."""
    if (order := memory_order(like)) is not None:
        x.register_hook(lambda grad: None if grad is None else in_order(grad, order))


def in_order(x: Tensor, order: Sequence[int]) -> Tensor:
    """`x` with its last dimensions in this order in memory; itself if they are."""
    return restored(permuted(x, order).contiguous(), order)


def permuted(x: Tensor, order: Sequence[int]) -> Tensor:
    """The last dimensions of `x` in this order; a view."""
    lead = x.ndim - len(order)
    return x.permute(*range(lead), *(lead + d for d in order))


def restored(x: Tensor, order: Sequence[int]) -> Tensor:
    """The inverse of `permuted`."""
    return permuted(x, sorted(range(len(order)), key=order.__getitem__))
