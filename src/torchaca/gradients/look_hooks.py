"""The look at a suspect where the graphs of the steps are kept, and the backward pass is autograd's; see `look`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from ..core import Outcome, Problem, Step
from ..field.inputs import Inputs
from ..field.places import Reads
from ..field.reach import reach
from ..torch_internals import is_legacy_batchedtensor, transformed
from .look import Look, Suspect, suspects, told
from .replay import Ambience, backward_pass, without_graph


class Looking:
    """The looks at recorded steps, whose graph is a part of the caller's: `over` them, and then `close`.

    A look is a step of its own there, in a hook of the state that the suspect has ended with.
    """

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def over(self, accepted: Iterable[Step]) -> Iterator[Step]:
        """Pass the steps on; those that may be suspects are kept."""
        rests, start, free = self.p.log.rests, self.p.first, 0
        handed, kept = self.p.handed, self.kept
        for n, step in enumerate(accepted):
            end = handed(step)
            if len(rests.ratios) > free or rests.small:
                free, kept[n] = len(rests.ratios), (start, end)
            yield step
            start = end

    def close(self, outcome: Outcome, inputs: Inputs | None = None) -> Outcome:
        """Put the hooks in place; `inputs` are those of the solve, if they are known."""
        kept, self.kept, p = self.kept, {}, self.p
        recorded = {n: ends for n, ends in kept.items() if ends[1].requires_grad}
        stateful = p.effects is not None and p.effects.stateful
        if not recorded or stateful or not outcome.ys.requires_grad:
            return outcome
        for n, suspect in suspects(p, outcome.replayed).items():
            if n in recorded:
                start, end = recorded[n]
                inputs = _inputs_of(p) if inputs is None else inputs
                alone = replace(without_graph(p).knowing(None), log=replace(p.log, watch=None))
                ends = start.detach(), end.detach()
                end.register_hook(Hook(alone, inputs, Ambience.here(p.y0), suspect, ends))
        return outcome


def _inputs_of(p: Problem) -> Inputs:
    """The tensors that f may depend on, where nobody has looked for them."""
    found = reach(p.source or p.f.call, p.f.args)
    tensors = [x for _, x in found.tensors if x.requires_grad and (x.is_leaf or not x.retains_grad)]
    reads = Reads(found.places, found.containers)
    reads.settle()
    return Inputs(captured=tuple(tensors), reads=reads)


@dataclass(frozen=True)
class Hook:
    """On the state that a suspect has ended with; `ends` is what was handed to the step, and what it has handed on."""

    p: Problem
    inputs: Inputs
    ambience: Ambience
    suspect: Suspect
    ends: tuple[Tensor, Tensor]

    def __call__(self, cotangent: Tensor | None) -> None:
        p = self.p
        if cotangent is None or is_legacy_batchedtensor(cotangent) or transformed() or told(p):
            return
        look = Look(p, {})
        with backward_pass(p, self.inputs, self.ambience):
            look.measure(p, self.suspect, self.ends, cotangent.detach(), self.inputs.tensors)
        look.settle()
