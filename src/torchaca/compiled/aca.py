"""ACA compiled: the forward pass and the sweep back over its checkpoints are one compiled loop each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core import Gradient, Outcome, Problem
from ..field.dynamics import Dynamics
from ..field.inputs import Inputs
from ..gradients import ACA
from ..gradients.replay import Ambience, MaybeTensors, Parts, refuse_derivative, saved_tensors, vjp
from ..layout import ordered
from ..numbers import without_autocast
from .capture import capture
from .door import is_timed, refuse_loops
from .inference import normal, outside_inference
from .loops import sweep_loop
from .outputs import Chunk, f1_cotangent, padded, table_of_ends, tables_of_inner
from .pull import Pull
from .run import Forward, Run
from .spec import Spec
from .steps import beside
from .times import MovingTimes, with_times

SECOND = "second derivatives of a compiled solve are not available: use compile=False"


class Loops:
    """`compile=True`; see `torchaca.executors.Executor`. `transformed`: a torch.func transform is active.

    Raises
    ------
    ValueError
        For options that the compiled solve does not have yet.
    """

    def __init__(self, p: Problem, f: Dynamics, gradient: Gradient, transformed: bool) -> None:
        refuse_loops(p, gradient, transformed)
        self.f = f
        self.record = gradient != ACA() and torch.is_grad_enabled()  # keep the graph of all steps

    def begin(self, p: Problem) -> Problem:
        """Evaluate f through Dynamo."""
        f, start, end = self.f, p.ts.values[0], p.ts.values[-1]
        p.stats.nfe += 1
        with outside_inference():
            p = replace(p, y0=normal(p.y0))
            time = f.time(start, nudge=end if start in p.jumps else None)
            self.seen = capture(f, time, p.y0, self.record)
        f.note_precision(self.seen.field.half)
        return replace(p, f0=self.seen.value)

    def finish(self, p: Problem) -> Outcome:
        """Solve; see `torchaca.executors.Executor`."""
        with outside_inference():
            return self._solved(p)

    def _solved(self, p: Problem) -> Outcome:
        seen, record = self.seen, self.record
        differentiate = torch.is_grad_enabled()
        wanted = tuple(differentiate and x.requires_grad for x in seen.inputs)
        parts = Parts.of(p, Inputs())
        timed = is_timed(p)
        keep = any(wanted) or timed or (differentiate and p.y0.requires_grad)
        ambience = Ambience.here(p.y0)
        own = with_times(p, parts.ts, parts.control)
        kept = tuple(x.shape for x in (p.y0, *seen.inputs)) if record and keep else None
        dtype = ambience.dtype if ambience.enabled else None
        spec = Spec.of(own, self.f.structure, dtype, timed, kept)
        run = Run(own, seen, spec, wanted, keep)
        if keep:
            with torch.no_grad(), without_autocast(p.y0.device) if run.split else nullcontext():
                sweep = Pull(run, seen.inputs) if run.split else Sweep(run, seen.inputs, None)
                run.warm_up(("pull" if run.split else "sweep", wanted), sweep.warm_up)
            ys = _Solve.apply(run, ambience, *parts.flat(), *seen.inputs)
        else:
            with torch.no_grad():
                ys = Forward(run).ys
        return Outcome(ys, run.failure, run.accepted)


class Sweep:
    """The backward pass of a run: chunk after chunk, from the last to the first."""

    def __init__(self, run: Run, inputs: Sequence[Tensor], times: MovingTimes | None) -> None:
        self.run, self.inputs, self.times = run, [normal(x.detach()) for x in inputs], times
        chosen = [x for x, want in zip(self.inputs, run.wanted, strict=True) if want]
        self.totals = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in chosen]
        y0 = run.problem.y0
        self.lam, self.f1 = torch.zeros_like(y0), torch.zeros_like(y0)
        self.ends = torch.zeros((run.room, 2), dtype=torch.float64, device="cpu")

    def warm_up(self) -> None:
        """Compile: what fails has to fail before the forward pass."""
        run, y0 = self.run, self.run.problem.y0
        T = torch.zeros(run.room + 1, dtype=torch.float64, device="cpu")
        Y = y0.new_empty((run.room, *y0.shape))
        self._replay(Chunk(0, T, Y, []), Y, None, y0.new_zeros((1, *y0.shape)))

    def over(self, states: Sequence[Tensor], y1: Tensor, grad_ys: Tensor) -> MaybeTensors:
        """Gradients of y0, the times, the control and the chosen inputs, from those of the outputs."""
        run, p, spec = self.run, self.run.problem, self.run.spec
        for k in range(len(run.chunks) - 1, -1, -1):
            chunk, before = run.chunks[k], run.chunks[k - 1] if k and not run.chunks[k - 1].jumps else None
            last = k == len(run.chunks) - 1
            if (last or chunk.jumps) and spec.carries and chunk.n - 1 in chunk.inside:
                self._tail(chunk, y1 if last else states[k + 1][0], grad_ys)
            self._replay(chunk, states[k], before, grad_ys)
            if self.times is not None:
                self.times.add(chunk, self.ends, grad_ys)
        each = p.method.stages - spec.method.fsal
        p.stats.nfe_backward += sum(chunk.n * each + len(chunk.inside) * spec.extra for chunk in run.chunks)
        moved = [None] if self.times is None else self.times.gradients()
        return [self.lam + grad_ys[: p.ts.at_start()].sum(0), *moved, *self.totals]

    def _replay(self, chunk: Chunk, Y: Tensor, before: Chunk | None, grad_ys: Tensor) -> None:
        """One chunk's steps in reverse."""
        run, spec = self.run, self.run.spec
        tables = [table_of_ends(chunk, run.room, grad_ys)]
        if spec.inside:
            tables += tables_of_inner(run.problem, chunk, before, run.room, run.rows, spec.carries, grad_ys)
        run.mark(chunk.T, Y, self.ends, *(x for table in tables for x in table))
        self.lam, carried, ends, self.totals = run.call(
            ("sweep", run.wanted),
            lambda: sweep_loop(run.capture.field, spec, run.wanted),
            *(torch.tensor(chunk.n, device="cpu"), chunk.T, Y, tables, self.lam, self.f1, self.ends),
            *(self.totals, padded(sorted(run.problem.jumps)), self.inputs),
        )
        if carried:
            (self.f1,) = carried
        if ends:
            (self.ends,) = ends

    def _tail(self, chunk: Chunk, y1: Tensor, grad_ys: Tensor) -> None:
        """f(t1, y1) at the end of the solve or before a jump, and its product.

        Outputs inside the last step depend on it, and no step that follows evaluates it.
        """
        run, p = self.run, self.run.problem
        cotangent = f1_cotangent(p, chunk, chunk.n - 1, grad_ys)
        y = y1.detach().requires_grad_()
        leaves = [x.detach().requires_grad_(want) for x, want in zip(self.inputs, run.wanted, strict=True)]
        with torch.enable_grad():
            t = torch.tensor(
                chunk.times[-1], dtype=torch.float64, requires_grad=self.times is not None, device="cpu"
            )
            shift = beside(chunk.times[-1], chunk.times[-2], y.dtype) - t.detach() if chunk.jumps else 0.0
            k = run.capture.field((t + shift).to(y.dtype), y, leaves)
        p.stats.nfe_backward += 1
        self.f1 = k.detach()
        if not k.requires_grad:
            return
        wrt = [y, *(x for x in leaves if x.requires_grad)]
        grad_t, *grads = vjp([k], [t if t.requires_grad else None, *wrt], [cotangent])
        if self.times is not None and grad_t is not None:
            self.times.ends[self.times.first] += grad_t
        old = [self.lam, *self.totals]
        self.lam, *self.totals = [a if g is None else a + g for a, g in zip(old, grads, strict=True)]


class _Solve(torch.autograd.Function):
    """Forward: compiled chunks without a graph. Backward: the compiled sweep over them."""

    @staticmethod
    def forward(ctx: Any, run: Run, ambience: Ambience, *tensors: Any) -> Tensor:
        forward = Forward(run)
        end = run.drop_behind_outputs(forward.y)
        ctx.run, ctx.ambience = run, ambience
        # Saved this way they can be offloaded by saved-tensor hooks, and changes in place are noticed.
        bases = (chunk.bases for chunk in run.chunks if chunk.bases is not None)
        ctx.each = 1 + (len(run.split.like) if run.split else 0)
        states = (x for chunk in run.chunks for x in (chunk.Y, *chunk.kept))
        ctx.save_for_backward(*states, end, *tensors[1:], *bases)
        for chunk in run.chunks:
            chunk.Y, chunk.bases, chunk.kept = chunk.Y.new_empty(0), None, []
        run.capture = replace(run.capture, inputs=())
        return forward.ys

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (grad_ys,) = cotangents
        run: Run = ctx.run
        n = len(run.chunks) * ctx.each
        saved = saved_tensors(ctx)
        states, (y1, ts, *rest) = saved[:n], saved[n:]
        held = len(run.problem.control.tensors)
        control, rest = rest[:held], rest[held:]
        inputs, bases = rest[: len(run.wanted)], rest[len(run.wanted) :]
        second = torch.is_grad_enabled()
        if run.split is None:
            with torch.no_grad(), ctx.ambience.restored():
                times = MovingTimes(run, ts, control, bases) if run.spec.timed else None
                lam, *totals = Sweep(run, inputs, times).over(states, y1, grad_ys)
        else:
            with torch.no_grad(), without_autocast(grad_ys.device):  # f is not evaluated
                chunks = [states[i : i + ctx.each] for i in range(0, n, ctx.each)]
                lam, *totals = Pull(run, inputs).over(chunks, grad_ys)
        grads = iter(totals[1 + held :])
        lam = None if lam is None else ordered(lam, run.problem.y0)
        found = [lam, *totals[: 1 + held], *(next(grads) if want else None for want in run.wanted)]
        if second:
            found = refuse_derivative(found, (grad_ys, ts, *control, *inputs), SECOND)
        return (None, None, *found)
