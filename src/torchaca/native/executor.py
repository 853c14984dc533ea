"""The executor: a whole solve as native code."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ..compiled import CannotCompile
from ..compiled.inference import normal, outside_inference
from ..core import Outcome, Problem
from ..events import Watch
from ..field.inputs import Inputs
from ..gradients import Facts, solve_with
from ..gradients.checkpoints import States
from ..gradients.fitting import BUDGET
from ..loops.outputs import gather
from ..loops.stepping import steps
from .codes import codes_of
from .door import inside_steps, is_timed, refuse
from .driver import started
from .passes import NativePasses
from .programs import Code
from .run import Forward, Keep
from .steps import with_native_steps
from .watched import Lookout, code_of_events

TOLD = "somebody is told of each trial"
GOES = "the gradient {!r} with these settings goes from step to step by itself"


class Native:
    """`compile="native"`; see `torchaca.executors.Executor`."""

    def refusal(self, p: Problem) -> str | None:
        """What has no native solve; see `torchaca.executors.Executor`."""
        reason = refuse(p)
        return None if reason is None else f"{reason}: use compile=True, which takes what there is"

    def begin(self, p: Problem) -> Problem:
        """Ask PyTorch's tracer, by its guards, which graph of f is current, and evaluate the code of that graph."""
        f: Any = p.f.call
        started(p.y0.dtype)  # while f is traced
        start, end = p.ts.values[0], p.ts.values[-1]
        p.stats.nfe += 1
        with outside_inference():
            p = replace(p, y0=normal(p.y0))
            time = f.time(start, nudge=end if start in p.jumps else None)
            self._compile(p, time)
            p.stats.stepwise = self._stepwise_because(p, time)
        self.seen.tell(f, p.y0)
        return p.knowing(self.f0)

    def _compile(self, p: Problem, time: Tensor) -> None:
        """Find the code of f, and of its product if there will be a backward pass; evaluate f at the start."""
        found = codes_of(p.f.call, time, p.y0, timed=is_timed(p))
        self.seen, self.wanted, self.value, self.pull = found.seen, found.wanted, found.value, found.pull
        t, y, *inputs = found.given
        self.given = t, y, y, *inputs
        self.f0 = torch.empty_like(y)
        self.called = self.value.called_with([t, y, *inputs], [self.f0])
        self.value.evaluate(self.called)

    def _stepwise_because(self, p: Problem, time: Tensor) -> str:
        """Why the loop has to be in Python, whose steps alone are native; finds the code of events if it has not."""
        assert p.gradient is not None
        self.graphs, facts = [], Facts.of(p.gradient)
        if p.watch is not None:
            return TOLD
        if self.pull is not None and not (facts.replaceable or facts.states):
            return GOES.format(p.gradient.name)
        if p.events is None:
            return ""
        try:
            self.graphs = code_of_events(cast(Watch, p.events), time, p.y0)
        except CannotCompile as reason:
            return str(reason)
        return ""

    def finish(self, p: Problem) -> Outcome:
        """Solve; see `torchaca.executors.Executor`."""
        assert p.gradient is not None
        facts, pull = Facts.of(p.gradient), self.pull
        with outside_inference():
            if pull is None:
                with torch.no_grad():
                    return self._stepwise(p) if p.stats.stepwise else self._forward(p).run()
            if p.stats.stepwise:
                return self._differentiated(p, pull, facts)
            codes = self.value, pull
            forward, inputs = self._forward(p, self._kept(p, facts)), Inputs(args=self.seen.inputs)
            return solve_with(
                NativePasses(p, self.seen.field, inputs, forward, codes, self.wanted, facts.substeps)
            )

    def _forward(self, p: Problem, keep: Keep | None = None) -> Forward:
        """The forward pass, which stops at the first event."""
        lookout, watch = None, cast("Watch | None", p.events)
        if watch is not None:
            lookout = Lookout(watch, self.graphs, p, self.value, self.seen.inputs)
        return Forward(p, self.called, Keep() if keep is None else keep, lookout)

    def _stepwise(self, p: Problem) -> Outcome:
        """Solve by steps in Python, which somebody looks at one by one."""
        p = with_native_steps(p, (self.value, None), self.seen.inputs, self.wanted)
        return gather(p, steps(p))

    def _differentiated(self, p: Problem, pull: Code, facts: Facts) -> Outcome:
        """Solve by steps in Python under the gradient itself."""
        gradient = p.gradient
        assert gradient is not None
        wanted = [x for x, want in zip(self.seen.inputs, self.wanted.inputs, strict=True) if want]
        p = with_native_steps(p, (self.value, pull), self.seen.inputs, self.wanted)
        attached = facts.records is not False
        if attached:  # f at the start has to be a part of the graph of the steps
            p.stats.nfe -= 1
            p = p.knowing(p.slope(p.ts[0], p.ts[len(p.ts) - 1], p.y0))
        inputs = Inputs(args=tuple(wanted), graph_bytes=pull.workspace(self.given), attached=attached)
        return gradient(p, inputs)

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
