"""A backward pass over the accepted steps: each again by itself, from the last to the first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core import Problem, Step, VectorField
from ..field.effects import Moments
from ..field.inputs import Inputs
from ..field.replays import check_replay
from ..layout import joined, ordered
from ..loops.outputs import inside
from ..numbers import Time, value
from ..trace import Trace
from .drift import Drift
from .replay import MaybeTensors, Parts, rebuilt, totals_for, vjp, without_detours, without_graph


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
        if stagewise:
            self.p = self.p.calling(evaluated_stagewise(self.p))
        with torch.enable_grad():
            self.boundaries = list(self.p.control.boundaries(self.p.ts, times))
        self.ys_grad, self.dense_grad = cotangents[0], cotangents[1:]
        self.lam: Tensor | None = None
        self.wrt = [leaves.ts, *leaves.control, *leaves.args, *leaves.captured]
        self.totals = totals_for(len(self.wrt), cotangents)
        self.time_grads: list[tuple[Tensor, Tensor]] = []
        self.next_f0: Tensor | None = None
        self.next_start = end
        self.drift: Drift | None = Drift(leaves.y0)
        self.advanced: set[int] = set()
        self.ends = [self.p.ts.at_start(), *(self.p.ts.up_to(t) for t in times[1:])]

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

    def replay(self, n: int, start: Tensor) -> None:
        """Compute step n again from where it started, and its vector-Jacobian product.

        `start` is y or, for a method that carries more from step to step, what the step before handed on.
        """
        self.moments.restore(n)
        last = n + 1 == self.n_steps
        with torch.enable_grad():
            y = start.detach().requires_grad_()
            t0, t1 = (self._leaf(t) for t in self.boundaries[n : n + 2])
            step = self.p.step(t0, t1, y)
            end = self.p.handed(step)
            outs, cotangents = [end], [torch.zeros_like(end) if self.lam is None else self.lam]
            self._outputs(n, step, outs, cotangents)
            carried = self._carried(n)
            if carried is not None and step.f0.requires_grad:
                outs.append(step.f0)
                cotangents.append(carried)
        times = [t if isinstance(t, Tensor) else None for t in (t0, t1)]
        if self.inputs.watched:
            span = f"from t = {value(t0):g} to {value(t1):g}"
            check_replay(outs, self.inputs, (y, *times, *self.wrt), span, complete=last)
        if self.drift and self.next_start is not None:
            self.drift.note(end, self.next_start, again=n + 1 in self.advanced)
        grad_y, *grads = vjp(outs, [y, *times, *self.wrt], cotangents, keep=self.inputs.shared)
        for boundary, grad in zip(self.boundaries[n : n + 2], grads[:2], strict=True):
            if grad is not None and isinstance(boundary, Tensor):
                self.time_grads.append((boundary, grad))
        if self.p.trace is not None:
            self._tell(self.p.trace, n, cotangents, grad_y, grads[3 + len(self.parts.control) :])
        self.lam = grad_y if grad_y is not None else torch.zeros_like(start)
        self.totals.add(grads[2:])
        self.next_f0, self.next_start = step.f0.detach(), start

    def _tell(
        self, trace: Trace, n: int, cotangents: list[Tensor], grad_y: Tensor | None, grads: MaybeTensors
    ) -> None:
        trace.n_steps, tensors = self.n_steps, self.inputs.tensors
        span = (self.times[n], self.times[n + 1])
        trace.passed(n, span, cotangents, grad_y, list(zip(tensors, grads, strict=True)))

    @staticmethod
    def _leaf(t: Time) -> Time:
        return t.detach().requires_grad_() if isinstance(t, Tensor) else t

    def _outputs(self, n: int, step: Step, outs: list[Tensor], cotangents: list[Tensor]) -> None:
        """Add the step's outputs: an end state to the adjoint, the others to the product."""
        first, last = self.ends[n], self.ends[n + 1]
        if self.ys_grad is not None and last > first:
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

    def _inside(self, n: int) -> list[int]:
        """The outputs on the interpolant of step n."""
        return inside(self.p.ts, self.boundaries[n + 1], self.ends[n], self.ends[n + 1])

    def _f1_weights(self, n: int) -> Tensor | None:
        """d outputs / d f1 of the outputs inside step n, where f1 is the first stage of step n + 1, else None."""
        within = self._inside(n)
        last = n + 1 == self.n_steps
        if not within or last or self.dense_grad or not self.p.reuses(self.boundaries[n + 1]):
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
        lam = torch.zeros_like(self.parts.y0, requires_grad=False) if self.lam is None else self.lam
        if self.ys_grad is not None:
            for i in range(self.ends[0]):
                lam = lam + self.ys_grad[i]
        if self.time_grads:
            boundaries, grads = zip(*self.time_grads, strict=True)
            self.totals.add(vjp(boundaries, self.wrt[: 1 + len(self.parts.control)], grads, keep=True))
        others = len(self.wrt) - len(self.parts.captured)
        sums = self.totals.sums
        lam = ordered(lam, self.parts.y0)
        grads = [lam, *sums[:others], *without_detours(self.parts.captured, sums[others:])]
        return self.drift.settled(grads, self.p, self.inputs, self.parts) if self.drift else grads


def evaluated_stagewise(p: Problem) -> VectorField:
    """f of a problem so that each evaluation's graph is made when it is differentiated, at the moment of the first."""
    if p.effects is None:
        return partial(checkpoint, p.f, use_reentrant=False, preserve_rng_state=False)
    effects = p.effects

    def f(t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        mark = effects.mark()

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), effects.back_at(mark)

        evaluate: Any = p.f if nudge is None else partial(cast("Any", p.f), nudge=nudge)
        return checkpoint(evaluate, t, y, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    return f


def _onto_state(cotangent: Tensor, grad: Tensor) -> Tensor:
    """`grad` of the state added to the cotangent of it, or of a carry, whose first row it is."""
    if cotangent.shape == grad.shape:
        return cotangent + grad
    return joined([cotangent[:1] + grad, cotangent[1:]], cotangent[0])
