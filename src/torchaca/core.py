"""The vocabulary of the library: what a problem, a step, a method, a control and a gradient are.

The loop yields accepted steps; a gradient method is what one does with them. A `Method` maps a state over one
step and nothing else, a `Control` decides where the steps end, a `Gradient` turns a problem into outputs that
autograd can differentiate. None of them knows another's inside.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, runtime_checkable

from torch import Tensor

from .numbers import Time, value

if TYPE_CHECKING:
    from .errors import SolverError
    from .field.effects import Effects
    from .field.inputs import Inputs
    from .trace import Trace

VectorField: TypeAlias = Callable[[Time, Tensor], Tensor]
"""`f(t, y) -> dy/dt` on packed states."""

Watcher: TypeAlias = Callable[[str, float, Tensor, float], None]
"""Called as `watch(event, t0, y0, dt)` with the events "trial", "accepted" and "rejected"."""


@dataclass
class Stats:
    """What a solve cost; the only mutable record of the library.

    Attributes
    ----------
    nfe : int
        Evaluations of f in the forward pass, rejected trials included.
    accepted, rejected : int
        Steps that became part of the solution, and trials that did not.
    nfe_backward : int
        Evaluations of f in backward passes so far (filled in by `backward()`).
    accepted_backward, rejected_backward : int
        Steps of the backward integration; only the continuous adjoint has one.
    reconstruction_error : float
        The largest relative difference between the states that the last backward pass reconstructed and those that the
        forward pass had kept; only the gradient "mali" reconstructs states.
    gradient_error : float or None
        The estimated relative error of the gradients, where `ACA(grad_rtol=...)` asked for it. What it took is in
        `nfe`; only the final steps are in `accepted`.
    """

    nfe: int = 0
    accepted: int = 0
    rejected: int = 0
    nfe_backward: int = 0
    accepted_backward: int = 0
    rejected_backward: int = 0
    reconstruction_error: float = 0.0
    gradient_error: float | None = None


@dataclass(frozen=True)
class Times:
    """The output times: host values that steer, and the tensor that carries their derivative, if wanted.

    `moving`: somebody differentiates with respect to them, also where a forward pass goes without the tensor.
    """

    values: tuple[float, ...]
    tensor: Tensor | None = None
    moving: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "moving", self.moving or self.tensor is not None)

    @cached_property
    def sign(self) -> float:
        """+1.0 where time increases from the first to the last value, else -1.0."""
        return -1.0 if self.values[-1] < self.values[0] else 1.0

    @cached_property
    def _ordered(self) -> list[float]:
        return [self.sign * t for t in self.values]

    @cached_property
    def _unbound(self) -> Sequence[Time]:
        return self.values if self.tensor is None else self.tensor.unbind()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> Time:
        return self._unbound[i]

    def up_to(self, t: float) -> int:
        """The number of output times that are at or before `t` in the direction of the solve."""
        return bisect_right(self._ordered, self.sign * t)

    def at_start(self) -> int:
        """The number of outputs that are the initial state.

        Where the times carry derivatives, only the first: one that shares its value moves along the solution.
        """
        if self.moving and self.values[0] != self.values[-1]:
            return 1
        return self.up_to(self.values[0])

    def first(self, n: int) -> Times:
        """The first `n` of them."""
        if n == len(self):
            return self
        return Times(self.values[:n], None if self.tensor is None else self.tensor[:n], moving=self.moving)

    def detached(self) -> Times:
        return Times(self.values, moving=self.moving) if self.tensor is not None else self


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


@dataclass(frozen=True)
class Problem:
    """An initial value problem, ready to be solved: everything packed, checked and counted.

    `f` maps (time, packed state) to the packed derivative and counts its calls in `stats`; `f0` is its first
    evaluation where the door has made it already. At the times in `jumps` f may jump: steps next to one
    evaluate f strictly on their own side (`one_sided`: all steps do). `source` is the user's function and
    `locate` names a flat component of the state, for messages. `effects` is what evaluations of f leave behind.
    `trace` is told of every step of the backward pass. `stepper` makes the steps in place of the method.
    """

    f: VectorField
    y0: Tensor
    ts: Times
    method: Method
    control: Control
    stats: Stats = field(default_factory=Stats)
    f0: Tensor | None = None
    jumps: frozenset[float] = frozenset()
    one_sided: bool = False
    watch: Watcher | None = None
    dense: bool = False
    source: Callable[..., Any] | None = None
    locate: Callable[[int], str] = "component {}".format
    effects: Effects | None = None
    trace: Trace | None = None
    stepper: Stepper | None = None

    def side(self, t0: Time, t1: Time) -> tuple[bool, bool]:
        """Whether f has to be evaluated strictly inside the step at its start, and at its end."""
        if not self.jumps:
            return self.one_sided, self.one_sided
        return self.one_sided or value(t0) in self.jumps, self.one_sided or value(t1) in self.jumps

    def between(self, t0: Time, t1: Time) -> VectorField:
        """The f of the step from t0 to t1: on the right side of jumps."""
        if not (self.jumps or self.one_sided):
            return self.f
        return inside(self.f, t0, t1, *self.side(t0, t1))

    @cached_property
    def carrying(self) -> Carrying | None:
        """The method, if its steps hand on more than y1."""
        # Told by one member: a look at the whole protocol takes as long as a cheap evaluation of f.
        return cast("Carrying", self.method) if hasattr(self.method, "resume") else None

    def fresh(self, t: Time) -> bool:
        """Whether the step at `t` starts from y alone, whatever the method carries: first of all, or after a jump."""
        return value(t) == self.ts.values[0] or value(t) in self.jumps

    def step(self, t0: Time, t1: Time, start: Tensor, f0: Tensor | None = None) -> Step:
        """One step of the method from `start`: y0 or, inside a solve, what the step before `handed` on."""
        if self.stepper is not None:
            return self.stepper(self, t0, t1, start, f0)
        f = self.between(t0, t1)
        if self.carrying and not self.fresh(t0):
            return self.carrying.resume(f, t0, t1, start)
        return self.method.step(f, t0, t1, start, f0)

    def handed(self, step: Step) -> Tensor:
        """What the step after this one starts from."""
        if self.carrying is None or self.fresh(step.t1):
            return step.y1
        return cast("CarryingStep", step).carry

    def slope(self, t0: Time, t1: Time, y0: Tensor) -> Tensor:
        """f at the start of a step from t0 to t1."""
        return self.between(t0, t1)(t0, y0)

    def aside(self) -> AbstractContextManager[None]:
        """Around evaluations that outputs alone need: a stateful f, evaluated anew in the next step, forgets them."""
        return self.effects.undone() if self.effects and self.effects.stateful else nullcontext()

    def reuses(self, t: Time) -> bool:
        """Whether f at the end of a step that ends at `t` is f at the start of the next one."""
        stateful = self.effects is not None and self.effects.stateful
        return not (stateful or self.one_sided or (self.jumps and value(t) in self.jumps))


def inside(f: VectorField, t0: Time, t1: Time, start: bool, end: bool) -> VectorField:
    """`f` evaluated just after `t0` (if `start`) and just before `t1` (if `end`), never at them.

    The shift is one representable time of the state's precision, made where time becomes a tensor: a packed f
    takes `nudge`, the direction to shift in.
    """

    def shifted(t: Time, y: Tensor) -> Tensor:
        nudge: Callable[..., Tensor] = f
        if start and t is t0:
            return nudge(t, y, nudge=t1)
        if end and t is t1:
            return nudge(t, y, nudge=t0)
        return f(t, y)

    return shifted


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
