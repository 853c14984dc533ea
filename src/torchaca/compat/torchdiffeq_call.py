"""Method and options of a call of torchdiffeq's functions, in the terms of this library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..control import Adaptive, FixedSteps
from ..core import Control, Method, Times
from ..errors import did_you_mean, shorten, warn
from ..methods import ALIASES, METHODS, RK4_38
from ..numbers import host_times
from ..options import find_method, resolve_norm
from ..state import Structure
from ..times import times_of
from .torchdiffeq_errors import asserted, check_grid

NOT_YET = {
    "explicit_adams": "a multistep method",
    "implicit_adams": "a multistep method",
    "fixed_adams": "a multistep method",
    "scipy_solver": "scipy's solvers, which have no gradient",
}
ADAPTIVE_OPTIONS = {
    *("norm", "first_step", "min_step", "max_step", "step_t", "jump_t", "safety", "ifactor", "dfactor"),
    *("max_num_steps", "dtype", "at_rest"),
}
FIXED_OPTIONS = {"step_size", "grid_constructor", "interp", "perturb"}
OTHER_OPTIONS = {"max_order", "max_iters", "implicit", "solver"}  # of the methods in NOT_YET


@dataclass
class Call:
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

    def control(self, rtol: Any, atol: Any, n_outputs: int, t: Any, ts: Times) -> Control:
        """The control of the forward solve, of which so many outputs are known beforehand."""
        if self.method.adaptive:
            return self._adaptive(rtol, atol)
        constructor = self.options.get("grid_constructor")
        if constructor is None:
            return self._fixed(n_outputs)
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
                at_rest=self.options.get("at_rest", Adaptive.at_rest),
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
