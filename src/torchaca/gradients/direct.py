"""Plain backpropagation through the accepted steps, step sizes held constant ("discretise, then optimise").

The graph of every accepted step is kept, that of rejected trials is not. Exact for the computed solution, as ACA;
the fastest backward pass, at the memory of all steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core import Outcome, Problem
from ..field.inputs import Inputs
from ..loops.outputs import gather
from .in_place import guarded
from .look_hooks import Looking
from .observed import observed


@dataclass(frozen=True)
class Direct:
    """Backpropagation through the accepted steps; step sizes are constants."""

    exact: ClassVar[bool] = True
    records: ClassVar[bool] = True
    moves: ClassVar[bool] = True
    saves: ClassVar[bool] = True

    name: str = "direct"

    def __call__(self, p: Problem, inputs: Inputs) -> Outcome:
        """Solve with autograd recording; see `torchaca.core.Gradient`."""
        looking = Looking(p)
        return guarded(p, looking.close(gather(p, looking.over(observed(p)))))
