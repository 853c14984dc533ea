"""Who solves a problem: the eager loop, compiled loops, or the eager loop with graphs for its steps.

An executor evaluates f at the start in its own way (`begin`), and goes on from there in its own way (`finish`). What
every solve promises once f has been evaluated lies between the two, in `prepared`, and no executor can go around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch

from .compiled import CannotCompile, Loops, in_steps
from .compiled.door import CUDA_GRAPHS, STEPS, refuse_steps
from .core import Gradient, Outcome, Problem, tolerant
from .errors import warn
from .events import Course, Event, solve_through
from .field.effects import warn_of_noise
from .field.inputs import Inputs, first_evaluation
from .field.lost import warn_of_kept
from .field.precision import floored
from .field.reach import reach
from .field.sharded import refuse_gathered
from .gradients import Facts
from .gradients.facts import recorded
from .layout import stacked
from .loops.clock import check_clock
from .loops.lanes import solve_in_lanes, solves_in_lanes
from .loops.outputs import gather
from .loops.stepping import steps
from .native import Native
from .torch_internals import transformed


class Executor(Protocol):
    """Solves one problem. The rows of `EXECUTORS` make one for each solve."""

    def refusal(self, p: Problem) -> str | None:
        """Say in a sentence why this executor cannot solve the problem; None if it can."""
        ...

    def begin(self, p: Problem) -> Problem:
        """Evaluate f at the start: the problem with what that shows of its field.

        Raises
        ------
        CannotCompile
            If the problem is for the eager loop.
        """
        ...

    def finish(self, p: Problem) -> Outcome:
        """Solve the prepared problem.

        Raises
        ------
        CannotCompile
            If the problem is for the eager loop.
        """
        ...


class Eager:
    """The eager loop, under the gradient method, or without a graph where nothing wants one."""

    def refusal(self, p: Problem) -> str | None:
        """None: it solves every problem."""
        return None

    def begin(self, p: Problem, *, attaches: bool = True) -> Problem:
        """Evaluate f, as a part of the caller's graph where there is one.

        A gradient that may record the steps or not does not without `attaches`.
        """
        gradient = p.gradient
        assert gradient is not None
        if transformed():
            return first_evaluation(replace(p, gradient=recorded(gradient)), recorded=True)
        facts, differentiated = Facts.of(gradient), torch.is_grad_enabled()
        if differentiated and facts.records is True:
            return first_evaluation(p, recorded=True)
        measure = facts.wants_graph_size and differentiated
        return first_evaluation(p, measure=measure, attach=attaches and facts.records is None)

    def finish(self, p: Problem) -> Outcome:
        """Solve; see `Executor`."""
        gradient, inputs = p.gradient, p.f.inputs
        assert gradient is not None
        if inputs is None:
            return self._in_graph(p, gradient)
        if inputs.wanted:
            p = (
                p if Facts.of(gradient).saves else replace(p, save=None)
            )  # which is then done with its outputs
            warn_of_kept(inputs.kept, gradient.name)
            with inputs.reads.in_use():
                outcome = gradient(p, inputs)
            inputs.reads.settle()
            return outcome
        check_problem(gradient, p)  # what training will refuse, evaluation refuses as well
        with torch.no_grad():
            return gather(p, p.control.moves(p) if p.events is None else steps(p))

    def _in_graph(self, p: Problem, gradient: Gradient) -> Outcome:
        """Solve as a part of the caller's graph; the lanes of vmap one by one, where each has its own steps."""
        if transformed() and p.control.adaptive:
            seen = [tensor for _, tensor in reach(p.f.source or p.f.call, p.f.args).tensors]
            if solves_in_lanes(p, seen):
                if not Facts.of(gradient).replaceable:
                    raise NotImplementedError(
                        f"gradient={gradient.name!r} is not available in an adaptive solve inside torch.func.vmap: use "
                        "gradient='aca' or 'direct'"
                    )
                return solve_in_lanes(p, tolerant(p.control), seen, p.log.on_failure != "raise")
        return gradient(p if Facts.of(gradient).saves else replace(p, save=None), Inputs())


@dataclass(frozen=True)
class Graphs:
    """The eager loop with graphs for its steps; `mode` is "steps" or "cuda-graphs".

    A graph is made when it is first needed; if it cannot be, the steps themselves warn, and go on without.
    """

    mode: str
    eager: Eager = field(default_factory=Eager)

    def refusal(self, p: Problem) -> str | None:
        """What has no graphs for its steps; see `Executor`."""
        assert p.gradient is not None
        return refuse_steps(p, p.gradient, self.mode, transformed())

    def begin(self, p: Problem) -> Problem:
        """Evaluate f as the eager loop does; the graph of a compiled step has no second derivatives."""
        return self.eager.begin(p, attaches=False)

    def finish(self, p: Problem) -> Outcome:
        """Solve; see `Executor`."""
        return self.eager.finish(in_steps(p, self.mode))


Mode: TypeAlias = bool | str
NATIVE, LOOPS = "native", "loops"
EXECUTORS: dict[Mode, Callable[[], Executor]] = {
    False: Eager,
    NATIVE: Native,
    LOOPS: Loops,
    STEPS: partial(Graphs, STEPS),
    CUDA_GRAPHS: partial(Graphs, CUDA_GRAPHS),
}
"""By the value of `compile=`; each makes an executor for one solve."""
PREFERRED: list[Mode] = [NATIVE, LOOPS]
"""What `compile=True` asks in turn; the first that takes the problem solves it."""
EAGER = "eager"


def solved(
    p: Problem, mode: Mode = False, events: Sequence[Event] = ()
) -> tuple[Problem, Outcome, Course | None]:
    """Have an executor solve a problem, from event to event if there are some.

    Returns
    -------
    tuple
        The problem with the control that it was solved with, what came out, and what happened on the way.
    """
    if events:
        course = solve_through(p, events, partial(solved, mode=mode))
        return p, course.outcome, course
    ts, gradient = p.ts, p.gradient
    assert gradient is not None
    takers, passed = chosen(mode, p)
    before = dict(vars(p.stats))  # of the stretches up to the last event
    if not p.y0.numel():
        takers = [(EAGER, Eager())]  # no component, no work
    for name, executor in takers:
        try:
            if ts.values[0] == ts.values[-1]:
                begun, outcome = p, unmoved(p)
            else:
                begun = prepared(executor.begin(p), gradient)
                p = replace(p, control=begun.control)  # tolerances are raised, and told of, once
                outcome = executor.finish(begun)
            break
        except CannotCompile as reason:
            vars(p.stats).update(before)
            p.log.rests.__init__()
            p.log.pace.__init__()
            passed[name] = str(reason)
            takers += [] if reason.final else following(mode, name, p, passed)
    else:
        warn(f"compile={mode!r}: {[*passed.values()][-1]}; this solve runs in the eager loop")
        name, executor = EAGER, Eager()
        begun = prepared(executor.begin(p), gradient)
        outcome = executor.finish(begun)
    p.stats.executor, p.stats.passed_over = name, passed
    if p.save is not None and outcome.end is None:
        outcome = p.save.after(ts, outcome)
    if p.events is None and outcome.failure is None and outcome.ts.values[-1] != ts.values[-1]:
        raise RuntimeError(
            f"the control {type(p.control).__name__} ended its steps at t = {outcome.times[-1]:g}, before the last "
            f"output time {ts.values[-1]:g}: the last step that moves() yields has to end there"
        )
    check_clock(begun, outcome.times, failed=outcome.failure is not None)
    return replace(p, control=begun.control), outcome, None


def chosen(mode: Mode, p: Problem) -> tuple[list[tuple[str, Executor]], dict[str, str]]:
    """The first executor of `compile=mode` that takes the problem, by its name, and why others before it refuse it.

    Raises
    ------
    ValueError
        If there is none of that name, or if all of them refuse.
    """
    check_mode(mode)
    refused: dict[str, str] = {}
    takers = _first(_asked(mode), p, refused)
    if not takers:
        raise ValueError([*refused.values()][-1])
    return takers, refused


def following(mode: Mode, name: str, p: Problem, refused: dict[str, str]) -> list[tuple[str, Executor]]:
    """The next one after the executor of that name, if there is one; adds to why others refuse."""
    modes = _asked(mode)
    behind = [i + 1 for i, own in enumerate(modes) if own == name]
    return _first(modes[behind[0] :], p, refused) if behind else []


def _asked(mode: Mode) -> list[Mode]:
    return PREFERRED if mode is True else [mode]


def _first(modes: Sequence[Mode], p: Problem, refused: dict[str, str]) -> list[tuple[str, Executor]]:
    for mode in modes:
        executor = EXECUTORS[mode]()
        reason = executor.refusal(p)
        if reason is None:
            return [(str(mode) if mode else EAGER, executor)]
        refused[str(mode)] = reason
    return []


def check_mode(mode: Mode) -> None:
    """Refuse a value of `compile=` that names no executor.

    Raises
    ------
    ValueError
    """
    if mode is not True and mode not in EXECUTORS:
        *names, last = map(
            repr, sorted([True, *EXECUTORS], key=lambda name: (isinstance(name, str), not name))
        )
        raise ValueError(f"compile is {', '.join(names)} or {last}, got {mode!r}")


def unmoved(p: Problem) -> Outcome:
    """The outputs if all times are equal: y0, moving along f if the times carry derivatives."""
    ys = stacked([p.y0] * len(p.ts))
    if p.ts.tensor is not None and len(p.ts) > 1:
        shift = (p.ts.tensor - p.ts.tensor[0]).to(p.y0.device, p.y0.dtype.to_real())
        ys = ys + shift.reshape(-1, *[1] * p.y0.ndim) * p.f(p.ts[0], p.y0.clone())
    return Outcome(ys, p.ts, times=list(p.ts.values[:1]))


def prepared(p: Problem, gradient: Gradient) -> Problem:
    """Check the first evaluation of f, and raise tolerances that f cannot meet: the problem that is solved.

    Every executor's problem goes through here, after its `begin`. `gradient` is the one that was asked for.

    Raises
    ------
    ValueError
        For an f whose parameters are sharded inside of it.
    """
    f: Any = p.f.call
    if f.gathered:
        refuse_gathered(f.gathered, p, gradient.name, recorded=Facts.of(gradient).records is True)
    if not p.control.adaptive:
        return p
    if p.effects and p.effects.random:
        warn_of_noise()
    return floored(p, f)


def check_problem(gradient: Gradient, p: Problem) -> None:
    """Let a gradient with a method `check` refuse a problem that it could not differentiate.

    Raises
    ------
    ValueError
    """
    check = getattr(gradient, "check", None)
    if check is not None:
        check(p)
