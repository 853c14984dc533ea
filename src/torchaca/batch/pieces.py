"""Dense output of samples that have solved through events: one for each stretch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..numbers import host_times
from ..torch_internals import pytree
from .clock import Clock
from .dense import SampleDense


@dataclass(frozen=True, eq=False)
class SamplePieces:
    """`y(t)` of each sample from event to event; at the time of an event it is the state after it.

    Parameters
    ----------
    parts : sequence of SampleDense
        One for each stretch.
    span : Tensor
        `(2, B)`, where samples start, and where they would end without terminal events and failures.
    """

    parts: Sequence[SampleDense]
    span: Tensor

    @staticmethod
    def of(parts: Sequence[SampleDense], clock: Clock) -> SamplePieces:
        """Those of the stretches of a solve."""
        return SamplePieces(tuple(parts), torch.stack([clock.wanted[0], clock.wanted[-1]]))

    def __deepcopy__(self, memo: dict[int, Any]) -> SamplePieces:
        """The values; a graph belongs to the original alone."""
        return SamplePieces([deepcopy(part, memo) for part in self.parts], self.span.clone())

    def __call__(self, t: Any) -> Any:
        """The states at `t`; see `SampleDense`. Behind a terminal event they are nan.

        Raises
        ------
        ValueError
            For times outside of a sample's own.
        """
        return self._at(t, "__call__")

    def derivative(self, t: Any) -> Any:
        """The derivative by time of the same."""
        return self._at(t, "derivative")

    def _at(self, t: Any, what: str) -> Any:
        given, (first, *_) = host_times(t), self.parts
        at = first.of_each(given).to(self.span.device)
        first.refuse_outside(at.detach(), self.span)
        ends = [part.times.detach()[[0, -1]] for part in self.parts]  # (2, B) each
        sign = torch.where(self.span[1] < self.span[0], -1.0, 1.0).to(at)
        passed = torch.stack([sign * (at.detach() - start) >= 0 for start, _ in ends])
        if what == "derivative":  # a sample that is done has none where it stays
            passed &= torch.stack([start != end for start, end in ends])[:, None]
        number = torch.arange(len(ends), device=at.device).reshape(-1, 1, 1)
        index = (passed * number).amax(0)
        values = None
        for n, (part, span) in enumerate(zip(self.parts, ends, strict=True)):
            inside = torch.minimum(torch.maximum(at, span.amin(0)), span.amax(0))
            mine, own = index == n, getattr(part, what)(inside.T)
            values = own if values is None else _chosen(mine, own, values)
        missed = at.isnan() | (sign * (at - ends[-1][1]) > 0)
        values = pytree.tree_map(lambda x: torch.where(_wide(missed, x), torch.nan, x), values)
        return values if given.ndim else pytree.tree_map(lambda x: x[0], values)


def _chosen(mask: Tensor, some: Any, others: Any) -> Any:
    return pytree.tree_map(lambda x, other: torch.where(_wide(mask, x), x, other), some, others)


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (like.ndim - 2))
