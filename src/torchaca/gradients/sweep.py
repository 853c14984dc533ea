"""A backward pass over the accepted steps: each again by itself, from the last to the first."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..core import Problem, Step, VectorField
from ..field.effects import Moments
from ..field.inputs import Inputs
from ..field.replays import check_replay
from ..layout import joined, ordered
from ..loops.outputs import inside
from ..numbers import Time
from ..trace import Trace
from .drift import Drift
from .evaluations import Stagewise
from .inner import Inner
from .made import Made, Taken, on_leaves
from .replay import MaybeTensors, Parts, rebuilt, totals_for, vjp, without_graph
from .tally import Tally


class Replay:
    """The accepted steps again, each computed from its own start, differentiated and forgotten.

    `replay(n, start)` does step n, from the last to the first; `finish()` the rest. Its state is the adjoint `lam` of
    the current state, and the totals of everything else.

    An interpolated output depends on f1 = f(t1, y1), which is also the first stage of the following step. Its
    cotangent is known beforehand (the interpolant is linear in f1) and is handed to that step's replay, so that
    outputs cost no evaluations.

    Parameters
    ----------
    problem, inputs
        Of the solve.
    times : sequence of float
        The boundaries of the steps to go over: `Outcome.replayed`.
    parts : sequence of Tensor or None
        The tensors that a backward pass is handed, in the order of `Parts`.
    cotangents : sequence of Tensor or None
        Of the outputs, and of the interpolants if the output is dense.
    moments : Moments, optional
        When the steps were made; needed if f has side effects that change its values.
    end : Tensor, optional
        What the last step handed on in the forward pass, to compare with.
    stagewise : bool
        Make the graph of each evaluation when it is differentiated.
    alone : container of int
        Steps that evaluate f at their ends themselves, since another one takes their place, or their neighbour's.
    inner : mapping
        By step, cotangents of further values inside of it.

    Raises
    ------
    ValueError
        Without `moments`, for an f that draws random numbers or reads what it changes.
    """

    def __init__(
        self,
        problem: Problem,
        inputs: Inputs,
        times: Sequence[float],
        parts: Sequence[Any],
        cotangents: Sequence[Tensor | None],
        *,
        moments: Moments | None = None,
        end: Tensor | None = None,
        stagewise: bool = False,
        alone: Container[int] = (),
        inner: Mapping[int, Inner] = MappingProxyType({}),
    ) -> None:
        if moments is None and problem.effects and problem.effects.stateful:
            raise ValueError(
                "f draws random numbers (Dropout?) or reads buffers that it changes: a replay without the moments of "
                "the forward pass would find others. Use gradient='aca', which replays the same ones, or model.eval()"
            )
        self.inputs, self.times, self.n_steps = inputs, times, len(times) - 1
        self.parts = leaves = Parts.leaves_for(problem, inputs, parts)
        self.moments = moments or Moments(None)
        self.p = rebuilt(problem, leaves, inputs)
        self.plain = without_graph(self.p)
        if stagewise and self.p.f.stepper is None:  # whose steps hold no graph of a stage
            self.p = self.p.calling(Stagewise(self.p.f.call, self.p.effects))
        with torch.enable_grad():
            self.boundaries = list(self.p.control.boundaries(self.p.ts, times))
        self.ys_grad, self.dense_grad, self.inner = cotangents[0], cotangents[1:], inner
        self.alone = alone
        self.wrt = [leaves.ts, *leaves.control, *leaves.args, *leaves.captured]
        self.tally = self.tallied(cotangents)
        if self.ys_grad is not None and len(self.ys_grad) > len(
            self.p.ts
        ):  # of what the last step carries on
            self.tally.lam = joined(
                [torch.zeros_like(self.ys_grad[:1]), self.ys_grad[len(self.p.ts) :]], leaves.y0
            )
        self.next_f0: Tensor | None = None
        self.next_start = end
        self.drift: Drift | None = Drift(leaves.y0)
        self.advanced: set[int] = set()
        self.taken: dict[int, Taken] = {}
        self.accompanied = False
        self.ends = [self.p.ts.at_start(), *(self.p.ts.up_to(t) for t in times[1:])]

    def tallied(self, cotangents: Sequence[Tensor | None] = ()) -> Tally:
        """An empty tally of products, of these cotangents."""
        return Tally(totals_for(len(self.wrt), cotangents))

    def evaluate(self, f: VectorField) -> None:
        """Evaluate this f in place of the problem's."""
        self.p, self.plain = self.p.calling(f), self.plain.calling(f)

    def advance(self, start: Tensor, first: int, last: int) -> Tensor:
        """Compute where step `last` starts from where step `first` starts, without a graph."""
        with torch.no_grad():
            for n in range(first, last):
                self.moments.restore(n)
                start = self.plain.handed(self.plain.step(self.times[n], self.times[n + 1], start))
        self.advanced.add(last)
        return start

    def beside(self, ys_grad: Tensor) -> Replay:
        """A replay of the same steps with other cotangents of the outputs, which goes along with this one."""
        other = copy(self)
        other.ys_grad, other.dense_grad, other.inner = ys_grad, (), MappingProxyType({})
        other.tally, other.drift, other.taken = other.tallied(), None, {}
        self.accompanied = True
        return other

    def replay(self, n: int, start: Tensor) -> None:
        """Compute step n again from where it started, and its vector-Jacobian product.

        `start` is y or, for a method that carries more from step to step, what the step before handed on.
        """
        made = self.make(n, start)
        self.add(n, start, made.pulled(made.outs, made.cotangents), made)

    def take(self, n: int, start: Tensor) -> Tensor:
        """Compute step n with a graph, which is kept until the step is made; where it leads."""
        self.taken[n] = taken = self._taken(n, start)
        return taken.end.detach()

    def _taken(self, n: int, start: Tensor) -> Taken:
        self.moments.restore(n)
        with torch.enable_grad():
            y = start.detach().requires_grad_()
            t0, t1 = self.leaves(n)
            step = self.p.step(t0, t1, y)
            return Taken(y, (t0, t1), step, self.p.handed(step))

    def make(self, n: int, start: Tensor) -> Made:
        """Compute step n again from where it started, with a graph."""
        taken = self.taken.pop(n, None) or self._taken(n, start)
        step, end = taken.step, taken.end
        with torch.enable_grad():
            outs, cotangents = [end], [self.tally.incoming(end)]
            self._outputs(n, step, outs, cotangents)
            carried = self._carried(n)
            if carried is not None and step.f0.requires_grad:
                outs.append(step.f0)
                cotangents.append(carried)
        wrt = [taken.y, *on_leaves(*taken.times), *self.wrt]
        made = Made(self.inputs, step, wrt, outs, cotangents, self.accompanied)
        self.check(n, made, complete=n + 1 == self.n_steps)
        if self.drift and self.next_start is not None:
            self.drift.note(end, self.next_start, again=n + 1 in self.advanced)
        return made

    def leaves(self, n: int) -> tuple[Time, Time]:
        """The boundaries of step n, as leaves where they are tensors."""
        t0, t1 = (
            t.detach().requires_grad_() if isinstance(t, Tensor) else t for t in self.boundaries[n : n + 2]
        )
        return t0, t1

    def check(self, n: int, made: Made, *, complete: bool) -> None:
        """Refuse an f that uses other tensors than the inputs of the solve; see `check_replay`."""
        if self.inputs.watched:
            span = f"from t = {self.times[n]:g} to {self.times[n + 1]:g}"
            check_replay(made.outs, self.inputs, made.wrt, span, complete=complete)

    def add(self, n: int, start: Tensor, product: MaybeTensors, made: Made | None = None) -> None:
        """Add the product of step n; `made` is what it was made from, if it is the step as it was taken."""
        if self.p.trace is not None:
            cotangents = made.cotangents if made else [self.tally.incoming(start)]
            self._tell(self.p.trace, n, cotangents, product[0], product[4 + len(self.parts.control) :])
        self.tally.add(product, self.boundaries[n : n + 2], start)
        self.next_f0, self.next_start = made.step.f0.detach() if made else None, start

    def _tell(
        self, trace: Trace, n: int, cotangents: list[Tensor], grad_y: Tensor | None, grads: MaybeTensors
    ) -> None:
        trace.reaches(self.n_steps)
        tensors = self.inputs.tensors
        span = (self.times[n], self.times[n + 1])
        trace.passed(n, span, cotangents, grad_y, list(zip(tensors, grads, strict=True)))

    def _outputs(self, n: int, step: Step, outs: list[Tensor], cotangents: list[Tensor]) -> None:
        """Add the step's outputs: an end state to the adjoint, the others to the product."""
        first, last = self.ends[n], self.ends[n + 1]
        if self.ys_grad is not None and last > first and self.p.save is not None:
            saved = self.p.save.emitted(self.p.ts, step, first, last, self.boundaries[n + 1])
            if saved.requires_grad:
                outs.append(saved)
                cotangents.append(self.ys_grad[first:last])
        elif self.ys_grad is not None and last > first:
            within = self._inside(n)
            for i in range(first, last):
                if i not in within:
                    cotangents[0] = _onto_state(cotangents[0], self.ys_grad[i])
            if within:
                if self.next_f0 is not None and self._f1_weights(n) is not None:
                    step.hint = self.next_f0
                outs.append(step.at([self.p.ts[i] for i in within]))
                cotangents.append(self.ys_grad[within])
        grad = self.dense_grad[n] if self.dense_grad else None
        if grad is not None:
            outs.append(step.basis())
            cotangents.append(grad)
        if n in self.inner:
            self.inner[n].add(step, outs, cotangents)

    def _inside(self, n: int) -> list[int]:
        """The outputs on the interpolant of step n."""
        return inside(self.p.ts, self.boundaries[n + 1], self.ends[n], self.ends[n + 1])

    def _f1_weights(self, n: int) -> Tensor | None:
        """d outputs / d f1 of the outputs inside step n, where f1 is the first stage of step n + 1, else None."""
        within = self._inside(n)
        last = n + 1 == self.n_steps or self.p.save is not None
        if not within or last or self.dense_grad or not self.p.reuses(self.boundaries[n + 1]):
            return None
        if self.inner or n in self.alone or n + 1 in self.alone:
            return None
        times = [self.p.ts[i] for i in within]
        return self.p.method.f1_weights(self.boundaries[n], self.boundaries[n + 1], times)

    def _carried(self, n: int) -> Tensor | None:
        """The cotangent that the outputs inside step n - 1 put on the first stage of step n."""
        weights = self._f1_weights(n - 1) if n > 0 and self.ys_grad is not None else None
        if weights is None or self.ys_grad is None:
            return None
        grads = self.ys_grad[self._inside(n - 1)]
        weights = weights.to(grads.device, grads.dtype)
        return ordered((weights.reshape(-1, *[1] * (grads.ndim - 1)) * grads).sum(0), self.p.y0)

    def finish(self) -> MaybeTensors:
        """Gradients of y0, the times, the control, args and captured tensors.

        Raises
        ------
        RuntimeError
            If f gave other values than in the forward pass; see `Drift`.
        """
        at_start = [] if self.ys_grad is None else self._at_start(self.ys_grad)
        grads = self.tally.finished(self.parts, self.wrt, at_start)
        return self.drift.settled(grads, self.p, self.inputs, self.parts) if self.drift else grads

    def _at_start(self, grads: Tensor) -> Sequence[Tensor]:
        """The cotangents of y0 that come from the outputs there."""
        p, n = self.p, self.ends[0]
        if p.save is None:
            return list(grads[:n])
        with torch.enable_grad():
            values = torch.cat(p.save.at_start(p, n))
        if not values.requires_grad:
            return []
        grad, *others = vjp([values], [p.y0, *self.wrt], [grads[:n]], keep=self.inputs.shared)
        self.tally.totals.add(others)
        return [] if grad is None else [grad]


def _onto_state(cotangent: Tensor, grad: Tensor) -> Tensor:
    """`grad` of the state added to the cotangent of it, or of a carry, whose first row it is."""
    if cotangent.shape == grad.shape:
        return cotangent + grad
    return joined([cotangent[:1] + grad, cotangent[1:]], cotangent[0])
