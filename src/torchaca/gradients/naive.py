"""The naive method of Zhuang et al., ICML 2020 (section 3.3): backpropagation through the step-size search.

Step sizes are functions of the state, rejected trials included, so the graph is m times deeper than the
solution's (m trials a step). It is the exact derivative of the program that was run, not of the solution it found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core import Outcome, Problem
from ..field.inputs import Inputs
from ..loops.outputs import gather
from ..loops.stepping import steps_on_tensors
from .in_place import guarded
from .look_hooks import Looking


@dataclass(frozen=True)
class Naive:
    """Backpropagation through the whole program, the search for step sizes included."""

    records: ClassVar[bool] = True
    saves: ClassVar[bool] = True

    name: str = "naive"

    def __call__(self, p: Problem, inputs: Inputs) -> Outcome:
        """Solve with autograd recording everything; see `torchaca.core.Gradient`."""
        looking = Looking(p)
        return guarded(p, looking.close(gather(p, looking.over(steps_on_tensors(p)))))
