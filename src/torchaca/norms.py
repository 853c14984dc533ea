"""Norms of packed states, also of each of the independent problems in one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def length(x: Tensor, batch: int = 0) -> Tensor:
    """The Euclidean length, real: of all entries, 0-dim, or of each of the problems in so many leading dimensions."""
    return torch.linalg.vector_norm(each(x, batch), dim=-1) if batch else torch.linalg.vector_norm(x)


def each(x: Tensor, batch: int) -> Tensor:
    """The entries of each problem in a row: `(*x.shape[:batch], size)`."""
    return x.flatten(batch) if x.ndim > batch else x[..., None]


def size_of(x: Tensor, batch: int = 0) -> int:
    """The number of entries of each problem, at least 1."""
    return max(x.shape[batch:].numel(), 1)


def rms(x: Tensor, batch: int = 0) -> Tensor:
    """The root mean square, real: of all entries, 0-dim, or of each of the problems in so many leading dimensions."""
    return length(x, batch) / math.sqrt(size_of(x, batch))
