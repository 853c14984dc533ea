"""Models at rest, with the exact derivative of their solution: that of the linear model beside the equilibrium."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DOUBLE = torch.float64


@dataclass(frozen=True)
class Resting:
    """`f(t, y)` with an equilibrium at `y`; `spans` are those that are looked at. `weights` make a loss of y(T)."""

    name: str
    f: Callable[..., Tensor]
    y: tuple[float, ...]
    spans: tuple[float, ...]
    decays: bool = False

    def start(self, dtype: torch.dtype = DOUBLE) -> Tensor:
        return torch.tensor(self.y, dtype=dtype, requires_grad=True)

    @property
    def weights(self) -> Tensor:
        return torch.linspace(1.0, 2.0, len(self.y), dtype=DOUBLE)

    def exact(self, span: float) -> Tensor:
        """The derivative of `weights . y(span)` by y(0)."""
        time = torch.zeros((), dtype=DOUBLE)
        (jacobian,) = torch.func.jacrev(lambda y: (self.f(time, y),))(self.start().detach())
        return self.weights @ torch.linalg.matrix_exp(span * jacobian)

    def off(self, grad: Tensor, span: float) -> float:
        """How far a gradient is from the exact one, relative to the larger of the cotangents at both ends."""
        exact = self.exact(span)
        size = max(exact.norm().item(), self.weights.norm().item() if self.decays else 0.0)
        return ((grad.double() - exact).norm() / size).item()


def oscillator(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -y[0] - 0.1 * y[1]])


def prey(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[0] - y[0] * y[1], -y[1] + y[0] * y[1]])


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -9.81 * torch.sin(y[0]) - 0.1 * y[1]])


def before_the_dose(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([-2.0 * y[0] + 0.5 * y[1], 0.8 * y[0] - 0.5 * y[1]])


def heat(t: Tensor, y: Tensor) -> Tensor:
    inside = torch.nn.functional.pad(y, (1, 1))
    return 17**2 * (inside[2:] - 2 * y + inside[:-2])


def unstable(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], torch.sin(y[0])])


def zero_net(t: Tensor, y: Tensor) -> Tensor:
    """A net whose last layer starts at zero, in front of a leak."""
    first = torch.linspace(-1.0, 1.0, 12, dtype=y.dtype).reshape(4, 3)
    return torch.tanh(first @ y) @ torch.zeros(4, 3, dtype=y.dtype) - y * torch.tensor([1.0, 2.0, 3.0]).to(y)


MODELS = [
    Resting("oscillator", oscillator, (0.0, 0.0), (10.0, 20.0, 50.0)),
    Resting("prey", prey, (1.0, 1.0), (3.0, 10.0, 20.0, 50.0)),
    Resting("pendulum", pendulum, (0.0, 0.0), (8.0,)),
    Resting("before the dose", before_the_dose, (0.0, 0.0), (10.0, 30.0), decays=True),
    Resting("heat", heat, (0.0,) * 16, (0.3,), decays=True),
    Resting("unstable", unstable, (0.0, 0.0), (10.0,)),
    Resting("zero net", zero_net, (0.0, 0.0, 0.0), (10.0,), decays=True),
]
