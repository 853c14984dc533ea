"""The vocabulary of the library: what a problem, a step, a method, a control and a gradient are.

The loop yields accepted steps; a gradient method is what one does with them. A `Method` maps a state over one
step and nothing else, a `Control` decides where the steps end, a `Gradient` turns a problem into outputs that
autograd can differentiate. None of them knows another's inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor

from .layout import joined
from .log import Log, Pace, Stats, Watcher
from .numbers import Time, value
from .protocols import (
    Carrying,
    CarryingStep,
    Control,
    End,
    Gradient,
    Method,
    Reversible,
    Step,
    Stepper,
    VectorField,
    Watching,
    tolerant,
)
from .times import Times

if TYPE_CHECKING:
    from .errors import SolverError
    from .field.effects import Effects
    from .field.field import Field
    from .loops.saving import Saving
    from .trace import Trace

__all__ = [
    "Carrying",
    "CarryingStep",
    "Control",
    "End",
    "Gradient",
    "Log",
    "Method",
    "Outcome",
    "Pace",
    "Problem",
    "Reversible",
    "Start",
    "Stats",
    "Step",
    "Stepper",
    "Times",
    "VectorField",
    "Watcher",
    "Watching",
    "tolerant",
]


def _from(path: str) -> Any:
    """An attribute of an attribute, without a call in Python: some are read in every step."""
    return property(attrgetter(path))


@dataclass(frozen=True)
class Start:
    """What a solve that goes on with another one knows of it, beside t0 and y0.

    Attributes
    ----------
    pace : Pace
        Of the search.
    since : float
        Where the first of all these solves started.
    carry : Tensor or None
        What the method has handed on beside y, `(rows - 1, *y0.shape)`.
    """

    pace: Pace
    since: float
    carry: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """An initial value problem, ready to be solved: everything packed, checked and counted.

    `f` maps (time, packed state) to the packed derivative, counts its calls in `stats`, and holds what is known of it;
    `dense`: somebody wants the interpolants; `gradient` is the method that the caller asked for, None in problems that
    the library makes for itself; `events` cuts the steps off at the first event; `start`: the solve goes on with
    another one; `save`: what outputs are made of states.
    """

    f: Field
    y0: Tensor
    ts: Times
    method: Method
    control: Control
    dense: bool = False
    log: Log = field(default_factory=Log)
    gradient: Gradient | None = None
    events: Watching | None = None
    start: Start | None = None
    save: Saving | None = None

    # What others have noted, read through.
    stats: ClassVar[Stats] = _from("log.stats")
    watch: ClassVar[Watcher | None] = _from("log.watch")
    trace: ClassVar[Trace | None] = _from("log.trace")
    f0: ClassVar[Tensor | None] = _from("f.f0")
    effects: ClassVar[Effects | None] = _from("f.effects")
    jumps: ClassVar[frozenset[float]] = _from("f.jumps")
    one_sided: ClassVar[bool] = _from("f.one_sided")
    source: ClassVar[Callable[..., Any] | None] = _from("f.source")
    locate: ClassVar[Callable[[int], str]] = _from("f.locate")
    between: ClassVar[Callable[[Time, Time], VectorField]] = _from("f.between")
    aside: ClassVar[Callable[[], AbstractContextManager[None]]] = _from("f.aside")
    undone: ClassVar[Callable[[], AbstractContextManager[None]]] = _from("f.undone")

    @cached_property
    def carrying(self) -> Carrying | None:
        """The method, if its steps hand on more than y1."""
        # Told by one member: a look at the whole protocol takes as long as a cheap evaluation of f.
        return cast("Carrying", self.method) if hasattr(self.method, "resume") else None

    def fresh(self, t: Time) -> bool:
        """Whether the step at `t` starts from y alone, whatever the method carries: first of all, or after a jump."""
        first = value(t) == self.ts.values[0]
        return (first and (self.start is None or self.start.carry is None)) or value(t) in self.f.jumps

    @cached_property
    def first(self) -> Tensor:
        """What the first step starts from: y0, or with it what a solve before this one has handed on."""
        if self.start is None or self.start.carry is None or self.fresh(self.ts.values[0]):
            return self.y0
        return joined([self.y0[None], self.start.carry], self.y0)

    @property
    def since(self) -> float:
        """Where the solve started, or the first of those that it goes on with."""
        return self.ts.values[0] if self.start is None else self.start.since

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors beside y0, the times and f's that may be differentiated.

        They are the control's, the method's if it has some, and what was carried.
        """
        own = (*self.control.tensors, *getattr(self.method, "tensors", ()))
        return own if self.start is None or self.start.carry is None else (*own, self.start.carry)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Problem:
        """Exchange `tensors` for others of the same values."""
        start, n = self.start, len(self.control.tensors)
        if start is not None and start.carry is not None:
            *tensors, carry = tensors
            start = replace(start, carry=carry)
        p = replace(self, control=self.control.with_tensors(tensors[:n]), start=start)
        own: Any = self.method
        return replace(p, method=own.with_tensors(tensors[n:])) if len(tensors) > n else p

    @cached_property
    def step(self) -> Callable[..., Step]:
        """One step, `step(t0, t1, start, hint=None)`, from y0 or, inside a solve, what the step before `handed` on."""
        f = self.f
        if f.stepper is not None:
            return partial(f.stepper, self)
        if self.carrying or f.jumps or f.one_sided:
            return self._step
        return partial(self.method.step, f.call)

    def _step(self, t0: Time, t1: Time, start: Tensor, hint: Tensor | None = None) -> Step:
        f = self.f.between(t0, t1)
        if self.carrying and not self.fresh(t0):
            return self.carrying.resume(f, t0, t1, start)
        return self.method.step(f, t0, t1, start, hint)

    @cached_property
    def handed(self) -> Callable[[Step], Tensor]:
        """What the step after this one starts from, `handed(step)`."""
        return attrgetter("y1") if self.carrying is None else self._handed

    def _handed(self, step: Step) -> Tensor:
        return step.y1 if self.fresh(step.t1) else cast("CarryingStep", step).carry

    @cached_property
    def continuous(self) -> bool:
        """Whether f at the end of a step is always f at the start of the next one."""
        f = self.f
        return not (f.jumps or f.one_sided or (f.effects is not None and f.effects.stateful))

    def reuses(self, t: Time) -> bool:
        """Whether f at the end of a step that ends at `t` is f at the start of the next one."""
        f = self.f
        stateful = f.effects is not None and f.effects.stateful
        return not (stateful or f.one_sided or (f.jumps and value(t) in f.jumps))

    def slope(self, t0: Time, t1: Time, y0: Tensor) -> Tensor:
        """f at the start of a step from t0 to t1."""
        return self.f.between(t0, t1)(t0, y0)

    def knowing(self, f0: Tensor | None) -> Problem:
        """The problem with f at its start, or without."""
        return replace(self, f=replace(self.f, f0=f0))

    def calling(self, f: VectorField) -> Problem:
        """The problem with another function to be called in place of f; what is known of f stays."""
        return replace(self, f=replace(self.f, call=f))


@dataclass
class Outcome:
    """What a gradient method hands back: the outputs that it reached, and why it stopped early, if it did.

    `ys` is `(len(ts), *y0.shape)`, `ts` are the output times that were reached: all, unless `failure` is set. `times`
    holds the boundaries of all accepted steps, `boundaries` the same as tensors where the steps had some; where the
    problem asked for dense output, `bases` holds their interpolants (see `Step.basis`). `carry` is what the method
    hands on at the end beside y, `(rows - 1, *y0.shape)`, if it does. Where `ys` are what `Problem.save` has made of
    the states, `end` is the last of those.
    """

    ys: Tensor
    ts: Times
    failure: SolverError | None = None
    times: Sequence[float] = ()
    bases: Sequence[Tensor] = ()
    boundaries: Sequence[Time] = ()
    carry: Tensor | None = None
    end: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The outputs and, behind them, what is carried: all that a backward pass gets a cotangent of at once."""
        if self.carry is None or self.end is not None:
            return self.ys
        return joined([self.ys, self.carry], self.ys[0])

    def ended(self, p: Problem) -> Problem:
        """The problem that the steps have solved: one that ends at the event, if an event ended them."""
        if self.failure is not None or self.ts.values[-1] == p.ts.values[-1]:
            return p
        end = self.ts.values[-1]
        control = p.control.within(p.ts.values[0], end)
        return replace(p, ts=p.ts.ending(len(self.ts) - 1, end), control=control, events=None)

    @property
    def replayed(self) -> Sequence[float]:
        """The boundaries of the steps that an output depends on: a loss cannot see those behind the last output."""
        if self.failure is None or self.bases:
            return self.times
        last = self.ts.sign * self.ts.values[-1]
        before = [t for t in self.times if self.ts.sign * t < last]
        return self.times[: len(before) + 1]
