"""What became of the trials of rows, of which some may have been left out on the way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Trial(NamedTuple):
    """The next trial of rows, `(*rows,)`: which take part, where it ends, its size, and if a stop cuts it short.

    `clipped` is None where nobody goes on from stops.
    """

    active: Tensor
    t1: Tensor
    size: Tensor
    clipped: Tensor | None


class Trials:
    """The trials of rows that start at `start`, `(*rows,)`, and where rows were when they were left out.

    Attributes
    ----------
    n : int
        How many trials there were, of whatever rows.
    t, y, failed : Tensor
        Of all rows, where they were when that was last noted.
    """

    t: Tensor
    y: Tensor
    failed: Tensor

    def __init__(self, start: Tensor) -> None:
        self.start, self.n = start, 0
        self._told: list[tuple[Tensor | None, list[tuple[Tensor, Tensor, Tensor]]]] = [(None, [])]

    def note(self, t1: Tensor, active: Tensor, success: Tensor) -> None:
        """Note a trial that ends at `t1`, of the rows that are active; which of them have accepted it."""
        self.n += 1
        self._told[-1][1].append((t1, active, success))

    def leave(self, index: Tensor) -> None:
        """From now on there are trials of these rows alone."""
        self._told.append((index, []))

    def note_where(self, index: Tensor | None, t: Tensor, y: Tensor, failed: Tensor) -> None:
        """Note where some rows are, all of them before some are left out."""
        if index is None:
            self.t, self.y, self.failed = t.clone(), y.clone(), failed.clone()
        else:
            self.t[index], self.y[index], self.failed[index] = t, y, failed

    def boundaries(self, end: Tensor) -> tuple[Tensor, int]:
        """The times between which each row has stepped, padded with its `end`: `(n, *rows)`.

        The number that goes with it is that of most rejected trials of a row.
        """
        times, active, accepted = self._of_all()
        numbers = accepted.cumsum(0)
        most = int(numbers[-1].max())
        boundaries = end.expand(most + 1, *end.shape).clone()
        boundaries.scatter_(0, numbers * accepted, times)  # rejected trials: to row 0
        boundaries[0] = self.start
        return boundaries, int((active.sum(0) - numbers[-1]).max())

    def counts(self) -> tuple[Tensor, Tensor]:
        """How many trials each row has accepted, and how many rejected."""
        if not self.n:
            none = torch.zeros_like(self.start, dtype=torch.int64)
            return none, none.clone()
        _, active, accepted = (x.sum(0) for x in self._of_all())
        return accepted, active - accepted

    def _of_all(self) -> tuple[Tensor, Tensor, Tensor]:
        """When trials ended, whose they were, and who has accepted them: `(n, *rows)`."""
        columns = [
            [self._spread(index, x) for x in zip(*told, strict=True)] for index, told in self._told if told
        ]
        times, active, accepted = map(torch.cat, zip(*columns, strict=True))
        return times, active, accepted

    def _spread(self, index: Tensor | None, told: tuple[Tensor, ...]) -> Tensor:
        """What was told of some rows, with zeros for the others."""
        x = torch.stack(told)
        if index is None:
            return x
        full = x.new_zeros((len(x), *self.start.shape))
        full[:, index] = x
        return full
