"""The executor: a whole solve as native code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..compiled import CannotCompile
from ..compiled.capture import capture
from ..compiled.inference import normal, outside_inference
from ..core import Outcome, Problem
from ..field.inputs import Inputs
from ..gradients import Facts, solve_with
from .build import CannotBuild
from .door import inside_steps, is_timed, refuse
from .driver import loops_for, started
from .graphs import Wanted
from .passes import NativePasses
from .programs import Programs, loaded
from .run import Forward, Keep


class Native:
    """`compile="native"`; see `torchaca.executors.Executor`."""

    def refusal(self, p: Problem) -> str | None:
        """What has no native solve; see `torchaca.executors.Executor`."""
        reason = refuse(p)
        return None if reason is None else f"{reason}: use compile=True, which takes what there is"

    def begin(self, p: Problem) -> Problem:
        """Evaluate f through PyTorch's tracer, whose guards say which graph is current."""
        f: Any = p.f.call
        if torch.is_autocast_enabled("cpu"):
            raise CannotCompile("autocast is on, which is not translated to C")
        started(p.y0.dtype)  # while f is traced
        start, end = p.ts.values[0], p.ts.values[-1]
        p.stats.nfe += 1
        with outside_inference():
            p = replace(p, y0=normal(p.y0))
            self.time = f.time(start, nudge=end if start in p.jumps else None)
            self.seen = capture(f, self.time, p.y0)
        f.note_precision(self.seen.field.half)
        return p.knowing(self.seen.value)

    def finish(self, p: Problem) -> Outcome:
        """Solve; see `torchaca.executors.Executor`."""
        with outside_inference():
            return self._solved(p)

    def _solved(self, p: Problem) -> Outcome:
        seen, differentiate = self.seen, torch.is_grad_enabled()
        inputs = [normal(x) for x in seen.inputs]
        wanted = Wanted(
            differentiate and is_timed(p), tuple(differentiate and x.requires_grad for x in seen.inputs)
        )
        keep = any(wanted.inputs) or wanted.time or (differentiate and p.y0.requires_grad)
        plain = [x.detach().contiguous() for x in inputs]
        y, t = p.y0.detach().contiguous(), self.time.detach()
        programs = Programs.of(seen.field)
        value = programs.value(t, y, plain)
        pull = programs.pull(t, y, plain, wanted) if keep else None
        for code in (value, pull):
            if code is not None:
                loaded(code)
        try:
            loops_for(y.dtype)
        except CannotBuild as reason:
            raise CannotCompile(str(reason)) from reason
        called = value.called_with([t, y, *plain], [None])
        if pull is None:
            with torch.no_grad():
                return Forward(p, called, seen.value).run()
        forward = Forward(p, called, seen.value, Keep(True, self._rows(p)))
        return solve_with(NativePasses(p, Inputs(args=seen.inputs), forward, (value, pull), wanted))

    @staticmethod
    def _rows(p: Problem) -> int:
        """How many stages are kept of each step, so that f is not evaluated again."""
        assert p.gradient is not None
        method: Any = p.method
        if Facts.of(p.gradient).records is False:
            return 0
        return len(method.nodes) if inside_steps(p) else method.stages - method.fsal
