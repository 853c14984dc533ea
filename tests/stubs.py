"""Pieces that do what they are told, to test the loop alone, and counters for what a solve does.

`ScriptedMethod` takes Euler steps whose error estimates are written down beforehand; `ScriptedControl` changes the
step size by factors that are written down beforehand. Both keep a record of how they were called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchaca.control import Adaptive
from torchaca.core import Carrying, Problem, Times
from torchaca.field.field import Field
from torchaca.numbers import Numbers, Time


class ScriptedStep:
    """One step of `ScriptedMethod`: y1 = y0 + h f0, and the error it was told."""

    def __init__(
        self, method: ScriptedMethod, f: Callable, t0: Time, t1: Time, y0: Tensor, f0: Tensor | None
    ):
        self.method, self.t0, self.t1, self.y0 = method, t0, t1, y0
        self._f, self._f1 = f, None
        self.f0 = f(t0, y0) if f0 is None else f0
        self.y1 = y0 + float(t1 - t0) * self.f0
        self._error = method.next_error()

    @property
    def error(self) -> Tensor:
        if self.method.fsal:
            self._f1 = self._f(self.t1, self.y1)
        return torch.full_like(self.y0, self._error)

    @property
    def hint(self) -> Tensor | None:
        return self._f1

    @hint.setter
    def hint(self, f1: Tensor | None) -> None:
        self._f1 = f1

    def at(self, times: Sequence[Time]) -> Tensor:
        return torch.stack([self.y0 + float(t - self.t0) * self.f0 for t in times])

    def basis(self) -> Tensor:
        return torch.stack([self.y0, float(self.t1 - self.t0) * self.f0])


@dataclass
class ScriptedMethod:
    """A method whose successive trials report `errors`, the last one for ever. `trials` are the steps it made."""

    errors: Sequence[float] = (0.5,)
    order: int = 1
    fsal: bool = True
    name: str = "scripted"
    adaptive: bool = True
    trials: list[ScriptedStep] = field(default_factory=list)
    given_f0: list[bool] = field(default_factory=list)

    def next_error(self) -> float:
        return self.errors[min(len(self.trials), len(self.errors) - 1)]

    def step(self, f: Callable, t0: Time, t1: Time, y0: Tensor, hint: Tensor | None = None) -> ScriptedStep:
        step = ScriptedStep(self, f, t0, t1, y0, hint)
        self.trials.append(step)
        self.given_f0.append(hint is not None)
        return step

    def basis_weights(self, theta: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(theta), theta], 1)

    def f1_weights(self, t0: Time, t1: Time, times: Sequence[Time]) -> None:
        return None

    @property
    def spans(self) -> list[tuple[float, float]]:
        """Start and end of every trial."""
        return [(float(step.t0), float(step.t1)) for step in self.trials]

    @property
    def sizes(self) -> list[float]:
        return [abs(t1 - t0) for t0, t1 in self.spans]


@dataclass
class ScriptedControl:
    """An adaptive control: the error itself is the ratio, the step grows by `grow` or is halved.

    `asked` holds what the loop told it: the ratios, and whether the step followed a rejection.
    """

    dt0: float | None = 0.25
    grow: float = 2.0
    shrink: float = 0.5
    factor_min: float = 0.2
    dt_min: float = 0.0
    dt_max: float = float("inf")
    accept_at_dt_min: bool = False
    max_steps: int = 1000
    jump_ts: tuple[float, ...] = ()
    stop_ts: tuple[float, ...] = ()
    rtol: float = 0.0
    atol: float = 1.0
    tensors: tuple[Tensor, ...] = ()
    asked: list[tuple[tuple[float, ...], bool]] = field(default_factory=list)

    def ratio(self, step: ScriptedStep) -> Tensor:
        return step.error.abs().max()

    def factor(self, ratios: Sequence[Any], order: int, *, after_rejection: bool = False) -> float:
        self.asked.append((tuple(float(r) for r in ratios), after_rejection))
        if not float(ratios[0]) <= 1:
            return self.shrink
        return 1.0 if after_rejection else self.grow

    def initial_step(self, p: Problem, f0: Tensor, numbers: Numbers) -> Tensor:
        return torch.tensor(0.125, dtype=torch.float64)

    adaptive = True
    moves = Adaptive.moves
    stops = Adaptive.stops
    boundaries = Adaptive.boundaries


class Counted:
    """A vector field on packed states that keeps the times and the states it was called with."""

    def __init__(self, f: Callable = lambda t, y: torch.ones_like(y)):
        self.f = f
        self.times: list[float] = []
        self.states: list[Tensor] = []

    def __call__(self, t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        self.times.append(float(t))
        self.states.append(y)
        return self.f(torch.as_tensor(t, dtype=y.dtype.to_real()), y)

    @property
    def nfe(self) -> int:
        return len(self.times)


def problem(
    f: Callable, times: Sequence[float], method: Any, control: Any, y0: Tensor | None = None
) -> Problem:
    """A problem without a front door; one component of float64, from zero, by default."""
    start = torch.zeros(1, dtype=torch.float64) if y0 is None else y0
    jumps = frozenset(getattr(control, "jump_ts", ()))
    return Problem(Field(f, jumps=jumps), start, Times(tuple(times)), method, control)


def evaluations_of(method: Any, n: int) -> int:
    """How often n fixed steps in a row evaluate f, and how often their replay does."""
    if isinstance(method, Carrying):
        return 1 + n * (method.stages - 1)
    return n * (method.stages - method.fsal)


def starts_with_known_slope(method: Any) -> bool:
    """Whether a step inside a solve evaluates no first stage."""
    return isinstance(method, Carrying) or method.fsal


class Recorder:
    """f(t, y) as a user's function that keeps the time tensors it gets."""

    def __init__(self, f: Callable[..., Any]):
        self.f = f
        self.ts: list[Tensor] = []

    def __call__(self, t: Tensor, y: Any, *args: Any) -> Any:
        self.ts.append(t.clone())
        return self.f(t, y, *args)

    @property
    def times(self) -> list[float]:
        return [t.item() for t in self.ts]

    @property
    def nfe(self) -> int:
        return len(self.ts)


class CountOperations(TorchDispatchMode):
    """Counts the aten operations that run inside `with CountOperations() as counts: ...`, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.reads_of: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        self.names[name] += 1
        if name == "_local_scalar_dense":
            self.reads_of[args[0].dtype] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.names.total()

    @property
    def host_reads(self) -> int:
        """Reads of single values; `reads_of` has them by dtype: the state's, or that of times, which are the host's."""
        return self.names["_local_scalar_dense"]
