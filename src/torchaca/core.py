"""The vocabulary of the library: what a problem, a step, a method, a control and a gradient are.

The loop yields accepted steps; a gradient method is what one does with them. A `Method` maps a state over one
step and nothing else, a `Control` decides where the steps end, a `Gradient` turns a problem into outputs that
autograd can differentiate. None of them knows another's inside.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, cast, runtime_checkable

from torch import Tensor

from .log import Log, Stats, Watcher
from .numbers import Time, value
from .times import Times

if TYPE_CHECKING:
    from .errors import SolverError
    from .field.effects import Effects
    from .field.field import Field
    from .field.inputs import Inputs
    from .trace import Trace

VectorField: TypeAlias = Callable[[Time, Tensor], Tensor]
"""`f(t, y) -> dy/dt` on packed states."""


class Step(Protocol):
    """One step of a method, from (t0, y0) to (t1, y1). What nobody asks for is never computed."""

    t0: Time
    t1: Time
    y0: Tensor
    y1: Tensor

    @property
    def error(self) -> Tensor:
        """The local error estimate, shape of `y1`; evaluates the stages it needs."""
        ...

    @property
    def f0(self) -> Tensor:
        """f(t0, y0), which this step evaluated or was given."""
        ...

    @property
    def known_f1(self) -> Tensor | None:
        """f(t1, y1) where it is already there at no cost, else None."""
        ...

    def give_f1(self, f1: Tensor) -> None:
        """Hand the step a value of f(t1, y1) that somebody else has evaluated."""
        ...

    def at(self, times: Sequence[Time]) -> Tensor:
        """The interpolant at `times` inside the step, `(len(times), *y0.shape)`."""
        ...

    def basis(self) -> Tensor:
        """`(m, *y0.shape)`: the interpolant is `method.basis_weights(theta) @ basis`."""
        ...


Stepper: TypeAlias = "Callable[[Problem, Time, Time, Tensor, Tensor | None], Step]"
"""The step of a problem's method, as `Method.step` makes it."""


class Method(Protocol):
    """A one-step method: a pure function of its inputs (same inputs, same bits)."""

    @property
    def name(self) -> str: ...
    @property
    def order(self) -> int: ...
    @property
    def adaptive(self) -> bool:
        """Whether `Step.error` exists."""
        ...

    @property
    def stages(self) -> int:
        """Evaluations of f in a step of its own."""
        ...

    def step(self, f: VectorField, t0: Time, t1: Time, y0: Tensor, f0: Tensor | None = None) -> Step:
        """One step; `f0` is f(t0, y0) if known and only saves work."""
        ...

    def basis_weights(self, theta: Tensor) -> Tensor:
        """`(n, m)` weights of `Step.basis` at t0 + theta (t1 - t0), for `theta` of shape `(n,)`, float64, CPU."""
        ...

    def f1_weights(self, t0: Time, t1: Time, times: Sequence[Time]) -> Tensor | None:
        """d at(times) / d f1 as `(len(times),)` numbers, where the interpolant is linear in f1 = f(t1, y1).

        None where it does not use f1, or not only linearly.
        """
        ...


class CarryingStep(Step, Protocol):
    """A step of a method that is `Carrying`."""

    carry: Tensor


@runtime_checkable
class Carrying(Method, Protocol):
    """A method whose steps hand on more than y1: a carry of shape `(rows, *y.shape)` with `carry[0]` = y1.

    Its `step` starts afresh; the loop goes on with `resume`, except after a jump of f.
    """

    @property
    def error_order(self) -> int:
        """The power of the step size with which `Step.error` falls; for other methods, that is their order."""
        ...

    def step(self, f: VectorField, t0: Time, t1: Time, y0: Tensor, f0: Tensor | None = None) -> CarryingStep:
        """One step from y0 alone; `f0` is f(t0, y0) if known and only saves work."""
        ...

    def units(self, h: float) -> tuple[float, ...]:
        """What turns each row of a carry into units of y, for a step of size h."""
        ...

    def lift(self, f: VectorField, t0: Time, y0: Tensor, f0: Tensor | None = None) -> Tensor:
        """The carry that a step from y0 alone starts from; `f0` is f(t0, y0) if known and only saves work."""
        ...

    def resume(self, f: VectorField, t0: Time, t1: Time, carry: Tensor) -> CarryingStep:
        """The step after the one that ended with `carry`."""
        ...


@runtime_checkable
class Reversible(Carrying, Protocol):
    """A method whose steps can be undone. `resume` and `undo` evaluate f at most once at any one time."""

    @property
    def growth(self) -> float:
        """The factor by which undoing a step of size zero amplifies an error; infinite where there is no inverse."""
        ...

    def undo(self, f: VectorField, t0: Time, t1: Time, carry: Tensor) -> Tensor:
        """The carry that the step from t0 to t1 which ended with `carry` started from."""
        ...


@dataclass(frozen=True)
class End:
    """How a loop ended: `reason` is "reached" if it got to the last output time.

    `dt` is the size that a next step would have, None if the control has no opinion.
    """

    reason: str
    dt: float | None = None


class Control(Protocol):
    """Decides where steps end. docs/adding-a-control.md says what a control may know beside this."""

    @property
    def adaptive(self) -> bool:
        """Whether steps depend on the solution and its error estimate, which the method has to have then."""
        ...

    def moves(self, p: Problem) -> Generator[Step, None, End]:
        """Yield the accepted steps of a problem, in order, the last one to the last output time.

        Raises
        ------
        SolverError
            If the solve cannot go on.
        """
        ...

    def boundaries(self, ts: Times, taken: Sequence[float]) -> Sequence[Time]:
        """Express the step times `taken` of a finished solve as differentiable functions of `ts`, if they are."""
        ...

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The tensors it holds that may be differentiated, such as a grid."""
        ...

    def with_tensors(self, tensors: Sequence[Tensor]) -> Control:
        """Exchange `tensors` for others of the same values."""
        ...

    def finer(self, taken: Sequence[float], rate: float) -> Control:
        """Make a control with smaller steps: about half of those that were `taken`.

        `rate` is how much smaller the local error is then, relative to the tolerance: 2^-order.
        """
        ...

    def within(self, start: float, end: float) -> Control:
        """Make the control of a stretch between two outputs, which may run backwards (for the adjoint)."""
        ...


def tolerant(control: Control) -> Any:
    """Return the control if it follows tolerances by `Adaptive`'s formulas (`rtol`, `atol`, `step_rule` ...), or None.

    Such a control can be searched on tensors as well: in lanes of vmap and in compiled loops.
    """
    return control if hasattr(control, "step_rule") else None


def _from(path: str) -> Any:
    """An attribute of an attribute, without a call in Python: some are read in every step."""
    return property(attrgetter(path))


@dataclass(frozen=True)
class Problem:
    """An initial value problem, ready to be solved: everything packed, checked and counted.

    `f` maps (time, packed state) to the packed derivative, counts its calls in `stats`, and holds what is known of it;
    `dense`: somebody wants the interpolants; `gradient` is the method that the caller asked for, None in problems that
    the library makes for itself.
    """

    f: Field
    y0: Tensor
    ts: Times
    method: Method
    control: Control
    dense: bool = False
    log: Log = field(default_factory=Log)
    gradient: Gradient | None = None

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
        return value(t) == self.ts.values[0] or value(t) in self.f.jumps

    @cached_property
    def step(self) -> Callable[..., Step]:
        """One step, `step(t0, t1, start, f0=None)`, from y0 or, inside a solve, what the step before `handed` on."""
        f = self.f
        if f.stepper is not None:
            return partial(f.stepper, self)
        if self.carrying or f.jumps or f.one_sided:
            return self._step
        return partial(self.method.step, f.call)

    def _step(self, t0: Time, t1: Time, start: Tensor, f0: Tensor | None = None) -> Step:
        f = self.f.between(t0, t1)
        if self.carrying and not self.fresh(t0):
            return self.carrying.resume(f, t0, t1, start)
        return self.method.step(f, t0, t1, start, f0)

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
    problem asked for dense output, `bases` holds their interpolants (see `Step.basis`).
    """

    ys: Tensor
    ts: Times
    failure: SolverError | None = None
    times: Sequence[float] = ()
    bases: Sequence[Tensor] = ()
    boundaries: Sequence[Time] = ()

    @property
    def replayed(self) -> Sequence[float]:
        """The boundaries of the steps that an output depends on: a loss cannot see those behind the last output."""
        if self.failure is None or self.bases:
            return self.times
        last = self.ts.sign * self.ts.values[-1]
        before = [t for t in self.times if self.ts.sign * t < last]
        return self.times[: len(before) + 1]


class Gradient(Protocol):
    """Solves a problem in a way that autograd can differentiate. Its facts may be left out; see `gradients.Facts`."""

    @property
    def name(self) -> str: ...

    def __call__(self, p: Problem, inputs: Inputs) -> Outcome:
        """Solve; `inputs` are the tensors that f depends on, beside y0 and the times."""
        ...
