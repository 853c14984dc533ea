"""What a backward pass with sub-steps is the gradient of, recorded by autograd: the values of the steps as they were
taken, the derivative of `march_shifted`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchaca.core import Problem
from torchaca.gradients import without_graph
from torchaca.gradients.substeps import march_shifted
from torchaca.loops.outputs import gather
from torchaca.loops.stepping import steps


@dataclass(frozen=True)
class Shifted:
    """A gradient whose steps are taken as `parts(number of steps)` sub-steps each."""

    parts: Callable[[int], Sequence[int]]
    name: str = "shifted"
    exact, records = False, True

    def __call__(self, p: Problem, inputs):
        plain = without_graph(p)
        taken = gather(plain, steps(plain))
        boundaries = p.control.boundaries(p.ts, taken.times)
        found = gather(p, march_shifted(p, boundaries, self.parts(len(taken.times) - 1)))
        found.times = taken.times
        found.ys = found.ys + (taken.ys - found.ys).detach()
        return found
