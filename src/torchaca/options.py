"""The options of a solve: typed once, checked, and turned into a control."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .batch import check_door
from .compiled.door import CUDA_GRAPHS, STEPS
from .control import Adaptive, FixedSteps, check_control
from .core import Control, Gradient, Log, Method, Problem, Stats, Times, tolerant
from .elsewhere import answer
from .errors import did_you_mean, shorten
from .events import Event, events_of
from .executors import check_problem, chosen
from .field.field import Field
from .gradients import GRADIENTS, Facts
from .loops.rule import Norm
from .methods import ALIASES, METHODS
from .numbers import host_times
from .progress import Bar
from .state import Structure, of_any_size, structure_of
from .times import times_of
from .trace import Trace
from .transforms import is_differentiated, refuse_lanes, tensors_in

ON_FAILURE = ("raise", "status", "nan")
FIXED = ("dt", "n_steps", "grid")
OF_CONTROL = ("rtol", "atol", *FIXED, "dt0", "dt_min", "dt_max", "max_steps", "jump_ts", "norm", "at_rest")
"""The options that a control object takes the place of."""


@dataclass(frozen=True)
class Options:
    """The options of `torchaca.solve`, which says what they are."""

    args: tuple[Any, ...] = ()
    method: str | Method = "dopri5"
    rtol: Any = None
    atol: Any = None
    gradient: str | Gradient = "aca"
    dt: float | None = None
    n_steps: int | None = None
    grid: Any = None
    dt0: float | None = None
    dt_min: float | None = None
    dt_max: float | None = None
    max_steps: int | None = None
    jump_ts: Any = None
    norm: str | Callable[[Any], Tensor] | None = None
    at_rest: str | None = None
    control: Control | None = None
    events: Event | Sequence[Event] | None = None
    compile: bool | str = False
    dense: bool = False
    save: Callable[..., Any] | None = None
    on_failure: str = "raise"
    debug: bool = False
    progress: bool = False
    batch: int = 0
    rows: tuple[Any, ...] = ()
    steps: str = "own"
    check_rows: bool = True
    deterministic: bool = False

    def request(self, structure: Structure, y0: Tensor) -> Request:
        """What they ask for, in a solve from `y0`.

        Raises
        ------
        TypeError, ValueError
            If there is no such thing, or if options contradict each other or would have no effect.
        """
        if not isinstance(self.args, tuple):
            raise TypeError(
                f"args is a tuple of f's further arguments: write args=({shorten(self.args, 20)},)"
            )
        if self.on_failure not in ON_FAILURE:
            raise ValueError(f"on_failure must be one of {str(ON_FAILURE)[1:-1]}, got {self.on_failure!r}")
        method = find_method(self.method)
        gradient = find_gradient(self.gradient)
        mode = self.compile if isinstance(self.compile, str) else bool(self.compile)
        control = self._control(method, structure, y0)
        if self.save is not None and (isinstance(self.save, type) or not callable(self.save)):
            raise TypeError(f"save is a function, called as save(t, y), got {shorten(self.save)}")
        events = () if self.events is None else events_of(self.events)
        last = self.dense, self.save, self.on_failure, self.debug, Bar() if self.progress else None, events
        return Request(method, control, gradient, self.args, mode, *last)

    def _control(self, method: Method, structure: Structure, y0: Tensor) -> Control:
        named = {name: value for name in OF_CONTROL if (value := getattr(self, name)) is not None}
        for name, value in named.items():
            if type(value) in (int, float):
                continue
            refuse_lanes(value, name)
            if name not in ("grid", "jump_ts", "norm") and any(map(is_differentiated, tensors_in(value))):
                raise ValueError(f"{name} is not differentiated: pass {name}.detach()")
        if self.control is not None:
            chosen = self._given(named, y0.device)
        elif fixed := [name for name in FIXED if name in named]:
            chosen = self._fixed(named, fixed)
        else:
            chosen = self._adaptive(named, method, structure, y0)
        if chosen.adaptive and not method.adaptive:
            raise ValueError(_needs_step(method, "a control with adaptive steps cannot work"))
        return chosen

    def _given(self, named: Mapping[str, Any], device: torch.device) -> Control:
        """The control object, with its tolerances where the state is."""
        control = self.control
        if named:
            raise ValueError(
                f"{next(iter(named))}= has no effect beside control=: set it in the control object"
            )
        if isinstance(control, type):
            raise TypeError(_not_a_class("control", control, ()))
        control = check_control(control)
        own = tolerant(control)
        if own is None:
            return control
        given = {"rtol": own.rtol, "atol": own.atol}
        moved = {
            name: x.to(device) for name, x in given.items() if isinstance(x, Tensor) and x.device != device
        }
        return own.with_settings(**moved) if moved else control

    def _fixed(self, named: Mapping[str, Any], fixed: Sequence[str]) -> FixedSteps:
        other = named.keys() - fixed
        if other:
            raise ValueError(
                f"{sorted(other)[0]}= has no effect with fixed steps ({fixed[0]}=): drop one of them"
            )
        grid = None if self.grid is None else times_of(self.grid, "grid")
        try:
            dt = None if self.dt is None else float(self.dt)
        except (TypeError, ValueError) as error:
            raise TypeError(f"dt is the size of a step, a positive number; got {self.dt!r}") from error
        return FixedSteps(dt, self.n_steps, grid)

    def _adaptive(
        self, named: Mapping[str, Any], method: Method, structure: Structure, y0: Tensor
    ) -> Adaptive:
        if not method.adaptive:
            raise ValueError(_needs_step(method, f"{next(iter(named))}= has no effect" if named else ""))
        alone = ("dt0", "dt_min", "dt_max", "max_steps", "at_rest")
        options = {name: named[name] for name in alone if name in named}
        if "jump_ts" in named:
            try:
                options["jump_ts"] = host_times(self.jump_ts).reshape(-1).unbind()
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"jump_ts must be times, got {shorten(self.jump_ts)}") from error
        if "norm" in named:
            options["norm"] = resolve_norm(named["norm"], structure)
        for name in ("rtol", "atol"):
            if name in named:
                options[name] = structure.spread(named[name], name, y0)
        return Adaptive(**options)


OPTIONS = tuple(x.name for x in fields(Options))


@dataclass(frozen=True)
class Request:
    """What a solve is asked for: options that have been checked, by objects instead of names."""

    method: Method
    control: Control
    gradient: Gradient
    args: tuple[Any, ...] = ()
    compile: bool | str = False
    dense: bool = False
    save: Callable[..., Any] | None = None
    on_failure: str = "raise"
    debug: bool = False
    bar: Bar | None = None
    events: tuple[Event, ...] = ()


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


_default = functools.cache(lambda gradient: gradient())  # settings are values: the same for every solve


def find_gradient(gradient: str | Gradient) -> Gradient:
    """The gradient method of that name with default settings, or the object itself."""
    if isinstance(gradient, str):
        if gradient not in GRADIENTS:
            raise ValueError(f"unknown gradient {gradient!r}.{did_you_mean(gradient, GRADIENTS)}")
        return _default(GRADIENTS[gradient])
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


def refuse_unknown(names: Mapping[str, Any], where: str) -> None:
    """Refuse names that are no options of `torchaca.solve`.

    Raises
    ------
    TypeError
    """
    for name in names:
        if name not in OPTIONS:
            raise TypeError(f"{where} has no option {name!r}.{answer(name, OPTIONS)}")


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


def check_options(options: Mapping[str, Any], where: str, f: Callable[..., Any]) -> None:
    """Refuse options that no solve of f could have.

    Raises
    ------
    TypeError, ValueError
        As `solve` would, before there is a y0.
    """
    refuse_unknown(options, where)
    y0 = torch.zeros((), dtype=torch.float64, device="cpu")  # stands for any
    steps = {name: of_any_size(options[name]) for name in ("rtol", "atol") if name in options}
    asked = check_door(Options(**{**options, **steps})).request(structure_of(y0), y0)
    gradient = asked.gradient
    trace = Trace(f, (), Stats()) if asked.debug else None
    log = Log(trace=trace)
    p = Problem(Field(f), y0, Times((0.0, 1.0)), asked.method, asked.control, asked.dense, log, gradient)
    if trace is not None:
        refuse_untraced(gradient)
    check_problem(gradient, p)
    chosen(STEPS if asked.compile == CUDA_GRAPHS else asked.compile, p)  # y0 may come to be on a GPU
