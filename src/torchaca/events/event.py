"""What a user says of an event, and gets back of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..dense import detached
from ..errors import shorten


@dataclass(frozen=True, eq=False)
class Event:
    """Something happens where `g(t, y)` crosses zero.

    Parameters
    ----------
    g : callable
        `g(t, y, *args)` returns a real 0-dim tensor; it gets t, y and `args` as f does. Differentiable in y and t where
        a derivative of the event is wanted. Tensors that it captures get their gradients, as those of f do.
    terminal : bool
        The solve ends at the first crossing.
    direction : {0, 1, -1}
        Which crossings count: all, rising ones in the direction of the solve, or falling ones.
    apply : callable, optional
        `apply(t, y, *args)` returns the state from which the solve goes on, in the structure, shapes and dtypes of y.
        With `batch=1` both get the whole batch: g returns one number for each sample, `(B,)` or `(B, 1, ..., 1)`, and
        of what apply returns the samples are taken at which the event happens.

    Notes
    -----
    An event that is zero at t[0], or right after a jump of its own, counts only after it has left zero. An event that
    neither ends the solve nor has an `apply` is noted, and the loop starts afresh there all the same.

    Examples
    --------
    >>> ground = Event(lambda t, y: y[0], direction=-1, apply=lambda t, y: y * torch.tensor([0.0, -0.8]))
    """

    g: Callable[..., Any]
    terminal: bool = False
    direction: int = 0
    apply: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.g) or isinstance(self.g, type):
            raise TypeError(f"Event(g=) is a function g(t, y) that changes sign, got {shorten(self.g)}")
        if self.direction not in (-1, 0, 1):
            raise ValueError(
                f"Event(direction=) is 1 (rising), -1 (falling) or 0 (both), got {self.direction!r}"
            )
        if self.apply is not None and (not callable(self.apply) or isinstance(self.apply, type)):
            raise TypeError(
                f"Event(apply=) is a function apply(t, y) that returns the new state, got {shorten(self.apply)}"
            )
        if self.terminal and self.apply is not None:
            raise ValueError(
                "Event(terminal=True) ends the solve, so that apply= would have no effect: drop one of them, or apply "
                "the jump to sol.ys[-1] yourself"
            )


@dataclass(frozen=True)
class Occurrences:
    """When an event happened, and where.

    Attributes
    ----------
    t : Tensor
        `(k,)`, the times, differentiable.
    y : Tensor or nested tensors
        `(k, *y0.shape)` in the structure of y0: the states just before, differentiable.
    terminal : bool
        Whether the event ends the solve.
    count : Tensor or None
        With `batch=1`: `(B,)`, how often it happened to each sample. `t` is `(k, B)`, padded with nan, and `y` is
        `(k, B, ...)`, padded with the samples' last states.
    """

    t: Tensor
    y: Any
    terminal: bool = False
    count: Tensor | None = None

    def detached(self) -> Occurrences:
        """The values; a graph belongs to the original alone."""
        return replace(self, t=self.t.detach().clone(), y=detached(self.y))


def events_of(given: Event | Sequence[Event]) -> tuple[Event, ...]:
    """The events as they were given: one or a list.

    Raises
    ------
    TypeError
        If they are none.
    """
    several: tuple[Any, ...] = tuple(given) if isinstance(given, list | tuple) else (given,)
    for event in several:
        if not isinstance(event, Event):
            raise TypeError(f"events is an aca.Event or a list of them, got {shorten(event)}")
    return several
