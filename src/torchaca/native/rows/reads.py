"""f of a few samples, and the tensors that it reads: which of them have a row for each sample, and where those are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...core import Stats
from .. import records
from ..graphs import Lanes, is_laid
from ..programs import Called


def of_lanes(f: Any, rows: Sequence[Tensor], width: int) -> tuple[Any, dict[int, Tensor]]:
    """f of a batch of so many samples, which gets the first of each of `rows`; and in place of which it gets them."""
    firsts = {id(x): repeated(x, width) for x in rows}
    own = copy(f.with_tensors(firsts))
    own.structure, own.start, own.stats = replace(f.structure, lead=(width,)), None, Stats()
    return own, {id(firsts[id(x)]): x for x in rows}  # of tensors that live in its arguments


def repeated(x: Tensor, width: int) -> Tensor:
    """The first sample of a tensor, so many times."""
    return x[:1].expand(width, *x.shape[1:]).contiguous()


@dataclass(frozen=True)
class Reads:
    """What f reads: whole tensors, and which of them have a row for each sample."""

    tensors: tuple[Tensor, ...]
    rowed: tuple[bool, ...]

    @staticmethod
    def of(seen: Sequence[Tensor], whole: Mapping[int, Tensor]) -> Reads:
        """Of what f of a few samples was seen to read."""
        return Reads(tuple(whole.get(id(x), x) for x in seen), tuple(id(x) in whole for x in seen))

    def lanes_of(self, tensors: Sequence[Tensor], width: int) -> list[Tensor]:
        """Such tensors as the code of lanes takes them, with the first sample in each lane, in memory of their own."""
        own = [repeated(x, width).clone() if so else x for x, so in zip(tensors, self.rowed, strict=True)]
        return Lanes.of(self.rowed, own).inputs(own)


class Rowed:
    """Where code has the tensors with rows among its inputs, as arrays for the loops in C.

    `inputs` are those of the code, with lanes of their own, and `tensors` what has a row for each sample.
    """

    def __init__(
        self, called: Called, inputs: Sequence[Tensor], tensors: Sequence[Tensor], rowed: Sequence[bool]
    ):
        at = {id(x): i for i, x in enumerate(called.alive[2])}
        found = [
            (at[id(own)], x)
            for own, x, so in zip(inputs, tensors, rowed, strict=True)
            if so and id(own) in at
        ]
        self.count, self.inputs = len(found), inputs
        self.places = whole([place for place, _ in found])
        self.counts = whole([x[:1].numel() for _, x in found])
        self.laid = whole([int(is_laid(x)) for _, x in found])
        self.sizes = whole([x.element_size() for _, x in found])
        self.bases = records.places([x for _, x in found])


def whole(numbers: Sequence[int]) -> Any:
    """Whole numbers as an array in C, which holds one at least."""
    return (records.WHOLE * max(1, len(numbers)))(*numbers)
