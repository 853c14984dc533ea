"""The executor: a whole solve as native code."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..compiled import CannotCompile
from ..compiled.capture import Capture, capture, keep_numbers
from ..compiled.failure import EVENTS
from ..compiled.inference import normal, outside_inference
from ..core import Outcome, Problem
from ..field.inputs import Inputs
from ..gradients import Facts, solve_with
from ..gradients.checkpoints import States
from ..gradients.fitting import BUDGET
from . import records
from .build import CannotBuild
from .door import inside_steps, is_timed, refuse
from .driver import loops_for, started
from .graphs import Wanted
from .passes import NativePasses
from .programs import Programs, loaded
from .run import Forward, Keep
from .steps import with_native_steps


class Native:
    """`compile="native"`; see `torchaca.executors.Executor`."""

    def refusal(self, p: Problem) -> str | None:
        """What has no native solve; see `torchaca.executors.Executor`."""
        reason = refuse(p)
        return None if reason is None else f"{reason}: use compile=True, which takes what there is"

    def begin(self, p: Problem) -> Problem:
        """Ask PyTorch's tracer, by its guards, which graph of f is current, and evaluate the code of that graph."""
        f: Any = p.f.call
        if p.events is not None:
            raise CannotCompile(EVENTS)
        if torch.is_autocast_enabled("cpu"):
            raise CannotCompile("autocast is on, which is not translated to C")
        started(p.y0.dtype)  # while f is traced
        start, end = p.ts.values[0], p.ts.values[-1]
        p.stats.nfe += 1
        with outside_inference():
            p = replace(p, y0=normal(p.y0))
            time = f.time(start, nudge=end if start in p.jumps else None)
            self.seen = self._captured(f, time, p.y0)
            try:
                self._compile(p, time)
            except CannotCompile:
                if not self.seen.field.scalars:
                    raise
                keep_numbers(f)
                self.seen = self._captured(f, time, p.y0)
                self._compile(p, time)
        f.note_precision(self.seen.field.half)
        return p.knowing(self.f0)

    @staticmethod
    def _captured(f: Any, time: Tensor, y0: Tensor) -> Capture:
        return capture(f, time, y0, evaluates=False, transforms=True, scalars=True)

    def _compile(self, p: Problem, time: Tensor) -> None:
        """Find the code of f, and of its product if there will be a backward pass; evaluate f at the start."""
        seen, differentiate = self.seen, torch.is_grad_enabled()
        timed, wanted = is_timed(p), [differentiate and x.requires_grad for x in seen.inputs]
        self.wanted = Wanted(differentiate and timed, tuple(wanted))
        self.keep = any(wanted) or self.wanted.time or (differentiate and p.y0.requires_grad)
        if any(map(is_elsewhere, seen.inputs)):
            raise CannotCompile(
                "f reads a tensor that is not plain memory of this machine (sparse, on a device?)"
            )
        given = (time, p.y0, *map(normal, seen.inputs))
        t, y, *inputs = records.dense(given)
        programs = Programs.of(seen.field)
        self.value = programs.value(t, y, inputs)
        self.pull = programs.pull(t, y, inputs, self.wanted) if self.keep else None
        self.given = t, y, y, *inputs
        for code in (self.value, self.pull):
            if code is not None:
                loaded(code)
        try:
            loops_for(y.dtype)
        except CannotBuild as reason:
            raise CannotCompile(str(reason)) from reason
        self.f0 = torch.empty_like(y)
        self.called = self.value.called_with([t, y, *inputs], [self.f0])
        self.value.evaluate(self.called)

    def finish(self, p: Problem) -> Outcome:
        """Solve; see `torchaca.executors.Executor`."""
        assert p.gradient is not None
        facts, pull = Facts.of(p.gradient), self.pull
        with outside_inference():
            if pull is None:
                with torch.no_grad():
                    return Forward(p, self.called).run()
            codes = self.value, pull
            if not facts.replaceable and facts.states is None:
                wanted = [x for x, want in zip(self.seen.inputs, self.wanted.inputs, strict=True) if want]
                inputs = Inputs(args=tuple(wanted), graph_bytes=pull.workspace(self.given))
                return p.gradient(with_native_steps(p, codes, self.seen.inputs, self.wanted), inputs)
            forward, inputs = Forward(p, self.called, self._kept(p, facts)), Inputs(args=self.seen.inputs)
            return solve_with(
                NativePasses(p, self.seen.field, inputs, forward, codes, self.wanted, facts.substeps)
            )

    def _kept(self, p: Problem, facts: Facts) -> Keep:
        """What the forward pass keeps: stages, so that f is not evaluated again, or states, or some of them."""
        method: Any = p.method
        rows = len(method.nodes) if inside_steps(p) else method.stages - method.fsal
        if facts.replaceable:
            recorded = facts.records
            return Keep(True, 0 if recorded is False else rows, math.inf if recorded else BUDGET)
        assert self.pull is not None
        assert facts.states is not None
        replay = self.pull.workspace(self.given) + (3 * len(method.nodes) + 2) * p.y0.nbytes
        states = facts.states(p, replay)
        return Keep(True, store=None if states == "all" else States(states))


def is_elsewhere(x: Tensor) -> bool:
    """Whether the numbers of a tensor are not where its pointer says."""
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return not plain or x.layout != torch.strided or x.device.type != "cpu" or x.is_neg() or x.is_conj()
