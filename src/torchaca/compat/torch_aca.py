"""The call forms of torch_ACA (Zhuang et al. 2020, https://github.com/juntang-zhuang/torch_ACA).

The options are those of its readme. Without an effect on results, here as there, and only accepted: `print_neval`,
`print_direction`, `delete_graph`, `regenerate_graph`, `step_dif_ratio` (nothing is printed, step control does not
need the others).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..control import Adaptive, FixedSteps
from ..core import Control, Gradient, Times
from ..errors import did_you_mean
from ..gradients import ACA, Direct
from ..numbers import Time, host_times, value
from ..options import Request, find_method
from ..solution import Solution
from ..solve import problem_of, solved
from ..state import structure_of
from ..times import times_of
from ..torch_internals import pytree
from ..transforms import is_differentiated, refuse_lanes, tensors_in

__all__ = ["Solver", "odesolve", "odesolve_adjoint", "odesolve_endtime"]

WITHOUT_EFFECT = {"print_neval", "print_direction", "delete_graph", "regenerate_graph", "step_dif_ratio"}
KNOWN = WITHOUT_EFFECT | {
    *("method", "t0", "t1", "h", "rtol", "atol", "neval_max", "t_eval", "dense_output", "safety"),
}
Func = Callable[..., Any]


def odesolve(func: Func, z0: Any, options: dict[str, Any], return_solver: bool = False, **more: Any) -> Any:
    """Values at `options["t_eval"]` (default: t1), differentiated through the accepted steps.

    Parameters
    ----------
    func : callable
        `func(t, z)`.
    z0 : Tensor
        The state at t0.
    options : dict
        method (required: "Euler", "RK2", "RK4" with h; "RK12", "RK23", "RK45", "Dopri5" adaptive), t0 = 0.0, t1 = 1.0,
        h (first or fixed step), rtol = 1e-3, atol = 1e-6, neval_max = 500000, t_eval, dense_output, safety. t0, t1 and
        t_eval may be tensors, which are differentiated.
    return_solver : bool
        Return a `Solver` and integrate nothing yet.
    **more
        Further options, which count before those in the dict.

    Returns
    -------
    Tensor
        `(len(t_eval), *z0.shape)`, without the leading dimension for a single time.
    """
    solver = Solver(func, Options.read({**options, **more}), Direct())
    return solver if return_solver else solver.integrate(z0, t_eval=solver.options.t_eval)


def odesolve_endtime(
    func: Func, z0: Any, options: dict[str, Any], return_solver: bool = False, **more: Any
) -> Any:
    """The value at t1 only; otherwise as `odesolve`."""
    solver = Solver(func, Options.read({**options, **more, "t_eval": None}), Direct())
    return solver if return_solver else solver.integrate(z0)


def odesolve_adjoint(func: Func, z0: Any, options: dict[str, Any], **more: Any) -> Any:
    """The value at t1 only, differentiated by ACA: one state a step and one step's graph in memory."""
    return Solver(func, Options.read({**options, **more, "t_eval": None}), ACA(checkpoints="all")).integrate(
        z0
    )


@dataclass(frozen=True)
class Options:
    """torch_ACA's options dict, read and checked."""

    method: str
    t0: float | Tensor = 0.0
    t1: float | Tensor = 1.0
    h: float | None = None
    rtol: float = 1e-3
    atol: float = 1e-6
    neval_max: int = 500_000
    t_eval: Any = None
    dense_output: bool = False
    safety: float | None = None

    @staticmethod
    def read(options: dict[str, Any]) -> Options:
        """The options as an object; the dict stays as it is.

        Raises
        ------
        ValueError
            For unknown keys, and without a method.
        """
        for key in options:
            if key not in KNOWN:
                raise ValueError(f"unknown option {key!r}.{did_you_mean(key, KNOWN)}")
        if "method" not in options:
            raise ValueError('options must name a method, e.g. {"method": "RK23"}')
        given = {key: value for key, value in options.items() if key not in WITHOUT_EFFECT}
        for key in ("t0", "t1"):
            if key in given:
                given[key] = _time(given[key], key)
        for key in ("h", "rtol", "atol", "neval_max", "safety"):
            refuse_lanes(given.get(key), key)
            if any(map(is_differentiated, tensors_in(given.get(key)))):
                raise ValueError(f"{key} is not differentiated: pass {key}.detach()")
        return Options(**given)

    @property
    def span(self) -> tuple[float, float]:
        """t0 and t1 on the host."""
        return value(self.t0), value(self.t1)

    def control(self, steps: Sequence[Time] | None) -> Control:
        """Predefined steps, a fixed h, or adaptive ones."""
        method = find_method(self.method)
        if steps is not None:
            return FixedSteps(grid=times_of([self.t0, *steps], "predefine_steps"))
        if self.h is not None and not (self.h > 0 and math.isfinite(self.h)):
            raise ValueError(f"h is the size of a step, a positive number; got {self.h!r}")
        if not method.adaptive:
            if self.h is None:
                raise ValueError(f"method {self.method!r} has fixed steps: options need h")
            return FixedSteps(dt=float(self.h))
        safety = Adaptive.safety if self.safety is None else self.safety
        return Adaptive(self.rtol, self.atol, dt0=self.h, max_steps=self.neval_max, safety=safety)


class Solver:
    """What `return_solver=True` gives: integrate, and with `dense_output` evaluate anywhere afterwards."""

    def __init__(self, func: Func, options: Options, gradient: Gradient) -> None:
        self.func = func
        self.options = options
        self.gradient = gradient
        self.solution: Solution | None = None

    def integrate(
        self,
        z0: Any,
        predefine_steps: Sequence[Time] | None = None,
        return_steps: bool = False,
        t_eval: Any = None,
    ) -> Any:
        """Values at `t_eval` (default: the end), and with `return_steps` the step times after t0 as well.

        Parameters
        ----------
        z0 : Tensor
        predefine_steps : list of float or Tensor, optional
            Step from t0 over these times, without error control.
        return_steps : bool
        t_eval : list of float or Tensor, optional
            Monotone, between t0 and t1.
        """
        options, (t0, t1) = self.options, self.options.span
        predefined = None if predefine_steps is None else _listed(predefine_steps)
        ts = times_of(
            [options.t0, *(_listed(t_eval) or [predefined[-1] if predefined else options.t1])], "t_eval"
        )
        low, high = min(t0, t1), max(t0, t1)
        for t in ts.values:
            if not low <= t <= high:
                raise ValueError(f"t_eval holds {t:g}, which is not between t0 = {t0:g} and t1 = {t1:g}")
        if (ts.values[-1] - t0) * (t1 - t0) < 0:
            raise ValueError("t_eval must run from t0 towards t1")
        structure = structure_of(z0)
        steps = None if predefined is None else _up_to(predefined, t0, ts)
        method, control = find_method(options.method), options.control(steps)
        asked = Request(method, control, self.gradient, dense=options.dense_output)
        p = problem_of(self.func, structure.pack(z0), structure, ts, asked, lenient=True)
        self.solution = Solution.of(*solved(p)[:2], structure, None)
        ys = pytree.tree_map(lambda y: y[1] if len(ts) == 2 else y[1:], self.solution.ys)
        return (ys, list(self.solution.steps[1:])) if return_steps else ys

    def evaluate_dense_mode(self, t_eval: Any) -> Any:
        """Values at any times of the last `integrate`, without integrating again."""
        times = _listed(t_eval)
        values = self._dense()(times)
        return pytree.tree_map(lambda y: y[0] if len(times) == 1 else y, values)

    def __call__(self, t: Any) -> Any:
        """The value at one time of the last `integrate`."""
        return self._dense()(t)

    def _dense(self) -> Solution:
        if self.solution is None:
            raise ValueError("nothing was integrated yet: call solver.integrate(z0) first")
        if self.solution.dense is None:
            raise ValueError("this needs options['dense_output'] = True")
        return self.solution


def _listed(times: Any) -> list[Any]:
    """A list of times from a list, an array or a tensor; tensors that carry derivatives stay tensors."""
    if times is None:
        return []
    return list(times) if isinstance(times, (list, tuple)) else list(host_times(times).reshape(-1))


def _time(t: Any, name: str) -> float | Tensor:
    """One time: a tensor as it is, since somebody may differentiate with respect to it, else a number."""
    (number,) = times_of([t], name).values
    return t if isinstance(t, Tensor) else number


def _up_to(steps: Sequence[Time], t0: float, ts: Times) -> list[Time]:
    """The predefined steps as far as the last output, ending there."""
    end = ts.values[-1]
    sign = -1.0 if end < t0 else 1.0
    return [*(t for t in steps if sign * value(t) < sign * end), ts[len(ts) - 1]]
