"""Dense output of a solve through events: one for each stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import add_safe_globals

from ..dense import DenseOutput
from ..numbers import host_times, value
from ..torch_internals import pytree
from ..transforms import refuse_lanes


@dataclass(frozen=True)
class Pieces:
    """`y(t)` from event to event; at the time of an event it is the state after it.

    Parameters
    ----------
    parts : sequence of DenseOutput
        One for each stretch.
    end : float
        The last time of the solve.
    """

    parts: Sequence[DenseOutput]
    end: float

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (list(self.parts), self.end)

    def __call__(self, t: Any) -> Any:
        """The state at `t`; see `torchaca.dense.DenseOutput`.

        Raises
        ------
        ValueError
            For times outside of the solve.
        """
        return self._at(t, "__call__")

    def derivative(self, t: Any) -> Any:
        """The derivative of `y(t)` by time; see `torchaca.dense.DenseOutput`.

        Raises
        ------
        ValueError
            For times outside of the solve.
        """
        return self._at(t, "derivative")

    def _at(self, t: Any, what: str) -> Any:
        refuse_lanes(t, "t")
        at = host_times(t)
        times = at.reshape(-1)
        wanted = np.array(times.detach().tolist())
        starts = np.array([value(part.boundaries[0]) for part in self.parts])
        sign = -1.0 if self.end < starts[0] else 1.0
        index = (np.searchsorted(sign * starts, sign * wanted, side="right") - 1).clip(0)
        mine = [torch.from_numpy(np.flatnonzero(index == n)) for n in range(len(self.parts))]
        if not len(wanted):
            return getattr(self.parts[0], what)(at)
        values = [
            getattr(part, what)(self._within(n, times[own]))
            for n, (part, own) in enumerate(zip(self.parts, mine, strict=True))
            if len(own)
        ]
        order = torch.argsort(torch.cat(mine))
        return pytree.tree_map(
            lambda *some: torch.cat(some)[order.to(some[0].device)].reshape(*at.shape, *some[0].shape[1:]),
            *values,
        )

    def _within(self, n: int, times: Tensor) -> Tensor:
        """Times in stretch n, which may end a rounding of the interpolant before the event."""
        last = value(self.parts[n].boundaries[-1])
        if n + 1 == len(self.parts) and last == self.end:
            return times
        event = self.end if n + 1 == len(self.parts) else value(self.parts[n + 1].boundaries[0])
        between = (times - last).sign() * (event - last) > 0
        return torch.where(between & ((times - event).sign() * (event - last) <= 0), last, times)


def _restored(parts: list[DenseOutput], end: float) -> Pieces:
    """The pieces of which these are the values."""
    return Pieces(parts, end)


add_safe_globals([_restored])


def pieces_of(stretches: Sequence[DenseOutput], end: float) -> Pieces:
    """Join the dense outputs of stretches; those of no length at all are left out, except for the last one."""
    *others, last = stretches
    return Pieces([*(part for part in others if part.bases), last], end)
