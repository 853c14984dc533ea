"""Where a solve ended, so that another one can go on with it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .core import Control, Method, Pace, Start, Stats, Times
from .dense import detached
from .errors import shorten
from .loops.rest import Slope
from .numbers import value
from .torch_internals import pytree


@dataclass(frozen=True, eq=False)
class State:
    """Where a solve ended: `solve(f, state, t)` goes on from it, with t[0] = `state.t`.

    `y`, and what a method carries, are in the graph of the solve, so that a gradient flows through; a pickled, saved or
    copied state has values alone. `torch.save` takes it, and `torch.load` with `weights_only=True`.

    Attributes
    ----------
    t : float
    y : Tensor or nested tensors
        In the structure of y0.
    method : str
        The name of the method, the only one that can go on from here.
    stats : Stats
        Evaluations of f and steps so far.
    since : float
        Where the steps are counted from: the start of the first solve, or of those with this grid.
    steps : int
        Accepted steps since then.
    dt : float, 0-dim Tensor or None
        The size of the next step, before the end of the solve cut the last one. None: the method's own choice.
    ratios : tuple
        The error ratios of the last steps, the newest first.
    direction, steepness : Tensor or None, float
        What is known of df/dy at rest.
    before : Tensor or None
        Where the last step started, if the state may be at rest.
    carry : Tensor or None
        What the method hands on beside y.
    """

    t: float
    y: Any
    method: str
    stats: Stats
    since: float
    steps: int = 0
    dt: Any = None
    ratios: tuple[Any, ...] = ()
    direction: Tensor | None = None
    steepness: float = 0.0
    before: Tensor | None = None
    carry: Tensor | None = None

    def __repr__(self) -> str:
        shapes = pytree.tree_map(lambda x: tuple(x.shape), self.y)
        dt = "" if self.dt is None else f", dt {value(self.dt):.3g}"
        return (
            f"State(t {self.t:g}, y {shorten(shapes, 250)}, {self.method}{dt}, {self.stats.accepted} steps)"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: detached(x) for name, x in self._numbers().items()}

    def detach(self) -> State:
        """The same without a graph: where backpropagation through windows of time is to end."""
        return replace(self, **pytree.tree_map_only(Tensor, Tensor.detach, self._numbers()))

    def _numbers(self) -> dict[str, Any]:
        """The fields by name, with host numbers in place of 0-dim tensors that only steer."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        dt = None if self.dt is None else value(self.dt)
        return {**named, "dt": dt, "ratios": tuple(map(value, self.ratios))}

    def start(self, method: Method, ts: Times, y0: Tensor) -> Start:
        """What a solve that goes on from here starts with.

        Raises
        ------
        ValueError
            If this is the state of another method, of another time, or of another y.
        """
        if method.name != self.method:
            raise ValueError(
                f"the state is that of a solve with method {self.method!r}, and this one has {method.name!r}: give "
                f"method={self.method!r}, or start anew with solve(f, state.y, t)"
            )
        if ts.values[0] != self.t:
            raise ValueError(
                f"the state is at t = {self.t!r}, and t[0] is {ts.values[0]!r}: a solve that goes on starts there, at "
                "state.t to the last digit"
            )
        for name, like in (
            ("carry", None if self.carry is None else self.carry[0]),
            ("direction", self.direction),
        ):
            if like is not None and (like.shape, like.dtype) != (y0.shape, y0.dtype):
                raise ValueError(
                    f"the state was made for y of {tuple(like.shape)}, {like.dtype} (its {name}), and state.y is now "
                    f"of {tuple(y0.shape)}, {y0.dtype}: start anew with solve(f, state.y, t)"
                )
        slope = None if self.direction is None else Slope(self.direction, self.steepness)
        return Start(Pace(self.dt, self.ratios, slope, self.before), self.since, self.carry)

    def add_to(self, stats: Stats) -> None:
        """Add the costs of the solves before to those of one that goes on."""
        stats.nfe += self.stats.nfe
        stats.accepted += self.stats.accepted
        stats.rejected += self.stats.rejected

    def control(self, control: Control, ts: Times) -> Control:
        """The control of a solve that goes on from here: fixed steps that go on as well are counted from the start."""
        count: Callable[..., Control] | None = getattr(control, "going_on", None)
        return control if count is None else count(self.since, self.steps, ts)


@dataclass(frozen=True, eq=False)
class Ended:
    """What a loop knows at the end of a step, of which a `State` is made if somebody asks for one.

    `first` is where the loop started, `grid` what its fixed steps are counted from, if that is another time.
    """

    method: str
    adaptive: bool
    first: float
    grid: tuple[float, int] | None
    pace: Pace
    start: State | None
    carry: Tensor | None = None
    y: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Ended:
        start = deepcopy(self.start, memo)
        pace = replace(self.pace, slope=deepcopy(self.pace.slope, memo), before=detached(self.pace.before))
        pace.dt, pace.ratios = None if pace.dt is None else value(pace.dt), tuple(map(value, pace.ratios))
        return replace(self, start=start, pace=pace, carry=detached(self.carry), y=detached(self.y))

    def state(self, t: float, y: Any, stats: Stats) -> State:
        """The state at t, where the solution is y and the costs are `stats`, those of the solves before included."""
        pace, start = self.pace, self.start
        before = 0 if start is None else start.stats.accepted
        if start is not None and stats.accepted == before:  # it has not moved
            return replace(start, y=y)
        since, steps = self.first if start is None else start.since, stats.accepted
        if not self.adaptive:  # whose steps go on where they are those of one grid
            since, taken = self.grid or (self.first, 0)
            steps = taken + stats.accepted - before
        slope = pace.slope
        return State(
            t,
            y,
            self.method,
            Stats(stats.nfe, stats.accepted, stats.rejected),
            since,
            steps,
            pace.dt,
            tuple(pace.ratios),
            None if slope is None else slope.direction,
            0.0 if slope is None else slope.steepness,
            pace.before,
            self.carry,
        )


torch.serialization.add_safe_globals([State, Stats])  # numbers, strings and tensors: nothing in them runs
