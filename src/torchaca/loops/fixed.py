"""Fixed steps: grids that do not look at the solution."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor

from ..core import End, Problem, Step, Times
from ..numbers import Time, host_times, value
from .stepping import march


@dataclass(frozen=True)
class FixedSteps:
    """Steps that do not look at the solution.

    Exactly one of `dt` (the last step is shortened to land on t1), `n_steps` (equal steps over the whole span) or
    `grid` (the step times, from t0 to t1); none of them steps from output time to output time.
    """

    adaptive = False

    dt: float | None = None
    n_steps: int | None = None
    grid: Times | None = None
    ts: Times | None = field(default=None, repr=False, compare=False)
    """The output times that it was `fitted` to."""
    since: tuple[float, int] | None = field(default=None, repr=False, compare=False)
    """Where the steps are counted from, if that is not their start: a time, and so many steps before their start."""
    tensors: tuple[Tensor, ...] = field(init=False, repr=False, compare=False)
    """The grid, if it is differentiated."""

    def __post_init__(self) -> None:
        moving = None if self.grid is None else self.grid.tensor
        object.__setattr__(self, "tensors", () if moving is None else (moving,))
        given = [name for name in ("dt", "n_steps", "grid") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give only one of {', '.join(given)}")
        if self.dt is not None and not (self.dt > 0 and math.isfinite(self.dt)):
            raise ValueError(f"dt is the size of a step, a positive number; got {self.dt!r}")
        n = self.n_steps
        if n is not None and not (isinstance(n, (int, float)) and n >= 1 and float(n).is_integer()):
            raise ValueError(f"n_steps is a whole number of at least 1, got {self.n_steps!r}")

    def times(self, ts: Times) -> list[Time]:
        """All step times, from `ts[0]` to `ts[-1]`; tensors where `ts` or `grid` carries a derivative."""
        start, end = ts.values[0], ts.values[-1]
        if start == end:
            return [ts[0]]
        first, last = (start, end) if ts.tensor is None else (ts[0], ts[len(ts) - 1])
        if self.grid is not None:
            return [first, *(self.grid[i] for i in range(1, len(self.grid) - 1)), last]
        origin, taken = (first, 0) if self.since is None else self.since
        if self.n_steps is not None:
            n, times = int(self.n_steps), [first]
            for i in range(1, n):
                times.append(origin + (last - origin) * ((taken + i) / (taken + n)))
            return [*times, last]
        if self.dt is not None:
            # A remainder of rounding size is no step of its own.
            n = max(1, math.ceil(abs(end - start) / self.dt * (1 - 1e-12) - 1e-9))
            return [first, *(origin + ts.sign * self.dt * i for i in range(taken + 1, taken + n)), last]
        kept = [i for i in range(1, len(ts)) if ts.values[i] != ts.values[i - 1]]
        return [first, *(ts[i] for i in kept)]

    @property
    def by_outputs(self) -> bool:
        """Whether steps end at the outputs."""
        return self.dt is None and self.n_steps is None and self.grid is None

    def rows(self, times: Tensor) -> Tensor:
        """All step times `(N + 1, B)` of rows with times of their own, `(n, B)`; a row that is done repeats its end.

        A grid is that of rows which share their times.
        """
        start, end = times[0], times[-1]
        if self.grid is not None:
            inner = torch.tensor(self.grid.values[1:-1], dtype=times.dtype, device=times.device)
            return torch.cat([start[None], inner[:, None].expand(-1, times.shape[1]), end[None]])
        if self.n_steps is not None:
            parts = torch.arange(int(self.n_steps), dtype=times.dtype, device=times.device) / int(
                self.n_steps
            )
            return torch.cat([start + (end - start) * parts[:, None], end[None]])
        if self.dt is None:
            again = times[1:] == times[:-1]
            if not bool(again.any()):
                return times
            # Steps end at the first of several outputs at a time, as in `times`.
            first = torch.cat([torch.zeros_like(again[:1]), again]).logical_not().long()
            number = torch.arange(len(times), device=times.device)[:, None] * first
            return times.gather(0, number.cummax(0).values)
        n = ((end - start).abs() / self.dt * (1 - 1e-12) - 1e-9).ceil().clamp(min=1)
        i = torch.arange(int(n.max()) + 1, dtype=times.dtype, device=times.device)[:, None]
        sign = torch.where(end < start, -1.0, 1.0).to(times)
        return torch.where(i < n, start + sign * self.dt * i, end)

    def boundaries(self, ts: Times, taken: Sequence[float]) -> Sequence[Time]:
        """The grid moves with the times it was made from."""
        return self.times(ts)[: len(taken)]

    def moves(self, p: Problem) -> Generator[Step, None, End]:
        """Yield the steps of a problem; see `torchaca.core.Control`."""
        return march(p, self._without_end(p.ts) if math.isinf(p.ts.values[-1]) else self.times(p.ts))

    def _without_end(self, ts: Times) -> Iterator[Time]:
        """All step times of a solve that somebody else ends."""
        if self.dt is None:
            raise ValueError("steps of which only the number is known need an end: give t1, or dt=")
        origin, taken = (ts.values[0], 0) if self.since is None else self.since
        yield ts.values[0]
        yield from (origin + ts.sign * self.dt * i for i in count(taken + 1))

    def going_on(self, since: float, taken: int, ts: Times) -> FixedSteps:
        """Count the steps from `since`, so many before their start at ts[0], if they are the same steps so."""
        start, end = ts.values[0], ts.values[-1]
        if self.dt is not None:
            same = since + ts.sign * self.dt * taken == start
        else:
            same = (
                self.n_steps is not None and since + (end - since) * (taken / (taken + self.n_steps)) == start
            )
        if not (same and taken):
            return self
        other = copy(self)
        object.__setattr__(other, "since", (since, taken))
        return other

    def with_tensors(self, tensors: Sequence[Tensor]) -> FixedSteps:
        """Exchange the grid for one of the same values."""
        if self.grid is None or not tensors:
            return self
        (grid,) = tensors
        return replace(self, grid=Times(self.grid.values, grid))

    def fitted(self, ts: Times, time_dtype: torch.dtype) -> FixedSteps:
        """Check that a given grid runs from the first output time to the last, and keep the times for `within`.

        Raises
        ------
        ValueError
            If the grid starts or ends elsewhere, or has a step of length zero.
        """
        if self.grid is not None:
            refuse_grid(self.grid.values, ts)
        kept = copy(self)  # checked already
        object.__setattr__(kept, "ts", ts if ts.tensor is None else ts.detached())
        return kept

    def within(self, start: float, end: float) -> FixedSteps:
        """Take the steps of the solve that lie in a stretch of it, in its direction; a grid moves with its own."""
        if self.ts is None:
            return self
        low, high = min(start, end), max(start, end)
        inside = [t for t in self.times(self.ts) if low < value(t) < high]
        sign = 1.0 if end > start else -1.0
        times = [start, *sorted(inside, key=lambda t: sign * value(t)), end]
        moving = None
        if self.tensors:
            with torch.enable_grad():  # also in a forward pass that goes without a graph
                moving = host_times(times)
        grid = Times((*map(value, times),), moving)
        return FixedSteps(grid=grid, ts=Times((start, end)))


def refuse_grid(grid: Sequence[float], ts: Times) -> None:
    """Refuse a grid that does not run from the first output time to the last, or has a step of length zero.

    Raises
    ------
    ValueError
    """
    span = abs(ts.values[-1] - ts.values[0])
    for name, mine, theirs in (("start", grid[0], ts.values[0]), ("end", grid[-1], ts.values[-1])):
        if abs(mine - theirs) > 1e-6 * span:  # float32 times beside float64 ones
            raise ValueError(f"grid must {name} where t does: {mine:g} is not {theirs:g}")
    for i in range(1, len(grid)):
        if grid[i] == grid[i - 1]:
            raise ValueError(f"grid[{i}] repeats {grid[i]:g}: a step needs a length")
