"""f of one sample, and the tensors that it reads: which of them have a row for each sample, and where those are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...core import Stats
from .. import records
from ..programs import Called


def of_one(f: Any, rows: Sequence[Tensor]) -> tuple[Any, dict[int, Tensor]]:
    """f of a batch of one sample, which gets the first of each of `rows`; and those in place of which it gets them."""
    firsts = {id(x): x[:1] for x in rows}
    own = copy(f.with_tensors(firsts))
    own.structure, own.start, own.stats = replace(f.structure, lead=(1,)), None, Stats()
    return own, {id(firsts[id(x)]): x for x in rows}  # of tensors that live in its arguments


@dataclass(frozen=True)
class Reads:
    """What f reads: whole tensors, and which of them have a row for each sample."""

    tensors: tuple[Tensor, ...]
    rowed: tuple[bool, ...]

    @staticmethod
    def of(seen: Sequence[Tensor], whole: Mapping[int, Tensor]) -> Reads:
        """Of what f of one sample was seen to read."""
        return Reads(tuple(whole.get(id(x), x) for x in seen), tuple(id(x) in whole for x in seen))

    def first(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What f of the first sample reads of such tensors."""
        return [x[:1] if rowed else x for x, rowed in zip(tensors, self.rowed, strict=True)]


class Rowed:
    """Where code has the tensors with rows among its inputs, as arrays for the loops in C."""

    def __init__(
        self, called: Called, firsts: Sequence[Tensor], tensors: Sequence[Tensor], rowed: Sequence[bool]
    ):
        at = {id(x): i for i, x in enumerate(called.alive[2])}
        found = [
            (at[id(first)], x)
            for first, x, so in zip(firsts, tensors, rowed, strict=True)
            if so and id(first) in at
        ]
        self.count = len(found)
        self.places = whole([place for place, _ in found])
        self.strides = whole([row_size(x) * x.element_size() for _, x in found])
        self.bases = records.places([x for _, x in found])


def row_size(x: Tensor) -> int:
    """The number of entries of one row."""
    return x[:1].numel()


def whole(numbers: Sequence[int]) -> Any:
    """Whole numbers as an array in C, which holds one at least."""
    return (records.WHOLE * max(1, len(numbers)))(*numbers)
