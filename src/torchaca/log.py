"""What is noted of a solve: its costs, and who is told of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .trace import Trace

Watcher: TypeAlias = Callable[[str, float, Tensor, float], None]
"""Called as `watch(event, t0, y0, dt)` with the events "trial", "accepted" and "rejected"."""


REMEDIES = {
    "steps too long for the derivative": "ACA(grad_rtol=1e-2) or ACA(substeps=2)",
    "trajectory": "rtol / 32",
    "outputs": "a smaller rtol",
}
"""The parts of a gradient's error, and what makes each of them smaller."""


class GradientError(float):
    """The estimated relative error of a gradient: a number, the sum of its `parts`.

    Attributes
    ----------
    parts : dict
        "steps too long for the derivative": an accepted step is short enough for y, not always for the derivative of
        its end with respect to its start. "trajectory": the steps are differentiated along states that are off.
        "outputs": the loss is differentiated at outputs that are off.
    """

    __slots__ = ("parts",)
    parts: dict[str, float]

    def __new__(cls, steps: float, trajectory: float = 0.0, outputs: float = 0.0) -> GradientError:
        """Add up the parts, in the order of `REMEDIES`."""
        error = super().__new__(cls, steps + trajectory + outputs)
        error.parts = dict(zip(REMEDIES, (steps, trajectory, outputs), strict=True))
        return error

    def __reduce__(self) -> Any:
        return GradientError, tuple(self.parts.values())

    @property
    def largest(self) -> str:
        """The name of the largest part."""
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def remedy(self) -> str:
        """What makes the largest part smaller."""
        return REMEDIES[self.largest]


@dataclass(frozen=True)
class Samples:
    """What each sample of a batch cost.

    Attributes
    ----------
    accepted, rejected : Tensor
        `(B,)`, steps that became part of its solution, and trials that did not.
    """

    accepted: Tensor
    rejected: Tensor

    @staticmethod
    def none(size: int) -> Samples:
        """Nothing, for so many samples."""
        none = torch.zeros(size, dtype=torch.int64, device="cpu")
        return Samples(none, none.clone())


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
    samples : Samples or None
        With `batch=1`: the steps of each sample. `nfe` counts calls on the batch, and `accepted` and `rejected` are
        those of the samples that have most of them.
    gradient_error : GradientError or None
        The estimated relative error of the gradients of the last backward pass, where `ACA(grad_rtol=...)` asked for
        it: a number, whose parts say where it comes from. None before `backward()`. What it took is in `nfe` and
        `nfe_backward`; only the steps of the outputs are in `accepted`.
    executor : str
        Who solved it, by its name in `torchaca.executors.EXECUTORS`; "eager" is the loop in Python.
    passed_over : dict of str to str
        Who was asked before it, and why it could not.
    stepwise : str
        Of a native solve: why its loop is in Python, and its steps alone are native; with `batch=1`, for what the steps
        that were found in C are made again in Python; empty if all of it is in C. None of these three counts where two
        costs are compared.
    """

    nfe: int = 0
    accepted: int = 0
    rejected: int = 0
    nfe_backward: int = 0
    accepted_backward: int = 0
    rejected_backward: int = 0
    reconstruction_error: float = 0.0
    gradient_error: GradientError | None = None
    samples: Samples | None = field(default=None, compare=False)
    executor: str = field(default="", compare=False)
    passed_over: dict[str, str] = field(default_factory=dict, compare=False)
    stepwise: str = field(default="", compare=False)


SMALL = 10.0  # tolerances: a smaller state is not resolved to a tenth itself


@dataclass
class Rests:
    """What an adaptive solve notes of its steps whose error says nothing; see `loops.rest`.

    Attributes
    ----------
    ratios : dict
        By the time at which such a step starts, its error ratio.
    start : float
        The norm of y0 in units of its tolerances; infinite if nobody has found that out.
    """

    ratios: dict[float, float] = field(default_factory=dict)
    start: float = math.inf

    @property
    def small(self) -> bool:
        """Whether y0 is so small that its tolerances say nothing of it."""
        return self.start <= SMALL


@dataclass
class Pace:
    """What a search goes on with behind its last accepted step: noted by one, and where the next one starts from.

    Attributes
    ----------
    dt : float, 0-dim Tensor or None
        The size of the next trial, before a stop cuts it; None if nobody has proposed one.
    ratios : sequence of float or Tensor
        The error ratios of the last accepted steps, the newest first, at most two.
    slope : Slope or None
        What is known of df/dy; see `loops.rest`.
    before : Tensor or None
        Where the last step started, if nobody has found out yet whether the state was at rest there.
    """

    dt: Any = None
    ratios: tuple[Any, ...] = ()
    slope: Any = None
    before: Tensor | None = None


@dataclass
class Held:
    """How many bytes the graphs take that a solve has recorded by the choice of its gradient, of all its stretches."""

    nbytes: int = 0


@dataclass(frozen=True)
class Log:
    """What is noted of a solve, and who is told.

    `watch` is called at every trial; `trace` is told of every step of the backward pass; `on_failure` is the option of
    `torchaca.solve`: of lanes of vmap, one that fails raises for all, or fails alone. `rests` is what gradients look at
    after a solve, `pace` what another one can go on with; `held` belongs to a gradient that records within a budget.
    """

    stats: Stats = field(default_factory=Stats)
    watch: Watcher | None = None
    trace: Trace | None = None
    on_failure: str = "raise"
    rests: Rests = field(default_factory=Rests)
    pace: Pace = field(default_factory=Pace)
    held: Held = field(default_factory=Held)
