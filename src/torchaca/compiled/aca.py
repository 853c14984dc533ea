"""ACA compiled: the forward pass and the sweep back over its checkpoints are one compiled loop each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core import Outcome, Problem, tolerant
from ..field.dynamics import Dynamics
from ..field.inputs import Inputs
from ..gradients import Facts, refuse, solve_with
from ..gradients.fitting import BUDGET, step_bytes
from ..gradients.look import look_of
from ..gradients.replay import Ambience, MaybeTensors, Parts, vjp
from ..layout import ordered
from ..numbers import without_autocast
from ..torch_internals import transformed
from .capture import Capture, capture
from .door import is_timed, keeps_graphs, refuse_loops
from .failure import EVENTS, CannotCompile
from .inference import normal, outside_inference
from .look import Looks
from .loops import sweep_loop
from .outputs import Chunk, f1_cotangent, padded, table_of_ends, tables_of_inner
from .pullback import Pullback
from .run import CompiledSolve, Forward
from .spec import Spec
from .steps import beside
from .times import MovingTimes, with_times

SECOND = "second derivatives of a compiled solve are not available: use compile=False"


class Loops:
    """`compile="loops"`; see `torchaca.executors.Executor`."""

    def refusal(self, p: Problem) -> str | None:
        """What the compiled solve does not have yet; see `torchaca.executors.Executor`."""
        assert p.gradient is not None
        return refuse_loops(p, p.gradient, transformed())

    def begin(self, p: Problem) -> Problem:
        """Evaluate f through Dynamo."""
        f: Any = p.f.call
        self.f: Dynamics = f
        if p.events is not None:
            raise CannotCompile(EVENTS)
        assert p.gradient is not None
        self.facts = Facts.of(p.gradient)
        start, end = p.ts.values[0], p.ts.values[-1]
        p.stats.nfe += 1
        with outside_inference():
            p = replace(p, y0=normal(p.y0))
            time = f.time(start, nudge=end if start in p.jumps else None)
            record = torch.is_grad_enabled() and self.facts.records is not False and keeps_graphs(p)
            self.seen = capture(f, time, p.y0, record)
            self.record = record and self._keeps(p, self.seen)
            self.seen = self.seen if self.record else replace(self.seen, recorded=None)
        self.seen.tell(f, p.y0)
        return p.knowing(self.seen.value)

    def _keeps(self, p: Problem, seen: Capture) -> bool:
        """Whether the graphs of all steps are kept: as it is said, or if those of the most steps possible fit."""
        first = seen.recorded
        if self.facts.records:
            if first is None:
                raise CannotCompile("f does not depend on the state")
            return True
        if first is None or seen.sizes:  # graphs are compiled for one size alone
            return False
        control, step = tolerant(p.control), step_bytes(p, Inputs(graph_bytes=first.nbytes), p.method.stages)
        return control is not None and control.max_steps * step <= BUDGET

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
        run = CompiledSolve(own, seen, spec, wanted, keep)
        if keep:
            with torch.no_grad(), without_autocast(p.y0.device) if run.split else nullcontext():
                sweep = Pullback(run, seen.inputs) if run.split else Sweep(run, seen.inputs, None)
                run.warm_up(("pull" if run.split else "sweep", wanted), sweep.warm_up)
            # As args: they are exchanged for leaves, so that hooks of the user's do not concern them.
            return solve_with(CompiledPasses(run, p, Inputs(args=seen.inputs)))
        with torch.no_grad():
            return Forward(run).outcome()


class Sweep:
    """The backward pass of a run: chunk after chunk, from the last to the first."""

    def __init__(self, run: CompiledSolve, inputs: Sequence[Tensor], times: MovingTimes | None) -> None:
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
        self._replay(Chunk(0, T, Y, []), Y, None, y0.new_zeros((1, *y0.shape)), (0, 0))

    def over(self, states: Sequence[Tensor], y1: Tensor, grad_ys: Tensor) -> MaybeTensors:
        """Gradients of y0, the times, the control and the chosen inputs, from those of the outputs."""
        run, p, spec = self.run, self.run.problem, self.run.spec
        n = sum(chunk.n for chunk in run.chunks)
        look = look_of(p, run.times[: n + 1], (grad_ys,))
        looks = Looks(look, run.capture.field, self.inputs, run.wanted)
        for k in range(len(run.chunks) - 1, -1, -1):
            chunk, before = run.chunks[k], run.chunks[k - 1] if k and not run.chunks[k - 1].jumps else None
            last = k == len(run.chunks) - 1
            if (last or chunk.jumps) and spec.carries and chunk.n - 1 in chunk.inside:
                self._tail(chunk, y1 if last else states[k + 1][0], grad_ys)
            n -= chunk.n
            for start, end in looks.pieces(n, chunk.n):
                outputs = (grad_ys[i] for i in chunk.ending.get(end - 1, ()))
                looks.look(n + end - 1, states[k][end - 1], self.lam, outputs)
                self._replay(chunk, states[k], before, grad_ys, (end, start))
            if self.times is not None:
                self.times.add(chunk, self.ends, grad_ys)
        each = p.method.stages - spec.method.fsal
        p.stats.nfe_backward += sum(chunk.n * each + len(chunk.inside) * spec.extra for chunk in run.chunks)
        moved = [None] if self.times is None else self.times.gradients()
        look.settle(self.totals)
        return [self.lam + grad_ys[: p.ts.at_start()].sum(0), *moved, *self.totals]

    def _replay(
        self, chunk: Chunk, Y: Tensor, before: Chunk | None, grad_ys: Tensor, steps: tuple[int, int]
    ) -> None:
        """The first steps of a chunk in reverse, but for the first of them: so many each."""
        run, spec = self.run, self.run.spec
        tables = [table_of_ends(chunk, run.room, grad_ys)]
        if spec.inside:
            tables += tables_of_inner(run.problem, chunk, before, run.room, run.rows, spec.carries, grad_ys)
        run.mark(chunk.T, Y, self.ends, *(x for table in tables for x in table))
        self.lam, carried, ends, self.totals = run.call(
            ("sweep", run.wanted),
            lambda: sweep_loop(run.capture.field, spec, run.wanted),
            *(torch.tensor(n, device="cpu") for n in steps),
            *(chunk.T, Y, tables, self.lam, self.f1, self.ends),
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


class CompiledPasses:
    """The passes of a compiled solve, chunk by chunk; see `torchaca.gradients.Passes`."""

    def __init__(self, run: CompiledSolve, problem: Problem, inputs: Inputs) -> None:
        self.run, self.problem, self.inputs = run, problem, inputs

    def forward(self) -> tuple[Outcome, list[Tensor]]:
        """Solve chunk by chunk; kept are their states and residuals, the last state, and their interpolants."""
        run, forward = self.run, Forward(self.run)
        end = run.drop_behind_outputs(forward.y)
        bases = [chunk.bases for chunk in run.chunks if chunk.bases is not None]
        states = [x for chunk in run.chunks for x in (chunk.Y, *chunk.kept)]
        for chunk in run.chunks:
            chunk.Y, chunk.bases, chunk.kept = chunk.Y.new_empty(0), None, []
        run.capture = replace(run.capture, inputs=())
        return forward.outcome(), [*states, end, *bases]

    def backward(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Sweep over the chunks, from the last to the first, or pull through their graphs."""
        run, (grad_ys, *_) = self.run, cotangents
        each = 1 + (len(run.split.like) if run.split else 0)
        n, held = len(run.chunks) * each, len(run.problem.control.tensors)
        states, (y1, *bases), (_, ts, *rest) = kept[:n], kept[n:], tensors
        control, inputs = rest[:held], rest[held:]
        assert grad_ys is not None
        if run.split is None:
            times = MovingTimes(run, ts, control, bases) if run.spec.timed else None
            lam, *totals = Sweep(run, inputs, times).over(states, y1, grad_ys)
        else:
            with without_autocast(grad_ys.device):  # f is not evaluated
                chunks = [states[i : i + each] for i in range(0, n, each)]
                lam, *totals = Pullback(run, inputs).over(chunks, grad_ys)
        grads = iter(totals[1 + held :])
        lam = None if lam is None else ordered(lam, run.problem.y0)
        return [lam, *totals[: 1 + held], *(next(grads) if want else None for want in run.wanted)]

    def twice(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Refuse second derivatives."""
        return refuse(self, SECOND, kept, cotangents, tensors)
