"""Gradients that replay their steps: one pair of passes, which differ in where a replayed step starts from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..core import Outcome, Problem, Step
from ..field.effects import Moments
from ..field.inputs import Inputs
from ..loops.outputs import gather
from ..loops.stepping import steps
from .again import differentiate_again
from .inner import inner_of
from .look import look_of
from .passes import refuse
from .replay import MaybeTensors, without_graph
from .substeps import march_shifted, through
from .sweep import Replay


class Store(Protocol):
    """Where the starts of replayed steps come from; one for each solve.

    After the forward pass it holds numbers alone: its tensors are handed over, and come back in `reversed`.
    """

    def keep(self, n: int, start: Tensor, step: Step) -> None:
        """See step n, which was made from `start`, and keep of it what `reversed` will need."""
        ...

    def tensors(self, n_steps: int) -> list[Tensor]:
        """Hand over what was kept of the first `n_steps` steps, over which the backward pass will go."""
        ...

    def reversed(self, kept: Sequence[Tensor], replay: Replay) -> Iterator[tuple[int, Tensor]]:
        """Yield `(n, start of step n)` from the last step to the first, from the tensors handed over.

        `replay.advance(start, m, n)` computes the start of step n from that of step m.
        """
        ...


class Replayed:
    """The passes of a gradient that replays its steps from what a store keeps. Holds none of the outputs.

    `stagewise` is as in `Replay`; `no_second` says why there are no second derivatives, if there are none; `substeps`:
    each step is differentiated as so many, from where it started.
    """

    def __init__(
        self,
        problem: Problem,
        inputs: Inputs,
        store: Store,
        *,
        stagewise: bool = False,
        no_second: str = "",
        substeps: int = 1,
    ) -> None:
        self.problem, self.inputs, self.store = problem, inputs, store
        self.stagewise, self.no_second, self.substeps = stagewise, no_second, substeps
        self.moments = Moments(problem.effects)
        self.times: Sequence[float] = ()
        self.end: Tensor | None = None

    def forward(self) -> tuple[Outcome, list[Tensor]]:
        """Solve without a graph; see `Passes`."""
        p = without_graph(self.problem)
        outcome = gather(p, self.watch(p, steps(p)))
        return outcome, self.close(outcome)

    def watch(self, p: Problem, accepted: Iterable[Step]) -> Iterator[Step]:
        """Pass the steps of p on; the store sees each of them."""
        start = p.first
        for n, step in enumerate(self.moments.watch(accepted)):
            self.store.keep(n, start, step)
            yield step
            start = p.handed(step)
        self.end = start

    def close(self, outcome: Outcome) -> list[Tensor]:
        """End the forward pass: what the store hands over."""
        self.times = outcome.replayed
        return self.store.tensors(len(self.times) - 1)

    def backward(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Replay all steps, from the last to the first; see `Passes`."""
        whole = self.substeps == 1
        replay = Replay(
            self.problem,
            self.inputs,
            self.times,
            tensors,
            cotangents if whole else cotangents[:1],
            moments=self.moments,
            end=self.end,
            stagewise=self.stagewise,
            alone=() if whole else range(len(self.times)),
            inner={} if whole else inner_of(self.problem.method, cotangents[1:]),
        )
        look = look_of(self.problem, self.times if whole else (), cotangents)
        for n, start in self.store.reversed(kept, replay):
            if not whole:
                product, _ = through(replay, n, start, self.substeps)
                replay.add(n, start, product)
            elif n in look.steps:
                look.replay(replay, n, start)
            else:
                replay.replay(n, start)
        grads = replay.finish()
        look.settle(grads[2 + len(replay.parts.control) :])
        return grads

    def twice(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Differentiate the steps once more, or refuse it; see `Passes`."""
        if self.no_second:
            return refuse(self, self.no_second, kept, cotangents, tensors)
        redo = (lambda: self._shifted) if self.substeps > 1 else None
        return differentiate_again(
            self, self.times, kept, cotangents, tensors, moments=self.moments, redo=redo
        )

    def _shifted(self, p: Problem) -> Iterator[Step]:
        parts = [self.substeps] * (len(self.times) - 1)
        return march_shifted(p, p.control.boundaries(p.ts, self.times), parts)
