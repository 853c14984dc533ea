"""Native steps for a solve in Python: each is one call of native code, and so is its vector-Jacobian product.

For gradients that go from step to step by themselves, try some of them several times, and compare what they find; and
where somebody looks at each step: for events whose g cannot be code, or to show how far the solve is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..compiled.steps import beside
from ..core import Problem, Stats, Step
from ..gradients.replay import refuse_derivative
from ..methods.runge_kutta import RungeKutta
from ..numbers import Time, value
from . import records
from .door import SECOND
from .driver import loops_for
from .graphs import Wanted
from .programs import Called, Code
from .tables import table_of

Codes: TypeAlias = "tuple[Code, Code | None]"
"""Those of f and of its vector-Jacobian product, which nobody needs where nothing is differentiated."""


def with_native_steps(p: Problem, codes: Codes, inputs: Sequence[Tensor], wanted: Wanted) -> Problem:
    """The problem with native steps; `inputs` are the tensors that f reads."""
    call = NativeField(codes, inputs, wanted, p.stats)
    return replace(p, f=replace(p.f, call=call, stepper=NativeSteps(p)))


class NativeField:
    """f as code on given tensors, `(t, y)`: counted, and differentiable once."""

    def __init__(self, codes: Codes, inputs: Sequence[Tensor], wanted: Wanted, stats: Stats) -> None:
        self.codes, self.inputs, self.wanted, self.stats = codes, inputs, wanted, stats
        self.leaves = [x for x, want in zip(inputs, wanted.inputs, strict=True) if want]
        self._bound: Bound | None = None

    def with_tensors(self, swap: dict[int, Tensor]) -> NativeField:
        """The same with tensors that it reads exchanged, by id."""
        inputs = [swap.get(id(x), x) for x in self.inputs]
        return NativeField(self.codes, inputs, self.wanted, self.stats)

    def bound(self, like: Tensor) -> Bound:
        """The code with its inputs, for states such as this one."""
        if self._bound is None:
            self._bound = Bound(self, like.detach().contiguous())
        return self._bound

    def __call__(self, t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        self.stats.nfe += 1
        now = torch.as_tensor(t, dtype=y.dtype, device="cpu")
        if nudge is not None:
            now = now + (beside(value(t), value(nudge), y.dtype) - now).detach()
        if torch.is_grad_enabled():
            return _Evaluation.apply(self, now, y, *self.leaves)
        return self.bound(y).evaluated(now, y)


class Bound:
    """The code of f and of its product together with the tensors that f reads: for one call at a time."""

    def __init__(self, f: NativeField, y: Tensor) -> None:
        given = list(records.dense(f.inputs))
        chosen = [x for x, want in zip(given, f.wanted.inputs, strict=True) if want]
        (self.code, self.product), t, self.timed = f.codes, y.new_empty(()), f.wanted.time
        self.parts = [torch.empty_like(x, dtype=y.dtype) for x in chosen]
        self.lead = 2 if self.timed else 1
        self.value: Called = self.code.called_with([t, y, *given], [None])
        self.pull: Called | None = None
        if self.product is not None:
            self.pull = self.product.called_with([t, y, y, *given], [*[None] * self.lead, *self.parts])

    def evaluated(self, t: Tensor, y: Tensor) -> Tensor:
        """f(t, y)."""
        t, y = t.detach(), y.detach().contiguous()
        k = torch.empty_like(y)
        (self.value.inputs[0], self.value.inputs[1]), self.value.outputs[0] = _places(t, y), k.data_ptr()
        self.code.evaluate(self.value)
        return k

    def pulled(self, t: Tensor, y: Tensor, k: Tensor) -> list[Tensor | None]:
        """The products of a cotangent of f(t, y) with its derivatives by t, y and the tensors that are wanted."""
        assert self.product is not None
        assert self.pull is not None
        t, y, k = t.detach(), y.detach().contiguous(), k.contiguous()
        found = torch.empty_like(y)
        by_time = torch.zeros_like(t) if self.timed else None
        self.pull.inputs[0], self.pull.inputs[1], self.pull.inputs[2] = _places(t, y, k)
        self.pull.outputs[0] = found.data_ptr()
        if by_time is not None:
            self.pull.outputs[1] = by_time.data_ptr()
        self.product.evaluate(self.pull)
        return [by_time, found, *(x.clone() for x in self.parts)]


def _places(*tensors: Tensor) -> list[int]:
    return [x.data_ptr() for x in tensors]


class _Evaluation(torch.autograd.Function):
    """f(t, y) in a graph."""

    @staticmethod
    def forward(ctx: Any, f: NativeField, t: Tensor, y: Tensor, *leaves: Tensor) -> Tensor:
        ctx.f = f
        ctx.save_for_backward(t, y)
        return f.bound(y).evaluated(t, y)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        (k,), (t, y) = cotangents, ctx.saved_tensors
        with torch.no_grad():
            grads = ctx.f.bound(y).pulled(t, y, k)
        return (None, *_once(grads, (t, y, k)))


class NativeSteps:
    """Makes the steps of a problem; see `torchaca.field.Field.stepper`.

    Stages of the interpolant alone are evaluated when an output asks for them, and the last one of an FSAL method with
    the error, at once where a search will ask for that.
    """

    repeatable = True

    def __init__(self, p: Problem) -> None:
        method: Any = p.method
        self.method: RungeKutta = method
        self.table = table_of(method)
        self.jumps = records.doubles(sorted(p.jumps))
        self._solves: tuple[NativeField, Solve] | None = None

    def __call__(self, p: Problem, t0: Time, t1: Time, y0: Tensor, f0: Tensor | None = None) -> Step:
        """The method's step; `p` is the problem of the solve, or of a replay."""
        f: Any = p.f.call
        solve, recorded = self._solve(p, f, y0), torch.is_grad_enabled()
        whole = p.control.adaptive and not recorded
        rows = self.method.stages - (0 if whole else self.method.fsal)
        p.stats.nfe += rows - (f0 is not None)
        error = None
        if recorded:
            y1, stages = _Step.apply(solve, rows, t0, t1, y0, f0, *f.leaves)
        else:
            y1, stages, error = solve.taken(rows, (value(t0), value(t1)), y0, f0, whole=whole)
        return self.method.complete(p.f.between(t0, t1), t0, t1, y0, stages.unbind(), y1, error)

    def _solve(self, p: Problem, f: NativeField, y: Tensor) -> Solve:
        if self._solves is None or self._solves[0] is not f:
            self._solves = f, Solve(self, p, f.bound(y), y)
        return self._solves[1]


class Solve:
    """The records of one problem for single steps."""

    def __init__(self, steps: NativeSteps, p: Problem, bound: Bound, y: Tensor) -> None:
        n, rows, jumps = y.numel(), len(steps.method.nodes), steps.jumps
        graphs = (x and records.address(x.graph) for x in (bound.value, bound.pull))
        self.work = y.new_empty((rows + 1) * n, requires_grad=False)
        self.bound, self.alive = bound, (steps.table, jumps)
        self.solve = records.Solve(
            *(steps.table.address, None, None, *graphs),
            *(n, 0, 0, len(p.jumps), 0, p.ts.sign),
            *(None, None, records.address(jumps), None, None, self.work.data_ptr()),
        )
        self.counts = (records.WHOLE * max(1, len(bound.parts)))(*[x.numel() for x in bound.parts])
        self.sums, self.ends = records.places(bound.parts), records.doubles([0.0, 0.0])
        self.back = back = records.Back()
        back.totals, back.lead, back.timed = len(bound.parts), bound.lead, int(bound.timed)
        back.work, back.counts = self.work.data_ptr(), records.address(self.counts)
        back.sums = records.address(self.sums)
        loops = loops_for(y.dtype)
        self.step, self.pull = loops.function("step"), loops.function("pull_step")
        self.places = [records.address(x) for x in (self.solve, self.back)]

    def taken(
        self, rows: int, span: tuple[float, float], y: Tensor, f0: Tensor | None, *, whole: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The end of a step, so many of its stages, and if it is `whole` its error."""
        y = y.detach().contiguous()
        y1, stages = torch.empty_like(y), y.new_empty((rows, *y.shape))
        error = torch.empty_like(y) if whole else None
        if f0 is not None:
            stages[0] = f0
        known = int(f0 is not None)
        places = _places(y, stages, y1)
        self.step(self.places[0], *span, known, rows, *places, None if error is None else error.data_ptr())
        return y1, stages, error

    def pulled(
        self,
        span: tuple[float, float],
        known: int,
        made: tuple[Tensor, Tensor, Tensor],
        cotangents: tuple[Tensor | None, Tensor | None],
    ) -> tuple[list[float], Tensor, Tensor, list[Tensor]]:
        """The products of the cotangents of a step's end and stages.

        `made` are its start, end and stages. With the derivatives by its times, its start, the stages that were given,
        and the tensors that are wanted.
        """
        y, (lam, g), stages = made[0].contiguous(), cotangents, made[2]
        lam = torch.zeros_like(y) if lam is None else _own(lam)
        g = torch.zeros_like(stages) if g is None else _own(g)
        sums = [torch.zeros_like(x) for x in self.bound.parts]
        self.sums[: len(sums)] = _places(*sums)
        self.back.lam = lam.data_ptr()
        places = _places(y, made[1], stages, g)
        self.pull(*self.places, *span, known, len(stages), *places, records.address(self.ends))
        return [*self.ends], lam, g[0], sums


def _own(x: Tensor) -> Tensor:
    """A contiguous copy."""
    return x.clone(memory_format=torch.contiguous_format)


class _Step(torch.autograd.Function):
    """A step in a graph: its end and its stages, the first of which may be given."""

    @staticmethod
    def forward(
        ctx: Any, solve: Solve, rows: int, t0: Time, t1: Time, y0: Tensor, f0: Tensor | None, *leaves: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.solve, ctx.known, ctx.span = solve, int(f0 is not None), (value(t0), value(t1))
        y1, stages, _ = solve.taken(rows, ctx.span, y0, f0)
        ctx.save_for_backward(y0, y1, stages)
        return y1, stages

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        saved, moves = ctx.saved_tensors, ctx.needs_input_grad[2:4]
        with torch.no_grad():
            ends, lam, f0, sums = ctx.solve.pulled(ctx.span, ctx.known, saved, cotangents)
            times = [_time(x) if need else None for x, need in zip(ends, moves, strict=True)]
        grads = _once([*times, lam, f0 if ctx.known else None, *sums], (*saved, *cotangents))
        return (None, None, *grads)


def _time(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64, device="cpu")


def _once(grads: Sequence[Tensor | None], anchors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Gradients, which cannot be differentiated again."""
    return refuse_derivative(grads, anchors, SECOND) if torch.is_grad_enabled() else grads
