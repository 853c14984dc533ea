"""The front door: checks what it is given, assembles a `Problem`, lets the gradient method solve it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ParamSpec

import numpy as np
import torch
from torch import Tensor

from .compiled.traced import can_be_unrolled, outside_graphs, unrolled
from .control import Adaptive, FixedSteps, Norm, check_control, fitted
from .core import Control, Gradient, Method, Outcome, Problem, Stats, Times, Watcher, tolerant
from .dense import DenseOutput, detached
from .elsewhere import answer
from .errors import SolverError, did_you_mean, shorten, warn
from .executors import Eager, execute, transformed
from .field.dynamics import Dynamics
from .field.effects import warn_of_noise
from .field.precision import floored
from .gradients import GRADIENTS, Facts
from .layout import joined, order_cotangent
from .methods import ALIASES, METHODS
from .numbers import host_times
from .state import Structure, structure_of
from .summary import describe, describe_settings
from .torch_internals import pytree
from .trace import Trace
from .transforms import is_differentiated, refuse_lanes, tensors_in

ON_FAILURE = ("raise", "status", "nan")


@dataclass(frozen=True)
class Solution:
    """What a solve returns.

    Attributes
    ----------
    ts : Tensor
        `(n,)`, the output times; n = len(t), fewer only after a failure with `on_failure="status"`.
    ys : Tensor or nested tensors
        `(n, *y0.shape)` in the structure of y0; `ys[0]` is y0.
    stats : Stats
        Evaluations and steps; the backward counts are filled in by `backward()`.
    steps : tuple of float
        The times between which the solve stepped, from t[0] on.
    failure : SolverError or None
        Why the solve stopped early, where `on_failure` is not "raise".
    trace : Trace or None
        With `debug=True`: the steps of the last backward pass, `trace.ts`, `trace.norms`, `trace.points`.
    settings : str
        The method, the tolerances and the gradient, in words.
    """

    ts: Tensor
    ys: Any
    stats: Stats
    steps: tuple[float, ...] = ()
    failure: SolverError | None = None
    dense: DenseOutput | None = None
    trace: Trace | None = None
    settings: str = ""

    def __repr__(self) -> str:
        return describe(self)

    @property
    def status(self) -> str:
        """'success', or the kind of failure; 'non-finite' where a fixed-step solve ran into nan or inf.

        Reads the device, which a fixed-step solve itself never does.
        """
        if self.failure is not None:
            return self.failure.kind
        leaves = pytree.tree_leaves(self.ys)
        return "success" if all(bool(torch.isfinite(leaf).all()) for leaf in leaves) else "non-finite"

    def __deepcopy__(self, memo: dict[int, Any]) -> Solution:
        """The values; a graph belongs to the original alone."""
        return replace(
            self,
            ts=self.ts.detach().clone(),
            ys=detached(self.ys),
            stats=deepcopy(self.stats, memo),
            dense=deepcopy(self.dense, memo),
        )

    def __call__(self, t: Any) -> Any:
        """The state at any time of the solve, `(*t.shape, *y0.shape)`; needs `dense=True`."""
        if self.dense is None:
            raise ValueError("this solution has no dense output: solve with dense=True")
        return self.dense(t)


P = ParamSpec("P")


def _in_graphs(eager: Callable[P, Solution]) -> Callable[P, Solution]:
    """`solve` under torch.compile: unrolled into the graph around it where that is possible, else one graph break."""
    apart = outside_graphs(eager)

    @functools.wraps(eager)
    def door(*args: P.args, **options: P.kwargs) -> Solution:
        if not (torch.compiler.is_compiling() and can_be_unrolled(args, options)):
            return apart(*args, **options)
        ts, ys, stats, steps = unrolled(args, options)
        names: tuple[Any, Any] = (options.get("method", "dopri5"), options.get("gradient", "aca"))
        method, gradient = (x if isinstance(x, str) else x.name for x in names)
        return Solution(ts, ys, stats, tuple(steps), settings=f"{method}, fixed steps, gradient {gradient!r}")

    return door


@_in_graphs
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
    control: Control | None = None,
    compile: bool | str = False,
    dense: bool = False,
    on_failure: str = "raise",
    debug: bool = False,
    **unknown: Any,
) -> Solution:
    """Solve dy/dt = f(t, y), y(t[0]) = y0, so that the outputs can be differentiated.

    Parameters
    ----------
    f : callable
        `f(t, y, *args)` returns dy/dt in the structure, shapes and dtypes of y. `t` is a 0-dim tensor in y's real
        dtype, at least float32. May capture any tensors.
    y0 : Tensor or nested tuples, lists, dicts of tensors
        Floating point or complex.
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
        Where f or its derivatives jump in time: steps end there.
    norm : "rms" (default), "max", "mixed" (largest RMS of a nested state's tensors) or callable
        Of the scaled error; a callable gets the structure of y0.
    control : Adaptive, FixedSteps or a control of your own
        Instead of all the step options above.
    compile : bool, "steps" or "cuda-graphs"
        Run the solve and its backward pass as compiled loops; or each step as a compiled graph, on a GPU as a CUDA
        graph (see docs/compile.md).
    dense : bool
        Keep what `solution(t)` needs (a few states a step).
    on_failure : "raise", "status", "nan"
        Raise `SolverError`; or return the valid, differentiable prefix; or fill the rest with nan. Lanes of
        `torch.func.vmap` fail alone with the last two, which both fill the lane with nan.
    debug : bool
        Watch the backward pass ("aca", "direct", "mali"; slower): a gradient that becomes nan or inf raises
        `SolverError` with the step, the times and the tensor; one that explodes warns; `solution.trace` has the norms
        of all steps.

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
    if unknown:
        name = next(iter(unknown))
        raise TypeError(f"solve() has no option {name!r}.{answer(name, OPTIONS)}")
    if on_failure not in ON_FAILURE:
        raise ValueError(f"on_failure must be one of {', '.join(map(repr, ON_FAILURE))}, got {on_failure!r}")
    structure = structure_of(y0)
    packed = structure.pack(y0)
    steps_given = StepOptions(rtol, atol, dt, n_steps, grid, dt0, dt_min, dt_max, max_steps, jump_ts, norm)
    chosen, ts = find_method(method), times_of(t, "t")
    if len(ts) == 1:
        warn(f"t holds a single time, {ts.values[0]:g}: nothing is solved, and ys is y0. Give [t0, t1]")
    return run(
        f,
        packed,
        structure,
        ts,
        args=args,
        method=chosen,
        control=steps_given.control(chosen, structure, packed, control),
        gradient=find_gradient(gradient),
        compile=compile,
        dense=dense,
        on_failure=on_failure,
        debug=debug,
        given_ts=t,
    )


OPTIONS = (
    *("args", "method", "rtol", "atol", "gradient", "dt", "n_steps", "grid", "dt0", "dt_min", "dt_max"),
    *("max_steps", "jump_ts", "norm", "control", "compile", "dense", "on_failure", "debug"),
)


def run(
    f: Callable[..., Any],
    y0: Tensor,
    structure: Structure,
    ts: Times,
    *,
    method: Method,
    control: Control,
    gradient: Gradient,
    args: tuple[Any, ...] = (),
    compile: bool | str = False,
    dense: bool = False,
    on_failure: str = "raise",
    debug: bool = False,
    given_ts: Any = None,
    watch: Watcher | None = None,
    one_sided: bool = False,
    declared: tuple[Tensor, ...] = (),
    declared_alone: bool = False,
    lenient: bool = False,
) -> Solution:
    """`solve` behind the door: everything checked and packed. Compatible front doors start here.

    `declared` are tensors that get a gradient whether f uses them or not (`declared_alone`: and no captured tensor
    does); `lenient` lets f return other dtypes and shapes that broadcast; the rest is as in `Problem`.
    """
    if not callable(f):
        raise TypeError(f"f must be callable as f(t, y), got {shorten(f)}")
    if not isinstance(args, tuple):
        raise TypeError(f"args is a tuple of f's further arguments: write args=({shorten(args, 20)},)")
    stats = Stats()
    dynamics = Dynamics(f, args, structure, y0, stats, lenient, broadcasts=not control.adaptive)
    control = fitted(control, ts, dynamics.time_dtype)
    jumps = frozenset(getattr(control, "jump_ts", ()))
    problem = Problem(
        dynamics, y0, ts, method, control, stats, None, jumps, one_sided, watch, dense, f, structure.component
    )
    if debug:
        problem = replace(problem, trace=_trace(f, args, gradient, stats))
    mode = compile if isinstance(compile, str) else bool(compile)
    eager = Eager(dynamics, gradient, declared, declared_alone, fails_alone=on_failure != "raise")
    outcome = execute(mode, problem, eager, lambda p: prepared(p, dynamics, gradient))
    settings = describe_settings(method, problem.control, gradient)
    return _solution(problem, outcome, structure, on_failure, _output_times(given_ts, ts, dynamics), settings)


def prepared(p: Problem, f: Dynamics, gradient: Gradient) -> Problem:
    """Check the first evaluation of f, and raise tolerances that f cannot meet: the problem that is solved.

    Every executor's problem goes through here, between its `begin` and its `finish`.

    Raises
    ------
    ValueError
        For an f whose parameters are sharded inside of it.
    """
    p = floored(p, f)
    if f.gathered:
        _refuse_gathered(f.gathered, p, gradient)
    if p.effects and p.effects.random and p.control.adaptive:
        warn_of_noise()
    return p


def _trace(f: Callable[..., Any], args: tuple[Any, ...], gradient: Gradient, stats: Stats) -> Trace:
    """What `debug=True` fills in, if this gradient can."""
    refuse_untraced(gradient)
    if transformed():
        raise NotImplementedError(
            "debug=True reads the numbers of a gradient, which torch.func transforms and forward-mode AD hide: "
            "use it outside of them, with backward()"
        )
    return Trace(f, args, stats)


def refuse_untraced(gradient: Gradient) -> None:
    """Refuse `debug=True` with a gradient that no trace can follow.

    Raises
    ------
    ValueError
    """
    if not Facts.of(gradient).moves:
        raise ValueError(
            f"debug=True follows a gradient from step to step, and gradient={gradient.name!r} is not computed that "
            "way: use gradient='aca' or 'direct'"
        )


def _refuse_gathered(name: str, p: Problem, gradient: Gradient) -> None:
    """Sharding inside f works only where all processes make the same evaluations, in one graph."""
    advice = "shard the module around the solve, fully_shard(NeuralODE(f)), and nothing inside f"
    if p.control.adaptive:
        raise ValueError(
            f"{name} is sharded and gathered in each evaluation of f, of which an adaptive solve makes another number "
            f"on each rank: a deadlock. Instead, {advice}"
        )
    if torch.is_grad_enabled() and Facts.of(gradient).records is not True:
        raise ValueError(
            f"{name} is sharded and whole only inside f, so gradient={gradient.name!r} would lose its gradient: "
            f"{advice}, or use gradient='direct'"
        )


def _solution(
    p: Problem, outcome: Outcome, structure: Structure, on_failure: str, ts: Tensor, settings: str
) -> Solution:
    failure, ys, n = outcome.failure, outcome.ys, len(outcome.ts)
    if ys.requires_grad and not transformed():
        order_cotangent(ys, p.y0)
    if failure is not None:
        if on_failure == "raise":
            failure.reached = partial(
                Solution,
                ts[:n].detach(),
                structure.unpack(ys.detach()),
                p.stats,
                tuple(outcome.times),
                settings=settings,
            )
            outcome.failure = None  # no frame may hold the error whose traceback holds the frame
            try:
                raise failure.with_traceback(None)  # nor the frames of the search, with their states
            finally:
                del failure
        if on_failure == "nan":
            ys = joined([ys, ys.new_full((len(p.ts) - n, *ys.shape[1:]), math.nan)], p.y0)
            n = len(p.ts)
    dense = None
    if p.dense:
        boundaries = outcome.boundaries or p.control.boundaries(p.ts, outcome.times)
        dense = DenseOutput(p.method, structure, boundaries, outcome.bases, p.y0)
    times = tuple(outcome.times)
    return Solution(ts[:n], structure.unpack(ys), p.stats, times, failure, dense, p.trace, settings)


def _output_times(given: Any, ts: Times, f: Dynamics) -> Tensor:
    """The times as they were given; numbers in f's dtype of time, or float64 where that cannot tell them apart."""
    if isinstance(given, Tensor):
        return given
    dtype = f.time_dtype
    if dtype == torch.float32 and len(set(np.asarray(ts.values, np.float32).tolist())) < len(set(ts.values)):
        dtype = torch.float64
    return torch.tensor(ts.values, dtype=dtype, device=f.device)


def find_method(method: str | Method) -> Method:
    """The method of that name, or the object itself."""
    if isinstance(method, str):
        known = {**METHODS, **ALIASES}
        if method not in known:
            raise ValueError(f"unknown method {method!r}.{did_you_mean(method, known)}")
        return known[method]
    if isinstance(method, type):
        raise TypeError(_not_a_class("method", method, [n for n, m in METHODS.items() if type(m) is method]))
    if not callable(getattr(method, "step", None)):
        raise TypeError(f"method must be a name or a method, got {shorten(method)}")
    return method


def find_gradient(gradient: str | Gradient) -> Gradient:
    """The gradient method of that name with default settings, or the object itself."""
    if isinstance(gradient, str):
        if gradient not in GRADIENTS:
            raise ValueError(f"unknown gradient {gradient!r}.{did_you_mean(gradient, GRADIENTS)}")
        return GRADIENTS[gradient]()
    if isinstance(gradient, type):
        raise TypeError(
            _not_a_class("gradient", gradient, [n for n, g in GRADIENTS.items() if g is gradient])
        )
    if not (callable(gradient) and isinstance(getattr(gradient, "name", None), str)):
        raise TypeError(f"gradient must be a name or an object such as ACA(), got {shorten(gradient)}")
    return gradient


def _not_a_class(option: str, cls: type, names: Sequence[str]) -> str:
    """What to write instead of a class."""
    others = "".join(f", or {option}={name!r}" for name in names[:1])
    return (
        f"{option}={cls.__name__} is a class: write {option}={cls.__name__}({'' if names else '...'}){others}"
    )


def times_of(t: Any, name: str) -> Times:
    """Output times from a list, an array or a tensor: finite and monotone, or an error that says where not.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
    """
    refuse_lanes(t, name)
    try:
        tensor = host_times(t)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a list, an array or a tensor of real numbers, got {shorten(t)}"
        ) from error
    if tensor.ndim != 1:
        hint = "; times per sample, (batch, n), are not supported yet" if tensor.ndim == 2 else ""
        raise ValueError(f"{name} must be one-dimensional, got shape {tuple(tensor.shape)}{hint}")
    values = tuple(tensor.detach().tolist())
    if not values:
        raise ValueError(f"{name} is empty: give at least the initial time, usually [t0, t1]")
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name}[{i}] is {value}: times must be finite")
    times = Times(values, tensor if is_differentiated(tensor) else None)
    for i in range(1, len(values)):
        if times.sign * values[i] < times.sign * values[i - 1]:
            raise ValueError(
                f"{name} must be increasing or decreasing, but {name}[{i}] = {values[i]:g} follows "
                f"{name}[{i - 1}] = {values[i - 1]:g}: sort it"
            )
    return times


@dataclass(frozen=True)
class StepOptions:
    """The step options of `solve` as given, None where not."""

    rtol: Any = None
    atol: Any = None
    dt: float | None = None
    n_steps: int | None = None
    grid: Any = None
    dt0: float | None = None
    dt_min: float | None = None
    dt_max: float | None = None
    max_steps: int | None = None
    jump_ts: Any = None
    norm: str | Callable[[Any], Tensor] | None = None

    def control(self, method: Method, structure: Structure, y0: Tensor, given: Control | None) -> Control:
        """The control they ask for.

        Raises
        ------
        ValueError
            Where options contradict each other or would have no effect.
        """
        named = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in named.items():
            refuse_lanes(value, name)
            if name not in ("grid", "norm") and any(map(is_differentiated, tensors_in(value))):
                raise ValueError(f"{name} is not differentiated: pass {name}.detach()")
        if given is not None:
            if named:
                raise ValueError(
                    f"{next(iter(named))}= has no effect beside control=: set it in the control object"
                )
            if isinstance(given, type):
                raise TypeError(_not_a_class("control", given, ()))
            chosen = _tolerances_on(y0.device, check_control(given))
        elif fixed := named.keys() & {"dt", "n_steps", "grid"}:
            chosen = self._fixed(named, fixed)
        else:
            chosen = self._adaptive(named, method, structure, y0)
        if chosen.adaptive and not method.adaptive:
            raise ValueError(_needs_step(method, "a control with adaptive steps cannot work"))
        return chosen

    def _fixed(self, named: dict[str, Any], fixed: set[str]) -> FixedSteps:
        other = named.keys() - fixed
        if other:
            raise ValueError(
                f"{sorted(other)[0]}= has no effect with fixed steps ({next(iter(fixed))}=): drop one of them"
            )
        grid = None if self.grid is None else times_of(self.grid, "grid")
        try:
            dt = None if self.dt is None else float(self.dt)
        except (TypeError, ValueError) as error:
            raise TypeError(f"dt is the size of a step, a positive number; got {self.dt!r}") from error
        return FixedSteps(dt, self.n_steps, grid)

    def _adaptive(self, named: dict[str, Any], method: Method, structure: Structure, y0: Tensor) -> Adaptive:
        if not method.adaptive:
            raise ValueError(_needs_step(method, f"{next(iter(named))}= has no effect" if named else ""))
        options = {name: named[name] for name in ("dt0", "dt_min", "dt_max", "max_steps") if name in named}
        if "jump_ts" in named:
            try:
                options["jump_ts"] = tuple(host_times(self.jump_ts).reshape(-1).tolist())
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"jump_ts must be times, got {shorten(self.jump_ts)}") from error
        if "norm" in named:
            options["norm"] = resolve_norm(named["norm"], structure)
        for name in ("rtol", "atol"):
            if name in named:
                options[name] = structure.spread(named[name], name, y0)
        return Adaptive(**options)


def _tolerances_on(device: torch.device, control: Control) -> Control:
    """The control with its tolerances where the state is."""
    own = tolerant(control)
    if own is None:
        return control
    given = {"rtol": own.rtol, "atol": own.atol}
    moved = {name: x.to(device) for name, x in given.items() if isinstance(x, Tensor) and x.device != device}
    return own.with_settings(**moved) if moved else control


def resolve_norm(norm: str | Callable[[Any], Tensor], structure: Structure) -> str | Norm:
    """A norm on packed states."""
    if norm == "mixed":
        return structure.mixed_rms
    return norm if isinstance(norm, str) else structure.norm_of(norm)


def _needs_step(method: Method, why: str) -> str:
    adaptive = ", ".join(name for name, m in METHODS.items() if m.adaptive)
    prefix = f"{why}: " if why else ""
    return (
        f"{prefix}{method.name} has no error estimate and needs its steps: give dt=, n_steps= or grid= (or use an "
        f"adaptive method: {adaptive})"
    )
