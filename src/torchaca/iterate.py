"""Steps one by one, for a caller who decides on the way when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .core import Problem, Stats, Step, Times
from .executors import Eager, prepared
from .going_on import Ended, State
from .loops.outputs import carried
from .numbers import host_times, value
from .options import Options, Request, refuse_unknown
from .solve import problem_of
from .state import Structure, structure_of
from .times import times_of
from .torch_internals import transformed

OF_A_SOLVE = {
    "gradient": "the steps have no gradient",
    "compile": "the steps are those of the eager loop",
    "events": "look at step.at(t), and leave where something happens",
    "dense": "every step has its interpolant, step.at(t)",
    "save": "step.at(t) and step.y1 are at hand",
    "on_failure": "a step that cannot be made raises SolverError",
    "debug": "there is no backward pass to watch",
    "progress": "wrap the generator: tqdm(aca.iterate(...))",
}
"""Options of `torchaca.solve` that have no effect on a step, and why."""


@dataclass(frozen=True, eq=False)
class IteratedStep:
    """One accepted step of `iterate`; its tensors have no graph.

    Attributes
    ----------
    t0, t1 : float
        Where it starts and ends.
    y0, y1 : Tensor or nested tensors
        The states there.
    state : State
        What a solve, or another `iterate`, goes on with from its end.
    """

    t0: float
    t1: float
    y0: Any
    y1: Any
    state: State
    step: Step
    structure: Structure

    def at(self, t: Any) -> Any:
        """The state at any time of the step (number, list, array or tensor): `(*t.shape, *y0.shape)`.

        Raises
        ------
        ValueError
            For times outside of the step.
        """
        times = host_times(t).detach()
        low, high = min(self.t0, self.t1), max(self.t0, self.t1)
        wanted = times.reshape(-1).tolist()
        if outside := [x for x in wanted if not low <= x <= high]:
            raise ValueError(f"t = {outside[0]:g} is outside of the step, [{low:g}, {high:g}]")
        with torch.no_grad():
            ys = self.step.at(wanted) if wanted else self.step.y1.new_empty((0, *self.step.y1.shape))
        return self.structure.unpack(ys.reshape(*times.shape, *self.step.y1.shape))

    def __repr__(self) -> str:
        return f"IteratedStep(t0 {self.t0:g}, t1 {self.t1:g})"


def iterate(
    f: Callable[..., Any], y0: Any, t0: float | None = None, t1: float | None = None, **options: Any
) -> Iterator[IteratedStep]:
    """Yield the steps of dy/dt = f(t, y), y(t0) = y0, one by one; it can be left after any of them.

    Parameters
    ----------
    f : callable
        As in `torchaca.solve`.
    y0 : Tensor or nested tensors; or State
        A state goes on where a solve, or a step, ended.
    t0 : float
        Where y0 holds; a state's own if it is left out.
    t1 : float, optional
        Where the last step ends. Without it there is no last one; `-math.inf` goes backwards.
    **options
        Those of `torchaca.solve` that say how steps are made. `max_steps` counts the trials of this call.

    Yields
    ------
    IteratedStep
        `step.t0`, `step.t1`, `step.y1`, `step.at(t)` and `step.state`, without a gradient. Going on from `step.state`
        gives the next steps to the last bit.

    Raises
    ------
    ValueError, TypeError
        As `torchaca.solve`, when it is called.
    SolverError
        If a step cannot be made.

    Examples
    --------
    >>> for step in iterate(lambda t, y: -y, torch.ones(2), 0.0):
    ...     if step.y1[0] < 0.5:
    ...         break
    """
    refuse_unknown(options, "iterate()")
    for name, why in OF_A_SOLVE.items():
        if options.get(name, getattr(Options, name)) is not getattr(Options, name):
            raise ValueError(f"{name}= has no effect in iterate(): {why}")
    if transformed():
        raise NotImplementedError("iterate() does not run inside torch.func transforms: use torchaca.solve")
    start = y0.detach() if isinstance(y0, State) else None
    structure = structure_of(y0 if start is None else start.y)
    with torch.no_grad():
        packed = structure.pack(y0 if start is None else start.y).detach()
    request = Options(**options).request(structure, packed)
    ts = _span(t0, t1, request, start)
    p = problem_of(f, packed, structure, ts, request, start=start)
    return _steps(p, request, structure, start)


def _span(t0: Any, t1: Any, request: Request, start: State | None) -> Times:
    """From the first time to the last, which may be infinite.

    Raises
    ------
    TypeError, ValueError
    """
    if t0 is None:
        if start is None:
            raise TypeError("iterate(f, y0, t0) needs the time at which y0 holds")
        t0 = start.t
    (first,) = times_of([value(t0)], "t0").values
    grid: Times | None = getattr(request.control, "grid", None)
    if t1 is None and grid is not None:
        t1 = grid.values[-1]
    if t1 is not None and math.isfinite(value(t1)):
        return times_of([first, value(t1)], "t")
    if getattr(request.control, "n_steps", None) is not None:
        raise ValueError("n_steps are of a span: give t1, or dt=")
    if t1 is not None and math.isnan(value(t1)):
        raise ValueError("t1 is nan: give a time, or nothing for steps without end")
    return Times((first, math.inf if t1 is None else value(t1)))


@torch.no_grad()
def _steps(p: Problem, request: Request, structure: Structure, start: State | None) -> Iterator[IteratedStep]:
    """Yield the steps of a problem; grad mode is the caller's between them."""
    if p.ts.values[0] == p.ts.values[-1]:
        return
    p = prepared(Eager().begin(p), request.gradient)
    for step in p.control.moves(p):
        t0, t1 = value(step.t0), value(step.t1)
        y0, y1 = structure.unpack(step.y0), structure.unpack(step.y1)
        stats = Stats(p.stats.nfe, p.stats.accepted, p.stats.rejected)
        if start is not None:
            start.add_to(stats)
        grid, carry = getattr(p.control, "since", None), carried(p, step)
        ended = Ended(p.method.name, p.control.adaptive, p.ts.values[0], grid, p.log.pace, start, carry)
        yield IteratedStep(t0, t1, y0, y1, ended.state(t1, y1, stats), step, structure)
