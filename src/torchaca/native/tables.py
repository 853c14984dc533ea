"""A method, a control and a problem as the numbers that the loops in C read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core import Problem
from ..loops.adaptive import Adaptive
from ..loops.pace import Limits
from ..loops.rest import ROOM
from ..loops.rule import NORMS
from ..methods.runge_kutta import RungeKutta
from ..methods.stability import GOOD, SHARE
from ..numbers import value
from ..state import Structure
from . import records
from .driver import STAGES

VECTOR, RMS, MAX = range(3)
NORM_CODES = {"rms": RMS, "max": MAX}


@dataclass
class Held:
    """A record for the loops in C, and what has to live as long as it is used."""

    record: Any
    alive: list[Any] = field(default_factory=list)

    @property
    def address(self) -> int:
        return records.address(self.record)


_TABLES: dict[
    int, tuple[RungeKutta, Held]
] = {}  # by identity: the hash of a method is that of all its numbers
MOST_TABLES = 64


def table_of(method: RungeKutta) -> Held:
    """The numbers of a method."""
    if id(method) not in _TABLES:
        while len(_TABLES) >= MOST_TABLES:
            _TABLES.pop(next(iter(_TABLES)), None)
        _TABLES[id(method)] = method, _made_table(method)
    return _TABLES[id(method)][1]


def _made_table(method: RungeKutta) -> Held:
    every = len(method.nodes)
    rows = [[*map(float, row), *[0.0] * (every - len(row))] for row in method.matrix]
    degree = max(len(row) for row in method.polynomials)
    polynomials = [[0.0, *map(float, row), *[0.0] * (degree - len(row))] for row in method.polynomials]
    numbers = (
        [*map(float, method.nodes)],
        [x for row in rows for x in row],
        [*map(float, method.weights)],
        list(method.error_weights),
        [x for row in polynomials for x in row],
    )
    arrays = [records.doubles(row) for row in numbers]
    f1 = -1 if method.f1_index is None else method.f1_index
    sizes = (method.stages, every, int(method.fsal), method.order, f1, degree)
    return Held(records.Method(*sizes, *map(records.address, arrays)), arrays)


def has_table(method: Any) -> bool:
    """Whether a method is its numbers and nothing else."""
    return type(method) is RungeKutta and len(method.nodes) <= STAGES


def pace_of(p: Problem, control: Adaptive) -> records.Pace:
    """The limits of a search, and its rule."""
    limits, pid, order = Limits.of(p, control), control.pid, p.method.order
    start, stops = p.ts.values[0], control.stops(p.ts)
    reach = min(0.5 * min(abs(stop - start) for stop in stops), control.dt_max)
    resolves = control.step_rule is not None and control.step_rule.resolves
    calm = SHARE * (GOOD * math.factorial(order + 1)) ** (1 / (order + 1)) if resolves else math.inf
    exponents = (-(pid.p + pid.i + pid.d), pid.p + 2 * pid.d, -pid.d)
    return records.Pace(
        *(limits.smallest, limits.dt_min, limits.dt_max, limits.fallback, reach),
        *(control.safety, control.factor_min, control.factor_max, calm, ROOM),
        (records.REAL * 3)(*(x / order for x in exponents)),
        *(limits.max_trials, limits.most_rejections, int(control.accept_at_dt_min)),
    )


def tolerance_of(control: Adaptive, y: Tensor, n: int) -> Held:
    """How the error of a step is measured, in a problem of n numbers; y is all of them, or several such problems."""
    given = control.rtol, control.atol
    rtol, atol = (_numbers(x, y) for x in given)
    strides = [int(isinstance(x, Tensor) and x.numel() > 1) for x in given]
    parts = (records.WHOLE * 1)(n)
    kind, relative, least = RMS, 0.0, 0.0
    if not isinstance(control.norm, str):
        parts = _parts(control.norm)
    elif control.norm == "rms" and not any(isinstance(x, Tensor) for x in given):
        root = math.sqrt(max(n, 1))
        kind, relative = VECTOR, root * float(control.rtol)
        least = max(root * float(control.atol), torch.finfo(y.dtype).tiny)
    else:
        kind = NORM_CODES[control.norm]
    record = records.Tolerance(
        *(
            kind,
            *strides,
            len(parts),
            rtol.data_ptr(),
            atol.data_ptr(),
            records.address(parts),
            relative,
            least,
        )
    )
    return Held(record, [rtol, atol, parts])


def _numbers(tolerance: float | Tensor, y: Tensor) -> Tensor:
    if not isinstance(tolerance, Tensor):
        return torch.tensor([tolerance], dtype=y.dtype, device="cpu")
    own = tolerance.detach().to(y.dtype)
    return own.reshape(1) if own.numel() == 1 else own.expand(y.shape).contiguous()


def has_norm(norm: Any) -> bool:
    """Whether the loops in C have a norm."""
    return (isinstance(norm, str) and norm in NORMS) or getattr(norm, "__func__", None) is Structure.mixed_rms


def _parts(norm: Any) -> Any:
    """Where the parts of a nested state end."""
    ends = [leaf.stop for leaf in norm.__self__.leaves]
    return (records.WHOLE * len(ends))(*ends)


@dataclass(frozen=True)
class Route:
    """The output times, where steps have to end, and where f jumps, as arrays."""

    ts: Any
    exact: Any
    stops: Any
    n_stops: int
    jumps: Any
    n_jumps: int

    @staticmethod
    def of(p: Problem) -> Route:
        """Those of a problem."""
        control: Any = p.control
        if control.adaptive:
            stops, ends = control.stops(p.ts), (p.ts[len(p.ts) - 1], *control.tensors)
        else:
            ends = control.times(p.ts)
            stops = [value(t) for t in ends[1:]]
        # Where times are differentiated, an output is the end of a step only if the step ends there because of it.
        ids, moving = {id(t) for t in ends}, {value(t) for t in ends if isinstance(t, Tensor)}
        exact = [id(p.ts[i]) in ids if p.ts.moving else t not in moving for i, t in enumerate(p.ts.values)]
        jumps = sorted(p.jumps)
        flags = (records.FLAG * len(exact))(*exact)
        arrays = records.doubles(p.ts.values), flags, records.doubles(stops), len(stops)
        return Route(*arrays, records.doubles(jumps), len(jumps))
