"""ACA's forward pass: a solve without a graph, and the accepted states that it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..core import Outcome, Problem, Step, Times
from ..errors import SolverError
from ..field.effects import Mark
from ..field.inputs import Inputs
from ..loops.outputs import gather
from ..loops.stepping import steps
from .checkpoints import Shelf, limit_of, reverse, worth_keeping
from .replay import Ambience, Parts, without_graph


@dataclass
class Run:
    """One forward pass: what its backward needs beside the saved tensors. Holds none of the outputs.

    `accepted` are the boundaries of all accepted steps, `times` those that the backward pass goes over: up to the last
    output. `end` is what the last step handed on, unless the solve stopped early.
    """

    problem: Problem
    inputs: Inputs
    ambience: Ambience
    checkpoints: str | int = "all"
    stagewise: bool = False
    kept: Sequence[int] = ()
    marks: list[Mark] = field(default_factory=list)
    times: Sequence[float] = ()
    accepted: Sequence[float] = ()
    failure: SolverError | None = None
    end: Tensor | None = None

    @property
    def n_steps(self) -> int:
        return len(self.times) - 1

    def reversed_states(self, saved: Sequence[Tensor], p: Problem) -> Iterator[tuple[int, Tensor]]:
        """`(n, state at the start of step n)` from the last step to the first.

        When a state is handed out, f's side effects are where they were at that moment of the forward pass.
        """

        def moment(n: int) -> None:
            if p.effects:
                p.effects.restore(self.marks[n])

        def advance(y: Tensor, a: int, b: int) -> Tensor:
            with torch.no_grad():
                for n in range(a, b):
                    moment(n)
                    y = p.handed(p.step(self.times[n], self.times[n + 1], y))
            return y

        kept = dict(zip(self.kept, saved, strict=True))
        for n, y in reverse(kept, self.n_steps, self.checkpoints, advance):
            moment(n)
            yield n, y

    def at_moments(self, replayed: Iterator[Step]) -> Iterator[Step]:
        """All steps again, from the first on, each at the moment of the forward pass at which it was made."""
        effects = self.problem.effects
        for n in range(self.n_steps):
            if effects:
                effects.restore(self.marks[n])
            yield next(replayed)

    def leaves(self, saved: Sequence[Any]) -> Parts:
        """Leaves for a replay, from the saved inputs."""
        # The captured tensors are those that f holds, not what saved-tensor hooks made of them.
        parts = Parts.join(saved, len(self.problem.control.tensors), len(self.inputs.args))
        return replace(parts, captured=self.inputs.captured + self.inputs.late).leaves()


def taped(p: Problem, shelf: Shelf[Tensor], run: Run) -> Iterator[Step]:
    """The steps of p; the states they start from go to the shelf, the moments of f's side effects to the run."""
    mark = p.effects.mark() if p.effects else None
    start = p.y0
    for n, step in enumerate(steps(p)):
        shelf.put(n, start)
        if mark is not None:
            run.marks.append(mark)
        yield step
        start = p.handed(step)
        mark = p.effects.mark() if p.effects else None
    run.end = start


def reached(ts: Times, outcome: Outcome) -> list[float]:
    """The boundaries of the steps up to the last output that a failed solve reached."""
    last = ts.sign * ts.values[len(outcome.ys) - 1]
    before = [t for t in outcome.times if ts.sign * t < last]
    return list(outcome.times[: len(before) + 1])


def forward(run: Run) -> tuple[Outcome, list[Tensor]]:
    """The whole solve without a graph, noted in `run`, and the states that it keeps."""
    p = without_graph(run.problem)
    shelf = Shelf[Tensor](limit_of(run.checkpoints))
    outcome = gather(p, taped(p, shelf, run))
    run.times = run.accepted = outcome.times
    run.failure = outcome.failure
    if outcome.failure is not None and not p.dense:  # steps behind the last output have no gradient
        run.times = reached(p.ts, outcome)
    kept = [n for n in shelf.states if n < run.n_steps]
    run.kept = worth_keeping(kept, run.n_steps, run.checkpoints)
    return outcome, [shelf.states[n] for n in run.kept]
