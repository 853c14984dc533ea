"""f as the solver sees it: a function of (time, packed state), and all that is known of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core import VectorField
from ..numbers import Time, value
from .effects import Effects

if TYPE_CHECKING:
    from ..core import Stepper
    from .inputs import Inputs


@dataclass(frozen=True)
class Field:
    """A vector field and the facts about it.

    Attributes
    ----------
    call : callable
        `call(t, y)` -> dy/dt on packed states: `Dynamics`, or what stands in its place in a replay. One that may be
        evaluated on one side of a time takes `nudge` as well.
    jumps : frozenset of float
        The times at which f may jump: steps next to one evaluate f strictly on their own side.
    one_sided : bool
        All steps do.
    batch : int
        So many leading dimensions of the state are independent problems.
    declared : tuple of Tensor
        Tensors that get a gradient whether f uses them or not; `declared_alone`: and no captured tensor does.
    f0 : Tensor or None
        f at the start, where it has been evaluated there.
    effects : Effects or None
        What an evaluation leaves behind.
    inputs : Inputs or None
        The tensors that f depends on, as the first evaluation has shown; None if autograd records them itself.
    source : callable or None
        The user's function, for messages.
    locate : callable
        Names a flat component of the state, for messages.
    stepper : callable or None
        Makes the steps in place of the method; one with `repeatable` makes steps with more than one derivative.
    """

    call: VectorField
    jumps: frozenset[float] = frozenset()
    one_sided: bool = False
    batch: int = 0
    declared: tuple[Tensor, ...] = ()
    declared_alone: bool = False
    f0: Tensor | None = None
    effects: Effects | None = None
    inputs: Inputs | None = None
    source: Callable[..., Any] | None = None
    locate: Callable[[int], str] = "component {}".format
    stepper: Stepper | None = None

    def __call__(self, t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        call: Any = self.call
        return call(t, y) if nudge is None else call(t, y, nudge=nudge)

    @cached_property
    def args(self) -> tuple[Any, ...]:
        """The further arguments of the user's function."""
        return getattr(self.call, "args", ())

    def side(self, t0: Time, t1: Time) -> tuple[bool, bool]:
        """Whether f has to be evaluated strictly inside a step from t0 to t1 at its start, and at its end."""
        if not self.jumps:
            return self.one_sided, self.one_sided
        return self.one_sided or value(t0) in self.jumps, self.one_sided or value(t1) in self.jumps

    def between(self, t0: Time, t1: Time) -> VectorField:
        """The f of the step from t0 to t1: on the right side of jumps."""
        if not (self.jumps or self.one_sided):
            return self.call
        return inside(self.call, t0, t1, *self.side(t0, t1))

    def undone(self) -> AbstractContextManager[None]:
        """Whatever f leaves behind inside is undone at the end."""
        return self.effects.undone() if self.effects else nullcontext()

    def aside(self) -> AbstractContextManager[None]:
        """Around evaluations that outputs alone need: a stateful f, evaluated anew in the next step, forgets them."""
        return self.undone() if self.effects and self.effects.stateful else nullcontext()

    def with_tensors(self, swap: dict[int, Tensor]) -> Field:
        """The field with tensors in the arguments of f exchanged, by id (for a replay's own leaves, say)."""
        own: Any = self.call
        return replace(self, call=own.with_tensors(swap)) if hasattr(own, "with_tensors") and swap else self

    def fewer(self, index: Tensor) -> Field:
        """The field of some samples of a batch."""
        own: Any = self.call
        return replace(self, call=own.fewer(index))

    def repeatable(self) -> Field:
        """The field whose steps may be differentiated several times: without those that allow it only once."""
        return self if getattr(self.stepper, "repeatable", False) else replace(self, stepper=None)


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
