"""Who solves a problem: the eager loop, compiled loops, or the eager loop with graphs for its steps.

An executor evaluates f at the start in its own way (`begin`), and goes on from there in its own way (`finish`). What
every solve promises once f has been evaluated lies between the two, in `solve.prepared`, and no executor can go around
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from .compiled import CannotCompile, Loops, in_steps
from .compiled.door import CUDA_GRAPHS, STEPS, refuse_steps
from .core import Gradient, Outcome, Problem, tolerant
from .errors import warn
from .field.dynamics import Dynamics
from .field.inputs import Inputs, evaluated_in_graph, first_evaluation
from .field.lost import warn_of_kept
from .field.reach import reach
from .gradients import Direct, Facts, check_problem
from .layout import stacked
from .loops.clock import check_clock
from .loops.lanes import solve_in_lanes, solves_in_lanes
from .loops.outputs import gather
from .loops.stepping import steps
from .torch_internals import forward_level, peek_interpreter_stack


class Executor(Protocol):
    """Solves one problem."""

    def begin(self, p: Problem) -> Problem:
        """Evaluate f at the start: the problem with its `f0` and `effects`, and what f's `Dynamics` notes of it.

        Raises
        ------
        CannotCompile
            Where the problem is for the eager loop.
        """
        ...

    def finish(self, p: Problem) -> Outcome:
        """Solve the prepared problem.

        Raises
        ------
        CannotCompile
            Where the problem is for the eager loop.
        """
        ...


def execute(mode: Mode, p: Problem, eager: Eager, prepared: Callable[[Problem], Problem]) -> Outcome:
    """Solve with the executor that `compile=mode` names; after a warning in the eager loop, where that cannot be.

    `prepared` is what every executor's problem goes through once f has been evaluated.

    Raises
    ------
    ValueError
        For options that do not go with it.
    """
    check_mode(mode)
    executor = EXECUTORS[mode](p, eager)
    if p.ts.values[0] == p.ts.values[-1]:
        return _at_rest(p)
    if not p.y0.numel():
        executor = eager  # no component, no work
    try:
        begun = prepared(executor.begin(p))
        p = replace(p, control=begun.control)  # tolerances are raised, and told of, once
        outcome = executor.finish(begun)
    except CannotCompile as reason:
        p.stats.__init__()
        warn(f"compile={mode!r}: {reason}; this solve runs in the eager loop")
        begun = prepared(eager.begin(p))
        outcome = eager.finish(begun)
    if outcome.failure is None and len(outcome.ys) < len(p.ts):
        raise RuntimeError(
            f"the control {type(p.control).__name__} ended its steps at t = {outcome.times[-1]:g}, before the last "
            f"output time {p.ts.values[-1]:g}: the last step that moves() yields has to end there"
        )
    check_clock(begun, outcome.times, failed=outcome.failure is not None, hidden=transformed())
    return outcome


def check_mode(mode: Mode) -> None:
    """Refuse a value of `compile=` that names no executor.

    Raises
    ------
    ValueError
    """
    if mode not in EXECUTORS:
        raise ValueError(f"compile is True, False, {STEPS!r} or {CUDA_GRAPHS!r}, got {mode!r}")


@dataclass
class Eager:
    """The eager loop, under the gradient method, or without a graph where nothing wants one.

    `declared` are tensors that get a gradient whether f uses them or not (`declared_alone`: and no captured tensor
    does). `fails_alone`: so does a lane of vmap.
    """

    f: Dynamics
    gradient: Gradient
    declared: tuple[Tensor, ...] = ()
    declared_alone: bool = False
    fails_alone: bool = False
    inputs: Inputs = field(default_factory=Inputs)

    def begin(self, p: Problem) -> Problem:
        """Evaluate f, as a part of the caller's graph where there is one."""
        if transformed():
            self.gradient = recorded(self.gradient)
        if self._in_graph:
            return evaluated_in_graph(p, self.f)
        facts, differentiated = Facts.of(self.gradient), torch.is_grad_enabled()
        p, self.inputs = first_evaluation(
            p,
            self.f,
            measure=facts.wants_graph_size and differentiated,
            attach=facts.records is None,
            declared=self.declared,
        )
        return p

    @property
    def _in_graph(self) -> bool:
        return transformed() or (torch.is_grad_enabled() and Facts.of(self.gradient).records is True)

    def finish(self, p: Problem) -> Outcome:
        """Solve; see `Executor`."""
        gradient, inputs = self.gradient, self.inputs
        if transformed() and p.control.adaptive:
            seen = [tensor for _, tensor in reach(self.f.func, self.f.args).tensors]
            if solves_in_lanes(p, seen):
                if not Facts.of(gradient).replaceable:
                    raise NotImplementedError(
                        f"gradient={gradient.name!r} is not available in an adaptive solve inside torch.func.vmap: use "
                        "gradient='aca' or 'direct'"
                    )
                return solve_in_lanes(p, tolerant(p.control), seen, self.fails_alone)
        if self._in_graph:
            return gradient(p, inputs)
        if self.declared or self.declared_alone:
            inputs = inputs.declaring(self.declared, alone=self.declared_alone)
        sources = (p.y0, p.ts.tensor, *p.control.tensors, *inputs.tensors)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in sources):
            warn_of_kept(inputs.kept, gradient.name)
            with inputs.reads.in_use():
                outcome = gradient(p, inputs)
            inputs.reads.settle()
            return outcome
        check_problem(gradient, p)  # what training will refuse, evaluation refuses as well
        with torch.no_grad():
            return gather(p, steps(p))


@dataclass
class Graphs:
    """The eager loop with graphs for its steps; `mode` is "steps" or "cuda-graphs".

    A graph is made when it is first needed; where it cannot be, the steps themselves warn, and go on without.
    """

    eager: Eager
    mode: str

    def begin(self, p: Problem) -> Problem:
        """Evaluate f as the eager loop does."""
        return self.eager.begin(p)

    def finish(self, p: Problem) -> Outcome:
        """Solve; see `Executor`."""
        return self.eager.finish(in_steps(p, self.eager.f, self.mode))


def _eager(p: Problem, eager: Eager) -> Executor:
    return eager


def _loops(p: Problem, eager: Eager) -> Executor:
    return Loops(p, eager.f, eager.gradient, transformed())


def _steps(p: Problem, eager: Eager) -> Executor:
    refuse_steps(p, eager.gradient, STEPS, transformed())
    return Graphs(eager, STEPS)


def _cuda_graphs(p: Problem, eager: Eager) -> Executor:
    refuse_steps(p, eager.gradient, CUDA_GRAPHS, transformed())
    return Graphs(eager, CUDA_GRAPHS)


Mode: TypeAlias = bool | str
EXECUTORS: dict[Mode, Callable[[Problem, Eager], Executor]] = {
    False: _eager,
    True: _loops,
    STEPS: _steps,
    CUDA_GRAPHS: _cuda_graphs,
}
"""By the value of `compile=`; each refuses in a sentence what it cannot solve."""


def _at_rest(p: Problem) -> Outcome:
    """The outputs where all times are equal: y0, and moving along f where the times carry derivatives."""
    ys = stacked([p.y0] * len(p.ts))
    if p.ts.tensor is not None and len(p.ts) > 1:
        shift = (p.ts.tensor - p.ts.tensor[0]).to(p.y0.device, p.y0.dtype.to_real())
        ys = ys + shift.reshape(-1, *[1] * p.y0.ndim) * p.f(p.ts[0], p.y0.clone())
    return Outcome(ys, p.ts, times=list(p.ts.values[:1]))


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is active."""
    return peek_interpreter_stack() is not None or forward_level() >= 0


def recorded(gradient: Gradient) -> Gradient:
    """The gradient inside torch.func transforms, which record what they differentiate themselves.

    Raises
    ------
    NotImplementedError
        For a gradient, or a setting, that decides what is recorded.
    """
    facts = Facts.of(gradient)
    if facts.records:
        return gradient
    if facts.replaceable:
        return Direct()
    raise NotImplementedError(
        f"gradient={gradient.name!r} with these settings does not run inside torch.func transforms or forward-mode AD, "
        "which keep the graph of all steps: use gradient='aca' without settings, or 'direct'"
    )
