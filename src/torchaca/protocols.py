"""What a step, a method, a control and a gradient are: protocols, which anybody's may fit."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from .numbers import Time
from .times import Times

if TYPE_CHECKING:
    from .core import Outcome, Problem
    from .field.inputs import Inputs

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
    def hint(self) -> Tensor | None:
        """What this step offers to the next one, so that it saves work.

        For an explicit method f(t1, y1), if that is there at no cost, else None. A replay, which goes from the last
        step to the first, sets it: the value is known then.
        """
        ...

    @hint.setter
    def hint(self, f1: Tensor | None) -> None: ...

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

    def step(self, f: VectorField, t0: Time, t1: Time, y0: Tensor, hint: Tensor | None = None) -> Step:
        """One step.

        `hint` is what the step before offers, or f(t0, y0): it only saves work, and never changes the result.
        """
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

    def step(
        self, f: VectorField, t0: Time, t1: Time, y0: Tensor, hint: Tensor | None = None
    ) -> CarryingStep:
        """One step from y0 alone; `hint` is f(t0, y0) if known and only saves work."""
        ...

    def units(self, h: float) -> tuple[float, ...]:
        """What turns each row of a carry into units of y, for a step of size h."""
        ...

    def lift(self, f: VectorField, t0: Time, y0: Tensor, hint: Tensor | None = None) -> Tensor:
        """The carry that a step from y0 alone starts from; `hint` is f(t0, y0) if known and only saves work."""
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
        """The tensors it holds that may be differentiated, such as a grid, or the times of jumps."""
        ...

    def with_tensors(self, tensors: Sequence[Tensor]) -> Control:
        """Exchange `tensors` for others of the same values."""
        ...

    def within(self, start: float, end: float) -> Control:
        """Make the control of a stretch between two outputs, which may run backwards (for the adjoint)."""
        ...


class Watching(Protocol):
    """Watches the accepted steps of a problem for events."""

    def over(self, p: Problem, moves: Generator[Step, None, End]) -> Generator[Step, None, End]:
        """Pass the steps on, up to the first event: the last one ends there, before the last output time."""
        ...


def tolerant(control: Control) -> Any:
    """Return the control if it follows tolerances by `Adaptive`'s formulas (`rtol`, `atol`, `step_rule` ...), or None.

    Such a control can be searched on tensors as well: in lanes of vmap and in compiled loops.
    """
    return control if hasattr(control, "step_rule") else None


class Gradient(Protocol):
    """Solves a problem in a way that autograd can differentiate. Its facts may be left out; see `gradients.Facts`."""

    @property
    def name(self) -> str: ...

    def __call__(self, p: Problem, inputs: Inputs) -> Outcome:
        """Solve; `inputs` are the tensors that f depends on, beside y0 and the times."""
        ...
