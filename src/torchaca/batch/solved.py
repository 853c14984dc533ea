"""What came out of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..core import Problem
from ..errors import SolverError
from .dense import SampleDense


@dataclass
class Solved:
    """What came out of a batch.

    `ys` is `(n, B, ...)`, where samples that ended earlier repeat their last state; `reached` `(n, B)` says which of
    the outputs they got to; `kinds` are those of failures by the number of the sample.
    """

    p: Problem
    ys: Tensor
    reached: Tensor
    failure: SolverError | None = None
    kinds: dict[int, str] = field(default_factory=dict)
    dense: SampleDense | None = None
