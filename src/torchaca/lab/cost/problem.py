"""A problem whose number of steps, of layers and of trials per step can be chosen one at a time, and its counts.

z' = R l_N(... l_1(z)), l_i(x) = x + tanh(x W_i) / N, R a rotation: the motion neither grows nor decays, so the steps
are equal and their number grows with T; more layers hardly change it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from torchaca.control import Adaptive
from torchaca.core import End, Problem, Step, Times
from torchaca.loops.pace import TENSORS
from torchaca.loops.stepping import search
from torchaca.numbers import value

DTYPE = torch.float64
MARK = "_MarkBackward"


@dataclass(frozen=True)
class Settings:
    """The slides give no problem: everything here is chosen.

    Along each axis, `spans` (N_t), `layers` (N_f) and `trials` (m), the other two are `span`, `depth` and 1 trial.
    """

    gradient: tuple[str, ...] = ("naive", "direct", "adjoint", "aca", "mali")
    method: str = "dopri5"
    rtol: float = 1e-4
    atol: float = 1e-4
    spans: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    layers: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    trials: tuple[int, ...] = (1, 2, 3, 4, 5)
    span: float = 2.0
    depth: int = 4
    samples: int = 16
    size: int = 8
    frequency: float = 6.0
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Wasteful:
    """Step sizes that take `trials` trials each: it asks for 2^(trials - 1) times too much and halves.

    The trials fail by their own error estimate; all other rules are those of `Adaptive`, with `factor_min` 1/2.
    """

    rtol: float
    atol: float
    trials: int = 1
    own: Adaptive = field(init=False)
    step_rule: ClassVar[None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", Adaptive(self.rtol, self.atol, factor_min=0.5))

    def __getattr__(self, name: str) -> Any:
        if name == "own" or name.startswith("__"):  # nothing yet, or somebody asks what this is
            raise AttributeError(name)
        return getattr(self.own, name)

    def fitted(self, ts: Times, time_dtype: torch.dtype) -> Wasteful:
        """Return the control itself: f does not jump."""
        return self

    def with_settings(self, **settings: Any) -> Wasteful:
        """Exchange some settings of `Adaptive`."""
        other = replace(self)
        object.__setattr__(other, "own", self.own.with_settings(**settings))
        return other

    def with_tensors(self, tensors: Sequence[Tensor]) -> Wasteful:
        """Return the control itself, which holds none."""
        return self

    def within(self, start: float, end: float) -> Wasteful:
        """Return the control itself, which works on any stretch."""
        return self

    def moves(self, p: Problem) -> Generator[Step, None, End]:
        """Yield the accepted steps of a problem; see `torchaca.core.Control`."""
        return search(p, cast("Adaptive", self))

    def moves_on_tensors(self, p: Problem) -> Generator[Step, None, End]:
        """Yield the same steps, whose sizes autograd follows back to the states."""
        return search(p, cast("Adaptive", self), TENSORS)

    def factor(self, ratios: Sequence[Any], order: int, *, after_rejection: bool | Tensor = False) -> Any:
        """As it should be after a rejection, too large after an accepted step."""
        factor = self.own.factor(ratios, order, after_rejection=after_rejection)
        return factor * 2 ** (self.trials - 1) if value(ratios[0]) <= 1 else factor


class Layers(nn.Module):
    """The right-hand side; `vjps` counts the vector-Jacobian products of layers.

    While `watched`, `local_depths` gets the depth of the graph that every evaluation ends, in layers.
    """

    def __init__(self, settings: Settings, n: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (n, settings.size, settings.size)
        weights = torch.randn(shape, generator=generator, dtype=DTYPE) / math.sqrt(settings.size)
        self.weights = nn.ParameterList(weights.unbind())
        turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DTYPE)
        self.rotation = settings.frequency * torch.block_diag(*[turn] * (settings.size // 2))
        self.vjps = 0
        self.watched = False
        self.local_depths: list[int] = []

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        for weight in self.weights:
            z = _Mark.apply(z + torch.tanh(z @ weight) / len(self.weights), self)
        if self.watched and torch.is_grad_enabled():
            self.local_depths.append(graph_depth(z))
        return z @ self.rotation


class _Mark(torch.autograd.Function):
    """The identity at the end of a layer: found in the graph, counted in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, layers: Layers) -> Tensor:
        ctx.layers = layers
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.layers.vjps += 1
        return grads[0], None


def graph_depth(z: Tensor) -> int:
    """The number of layers on the longest path of the graph that leads to `z`."""
    if z.grad_fn is None:
        return 0
    depths: dict[Any, int] = {}
    stack: list[Any] = [z.grad_fn]
    while stack:
        node = stack[-1]
        before = [parent for parent, _ in node.next_functions if parent is not None]
        missing = [parent for parent in before if parent not in depths]
        if node in depths or not missing:
            stack.pop()
            own = 1 if node.name() == MARK else 0
            depths[node] = own + max((depths[parent] for parent in before), default=0)
        else:
            stack.extend(missing)
    return depths[z.grad_fn]


def chained_depth(local_depths: Sequence[int], layers: int) -> int:
    """The layers that a cotangent passes in local graphs one after another.

    A local graph begins with an evaluation that has nothing but its own layers behind it.
    """
    total = deepest = 0
    for depth in local_depths:
        if depth == layers:
            total, deepest = total + deepest, 0
        deepest = max(deepest, depth)
    return total + deepest
