"""A value of the graph while it is translated: how a number of it is computed, and where it lies if it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .sizes import Size, dense, same

if TYPE_CHECKING:
    from .nest import Nest

Index = tuple[str, ...] | str
"""Where in a value, as C expressions: one a dimension, "0" where its size is one; or one for all, row-major."""

Load = Callable[["Nest", Index], str]


@dataclass(frozen=True)
class Place:
    """Where a value lies: `buffer[offset + sum of index * stride]`."""

    buffer: str
    strides: tuple[Size, ...]
    offset: Size = 0


@dataclass(frozen=True)
class Product:
    """A matrix product that is not computed yet: `a @ b`, both with a place; or its transpose."""

    a: Value
    b: Value
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph.

    Attributes
    ----------
    load
        Gives the name of one of its numbers in a nest of loops.
    reads
        The buffers that this reads.
    cost
        About how many operations that takes; 0 where it is no more than a read.
    flat
        Whether `load` takes one index for all dimensions.
    place
        Where it lies, if it does.
    product
        What it is, if it is a matrix product that is not computed yet: then it cannot be loaded.
    """

    shape: tuple[Size, ...]
    dtype: torch.dtype
    load: Load
    reads: frozenset[str] = frozenset()
    cost: int = 0
    flat: bool = False
    place: Place | None = None
    product: Product | None = None


def is_dense(shape: Sequence[Size], strides: Sequence[Size]) -> bool:
    """Whether numbers with these strides lie one after the other, row-major."""
    own = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    return same([s for _, s in own], dense([n for n, _ in own]))


def used(index: Index, shape: Sequence[Size], into: Sequence[Size]) -> Index:
    """The index of the number of a value of shape `into` that is seen, by broadcasting, at an index into `shape`."""
    if isinstance(index, str):
        return index if into else ()
    own = index[len(shape) - len(into) :]
    return tuple("0" if n == 1 else i for i, n in zip(own, into, strict=True))
