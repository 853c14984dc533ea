"""ACA natively: the passes of a solve, the backward one a sweep in C over the chunks of the forward one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import Tensor

from ..compiled.field_graph import FieldGraph
from ..compiled.look import Looks
from ..core import Outcome, Problem
from ..field.inputs import Inputs
from ..gradients import refuse
from ..gradients.look import Look, look_of
from ..gradients.replay import MaybeTensors
from ..layout import ordered
from ..torch_internals import is_legacy_batchedtensor
from .again import Again
from .door import SECOND
from .graphs import Wanted
from .moved import gradients_of_times
from .programs import Code
from .run import Chunk, Forward
from .substeps import Substeps
from .sweep import Sweep
from .tables import Route

SEVERAL = (
    "several cotangents at once (is_grads_batched=True, vectorize=True) do not go back through a native solve: give "
    "one after the other, or use compile=False"
)


class NativePasses:
    """The passes of a native solve; see `torchaca.gradients.Passes`.

    `field` is f as a graph, and `codes` are those of f and of its product; each step is differentiated as so many
    `substeps`.
    """

    def __init__(
        self,
        problem: Problem,
        field: FieldGraph,
        inputs: Inputs,
        forward: Forward,
        codes: tuple[Code, Code],
        wanted: Wanted,
        substeps: int = 1,
    ) -> None:
        self.field, self.substeps = field, substeps
        self.problem, self.inputs, self.codes, self.wanted = problem, inputs, codes, wanted
        self.first, self.store = forward, forward.keep.store
        self.end: Tensor | None = None
        self.chunks: list[Chunk] = []
        self.kept: list[int] = []
        self.times: Sequence[float] = ()

    def forward(self) -> tuple[Outcome, list[Tensor]]:
        """Solve; kept are the states of the chunks, and their stages where those are kept."""
        forward, outcome = self.first, self.first.run()
        ended = outcome.ended(self.problem)
        self.route = forward.route if ended is self.problem else Route.of(ended)
        del self.first
        self.times = outcome.replayed
        if self.store is not None:
            self.end = forward.end if len(self.times) == len(outcome.times) else None
            return outcome, self.store.tensors(len(self.times) - 1)
        left, kept = len(self.times) - 1, []
        for chunk in forward.chunks:
            chunk.n = min(chunk.n, left)
            left -= chunk.n
            if chunk.n:
                own = [chunk.Y, *([] if chunk.K is None else [chunk.K])]
                self.kept.append(len(own))
                kept += own
                self.chunks.append(Chunk(chunk.n, chunk.times, chunk.Y.new_empty(0)))
        return outcome, kept

    def backward(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Sweep over the chunks, from the last to the first."""
        if any(g is not None and is_legacy_batchedtensor(g) for g in cotangents):
            raise NotImplementedError(SEVERAL)
        n_control = len(self.problem.control.tensors)
        _, ts, *rest = tensors
        inputs = rest[n_control:]
        if self.substeps > 1:
            p, times, sweep = self._in_parts(kept, cotangents, inputs)
        else:
            p, times, sweep = self.problem, self.times, self._whole(kept, cotangents, inputs)
        moved: MaybeTensors = [None] * (1 + n_control)
        if self.wanted.time:
            moved = gradients_of_times(p, times, ts, rest[:n_control], sweep.ends, sweep.moved)
        sums = iter(sweep.sums)
        grads = (next(sums) if want else None for want in self.wanted.inputs)
        return [ordered(sweep.lam, p.y0), *moved, *grads]

    def _whole(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], inputs: Sequence[Tensor]
    ) -> Sweep:
        """Sweep over the steps as they were taken."""
        p, evaluates = self.problem, self.store is not None or min(self.kept, default=2) < 2
        sweep = Sweep(p, self.times, self.codes, inputs, self.wanted, evaluates=evaluates)
        look = look_of(p, self.times, cotangents)
        looks = Looks(look, self.field, inputs, self.wanted.inputs)
        sweep.over(self._reversed(kept, sweep), self.route, cotangents, looks)
        look.settle(sweep.sums)
        return sweep

    def _in_parts(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], inputs: Sequence[Tensor]
    ) -> tuple[Problem, Sequence[float], Sweep]:
        """Sweep over the sub-steps of each step; with the problem on them, and their boundaries."""
        parts = Substeps(self.problem, self.times, self.route, self.substeps, cotangents[1:])
        p, times = parts.problem, parts.times
        sweep = Sweep(p, times, self.codes, inputs, self.wanted, evaluates=True, alone=True)
        assert sweep.value is not None
        chunks = parts.chunks(self._starts(kept, sweep), sweep.value)
        none = Looks(Look(p, {}), self.field, inputs, self.wanted.inputs)
        sweep.over(chunks, self.route, [cotangents[0], *parts.bases], none)
        return p, times, sweep

    def _starts(self, kept: Sequence[Tensor], sweep: Sweep) -> Iterator[tuple[int, Tensor]]:
        """Where steps start, from the last to the first."""
        if self.store is not None:
            again = Again(self.problem, self.times, self.route, sweep.value)
            yield from self.store.reversed(kept, cast(Any, again))
            return
        n = len(self.times) - 1
        for chunk in self._reversed(kept, sweep):
            for i in reversed(range(chunk.n)):
                n -= 1
                yield n, chunk.Y[i]

    def _reversed(self, kept: Sequence[Tensor], sweep: Sweep) -> Iterator[Chunk]:
        """The chunks, the last one first."""
        if self.store is not None:
            again = Again(self.problem, self.times, self.route, sweep.value)
            yield from again.steps(self.store.reversed(kept, cast(Any, again)), self.end)
            return
        end = len(kept)
        for chunk, n in zip(reversed(self.chunks), reversed(self.kept), strict=True):
            own, end = kept[end - n : end], end - n
            yield Chunk(chunk.n, chunk.times, own[0], own[1] if n > 1 else None)

    def twice(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Refuse second derivatives."""
        return refuse(self, SECOND, kept, cotangents, tensors)
