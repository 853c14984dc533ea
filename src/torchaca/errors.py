"""What can go wrong in the numbers, said so that a person can act on it.

Errors at the door (wrong shapes, names, dtypes) are `ValueError` and `TypeError`; what goes wrong while solving is
a `SolverError` with a `kind`.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .log import Stats

if TYPE_CHECKING:
    from .solution import Solution

__all__ = ["KINDS", "GradientWarning", "SolverError"]

OURS = ("torchaca", "torch_ACA")

NEAR = 0.6
"""How much two words have in common that may be meant for each other, as difflib measures it."""

KINDS = {
    "y0": "the initial state is not finite",
    "parameter": "a parameter of f is not finite",
    "f": "f is not finite at a finite (t, y)",
    "random": "f is not a function: two calls at one (t, y) differ",
    "tolerance": "the tolerance is below what the dtype can resolve",
    "jump": "f jumps",
    "blow-up": "the solution leaves to infinity",
    "stiff": "the step size is limited by stability, not by accuracy",
    "step-size": "the step size fell below what time can resolve",
    "dt-min": "the step size fell below dt_min",
    "gradient": "a gradient became nan or inf in the backward pass (seen with debug=True)",
    "max-steps": "max_steps trials were not enough",
    "reconstruction": "undoing the steps did not lead back to where they started",
    "gradient-error": "the gradients are less accurate than grad_rtol",
    "event": "g of an event is not finite",
    "grazing": "an event only grazes zero: its time has no derivative",
    "zeno": "events follow each other in ever shorter intervals",
}


class SolverError(RuntimeError):
    """The solve stopped before its last time.

    Attributes
    ----------
    kind : str
        One of `torchaca.errors.KINDS`.
    t, dt : float
        Where it stopped, and the step size it tried there.
    stats : Stats
        What the solve cost up to there.
    backward : bool
        True when the solve that stopped was the backward integration of a gradient.
    partial : Solution or None
        The valid outputs: `partial.ts` and `partial.ys` hold the times that were reached.
    """

    def __init__(
        self, kind: str, message: str, *, t: float, dt: float, stats: Stats, backward: bool = False
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.t = t
        self.dt = dt
        self.stats = stats
        self.backward = backward
        self.reached: Callable[[SolverError], Solution] | None = None

    @property
    def partial(self) -> Solution | None:
        # Made when asked for: a solution knows its failure, and kept here the two would keep each other alive.
        return self.reached(self) if self.reached is not None else None

    def __reduce__(self) -> Any:
        keywords = {"t": self.t, "dt": self.dt, "stats": self.stats, "backward": self.backward}
        return partial(type(self), **keywords), (self.kind, self.args[0]), {"reached": self.reached}

    def __str__(self) -> str:
        where = "backward pass" if self.backward else "forward pass"
        return f"SolverError[{self.kind}] in the {where}: {super().__str__()}"


class GradientWarning(UserWarning):
    """The solution is right as far as its error estimate tells, and its gradient is not.

    A category of its own, for `warnings.filterwarnings("error", category=torchaca.errors.GradientWarning)`.
    """


def warn(message: str, category: type[Warning] = UserWarning, passing: Sequence[str] = OURS) -> None:
    """A warning that points at the line which called torchaca, behind all frames of the packages in `passing`."""
    level, frame = 1, sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).split(".")[0] in passing:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'rtol'?"` where a known word is near, the first of those that are, else the list of all."""
    names = sorted(known)

    def likeness(name: str) -> tuple[float, ...]:
        pairs = (name.lower(), word.lower()), (name, word)
        return tuple(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    if names and likeness(best := max(names, key=likeness))[0] >= NEAR:
        return f" Did you mean {best!r}?"
    return f" Known: {', '.join(names)}."


def shorten(value: Any, limit: int = 60) -> str:
    """`repr(value)` cut to `limit` characters, for messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
