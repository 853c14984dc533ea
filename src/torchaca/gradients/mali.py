"""Reversible backpropagation: undo one step at a time, so that the forward pass keeps no states.

Zhuang, Dvornek, Tatikonda, Duncan, "MALI: A memory efficient and reverse accurate integrator for Neural ODEs", ICLR
2021. As ACA, the backward pass goes over the accepted steps from the last to the first and differentiates each; but the
state that a step started from is computed from the one it ended with, by the method's algebraic inverse. The result is
the exact gradient of the computed solution, up to rounding, which the inverse may amplify.

So a few states are kept after all, however many steps there are: the reconstruction is compared with each of them and
starts anew from it. The largest difference is reported, and too large a one is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from ..core import Outcome, Problem, Reversible, Step
from ..errors import SolverError
from ..field.inputs import Inputs
from ..numbers import value
from .checkpoints import Shelf, limit_of
from .evaluations import Evaluations
from .passes import solve_with
from .store import Replayed
from .sweep import Replay

if TYPE_CHECKING:
    from ..core import CarryingStep

SECOND = (
    "second derivatives through gradient='mali' are not available: use gradient='aca' (exact, a state a step) or "
    "'direct'"
)


@dataclass(frozen=True)
class MALI:
    """Reversible backpropagation (Zhuang et al. 2021): the memory of a few states, whatever the number of steps.

    Needs a reversible method: "alf" or "reversible_heun".

    Parameters
    ----------
    anchors : int
        The reconstruction is checked against this many states at most, evenly spaced over the steps, and starts anew
        at each. States before a jump of f are kept in addition.
    tolerance : float, optional
        The backward pass raises `SolverError` where a reconstructed state differs from the kept one by more than this
        part of its size. By default the square root of the dtype's resolution: 1.5e-8 in float64, 3.5e-4 in float32.
        What it was is in `Solution.stats.reconstruction_error`.

    Raises
    ------
    ValueError
        In the solve: for a method that cannot be reversed, and for an f that draws random numbers.
    """

    exact: ClassVar[bool] = True
    records: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    saves: ClassVar[bool] = True

    anchors: int = 8
    tolerance: float | None = None
    name: str = "mali"

    def __post_init__(self) -> None:
        if not (isinstance(self.anchors, int) and self.anchors >= 1):
            raise ValueError(f"anchors is a number of states of at least 1, got {self.anchors!r}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance must be greater than 0, got {self.tolerance!r}")

    def __call__(self, p: Problem, inputs: Inputs) -> Outcome:
        """Solve without a graph, keeping the times of the steps; see `torchaca.core.Gradient`."""
        method = reversible(p)
        if p.effects and p.effects.stateful:
            raise ValueError(
                "f draws random numbers (Dropout?) or reads buffers that it changes, and would do so anew where a step "
                "is undone: use gradient='aca', which replays the same ones, or model.eval()"
            )
        return solve_with(Replayed(p, inputs, Reconstructed(p, method, self), no_second=SECOND))

    def check(self, p: Problem) -> None:
        """Refuse a method whose steps cannot be undone; see `torchaca.gradients.check_problem`."""
        reversible(p)


def reversible(p: Problem) -> Reversible:
    """The problem's method, if its steps can be undone.

    Raises
    ------
    ValueError
    """
    method = p.method
    if not isinstance(method, Reversible):
        raise ValueError(
            "gradient 'mali' needs a reversible method: try method='alf' or 'reversible_heun'; or gradient='aca'"
        )
    if math.isinf(method.growth):
        raise ValueError(
            f"gradient 'mali' cannot undo {method!r}, which forgets what it carried: try eta=1; or gradient='aca'"
        )
    return method


class Reconstructed:
    """The store of `mali`: a few carries, from which the others are reconstructed by undoing steps.

    A carry is numbered by the step that starts from it. Kept are anchors, those before jumps, and the last one.
    """

    def __init__(self, p: Problem, method: Reversible, settings: MALI) -> None:
        self.p, self.method, self.settings = p, method, settings
        self.shelf = Shelf[Tensor](limit_of(settings.anchors))
        self.before_jumps: dict[int, Tensor] = {}
        self.last: tuple[int, Tensor] | None = None
        self.last_with_output: tuple[int, Tensor] | None = None
        self.outputs = p.ts.at_start()
        self.kept: Sequence[int] = ()

    def keep(self, n: int, start: Tensor, step: Step) -> None:
        """See `Store`."""
        carry = cast("CarryingStep", step).carry
        self.shelf.put(n + 1, carry)
        if self.p.fresh(step.t1):
            self.before_jumps[n + 1] = carry
        self.last = n + 1, carry
        if (outputs := self.p.ts.up_to(value(step.t1))) > self.outputs:
            self.outputs, self.last_with_output = outputs, self.last

    def tensors(self, n_steps: int) -> list[Tensor]:
        """Hand over the carries of the first `n_steps` steps, the one that the last of them ended with among them."""
        kept = {n: x for n, x in {**self.shelf.states, **self.before_jumps}.items() if n < n_steps}
        ends = dict(end for end in (self.last, self.last_with_output) if end is not None)
        kept.update((n, x) for n, x in ends.items() if n == n_steps)
        self.kept, carries = sorted(kept), kept
        self.shelf, self.before_jumps = Shelf(limit_of(1)), {}
        self.last = self.last_with_output = None
        return [carries[n] for n in self.kept]

    def reversed(self, kept: Sequence[Tensor], replay: Replay) -> Iterator[tuple[int, Tensor]]:
        """Undo step by step; see `Store`."""
        undoing = Undoing(self.method, self.settings, dict(zip(self.kept, kept, strict=True)), replay)
        for n in reversed(range(replay.n_steps)):
            yield n, undoing.start_of(n)


class Undoing:
    """Undoes step by step. `end` is what the step that is undone next ended with."""

    def __init__(
        self, method: Reversible, settings: MALI, carries: dict[int, Tensor], replay: Replay
    ) -> None:
        self.method, self.settings, self.carries = method, settings, carries
        self.times, self.stats = replay.times, replay.p.stats
        timed = any(isinstance(t, Tensor) for t in replay.boundaries) or bool(getattr(method, "tensors", ()))
        self.f = Evaluations(replay.p.f, replay.inputs, replay.parts, timed)
        replay.evaluate(self.f)
        replay.drift = None  # starts are compared here
        self.p = replay.plain
        # A solution that is not finite says so itself.
        self.finite = all(bool(torch.isfinite(carry).all()) for carry in carries.values())
        dtype = self.p.y0.dtype.to_real()
        self.tolerance = settings.tolerance or torch.finfo(dtype).eps ** 0.5
        self.worst = 0.0
        self.end = carries.get(replay.n_steps, self.p.y0)

    def start_of(self, n: int) -> Tensor:
        """Reconstruct where step n started: a carry, or y if it started afresh."""
        t0, t1 = self.times[n : n + 2]
        f = self.p.between(t0, t1)
        self.f.forget_all_but(t1)
        with torch.no_grad():
            known, start = self.carries.get(n), None
            if self.p.fresh(t0):
                start = self.p.y0 if known is None else known[0]
                known = self.method.lift(f, t0, start)
            found = self.method.undo(f, t0, t1, self.end)
        if known is not None:
            self._compare(n, found, known)
        self.end = self.carries.get(n, found)
        return self.end if start is None else start

    def _compare(self, n: int, found: Tensor, known: Tensor) -> None:
        """Note how far the reconstruction is from what the forward pass had there.

        Raises
        ------
        SolverError
            Where that is too far.
        """
        t0, t1 = self.times[n : n + 2]
        units = self.method.units(t1 - t0)
        off, size = (
            torch.stack([u * torch.linalg.vector_norm(x) for u, x in zip(units, carry, strict=True)])
            .max()
            .item()
            for carry in (found - known, known)
        )
        error = off / max(size, torch.finfo(known.dtype).tiny)
        self.worst = self.stats.reconstruction_error = max(self.worst, error)
        if error <= self.tolerance or not self.finite:
            return
        growth, place = self.method.growth, getattr(self.method, "place", None)
        where = f"t = {t0:.10g}" if place is None else place(t0)
        cause = (
            f"{self.method!r} amplifies every rounding error {growth:.3g}-fold a step that it undoes"
            if growth > 1
            else "where the solution contracts, undoing it expands every rounding error (or f reads something that was "
            "changed after the forward pass)"
        )
        raise SolverError(
            "reconstruction",
            f"the state at {where}, reconstructed from later ones, is off by {error:.1e} of its size, "
            f"more than the tolerance of {self.tolerance:.1e}: {cause}.\n  try: gradient='aca' (the same gradient, one "
            "state a step), MALI(anchors=...) with more states, a float64 state, or a larger MALI(tolerance=...)",
            t=t0,
            dt=t1 - t0,
            stats=self.stats,
            backward=True,
        )
