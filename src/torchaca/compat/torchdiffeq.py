"""`odeint` and `odeint_adjoint` with the arguments of torchdiffeq 0.2.5, so that a switch is one import.

Differences, all on purpose: gradients of `odeint` are ACA's (exact for the computed solution, little memory), the
solve lands on the last time and never calls func beyond it, outputs between the steps of a fixed-step method keep
the method's order (`options={"interp": "linear"}` asks for torchdiffeq's), a solve that starts at rest takes more steps
(`options={"at_rest": "ignore"}` asks for torchdiffeq's), lists and dicts work as states, and failures are
`SolverError`s, which can be caught as AssertionError too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..compiled.traced import outside_graphs
from ..core import Control, Gradient, Method, Problem, Stats, Times, Watcher
from ..errors import SolverError, warn
from ..executors import solved
from ..field.dynamics import Dynamics
from ..gradients import ACA, Adjoint
from ..layout import stacked
from ..options import Request
from ..solution import Solution
from ..solve import problem_of
from ..state import Structure, structure_of
from ..times import times_of
from .torchdiffeq_call import Call
from .torchdiffeq_errors import OdeintError, asserted, check_tolerance
from .torchdiffeq_events import check_span, event_of, until_event

__all__ = ["odeint", "odeint_adjoint", "odeint_event"]

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
        torchdiffeq's options of that method, and `at_rest`: "resolve" (default) takes shorter steps at an equilibrium
        than torchdiffeq, "ignore" its steps and its gradients; see `torchaca.Adaptive`.
    event_fn : callable, optional
        `event_fn(t, y)` returns a tensor, and the solve ends where any of its entries changes its sign, however late;
        t is then the start and any time in the direction of the solve.
    compile : bool or str
        As in `torchaca.solve`.

    Returns
    -------
    Tensor or tuple of tensors, `(n, *y0.shape)`
        With `event_fn` the time of the event, 0-dim, and `(2, *y0.shape)`, y0 and the state then.

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

    def gradient(call: Call) -> Gradient:
        inherited = {key: value for key, value in call.options.items() if key != "norm"}
        inner = inherited if adjoint_options is None else dict(adjoint_options)
        norm = _adjoint_norm(inner.pop("norm", None), call.structure)
        back = Call(call.structure, call.y0, adjoint_method or method, inner, func, call.user_y0)
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


def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> Any:
    """torchdiffeq's `odeint_event`: solve from t0 until `event_fn` changes its sign.

    Parameters
    ----------
    t0 : Tensor, 0-dim
    event_fn : callable
        `event_fn(t, y)` returns a tensor; the solve ends where any of its entries changes its sign.
    reverse_time : bool
        Solve backwards in time.
    odeint_interface : callable
        `odeint`, `odeint_adjoint` or one's own with their arguments.
    **kwargs
        Further arguments of it.

    Returns
    -------
    event_t : Tensor, 0-dim
        When it happens.
    solution : Tensor or tuple of tensors, `(2, *y0.shape)`
        y0 and the state then. Both are differentiable in y0, t0 and everything that func and event_fn depend on.
    """
    ahead = t0.reshape(-1).detach() + (-1.0 if reverse_time else 1.0)
    return odeint_interface(func, y0, torch.cat([t0.reshape(-1), ahead]), event_fn=event_fn, **kwargs)


def _solve(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    rtol: Any,
    atol: Any,
    method: str | Method | None,
    options: dict[str, Any] | None,
    event_fn: Any,
    gradient: Callable[[Call], Gradient],
    declared: tuple[Tensor, ...] = (),
    declared_alone: bool = False,
    *,
    compile: bool | str = False,
) -> Any:
    with asserted():
        check_tolerance(rtol, "rtol")
        check_tolerance(atol, "atol")
        structure, ts = structure_of(y0), times_of(t, "t")
        packed = structure.pack(y0)
        tolerances = structure.spread(rtol, "rtol", packed), structure.spread(atol, "atol", packed)
    if event_fn is not None:
        check_span(t)
    call = Call(structure, packed, method, dict(options or {}), func, y0)
    watch = _watcher(func, "")
    if not call.method.adaptive:
        unheard = [name for event, name in CALLBACKS.items() if event != "trial" and hasattr(func, name)]
        if unheard:
            warn(f"{call.method.name} has fixed steps and never calls {' or '.join(unheard)}")
    control = call.control(*tolerances, len(t) if event_fn is None else 0, t, ts)
    asked = Request(call.method, control, gradient(call), compile=compile)
    facts: dict[str, Any] = {
        "watch": _on_structure(watch, structure) if watch else None,
        "one_sided": call.options.get("perturb", False) is True,
        "declared": declared,
        "declared_alone": declared_alone,
        "lenient": True,
    }

    def assemble(y: Tensor, over: Times, own: Control) -> Problem:
        return problem_of(func, y, structure, over, replace(asked, control=own), **facts)

    try:
        if event_fn is None:
            p = assemble(packed, ts, control)
            return Solution.of(*solved(p, compile)[:2], structure, t).ys
        start = Dynamics(func, (), structure, packed.device, Stats()).time(ts.values[0])
        event = event_of(event_fn, start, structure.unpack(packed.detach()))
        when, y = until_event(assemble, control, event, packed, ts, compile)
    except SolverError as error:
        failure = OdeintError.of(error, control, packed)
    else:
        return when.to(t), structure.unpack(stacked([packed, y]))
    try:
        raise failure  # outside of the handler: the first error's traceback holds the states of the search
    finally:
        del failure


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
