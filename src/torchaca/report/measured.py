"""The passes of one gradient on the model, and the exact gradient on the steps that it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core import Gradient
from .memory import SavedTensors
from .model import Grads, Model, Pass, differentiate


class Exact:
    """The exact gradient of a computed solution: `direct` on its steps."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known: dict[tuple[float, ...], Pass] = {}

    def on_its_own_steps(self) -> Pass:
        """`direct` as the options have it."""
        done = differentiate(self.model, "direct")
        self.known[done.steps] = done
        return done

    def on(self, steps: tuple[float, ...]) -> Grads:
        """`direct` on given steps."""
        if steps not in self.known:
            method = self.model.options.get("method", "dopri5")
            self.known[steps] = differentiate(self.model, "direct", {"method": method, "grid": list(steps)})
        return self.known[steps].grads


@dataclass(frozen=True)
class Measured:
    """The passes of one gradient, the exact one on its steps, and the most that autograd held."""

    first: Pass
    timed: Sequence[Pass]
    exact: Grads
    peak: int


def measured_with(model: Model, gradient: Gradient, exact: Exact, repeats: int) -> Measured | str:
    """One gradient measured, or why it cannot be."""
    try:
        with SavedTensors(besides=[*model.reached, *model.inputs.values()]) as saved:
            first = differentiate(model, gradient)
        timed = [differentiate(model, gradient) for _ in range(repeats)]
        return Measured(first, timed, exact.on(first.steps), saved.peak)
    except (RuntimeError, ValueError, TypeError) as error:
        return str(error)
