"""The options of a solve that is yet to come, checked as far as they do not depend on y0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch

from .compiled.door import CUDA_GRAPHS, STEPS, refuse_loops, refuse_steps
from .core import Problem, Stats, Times
from .elsewhere import answer
from .errors import shorten
from .executors import check_mode
from .gradients import check_problem
from .solve import ON_FAILURE, OPTIONS, StepOptions, find_gradient, find_method, refuse_untraced
from .state import of_any_size, structure_of
from .trace import Trace


def check_options(options: Mapping[str, Any], where: str, f: Callable[..., Any]) -> None:
    """Refuse options that no solve of f could have.

    Raises
    ------
    TypeError, ValueError
        As `solve` would, before there is a y0.
    """
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"{where} has no option {name!r}.{answer(name, OPTIONS)}")
    if not isinstance(options.get("args", ()), tuple):
        raise TypeError(f"args is a tuple of f's further arguments, got {shorten(options['args'])}")
    on_failure = options.get("on_failure", "raise")
    if on_failure not in ON_FAILURE:
        raise ValueError(f"on_failure must be one of {', '.join(map(repr, ON_FAILURE))}, got {on_failure!r}")
    method = find_method(options.get("method", "dopri5"))
    gradient = find_gradient(options.get("gradient", "aca"))
    y0 = torch.zeros((), dtype=torch.float64, device="cpu")  # stands for any
    steps = {x.name: options.get(x.name) for x in fields(StepOptions)}
    steps |= {name: of_any_size(steps[name]) for name in ("rtol", "atol")}
    control = StepOptions(**steps).control(method, structure_of(y0), y0, options.get("control"))
    trace = Trace(f, (), Stats()) if options.get("debug") else None
    p = Problem(f, y0, Times((0.0, 1.0)), method, control, dense=bool(options.get("dense")), trace=trace)
    if trace is not None:
        refuse_untraced(gradient)
    check_problem(gradient, p)
    mode = options.get("compile", False)
    check_mode(mode if isinstance(mode, str) else bool(mode))
    if isinstance(mode, str):
        refuse_steps(p, gradient, STEPS if mode == CUDA_GRAPHS else mode, False)
    elif mode:
        refuse_loops(p, gradient, False)
