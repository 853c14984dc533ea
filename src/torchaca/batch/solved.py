"""What came out of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import Problem
from ..errors import SolverError
from ..events import Occurrences
from .dense import SampleDense
from .pieces import SamplePieces


@dataclass
class Solved:
    """What came out of a batch.

    `ys` is `(n, B, ...)`, where samples that ended earlier repeat their last state; `reached` `(n, B)` says which of
    the outputs they got to; `kinds` are those of failures by the number of the sample. `terminal` `(B,)` are the times
    at which events have ended samples, nan where none has.
    """

    p: Problem
    ys: Tensor
    reached: Tensor
    failure: SolverError | None = None
    kinds: dict[int, str] = field(default_factory=dict)
    dense: SampleDense | SamplePieces | None = None
    events: tuple[Occurrences, ...] = ()
    terminal: Tensor | None = None

    def ending(self, ts: Tensor) -> Tensor:
        """The times `(n, B)` of the outputs; behind a terminal event its time."""
        if self.terminal is None:
            return ts
        own = self.terminal.to(ts)
        return torch.where(self.reached.to(ts.device) | own.isnan(), ts, own)
