"""The front door: checks what it is given, assembles a `Problem`, and has an executor solve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .batched import batch_of, solution_of_batch
from .compiled.traced import can_be_unrolled, outside_graphs, unrolled
from .core import Control, Gradient, Log, Method, Problem, Stats, Times, Watcher
from .errors import warn
from .events import Event
from .executors import prepared, solved
from .field.calling import not_f
from .field.dynamics import Dynamics
from .field.field import Field
from .field.fitting import coerce, coerce_unexpanded, fit
from .field.reach import reach
from .going_on import State
from .loops.saving import Saving
from .numbers import value
from .options import OPTIONS, Options, Request, find_gradient, find_method, refuse_unknown, refuse_untraced
from .solution import Solution
from .state import Structure, structure_of
from .times import times_of
from .torch_internals import transformed
from .trace import Trace

__all__ = [
    "OPTIONS",
    "Solution",
    "find_gradient",
    "find_method",
    "prepared",
    "problem_of",
    "solve",
    "solved",
    "times_of",
]

SINGLE, NO_ROWS = (0, "own", True, False), ()


def solve(
    f: Callable[..., Any],
    y0: Any,
    t: Any,
    *,
    args: tuple[Any, ...] = (),
    method: str | Method = "dopri5",
    rtol: Any = None,
    atol: Any = None,
    gradient: str | Gradient = "aca",
    dt: float | None = None,
    n_steps: int | None = None,
    grid: Any = None,
    dt0: float | None = None,
    dt_min: float | None = None,
    dt_max: float | None = None,
    max_steps: int | None = None,
    jump_ts: Any = None,
    norm: str | Callable[[Any], Tensor] | None = None,
    at_rest: str | None = None,
    control: Control | None = None,
    events: Event | Sequence[Event] | None = None,
    compile: bool | str = False,
    dense: bool = False,
    save: Callable[..., Any] | None = None,
    on_failure: str = "raise",
    debug: bool = False,
    progress: bool = False,
    batch: int = 0,
    rows: tuple[Any, ...] = (),
    steps: str = "own",
    check_rows: bool = True,
    deterministic: bool = False,
    **unknown: Any,
) -> Solution:
    """Solve dy/dt = f(t, y), y(t[0]) = y0, so that the outputs can be differentiated.

    Parameters
    ----------
    f : callable
        `f(t, y, *args)` returns dy/dt in the structure, shapes and dtypes of y. `t` is a 0-dim tensor in y's real
        dtype, at least float32. May capture any tensors.
    y0 : Tensor or nested tuples, lists, dicts of tensors; or State
        Floating point or complex. `solution.state` goes on where that solution ended.
    t : list, array or Tensor, shape `(n,)`
        Output times, increasing or decreasing, duplicates allowed; the first is where y0 holds.
    args : tuple
        Further arguments of f, each any nested structure; tensors in it are differentiated.
    method : str or Method
        A name in `torchaca.METHODS` (or torch_ACA's name for it), or a method.
    rtol, atol : float, Tensor or nested
        Tolerances of an adaptive method (default 1e-3 and 1e-6); tensors broadcast against y0, nested ones have one
        entry per tensor of y0.
    gradient : str or Gradient
        "aca" (default), "direct", "naive", "adjoint", "mali", or an object with settings, e.g. `Adjoint(rtol=1e-8)`.
        The default records the steps while their graphs fit 1 GiB, and replays them from their states if they do not;
        see `ACA`.
    dt, n_steps, grid : float, int, times
        Fixed steps: of this size (the last one shorter), this many equal ones, or from one of these times to the
        next. Exactly one of them; required for a method without error estimate.
    dt0, dt_min, dt_max : float
        First, smallest, largest step of an adaptive method.
    max_steps : int
        Trials after which an adaptive solve gives up (default 10,000).
    jump_ts : times
        Where f or its derivatives jump in time: steps end there. A tensor is differentiated, if it requires grad.
    norm : "rms" (default), "max", "mixed" (largest RMS of a nested state's tensors) or callable
        Of the scaled error; a callable gets the structure of y0.
    at_rest : "resolve" (default) or "ignore"
        Whether steps with no error to limit them, as at an equilibrium, are kept short enough for the gradient, at one
        evaluation each; see `Adaptive`.
    control : Adaptive, FixedSteps or a control of your own
        Instead of all the step options above.
    events : Event or list of Event
        Where a function of time and state crosses zero, the solve notes it, jumps or ends; see `Event`. When and where
        is in `solution.events`, one entry for each; a terminal one makes `solution.status` "event", and
        `solution.ts[-1]` and `solution.ys[-1]` its own. With `batch=1` each sample has its own.
    compile : bool, "native", "loops", "steps" or "cuda-graphs"
        Run the solve and its backward pass as native code, or where that cannot be as compiled loops; or insist on one
        of them; or each step as a compiled graph, on a GPU as a CUDA graph (see docs/compile.md).
    dense : bool
        Keep what `solution(t)` and `solution.derivative(t)` need (a few states a step).
    save : callable
        `save(t, y)` at the output times, in place of the states: `ys` is its values, `(n, *shape)` or nested, and
        memory grows with these alone. Differentiable, also with respect to tensors that it captures.
    on_failure : "raise", "status", "nan"
        Raise `SolverError`; or return the valid, differentiable prefix; or fill the rest with nan. Lanes of
        `torch.func.vmap` fail alone with the last two, which both fill the lane with nan.
    debug : bool
        Watch the backward pass ("aca", "direct", "mali"; slower): a gradient that becomes nan or inf raises
        `SolverError` with the step, the times and the tensor; one that explodes warns; `solution.trace` has the norms
        of all steps.
    progress : bool
        Show a tqdm bar over time in the forward pass, with evaluations and step size (`pip install
        'torchaca[progress]'`).
    batch : 0 or 1
        1: the leading dimension of y0, in each of its tensors, holds independent problems, the samples, each with its
        own steps, tolerances (rtol and atol may have shape `(B, 1, ..., 1)`) and status. t is `(n,)`, or `(B, n)`
        padded with nan at the ends of rows, or a list of each sample's times; f gets it as `(B, 1, ..., 1)`. See
        docs/batches.md.
    rows : tuple
        Further arguments of f, after `args`, with one row for each sample; each any nested structure of tensors.
    steps : "own" or "joint"
        Whether each sample of a batch has its own steps, or all have the same.
    check_rows : bool
        Evaluate f twice beside the start of a batch, not counted, and warn if it mixes samples.
    deterministic : bool
        Hand f all samples of a batch in each call, also those that are done, so that none changes others' rounding.

    Returns
    -------
    Solution

    Raises
    ------
    ValueError, TypeError
        For arguments that cannot be solved, or that would have no effect.
    SolverError
        For what goes wrong in the numbers.

    Examples
    --------
    >>> k = torch.tensor(-1.0, requires_grad=True)
    >>> sol = solve(lambda t, y: k * y, torch.ones(2), [0.0, 0.5, 1.0], rtol=1e-6)
    >>> sol.ys.shape
    torch.Size([3, 2])
    >>> sol.ys[-1].sum().backward()
    """
    # In the order of its fields, which a test compares with this signature.
    # fmt: off
    options = Options(
        args, method, rtol, atol, gradient, dt, n_steps, grid, dt0, dt_min, dt_max,
        max_steps, jump_ts, norm, at_rest, control, events, compile, dense, save, on_failure, debug, progress,
        batch, rows, steps, check_rows, deterministic,
    )
    # fmt: on
    if unknown:
        refuse_unknown(unknown, "solve()")
    if torch.compiler.is_compiling():
        return _in_graph(f, y0, t, options)
    if rows is not NO_ROWS or (batch, steps, check_rows, deterministic) != SINGLE:
        p, times, structure = batch_of(f, y0, t, options, problem_of)
        return solution_of_batch(p, times, structure, t, options)
    start = y0 if isinstance(y0, State) else None
    y0 = y0 if start is None else start.y
    structure = structure_of(y0)
    packed = structure.pack(y0)
    request, ts = options.request(structure, packed), times_of(t, "t")
    if len(ts.values) == 1:
        warn(f"t holds a single time, {ts.values[0]:g}: nothing is solved, and ys is y0. Give [t0, t1]")
    with request.bar or nullcontext():
        p = problem_of(f, packed, structure, ts, request, start=start)
        begun, outcome, course = solved(p, request.compile, request.events)
        return Solution.of(begun, outcome, structure, t, course, start)


def _in_graph(f: Callable[..., Any], y0: Any, t: Any, options: Options) -> Solution:
    """`solve` under torch.compile: unrolled into the graph around it where that is possible, else one graph break."""
    given = {name: getattr(options, name) for name in OPTIONS}
    given = {name: x for name, x in given.items() if x is not getattr(Options, name)}
    if not can_be_unrolled((f, y0, t), given):
        return _apart(f, y0, t, **given)
    ts, ys, stats, steps = unrolled((f, y0, t), given)
    names: tuple[Any, Any] = (options.method, options.gradient)
    method, gradient = (x if isinstance(x, str) else x.name for x in names)
    return Solution(ts, ys, stats, tuple(steps), settings=f"{method}, fixed steps, gradient {gradient!r}")


_apart = outside_graphs(solve)


def problem_of(
    f: Callable[..., Any],
    y0: Tensor,
    structure: Structure,
    ts: Times,
    asked: Request,
    *,
    watch: Watcher | None = None,
    lenient: bool = False,
    start: State | None = None,
    **facts: Any,
) -> Problem:
    """Assemble the problem from what is checked and packed.

    Parameters
    ----------
    watch : callable
        Is told of every trial.
    lenient : bool
        f may return other dtypes, and shapes that broadcast.
    start : State
        Where the solve goes on; its y is y0.
    **facts
        What is known of f beforehand: `batch`, `one_sided`, `declared`, `declared_alone` of `Field`.
    """
    if not callable(f) or isinstance(f, type):
        raise TypeError(not_f(f))
    control, stats = asked.control, Stats()
    fits = fit if not lenient else coerce_unexpanded if control.adaptive else coerce
    call = Dynamics(f, asked.args, structure, y0.device, stats, fits)
    if facts.get("batch"):
        structure.check_batch(facts["batch"], y0)
    if fit_to := getattr(control, "fitted", None):
        control = fit_to(ts, structure.dtype.to_real())
    if start is not None:
        control = start.control(control, ts)
    save = None if asked.save is None else Saving(asked.save, structure, call.time)
    if save is not None:
        own = tuple(x for _, x in reach(save.function).tensors if x.requires_grad)
        facts["declared"] = (*facts.get("declared", ()), *own)
    facts["jumps"] = frozenset(map(value, getattr(control, "jump_ts", ())))
    trace = _trace(f, asked.args, asked.gradient, stats) if asked.debug else None
    field = Field(call, source=f, locate=structure.component, **facts)
    watch = watch if asked.bar is None else asked.bar.over(ts, stats)
    log = Log(stats, watch, trace, asked.on_failure)
    known = None if start is None else start.start(asked.method, ts, y0)
    return Problem(
        field, y0, ts, asked.method, control, asked.dense, log, asked.gradient, start=known, save=save
    )


def _trace(f: Callable[..., Any], args: tuple[Any, ...], gradient: Gradient, stats: Stats) -> Trace:
    """What `debug=True` fills in, if this gradient can."""
    refuse_untraced(gradient)
    if transformed():
        raise NotImplementedError(
            "debug=True reads the numbers of a gradient, which torch.func transforms and forward-mode AD hide: "
            "use it outside of them, with backward()"
        )
    return Trace(f, args, stats)
