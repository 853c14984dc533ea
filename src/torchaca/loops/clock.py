"""How finely time is resolved: steps are made in float64, and f gets their times in its state's precision."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter, sub
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core import Problem, Times
from ..errors import warn
from ..field.dynamics import Dynamics
from ..numbers import Time, host_times, value
from ..torch_internals import TorchDispatchMode, pytree, transformed
from ..transforms import is_differentiated
from .pace import TOO_SMALL

if TYPE_CHECKING:
    from .adaptive import Adaptive

COARSE = 0.01  # of a step: where neighbouring times of f are farther apart, its stages are at the wrong times
TINY = 1e-30  # of the span: near zero, nothing shorter is a time between two others
AT_ONCE = (
    "jump_ts is differentiated, and two of its times are {:g}, or as near as rounding: what each of them does there "
    "cannot be told apart. Give them different times, or pass jump_ts.detach()"
)
STEP = 1.6 * TOO_SMALL * 2.0**-52  # of t: what steps are longer than, and to spare


def merged(control: Adaptive, ts: Times, dtype: torch.dtype) -> Adaptive:
    """The control with one jump in place of several that rounding cannot tell apart.

    A jump, or a stop, that is as near to an output time is moved there: onto the ends of the solve first of all.

    Parameters
    ----------
    dtype : torch.dtype
        In which f gets the time.

    Raises
    ------
    ValueError
        If two jumps are one, and one of them is differentiated.
    """
    if not (control.jump_ts or control.stop_ts):
        return control
    given = [(value(t), True, _moving(t)) for t in control.jump_ts]
    given += [(t, False, None) for t in control.stop_ts]
    start, finite = ts.values[0], [t for t in ts.values if abs(t) < math.inf]
    end = finite[-1]  # of a solve without end, its start
    part, least = max(STEP, torch.finfo(dtype).eps), TINY * abs(end - start)

    def same(t: float, other: float) -> bool:
        return abs(t - other) <= max(part * max(abs(t), abs(other)), least)

    outputs = sorted(finite)
    places: dict[float, bool] = {}  # the times that are kept, and whether f jumps there
    moving: dict[float, Tensor] = {}
    last = start
    for t, jumps, tensor in sorted(given, key=itemgetter(0)):
        place = next((known for known in (start, end, last) if same(t, known)), None)
        if place is None:
            output = _nearest(t, outputs)
            crowded = any(same(output, known) for known in (start, end, last))
            place = output if same(t, output) and not crowded else t
        inner = place not in (start, end)
        if inner and jumps and places.get(place) and (tensor is not None or place in moving):
            raise ValueError(AT_ONCE.format(place))
        if inner and tensor is not None:
            moving[place] = tensor if t == place else place + (tensor - t)
        places[place] = places.get(place, False) or jumps
        last = place
    jump_ts = tuple(moving.get(t, t) for t, jumps in places.items() if jumps)
    stop_ts = tuple(t for t, jumps in places.items() if not jumps)
    return replace(control, jump_ts=jump_ts, stop_ts=stop_ts)


def _moving(t: Time) -> Tensor | None:
    """A time that somebody differentiates, as float64 on the host."""
    differentiated = isinstance(t, Tensor) and is_differentiated(t)
    return host_times(t).reshape(()) if differentiated else None


def _nearest(t: float, times: Sequence[float]) -> float:
    n = bisect_left(times, t)
    return min(times[max(n - 1, 0) : n + 1], key=lambda other: abs(other - t))


@dataclass(frozen=True)
class Coarse:
    """A clock that is too coarse for a solve: near `t`, times of f are `apart`, and steps are of a `size`."""

    t: float
    apart: float
    size: float
    dtype: torch.dtype


def coarse(times: Any, dtype: torch.dtype, *, failed: bool = False) -> Coarse | None:
    """What is wrong with handing f its times in `dtype`, if that cannot resolve most of the steps between `times`.

    Parameters
    ----------
    times : list or array of float, shape `(n + 1, ...)`
        Where steps start and end; further dimensions are independent solves.
    failed : bool
        Steps count by their sizes: those of a solve that failed may mostly be a search for the place where it did.
    """
    ends = np.asarray(times, dtype=np.float64)
    sizes = np.abs(np.diff(ends, axis=0))
    steps = sizes > 0  # of a solve that is done earlier than others, none are left
    if not steps.any():
        return None
    places = np.maximum(np.abs(ends[1:]), np.abs(ends[:-1]))[steps]
    apart = np.spacing(places.astype(np.float32 if dtype == torch.float32 else np.float64)).astype(np.float64)
    if not (apart > COARSE * sizes[steps]).any():
        return None
    # Of most steps: a jump, or a sharp bend, may take a few that are as small as that.
    sizes = sizes[steps]
    order = np.argsort(apart / sizes)
    counted = np.cumsum(sizes[order] if failed else np.ones_like(order))
    middle = int(order[np.searchsorted(counted, counted[-1] / 2)])
    t, gap, size = float(places[middle]), float(apart[middle]), float(sizes[middle])
    if dtype == torch.float64 and gap > COARSE * np.abs(ends[-1] - ends[0]).max():
        return None  # the times were given so: between outputs that rounding has set apart there is nothing to resolve
    return Coarse(t, gap, size, dtype) if gap > COARSE * size else None


def is_fine(times: Sequence[float], dtype: torch.dtype) -> bool:
    """Whether `dtype` resolves even the shortest of the steps between `times`, as far from zero as any of them."""
    shortest = min(map(abs, map(sub, times[1:], times)), default=0.0)
    if not shortest:
        shortest = min((abs(b - a) for a, b in pairwise(times) if a != b), default=0.0)
    return resolves(dtype, max(abs(times[0]), abs(times[-1])), shortest)


def resolves(dtype: torch.dtype, farthest: float, shortest: float) -> bool:
    """Whether `dtype` resolves the shortest of some steps, also where times are farthest from zero."""
    apart = math.ulp(farthest) * torch.finfo(dtype).eps / torch.finfo(torch.float64).eps
    return apart <= COARSE * shortest


def warn_of_coarse_clock(found: Coarse, reads_time: bool | None) -> None:
    """Say that f cannot tell the stages of a step apart; `reads_time` is None if that is not known."""
    if reads_time is False:
        return
    if_so = "" if reads_time else "if it depends on t, "
    cure = (
        ""
        if found.dtype == torch.float64
        else ", or use a float64 state, y0.double(): f gets t in float64 then"
    )
    warn(
        f"f gets the time in {found.dtype}, which near t = {found.t:.6g} has a number every {found.apart:.2g}, and a "
        f"step is {found.size:.2g} long: {if_so}f cannot tell the stages of a step apart, and the solution is wrong. "
        f"Shift t to start at 0 (solve over t - t[0], and let f add t[0] where it needs the date){cure}"
    )


def check_clock(p: Problem, times: Any, *, failed: bool = False) -> None:
    """Warn if f got its times too coarsely for the steps between `times`.

    `failed`: see `coarse`. Inside a transform f is not asked whether it reads the time.
    """
    dtype = p.y0.dtype.to_real()
    if isinstance(times, list | tuple) and times and is_fine(times, dtype):
        return  # nearly always; it costs a hundredth of the rest
    found = coarse(times, dtype, failed=failed)
    if found is not None:
        asked = p.f.call if isinstance(p.f.call, Dynamics) and not transformed() else None
        warn_of_coarse_clock(found, None if asked is None else reads_time(asked, p))


def reads_time(f: Dynamics, p: Problem) -> bool:
    """Whether f uses the time that it is given: one more evaluation at the start, which leaves no effect."""
    seen = Seen(f.time(p.ts.values[0]).clone())
    try:
        with (
            p.undone(),
            torch.set_grad_enabled(f.needs_grad),
            seen.watched(),
        ):
            f.evaluate(seen.tensor, p.y0.detach().requires_grad_(f.needs_grad))
    except Exception:  # whatever it minds, it is no answer
        return True
    return seen.used


class Seen:
    """Whether a tensor takes part in anything."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.used = tensor, False
        self._memory = tensor.untyped_storage().data_ptr()

    def watched(self) -> _Watched:
        return _Watched(self)

    def note(self, args: Any, kwargs: Any) -> None:
        """Note a call with these arguments."""
        for x in pytree.tree_leaves((args, kwargs)):
            mine = isinstance(x, Tensor) and (x is self.tensor or self._shares(x))
            self.used = self.used or mine

    def _shares(self, x: Tensor) -> bool:
        try:
            return x.untyped_storage().data_ptr() == self._memory
        except (RuntimeError, NotImplementedError):  # it has none
            return False


class _Watched:
    """Calls from Python, and operations that come from elsewhere (a scripted f)."""

    def __init__(self, seen: Seen) -> None:
        self.modes = (_Calls(seen), _Operations(seen))

    def __enter__(self) -> None:
        for mode in self.modes:
            mode.__enter__()

    def __exit__(self, *raised: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*raised)


class _Calls(TorchFunctionMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") not in (
            "__get__",
            "is_inference",
        ):  # a dtype or a device is no value
            self.seen.note(args, kwargs)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen.note(args, kwargs)
        return func(*args, **(kwargs or {}))
