"""The workloads' f as PyTorch modules; the same formulas as in `fields_jax`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from .workloads import K1, K2, Arrays, Workload


class Parametrised(nn.Module):
    """A module with these arrays as its parameters."""

    def __init__(self, parameters: Arrays) -> None:
        super().__init__()
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.from_numpy(np.array(value))))


class MLP(Parametrised):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return linear(torch.tanh(linear(y**3, self.w1, self.b1)), self.w2, self.b2)


class Gravity(Parametrised):
    """Three bodies; `y` is positions and velocities, `(6, 3)`."""

    def __init__(self, parameters: Arrays) -> None:
        super().__init__(parameters)
        self.register_buffer("eye", torch.eye(3, dtype=self.masses.dtype))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        position, velocity = y[:3], y[3:]
        apart = position[None] - position[:, None]
        distance = ((apart**2).sum(-1) + self.eye).sqrt()
        pull = (self.masses[None, :, None] * apart / distance[..., None] ** 3).sum(1)
        return torch.cat([K2 * velocity, K1 * pull])


class Conv(Parametrised):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        hidden = torch.tanh(conv2d(y, self.w1, self.b1, padding=1))
        return conv2d(hidden, self.w2, self.b2, padding=1)


class VanDerPol(Parametrised):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return oscillator(t, y, self.mu)


class Lorenz(Parametrised):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return lorenz(t, y, self.rho)


def lorenz(t: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """Lorenz' equations for any number of systems, `y[..., 3]`."""
    a, b, c = y.unbind(-1)
    return torch.stack([10 * (b - a), a * (rho - c) - b, a * b - 8 / 3 * c], dim=-1)


def oscillator(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """Van der Pol's equation for any number of oscillators, `y[..., 2]`."""
    x, v = y[..., 0], y[..., 1]
    return torch.stack([v, mu * (1 - x**2) * v - x], dim=-1)


FIELDS: dict[str, Callable[[Arrays], nn.Module]] = {
    "mlp": MLP,
    "gravity": Gravity,
    "conv": Conv,
    "van_der_pol": VanDerPol,
    "lorenz": Lorenz,
}
FORMULAS = {"van_der_pol": oscillator, "lorenz": lorenz}
"""Those with a parameter for each sample, as functions of it."""


def field_of(w: Workload, device: str = "cpu") -> nn.Module:
    """The workload's f on the device."""
    return FIELDS[w.field](w.parameters).to(device)
