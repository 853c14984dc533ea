"""Solves inside somebody else's `torch.compile`.

With fixed steps between host numbers, the steps are unrolled into that graph; autograd of it is plain backpropagation
through all steps, which gives the gradient of "aca" and "direct". Any other solve is one graph break.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..control import FixedSteps
from ..core import Stats
from ..field.dynamics import packed
from ..field.fitting import fit
from ..gradients import GRADIENTS, Facts
from ..layout import joined, stacked
from ..loops.outputs import emit
from ..methods import ALIASES, METHODS
from ..methods.staged import staged
from ..numbers import Time
from ..state import structure_of
from ..torch_internals import graph_break

RECORDED = frozenset(name for name, gradient in GRADIENTS.items() if Facts.of(gradient()).replaceable)
"""The gradients by whose names a solve can be unrolled, and recorded."""

P = ParamSpec("P")
R = TypeVar("R")
UNROLLED = {"args", "method", "gradient", "dt", "n_steps", "grid", "compile"}
BREAK = (
    "a torchaca solve with adaptive steps, or with times that are tensors, is not part of the graph around it: it has "
    "compiled loops of its own with compile=True. torch.export takes solve and NeuralODE with fixed steps between "
    "numbers (n_steps=, dt= or grid=, and t= a list of numbers) under gradient='aca' or 'direct'"
)


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which is one graph break where Dynamo traces a call of it."""
    apart = graph_break(function, BREAK)

    @functools.wraps(function)
    def door(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
            raise NotImplementedError(BREAK)  # such an export runs the function and knows no graph breaks
        return apart(*args, **kwargs)

    return door


@dataclass(frozen=True)
class HostTimes:
    """What a march asks of `Times`, of host numbers and without caches, which Dynamo does not trace."""

    values: tuple[float, ...]
    tensor: None = None
    moving: bool = False

    @property
    def sign(self) -> float:
        return -1.0 if self.values[-1] < self.values[0] else 1.0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> Time:
        return self.values[i]

    def up_to(self, t: float) -> int:
        return sum(self.sign * other <= self.sign * t for other in self.values)

    def at_start(self) -> int:
        return self.up_to(self.values[0])


def can_be_unrolled(positional: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Whether a call of `solve` can become a part of a graph."""
    if len(positional) != 3 or not options.keys() <= UNROLLED:
        return False
    _, y0, t = positional
    times = [t, options["grid"]] if "grid" in options else [t]
    method, gradient = options.get("method", "dopri5"), options.get("gradient", "aca")
    return (
        len(options.keys() & {"dt", "n_steps", "grid"}) == 1
        and isinstance(y0, Tensor)
        and y0.dtype in (torch.float32, torch.float64)
        and all(_steps_one_way(ts) for ts in times)
        and times[0][0] == times[-1][0]
        and times[0][-1] == times[-1][-1]
        and staged(_method(method)) is not None
        and (gradient in RECORDED if isinstance(gradient, str) else Facts.of(gradient).replaceable)
    )


def _method(given: Any) -> Any:
    """The method of this name, or what was given in its place."""
    if not isinstance(given, str):
        return given
    return METHODS[given] if given in METHODS else ALIASES.get(given)


def _steps_one_way(ts: Any) -> bool:
    """Whether these are host numbers that all increase or all decrease."""
    if not (isinstance(ts, list | tuple) and len(ts) > 1 and all(isinstance(x, int | float) for x in ts)):
        return False
    pairs = [(b - a) * (ts[-1] - ts[0]) for a, b in pairwise(ts)]
    return all(0 < x < math.inf for x in pairs)


def unrolled(
    positional: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Stats, list[float]]:
    """Times, outputs, costs and step times of a call of `solve` with fixed steps, made so that Dynamo can trace it."""
    f, y0, t = positional
    args, method = options.get("args", ()), options.get("method", "dopri5")
    method = _method(method)
    grid: Any = HostTimes(tuple(map(float, options["grid"]))) if "grid" in options else None
    control = FixedSteps(options.get("dt"), options.get("n_steps"), grid)
    ts: Any = HostTimes(tuple(map(float, t)))
    stats, structure = Stats(), structure_of(y0)

    def field(time: Time, y: Tensor) -> Tensor:
        stats.nfe += 1
        return packed(f, structure, fit, torch.as_tensor(time, dtype=y.dtype, device=y.device), y, args)

    boundaries = [float(time) for time in control.times(ts)]
    done, y, f0 = ts.at_start(), y0, None
    parts = [stacked([y0] * done)]
    for t0, t1 in pairwise(boundaries):
        step = method.step(field, t0, t1, y, f0)
        reached = ts.up_to(t1)
        if reached > done:
            parts.append(emit(ts, step, done, reached))
        done, y, f0 = reached, step.y1, step.hint
    stats.accepted = len(boundaries) - 1
    times = torch.tensor(ts.values, dtype=y0.dtype, device=y0.device)
    return times, joined(parts, y0), stats, boundaries
