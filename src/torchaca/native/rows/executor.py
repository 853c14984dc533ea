"""The executor of rows: the samples of a batch as native solves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...compiled import CannotCompile
from ...compiled.inference import normal, outside_inference
from ...core import Problem, Times
from ...gradients import Facts, solve_with
from ...gradients.fitting import BUDGET
from ...loops.rows import Spans, beside, differing
from .. import records
from ..codes import built, codes_of_lanes
from ..door import refuse
from ..driver import row_loops_for, started
from ..graphs import Lanes
from ..run import Keep
from .passes import RowPasses
from .plan import Ended, Plan, width_of
from .reads import Reads, Rowed, of_lanes, repeated

KEEPS = "gradient={0!r} with these settings, which does not keep all states"
ALONE = "f is compiled for other numbers of samples: what belongs to samples has to be in rows="
BESIDE = (
    "f of the batch, asked beside the start, raises {0}, so that f of one sample cannot be compared with it"
)
MIXES = (
    "f of sample {0} alone is not its row of f of the batch: it mixes samples, or reads something of a sample that is "
    "not in rows="
)


class NativeRows:
    """Solves the rows of a problem at times `(n, B)`, whose f jumps at others; see `torchaca.executors.Executor`."""

    def __init__(self, wanted: Tensor, rows: Sequence[Tensor], jumps: Tensor | None = None) -> None:
        self.wanted, self.rows, self.jumps = wanted, rows, jumps

    def refusal(self, p: Problem) -> str | None:
        """What has no native solve; see `torchaca.executors.Executor`."""
        return refuse(p)

    def elsewhere(self, p: Problem) -> str:
        """Which settings of the gradient do not go back over these passes; empty if all do."""
        assert p.gradient is not None
        return KEEPS.format(p.gradient.name) if self._keep(p) is None else ""

    def differentiated(self, p: Problem) -> bool:
        """Whether somebody wants a derivative of what has begun."""
        read = p.y0, *self.codes.seen.inputs
        return torch.is_grad_enabled() and any(x.requires_grad for x in read)

    @staticmethod
    def _keep(p: Problem) -> Keep | None:
        """What is kept of each step for the gradient, if that is how it works."""
        assert p.gradient is not None
        method: Any = p.method
        facts = Facts.of(p.gradient)
        if facts.substeps > 1:
            return None
        if facts.replaceable:
            stages = 0 if facts.records is False else len(method.nodes)
            return Keep(True, stages, math.inf if facts.records else BUDGET)
        return Keep(True) if facts.states is not None and facts.states(p, 0) == "all" else None

    def begin(self, p: Problem) -> Problem:
        """Find the code of f of a few samples, and evaluate it where the samples start: it has to be f of the batch.

        Raises
        ------
        CannotCompile
        """
        f: Any = p.f.call
        width = width_of(p)
        started(p.y0.dtype, width)  # while f is traced
        p.stats.nfe += 1
        with outside_inference():
            p = replace(p, y0=normal(p.y0))
            own, whole = of_lanes(f, self.rows, width)
            time = own.time(self.wanted[0, 0].item())
            try:
                self.codes = codes_of_lanes(
                    own, time, repeated(p.y0, width), lambda seen: Lanes.of(Reads.of(seen, whole).rowed, seen)
                )
            except CannotCompile as reason:
                raise CannotCompile(f"{reason} ({ALONE})") from reason
            built(lambda: row_loops_for(p.y0.dtype, width))
            self.reads = Reads.of(self.codes.seen.inputs, whole)
        self.codes.seen.tell(f, p.y0)
        p = replace(p, ts=Times(tuple(map(float, range(len(self.wanted))))))
        with outside_inference():
            self._compare(p)
        return p

    def finish(self, p: Problem, boundaries: Tensor | None) -> tuple[Tensor, Ended, RowPasses]:
        """Solve between the boundaries of fixed steps, if there are some: outputs, ends, and what knows the steps."""
        plan, keep = Plan(p, self.wanted, boundaries, self.jumps), self._keep(p) or Keep()
        if "gemm" not in self.codes.value.function.libraries:
            keep = replace(keep, rows=0)  # stages of a cheap f are made again before memory has brought them
        with outside_inference():
            differentiated = self.codes.pull is not None
            passes = RowPasses(plan, self.codes, self.reads, keep if differentiated else Keep())
            if not differentiated:
                with torch.no_grad():
                    ys = passes.forward()[0].ys
            else:
                ys = solve_with(passes).ys
        return ys, plan.ended(ys[-1].detach()), passes

    def _compare(self, p: Problem) -> None:
        """Compare f of each sample alone with f of the batch, beside the start.

        Raises
        ------
        CannotCompile
        """
        f: Any = p.f.call
        t, y = beside(Spans.between(self.wanted[0], self.wanted[-1]), p.y0.detach())
        try:
            with torch.no_grad(), p.undone():
                want = f.evaluate(t.reshape(-1, *[1] * (y.ndim - 1)), y)
        except Exception as error:
            raise CannotCompile(BESIDE.format(type(error).__name__)) from error
        wrong = differing(self._alone(p, t, y.contiguous()), want)
        if bool(wrong.any()):
            raise CannotCompile(MIXES.format(int(wrong.int().argmax())))

    def _alone(self, p: Problem, t: Tensor, y: Tensor) -> Tensor:
        """f of each sample alone at these times and states."""
        plan, tensors = Plan(p, self.wanted, self.wanted[[0, -1]]), list(records.dense(self.reads.tensors))
        inputs, lead = self.reads.lanes_of(tensors, plan.width), self.codes.given[:2]
        called = self.codes.value.called_with([*lead, *inputs], [None])
        rowed = Rowed(called, inputs, tensors, self.reads.rowed)
        solve, held = plan.solve(None, None, called, None), plan.rows((0, plan.size), None, None, rowed)
        k, rows = torch.empty_like(y), held.record
        ts = t[:, None].expand(plan.ts.shape).contiguous()
        rows.y0, rows.ts = y.data_ptr(), ts.data_ptr()
        slopes = row_loops_for(k.dtype, plan.width).function("slopes_of_rows")
        slopes(records.address(solve), records.address(rows), k.data_ptr())
        return k
