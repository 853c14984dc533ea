"""`odeint` and `odeint_adjoint` with the arguments of torchdiffeq 0.2.5, so that a switch is one import.

Differences, all on purpose: gradients of `odeint` are ACA's (exact for the computed solution, little memory), the
solve lands on the last time and never calls func beyond it, outputs between the steps of a fixed-step method keep
the method's order (`options={"interp": "linear"}` asks for torchdiffeq's), lists and dicts work as states, and
failures are `SolverError`s, which can be caught as AssertionError too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..compiled.traced import outside_graphs
from ..control import Adaptive, FixedSteps
from ..core import Control, Gradient, Method, Times, Watcher
from ..errors import SolverError, did_you_mean, shorten, warn
from ..gradients import ACA, Adjoint
from ..methods import ALIASES, METHODS, RK4_38
from ..numbers import host_times
from ..solve import find_method, resolve_norm, run, times_of
from ..state import Structure, structure_of
from .torchdiffeq_errors import OdeintError, asserted, check_grid, check_tolerance

NOT_YET = {
    "explicit_adams": "a multistep method",
    "implicit_adams": "a multistep method",
    "fixed_adams": "a multistep method",
    "scipy_solver": "scipy's solvers, which have no gradient",
}
ADAPTIVE_OPTIONS = {
    *("norm", "first_step", "min_step", "max_step", "step_t", "jump_t", "safety", "ifactor", "dfactor"),
    *("max_num_steps", "dtype"),
}
FIXED_OPTIONS = {"step_size", "grid_constructor", "interp", "perturb"}
OTHER_OPTIONS = {"max_order", "max_iters", "implicit", "solver"}  # of the methods in NOT_YET
EVENTS = "events are not available yet: solve on a fixed time span, or keep torchdiffeq for this call"
CALLBACKS = {"trial": "callback_step", "accepted": "callback_accept_step", "rejected": "callback_reject_step"}


@outside_graphs
def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | Method | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    compile: bool | str = False,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0; torchdiffeq's `odeint`, differentiated by ACA.

    Parameters
    ----------
    func : callable
        `func(t, y)`, y in the structure of y0.
    y0 : Tensor or tuple of tensors
        Lists and dicts work as well.
    t : Tensor, `(n,)`
        Increasing or decreasing.
    rtol, atol : float, Tensor, or one per tensor of a tuple
    method : str, optional
        torchdiffeq's names ("dopri5" by default; "rk4" is the 3/8 rule) and those of `torchaca.METHODS`.
    options : dict, optional
        torchdiffeq's options of that method.
    event_fn : callable
        Not available yet.
    compile : bool or str
        As in `torchaca.solve`.

    Returns
    -------
    Tensor or tuple of tensors, `(n, *y0.shape)`

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        For arguments that cannot work.
    OdeintError
        For what goes wrong in the numbers: a `SolverError` and an AssertionError.
    """
    return _solve(func, y0, t, rtol, atol, method, options, event_fn, lambda *_: ACA(), compile=compile)


@outside_graphs
def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | Method | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | Method | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
) -> Any:
    """torchdiffeq's `odeint_adjoint`: as `odeint`, differentiated by the continuous adjoint.

    Parameters
    ----------
    adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options
        Of the backward integration; by default those of the forward one. `adjoint_options={"norm": "seminorm"}`
        leaves parameter gradients out of the step size control.
    adjoint_params : sequence of Tensor, optional
        What to differentiate with respect to; by default all parameters of func, and every tensor it captures.

    Other parameters, returns and raises as in `odeint`.
    """
    if adjoint_method is not None and adjoint_method != method and options and adjoint_options is None:
        raise ValueError("with adjoint_method other than method, options need adjoint_options beside them")
    own = func.parameters() if isinstance(func, torch.nn.Module) else ()
    declared = tuple(own if adjoint_params is None else adjoint_params)
    watch = _watcher(func, "_adjoint")

    def gradient(call: _Call) -> Gradient:
        inherited = {key: value for key, value in call.options.items() if key != "norm"}
        inner = inherited if adjoint_options is None else dict(adjoint_options)
        norm = _adjoint_norm(inner.pop("norm", None), call.structure)
        back = _Call(call.structure, call.y0, adjoint_method or method, inner, func, call.user_y0)
        tolerances = tuple(
            call.structure.spread(own if given is None else given, name, call.y0)
            for name, given, own in (("rtol", adjoint_rtol, rtol), ("atol", adjoint_atol, atol))
        )
        control = back.segment_control(*tolerances)
        return Adjoint(
            norm=norm if back.method.adaptive else "full",
            method=back.method,
            control=control,
            watch=watch,
            translate=lambda error: OdeintError.of(error, control, call.y0),
        )

    return _solve(
        func, y0, t, rtol, atol, method, options, event_fn, gradient, declared, adjoint_params is not None
    )


def odeint_event(*args: Any, **kwargs: Any) -> Any:
    """Not available yet."""
    raise NotImplementedError(EVENTS)


def _solve(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    rtol: Any,
    atol: Any,
    method: str | Method | None,
    options: dict[str, Any] | None,
    event_fn: Any,
    gradient: Callable[[_Call], Gradient],
    declared: tuple[Tensor, ...] = (),
    declared_alone: bool = False,
    *,
    compile: bool | str = False,
) -> Any:
    if event_fn is not None:
        raise NotImplementedError(EVENTS)
    with asserted():
        check_tolerance(rtol, "rtol")
        check_tolerance(atol, "atol")
        structure, ts = structure_of(y0), times_of(t, "t")
        packed = structure.pack(y0)
        tolerances = structure.spread(rtol, "rtol", packed), structure.spread(atol, "atol", packed)
    call = _Call(structure, packed, method, dict(options or {}), func, y0)
    watch = _watcher(func, "")
    if not call.method.adaptive:
        unheard = [name for event, name in CALLBACKS.items() if event != "trial" and hasattr(func, name)]
        if unheard:
            warn(f"{call.method.name} has fixed steps and never calls {' or '.join(unheard)}")
    control = call.control(*tolerances, t, ts)
    try:
        solution = run(
            func,
            packed,
            structure,
            ts,
            method=call.method,
            control=control,
            gradient=gradient(call),
            given_ts=t,
            watch=_on_structure(watch, structure) if watch else None,
            one_sided=call.options.get("perturb", False) is True,
            declared=declared,
            declared_alone=declared_alone,
            lenient=True,
            compile=compile,
        )
    except SolverError as error:
        failure = OdeintError.of(error, control, packed)
    else:
        return solution.ys
    try:
        raise failure  # outside of the handler: the first error's traceback holds the states of the search
    finally:
        del failure


@dataclass
class _Call:
    """Method and options of one call, resolved."""

    structure: Structure
    y0: Tensor
    name: str | Method | None
    options: dict[str, Any]
    func: Callable[..., Any]
    user_y0: Any

    def __post_init__(self) -> None:
        self.method = _method(self.name)
        own, other = ADAPTIVE_OPTIONS, FIXED_OPTIONS
        if not self.method.adaptive:
            own, other = other, own
        unheard = {key: self.options.pop(key) for key in list(self.options) if key not in own | {"norm"}}
        for key in unheard.keys() & (other | OTHER_OPTIONS):
            del unheard[key]
            warn(f"option {key!r} has no effect on {self.method.name}")
        if unheard:
            shown = ", ".join(f"{key!r}: {' '.join(shorten(x, 30).split())}" for key, x in unheard.items())
            near = "".join(dict.fromkeys(did_you_mean(str(key), own) for key in unheard))
            warn(f"{self.method.name}: Unexpected arguments {{{shown}}} have no effect.{near}")
        interp = self.options.get("interp")
        if interp is not None:
            self.method = with_interpolant(self.method, interp)

    def control(self, rtol: Any, atol: Any, t: Any, ts: Times) -> Control:
        """The control of the forward solve."""
        if self.method.adaptive:
            return self._adaptive(rtol, atol)
        constructor = self.options.get("grid_constructor")
        if constructor is None:
            return self._fixed(len(t))
        if "step_size" in self.options:
            raise ValueError("step_size and grid_constructor exclude each other")
        t = t if isinstance(t, Tensor) else torch.as_tensor(t, device=self.y0.device)
        grid = times_of(constructor(self.func, self.user_y0, t), "grid")
        check_grid(grid, ts)
        return FixedSteps(grid=grid)

    def segment_control(self, rtol: Any, atol: Any) -> Control | Callable[[float, float], Control]:
        """The control of the backward solve, between two outputs at a time."""
        if self.method.adaptive:
            return self._adaptive(rtol, atol)
        constructor = self.options.get("grid_constructor")
        if constructor is None:
            return self._fixed(n_outputs=0)

        def grid(start: float, end: float) -> Control:
            dtype = self.structure.dtype.to_real()
            span = torch.tensor([start, end], dtype=dtype, device=self.y0.device)
            return FixedSteps(grid=times_of(constructor(self.func, self.user_y0, span), "grid"))

        return grid

    def _adaptive(self, rtol: Any, atol: Any) -> Adaptive:
        names = {
            "first_step": "dt0",
            "min_step": "dt_min",
            "max_step": "dt_max",
            "safety": "safety",
            "ifactor": "factor_max",
            "dfactor": "factor_min",
        }
        numbers: dict[str, Any] = {
            ours: float(self.options[theirs])
            for theirs, ours in names.items()
            if theirs in self.options and not (theirs == "first_step" and self.options[theirs] is None)
        }
        default = "rms" if self.structure.plain else "mixed"
        with asserted():
            return Adaptive(
                rtol,
                atol,
                norm=resolve_norm(self.options.get("norm", default), self.structure),
                accept_at_dt_min=True,
                max_steps=int(self.options.get("max_num_steps", 2**31 - 1)),
                jump_ts=_numbers(self.options.get("jump_t")),
                stop_ts=_numbers(self.options.get("step_t")),
                **numbers,
            )

    def _fixed(self, n_outputs: int) -> FixedSteps:
        step_size = self.options.get("step_size")
        if step_size is not None:
            return FixedSteps(dt=abs(float(step_size)))
        if n_outputs == 2:
            warn(
                f"{self.method.name} without options={{'step_size': ...}} goes from output to output: with two times "
                "that is a single step"
            )
        return FixedSteps()


def _method(name: str | Method | None) -> Method:
    if name is None:
        name = "dopri5"
    if not isinstance(name, str):
        return find_method(name)
    if name in NOT_YET:
        raise NotImplementedError(
            f"method {name!r} ({NOT_YET[name]}) is not available yet: use 'dopri5' or 'rk4'"
        )
    known = {**METHODS, **ALIASES, "rk4": RK4_38}
    if name not in known:
        raise ValueError(f"Invalid method {name!r}.{did_you_mean(name, known)}")
    return known[name]


def with_interpolant(method: Method, kind: str) -> Method:
    """The method with linear or cubic Hermite interpolation between its steps (torchdiffeq's `interp`)."""
    exchange: Any = getattr(method, "with_interpolant", None)
    if exchange is None:
        raise TypeError(f"interp= works for Runge-Kutta methods, not for {method.name}")
    return exchange(kind)


def _numbers(times: Any) -> tuple[float, ...]:
    return () if times is None else tuple(host_times(times).detach().reshape(-1).tolist())


def _adjoint_norm(
    norm: str | Callable[[Any], Tensor] | None, structure: Structure
) -> str | Callable[[Any], Tensor]:
    if norm is None:
        return "full"
    if isinstance(norm, str):
        if norm != "seminorm":
            raise ValueError(f"unknown adjoint norm {norm!r}: use 'seminorm' or a callable")
        return "semi"
    if structure.plain:
        return norm

    def on_tuples(state: Any) -> Tensor:
        t, y, adjoint, *rest = state
        return norm((t, *structure.unpack(y), *structure.unpack(adjoint), *rest))

    return on_tuples


def _watcher(func: Callable[..., Any], suffix: str) -> Callable[[str, float, Any, float], None] | None:
    """torchdiffeq's callbacks, attributes of func, as one function."""
    callbacks = {event: getattr(func, name + suffix, None) for event, name in CALLBACKS.items()}
    found = {event: callback for event, callback in callbacks.items() if callback is not None}
    if not found:
        return None

    def watch(event: str, t0: float, y0: Any, dt: float) -> None:
        if event in found:
            t, size = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (t0, abs(dt)))
            found[event](t, y0, size)

    return watch


def _on_structure(watch: Callable[[str, float, Any, float], None], structure: Structure) -> Watcher:
    return lambda event, t0, y0, dt: watch(event, t0, structure.unpack(y0), dt)
